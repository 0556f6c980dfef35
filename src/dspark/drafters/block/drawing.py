"""A block drawn from its hidden states, left to right.

Suffixes: R requests, K block slots, D hidden, r Markov rank, V draft vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dspark.core import SamplingParams
from dspark.drafters.block.heads import MarkovHead
from dspark.drafters.block.transitions import Transitions
from dspark.drafters.drafter import DraftMasks
from dspark.maths.candidates import best, spread
from dspark.maths.sampling import choose, largest, largest_share, slot_peaks


@dataclass(frozen=True, slots=True)
class Ways:
    """How the tokens of a block are chosen.

    Attributes:
        params_R, draws_RK, masks: see `drafters.drafter.Drafter.draft`.
        peaks: largest probabilities are asked for.
    """

    params_R: Sequence[SamplingParams]
    draws_RK: np.ndarray
    masks: DraftMasks | None
    peaks: bool


@dataclass(frozen=True, slots=True)
class Speaker:
    """What turns hidden states into tokens.

    Attributes:
        head: the sequential head, if there is one.
        candidates: C, that the head scores alone; 0 for all tokens.
        transitions: kept biases of a first-order head, where keeping them pays.
        to_target_ids: target ids of draft ids.
    """

    head: MarkovHead | None
    candidates: int
    transitions: Transitions | None
    to_target_ids: Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Drawn:
    """A block as it is drawn, slot by slot.

    Attributes:
        hidden_RKD, base_RKV: states, and logits without the head's bias.
        ids: anchors [R], then draft tokens [R] as target ids.
        choices: draft tokens as ids of the draft vocabulary.
        probs: what they were drawn from, [R, V]; none where every request is greedy.
        peaks: largest probabilities [R], where they are asked for.
    """

    hidden_RKD: Tensor
    base_RKV: Tensor
    ids: list[Tensor]
    choices: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)

    @property
    def ids_RK(self) -> Tensor:
        """Anchors and draft tokens as target ids, [R, K + 1]."""
        return torch.stack(self.ids, 1)

    @property
    def probs_RKV(self) -> Tensor | None:
        return torch.stack(self.probs, 1) if self.probs else None

    @property
    def peaks_RK(self) -> Tensor:
        """The largest probability of each slot; of blocks drawn at once, their logits'."""
        return torch.stack(self.peaks, 1) if self.peaks else largest_share(self.base_RKV)


def draw_block(
    hidden_RKD: Tensor, base_RKV: Tensor, anchors_R: Tensor, ways: Ways, speaker: Speaker
) -> Drawn:
    """Left to right through the block: each token's logits carry the bias of the one before."""
    greedy = ways.masks is None and all(params.temperature == 0 for params in ways.params_R)
    # A head's biases do not come out of a block that is drawn at once, and peaks need them.
    if greedy and not (ways.peaks and speaker.head is not None):
        ids_RK = _at_once(base_RKV, anchors_R, speaker)
        if ids_RK is not None:
            return Drawn(hidden_RKD, base_RKV, list(ids_RK.unbind(1)))
    return _slot_by_slot(Drawn(hidden_RKD, base_RKV, [anchors_R]), ways, speaker)


def _at_once(base_RKV: Tensor, anchors_R: Tensor, speaker: Speaker) -> Tensor | None:
    """Anchors and greedy draft tokens [R, K + 1] without a loop over slots, where that goes."""
    if speaker.head is None:  # no slot knows of the others
        best_RK = largest(base_RKV.flatten(0, 1)).view(base_RKV.shape[:2])
        return torch.cat([anchors_R[:, None], speaker.to_target_ids(best_RK)], 1)
    transitions = speaker.transitions
    if transitions is not None and transitions.can_follow(base_RKV):
        return transitions.follow(base_RKV, anchors_R)
    return None


def _slot_by_slot(drawn: Drawn, ways: Ways, speaker: Speaker) -> Drawn:
    """Anchors and draft tokens, the latter with what they were drawn from."""
    hidden_RKD, base_RKV = drawn.hidden_RKD, drawn.base_RKV
    head, transitions, masks = speaker.head, speaker.transitions, ways.masks
    state = None
    if head is not None:
        state = head.start(len(hidden_RKD), hidden_RKD[:, 0, : head.rank])
    for k in range(hidden_RKD.shape[1]):
        logits, bias, count = base_RKV[:, k], None, speaker.candidates
        if head is not None and transitions is not None:
            bias = transitions.after(drawn.ids[-1])
        elif head is not None:
            features, state = head.step(head.previous(drawn.ids[-1]), hidden_RKD[:, k], state)
            bias = None if count else head.bias(features)
        if masks is not None:
            logits = logits.float() if bias is None else logits.float() + bias
            logits, bias = masks.apply(logits, drawn.ids[1:]), None
        if head is not None and count:  # the best of what may stand
            values_RC, ids_RC = best(logits.float(), count)
            scores_RC = values_RC + head.bias_of(features, ids_RC).float()
            logits = spread(scores_RC, ids_RC, logits.shape[-1])
        chosen, probs_RV = choose(logits, ways.params_R, ways.draws_RK, k, bias)
        if probs_RV is not None:
            drawn.probs.append(probs_RV)
        if ways.peaks:
            drawn.peaks.append(slot_peaks(ways.params_R, logits, probs_RV, bias))
        drawn.choices.append(chosen)
        drawn.ids.append(speaker.to_target_ids(chosen))
    return drawn
