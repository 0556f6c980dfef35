"""Target hidden states for training: computed on the fly, kept in memory within a budget.

Suffixes: T positions of a sequence, M taps x D, D hidden.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.targets.target import Target


def bytes_per_sequence(response: Response, target: Target, taps: int) -> int:
    """Memory that a sequence's states will hold, in bytes."""
    width = target.spec.hidden_size * target.dtype.itemsize
    if not taps:  # the last states of all positions hold those of the answer
        return width * len(response)
    return width * (taps * len(response) + len(response.response_ids))


class StateCache:
    """States by sequence key; the least recently used leave when the budget is full.

    Args:
        target: the frozen model.
        tap_ids: layers to tap; with none the final-normed last states stand for the taps.
        budget_bytes: memory to stay within; 0 keeps nothing beyond the current batch.
    """

    def __init__(self, target: Target, tap_ids: Sequence[int], budget_bytes: int) -> None:
        self.target, self.tap_ids, self.budget = target, tuple(tap_ids), budget_bytes
        self.held = 0
        self.computed_tokens = 0
        self._kept: OrderedDict[str, SequenceStates] = OrderedDict()

    def get(self, responses: Sequence[Response]) -> list[SequenceStates]:
        """States of the given sequences, in order; missing ones take one packed target pass."""
        missing = [r for r in responses if r.key not in self._kept]
        fresh = dict(zip([r.key for r in missing], self._compute(missing), strict=True))
        result = [fresh.get(r.key) or self._kept[r.key] for r in responses]
        for response, states in zip(responses, result, strict=True):
            if response.key in fresh and response.key not in self._kept:
                self.held += states.nbytes
                self._kept[response.key] = states
            self._kept.move_to_end(response.key)
        while self.held > self.budget and self._kept:
            self.held -= self._kept.popitem(last=False)[1].nbytes
        return result

    def _compute(self, responses: list[Response]) -> list[SequenceStates]:
        if not responses:
            return []
        sequences = [[*r.prompt_ids.tolist(), *r.response_ids.tolist()] for r in responses]
        self.computed_tokens += sum(map(len, sequences))
        last, taps = self.target.states(sequences, self.tap_ids)
        lengths = [len(s) for s in sequences]
        out = []
        whole = last if taps is None else taps
        # 64 x V float32 stays near a processor's cache; a GPU wants few calls.
        rows_at_once = 64 if last.device.type == "cpu" else 4096
        pieces = zip(responses, last.split(lengths), whole.split(lengths), strict=True)
        for response, last_TD, whole_TM in pieces:
            first, taps_TM = len(response.prompt_ids), _own_memory(whole_TM)
            answer = taps_TM[first:] if taps is None else _own_memory(last_TD[first:])
            norms = [
                torch.logsumexp(self.target.logits(rows).float(), -1)
                for rows in answer.split(rows_at_once)
            ]
            out.append(SequenceStates(taps_TM, answer, torch.cat(norms), first))
        return out


def _own_memory(x: Tensor) -> Tensor:
    """A copy in a mapping of its own, which goes back to the system with the tensor.

    On the heap, thousands of tensors of all sizes that come and go leave holes that nothing fits
    into: 4 GiB of them in a run of 100 minutes with a budget of 4.
    """
    if x.device.type != "cpu" or not x.numel():
        return x.clone()
    memory = mmap.mmap(-1, x.numel() * x.element_size())
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)
