"""One token a step for many texts at once, the whole forward replayed as one CUDA graph.

On a GPU a small model's step is bound by the calls it takes, not by arithmetic. Here every step
has the same shapes and the same memory: a row for every slot, free slots included. So the calls
are recorded once and replayed. On a CPU the same function runs without them.

Suffixes: S slots, T packed prompt rows, N prompts, L positions, H query heads, G query heads per
key-value head, P head_dim, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.attention.ragged import PackedAttention
from dspark.targets.lean import Rotary
from dspark.targets.target import LeanTarget, Target

# A step reads every slot's keys up to one of these lengths, each a graph of its own.
LENGTHS = (384, 640)
_WARM_UPS = 3  # libraries choose kernels and take workspace in their first calls


def suits(target: Target) -> TypeGuard[LeanTarget]:
    """Whether a `GraphDecoder` can run this target: lean, and every layer sees all positions."""
    return isinstance(target, LeanTarget) and not any(target.spec.layer_windows)


class GraphDecoder:
    """Keys and values of every slot, and the two forwards that extend them.

    Args:
        target: one that `suits`.
        slots: texts at the same time.
        max_len: positions of each.
        lengths: shorter lengths that a step may look back, for speed alone.

    Attributes:
        captured: steps are replayed; False on a CPU, or where recording failed.
    """

    @torch.inference_mode()
    def __init__(
        self, target: LeanTarget, slots: int, max_len: int, lengths: Sequence[int] = LENGTHS
    ) -> None:
        assert suits(target)
        self.target, self.slots, self.max_len = target, slots, max_len
        spec, device = target.spec, target.device
        self._kv_heads, self._groups = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
        shape = (slots * spec.num_kv_heads, max_len, spec.head_dim)
        make = lambda: torch.zeros(shape, dtype=target.dtype, device=device)  # noqa: E731
        self._keys = [make() for _ in range(spec.num_layers)]
        self._values = [make() for _ in range(spec.num_layers)]
        # What a recorded step reads has to lie on the device, at a place that never changes.
        self._places = torch.arange(max_len, device=device)
        self._rotary = target.model.rotary(self._places)
        self._heads = torch.arange(spec.num_kv_heads, device=device)
        self._slots = torch.arange(slots, device=device)
        self._inputs = torch.zeros(2, slots, dtype=torch.long, device=device)
        self._lengths = [*sorted(n for n in set(lengths) if n < max_len), max_len]
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        if device.type == "cuda":
            self._record()

    @property
    def captured(self) -> bool:
        return bool(self._graphs)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Run whole prompts, each (slot, token ids); returns the logits [N, V] of their ends."""
        lengths = [len(ids) for _, ids in prompts]
        ids = np.concatenate([np.asarray(ids, dtype=np.int64) for _, ids in prompts])
        positions = np.concatenate([np.arange(n) for n in lengths])
        slots = np.repeat([slot for slot, _ in prompts], lengths)
        ends = np.cumsum(lengths) - 1
        ids_T, positions_T, slots_T, ends_N = map(self._moved, (ids, positions, slots, ends))
        spec = self.target.spec
        packed = PackedAttention(lengths, spec.layer_windows, spec.attention_scale)
        row_T = self._rows(slots_T, positions_T)

        def attend(layer: int, q_THP: Tensor, k_THP: Tensor, v_THP: Tensor) -> Tensor:
            self._write(layer, row_T, k_THP, v_THP)
            return packed(layer, q_THP, k_THP, v_THP)

        tables = self._rotary_at(positions_T)
        last_TD, _ = self.target.model(ids_T, positions_T, attend, tables=tables)
        return self.target.logits(last_TD[ends_N])

    @torch.inference_mode()
    def step(self, ids_S: NDArray[np.int64], positions_S: NDArray[np.int64]) -> Tensor:
        """One token of every slot; a free slot takes any token at position 0.

        Returns:
            Logits [S, V], which the next step may overwrite.
        """
        self._inputs.copy_(torch.from_numpy(np.stack([ids_S, positions_S])))
        needed = int(positions_S.max()) + 1
        length = next(n for n in self._lengths if n >= needed)
        if length not in self._graphs:
            return self._forward(length)
        graph, logits_SV = self._graphs[length]
        graph.replay()
        return logits_SV

    def _forward(self, length: int) -> Tensor:
        """The step on `_inputs`: device work alone, no shape and no branch that depends on data."""
        ids_S, positions_S = self._inputs[0], self._inputs[1]
        row_S = self._rows(self._slots, positions_S)
        mask = self._mask(positions_S, length)
        scale, head_dim = self.target.spec.attention_scale, self.target.spec.head_dim

        def attend(layer: int, q_SHP: Tensor, k_SHP: Tensor, v_SHP: Tensor) -> Tensor:
            self._write(layer, row_S, k_SHP, v_SHP)
            q = q_SHP.reshape(-1, self._groups, head_dim)
            keys, values = self._keys[layer][:, :length], self._values[layer][:, :length]
            # Soft-max computes in float32 whatever the type of its input.
            shares = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=scale).softmax(-1)
            return torch.bmm(shares, values).view(self.slots, -1)

        tables = self._rotary_at(positions_S)
        last_SD, _ = self.target.model(ids_S, positions_S, attend, tables=tables)
        return self.target.logits(last_SD)

    def _mask(self, positions_S: Tensor, length: int) -> Tensor:
        """Additive [S · kv_heads, G, L]: nothing behind a row's own position."""
        hidden_SL = self._places[:length] > positions_S[:, None]
        mask_SL = torch.zeros_like(hidden_SL, dtype=self.target.dtype)
        mask_SL.masked_fill_(hidden_SL, float("-inf"))
        full = mask_SL[:, None, None].expand(-1, self._kv_heads, self._groups, -1)
        return full.reshape(-1, self._groups, length)

    def _rows(self, slots_T: Tensor, positions_T: Tensor) -> Tensor:
        """Where each row's heads lie in a layer's memory, [T · kv_heads]."""
        first = slots_T[:, None] * self._kv_heads + self._heads
        return (first * self.max_len + positions_T[:, None]).flatten()

    def _write(self, layer: int, row_T: Tensor, k_THP: Tensor, v_THP: Tensor) -> None:
        for memory, x_THP in ((self._keys[layer], k_THP), (self._values[layer], v_THP)):
            memory.flatten(0, 1).index_copy_(0, row_T, x_THP.flatten(0, 1))

    def _rotary_at(self, positions_T: Tensor) -> Rotary:
        pick = lambda table: table.index_select(0, positions_T)  # noqa: E731
        return {kind: (pick(cos), pick(sin)) for kind, (cos, sin) in self._rotary.items()}

    def _moved(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self.target.device)

    def _record(self) -> None:
        """Record a step of each length; where that fails, steps run call by call."""
        graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        before = torch.cuda.current_stream(self.target.device)
        try:
            with torch.cuda.device(self.target.device):
                pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
                for length in reversed(self._lengths):  # the longest needs the most memory
                    graphs[length] = self._recorded(length, pool, stream)
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own behind
            what = " ".join(str(error).split())[:200]
            warnings.warn(f"CUDA graph not recorded, steps will be slow: {what}", stacklevel=3)
            return
        self._graphs = graphs

    def _recorded(
        self, length: int, pool: Any, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph and the logits it writes; the graphs share memory, as only one runs at a time."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forward(length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            logits_SV = self._forward(length)
        return graph, logits_SV
