"""The request queue: who waits, who runs, and what a verdict adds to each text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from dspark.core import (
    Batch,
    DraftBlock,
    FinishReason,
    Request,
    RoundRecord,
    StepOutput,
    TokenKind,
    Verdict,
    VerifyPlan,
)
from dspark.engine.slots import SlotPool

PREFILL_ROWS = 1024


class RequestQueue:
    """Admits requests first come, first served, and commits their tokens.

    Args:
        slots: requests that run at the same time.
        max_len: longest text, prompt included, in tokens.
        stop_ids: tokens that end an answer.
        prefill_rows: prompt tokens admitted in one step, though always at least one request.
    """

    def __init__(
        self,
        slots: int,
        max_len: int,
        stop_ids: Iterable[int] = (),
        prefill_rows: int = PREFILL_ROWS,
    ) -> None:
        self.slots = SlotPool(slots)
        self.max_len, self.prefill_rows = max_len, prefill_rows
        self.stop_ids = frozenset(stop_ids)
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}  # by slot

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        """Put a request, whose prompt is shorter than ``max_len``, at the end of the line."""
        assert 0 < len(request.prompt_ids) < self.max_len
        assert request.slot is None
        assert request.finish is None
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request wherever it is; what it has said stays. Nothing happens to a finished one.

        Not for use from another thread while a step runs.
        """
        if request.slot is not None:
            self._release(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        if request.finish is None:
            request.finish = FinishReason.CANCELLED

    def next_batch(self) -> Batch:
        """All running requests by slot, and as many waiting ones as slots and rows allow.

        A batch that was never committed comes again: a step that failed can be repeated.
        """
        running = [self._running[slot] for slot in sorted(self._running)]
        decode = [request for request in running if request.output_ids]
        again = [request for request in running if not request.output_ids]
        return Batch(self._admit(again), decode)

    def _admit(self, admitted: list[Request]) -> list[Request]:
        """The requests to prefill: those admitted before, then waiting ones."""
        rows = sum(len(request.prompt_ids) for request in admitted)
        while self._waiting and len(self.slots):
            rows += len(self._waiting[0].prompt_ids)
            if admitted and rows > self.prefill_rows:
                break
            request = self._waiting.popleft()
            request.slot = self.slots.acquire()
            self._running[request.slot] = request
            admitted.append(request)
        return admitted

    def commit(
        self, batch: Batch, drafts: DraftBlock | None, plan: VerifyPlan, verdict: Verdict
    ) -> list[StepOutput]:
        """Add what the verdict allows to each text, cutting at stop tokens and length limits.

        The cut comes after the test, so it cannot bend the distribution (algorithms: lossless
        verification).

        Returns:
            What each request of the batch got: prefilled, plain, drafted ones.
        """
        outputs = []
        for request, token in zip(batch.prefill, verdict.first_id, strict=True):
            outputs.append(self._extend(request, [token], [TokenKind.PLAIN]))
        for request, token in zip(batch.plain, verdict.plain_id, strict=True):
            outputs.append(self._extend(request, [token], [TokenKind.PLAIN]))
            stopped = request.finish is FinishReason.STOP
            request.rounds.append(RoundRecord(0, 0, 0, 1, stopped))
            request.round += 1
        drafted = [] if drafts is None else drafts.draft_ids_RK.tolist()
        sure_RK = None if drafts is None else drafts.confidence_RK
        confidence = [] if sure_RK is None else sure_RK.tolist()
        for r, request in enumerate(batch.decode):
            ids = drafted[r] if drafted else []
            verified, accepted = plan.verify_len[r], verdict.accepted[r]
            drawn = TokenKind.DRAWN if verified else TokenKind.PLAIN
            kinds = [TokenKind.ACCEPTED] * accepted + [drawn]
            output = self._extend(request, [*ids[:accepted], verdict.next_id[r]], kinds)
            committed = len(output.token_ids)
            stopped = request.finish is FinishReason.STOP
            record = RoundRecord(
                len(ids),
                verified,
                min(accepted, committed),
                committed,
                stopped,
                tuple(confidence[r]) if confidence else (),
            )
            request.rounds.append(record)
            request.round += 1
            outputs.append(output)
        return outputs

    def _extend(self, request: Request, ids: list[int], kinds: list[TokenKind]) -> StepOutput:
        """Add tokens up to the first stop token, then up to the length limit."""
        finish = None
        if not request.params.ignore_stop and not self.stop_ids.isdisjoint(ids):
            first = next(i for i, token in enumerate(ids) if token in self.stop_ids)
            ids, finish = ids[: first + 1], FinishReason.STOP
        room = self.room(request)
        if len(ids) > room or (len(ids) == room and finish is None):
            ids, finish = ids[:room], FinishReason.LENGTH
        request.output_ids.extend(ids)
        request.finish = finish
        if finish is not None:
            self._release(request)
        return StepOutput(request, ids, kinds[: len(ids)], finish is not None)

    def room(self, request: Request) -> int:
        """Tokens that may still be added to a request's text."""
        limit = min(request.params.max_new_tokens, self.max_len - len(request.prompt_ids))
        return limit - len(request.output_ids)

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        assert self._running.pop(request.slot) is request
        self.slots.release(request.slot)
        request.slot = None
