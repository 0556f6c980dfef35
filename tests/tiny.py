"""A tiny target, answers of its own and a short recipe: a whole training run in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspark.config import TrainConfig
from fakes import tiny_target_folder, write_jsonl, write_responses


def tiny_home(
    path: Path, family: str = "llama", *, count: int = 48, temper: float = 5.0, **target: Any
) -> Path:
    """A folder with `target/` and `answers.jsonl`."""
    folder = tiny_target_folder(path / "target", family, temper=temper, **target)
    write_responses(
        path / "answers.jsonl", folder, count=count, samples=2, max_new_tokens=40, temperature=1.0
    )
    return path


def home_with_drafter(path: Path) -> Path:
    """A `tiny_home` with an untrained drafter in `drafter/`, and 24 rows in `prompts.jsonl`."""
    from dspark.drafters.checkpoint import save_drafter
    from dspark.targets.target import load_target
    from scripted import random_drafter

    home = tiny_home(path, count=16)
    target = load_target(home / "target", "float32")
    save_drafter(random_drafter(target, 3), home / "drafter")
    write_jsonl(home / "prompts.jsonl", [{"id": f"p{i}", "prompt": f"say {i}"} for i in range(24)])
    return home


def tiny_recipe(home: Path, out: Path, **sections: Any) -> TrainConfig:
    """Float32, limited by steps alone; `sections` override keys, as in `run={"steps": 5}`."""
    from dspark.drafters.registry import drafter_class
    from dspark.training.recipe import make_recipe

    base: dict[str, dict[str, Any]] = {
        "data": {"responses": [str(home / "answers.jsonl")], "held_out_share": 0.2},
        "drafter": {
            "block_size": 4,
            "num_layers": 1,
            "markov_rank": 16,
            "draft_vocab_size": 0,
            "intermediate_size": 96,
        },
        "optim": {"lr": 5e-3, "warmup_share": 0.0},
        "run": {
            "minutes": None,
            "steps": 30,
            "anchors_per_sequence": 16,
            "sequences_per_step": 8,
            "dtype": "float32",
            "log_every": 5,
        },
    }
    for name, values in sections.items():
        if name == "drafter" and "kind" in values:
            keys = drafter_class(values["kind"]).Recipe.model_fields
            base[name] = {key: value for key, value in base[name].items() if key in keys}
        base[name] = {**base.get(name, {}), **values}
    return make_recipe({"target": str(home / "target"), "out": str(out), **base})


def tiny_drafter(home: Path, steps: int = 60, **sections: Any) -> Path:
    """Train a drafter for the target of `tiny_home`; returns its folder."""
    from dspark.training.trainer import Trainer

    sections["run"] = {"steps": steps, **sections.get("run", {})}
    trainer = Trainer(tiny_recipe(home, home / "run", **sections))
    trainer.run()
    return trainer.out / "drafter"
