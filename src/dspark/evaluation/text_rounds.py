"""Rounds of held-out completions, counted exactly from p and q along their text (`maths.rounds`).

Nothing is decoded: one forward of the target and one pass of each drafter a completion. Every
drafter is counted on the same texts, so that drafters that differ by a per cent can be told apart.

Suffixes: T positions of a completion but the last, A anchors (the same), K block slots, V
vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark import __version__
from dspark.artifacts import append_jsonl, read_jsonl
from dspark.core import DEFAULT_RULE
from dspark.data.responses import Response
from dspark.data.states import SequenceStates
from dspark.drafters.block.drafter import BlockDrafter
from dspark.drafters.chain.drafter import ChainDrafter
from dspark.drafters.drafter import Drafter
from dspark.errors import IncompatibleDrafterError
from dspark.maths.rounds import expected_rounds, standing, standing_greedily
from dspark.targets.target import Target
from dspark.training.packing import pack
from dspark.training.sequences import AnchorDraw, TrainingSequence

# Logits held at a time: few enough to stay near a processor's cache.
_CHUNK = {"cpu": 2**22, "cuda": 2**26}
# A completion of the target's own stays within a few standard deviations of what the target expects
# of itself, and its greedy tokens are the target's best but for rounding.
LEAST_DEVIATE, LEAST_BEST = -6.0, 0.9

Floats = NDArray[np.float64]
OnDone = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is counted.

    Attributes:
        temperatures: of the decoding that is counted, each on all completions.
        verification: the rule by which drafts above temperature 0 are accepted.
    """

    temperatures: tuple[float, ...] = (0.0, 1.0)
    verification: str = DEFAULT_RULE


@dataclass(frozen=True, slots=True)
class Judged:
    """A drafter ready to be judged.

    Attributes:
        sha256: of its weights.
    """

    drafter: Drafter
    sha256: str


@dataclass(slots=True)
class _Said:
    """What the target makes of a completion's tokens behind the first.

    Attributes:
        logp: by temperature above 0, log p of each token, [T].
        best_share: share of tokens that are the target's best.
        deviate: how far the text's probability lies from what the target expects of texts that it
            draws at the completion's own temperature, in standard deviations; NaN at 0.
    """

    logp: dict[float, Floats]
    best_share: float
    deviate: float


def check_kinds(drafters: Mapping[str, Drafter]) -> None:
    """Refuse drafters that cannot be judged along a text.

    Raises:
        IncompatibleDrafterError: naming the first.
    """
    for name, drafter in drafters.items():
        if not isinstance(drafter, BlockDrafter | ChainDrafter):
            raise IncompatibleDrafterError(
                f"Drafter {name} cannot be judged along a text",
                found=f"kind {drafter.config.kind}",
                fix="Judge it by decoding, with `dspark eval`",
            )


def run(
    target: Target,
    drafters: Mapping[str, Judged],
    completions: Sequence[Response],
    settings: Settings,
    *,
    rows_path: Path | None = None,
    on_done: OnDone = lambda done, of: None,
) -> list[dict[str, Any]]:
    """Count each completion's rounds with each drafter.

    Args:
        drafters: by name; of the target's number type, not packed.
        completions: of two tokens or more.
        rows_path: JSON-lines file that finished completions are added to, and taken from when
            they were counted with the same models and settings; None keeps nothing.
        on_done: called as each completion is done.

    Returns:
        For each completion `key`, `domain`, `temperature` (its own), `tokens` that rounds make,
        `best_share`, `deviate` (None at temperature 0) and `rounds` by drafter and temperature.

    Raises:
        IncompatibleDrafterError: a drafter cannot be judged along a text.
        DataError: the file cannot be read or written.
    """
    check_kinds({name: judged.drafter for name, judged in drafters.items()})
    mark = _fingerprint(target, drafters, settings)
    known = {} if rows_path is None else _known(rows_path, mark)
    found = []
    for number, completion in enumerate(completions, 1):
        name = f"{completion.key} {len(completion)}"
        if name not in known:
            known[name] = row = _row(target, drafters, completion, settings)
            if rows_path is not None:
                append_jsonl(rows_path, [{"mark": mark, "name": name, "row": row}])
        found.append(known[name])
        on_done(number, len(completions))
    return found


def looks_foreign(row: Mapping[str, Any]) -> bool:
    """Whether a completion of this row is hardly an answer of the target."""
    if row["deviate"] is None:
        return bool(row["best_share"] < LEAST_BEST)
    return bool(row["deviate"] < LEAST_DEVIATE)


def _fingerprint(target: Target, drafters: Mapping[str, Judged], settings: Settings) -> str:
    decisive = {
        "version": __version__,
        "target": target.name,
        "dtype": target.precision,
        "drafters": {name: judged.sha256 for name, judged in drafters.items()},
        "temperatures": settings.temperatures,
        "verification": settings.verification,
    }
    return json.dumps(decisive)


def _known(path: Path, mark: str) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {line["name"]: line["row"] for line in read_jsonl(path) if line.get("mark") == mark}


@torch.inference_mode()
def _row(
    target: Target, drafters: Mapping[str, Judged], completion: Response, settings: Settings
) -> dict[str, Any]:
    ids = [*completion.prompt_ids.tolist(), *completion.response_ids.tolist()]
    first = len(completion.prompt_ids)
    states: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    said: _Said | None = None
    rounds: dict[str, dict[str, float]] = {}
    for name, judged in drafters.items():
        taps = judged.drafter.config.target_layer_ids
        if taps not in states:
            last_TD, taps_TM = target.states([ids], taps)
            states[taps] = (last_TD, last_TD if taps_TM is None else taps_TM)
        last_TD, taps_TM = states[taps]
        if said is None:
            said = _said(target, last_TD[first:-1], completion, settings)
        own = SequenceStates(taps_TM, last_TD[first:], last_TD.new_zeros(len(ids) - first), first)
        sequence = TrainingSequence(completion.key, np.array(ids, dtype=np.int64), own)
        rounds[name] = _rounds(judged.drafter, sequence, said, settings)
    assert said is not None
    return {
        "key": completion.key,
        "domain": completion.domain,
        "temperature": completion.temperature,
        "tokens": len(completion.response_ids) - 1,
        "best_share": round(said.best_share, 4),
        "deviate": None if math.isnan(said.deviate) else round(said.deviate, 3),
        "rounds": rounds,
    }


def _said(target: Target, last_TD: Tensor, completion: Response, settings: Settings) -> _Said:
    labels_T = torch.from_numpy(completion.response_ids[1:].astype(np.int64)).to(last_TD.device)
    own = completion.temperature
    above = {t for t in settings.temperatures if t} | ({own} if own else set())
    logp: dict[float, list[Tensor]] = {t: [] for t in above}
    best = 0
    excess = variance = 0.0
    rows = _rows_at_once(last_TD, target.spec.vocab_size)
    for part_ND, labels_N in zip(last_TD.split(rows), labels_T.split(rows), strict=True):
        logits_NV = target.logits(part_ND).float()
        best += int((logits_NV.argmax(-1) == labels_N).sum())
        for t in above:
            logs_NV = torch.log_softmax(logits_NV / t, -1)
            said_N = logs_NV.gather(1, labels_N[:, None])[:, 0].double()
            logp[t].append(said_N)
            if t == own:
                p_NV = logs_NV.exp()
                mean_N = (p_NV * logs_NV).sum(-1).double()
                square_N = (p_NV * logs_NV.square()).sum(-1).double()
                excess += float((said_N - mean_N).sum())
                variance += float((square_N - mean_N.square()).clamp(min=0).sum())
    return _Said(
        {t: torch.cat(parts).cpu().numpy() for t, parts in logp.items()},
        best / len(labels_T),
        excess / math.sqrt(variance) if variance else math.nan,
    )


def _rounds(
    drafter: Drafter, sequence: TrainingSequence, said: _Said, settings: Settings
) -> dict[str, float]:
    """Expected rounds by temperature."""
    assert isinstance(drafter, BlockDrafter | ChainDrafter)
    everything = AnchorDraw(len(sequence.ids_T), seed=0, epoch=0)
    batch: Any = pack(drafter, [sequence], everything)
    anchors, K = batch.label_valid_AK.shape
    labels_AK = _labels(sequence, anchors, K)
    best_AK, logq = _drafted(drafter, batch, torch.from_numpy(labels_AK), settings)
    found = {}
    for t in settings.temperatures:
        if t:
            place_AK = np.minimum(np.arange(anchors)[:, None] + np.arange(K), anchors - 1)
            stands_AK = standing(logq[t] - said.logp[t][place_AK], settings.verification)
        else:
            stands_AK = standing_greedily(best_AK)
        found[f"{t:g}"] = expected_rounds(stands_AK)
    return found


def _labels(sequence: TrainingSequence, anchors: int, K: int) -> NDArray[np.int64]:
    """The text's token for each slot of each anchor; its last one behind the end."""
    first, last = sequence.states.first, len(sequence.ids_T) - 1
    place_AK = first + np.arange(anchors)[:, None] + 1 + np.arange(K)
    return sequence.ids_T[np.minimum(place_AK, last)]


def _drafted(
    drafter: BlockDrafter | ChainDrafter, batch: Any, labels_AK: Tensor, settings: Settings
) -> tuple[NDArray[np.bool_], dict[float, Floats]]:
    """Whether each token is the drafter's best, and its log q by temperature."""
    device = drafter.device
    labels_AK = drafter.to_draft_ids(labels_AK.to(device))
    rows = _rows_at_once(batch.taps_TM, drafter.config.out_vocab * labels_AK.shape[1])
    best: list[Tensor] = []
    logq: dict[float, list[Tensor]] = {t: [] for t in settings.temperatures if t}
    parts = drafter.logits_along(batch.to(device), rows)
    for logits_NKV, labels_NK in zip(parts, labels_AK.split(rows), strict=True):
        unknown_NK = labels_NK < 0
        columns_NK1 = labels_NK.clamp(min=0)[..., None]
        best.append((logits_NKV.argmax(-1) == labels_NK) & ~unknown_NK)
        for t, found in logq.items():
            scaled_NKV = logits_NKV / t
            log_NK = scaled_NKV.gather(-1, columns_NK1)[..., 0] - scaled_NKV.logsumexp(-1)
            found.append(log_NK.double().masked_fill(unknown_NK, -math.inf))
    return (
        torch.cat(best).cpu().numpy(),
        {t: torch.cat(found).cpu().numpy() for t, found in logq.items()},
    )


def _rows_at_once(like: Tensor, width: int) -> int:
    return max(_CHUNK[like.device.type] // width, 1)
