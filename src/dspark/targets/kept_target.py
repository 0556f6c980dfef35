"""A lean target to a kept file and back, bit for bit (`kept`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dspark import native
from dspark.attention.rotary import RopeTable
from dspark.errors import CheckpointError, DSparkError
from dspark.targets import kept, kept_file, light_tokenizer
from dspark.targets.family import TargetSpec
from dspark.targets.kept import Place
from dspark.targets.kept_file import KeptFile
from dspark.targets.layers import PackedLinear, RMSNorm
from dspark.targets.lean_parts import LeanParts

if TYPE_CHECKING:
    from dspark.targets.target import LeanTarget

_PANELS = ("weight", "scales", "sums")  # of a packed product
_HEAD, _EMBEDDING = "head", "embedding"


def layout(dtype: str) -> str:
    """How weights of a type are laid out by what serves now."""
    ours = native.kernels() is not None and dtype in ("bfloat16", "float32")
    return kept.PANELS if ours else kept.ROWS


def find(place: Place, dtype: str, weights: str) -> KeptFile | None:
    """The file of a target; None where there is none that is whole."""
    path = kept.file_path(place, dtype, weights, layout(dtype))
    with suppress(CheckpointError):
        if (fields := kept_file.read_header(path)) is not None:
            found = KeptFile(path, fields)
            kept.mark_used(path)
            return found
    return None


def keep(target: LeanTarget, where: Path, stamps: kept.Stamps) -> None:
    """Write a target that was just loaded, where there is room for it.

    Args:
        where: its folder.
        stamps: of the folder, from before it was read.
    """
    place = kept.new_place(where, target.spec, stamps)
    if place is None:
        return
    dtype = target.dtype_name
    path = kept.file_path(place, dtype, target.weights, layout(dtype))
    blobs, linears = _blobs(target)
    told = light_tokenizer.describe(target.tokenizer)
    if told is not None:
        blobs["tokenizer"] = told[0].encode()
    fields = {
        "stop_ids": sorted(target.stop_ids),
        "rope_theta": target.rope_theta,
        "ropes": {kind: table.scale for kind, table in target.model.ropes.items()},
        "linears": linears,
        "tied": target.head_weight.data_ptr() == target.embedding_weight.data_ptr(),
        "tokenizer": None if told is None else told[1],
    }
    size = sum(x.nbytes if isinstance(x, Tensor) else len(x) for x in blobs.values())
    kept.remember(place)
    if kept.make_room(path, size):
        with suppress(DSparkError):  # a full disk, a folder that may not be written to
            kept_file.write(path, fields, blobs)


def _blobs(target: LeanTarget) -> tuple[dict[str, Tensor | bytes], dict[str, list[int]]]:
    """All tensors of a target by name, and outputs and inputs of its packed products."""
    blobs: dict[str, Tensor | bytes] = {_EMBEDDING: target.embedding_weight}
    linears: dict[str, list[int]] = {}
    if target.head_weight.data_ptr() != target.embedding_weight.data_ptr():
        blobs["head_rows"] = target.head_weight
    for name, module in (*target.model.named_modules(), (_HEAD, target.head_product)):
        if isinstance(module, RMSNorm):
            blobs[f"{name}.weight"] = module.weight
        elif isinstance(module, PackedLinear):
            if module.packed is None:
                if name != _HEAD:  # its rows are there already
                    blobs[f"{name}.weight"] = module.rows_OI
            else:
                linears[name] = [module.out_features, module.in_features]
                parts = zip(_PANELS, module.packed.parts, strict=True)
                blobs |= {f"{name}.{part}": tensor for part, tensor in parts if tensor.numel()}
            if module.bias is not None:
                blobs[f"{name}.bias"] = module.bias
    for kind, table in target.model.ropes.items():
        blobs[f"rope.{kind}"] = table.inv_freq
    return blobs, linears


class KeptParts(LeanParts):
    """A lean model's weights from a kept file."""

    def __init__(self, file: KeptFile, spec: TargetSpec) -> None:
        self._file, self._spec = file, spec
        self._embedding = file.tensor(_EMBEDDING)

    def linear(self, name: str) -> PackedLinear:
        file = self._file
        bias = file.tensor(f"{name}.bias") if f"{name}.bias" in file else None
        if name in file.fields["linears"]:
            return PackedLinear(self._packed(name), bias)
        return PackedLinear(file.tensor(f"{name}.weight"), bias)

    def _packed(self, name: str) -> native.Packed:
        rows, columns = self._file.fields["linears"][name]
        data, scales, sums = (
            self._file.tensor(f"{name}.{part}") if f"{name}.{part}" in self._file else _NOTHING
            for part in _PANELS
        )
        return native.Packed.of(rows, columns, self._embedding.dtype, (data, scales, sums))

    def norm(self, name: str) -> RMSNorm:
        weight = self._file.tensor(f"{name}.weight")
        return RMSNorm(weight.shape[0], self._spec.rms_norm_eps, weight)

    def embedding(self) -> Tensor:
        return self._embedding

    def head(self) -> tuple[Tensor, PackedLinear]:
        rows = self._embedding if self._file.fields["tied"] else self._file.tensor("head_rows")
        if _HEAD in self._file.fields["linears"]:
            return rows, PackedLinear(self._packed(_HEAD))
        return rows, PackedLinear(rows)

    def ropes(self) -> dict[str, RopeTable]:
        scales = self._file.fields["ropes"]
        return {kind: RopeTable(self._file.tensor(f"rope.{kind}"), scales[kind]) for kind in scales}


_NOTHING = torch.empty(0)


def tokenizer_of(file: KeptFile, whole: Callable[[], Any]) -> Any:
    """The target's tokenizer, the Hugging Face one where no other could stand for it.

    Args:
        whole: loads the Hugging Face tokenizer.
    """
    facts = file.fields["tokenizer"]
    if facts is None:
        return whole()
    return light_tokenizer.restore(file.text("tokenizer").decode(), facts, whole)
