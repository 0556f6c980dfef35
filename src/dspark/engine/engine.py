"""The engine: draft, schedule, verify, commit (DSpark §3.2.2).

decision = scheduler.decide(queue.next_batch())
drafts = runner.draft(decision.batch, decision.slots)
layout = StepLayout.build(decision.batch, drafts, scheduler.plan(decision, drafts))
results = runner.verify(layout, drafts)
queue.commit(layout, results)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from time import perf_counter

from dspark.core import (
    DEFAULT_RULE,
    DraftBlock,
    Request,
    Role,
    SamplingParams,
    StepLayout,
    StepOutput,
    StepRecord,
    StepStats,
    check_rule,
)
from dspark.drafters.drafter import Drafter
from dspark.engine.judging import OnVerdict
from dspark.engine.policies import Policy, PolicyTables
from dspark.engine.policy_names import ADAPTIVE, parse_policy
from dspark.engine.queue import PREFILL_ROWS, RequestQueue
from dspark.engine.runner import Runner
from dspark.engine.scheduler import Scheduler
from dspark.engine.tables import find_or_measure, load_tables
from dspark.errors import ConfigError, RequestError
from dspark.targets.target import Target

OnStep = Callable[[list[StepOutput]], None]


class Engine:
    """Answers many requests at a time with one target, with or without a drafter.

    Args:
        target: the model whose text it is.
        drafter: proposes tokens, bound to the target; None decodes plainly.
        policy: verify lengths, by name or as an object (see `scheduler`); by default "auto", which
            measures this machine if nobody did.
        slots: requests that run at the same time.
        max_len: longest text, prompt included, in tokens; at most what the target was made for.
        seed: of the random numbers of requests that have no seed of their own.
        tables: what the policies "auto", "causal" and "pipelined" know of machine and drafter; by
            default those on disk.
        cache_gib: memory for keys and values of all running requests; None is room for every
            slot. With less, requests wait, or give their place up for a while, when texts grow
            past it. On a CPU memory is taken as it is needed, elsewhere at once.
        prefill_rows: prompt tokens run in one step, beside the rounds of others.
        verification: the rule by which drafts above temperature 0 are accepted, "token" or
            "block"; the texts' distribution is the target's under either.
        on_verdict: is shown all drafts that are verified above temperature 0, some requests at a
            time, with the target's probabilities and the verdict.

    Attributes:
        stats: totals over all steps so far; a caller may put a fresh `StepStats` here.

    Raises:
        ConfigError: for an unknown policy or verification, one the drafter cannot serve, or sizes
            too small; or nobody measured this machine for one that needs it.
        DataError, IncompatibleDrafterError: a table on disk is damaged or of something else, and
            the policy cannot do without.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        policy: str | Policy | None = None,
        slots: int = 8,
        max_len: int = 2048,
        seed: int = 0,
        tables: PolicyTables | None = None,
        cache_gib: float | None = None,
        prefill_rows: int = PREFILL_ROWS,
        verification: str = DEFAULT_RULE,
        on_verdict: OnVerdict | None = None,
    ) -> None:
        if slots < 1 or max_len < 2 or prefill_rows < 1:
            raise ConfigError(
                "The engine is too small",
                found=f"slots {slots}, max_len {max_len}, prefill_rows {prefill_rows}",
                fix="Use 1 slot, 2 tokens and 1 prompt row a step, or more",
            )
        self.target, self.drafter = target, drafter
        self.verification, self._on_verdict = check_rule(verification), on_verdict
        max_len = min(max_len, target.max_positions)
        self.policy, self.runner = self._prepared(policy or "auto", slots, max_len, seed, tables)
        cache_len = self._cache_len(cache_gib, slots * max_len)
        self.max_len = min(max_len, cache_len)
        self.queue = RequestQueue(
            slots,
            self.max_len,
            target.stop_ids,
            prefill_rows,
            cache_len,
            self.policy.draft_len,
            on_release=self.runner.forget if cache_len < slots * max_len else self.runner.leave,
        )
        self.scheduler = Scheduler(self.policy, self.max_len)
        self.stats = StepStats()
        self._ids = count(1)

    def _prepared(
        self, policy: str | Policy, slots: int, max_len: int, seed: int, tables: PolicyTables | None
    ) -> tuple[Policy, Runner]:
        """The policy, with what it needs to know, and the runner."""
        target, drafter = self.target, self.drafter
        block_size = 0 if drafter is None else drafter.config.block_size
        build = lambda length, peaks=False: Runner(  # noqa: E731
            target,
            drafter,
            slots,
            max_len,
            length,
            seed,
            peaks,
            self.verification,
            self._on_verdict,
        )
        if policy == "auto" and drafter is not None and tables is None:
            runner = build(block_size, True)
            tables = find_or_measure(runner, slots, max_len, self.verification)
            if tables is not None:
                return parse_policy("auto", block_size, tables), runner
            policy = "off"
        if isinstance(policy, str):
            if policy in ADAPTIVE and drafter is not None and tables is None:
                tables = load_tables(policy, target, drafter, self.verification)
            policy = parse_policy(policy, block_size, tables)
        if policy.needs_confidence and not (drafter and drafter.config.gives_confidence):
            raise ConfigError(
                f"Policy {policy.name} needs confidences, and the drafter gives none",
                fix="Use auto or fixed:K, or a drafter with a confidence head",
            )
        return policy, build(policy.draft_len, policy.reads_peaks)

    def _cache_len(self, cache_gib: float | None, most: int) -> int:
        """Cache positions that a budget is good for."""
        if cache_gib is None:
            return most
        cost = self.runner.position_bytes
        fits = int(max(cache_gib, 0) * 2**30 / cost)
        if fits < 64:
            raise ConfigError(
                "The cache is too small",
                found=f"{cache_gib} GiB for {fits} positions of {cost:,} bytes",
                fix=f"Use {64 * cost / 2**30:.3f} GiB or more",
            )
        return min(fits, most)

    # ---- requests -------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        sample: int = 0,
    ) -> Request:
        """Put a prompt in line; `step` makes it move.

        Args:
            prompt_ids: token ids of the prompt.
            params: how to draw; the answer ends with "length" where the room ends.
            sample: index of this answer among several to the same prompt.

        Raises:
            RequestError: the prompt is empty, leaves no room to answer, or has an id that is
                not in the vocabulary.
        """
        request = self.request(prompt_ids, params, sample)
        self.submit_request(request)
        return request

    def submit_request(self, request: Request) -> None:
        """Put in line what `request` made."""
        self.queue.submit(request)

    def cancel(self, request: Request) -> None:
        """End a request; what it has said stays in `output_ids`."""
        self.queue.cancel(request)

    def request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        sample: int = 0,
    ) -> Request:
        """A request that this engine can serve, not yet in line; may be called from any thread.

        Raises:
            RequestError: as for `submit`.
        """
        ids = list(prompt_ids)
        if not ids:
            raise RequestError("The prompt is empty", fix="Give at least one token")
        if len(ids) >= self.max_len:
            raise RequestError(
                "The prompt leaves no room to answer",
                found=f"{len(ids)} tokens, room for {self.max_len}",
                fix="Shorten the prompt, or raise max_len or the cache if the target allows more",
            )
        vocabulary = self.target.spec.vocab_size
        if min(ids) < 0 or max(ids) >= vocabulary:
            wrong = next(i for i in ids if not 0 <= i < vocabulary)
            raise RequestError(
                "The prompt has a token id outside the target's vocabulary",
                found=wrong,
                fix=f"Use ids from 0 to {vocabulary - 1}",
            )
        params = params or SamplingParams()
        grammar = params.grammar.start() if params.grammar else None
        return Request(next(self._ids), ids, params, sample, grammar=grammar)

    # ---- work -----------------------------------------------------------------------------

    def step(self) -> list[StepOutput]:
        """One round for every running request, and the next part of prompts.

        Returns:
            What each request got; nothing when there is no work, or only parts of prompts.

        Raises:
            EngineError: the models gave numbers that nothing can be drawn from, or a grammar
                failed. No text has changed; `cancel` the requests it names, or all if it names
                none, and go on.
        """
        start = perf_counter()
        batch = self.queue.next_batch()
        if not batch:
            return []
        before_choice = perf_counter()
        decision = self.scheduler.decide(batch)
        before_draft = perf_counter()
        drafts = self.runner.draft(decision.batch, decision.slots)
        after_draft = perf_counter()
        lengths = self.scheduler.plan(decision, drafts)
        before_verify = perf_counter()
        layout = StepLayout.build(decision.batch, drafts, lengths)
        results = self.runner.verify(layout, drafts)
        after_verify = perf_counter()
        outputs = self.queue.commit(layout, results)

        stats = self.stats
        stats.draft_s += after_draft - before_draft
        stats.verify_s += after_verify - before_verify
        stats.schedule_s += before_draft - before_choice + before_verify - after_draft
        end = perf_counter()
        stats.other_s += before_choice - start + end - after_verify
        stats.steps += 1
        stats.batch_tokens += layout.rows
        stats.committed += sum(len(output.token_ids) for output in outputs)
        self.policy.observe(_record(layout, drafts, self.runner.late, end - start, outputs))
        return outputs

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        on_step: OnStep | None = None,
    ) -> list[Request]:
        """Answer prompts, as many at a time as there are slots.

        Args:
            prompts: token ids of each prompt.
            params: how to draw, the same for all.
            on_step: is shown every step's outputs.

        Returns:
            The finished requests in the order of the prompts.

        Raises:
            RequestError: a prompt cannot be served; none is answered then.
        """
        requests = [self.request(prompt, params) for prompt in prompts]
        try:
            for request in requests:
                self.queue.submit(request)
            for request in requests:
                while request.finish is None:
                    outputs = self.step()
                    if on_step is not None:
                        on_step(outputs)
        finally:  # Ctrl-C or an error must not leave slots taken
            self._end(requests)
        return requests

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None
    ) -> Iterator[StepOutput]:
        """Answer one prompt step by step; leaving the loop early cancels the request.

        Other requests in the engine move along.

        Raises:
            RequestError: the prompt cannot be served (at the call, not in the loop).
        """
        return self._stream(self.request(prompt_ids, params))

    def _stream(self, request: Request) -> Iterator[StepOutput]:
        try:
            self.queue.submit(request)
            while request.finish is None:
                yield from (output for output in self.step() if output.request is request)
        finally:
            self._end([request])

    def _end(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.finish is None or request.slot is not None:
                self.queue.cancel(request)


def _record(
    layout: StepLayout,
    drafts: DraftBlock | None,
    late: int,
    seconds: float,
    outputs: list[StepOutput],
) -> StepRecord:
    drafted, decoding = layout.of(Role.DRAFTED), layout.of(Role.PLAIN, Role.DRAFTED)
    rows = sum(len(span.rows) for span in decoding)
    return StepRecord(
        decoding=len(decoding),
        drafted=len(drafted),
        slots=0 if drafts is None else drafts.draft_ids_RK.shape[1],
        rows=rows,
        prompts=layout.rows - rows,
        late=late if drafted else 0,
        seconds=seconds,
        outputs=outputs,
        peaks=drafts is not None and drafts.peaks,
    )
