"""Layer pieces: rotary tables that are kept, products and gates with and without our kernels."""

from __future__ import annotations

import pytest
import torch

from dspark.attention.rotary import RopeTable, rotary, rotate
from dspark.native import ops
from dspark.targets.layers import PackedLinear, gated


def table() -> RopeTable:
    return RopeTable(1.0 / 10_000 ** (torch.arange(0, 16, 2) / 16), scale=1.5)


def test_kept_rotary_tables_are_those_of_the_positions() -> None:
    rope = table()
    for positions in ([3, 0, 7], [200, 5], [1], [5000]):
        cos, sin = rotary(torch.tensor(positions), rope, torch.float32)
        angles = torch.tensor(positions).float()[:, None] * rope.inv_freq
        torch.testing.assert_close(cos[:, 0, :8], angles.cos() * 1.5)
        torch.testing.assert_close(sin[:, 0], torch.cat([-angles.sin(), angles.sin()], -1) * 1.5)
    assert rotary(torch.tensor([], dtype=torch.long), rope, torch.float32)[0].shape == (0, 1, 16)


def test_tables_kept_while_decoding_serve_training() -> None:
    rope, positions = table(), torch.arange(4)
    with torch.inference_mode():
        rotary(positions, rope, torch.float32)
    x = torch.randn(4, 2, 16, requires_grad=True)
    rotate(x, *rotary(positions, rope, torch.float32)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("bias", [None, torch.randn(12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_without_kernels(
    monkeypatch: pytest.MonkeyPatch, bias: torch.Tensor | None, dtype: torch.dtype
) -> None:
    weight, x, residual = torch.randn(12, 8), torch.randn(5, 8), torch.randn(5, 12)
    bias = None if bias is None else bias.to(dtype)
    with torch.inference_mode():
        ours = PackedLinear(weight.to(dtype), bias)(x.to(dtype), residual.to(dtype))
        monkeypatch.setattr(ops, "kernels", lambda: None)
        other = PackedLinear(weight.to(dtype), bias)
        assert other.packed is None
        torch.testing.assert_close(other(x.to(dtype), residual.to(dtype)), ours)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gates_without_kernels(monkeypatch: pytest.MonkeyPatch, activation: str) -> None:
    gate_up = torch.randn(3, 40)
    with torch.inference_mode():
        ours = gated(gate_up, activation)
        monkeypatch.setattr(ops, "kernels", lambda: None)
        torch.testing.assert_close(gated(gate_up, activation), ours)
