"""The target's hidden states on disk, for training runs to read instead of computing them.

A store is a folder: shards of safetensors, which are read memory-mapped, and `store.json`, which
says whose states they are and where each sequence lies.

Suffixes: T positions of a sequence, M auxiliary layers x D, D hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dspark.artifacts import atomic_write_bytes, read_artifact, write_artifact
from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.errors import DataError, IncompatibleDrafterError
from dspark.targets.names import portable_name
from dspark.targets.target import Target

SCHEMA = "dspark.store/1"
INDEX = "store.json"
MAKE_ANOTHER = "Make a store with this recipe: `dspark store` with another --out"


@dataclass(frozen=True, slots=True)
class StoreOrigin:
    """Whose states a store holds.

    Attributes:
        target: name of the target, for people.
        hidden_size, dtype: of one state.
        target_layer_ids: auxiliary layers; none for the final-normed last states instead.
        weights: SHA-256 of the target's embedding and head in that type.
    """

    target: str
    hidden_size: int
    dtype: str
    target_layer_ids: tuple[int, ...]
    weights: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One sequence: its shard, tokens in all and of the prompt, and their hash."""

    key: str
    shard: int
    tokens: int
    first: int
    ids: str


def origin_of(target: Target, tap_ids: Sequence[int]) -> StoreOrigin:
    """What states of this target with these auxiliary layers are known by."""
    digest = hashlib.sha256()
    for weight in (target.embedding_weight, target.head_weight):
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return StoreOrigin(
        portable_name(target.name),
        target.spec.hidden_size,
        target.dtype_name,
        tuple(tap_ids),
        digest.hexdigest(),
    )


def hash_ids(response: Response) -> str:
    """SHA-256 of a sequence's tokens and of where its completion begins, shortened."""
    ids = np.concatenate([[len(response.prompt_ids)], response.prompt_ids, response.response_ids])
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:16]


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, first_number: int, states: Sequence[SequenceStates], plan: str
) -> None:
    """Write the states of sequences ``first_number`` onwards, whole or not at all.

    Args:
        plan: name of the store as it will be; a shard of another one is not taken for finished.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    for number, state in enumerate(states, first_number):
        tensors[f"{number}.taps"] = state.taps_TM.cpu()
        tensors[f"{number}.log_norm"] = state.log_norm_T.cpu()
        # Without auxiliary layers the completion's last states are part of what is stored in their
        # place.
        if state.last_TD.untyped_storage().data_ptr() != state.taps_TM.untyped_storage().data_ptr():
            tensors[f"{number}.last"] = state.last_TD.cpu()
    atomic_write_bytes(shard_path(folder, shard), save(tensors, {"plan": plan}))


def shard_plan(folder: Path, shard: int) -> str | None:
    """Which store a shard belongs to; None where there is no such shard yet.

    Raises:
        DataError: it is damaged.
    """
    path = shard_path(folder, shard)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("plan", "")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def write_index(
    folder: Path, plan: str, origin: StoreOrigin, entries: Sequence[Entry], made: Mapping[str, Any]
) -> None:
    """Write `store.json`, which makes the store a finished one; ``made`` is its provenance."""
    content = {"plan": plan, **asdict(origin), "sequences": [asdict(entry) for entry in entries]}
    write_artifact(folder / INDEX, SCHEMA, content, made)


def index_plan(folder: Path) -> str | None:
    """Which store the index in ``folder`` belongs to; None where there is no index yet.

    Raises:
        DataError: it is damaged, or no index of a store.
    """
    path = folder / INDEX
    return str(read_artifact(path, SCHEMA).get("plan")) if path.exists() else None


class StoredStates:
    """States by sequence, read from a store.

    Args:
        folder: a finished store.
        origin: the target and auxiliary layers of the run that reads it.

    Raises:
        DataError: there is no finished store, or it is damaged.
        IncompatibleDrafterError: it holds states of another target, or others of its layers.
    """

    def __init__(self, folder: str | Path, origin: StoreOrigin) -> None:
        self.folder, self.origin = Path(folder), origin
        if not (self.folder / INDEX).is_file():
            raise DataError(
                f"{folder} holds no finished store",
                found=f"no {INDEX}",
                fix="Make it, or finish it, with `dspark store`",
            )
        content = read_artifact(self.folder / INDEX, SCHEMA)
        try:
            _check_origin(content, origin)
            entries = [Entry(**row) for row in content["sequences"]]
        except (LookupError, TypeError, AttributeError) as error:
            raise _damaged(self.folder / INDEX, error) from error
        self._numbers = {entry.key: number for number, entry in enumerate(entries)}
        self._entries = entries
        self._shards: dict[int, Any] = {}

    def check(self, responses: Sequence[Response]) -> None:
        """Refuse a run that needs other sequences than these.

        Raises:
            DataError: naming the first one that is missing or has other tokens.
        """
        for response in responses:
            number = self._numbers.get(response.key)
            if number is None:
                raise DataError(
                    f"The store {self.folder} lacks a sequence",
                    found=f"{response.key}, not among its {len(self._entries)}",
                    fix=MAKE_ANOTHER,
                )
            theirs, mine = self._entries[number].ids, hash_ids(response)
            if theirs != mine:
                raise DataError(
                    f"The store {self.folder} has sequence {response.key} with other tokens",
                    found=f"store {theirs}, completions {mine}",
                    fix=MAKE_ANOTHER,
                )

    def get(self, responses: Sequence[Response]) -> list[SequenceStates]:
        """States of the given sequences, in order, as views of the mapped files.

        Raises:
            DataError: a shard is missing or damaged.
        """
        return [self._read(self._numbers[response.key]) for response in responses]

    def _read(self, number: int) -> SequenceStates:
        entry = self._entries[number]
        try:
            file = self._shards.get(entry.shard)
            if file is None:
                file = safe_open(shard_path(self.folder, entry.shard), framework="pt")
                self._shards[entry.shard] = file
            taps_TM = file.get_tensor(f"{number}.taps")
            if self.origin.target_layer_ids:
                last_TD = file.get_tensor(f"{number}.last")
            else:
                last_TD = taps_TM[entry.first :]
            log_norm_T = file.get_tensor(f"{number}.log_norm")
        except (OSError, SafetensorError) as error:
            raise _damaged(shard_path(self.folder, entry.shard), error) from error
        return SequenceStates(taps_TM, last_TD, log_norm_T, entry.first)


def _check_origin(content: dict[str, Any], origin: StoreOrigin) -> None:
    for name, mine in asdict(origin).items():
        theirs = content[name]
        mine = list(mine) if isinstance(mine, tuple) else mine
        if name != "target" and theirs != mine:  # a name may change; the weights tell
            label = name.replace("_", " ")
            raise IncompatibleDrafterError(
                f"The store holds states of another target: {label}",
                found=f"store {theirs} ({content['target']}), run {mine} ({origin.target})",
                fix=MAKE_ANOTHER + (", or set run.dtype" if name == "dtype" else ""),
            )


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged or missing",
        found=f"{type(error).__name__}: {error}",
        fix="Delete it and run `dspark store` again; it makes what is missing",
    )
