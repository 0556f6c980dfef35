"""Plain records that pass between the parts of the engine.

Nothing here imports torch: the scheduler, the queue and their tests run without it.
"""

from dspark.core.layout import Role, Span, StepLayout, logits_of, requests_of
from dspark.core.outputs import StepOutput, StepRecord, StepStats, TokenKind
from dspark.core.requests import (
    MAX_LOGPROBS,
    FinishReason,
    Grammar,
    GrammarState,
    Request,
    RoundRecord,
    SamplingParams,
)
from dspark.core.rounds import (
    Batch,
    Chunk,
    DraftBlock,
    DraftDecision,
    Result,
    TokenLogprobs,
    Verdict,
)
from dspark.core.verification import BLOCK, DEFAULT_RULE, RULES, TOKEN, check_rule

__all__ = [
    "BLOCK",
    "DEFAULT_RULE",
    "MAX_LOGPROBS",
    "RULES",
    "TOKEN",
    "Batch",
    "Chunk",
    "DraftBlock",
    "DraftDecision",
    "FinishReason",
    "Grammar",
    "GrammarState",
    "Request",
    "Result",
    "Role",
    "RoundRecord",
    "SamplingParams",
    "Span",
    "StepLayout",
    "StepOutput",
    "StepRecord",
    "StepStats",
    "TokenKind",
    "TokenLogprobs",
    "Verdict",
    "check_rule",
    "logits_of",
    "requests_of",
]
