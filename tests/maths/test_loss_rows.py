"""The loss in one compiled function, and what happens where nothing compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.maths import loss_rows
from dspark.maths.loss_rows import fused_row_terms, row_terms, row_terms_in_place
from dspark.maths.loss_weights import LossWeights, SlotShares

PAPER = LossWeights(ce=0.1, tv=0.9, bce=1.0, decay=4.0)
ALL = LossWeights(0.1, 0.2, 0.3, 4.0, 0.0, 0.4, 0.5, 0.6, 0.7, "dpace")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fused_row_terms.cache_clear()
    yield
    fused_row_terms.cache_clear()


def arguments() -> tuple[Any, ...]:
    draft, teacher = torch.randn(5, 11), torch.randn(5, 11)
    labels = torch.tensor([3, -1, 0, 10, 7])
    rows = draft, teacher, teacher.logsumexp(-1), labels, SlotShares(*torch.rand(2, 5))
    return *rows, PAPER.terms, PAPER.scales, 5, True


def test_a_failing_compiler_is_named_once_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            tries.append(args)
            raise RuntimeError("no compiler here\nand a long trace")

        return call

    monkeypatch.setattr(loss_rows.torch, "compile", broken)
    given = arguments()
    with pytest.warns(UserWarning, match="uncompiled, which is slower: no compiler here$"):
        found = fused_row_terms()(*given)
    again = fused_row_terms()(*given)
    assert len(tries) == 1
    for value, same, expected in zip(found, again, row_terms(*given), strict=True):
        if expected is None:
            assert value is same is None
            continue
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(same, expected)


def test_the_compiled_function_is_used_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_rows.torch, "compile", lambda function: lambda *args: "compiled")
    assert fused_row_terms()(*arguments()) == "compiled"


def test_labels_outside_the_vocabulary_get_no_cross_entropy() -> None:
    only = LossWeights(1.0, 0.0, 0.0, 4.0)
    rows = arguments()[:5]
    for form in (row_terms, row_terms_in_place):
        found = form(*rows, only.terms, only.scales, 5, True)
        assert found.grad_NV is not None
        assert found.ce_N[1] == found.own_N[1] == 0
        assert not found.grad_NV[1].any()
        assert bool((found.overlap_N > 0).all())
        assert bool(found.grad_NV[0].any())


def test_one_compilation_serves_weights_that_move() -> None:
    """Weights follow schedules: what is compiled for one must not be made anew for the next."""
    made = []

    def counting(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(row_terms, backend=counting)
    rows = arguments()[:5]
    for share in (0.1, 0.2, 0.3, 0.4):
        how = replace(ALL, tv=share, kl=1 - share, length=share / 2)
        for found, expected in zip(
            compiled(*rows, how.terms, how.scales.on(torch.device("cpu")), 5, True),
            row_terms(*rows, how.terms, how.scales, 5, True),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)
    assert len(made) == 1
