"""Attention against plain PyTorch in float64, and each row's numbers whatever is beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dspark import native
from near import FLOAT32, TYPES, near

pytestmark = pytest.mark.usefixtures("level")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def attended(
    q_THP: Tensor, keys: Tensor, values: Tensor, spans: list[tuple[int, int, int]], scale: float
) -> Tensor:
    """Plain attention in float64; spans are (slot, first, stop) of each row."""
    rows = []
    groups = q_THP.shape[1] // keys.shape[1]
    for q_HP, (slot, first, stop) in zip(q_THP.double(), spans, strict=True):
        k = keys[slot, :, first:stop].double().repeat_interleave(groups, 0)
        v = values[slot, :, first:stop].double().repeat_interleave(groups, 0)
        weights = torch.softmax((k @ q_HP[..., None])[..., 0] * scale, -1)
        rows.append((weights[:, None] @ v)[:, 0].flatten())
    return torch.stack(rows)


class Stage:
    """Rows of several requests over a cache with a past, and ways to attend to it."""

    def __init__(
        self,
        dtype: torch.dtype,
        heads: int,
        kv_heads: int,
        size: int,
        requests: Sequence[tuple[int, int, int]] = ((2, 70, 1), (0, 0, 9), (1, 31, 4)),
        max_len: int = 90,
    ) -> None:
        self.slots, self.max_len = 3, max_len
        self.kv_heads, self.size = kv_heads, size
        shape = (self.slots, kv_heads, self.max_len, size)
        self.past = [torch.randn(shape).to(dtype) for _ in range(2)]
        # Of each request slot, first new position and new rows.
        places = [(slot, first + i) for slot, first, count in requests for i in range(count)]
        self.slots_T, self.positions_T = torch.tensor(places).T.contiguous()
        count = len(places)
        # As a fused projection leaves them: heads of queries, keys and values in one row.
        qkv = torch.randn(count, heads + 2 * kv_heads, size).to(dtype)
        self.q, self.k, self.v = qkv.split([heads, kv_heads, kv_heads], 1)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the cache as they are once the new rows are in it."""
        keys, values = (x.clone() for x in self.past)
        for i, (slot, position) in enumerate(zip(self.slots_T, self.positions_T, strict=True)):
            keys[slot, :, position], values[slot, :, position] = self.k[i], self.v[i]
        return keys, values

    def run(self, firsts_T: Tensor, stops_T: Tensor, rows: slice = slice(None)) -> Tensor:
        self.keys, self.values = (x.clone() for x in self.past)
        return native.attend(
            self.q[rows],
            self.k[rows],
            self.v[rows],
            self.keys.view(-1, self.size),
            self.values.view(-1, self.size),
            self.slots_T[rows],
            self.positions_T[rows],
            (firsts_T[rows], stops_T[rows]),
            self.max_len,
            self.size**-0.5,
        )


@TYPES
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (8, 1), (5, 1), (4, 2)])
@pytest.mark.parametrize("size", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("window", [None, 7])
def test_attention(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    stage = Stage(dtype, heads, kv_heads, size)
    stops_T = stage.positions_T + 1
    firsts_T = torch.zeros_like(stops_T) if window is None else (stops_T - window).clamp_min(0)
    result = stage.run(firsts_T, stops_T)
    keys, values = stage.whole()
    assert torch.equal(stage.keys, keys)
    assert torch.equal(stage.values, values)
    spans = torch.stack([stage.slots_T, firsts_T, stops_T], 1).tolist()
    near(result, attended(stage.q, keys, values, spans, size**-0.5), 4.0)


@TYPES
def test_a_row_of_attention_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    stage = Stage(dtype, 9, 3, 64)
    stops_T = stage.positions_T + 1
    firsts_T = torch.zeros_like(stops_T)
    together = stage.run(firsts_T, stops_T)
    assert torch.equal(stage.run(firsts_T, stops_T, slice(0, 1)), together[:1])
    assert torch.equal(stage.run(firsts_T, stops_T, slice(1, 10)), together[1:10])
    torch.set_num_threads(2)
    assert torch.equal(stage.run(firsts_T, stops_T), together)


def test_very_unlike_scores_stay_finite() -> None:
    stage = Stage(FLOAT32, 4, 2, 16)
    stage.q = stage.q * 1e4
    stops_T = stage.positions_T + 1
    result = stage.run(torch.zeros_like(stops_T), stops_T)
    assert torch.isfinite(result).all()


@TYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_vanish(dtype: torch.dtype, bad: float) -> None:
    """The engine ends a request whose logits are not finite; nothing on the way may hide it."""
    stage = Stage(dtype, 4, 2, 32)
    stage.k[1, 0, 3] = bad  # a key of the request with nine new rows
    stops_T = stage.positions_T + 1
    result = stage.run(torch.zeros_like(stops_T), stops_T)
    assert result[1:10, :64].isnan().any(1).all() if bad != bad else result[1:10].isnan().any()
    assert torch.isfinite(result[[0, 10, 11, 12, 13]]).all()


@pytest.mark.parametrize("wrong", ["position", "slot", "negative", "empty span", "past the end"])
def test_rows_outside_of_the_cache_touch_nothing(wrong: str) -> None:
    stage = Stage(FLOAT32, 4, 2, 16)
    stops_T = stage.positions_T + 1
    firsts_T = torch.zeros_like(stops_T)
    if wrong == "position":
        stage.positions_T[3] = stage.max_len
    elif wrong == "slot":
        stage.slots_T[3] = stage.slots
    elif wrong == "negative":
        stage.positions_T[0] = -1
    elif wrong == "empty span":
        firsts_T[2] = stops_T[2]
    else:
        stops_T[0] = stage.max_len + 1
    with pytest.raises(AssertionError, match="outside"):
        stage.run(firsts_T, stops_T)
    assert torch.equal(stage.keys, stage.past[0])


LONG = ((2, 700, 7), (0, 120, 21), (1, 255, 3))  # over one and over many chunks of positions


@TYPES
@pytest.mark.parametrize("window", [None, 7, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (40, 1)])
def test_long_texts(dtype: torch.dtype, window: int | None, heads: int, kv_heads: int) -> None:
    stage = Stage(dtype, heads, kv_heads, 64, LONG, 720)
    stops_T = stage.positions_T + 1
    firsts_T = torch.zeros_like(stops_T) if window is None else (stops_T - window).clamp_min(0)
    result = stage.run(firsts_T, stops_T)
    spans = torch.stack([stage.slots_T, firsts_T, stops_T], 1).tolist()
    near(result, attended(stage.q, *stage.whole(), spans, stage.size**-0.5), 4.0)


@TYPES
@pytest.mark.parametrize("window", [None, 3, 13, 29, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (6, 3), (8, 1)])
def test_rows_of_long_texts_do_not_depend_on_the_others(
    dtype: torch.dtype, heads: int, kv_heads: int, window: int | None
) -> None:
    """One row at a time, a request at a time, all at once, by one thread and by several."""
    stage = Stage(dtype, heads, kv_heads, 80, LONG, 720)
    stops_T = stage.positions_T + 1
    firsts_T = torch.zeros_like(stops_T) if window is None else (stops_T - window).clamp_min(0)
    together = stage.run(firsts_T, stops_T)
    keys, values = stage.keys.clone(), stage.values.clone()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(stage.run(firsts_T, stops_T), together)
        for rows in (slice(0, 7), slice(7, 28), slice(28, 31), slice(9, 12)):
            stage.past = [keys, values]
            assert torch.equal(stage.run(firsts_T, stops_T, rows), together[rows])
        for row in range(31):
            one = slice(row, row + 1)
            assert torch.equal(stage.run(firsts_T, stops_T, one), together[one])


@TYPES
def test_places_that_a_row_does_not_see_may_hold_anything(dtype: torch.dtype) -> None:
    """Memory that was never written, and keys and values of later rows of the same step."""
    stage = Stage(dtype, 9, 3, 64, LONG, 720)
    stops_T = stage.positions_T + 1
    firsts_T = (stops_T - 200).clamp_min(0)
    fine = stage.run(firsts_T, stops_T)
    for slot, first, count in LONG:
        for part in stage.past:
            part[slot, :, first + count :] = float("nan")
            part[slot, :, : max(first + 1 - 200, 0)] = float("inf")
    assert torch.equal(stage.run(firsts_T, stops_T), fine)
    stage.k[6], stage.v[6] = float("nan"), float("inf")  # last row of the first request
    stage.k[27], stage.v[27] = float("inf"), float("nan")  # and of the second
    broken = stage.run(firsts_T, stops_T)
    others = [row for row in range(31) if row not in (6, 27)]
    assert torch.equal(broken[others], fine[others])
    assert not torch.isfinite(broken[[6, 27]]).any()
