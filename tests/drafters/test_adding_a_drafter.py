"""The worked example of docs/adding_a_drafter.md: trained, saved, loaded and decoded with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark import drafters
from dspark.core import SamplingParams
from dspark.drafters import registry
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.drafter import Drafter
from dspark.drafters.registry import DRAFTERS, make_drafter
from dspark.engine.engine import Engine
from dspark.engine.stats import accepted_length
from dspark.targets.target import Target, load_target
from dspark.training import trainer
from fakes import tiny_target_folder
from scripted import drafter_config, whole_blocks
from tiny import tiny_home, tiny_recipe

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_drafter.md"
PROMPTS = [[1, 20, 30], [9], list(range(40, 65)), [50, 51] * 6]
PARAMS = [
    SamplingParams(max_new_tokens=24),
    SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_new_tokens=24),
]


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Drafter]]:
    """The class that the registry finds, given the page's folder and its line."""
    page = PAGE.read_text(encoding="utf-8")
    place = tmp_path_factory.mktemp("drafters")
    (place / "linear").mkdir()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (place / "linear" / "__init__.py").write_text(code, encoding="utf-8")
    line = re.findall(r'`("linear": "\w+",)`', page)[0]
    source = Path(registry.__file__).read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    drafters.__path__.append(str(place))
    try:
        exec(source.replace("FOLDERS = {\n", f"FOLDERS = {{\n    {line}\n"), known)
        yield known["DRAFTERS"]["linear"]
    finally:
        drafters.__path__.remove(str(place))
        sys.modules.pop("dspark.drafters.linear", None)


@pytest.fixture(autouse=True)
def _registered(linear: type[Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, linear.Config.kind, linear)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(tiny_target_folder(tmp_path_factory.mktemp("target")), "float32")


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("vocabulary", [None, range(0, 160, 2)], ids=["whole", "half"])
def test_text_is_the_targets(target: Target, vocabulary: Any, params: SamplingParams) -> None:
    size = None if vocabulary is None else len(vocabulary)
    drafter = make_drafter(drafter_config(target, 4, kind="linear", draft_vocab_size=size))
    if vocabulary is not None:
        drafter.d2t = torch.tensor(vocabulary)
    drafter.bind(target).eval()
    policy = whole_blocks(drafter)
    alone = [Engine(target, drafter, policy, slots=1).generate([p], params)[0] for p in PROMPTS]
    together = Engine(target, drafter, policy, slots=4).generate(PROMPTS, params)
    assert [r.output_ids for r in together] == [r.output_ids for r in alone]
    if params.temperature == 0:
        plain = Engine(target).generate(PROMPTS, params)
        assert [r.output_ids for r in together] == [r.output_ids for r in plain]


def test_it_remembers_the_position_before_the_anchor(target: Target) -> None:
    """Drafting equals training: the same taps and anchor give the same states."""
    drafter: Any = make_drafter(drafter_config(target, 4, kind="linear"))
    drafter.bind(target).eval()
    taps = torch.randn(9, drafter.taps)
    cache = drafter.new_cache(3, 32)
    slots, positions = torch.tensor([2] * 5 + [0] * 4), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    drafter.extend(cache, taps, slots, positions, positions)
    greedy = [SamplingParams()] * 2
    block = drafter.draft(cache, [7, 8], [4, 5], [0, 2], greedy, None, steps=3)
    hidden = drafter.hidden(taps[[8, 4]], torch.tensor([7, 8]))[:, :3]
    assert torch.equal(block.draft_ids_RK, drafter.shared.logits(hidden).argmax(-1))


def test_trained_saved_loaded(tmp_path: Path) -> None:
    home = tiny_home(tmp_path)
    recipe = tiny_recipe(
        home, tmp_path / "run", drafter={"kind": "linear"}, run={"steps": 60}, loss={"ce": 1.0}
    )
    _, held_out = trainer.run(recipe)
    assert held_out["accepted_length"] > 1.1
    target = load_target(home / "target", "float32")
    drafter = load_drafter(tmp_path / "run" / "drafter", target)
    assert drafter.kind == "linear"
    prompts = [target.encode(f"count {n}") for n in range(8)]
    params = SamplingParams(max_new_tokens=24)
    drafted = Engine(target, drafter, whole_blocks(drafter)).generate(prompts, params)
    assert [r.output_ids for r in drafted] == [
        r.output_ids for r in Engine(target).generate(prompts, params)
    ]
    assert accepted_length(drafted) > 1.05
