"""Configuration: inheritance, overrides, and errors that name key, file and cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from dspark.config import at_share, load_config, merge, recipe_model, valid_keys
from dspark.drafters.dspark.config import DSparkSection
from dspark.errors import ConfigError
from dspark.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RECIPE = recipe_model(DSparkSection)
MINIMAL = 'out = "runs/x"\n[data]\nresponses = ["r.jsonl"]\n'


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*-*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    config = read_recipe(path)
    assert config.drafter.kind in path.stem or path.stem.endswith("ablation")


def test_every_field_is_described() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                check(inner)
            else:
                assert field.description, name

    check(RECIPE)
    assert "optim.lr" in valid_keys(RECIPE)


def test_extends_merges_and_the_nearer_file_wins(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "root.toml", MINIMAL + "[optim]\nlr = 0.1\nweight_decay = 0.5\n")
    write(tmp_path, "mid.toml", 'extends = "root.toml"\n[optim]\nlr = 0.2\n')
    leaf = write(tmp_path / "sub", "leaf.toml", 'extends = "../mid.toml"\n[run]\nsteps = 3\n')
    config = load_config(leaf, RECIPE, ["optim.lr=0.3", "run.minutes=none", "out=o"])
    assert (config.optim.lr, config.optim.weight_decay) == (0.3, 0.5)
    assert (config.run.steps, config.run.minutes, config.out) == (3, None, "o")
    assert config.data.responses == ["r.jsonl"]


def test_overrides_speak_toml(tmp_path: Path) -> None:
    path = write(tmp_path, "c.toml", MINIMAL)
    sets = ['data.responses=["a", "b"]', "drafter.confidence_head=false", "target = org/model"]
    config = load_config(path, RECIPE, sets)
    assert config.data.responses == ["a", "b"]
    assert config.drafter.confidence_head is False
    assert config.target == "org/model"


@pytest.mark.parametrize(
    ("extra", "sets", "words"),
    [
        ("[optim]\nlearning_rate = 1\n", [], ["'optim.learning_rate'", "c.toml"]),
        ("[optim]\nlrr = 1\n", [], ["'optim.lrr'", "c.toml", "Did you mean 'optim.lr'"]),
        ("[drafter]\nlr = 1\n", [], ["'drafter.lr'", "'optim.lr'"]),
        ("[optimm]\nlr = 1\n", [], ["'optimm'", "'optim'"]),
        ("", ["loss.cee=1"], ["'loss.cee'", "--set loss.cee=1", "'loss.ce'"]),
        ("[optim]\nlr = -1\n", [], ["'optim.lr'", "c.toml", "found: -1"]),
        ('[optim]\nname = "sgd"\n', [], ["'optim.name'", "adamw", "sgd"]),
        ("", ["loss.soft=1"], ["'loss'", "one kind of cross-entropy"]),
        ("", ["run.minutes=none"], ["'run'", "set minutes, steps or both"]),
        ("", ["out.x=1"], ["--set out.x=1", "not a section"]),
        ("", ["nothing"], ["KEY=VALUE"]),
        ("x = \n", [], ["not valid TOML"]),
        ("", ["data.responses=[]"], ["data.responses"]),
        ('[drafter]\nblock_size = "7"\n', [], ["'drafter.block_size'", "c.toml", "found: 7"]),
        ("[drafter]\nblock_size = true\n", [], ["'drafter.block_size'", "found: True"]),
        ("[drafter]\nblock_size = 7.0\n", [], ["'drafter.block_size'", "found: 7.0"]),
        ("[drafter]\nconfidence_head = 1\n", [], ["'drafter.confidence_head'", "found: 1"]),
        ("", ["optim.lr=nan"], ["'optim.lr'", "--set optim.lr=nan", "finite"]),
        ("", ["optim.lr=inf"], ["'optim.lr'", "finite"]),
        ("", ["optim.lr=true"], ["'optim.lr'", "found: True"]),
        ("", ["run.minutes=inf"], ["'run.minutes'", "finite"]),
        ("", ["optim.betas=[0.9, 1.0]"], ["'optim.betas.1'", "less than 1"]),
        ("", ["optim.betas=[0.9]"], ["'optim.betas.1' is missing"]),
        ("", ['optim.betas=["0.9", 0.95]'], ["'optim.betas.0'", "found: 0.9"]),
        ("", ["run.keep_at=[nan]"], ["'run.keep_at.0'", "finite"]),
        ("", ["loss.decay=-1"], ["'loss.decay'", "found: -1"]),
    ],
)
def test_errors_say_what_and_where(
    tmp_path: Path, extra: str, sets: list[str], words: list[str]
) -> None:
    path = write(tmp_path, "c.toml", MINIMAL + extra)
    with pytest.raises(ConfigError) as caught:
        load_config(path, RECIPE, sets)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value).replace("\n  ", "\n")


def test_the_file_that_holds_the_bad_key_is_named(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", MINIMAL + "[run]\nsteeps = 1\n")
    path = write(tmp_path, "c.toml", 'extends = "base.toml"\n')
    with pytest.raises(ConfigError, match=r"'run.steeps' in .*base.toml.*Did you mean 'run.steps'"):
        load_config(path, RECIPE)


def test_circles_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(ConfigError, match=r"circle.*a.toml -> b.toml -> a.toml"):
        load_config(tmp_path / "a.toml", RECIPE)
    lost = write(tmp_path, "c.toml", 'extends = "no.toml"\n')
    with pytest.raises(ConfigError, match=r"no.toml.*extended by .*c.toml"):
        load_config(lost, RECIPE)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "d.toml", RECIPE)
    with pytest.raises(ConfigError, match="one file name"):
        load_config(write(tmp_path, "e.toml", "extends = 3\n"), RECIPE)


def test_missing_key(tmp_path: Path) -> None:
    path = write(tmp_path, "c.toml", '[data]\nresponses = ["r"]\n')
    with pytest.raises(ConfigError, match=r"'out' is missing in .*c.toml"):
        load_config(path, RECIPE)


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "b": {"z": 4}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}
    assert base == {"a": {"x": 1}, "b": 2}


WRONG = [
    "-0.1", "true", '"much"', "[]", "[[0.5, 1.0], [0.5, 2.0]]", "[[0.6, 1.0], [0.5, 2.0]]",
    "[[0.0, 1.0], [1.5, 2.0]]", "[[0.0, -1.0]]", "[0.0, 1.0]", "[[0.0]]", "nan", "[[0.0, inf]]",
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG)
def test_a_weight_that_is_none_is_refused_in_a_line(tmp_path: Path, value: str) -> None:
    recipe = write(tmp_path, "a.toml", 'out = "x"\n[data]\nresponses = ["r"]\n')
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, RECIPE, [f"loss.kl={value}"])
    words = str(caught.value)
    assert words.startswith(f"'loss.kl' in --set loss.kl={value} cannot be used: give a number")
    assert "\n" not in words


def test_a_weight_may_follow_points(tmp_path: Path) -> None:
    text = 'out = "x"\n[data]\nresponses = ["r"]\n[loss]\nkl = [[0, 1], [0.3, 0.0]]\n'
    loss = load_config(write(tmp_path, "a.toml", text), RECIPE).loss
    assert [at_share(loss.kl, share) for share in (0.0, 0.15, 0.3, 1.0)] == [1.0, 0.5, 0.0, 0.0]
    assert at_share(loss.tv, 0.15) == 0.9


def test_candidates_need_a_loss_of_their_own(tmp_path: Path) -> None:
    recipe = write(tmp_path, "a.toml", 'out = "x"\n[data]\nresponses = ["r"]\n')
    with pytest.raises(ConfigError, match=r"drafter\.candidates needs loss\.base above 0"):
        load_config(recipe, RECIPE, ["drafter.candidates=16"])
    few = load_config(recipe, RECIPE, ["drafter.candidates=16", "loss.base=1.0"])
    assert few.drafter.candidates == 16
