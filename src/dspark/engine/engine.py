"""The engine: draft, schedule, verify, commit (DSpark §3.2.2).

batch = scheduler.choose(queue.next_batch())
drafts = runner.draft(batch)
plan = scheduler.plan(batch, drafts)
verdict = runner.verify(batch, drafts, plan)
queue.commit(batch, drafts, plan, verdict)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from time import perf_counter

from dspark.core import Request, SamplingParams, StepOutput, StepStats
from dspark.engine.adaptive import PolicyTables
from dspark.engine.policies import Policy
from dspark.engine.queue import RequestQueue
from dspark.engine.runner import Runner
from dspark.engine.scheduler import Scheduler, parse_policy
from dspark.errors import ConfigError, RequestError
from dspark.models.drafter import Drafter
from dspark.models.target import Target

OnStep = Callable[[list[StepOutput]], None]


class Engine:
    """Answers many requests at a time with one target, with or without a drafter.

    Args:
        target: the model whose text it is.
        drafter: proposes tokens, bound to the target; None decodes plainly.
        policy: verify lengths, by name or as an object (see `scheduler`); by default the whole
            block of a drafter, and "off" without one.
        slots: requests that run at the same time.
        max_len: longest text, prompt included, in tokens; at most what the target was made for.
        seed: of the random numbers of requests that have no seed of their own.
        tables: what the policies "causal" and "pipelined" know of machine and drafter.

    Attributes:
        stats: totals over all steps so far; a caller may put a fresh `StepStats` here.

    Raises:
        ConfigError: for an unknown policy, one the drafter cannot serve, or sizes below 1.
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
    ) -> None:
        if slots < 1 or max_len < 2:
            raise ConfigError(
                "The engine is too small",
                found=f"slots {slots}, max_len {max_len}",
                fix="Use 1 slot and 2 tokens or more",
            )
        self.target, self.drafter = target, drafter
        self.max_len = min(max_len, target.max_positions)
        block_size = 0 if drafter is None else drafter.config.block_size
        if policy is None:
            policy = f"fixed:{block_size}" if block_size else "off"
        if isinstance(policy, str):
            policy = parse_policy(policy, block_size, tables)
        if policy.needs_confidence and not (drafter and drafter.config.confidence_head):
            raise ConfigError(
                f"Policy {policy.name} needs confidences, and the drafter gives none",
                fix="Use fixed:K, or a drafter with a confidence head",
            )
        self.policy = policy
        self.queue = RequestQueue(slots, self.max_len, target.stop_ids)
        self.scheduler = Scheduler(policy, self.max_len)
        self.runner = Runner(target, drafter, slots, self.max_len, policy.draft_len, seed)
        self.stats = StepStats()
        self._ids = count(1)

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
        request = self._request(prompt_ids, params, sample)
        self.queue.submit(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request; what it has said stays in `output_ids`."""
        self.queue.cancel(request)

    def _request(
        self, prompt_ids: Sequence[int], params: SamplingParams | None, sample: int = 0
    ) -> Request:
        ids = list(prompt_ids)
        if not ids:
            raise RequestError("The prompt is empty", fix="Give at least one token")
        if len(ids) >= self.max_len:
            raise RequestError(
                "The prompt leaves no room to answer",
                found=f"{len(ids)} tokens, context {self.max_len}",
                fix="Shorten the prompt, or raise max_len if the target allows more",
            )
        vocabulary = self.target.spec.vocab_size
        if min(ids) < 0 or max(ids) >= vocabulary:
            wrong = next(i for i in ids if not 0 <= i < vocabulary)
            raise RequestError(
                "The prompt has a token id outside the target's vocabulary",
                found=wrong,
                fix=f"Use ids from 0 to {vocabulary - 1}",
            )
        return Request(next(self._ids), ids, params or SamplingParams(), sample)

    # ---- work -----------------------------------------------------------------------------

    def step(self) -> list[StepOutput]:
        """One round for every running request; nothing when there is no work.

        Returns:
            What each request got.

        Raises:
            EngineError: the models gave numbers that nothing can be drawn from. No text has
                changed; `cancel` the requests.
        """
        start = perf_counter()
        batch = self.scheduler.choose(self.queue.next_batch())
        if not batch:
            return []
        before_draft = perf_counter()
        drafts = self.runner.draft(batch)
        after_draft = perf_counter()
        plan = self.scheduler.plan(batch, drafts)
        before_verify = perf_counter()
        verdict = self.runner.verify(batch, drafts, plan)
        after_verify = perf_counter()
        outputs = self.queue.commit(batch, drafts, plan, verdict)

        stats = self.stats
        draft_s, verify_s = after_draft - before_draft, after_verify - before_verify
        stats.draft_s += draft_s
        stats.verify_s += verify_s
        stats.other_s += perf_counter() - start - draft_s - verify_s
        stats.steps += 1
        stats.batch_tokens += batch.other_rows + plan.batch_tokens
        stats.committed += sum(len(output.token_ids) for output in outputs)
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
        requests = [self._request(prompt, params) for prompt in prompts]
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
        return self._stream(self._request(prompt_ids, params))

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
