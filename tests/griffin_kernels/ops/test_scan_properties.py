"""Laws of the scan that hold for any kernel: joined, flipped, packed, reset and padded problems agree."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

SIZES = {
    "batch": st.integers(1, 3),
    "time": st.integers(2, 70),
    "width": st.integers(1, 40),
    "seed": st.integers(0, 2**31),
}
COMMON = settings(max_examples=25, deadline=None)


def problem(batch, time, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, width, generator=generator)
    a = torch.rand(batch, time, width, generator=generator) * 2 - 1
    return x, a, torch.randn(batch, width, generator=generator), generator


def same(mine, theirs):
    # both run in float32 on the same data in another order: a few roundings of values of order one
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


@COMMON
@given(**SIZES, cut=st.floats(0, 1))
def test_two_halves_joined_by_the_state_are_the_whole(batch, time, width, seed, cut):
    x, a, h0, _ = problem(batch, time, width, seed)
    at = 1 + int(cut * (time - 2))
    h, last = griffin_kernels.linear_scan(x, a, h0=h0)
    first, state = griffin_kernels.linear_scan(x[:, :at], a[:, :at], h0=h0)
    second, end = griffin_kernels.linear_scan(x[:, at:], a[:, at:], h0=state)
    same(torch.cat([first, second], dim=1), h)
    same(end, last)


@COMMON
@given(**SIZES)
def test_reverse_is_flip(batch, time, width, seed):
    x, a, h0, _ = problem(batch, time, width, seed)
    h, last = griffin_kernels.linear_scan(x, a, h0=h0, reverse=True)
    flipped, end = griffin_kernels.linear_scan(x.flip(1), a.flip(1), h0=h0)
    same(h, flipped.flip(1))
    same(last, end)


@COMMON
@given(**SIZES, reverse=st.booleans(), sequences=st.integers(1, 5))
def test_packed_is_separate(batch, time, width, seed, reverse, sequences):
    x, a, _, generator = problem(1, time, width, seed)
    h0 = torch.randn(sequences, width, generator=generator)
    cuts = torch.randint(0, time + 1, (sequences - 1,), generator=generator).sort().values.tolist()
    bounds = [0, *cuts, time]
    offsets = torch.tensor(bounds, dtype=torch.int32)
    h, last = griffin_kernels.linear_scan(x, a, h0=h0, cu_seqlens=offsets, reverse=reverse)
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        part, state = griffin_kernels.linear_scan(
            x[:, start:end], a[:, start:end], h0=h0[row : row + 1], reverse=reverse
        )
        same(h[:, start:end], part)
        same(last[row], state[0])


@COMMON
@given(**SIZES)
def test_reset_is_a_gate_of_zero(batch, time, width, seed):
    x, a, h0, generator = problem(batch, time, width, seed)
    reset = torch.rand(batch, time, generator=generator) < 0.3
    h, last = griffin_kernels.linear_scan(x, a, h0=h0, reset=reset)
    zeroed, end = griffin_kernels.linear_scan(x, a.masked_fill(reset[..., None], 0.0), h0=h0)
    same(h, zeroed)
    same(last, end)


def test_gradient_from_h_last_alone_and_h0_of_data_dtype():
    x = torch.randn(2, 7, 3, dtype=torch.bfloat16)
    h0 = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    a = torch.full_like(x, 0.5)
    griffin_kernels.linear_scan(x, a, h0=h0)[1].sum().backward()
    assert h0.grad.dtype == torch.bfloat16
    torch.testing.assert_close(h0.grad, torch.full_like(h0, 0.5**7))


def test_nan_in_a_propagates_and_stays_in_its_channel():
    x, a = torch.randn(1, 6, 4), torch.rand(1, 6, 4)
    a[0, 2, 1] = float("nan")
    h, h_last = griffin_kernels.linear_scan(x, a)
    assert h[0, 2:, 1].isnan().all()
    assert h_last[0, 1].isnan()
    assert h.isnan().sum() == 4
