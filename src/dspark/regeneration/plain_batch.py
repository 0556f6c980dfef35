"""Many texts drawn plainly at the same time, on a `GraphDecoder`.

What a text says does not depend on its neighbours: the random numbers are those that the engine
gives a request with a seed of its own. Counts, positions and seeds of all slots are arrays, so a
step costs Python nothing for a text that only grows.

Suffixes: S slots, R texts of a step, N rows with logits, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.core import FinishReason, Request, SamplingParams
from dspark.errors import RequestError
from dspark.maths.rng import Use, uniform
from dspark.maths.sampling import check_rows, draw, probabilities
from dspark.regeneration.graph_decoder import GraphDecoder
from dspark.targets.target import LeanTarget

PREFILL_ROWS = 16_384  # prompt rows of a pass, padding to its longest included
_CHUNK = 2**26  # float32 numbers of a distribution that is drawn from at once
_LEAST_READY = 16


class PlainBatch:
    """Keeps slots filled with requests that all have a seed of their own.

    Args:
        target: one that `graph_decoder.suits`.
        slots: requests that run at the same time.
        max_len: longest text, prompt included, in tokens; at most what the target was made for.
        prefill_rows: prompt rows run at once.
    """

    def __init__(
        self, target: LeanTarget, slots: int, max_len: int, prefill_rows: int = PREFILL_ROWS
    ) -> None:
        self.target, self.prefill_rows = target, prefill_rows
        self.max_len = min(max_len, target.max_positions)
        self.decoder = GraphDecoder(target, slots, self.max_len)
        self._stop_ids = np.array(sorted(target.stop_ids), dtype=np.int64)
        self._refill = max(1, slots // 16)  # a pass over prompts is worth so many free slots
        self._waiting: deque[Request] = deque()
        self._free = list(range(slots))[::-1]
        self._requests: dict[int, Request] = {}  # by slot
        self._ids = count(1)
        self._live_S = np.zeros(slots, dtype=bool)
        self._last_S = np.zeros(slots, dtype=np.int64)  # 0 in free slots, as are positions
        self._position_S = np.zeros(slots, dtype=np.int64)  # where the last token goes
        self._count_S = np.zeros(slots, dtype=np.int64)  # tokens made so far
        self._limit_S = np.zeros(slots, dtype=np.int64)
        self._seed_S = np.zeros(slots, dtype=np.uint64)
        self._temperature_S = np.zeros(slots, dtype=np.float32)
        self._top_p_S = np.ones(slots, dtype=np.float64)
        self._said_SL = np.zeros((slots, self.max_len), dtype=np.int64)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._requests)

    @property
    def wanted(self) -> int:
        """Requests to submit now, so that free slots never wait and no step waits long."""
        ready = max(_LEAST_READY, 2 * self._refill)
        short = max(ready - len(self._waiting), 0)
        return short if len(self._free) >= self._refill else min(short, _LEAST_READY)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """Put a prompt in line.

        Raises:
            RequestError: it is empty, leaves no room for a completion or has an unknown token id.
        """
        assert params.seed is not None
        assert params.top_k == 0
        assert params.grammar is None
        ids, vocabulary = list(prompt_ids), self.target.spec.vocab_size
        if not 0 < len(ids) < self.max_len:
            raise RequestError("The prompt does not fit", found=f"{len(ids)} of {self.max_len}")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise RequestError(
                "The prompt has a token id outside the target's vocabulary",
                fix=f"Use ids from 0 to {vocabulary - 1}",
            )
        request = Request(next(self._ids), ids, params)
        self._waiting.append(request)
        return request

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> tuple[int, list[Request]]:
        """New prompts where enough slots are free, else one token of every text.

        Args:
            meanwhile: called while the device works; may submit.

        Returns:
            Tokens drawn and the requests that finished.

        Raises:
            EngineError: the target's logits have no finite largest value.
        """
        enough = len(self._free) >= self._refill or not self._requests
        if self._waiting and enough:
            slots_R = self._admit()
            prompts = [(int(s), self._requests[int(s)].prompt_ids) for s in slots_R]
            logits_NV, rows_R = self.decoder.prefill(prompts), np.arange(len(prompts))
        else:
            slots_R = self._live_S.nonzero()[0]
            logits_NV, rows_R = self.decoder.step(self._last_S, self._position_S), slots_R
        meanwhile()
        temperature_R, top_p_R = self._temperature_S[slots_R], self._top_p_S[slots_R]
        ids_R = choose(logits_NV, rows_R, temperature_R, top_p_R, self._uniform(slots_R))
        return len(ids_R), self._commit(slots_R, ids_R)

    def _admit(self) -> NDArray[np.int64]:
        """Give slots to waiting requests, as many as one pass takes."""
        slots: list[int] = []
        longest = 0
        while self._waiting and self._free:
            request = self._waiting[0]
            longest = max(longest, len(request.prompt_ids))
            if slots and longest * (len(slots) + 1) > self.prefill_rows:
                break
            slot = self._free.pop()
            self._requests[slot] = self._waiting.popleft()
            slots.append(slot)
            params, room = request.params, self.max_len - len(request.prompt_ids)
            self._live_S[slot] = True
            self._position_S[slot] = len(request.prompt_ids) - 1
            self._count_S[slot] = 0
            self._limit_S[slot] = min(params.max_new_tokens, room)
            assert params.seed is not None
            self._seed_S[slot] = params.seed
            self._temperature_S[slot], self._top_p_S[slot] = params.temperature, params.top_p
        return np.array(slots, dtype=np.int64)

    def _uniform(self, slots_R: NDArray[np.int64]) -> NDArray[np.float64]:
        """The engine's numbers: a first token is outside all rounds, each later one ends one."""
        made_R = self._count_S[slots_R]
        return uniform(
            seed=self._seed_S[slots_R],
            request=0,
            sample=0,
            round=np.maximum(made_R - 1, 0),
            slot=0,
            use=np.where(made_R == 0, int(Use.TARGET), int(Use.RESIDUAL)),
        )

    def _commit(self, slots_R: NDArray[np.int64], ids_R: NDArray[np.int64]) -> list[Request]:
        """Add a token to each text; texts end with a stop token or at their limit."""
        self._said_SL[slots_R, self._count_S[slots_R]] = ids_R
        self._count_S[slots_R] += 1
        self._position_S[slots_R] += 1
        self._last_S[slots_R] = ids_R
        stopped_R = np.isin(ids_R, self._stop_ids)
        ended_R = stopped_R | (self._count_S[slots_R] >= self._limit_S[slots_R])
        finished = []
        for r in ended_R.nonzero()[0]:
            slot = int(slots_R[r])
            request = self._requests.pop(slot)
            request.output_ids = self._said_SL[slot, : self._count_S[slot]].tolist()
            request.finish = FinishReason.STOP if stopped_R[r] else FinishReason.LENGTH
            self._live_S[slot] = False
            self._last_S[slot] = self._position_S[slot] = 0
            self._free.append(slot)
            finished.append(request)
        return finished


@torch.inference_mode()
def choose(
    logits_NV: Tensor,
    rows_R: NDArray[np.int64],
    temperature_R: NDArray[np.float32],
    top_p_R: NDArray[np.float64],
    u_R: NDArray[np.float64],
) -> NDArray[np.int64]:
    """One token from each of some rows; those of a kind (greedy, whole, cut) go together.

    Raises:
        EngineError: a row has no finite largest logit.
    """
    most = max(_CHUNK // logits_NV.shape[1], 1)
    greedy_R, cut_R = temperature_R == 0, top_p_R < 1
    places, ids = [], []
    for kind_R in (greedy_R, ~greedy_R & ~cut_R, ~greedy_R & cut_R):
        of_kind = kind_R.nonzero()[0]
        for start in range(0, len(of_kind), most):
            part = of_kind[start : start + most]
            rows = torch.from_numpy(rows_R[part]).to(logits_NV.device)
            logits = logits_NV[rows].float()
            if greedy_R[part[0]]:
                best, found = logits.max(-1)
                check_rows(best.isfinite())
            else:
                temperature = torch.from_numpy(temperature_R[part])
                top_p = torch.from_numpy(top_p_R[part])
                found = draw(probabilities(logits, temperature, 0, top_p), u_R[part])
            places.append(part)
            ids.append(found)
    chosen_R = np.empty(len(rows_R), dtype=np.int64)
    chosen_R[np.concatenate(places)] = torch.cat(ids).cpu().numpy()
    return chosen_R
