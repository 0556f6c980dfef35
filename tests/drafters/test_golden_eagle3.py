"""Our Eagle3 against recorded outputs of the public implementation (tests/golden/eagle3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dspark.core import SamplingParams
from dspark.drafters.checkpoint import load_standalone
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.targets.layers import pack_linears

FOLDER = Path(__file__).parents[1] / "golden" / "eagle3"
STEPS = 5


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.fixture
def drafter() -> Any:
    return load_standalone(FOLDER)


@pytest.fixture
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "golden.safetensors")


def outputs_of(drafter: Any) -> list[Tensor]:
    """Every output of the layer, call by call."""
    seen: list[Tensor] = []
    plain = drafter.layer.finish

    def finish(*args: Tensor) -> Tensor:
        seen.append(plain(*args))
        return seen[-1]

    drafter.layer.finish = finish
    return seen


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pieces", [[20], [7, 1, 12]], ids=["at once", "in pieces"])
@torch.no_grad()
def test_context_and_chain(
    drafter: Any, recorded: dict[str, Tensor], packed: bool, pieces: list[int]
) -> None:
    if packed:
        pack_linears(drafter)
    seen = outputs_of(drafter)
    ids, taps = recorded["input_ids"][0], recorded["taps"][0]
    cache, start = drafter.new_cache(2, 32), 0
    for count in pieces:
        rows = torch.arange(start, start + count)
        drafter.extend(cache, taps[rows], torch.ones_like(rows), rows, ids[rows + 1])
        start += count
    near(torch.cat(seen), recorded["context_hidden"][0])
    near(cache.output_SD[1], recorded["step_hidden"][0, 0])

    del seen[:]
    block = drafter.draft(cache, [int(ids[20])], [20], [1], [SamplingParams()], None, steps=STEPS)
    assert block.draft_ids_RK.tolist() == recorded["draft_tokens_greedy"].tolist()
    near(torch.cat(seen), recorded["step_hidden"][0, 1:STEPS])
    states = torch.cat([cache.output_SD[1:], *seen])
    near(drafter.shared.logits(drafter.norm(states)), recorded["draft_logits"][0])


def test_its_configuration(drafter: Any) -> None:
    assert isinstance(drafter, Eagle3Drafter)
    assert drafter.config.block_size == 7
    assert drafter.kind == "eagle3"
