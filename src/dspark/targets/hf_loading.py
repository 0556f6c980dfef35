"""What Hugging Face's libraries load of a target: configuration, module, tokenizer, stop tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dspark.errors import CheckpointError
from dspark.targets import chat_template
from dspark.targets.family import TargetSpec, spec_from_config
from dspark.targets.names import portable_name, resolve_target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str) -> torch.dtype:
    """A dtype by its name.

    Raises:
        CheckpointError: for a name that is not a supported weight type.
    """
    if name not in DTYPES:
        raise CheckpointError(
            "Unknown dtype", found=name, fix=f"Use one of auto, {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def load_spec(name: str | Path) -> TargetSpec:
    """The facts of a target, without its weights.

    Raises:
        CheckpointError: when there is no configuration that can be read.
    """
    from transformers import AutoConfig

    with _loading(name) as where:
        return spec_from_config(AutoConfig.from_pretrained(where))


def load_module(name: str | Path, dtype: str, device: str = "cpu") -> tuple[Any, Any]:
    """The Hugging Face module and tokenizer behind a target name."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name)
    with _loading(name) as where:
        module = AutoModelForCausalLM.from_pretrained(
            where, dtype=pick_dtype(dtype), use_safetensors=True
        )
    return module.to(device).eval(), tokenizer


def load_tokenizer(name: str | Path) -> Any:
    """The Hugging Face tokenizer of a target."""
    from transformers import AutoTokenizer

    with _loading(name) as where:
        tokenizer = AutoTokenizer.from_pretrained(where)
        chat_template.check(tokenizer, portable_name(str(name)))
    return tokenizer


@contextmanager
def _loading(name: str | Path) -> Iterator[str | Path]:
    """Around what transformers loads of a target; gives where it lies.

    Raises:
        CheckpointError: whatever went wrong.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = resolve_target(str(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield where
    except CheckpointError:
        raise
    except Exception as error:  # transformers, safetensors and the hub raise many kinds
        raise CheckpointError(
            f"Cannot load the target {name}",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            fix="Give a known name (smollm2-135m), a folder with config.json, safetensors and "
            "tokenizer, or a Hugging Face id",
        ) from error


def find_stop_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    found: set[int] = set()
    generation = getattr(module, "generation_config", None)
    for source in (tokenizer, generation):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
