"""The public block_diagonal_scan: what it reduces to, and its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog
from griffin_kernels.ops.block_diagonal_scan.cost import make_case
from tests.calls import public

OP = catalog.op("block_diagonal_scan")
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

COMMON = settings(max_examples=20, deadline=None)
SIZES = {
    "batch": st.integers(1, 3),
    "time": st.integers(2, 50),
    "blocks": st.integers(1, 9),
    "size": st.sampled_from([1, 2, 3, 4, 8, 16]),
    "seed": st.integers(0, 2**31),
}


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in ("x", "a", "h0") if inputs[name] is not None]


def problem(batch, time, blocks, size, seed):
    inputs = OP.make_inputs(make_case(batch, time, blocks, size, data=("h0",)), CPU, seed)
    return inputs["x"], inputs["a"], inputs["h0"], torch.Generator().manual_seed(seed)


def same(mine, theirs):
    # both run in float32 on the same data in another order: a few roundings of values of order ten
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-4)


@COMMON
@given(**SIZES, cut=st.floats(0, 1))
def test_two_halves_joined_by_the_state_are_the_whole(batch, time, blocks, size, seed, cut):
    x, a, h0, _ = problem(batch, time, blocks, size, seed)
    at = 1 + int(cut * (time - 2))
    h, last = griffin_kernels.block_diagonal_scan(x, a, h0=h0)
    first, state = griffin_kernels.block_diagonal_scan(x[:, :at], a[:, :at], h0=h0)
    second, end = griffin_kernels.block_diagonal_scan(x[:, at:], a[:, at:], h0=state)
    same(torch.cat([first, second], dim=1), h)
    same(end, last)


@COMMON
@given(**SIZES)
def test_reverse_is_flip(batch, time, blocks, size, seed):
    x, a, h0, _ = problem(batch, time, blocks, size, seed)
    h, last = griffin_kernels.block_diagonal_scan(x, a, h0=h0, reverse=True)
    flipped, end = griffin_kernels.block_diagonal_scan(x.flip(1), a.flip(1), h0=h0)
    same(h, flipped.flip(1))
    same(last, end)


@COMMON
@given(**SIZES, reverse=st.booleans(), sequences=st.integers(1, 5))
def test_packed_is_separate(batch, time, blocks, size, seed, reverse, sequences):
    x, a, _, generator = problem(1, time, blocks, size, seed)
    h0 = torch.randn(sequences, blocks * size, generator=generator)
    cuts = torch.randint(0, time + 1, (sequences - 1,), generator=generator).sort().values.tolist()
    bounds = [0, *cuts, time]
    offsets = torch.tensor(bounds, dtype=torch.int32)
    h, last = griffin_kernels.block_diagonal_scan(x, a, h0=h0, cu_seqlens=offsets, reverse=reverse)
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        part, state = griffin_kernels.block_diagonal_scan(
            x[:, start:end], a[:, start:end], h0=h0[row : row + 1], reverse=reverse
        )
        same(h[:, start:end], part)
        same(last[row], state[0])


@COMMON
@given(**SIZES)
def test_reset_where_sequences_start_is_packed(batch, time, blocks, size, seed):
    x, a, _, generator = problem(1, time, blocks, size, seed)
    cuts = torch.randperm(time - 1, generator=generator)[: batch - 1].sort().values + 1
    reset = torch.zeros(1, time, dtype=torch.bool)
    reset[0, cuts] = True
    h, last = griffin_kernels.block_diagonal_scan(x, a, reset=reset)
    offsets = torch.tensor([0, *cuts.tolist(), time], dtype=torch.int32)
    packed, ends = griffin_kernels.block_diagonal_scan(x, a, cu_seqlens=offsets)
    same(h, packed)
    same(last, ends[-1:])


@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_of_one_are_linear_scan_exactly_and_in_every_gradient(reverse):
    x, a, h0 = (torch.randn(2, 9, 5), torch.rand(2, 9, 5), torch.randn(2, 5))
    reset = torch.rand(2, 9) < 0.3
    results = []
    for scan in (
        griffin_kernels.linear_scan,
        lambda x, a, **rest: griffin_kernels.block_diagonal_scan(x, a[..., None, None], **rest),
    ):
        given = [t.clone().requires_grad_() for t in (x, a, h0)]
        h, last = scan(given[0], given[1], h0=given[2], reset=reset, reverse=reverse)
        (h.sum() + last.square().sum()).backward()
        results.append([h, last, *(t.grad for t in given)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_diagonal_matrices_are_linear_scan_per_channel(size):
    x, gates = torch.randn(2, 33, 4 * size), torch.rand(2, 33, 4 * size) * 2 - 1
    h, last = griffin_kernels.block_diagonal_scan(x, torch.diag_embed(gates.view(2, 33, 4, size)))
    want, end = griffin_kernels.linear_scan(x, gates)
    same(h, want)
    same(last, end)


def test_matrices_multiply_column_vectors():
    x = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    a = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).expand(1, 2, 1, 2, 2)
    h, _ = griffin_kernels.block_diagonal_scan(x, a)
    assert h[0, 1].tolist() == [2.0, 0.0]  # h_0 = a[0, 1] h_1


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("flags", [(), ("reset",), ("packed", "reverse")])
def test_gradcheck(size, flags):
    case = make_case(1, 7, 2, size, "float64", flags=flags, rows=2 if "packed" in flags else None, data=("h0",))
    inputs = OP.make_inputs(case, CPU, 0)
    assert torch.autograd.gradcheck(lambda *_: public("block_diagonal_scan", inputs), tuple(leaves(inputs)))


def test_gradient_from_h_last_alone_and_h0_of_data_dtype():
    x = torch.randn(2, 7, 4, dtype=torch.bfloat16)
    h0 = torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    a = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.bfloat16).expand(2, 7, 2, 2, 2)
    griffin_kernels.block_diagonal_scan(x, a, h0=h0)[1][:, 0].sum().backward()
    assert h0.grad.dtype == torch.bfloat16
    want = torch.zeros_like(h0)
    want[:, 1] = 0.5**7  # seven exchanges of the two entries
    torch.testing.assert_close(h0.grad, want)


def test_nan_stays_in_its_block():
    x, a = torch.randn(1, 6, 8), torch.rand(1, 6, 2, 4, 4) / 4
    a[0, 2, 1, 0, 3] = float("nan")
    h, h_last = griffin_kernels.block_diagonal_scan(x, a)
    assert not h[..., :4].isnan().any()
    assert h[0, 2, 4:].isnan().tolist() == [True, False, False, False]
    assert h[0, 3:, 4:].isnan().all()
    assert h_last[0].isnan().tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("lead", [(), (1, 1), (2, 1)])
def test_blocks_of_one_may_share_a_matrix_at_all_steps(lead):
    """In float32 beside bfloat16 data, as linear_scan takes gates; gradients have a's shape and dtype."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 9, 5, generator=generator).bfloat16()
    a = torch.rand(*lead, 5, 1, 1, generator=generator).requires_grad_()
    h, _ = griffin_kernels.block_diagonal_scan(x, a)
    gates = a.detach().reshape(*lead, 5).requires_grad_()
    want, _ = griffin_kernels.linear_scan(x, gates)
    assert torch.equal(h, want)
    mine, theirs = torch.autograd.grad(h.float().sum(), a)[0], torch.autograd.grad(want.float().sum(), gates)[0]
    assert mine.shape == a.shape and mine.dtype == torch.float32 and torch.equal(mine.reshape_as(theirs), theirs)
    wide = a.detach().double().reshape(*(lead or (1, 1)), 5).expand(2, 9, 5)
    state, error = torch.zeros(2, 5, dtype=torch.float64), h.double()
    for t in range(9):
        state = wide[:, t] * state + x[:, t].double()
        assert (error[:, t] - state).abs().max() <= 2.0**-8 * state.abs().max() + 1e-5
