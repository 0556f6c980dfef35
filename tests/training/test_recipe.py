"""Recipes: each kind has its keys, and a recipe of another kind leaves foreign ones behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dspark.config import valid_keys
from dspark.drafters.registry import DRAFTERS
from dspark.errors import ConfigError
from dspark.training.recipe import read_recipe

DSPARK = """
out = "runs/x"
[data]
responses = ["r.jsonl"]
[drafter]
num_layers = 1
markov_rank = 16
target_layer_ids = [1, 3]
"""
OWN = {
    "dspark": {"markov_rank", "candidates", "confidence_head", "target_layer_ids", "mask_token_id"},
    "dflash": {"target_layer_ids", "mask_token_id"},
    "eagle3": {"target_layer_ids"},
    "mtp": set(),
}


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("kind", OWN)
def test_each_kind_has_its_keys(kind: str) -> None:
    keys, every = set(DRAFTERS[kind].Recipe.model_fields), set().union(*OWN.values())
    assert keys & every == OWN[kind]
    assert {"kind", "start", "block_size", "num_layers", "draft_vocab_size"} <= keys


@pytest.mark.parametrize("kind", OWN)
def test_what_is_inherited_of_another_kind_is_left_behind(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "base.toml", DSPARK)
    text = f'extends = "base.toml"\n[drafter]\nkind = "{kind}"\n'
    recipe = read_recipe(write(tmp_path, "a.toml", text))
    assert type(recipe.drafter) is DRAFTERS[kind].Recipe
    assert getattr(recipe.drafter, "target_layer_ids", None) == (None if kind == "mtp" else [1, 3])
    said = read_recipe(tmp_path / "base.toml", [f"drafter.kind={kind}"])
    assert said == recipe


@pytest.mark.parametrize("kind", ["dflash", "eagle3", "mtp"])
def test_a_key_of_another_kind_is_refused_with_the_kind_s_own(tmp_path: Path, kind: str) -> None:
    text = DSPARK.replace("num_layers", f'kind = "{kind}"\nnum_layers')
    with pytest.raises(ConfigError, match=r"unknown key 'drafter\.") as caught:
        read_recipe(write(tmp_path, "a.toml", text))
    assert "markov_rank" in str(caught.value) or "target_layer_ids" in str(caught.value)
    write(tmp_path, "b.toml", DSPARK)
    sets = [f"drafter.kind={kind}", "drafter.confidence_head=false"]
    with pytest.raises(ConfigError, match=r"'drafter\.confidence_head' in --set") as caught:
        read_recipe(tmp_path / "b.toml", sets)
    told = set(re.findall(r"drafter\.(\w+)", str(caught.value))) - {"confidence_head"}
    assert told == set(DRAFTERS[kind].Recipe.model_fields)


def test_slips_in_a_base_are_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", DSPARK.replace("markov_rank", "markov_ranks"))
    text = 'extends = "base.toml"\n[drafter]\nkind = "mtp"\n'
    with pytest.raises(ConfigError, match=r"'drafter\.markov_ranks' in .*base\.toml"):
        read_recipe(write(tmp_path, "a.toml", text))


def test_an_unknown_kind(tmp_path: Path) -> None:
    path = write(tmp_path, "a.toml", DSPARK)
    with pytest.raises(ConfigError, match=r"Unknown drafter kind \(found: medusa\)"):
        read_recipe(path, ["drafter.kind=medusa"])
    with pytest.raises(ConfigError, match=r"'drafter\.kind' in --set drafter\.kind=3"):
        read_recipe(path, ["drafter.kind=3"])


def test_all_keys_of_a_recipe_are_those_of_its_kind() -> None:
    from dspark.config import recipe_model

    assert "drafter.markov_rank" in valid_keys(recipe_model(DRAFTERS["dspark"].Recipe))
    assert "drafter.markov_rank" not in valid_keys(recipe_model(DRAFTERS["mtp"].Recipe))
