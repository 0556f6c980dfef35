"""Each kernel against plain PyTorch in float64, and each row's numbers whatever is beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dspark import native
from near import BFLOAT16, FLOAT32, TYPES, near

pytestmark = pytest.mark.usefixtures("level")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def packed(weight: Tensor) -> native.Packed:
    found = native.pack(weight)
    assert found is not None
    return found


@TYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (16, 64), (17, 30), (130, 96), (256, 576)])
@pytest.mark.parametrize("extras", ["plain", "bias", "residual", "both"])
def test_products(dtype: torch.dtype, outputs: int, inputs: int, extras: str) -> None:
    weight = torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if extras in ("bias", "both") else None
    product = packed(weight)
    for rows in (1, 2, 5, 6, 7, 8, 9, 12, 13, 25):
        x = torch.randn(rows, inputs).to(dtype)
        residual = torch.randn(rows, outputs).to(dtype) if extras in ("residual", "both") else None
        exact = x.double() @ weight.double().T
        exact = exact if bias is None else exact + bias.double()
        exact = exact if residual is None else exact + residual.double()
        near(native.linear(x, product, bias, residual), exact, math.sqrt(inputs))


@TYPES
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype: torch.dtype, threads: int) -> None:
    product = packed(torch.randn(530, 288).to(dtype))
    x = torch.randn(40, 288).to(dtype)
    alone = torch.cat([native.linear(row[None], product) for row in x])
    torch.set_num_threads(threads)
    for rows in range(2, 41):
        assert torch.equal(native.linear(x[:rows], product), alone[:rows])


@TYPES
def test_rows_do_not_depend_on_others_however_small_or_unlike_their_numbers(
    dtype: torch.dtype,
) -> None:
    """Tiles take what is not normal for zero, and round in an order of their own."""
    for powers in ((-126, -40), (-70, -50), (-30, 30)):
        weight, x = (
            torch.randn(rows, 576) * 2.0 ** torch.randint(*powers, (rows, 576)) for rows in (70, 19)
        )
        product, x = packed(weight.to(dtype)), x.to(dtype)
        together = native.linear(x, product)
        for rows in (1, 2, 3, 7, 16, 17):
            assert torch.equal(native.linear(x[:rows], product), together[:rows]), (powers, rows)


@TYPES
def test_many_rows(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(84, 320).to(dtype), torch.randn(84).to(dtype)
    product = packed(weight)
    for rows in (31, 32, 33, 48, 64, 100, 257):
        x, residual = torch.randn(rows, 320).to(dtype), torch.randn(rows, 84).to(dtype)
        exact = x.double() @ weight.double().T + bias.double() + residual.double()
        near(native.linear(x, product, bias, residual), exact, math.sqrt(320))


@pytest.mark.parametrize("is_bf16", [0, 1])
def test_arithmetic_on_registers_is_counted(is_bf16: int) -> None:
    work = native.kernels().peak
    assert work(is_bf16, 64) == 2 * work(is_bf16, 32) > 0


def test_products_of_pytorch_in_between_change_nothing() -> None:
    """It may use the same registers for tiles, in other shapes."""
    weight, x = (torch.randn(rows, 192).to(BFLOAT16) for rows in (64, 21))
    product, expected = packed(weight), (x.double() @ weight.double().T)
    other, other_x = (torch.randn(rows, 512).to(BFLOAT16) for rows in (256, 40))
    other_expected = other_x.double() @ other.double().T
    for _ in range(3):
        near(native.linear(x, product), expected, math.sqrt(192))
        near(F.linear(other_x, other), other_expected, math.sqrt(512))


@TYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (17, 32), (130, 96), (5, 576)])
def test_products_of_eight_bits_are_exact(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    """Sums of whole numbers: what rounding to bytes loses is all that is lost."""
    weight = torch.randn(outputs, inputs).to(dtype)
    weight[0] = 0
    product = native.pack(weight, eight_bits=True)
    assert product is not None
    whole, scale = rounded(weight)
    for rows in (1, 3, 6, 7, 9, 20):
        x = torch.randn(rows, inputs).to(dtype) * 3
        x[rows // 2] = 0
        mine, mine_scale = rounded(x)
        exact = (mine @ whole.T) * mine_scale * scale.T
        near(native.linear(x, product), exact, scale=0.1)
        bias, residual = torch.randn(outputs).to(dtype), torch.randn(rows, outputs).to(dtype)
        both = exact + bias.double() + residual.double()
        near(native.linear(x, product, bias, residual), both, scale=0.1)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers within 127, and the factor of each row."""
    top = x.float().abs().amax(-1, keepdim=True)
    most = torch.full_like(top, 127.0)  # a number over a tensor would go by its reciprocal
    factor = torch.where(top > 0, most / top, torch.zeros(()))
    return (x.float() * factor).round().double(), (top / 127).double()


@TYPES
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_eight_bits_does_not_depend_on_the_others(
    dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    product = native.pack(torch.randn(320, 128).to(dtype), eight_bits=True)
    assert product is not None
    x = torch.randn(40, 128).to(dtype)
    alone = torch.cat([native.linear(row[None], product) for row in x])
    for rows in (2, 5, 7, 40):
        assert torch.equal(native.linear(x[:rows], product), alone[:rows])


def test_eight_bits_give_the_same_numbers_at_every_level() -> None:
    x, weight = torch.randn(7, 96), torch.randn(40, 96)
    product, found = native.pack(weight, eight_bits=True), []
    assert product is not None
    for name in native.usable()[1:]:
        native.use(name)
        found.append(native.linear(x, product))
    assert all(torch.equal(found[0], other) for other in found)


def test_products_of_more_dimensions_and_odd_strides() -> None:
    weight = torch.randn(20, 32)
    x = torch.randn(32, 3, 5).permute(1, 2, 0)
    near(native.linear(x, packed(weight)), x.double() @ weight.double().T, 6.0)


def test_what_the_kernels_do_not_serve() -> None:
    assert native.pack(torch.randn(4, 3)) is None  # pairs of bfloat16 need an even width
    assert native.pack(torch.randn(4, 8).half()) is None
    assert not native.serves(torch.zeros(1, dtype=torch.float16))
    with torch.inference_mode(False):
        assert not native.serves(torch.zeros(1))  # gradients may be wanted


@TYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_in_norm_and_gate(dtype: torch.dtype, bad: float) -> None:
    """The engine ends a request whose logits are not finite; nothing on the way may hide it."""
    gate_up = torch.tensor([[bad, 1.0, 1.0, 1.0]], dtype=dtype)
    assert not torch.isfinite(native.gate(gate_up, True)[0, 0])
    assert not torch.isfinite(native.rms_norm(gate_up, torch.ones(4, dtype=dtype), 1e-5)).all()


@TYPES
@pytest.mark.parametrize("size", [5, 16, 64, 100, 576])
def test_norm(dtype: torch.dtype, size: int) -> None:
    x, weight = (3 * torch.randn(7, 3, size)).to(dtype), torch.randn(size).to(dtype)
    exact = F.rms_norm(x.double(), (size,), weight.double(), 1e-5)
    near(native.rms_norm(x, weight, 1e-5), exact, 4.0)


@TYPES
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "gelu"])
@pytest.mark.parametrize("size", [3, 16, 100])
def test_gate(dtype: torch.dtype, silu: bool, size: int) -> None:
    gate_up = (6 * torch.randn(5, 2 * size)).to(dtype)
    gate_up[0, 0], gate_up[1, 0] = 100.0, -100.0
    gate, up = gate_up.double().chunk(2, -1)
    exact = (F.silu(gate) if silu else F.gelu(gate, approximate="tanh")) * up
    near(native.gate(gate_up, silu), exact, 40.0)


@TYPES
@pytest.mark.parametrize("size", [8, 16, 64, 80])
def test_rotation(dtype: torch.dtype, size: int) -> None:
    x = torch.randn(6, 7, size).to(dtype)[:, 2:5]
    cos, sin = (torch.randn(6, 1, size).to(dtype) for _ in range(2))
    exact = x.double() * cos.double() + x.double().roll(size // 2, -1) * sin.double()
    near(native.rotate(x, cos, sin), exact, 2.0)


@settings(max_examples=60)
@given(
    values=st.lists(st.sampled_from([-3.0, 0.0, 0.5, 2.0, float("-inf")]), min_size=1, max_size=70),
    bad=st.sampled_from([None, float("nan"), float("inf")]),
    place=st.integers(0, 69),
    dtype=st.sampled_from([FLOAT32, BFLOAT16]),
)
def test_first_largest(
    values: list[float], bad: float | None, place: int, dtype: torch.dtype
) -> None:
    if bad is not None:
        values[place % len(values)] = bad
    with torch.inference_mode():
        found = native.argmax(torch.tensor([values, values], dtype=dtype)).tolist()
    top = max(values)
    expected = -1 if bad is not None or math.isinf(top) else values.index(top)
    assert found == [expected, expected]


@TYPES
def test_first_largest_of_sums_and_strided_rows(dtype: torch.dtype) -> None:
    x, bias = torch.randn(5, 3, 99).to(dtype), torch.randn(2, 99).to(dtype)
    bias_NV = bias[torch.tensor([1, 0, 0, 1, 0])]
    for rows in (x[:, 1], x.transpose(1, 2)[..., 2]):
        exact = (rows.float() + bias_NV.float()).argmax(-1)
        assert torch.equal(native.argmax(rows, bias_NV), exact)
        assert torch.equal(native.argmax(rows), rows.float().argmax(-1))


def test_time_is_counted_by_kind() -> None:
    native.spent()
    native.rms_norm(torch.randn(4, 64), torch.ones(64), 1e-5)
    seconds = native.spent()
    assert seconds["norms"] > 0
    assert seconds["attention"] == 0
    assert not any(native.spent().values())
