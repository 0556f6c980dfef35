"""`dspark store`: the target's states of a recipe's sequences, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from dspark.artifacts import check_writable, find_data, provenance
from dspark.config import TrainConfig
from dspark.data.responses import Response
from dspark.data.store import (
    INDEX,
    Entry,
    StoreOrigin,
    hash_ids,
    index_plan,
    origin_of,
    shard_path,
    shard_plan,
    write_index,
    write_shard,
)
from dspark.errors import CheckpointError, DataError
from dspark.targets.target import Target, load_target
from dspark.training.setup import drafter_config, load_data, pick_training_dtype
from dspark.training.states import StateCache, bytes_per_sequence

SHARD_BYTES = 512 * 2**20
PACK_TOKENS = 4096  # tokens of one pass of the target
BESIDE_BYTES = 512  # of a sequence: names and places in shard header and index
SPARE = 0.05  # of the size, that must stay free
Progress = Callable[[int], None]  # called with the number of sequences that are done


@dataclass(frozen=True, slots=True)
class Plan:
    """A store as it will be: a function of the recipe, so that a second run finds its place.

    Attributes:
        responses: training answers, then held-out ones.
        sizes: bytes on disk of each.
        shards: numbers of the sequences in each shard.
        dropped: answers that are left out, or cut, by reason.
    """

    config: TrainConfig
    target: Target
    origin: StoreOrigin
    responses: list[Response]
    sizes: list[int]
    shards: list[range]
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        """Estimated size of the whole store."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """Name of this plan; shards carry it."""
        facts = [asdict(self.origin), [(r.key, hash_ids(r)) for r in self.responses]]
        text = json.dumps([*facts, [len(shard) for shard in self.shards]])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_plan(
    config: TrainConfig, target: Target | None = None, shard_bytes: int = SHARD_BYTES
) -> Plan:
    """What a store for this recipe holds; nothing is computed yet.

    Raises:
        DataError, ConfigError, IncompatibleDrafterError: as training with the recipe would.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    name = str(pick_training_dtype(config.run.dtype)).removeprefix("torch.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = target or load_target(config.target, name, device)
    dropped: Counter[str] = Counter()
    train, held_out = load_data(config, target, dropped)
    responses = [*train, *held_out]
    shape = drafter_config(config.drafter, target, responses, config.run.anchors_per_sequence)
    shape.check_fits(target.spec, target.stop_ids)
    taps = shape.target_layer_ids
    sizes = [
        bytes_per_sequence(r, target, len(taps)) + 4 * len(r.response_ids) + BESIDE_BYTES
        for r in responses
    ]
    shards = list(_runs(sizes, shard_bytes))
    return Plan(config, target, origin_of(target, taps), responses, sizes, shards, dropped)


def _runs(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Neighbours whose sizes add up to no more than ``most``, or single ones."""
    start, held = 0, 0
    for number, size in enumerate(sizes):
        if number > start and held + size > most:
            yield range(start, number)
            start, held = number, 0
        held += size
    yield range(start, len(sizes))


def write_store(
    plan: Plan, out: Path, on_progress: Progress | None = None, pack_tokens: int = PACK_TOKENS
) -> int:
    """Compute and write what is missing of the store; returns its size in bytes.

    A shard is written whole or not at all, and the index last, so a run that was killed goes on
    with the first shard that is missing.

    Raises:
        DataError: ``out`` holds another store, the disk is too small, or writing fails.
    """
    digest = plan.digest
    missing = _missing(plan, out, digest)
    _check_room(out, sum(plan.sizes[n] for shard in missing for n in plan.shards[shard]))
    check_writable(out / INDEX, CheckpointError)
    cache = StateCache(plan.target, plan.origin.target_layer_ids, 0)
    told = on_progress or (lambda done: None)
    done = len(plan.responses) - sum(len(plan.shards[shard]) for shard in missing)
    told(done)
    for shard in missing:
        numbers, states = plan.shards[shard], []
        for pack in _runs([len(plan.responses[n]) for n in numbers], pack_tokens):
            states += cache.get([plan.responses[numbers[i]] for i in pack])
            told(done + len(states))
        write_shard(out, shard, numbers.start, states, digest)
        done += len(states)
    _write_index(plan, out, digest)
    files = [shard_path(out, shard) for shard in range(len(plan.shards))]
    return sum(file.stat().st_size for file in [*files, out / INDEX])


def _missing(plan: Plan, out: Path, digest: str) -> list[int]:
    """Shards that are not there yet."""
    present = {n: shard_plan(out, n) for n in range(len(plan.shards))}
    found = [*present.values(), index_plan(out)]
    other = next((mine for mine in found if mine not in (None, digest)), None)
    if other is not None:
        raise DataError(
            f"{out} holds a store of another recipe",
            found=f"store {other[:8]}, this recipe {digest[:8]}",
            fix="Give another --out, or delete this one to start anew",
        )
    return [shard for shard in range(len(plan.shards)) if present[shard] is None]


def _check_room(out: Path, needed: int) -> None:
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    free, wanted = shutil.disk_usage(above).free, int(needed * (1 + SPARE))
    if free < wanted:
        raise DataError(
            f"The disk of {out} is too small for the store",
            found=f"{free / 2**20:.1f} MiB free, {wanted / 2**20:.1f} MiB needed",
            fix="Choose another disk, or a recipe with fewer taps or a shorter data.max_length",
        )


def _write_index(plan: Plan, out: Path, digest: str) -> None:
    entries = [
        Entry(r.key, shard, len(r), len(r.prompt_ids), hash_ids(r))
        for shard, numbers in enumerate(plan.shards)
        for r in (plan.responses[n] for n in numbers)
    ]
    sources = [find_data(source) for source in plan.config.data.responses]
    made = provenance("dspark store", {"data": plan.config.data.seed}, sources)
    write_index(out, digest, plan.origin, entries, made)
