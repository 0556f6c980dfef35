"""From a configuration to the parts of a training run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from dspark.config import DrafterSection, TrainConfig
from dspark.data.bad_rows import BadRows
from dspark.data.responses import Response, check_vocabulary, load_responses, split_held_out
from dspark.data.vocabulary import draft_vocabulary, token_frequencies
from dspark.drafters.config import DrafterConfig, default_tap_ids, fit_to_target
from dspark.drafters.drafter import Drafter
from dspark.drafters.registry import drafter_class, make_drafter
from dspark.errors import ConfigError, DataError
from dspark.targets.names import portable_name
from dspark.targets.target import Target
from dspark.training.warm_start import Start, begin, check_shape, drafted_ids

TOO_SHORT = "shorter than two tokens"


def pick_training_dtype(name: str) -> torch.dtype:
    """The arithmetic to train in; ``auto`` measures a typical product in both types."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(512, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])


def load_data(
    config: TrainConfig, target: Target, dropped: Counter[str] | None = None
) -> tuple[list[Response], list[Response]]:
    """Training and held-out answers.

    Args:
        dropped: receives the number of answers that are dropped, by reason; and of those cut.

    Raises:
        DataError: when nothing is left to train on, or token ids do not fit the target.
    """
    data, dropped = config.data, Counter() if dropped is None else dropped
    bad_rows = BadRows(data.bad_rows)
    read = load_responses(
        data.responses, data.max_length, join_turns=True, bad_rows=bad_rows, dropped=dropped
    )
    responses = [r for r in read if len(r.response_ids) >= 2]
    dropped[TOO_SHORT] += len(read) - len(responses)
    for reason, count in bad_rows.counts.items():
        dropped[f"{reason} (first: {Path(bad_rows.first[reason]).name})"] += count
    for reason in [reason for reason, count in dropped.items() if not count]:
        del dropped[reason]
    train, held_out = split_held_out(responses, data.held_out_share, data.seed)
    if not train:
        raise _nothing_left(responses, dropped)
    check_vocabulary(responses, target.spec.vocab_size)
    return train, held_out


def dropped_line(dropped: Mapping[str, int]) -> str:
    """Counts of answers by reason, in a line; "" where there are none."""
    return "; ".join(f"{count} x {reason}" for reason, count in dropped.items())


def _nothing_left(responses: list[Response], dropped: Counter[str]) -> DataError:
    if responses:
        return DataError(
            "No answer is left to train on",
            found=f"{len(responses)} answers, all of them held out",
            fix="Make more with `dspark regenerate`, or lower data.held_out_share",
        )
    return DataError(
        "No answer is left to train on",
        found=dropped_line(dropped),
        fix="Make longer answers with `dspark regenerate`, or raise data.max_length",
    )


def unused_token(responses: list[Response], target: Target, wanted: int | None) -> int:
    """The MASK id: the configured one, or a special token that no text holds.

    Raises:
        ConfigError: when the configured id occurs in the data.
    """
    size = target.spec.vocab_size
    seen = token_frequencies(responses, size)
    for response in responses:
        np.add.at(seen, response.prompt_ids, 1)
        np.add.at(seen, response.response_ids[~response.completion_mask], 1)
    if wanted is not None:
        if wanted < size and seen[wanted]:
            raise ConfigError(
                "drafter.mask_token_id occurs in the texts",
                found=f"{wanted}, {seen[wanted]} times",
                fix="Leave it unset, or choose an id that no text contains",
            )
        return wanted
    special = sorted(getattr(target.tokenizer, "all_special_ids", []))
    reserved = [i for i in special if i < size and not seen[i] and i not in target.stop_ids]
    if reserved:
        return int(reserved[-1])
    unseen = [i for i in range(size - 1, -1, -1) if not seen[i] and i not in target.stop_ids]
    if not unseen:
        raise ConfigError(
            "Every token of the vocabulary occurs in the texts", fix="Set drafter.mask_token_id"
        )
    return int(unseen[0])


def drafter_config(
    section: DrafterSection,
    target: Target,
    texts: list[Response],
    anchors: int,
    start: DrafterConfig | None = None,
) -> DrafterConfig:
    """The drafter's full configuration for this target; MASK must not occur in ``texts``.

    Args:
        start: of a drafter to go on from, whose taps, MASK and width hold where the recipe says
            nothing.
    """
    spec, shape = target.spec, drafter_class(section.kind).Config
    asked = section.model_dump(exclude={"kind", "start"})
    if start is not None:
        kept = ("target_layer_ids", "mask_token_id", "intermediate_size")
        unset = [key for key in kept if key in asked and asked[key] is None]
        asked |= {key: getattr(start, key) for key in unset}
    if "target_layer_ids" in asked:
        taps = asked["target_layer_ids"]
        asked["target_layer_ids"] = (
            default_tap_ids(spec.num_layers) if taps is None else tuple(taps)
        )
    if "mask_token_id" in asked:
        asked["mask_token_id"] = unused_token(texts, target, asked["mask_token_id"])
    if any(field.name == "num_anchors" for field in fields(shape)):
        asked["num_anchors"] = anchors
    vocab = section.draft_vocab_size if section.draft_vocab_size < spec.vocab_size else 0
    asked |= {
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "num_target_layers": spec.num_layers,
        "intermediate_size": asked["intermediate_size"] or spec.intermediate_size,
        "draft_vocab_size": vocab or None,
        "target_name": portable_name(target.name),
        "rope_theta": target.rope_theta,
    }
    return fit_to_target(shape(**asked), spec)


def build_drafter(
    config: TrainConfig,
    target: Target,
    train: list[Response],
    held_out: list[Response],
    start: Start | None = None,
) -> tuple[Drafter, float]:
    """A drafter bound to its target, and the coverage of its draft vocabulary (0 to 1).

    The draft vocabulary comes from the training answers alone; MASK must occur in no text.

    Args:
        start: a drafter to begin with; its draft vocabulary stays where it is as large as wanted.

    Raises:
        IncompatibleDrafterError: for tap ids or a mask that the target does not have.
        ConfigError, CheckpointError: the start does not fit, see `warm_start`.
    """
    texts = [*train, *held_out]
    shape = drafter_config(
        config.drafter,
        target,
        texts,
        config.run.anchors_per_sequence,
        None if start is None else start.config,
    )
    shape.check_fits(target.spec, target.stop_ids)
    if start is not None:
        check_shape(shape, start.config)
    torch.manual_seed(config.run.seed)
    drafter = make_drafter(replace(shape))
    coverage = 1.0
    if shape.draft_vocab_size and drafter.d2t is not None:
        frequencies = token_frequencies(train, target.spec.vocab_size)
        ids, coverage = draft_vocabulary(
            frequencies, shape.draft_vocab_size, sorted(target.stop_ids)
        )
        kept = None if start is None else drafted_ids(start)
        if kept is not None and len(kept) == len(ids):
            ids = kept.numpy()
            coverage = float(frequencies[ids].sum() / frequencies.sum())
        drafter.d2t.copy_(torch.from_numpy(ids))
    if start is not None and start.tensors:
        start.record["new"] = begin(drafter, start)
    drafter.to(target.device).bind(target)
    return drafter, coverage
