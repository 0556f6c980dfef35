"""The recorded step against the target's own forward, on a CPU (on a GPU: tests/test_cuda.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dspark.attention.kv_cache import Rows
from dspark.regeneration.graph_decoder import GraphDecoder, suits
from dspark.targets.target import LeanTarget, load_target
from fakes import tiny_target_folder

FAMILIES = ("llama", "qwen3")
PROMPTS = [[9, 4, 70], [8] * 11 + [30, 31], [5, 6, 7, 8, 9, 10, 11]]
SLOTS = (3, 0, 2)  # slot 1 stays free


def loaded(folder: Path, family: str) -> LeanTarget:
    target = load_target(tiny_target_folder(folder, family), "float32")
    assert suits(target)
    return target


def whole(target: LeanTarget, ids: list[int]) -> torch.Tensor:
    """Logits after the last id, the text run at once."""
    last_TD, _ = target.forward(Rows.build([(0, 0, ids)]), target.new_cache(1, 64))
    return target.logits(last_TD)[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str, tmp_path: Path) -> None:
    """Every step's logits are those of the whole text, in each of the lengths."""
    target = loaded(tmp_path, family)
    decoder = GraphDecoder(target, slots=4, max_len=32, lengths=(16, 24))
    assert not decoder.captured
    texts = [list(ids) for ids in PROMPTS]
    logits = decoder.prefill(list(zip(SLOTS, texts, strict=True)))
    for n in range(18):  # the longest text passes both shorter lengths
        for text, row in zip(texts, logits, strict=True):
            torch.testing.assert_close(row, whole(target, text), atol=1e-4, rtol=1e-4)
            text.append((7 * n + len(text)) % 150 + 5)
        ids, positions = np.zeros((2, 4), dtype=np.int64)
        for slot, text in zip(SLOTS, texts, strict=True):
            ids[slot], positions[slot] = text[-1], len(text) - 1
        logits = decoder.step(ids, positions)[list(SLOTS)]
    assert not torch.allclose(logits[0], whole(target, texts[1]), atol=1e-2)


def test_a_slot_taken_again_forgets_its_last_text(tmp_path: Path) -> None:
    target = loaded(tmp_path, "llama")
    decoder = GraphDecoder(target, slots=1, max_len=32)
    decoder.prefill([(0, PROMPTS[1])])
    decoder.prefill([(0, PROMPTS[0])])
    logits = decoder.step(np.array([40]), np.array([3]))
    torch.testing.assert_close(logits[0], whole(target, [*PROMPTS[0], 40]), atol=1e-4, rtol=1e-4)


def test_sliding_windows_do_not_suit(tmp_path: Path) -> None:
    assert not suits(load_target(tiny_target_folder(tmp_path, "gemma3"), "float32"))
