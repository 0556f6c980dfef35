"""The exact distribution of a small language model's texts, and counts compared with it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from dspark.core import SamplingParams
from scripted import TableTarget

LENGTH, SLOTS, BLOCK = 4, 512, 4
PROMPT = [3, 1]
STOP = 5
SMALL = (0, 1, 3, 5, 6)

PLAIN = SamplingParams(temperature=1.0, max_new_tokens=LENGTH)
CUT = SamplingParams(temperature=1.0, top_k=6, top_p=0.9, max_new_tokens=LENGTH)

Text = tuple[int, ...]


def next_token(target: TableTarget, text: list[int], params: SamplingParams) -> np.ndarray:
    """The target's distribution after `text`, computed the plain way in float64."""
    state = target.states_CD[target.context(text)]
    logits = target.logits(state[None])[0].double().numpy() / params.temperature
    if params.grammar is not None:
        allowed = params.grammar.start().allowed(text[len(PROMPT) :])
        assert allowed is not None
        logits = np.where(allowed, logits, -np.inf)
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if params.top_k:
        probs[order[params.top_k :]] = 0
        probs /= probs.sum()
    if params.top_p < 1:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= params.top_p]] = 0
        probs /= probs.sum()
    return probs


def enumerate_texts(target: TableTarget, params: SamplingParams) -> dict[Text, float]:
    """Every text of LENGTH tokens (fewer after a stop token) with its probability."""
    texts: dict[Text, float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[Text, float] = {}
        for text, mass in texts.items():
            if text[-1:] == (STOP,):
                longer[text] = mass
                continue
            probs = next_token(target, [*PROMPT, *text], params)
            longer |= {(*text, v): mass * p for v, p in enumerate(probs.tolist()) if p > 0}
        texts = longer
    return texts


def p_value(observed: Counter[Text], expected: dict[Text, float], total: int) -> float:
    """Chi-square test after merging the rarest cells until each expects at least 5."""
    if observed.keys() - expected.keys():
        return 0.0  # a text that the target never says
    cells: list[list[float]] = []
    for text in sorted(expected, key=expected.__getitem__):
        if not cells or cells[-1][0] >= 5:
            cells.append([0.0, 0.0])
        cells[-1][0] += expected[text] * total
        cells[-1][1] += observed[text]
    if cells[-1][0] < 5:
        tail = cells.pop()
        cells[-1] = [a + b for a, b in zip(cells[-1], tail, strict=True)]
    chi = sum((o - e) ** 2 / e for e, o in cells)
    half = torch.tensor([(len(cells) - 1) / 2, chi / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def part(texts: dict[Text, float] | Counter[Text], where: slice) -> Counter[Text]:
    """Texts cut to some of their positions, with their masses or counts added."""
    parts: Counter[Text] = Counter()
    for text, mass in texts.items():
        parts[text[where]] += mass  # type: ignore[assignment]
    return parts


def p_values(texts: Counter[Text], params: SamplingParams) -> list[float]:
    exact = enumerate_texts(TableTarget(stop_ids=[STOP]), params)
    assert sum(exact.values()) == pytest.approx(1)
    return [
        p_value(part(texts, where), part(exact, where), texts.total())
        for where in (slice(0, 3), slice(1, 4))
    ]
