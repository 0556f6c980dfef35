"""The runner: everything of a step that touches tensors (DSpark §3.2.2, ragged verification).

One target forward a step takes the prompts of newly admitted requests and, of every other
request, its anchor and the draft tokens to verify, all flattened into rows.

Suffixes: R requests, K block slots, N rows with logits, T packed rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.attention.kv_cache import Rows
from dspark.core import (
    DEFAULT_RULE,
    Batch,
    DraftBlock,
    Request,
    Result,
    Role,
    Span,
    StepLayout,
    Verdict,
    logits_of,
    requests_of,
)
from dspark.drafters.drafter import Drafter
from dspark.engine.context import DraftContext, pick
from dspark.engine.judging import OnVerdict, best, draw_each, judge_greedy, judge_sampled
from dspark.engine.logprobs import with_logprobs
from dspark.engine.masks import GrammarMasks, has_grammar, mask_target
from dspark.errors import EngineError
from dspark.maths.rng import Use, uniform
from dspark.targets.target import Target


class Runner:
    """Runs drafts and verification for the requests of a batch.

    Args:
        target, drafter: the models; without a drafter nothing is drafted and no tap is read.
        slots, max_len: sizes of the caches.
        draft_len: draft tokens a round.
        seed: stands for the seed of requests that have none of their own.
        peaks: let drafters without a confidence head give their largest probabilities instead.
        rule: by which drafts above temperature 0 are accepted, of `core.RULES`.
        on_verdict: watches verdicts; None costs nothing.

    Attributes:
        late: rows that had waited for the present step's draft.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        slots: int,
        max_len: int,
        draft_len: int = 0,
        seed: int = 0,
        peaks: bool = False,
        rule: str = DEFAULT_RULE,
        on_verdict: OnVerdict | None = None,
    ) -> None:
        self.target, self.drafter = target, drafter if draft_len else None
        self.draft_len, self.seed, self._rule = draft_len, seed, rule
        self._cache = target.new_cache(slots, max_len)
        self._tap_ids: Sequence[int] = ()
        self._d2t: Tensor | None = None
        self._context: DraftContext | None = None
        self.late = 0
        self._on_verdict = on_verdict
        if self.drafter is not None:
            self._tap_ids = self.drafter.config.target_layer_ids
            self._d2t = self.drafter.d2t
            self._context = DraftContext(self.drafter, slots, max_len)
        headless = self.drafter is not None and not self.drafter.config.gives_confidence
        asked = headless and peaks and self.drafter is not None and self.drafter.gives_peaks
        self._more: dict[str, bool] = {"peaks": True} if asked else {}

    def draft(self, batch: Batch, slots: int) -> DraftBlock | None:
        """So many draft tokens for each decode request; None when nothing is drafted."""
        requests, self.late = batch.decode, 0
        if self.drafter is None or self._context is None or not requests:
            return None
        self.late = self._context.catch_up([_slot(request) for request in requests])
        draws_RK = None
        masks = GrammarMasks(requests, self._d2t, slots) if has_grammar(requests) else None
        if not _all_greedy(requests):
            draws_RK = self._uniform(requests, Use.DRAFT, slots)
        return self.drafter.draft(
            self._context.cache,
            [request.anchor for request in requests],
            [request.anchor_pos for request in requests],
            [_slot(request) for request in requests],
            [request.params for request in requests],
            draws_RK,
            steps=slots,
            masks=masks,
            **self._more,
        )

    @torch.inference_mode()
    def verify(self, layout: StepLayout, drafts: DraftBlock | None) -> tuple[Result, ...]:
        """Run the target over prompts, anchors and drafts, and judge the drafts.

        Returns:
            One result for each span.

        Raises:
            EngineError: logits of the target have no finite largest value, or a grammar failed;
                it names the requests.
        """
        parts = [(span.slot, span.start, span.ids) for span in layout.spans]
        rows = Rows.build(parts, str(self.target.device))
        last_TD, taps_TM = self.target.forward(rows, self._cache, self._tap_ids)
        seen_TM = last_TD if taps_TM is None else taps_TM
        logits_NV = self._logits(pick(last_TD, layout.logit_rows))
        try:
            results = self._results(layout, drafts, logits_NV)
        except EngineError as error:
            error.requests = error.requests or _culprits(layout, logits_NV)
            raise
        if self._context is not None:
            self._context.take(seen_TM, rows, layout, results)
        return results

    def _logits(self, last_ND: Tensor) -> Tensor:
        """The target's logits; a step that only runs parts of prompts needs none."""
        if not len(last_ND):
            return last_ND.new_empty(0, self.target.spec.vocab_size)
        return self.target.logits(last_ND)

    @property
    def position_bytes(self) -> int:
        """Cache memory of one position of one request, both models together."""
        own = 0 if self.drafter is None else self.drafter.position_bytes
        return self.target.position_bytes + own

    def catch_up(self) -> None:
        """Let the drafter's context take in the rows that wait."""
        if self._context is not None:
            self._context.catch_up()

    def leave(self, slot: int) -> None:
        """A request leaves its slot: no rows wait for its drafts any more."""
        if self._context is not None:
            self._context.drop(slot)

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's rows back to the system, where the caches can."""
        self.target.forget(self._cache, slot)
        if self._context is not None:
            self._context.forget(slot)

    def _results(
        self, layout: StepLayout, drafts: DraftBlock | None, logits_NV: Tensor
    ) -> tuple[Result, ...]:
        own_NV = logits_NV
        if has_grammar([span.request for span in layout.spans if span.logits]):
            logits_NV = mask_target(logits_NV, layout)
        drafted = layout.of(Role.DRAFTED)
        verdict = self._judge(drafted, logits_NV, drafts)
        first_ids = self._choose(layout.of(Role.FIRST), logits_NV, Use.TARGET)
        plain_ids = self._choose(layout.of(Role.PLAIN), logits_NV, Use.RESIDUAL)
        accepted = [0] * len(first_ids + plain_ids) + verdict.accepted
        given = map(Result, accepted, first_ids + plain_ids + verdict.next_id)
        results = [next(given) if span.logits else Result() for span in layout.spans]
        return tuple(map(with_logprobs, layout.spans, results, repeat(own_NV)))

    def _judge(
        self, spans: Sequence[Span], logits_NV: Tensor, drafts: DraftBlock | None
    ) -> Verdict:
        """Accepted drafts and the token after them."""
        requests = requests_of(spans)
        unwatched = self._on_verdict is None
        if drafts is None or (unwatched and not any(span.verified for span in spans)):
            return Verdict([0] * len(spans), self._choose(spans, logits_NV, Use.RESIDUAL))
        if _all_greedy(requests):
            return judge_greedy(spans, logits_NV, drafts)
        return judge_sampled(
            spans,
            logits_NV,
            drafts,
            self._uniform(requests, Use.ACCEPT, drafts.draft_ids_RK.shape[1]),
            self._uniform(requests, Use.RESIDUAL)[:, 0],
            self._d2t,
            self._on_verdict,
            self._rule,
        )

    def _choose(self, spans: Sequence[Span], logits_NV: Tensor, use: Use) -> list[int]:
        """One token straight from the target for each span."""
        if not spans:
            return []
        requests, logits_RV = requests_of(spans), logits_NV[logits_of(spans)]
        if _all_greedy(requests):
            return best(logits_RV).tolist()
        params = [request.params for request in requests]
        return draw_each(logits_RV, params, self._uniform(requests, use)[:, 0])

    def _uniform(
        self, requests: Sequence[Request], use: Use, slots: int = 1
    ) -> NDArray[np.float64]:
        """Random numbers [R, slots] of each request's present round.

        A request with a seed of its own counts as request 0, so that its text is the same
        whatever its id; the engine's ids start at 1.
        """
        keys = np.array(
            [
                (request.params.seed, 0, request.sample, request.round)
                if request.params.seed is not None
                else (self.seed, request.id, request.sample, request.round)
                for request in requests
            ],
            dtype=np.uint64,
        )
        seed_R1, id_R1, sample_R1, round_R1 = (keys[:, i, None] for i in range(4))
        slot_K = np.arange(slots)
        return uniform(
            seed=seed_R1, request=id_R1, sample=sample_R1, round=round_R1, slot=slot_K, use=use
        )


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot


def _all_greedy(requests: Sequence[Request]) -> bool:
    return all(request.params.temperature == 0 for request in requests)


def _culprits(layout: StepLayout, logits_NV: Tensor) -> tuple[int, ...]:
    """Ids of the requests whose logits have no finite largest value."""
    fine_N = logits_NV.float().amax(-1).isfinite().tolist()
    return tuple(
        span.request.id for span in layout.spans if not all(fine_N[row] for row in span.logits)
    )
