"""The public block_diagonal_scan: what it reduces to, gradients, torch.compile, opcheck, bad input, empty input."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import griffin_kernels
import griffin_kernels.functional  # registers torch.ops.griffin_kernels
from griffin_kernels import catalog, errors, verify
from griffin_kernels.ops.block_diagonal_scan.cost import make_case

OP = catalog.op("block_diagonal_scan")
BACKWARD = catalog.op("block_diagonal_scan_bwd")
CPU = torch.device("cpu")
CALLS = list(OP.cases_tagged("smoke", "edge"))

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

COMMON = settings(max_examples=20, deadline=None)
SIZES = {
    "batch": st.integers(1, 3),
    "time": st.integers(2, 50),
    "blocks": st.integers(1, 9),
    "size": st.sampled_from([1, 2, 3, 4, 8, 16]),
    "seed": st.integers(0, 2**31),
}


def call(inputs):
    x, a, *_ = inputs.values()
    return griffin_kernels.block_diagonal_scan(x, a, **{k: v for k, v in inputs.items() if k not in ("x", "a")})


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


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_backward_reference_is_autograd_of_the_forward_reference(case):
    inputs = verify.to_float64(OP.make_inputs(case, CPU, 0))
    want_for = leaves(inputs)
    h, h_last = OP.reference(OP.call(**inputs))
    dh, dh_last = torch.randn_like(h), torch.randn_like(h_last)
    want = torch.autograd.grad([h, h_last], want_for, [dh, dh_last])
    rest = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items() if k != "x"}
    got = BACKWARD.reference(BACKWARD.call(dh=dh, dh_last=dh_last, h=h.detach(), **rest))
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_gradients_match_float64_autograd(case):
    inputs = OP.make_inputs(case, CPU, 0)
    exact = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in verify.to_float64(inputs).items()}
    leaves(inputs)
    h, h_last = call(inputs)
    dh, dh_last = torch.randn_like(h), torch.randn_like(h_last)
    got = torch.autograd.grad([h, h_last], leaves(inputs), [dh, dh_last])
    wanted = leaves(exact)
    h64, last64 = OP.reference(OP.call(**exact))
    want = torch.autograd.grad([h64, last64], wanted, [dh.double(), dh_last.double()])
    tolerance = BACKWARD.tolerance(case)
    # da multiplies by h as returned, which is rounded to the data's dtype: one more rounding than the contract of
    # the backward op, whose reference is given the rounded h
    extra = torch.finfo(case.torch_dtype).eps
    for name, mine, theirs in zip(("x", "a", "h0"), got, want, strict=False):
        error = verify.error_of(name, mine, theirs)
        assert error.rel_norm <= tolerance.rel_norm + extra, error
        assert error.worst <= tolerance.worst + 2 * extra, error


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("flags", [(), ("reset",), ("packed", "reverse")])
def test_gradcheck(size, flags):
    case = make_case(1, 7, 2, size, "float64", flags=flags, rows=2 if "packed" in flags else None, data=("h0",))
    inputs = OP.make_inputs(case, CPU, 0)
    assert torch.autograd.gradcheck(lambda *_: call(inputs), tuple(leaves(inputs)))


def test_gradient_from_h_last_alone_and_h0_of_data_dtype():
    x = torch.randn(2, 7, 4, dtype=torch.bfloat16)
    h0 = torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    a = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.bfloat16).expand(2, 7, 2, 2, 2)
    griffin_kernels.block_diagonal_scan(x, a, h0=h0)[1][:, 0].sum().backward()
    assert h0.grad.dtype == torch.bfloat16
    want = torch.zeros_like(h0)
    want[:, 1] = 0.5**7  # seven exchanges of the two entries
    torch.testing.assert_close(h0.grad, want)


@pytest.mark.parametrize("case", CALLS[::3], ids=lambda case: case.key)
def test_opcheck(case):
    inputs = OP.make_inputs(case, CPU, 0)
    leaves(inputs)
    opcheck(torch.ops.griffin_kernels.block_diagonal_scan.default, OP.call(**inputs))


@pytest.mark.parametrize("case", CALLS[::4], ids=lambda case: case.key)
def test_opcheck_of_the_backward(case):
    inputs = BACKWARD.make_inputs(case, CPU, 0)
    opcheck(torch.ops.griffin_kernels.block_diagonal_scan_bwd.default, BACKWARD.call(**inputs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_compiles_fullgraph_forward_and_backward(dynamic, size):
    def model(x, a, h0):
        h, h_last = griffin_kernels.block_diagonal_scan(x.tanh(), a / (1 + size), h0=h0)
        return h.square().sum() + h_last.sum()

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for time in (5, 12):
        given = [torch.randn(2, time, 3 * size), torch.rand(2, time, 3, size, size), torch.randn(2, 3 * size)]
        grads = []
        for run in (model, compiled):
            args = [t.clone().requires_grad_() for t in given]
            run(*args).backward()
            grads.append([t.grad for t in args])
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_functorch_gradient():
    x, a = torch.randn(2, 5, 4), torch.rand(2, 5, 2, 2, 2) / 2
    gradient = torch.func.grad(lambda m: griffin_kernels.block_diagonal_scan(x, m)[0].sum())(a)
    leaf = a.clone().requires_grad_()
    griffin_kernels.block_diagonal_scan(x, leaf)[0].sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_meta_tensors_give_shapes():
    x = torch.empty(2, 5, 6, device="meta", dtype=torch.bfloat16)
    a = torch.empty(2, 5, 3, 2, 2, device="meta", dtype=torch.bfloat16)
    h, h_last = torch.ops.griffin_kernels.block_diagonal_scan(x, a, None, None, None, False)
    assert (h.shape, h.dtype, h_last.shape, h_last.dtype) == (x.shape, x.dtype, (2, 6), torch.float32)


def test_nan_stays_in_its_block():
    x, a = torch.randn(1, 6, 8), torch.rand(1, 6, 2, 4, 4) / 4
    a[0, 2, 1, 0, 3] = float("nan")
    h, h_last = griffin_kernels.block_diagonal_scan(x, a)
    assert not h[..., :4].isnan().any()
    assert h[0, 2, 4:].isnan().tolist() == [True, False, False, False]
    assert h[0, 3:, 4:].isnan().all()
    assert h_last[0].isnan().tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5), (0, 0)])
def test_empty_input_gives_empty_output_and_the_state_back(batch, time, size):
    x = torch.randn(batch, time, 4, requires_grad=True)
    a = torch.randn(batch, time, 4 // size, size, size, requires_grad=True)
    h0 = torch.randn(batch, 4)
    h, h_last = griffin_kernels.block_diagonal_scan(x, a, h0=h0)
    assert h.shape == (batch, time, 4)
    torch.testing.assert_close(h_last, h0)
    h.sum().backward()
    assert x.grad.shape == x.shape
    assert a.grad.shape == a.shape


X = torch.randn(2, 5, 6)
A = torch.randn(2, 5, 3, 2, 2)
BAD = {
    "blocks that do not make up D": ((X, A[:, :, :2]), {}, errors.ShapeError, "a has 2 blocks of 2 .*but D is 6"),
    "blocks of one, too few": ((X, A[..., :1, :1]), {}, errors.ShapeError, "a has 3 blocks of 1 .*but D is 6"),
    "a not square": ((X, A[..., :1]), {}, errors.ShapeError, r"a has shape \[2, 5, 3, 2, 1\], expected \[B=2, T=5, H"),
    "a without blocks": ((X, A[:, :, 0]), {}, errors.ShapeError, r"a has shape \[2, 5, 2, 2\], expected \[B=2, T=5"),
    "a of another length": ((X, A[:, :4]), {}, errors.ShapeError, r"a has shape \[2, 4, 3, 2, 2\]"),
    "x of two dims": ((X[0], A), {}, errors.ShapeError, r"x has shape \[5, 6\], expected \[B, T, D\]"),
    "integers": ((X.int(), A.int()), {}, errors.DtypeError, "x is int32, expected one of float32"),
    "mixed dtypes": ((X, A.bfloat16()), {}, errors.DtypeError, "a is bfloat16, expected float32"),
    "h0 of half": ((X, A), {"h0": X[:, 0].half()}, errors.DtypeError, "h0 is float16, expected float32"),
    "h0 of another batch": ((X, A), {"h0": X[:1, 0]}, errors.ShapeError, r"h0 has shape \[1, 6\], expected \[N=2"),
    "reset of floats": ((X, A), {"reset": X[..., 0]}, errors.DtypeError, "reset is float32, expected bool"),
    "another device": ((X, A.to("meta")), {}, errors.DeviceMismatchError, "a is on meta, the first argument on cpu"),
    "a number": ((X, 0.9), {}, errors.ArgumentError, "a is a float, expected a tensor"),
    "no x": ((None, A), {}, errors.ArgumentError, "x is None, expected a tensor"),
    "offsets with a batch": (
        (X, A), {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)}, errors.ShapeError, "batch 1, x has batch 2"
    ),
    "offsets of int64": (
        (X[:1], A[:1]), {"cu_seqlens": torch.tensor([0, 5])}, errors.DtypeError, "cu_seqlens is int64, expected int32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_argument_is_named(what):
    args, options, error, message = BAD[what]
    with pytest.raises(error, match=message):
        griffin_kernels.block_diagonal_scan(*args, **options)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([1, 5], "from 0 to T=5"), ([0, 4], "from 0 to T=5"), ([0, 4, 2, 5], "must not decrease"), ([0], "N\\+1 >= 2")],
)
def test_bad_offsets_are_named_on_every_call(offsets, message):
    good = torch.linspace(0, 5, max(2, len(offsets))).int()
    griffin_kernels.block_diagonal_scan(X[:1], A[:1], cu_seqlens=good)
    with pytest.raises(errors.ArgumentError, match=message):
        griffin_kernels.block_diagonal_scan(X[:1], A[:1], cu_seqlens=torch.tensor(offsets, dtype=torch.int32))
