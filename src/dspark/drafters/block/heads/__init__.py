"""The small heads on a drafter's backbone: sequential heads by name, and the confidence head."""

from __future__ import annotations

from dspark.drafters.block.heads.confidence import ConfidenceHead
from dspark.drafters.block.heads.gated import GatedMarkovHead
from dspark.drafters.block.heads.refined import RefinedHead
from dspark.drafters.block.heads.rnn import ResidualRNNHead, RNNHead
from dspark.drafters.block.heads.selector import SelectorHead
from dspark.drafters.block.heads.vanilla import MarkovHead
from dspark.errors import ConfigError

__all__ = [
    "MARKOV_HEADS",
    "ConfidenceHead",
    "GatedMarkovHead",
    "MarkovHead",
    "RNNHead",
    "RefinedHead",
    "ResidualRNNHead",
    "SelectorHead",
    "make_markov_head",
]

MARKOV_HEADS: dict[str, type[MarkovHead]] = {
    "vanilla": MarkovHead,
    "gated": GatedMarkovHead,
    "rnn": RNNHead,
    "residual_rnn": ResidualRNNHead,
    "refined": RefinedHead,
    "selector": SelectorHead,
}


def make_markov_head(
    kind: str, vocab_size: int, out_vocab: int, rank: int, hidden_size: int, block_size: int = 7
) -> MarkovHead:
    """A sequential head by its public name.

    Raises:
        ConfigError: for an unknown name.
    """
    if kind not in MARKOV_HEADS:
        raise ConfigError(
            "Unknown markov_head_type", found=kind, fix=f"Use one of {', '.join(MARKOV_HEADS)}"
        )
    return MARKOV_HEADS[kind](vocab_size, out_vocab, rank, hidden_size, block_size)
