"""The loss in one compiled function, and what happens where nothing compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dspark.maths import loss_rows
from dspark.maths.loss_rows import fused_row_terms, row_terms


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    fused_row_terms.cache_clear()
    yield
    fused_row_terms.cache_clear()


def arguments() -> tuple[Any, ...]:
    draft, teacher = torch.randn(5, 11), torch.randn(5, 11)
    labels = torch.tensor([3, -1, 0, 10, 7])
    return draft, teacher, teacher.logsumexp(-1), labels, torch.rand(5), 0.1, 0.9, 0.0, True


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
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(same, expected)


def test_the_compiled_function_is_used_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_rows.torch, "compile", lambda function: lambda *args: "compiled")
    assert fused_row_terms()(*arguments()) == "compiled"


def test_labels_outside_the_vocabulary_get_no_cross_entropy() -> None:
    draft, teacher, norm, labels, weight, *_ = arguments()
    ce, overlap, grad = row_terms(draft, teacher, norm, labels, weight, 1.0, 0.0, 0.0, True)
    assert grad is not None
    assert ce[1] == 0
    assert not grad[1].any()
    assert bool((overlap > 0).all())
    assert bool(grad[0].any())
