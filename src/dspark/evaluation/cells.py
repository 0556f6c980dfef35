"""What an evaluation runs: drafters, datasets, and the cells they make with the settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from dspark import __version__
from dspark.artifacts import sha256_file
from dspark.core import DEFAULT_RULE, SamplingParams
from dspark.data.bad_rows import BadRows
from dspark.data.prompt_rows import prompt_ids
from dspark.data.prompts import Prompt
from dspark.drafters.checkpoint import CONFIG, WEIGHTS, drafting_dtype, load_drafter
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark.informed import FILE as CONFIDENCE
from dspark.drafters.registry import make_drafter
from dspark.engine.engine import Engine
from dspark.engine.policies import Policy, PolicyTables
from dspark.engine.policy_names import ADAPTIVE, parse_policy
from dspark.engine.scheduler import Adaptive
from dspark.errors import ConfigError, DataError, PromptTooLongError
from dspark.evaluation.trace import Key
from dspark.targets.names import portable_name
from dspark.targets.target import Target

MEASURING_LEN = 128  # positions of an engine that only measures


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made; the same for all cells.

    Attributes:
        temperatures: one cell each.
        top_p, top_k, max_new_tokens: see `SamplingParams`.
        seed: of the prompts' own seeds.
        slots: requests answered at the same time.
        policy: verify lengths; None for each drafter's whole block.
        thresholds: confidence limits, each adding a cell with the policy threshold:P.
        verification: the rule by which drafts above temperature 0 are accepted.
    """

    temperatures: tuple[float, ...] = (0.0,)
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    slots: int = 16
    policy: str | None = None
    thresholds: tuple[float, ...] = ()
    verification: str = DEFAULT_RULE

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            self.params(temperature)  # a value out of range is the first thing to hear about

    def params(self, temperature: float, seed: int | None = None) -> SamplingParams:
        """How one request draws.

        Raises:
            RequestError: a value is out of range.
        """
        return SamplingParams(
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True, slots=True)
class Contender:
    """A drafter to judge.

    Attributes:
        label: what results call it.
        parameters: trainable ones.
        sha256: of its configuration, weights and informed confidence head, by file name.
        training: the block of that name in its provenance; None when there is none.
        tables: what an adaptive policy knows of it and the machine; None for the other policies.
    """

    label: str
    drafter: Drafter
    parameters: int
    sha256: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    tables: PolicyTables | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prompts that are averaged together."""

    name: str
    prompts: Sequence[Prompt]

    @property
    def domain(self) -> str:
        """The prompts' common domain; "mixed" for several, "unknown" for none."""
        domains = {prompt.domain for prompt in self.prompts}
        return "mixed" if len(domains) > 1 else domains.pop() or "unknown"

    @property
    def sha256(self) -> str:
        """Of the prompts that are used."""
        text = json.dumps([[prompt.id, prompt.conversation] for prompt in self.prompts])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, ready for the engine."""

    id: str
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One drafter, dataset, temperature and policy."""

    contender: Contender
    dataset: Dataset
    temperature: float
    policy: Policy

    @property
    def key(self) -> Key:
        """The names that rows and records call it by."""
        return self.contender.label, self.dataset.name, self.temperature, self.policy.name


def load_contender(
    folder: Path,
    target: Target,
    label: str | None = None,
    policy: str | None = None,
    slots: int = 1,
    verification: str = DEFAULT_RULE,
) -> Contender:
    """A drafter ready to be judged; without a label its kind is its name.

    Args:
        policy, slots, verification: whose tables to find, or to measure where nobody did.

    Raises:
        CheckpointError, IncompatibleDrafterError: see `load_drafter`.
        ConfigError: nobody measured this machine for a policy that needs it.
        DataError: a table is damaged.
    """
    drafter = load_drafter(folder, target, dtype=drafting_dtype(target))
    with torch.device("meta"):  # packed for inference, a drafter no longer holds parameters
        bare = make_drafter(drafter.config)
    files = (CONFIG, WEIGHTS, CONFIDENCE)
    return Contender(
        label or drafter.config.kind,
        drafter,
        sum(weight.numel() for weight in bare.parameters()),
        {name: sha256_file(folder / name) for name in files if (folder / name).exists()},
        _training(folder),
        _tables(policy, target, drafter, slots, verification),
    )


def _tables(
    policy: str | None, target: Target, drafter: Drafter, slots: int, verification: str
) -> PolicyTables | None:
    """What an adaptive policy knows; an engine of its own finds it."""
    if policy not in ADAPTIVE:
        return None
    engine = Engine(
        target, drafter, policy, slots, max_len=MEASURING_LEN, verification=verification
    )
    own = engine.policy
    return own.tables if isinstance(own, Adaptive) else None


def _training(folder: Path) -> dict[str, Any] | None:
    """How the drafter was trained, if its folder says so in the way ours do."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        training = found.get("training")
    except (OSError, ValueError, AttributeError):
        return None
    return training if isinstance(training, dict) else None


def plan_cells(
    contenders: Sequence[Contender], datasets: Sequence[Dataset], settings: Settings
) -> list[Cell]:
    """Every drafter x dataset x temperature x policy, in the order of the rows.

    Raises:
        ConfigError: two drafters or datasets have one name, a policy is unknown, or one needs
            confidences that a drafter does not give.
    """
    check_distinct("drafters", [c.label for c in contenders], "Name them: --drafter NAME=PATH")
    check_distinct("data files", [d.name for d in datasets], "Rename one of them")
    return [
        Cell(contender, dataset, temperature, policy)
        for contender in contenders
        for dataset in datasets
        for temperature in dict.fromkeys(settings.temperatures)
        for policy in _policies(contender, settings)  # its own: a policy may remember rounds
    ]


def check_distinct(what: str, names: Sequence[str], fix: str) -> None:
    """Refuse names that results could not tell apart.

    Raises:
        ConfigError: two are the same.
    """
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"Two {what} have the same name", found=twice[0], fix=fix)


def _policies(contender: Contender, settings: Settings) -> list[Policy]:
    config = contender.drafter.config
    names = [settings.policy or f"fixed:{config.block_size}"]
    names += [f"threshold:{limit:g}" for limit in settings.thresholds]
    policies = [parse_policy(name, config.block_size, contender.tables) for name in names]
    for policy in policies:
        if policy.needs_confidence and not config.gives_confidence:
            raise ConfigError(
                f"Policy {policy.name} needs confidences, and drafter {contender.label} gives none",
                fix="Leave that drafter or the policy out",
            )
    return list({policy.name: policy for policy in policies}.values())


def questions_of(
    target: Target, dataset: Dataset, seed: int, bad_rows: BadRows | None = None
) -> list[Question]:
    """The prompts that fit the target's context, each with a seed of its own.

    The seed comes from (seed, dataset, index), so an answer depends neither on the order in which
    requests run nor on the drafter's batch mates, and all drafters draw with the same numbers.

    Raises:
        DataError: none fits, or the target cannot take one and bad rows stop the work.
    """
    questions = []
    for index, prompt in enumerate(dataset.prompts):
        key = np.random.SeedSequence([seed, crc32(dataset.name.encode()), index])
        try:
            ids = prompt_ids(target, prompt, bad_rows or BadRows())
        except PromptTooLongError:
            continue
        if ids is None:
            continue
        own = int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))
        questions.append(Question(prompt.id, ids, own))
    if not questions:
        raise DataError(
            f"No prompt of {dataset.name} fits the target",
            found=f"{len(dataset.prompts)} prompts, context {target.max_positions} tokens",
            fix="Shorten them",
        )
    return questions


# ---- fields of results ------------------------------------------------------------------------


def shared_fields(target: Target, settings: Settings) -> dict[str, Any]:
    """What all cells of a run have in common."""
    return {
        "target": portable_name(target.name),
        "dtype": target.precision,
        "threads": torch.get_num_threads(),
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "slots": settings.slots,
        "verification": settings.verification,
    }


def cell_fields(cell: Cell, settings: Settings) -> dict[str, Any]:
    """The fields of a row that are known before its prompts are answered."""
    contender, config = cell.contender, cell.contender.drafter.config
    head = config.sequential_head
    return {
        "drafter": contender.label,
        "kind": config.kind,
        "shape": {
            "num_layers": config.num_layers,
            "block_size": config.block_size,
            "markov_rank": head.rank if head else 0,
            "markov_head_type": head.kind if head else None,
            "draft_vocab_size": config.draft_vocab_size,
            "parameters": contender.parameters,
        },
        "sha256": contender.sha256,
        "training": contender.training,
        "dataset": cell.dataset.name,
        "domain": cell.dataset.domain,
        "temperature": cell.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "policy": cell.policy.name,
    }


def fingerprint(cell: Cell, target: Target, settings: Settings) -> dict[str, Any]:
    """All that a cell's figures depend on; equal fingerprints need no second run."""
    return {
        "version": __version__,
        **shared_fields(target, settings),
        **cell_fields(cell, settings),
        "target": target.name,
        "prompts_sha256": cell.dataset.sha256,
        "tables": _tables_sha256(cell),
    }


def _tables_sha256(cell: Cell) -> str | None:
    """Of the numbers an adaptive policy goes by; None for the other policies."""
    if cell.policy.name not in ADAPTIVE:
        return None
    return hashlib.sha256(repr(cell.contender.tables).encode()).hexdigest()
