"""The small heads on a drafter's backbone: sequential (Markov) heads and the confidence head.

DSpark §3.1 (transition bias) and §3.2.1 (confidence). Every sequential head reduces to features
of r numbers a slot; the transition bias over the draft vocabulary is ``W_2 · features``.

Suffixes: N any leading shape, K block slots, D hidden, r Markov rank, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dspark.errors import ConfigError


class MarkovHead(nn.Module):
    """First-order head: B_k = W_1[x_{k-1}] W_2 (DSpark §3.1, the default).

    Args:
        vocab_size: rows of W_1 (target vocabulary).
        out_vocab: rows of W_2 (draft vocabulary).
        rank: r.
        hidden_size: D, used by the subclasses.
    """

    def __init__(self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int) -> None:
        super().__init__()
        self.rank = rank
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, out_vocab, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=0.02)
        nn.init.normal_(self.markov_w2.weight, std=0.02)

    def previous(self, ids: Tensor) -> Tensor:
        """W_1 rows [N, r] of the tokens before each slot."""
        return self.markov_w1(ids)

    def start(self, rows: int, like: Tensor) -> Tensor | None:
        """State before the first slot: none for a head without memory."""
        return None

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Features [N, r] of one slot and the state after it."""
        return previous_Nr, state

    def features(self, previous_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        """Features of whole blocks [A, K, r] when the previous tokens are known (training)."""
        return self.step(previous_AKr, hidden_AKD, None)[0]

    def bias(self, features: Tensor) -> Tensor:
        """Transition bias [N, V] of features [N, r]."""
        return self.markov_w2(features)


class GatedMarkovHead(MarkovHead):
    """Markov features scaled by σ(W [h_k ; W_1[x_{k-1}]] + b), elementwise (DSpark §3.1)."""

    def __init__(self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        gate = self.gate_proj(torch.cat([hidden_ND, previous_Nr], -1))
        return torch.sigmoid(gate) * previous_Nr, state


class RNNHead(MarkovHead):
    """Recurrent head with a state of r numbers carried along the block (DSpark eq. 6)."""

    def __init__(self, vocab_size: int, out_vocab: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, out_vocab, rank, hidden_size)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def start(self, rows: int, like: Tensor) -> Tensor | None:
        return like.new_zeros(rows, self.rank)

    def step(
        self, previous_Nr: Tensor, hidden_ND: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert state is not None
        joint = self.joint_proj(torch.cat([state, previous_Nr, hidden_ND], -1))
        gate, candidate, output = joint.chunk(3, -1)
        keep = torch.sigmoid(gate)
        state = keep * state + (1 - keep) * torch.tanh(candidate)
        return torch.tanh(output), state

    def features(self, previous_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        state, outs = self.start(len(previous_AKr), previous_AKr), []
        for k in range(previous_AKr.shape[1]):
            out, state = self.step(previous_AKr[:, k], hidden_AKD[:, k], state)
            outs.append(out)
        return torch.stack(outs, 1)


class ConfidenceHead(nn.Module):
    """Logit of c_k from [h_k ; W_1[x_{k-1}]]: it never sees x_k itself (DSpark §3.2.1).

    Args:
        size: input features, D + r with the Markov embedding and D without.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, hidden: Tensor, previous: Tensor | None) -> Tensor:
        """Confidence logits [N] of hidden [N, D] and, if used, W_1 rows [N, r]."""
        x = hidden if previous is None else torch.cat([hidden, previous], -1)
        return self.proj(x).squeeze(-1)


MARKOV_HEADS = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RNNHead}


def make_markov_head(
    kind: str, vocab_size: int, out_vocab: int, rank: int, hidden_size: int
) -> MarkovHead:
    """A sequential head by its public name.

    Raises:
        ConfigError: for an unknown name.
    """
    if kind not in MARKOV_HEADS:
        raise ConfigError(
            "Unknown markov_head_type", found=kind, fix=f"Use one of {', '.join(MARKOV_HEADS)}"
        )
    return MARKOV_HEADS[kind](vocab_size, out_vocab, rank, hidden_size)
