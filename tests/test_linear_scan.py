"""The public linear_scan: gradients, torch.compile, opcheck, bad input, empty input."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import griffin_kernels
import griffin_kernels.functional  # registers torch.ops.griffin_kernels
from griffin_kernels import catalog, errors, verify
from griffin_kernels.ops.linear_scan.cost import make_case

OP = catalog.op("linear_scan")
BACKWARD = catalog.op("linear_scan_bwd")
CPU = torch.device("cpu")
CALLS = [case for case in OP.cases_tagged("smoke", "edge")]
# random gradients leave the floats on their way through wild gates; linear_scan_bwd's wild cases bring some that stay
TAME = [case for case in CALLS if "wild" not in case.data]

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call(inputs):
    x, a, *_ = inputs.values()
    return griffin_kernels.linear_scan(x, a, **{k: v for k, v in inputs.items() if k not in ("x", "a")})


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in ("x", "a", "h0") if inputs[name] is not None]


@pytest.mark.parametrize("case", TAME, ids=lambda case: case.key)
def test_backward_reference_is_autograd_of_the_forward_reference(case):
    inputs = verify.to_float64(OP.make_inputs(case, CPU, 0))
    want_for = [inputs[name].requires_grad_() for name in ("x", "a", "h0") if inputs[name] is not None]
    h, h_last = OP.reference(OP.call(**inputs))
    dh, dh_last = torch.randn_like(h), torch.randn_like(h_last)
    want = torch.autograd.grad([h, h_last], want_for, [dh, dh_last])
    rest = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items() if k != "x"}
    got = BACKWARD.reference(BACKWARD.call(dh=dh, dh_last=dh_last, h=h.detach(), **rest))
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", TAME, ids=lambda case: case.key)
def test_gradients_match_float64_autograd(case):
    inputs = OP.make_inputs(case, CPU, 0)
    exact = verify.to_float64(inputs)
    exact = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in exact.items()}
    h, h_last = call(inputs | dict(zip(("x", "a"), leaves(inputs), strict=False)))
    dh, dh_last = torch.randn_like(h), torch.randn_like(h_last)
    got = torch.autograd.grad([h, h_last], leaves(inputs), [dh, dh_last])
    wanted = [exact[name].requires_grad_() for name in ("x", "a", "h0") if exact[name] is not None]
    h64, last64 = OP.reference(OP.call(**exact))
    want = torch.autograd.grad([h64, last64], wanted, [dh.double(), dh_last.double()])
    tolerance = BACKWARD.tolerance(case)
    # da multiplies by h as returned, which is rounded to the data's dtype: one more rounding than the contract of
    # linear_scan_bwd, whose reference is given the rounded h
    extra = torch.finfo(case.torch_dtype).eps
    for name, mine, theirs in zip(("x", "a", "h0"), got, want, strict=False):
        error = verify.error_of(name, mine, theirs)
        assert error.rel_norm <= tolerance.rel_norm + extra, error
        assert error.worst <= tolerance.worst + 2 * extra, error


@pytest.mark.parametrize("name", ["x", "a", "h0"])
def test_gradient_of_one_argument_alone(name):
    inputs = OP.make_inputs(make_case(2, 9, 4, "float64", data=("h0",)), CPU, 0)
    inputs[name].requires_grad_()
    assert torch.autograd.gradcheck(lambda _: call(inputs), (inputs[name],))


def test_gradient_from_h_last_alone_and_h0_of_data_dtype():
    x = torch.randn(2, 7, 3, dtype=torch.bfloat16)
    h0 = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    a = torch.full_like(x, 0.5)
    griffin_kernels.linear_scan(x, a, h0=h0)[1].sum().backward()
    assert h0.grad.dtype == torch.bfloat16
    torch.testing.assert_close(h0.grad, torch.full_like(h0, 0.5**7))


@pytest.mark.parametrize("case", TAME, ids=lambda case: case.key)
def test_opcheck(case):
    inputs = OP.make_inputs(case, CPU, 0)
    leaves(inputs)
    opcheck(torch.ops.griffin_kernels.linear_scan.default, OP.call(**inputs))


@pytest.mark.parametrize("case", CALLS[::4], ids=lambda case: case.key)
def test_opcheck_of_the_backward(case):
    opcheck(torch.ops.griffin_kernels.linear_scan_bwd.default, BACKWARD.call(**BACKWARD.make_inputs(case, CPU, 0)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_fullgraph_forward_and_backward(dynamic):
    def model(x, a, h0):
        h, h_last = griffin_kernels.linear_scan(x.tanh(), a.sigmoid(), h0=h0)
        return h.square().sum() + h_last.sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for time in (5, 12):
        given = [torch.randn(2, time, 6), torch.randn(2, time, 6), torch.randn(2, 6)]
        grads = []
        for run in (model, compiled):
            args = [t.clone().requires_grad_() for t in given]
            run(*args).backward()
            grads.append([t.grad for t in args])
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_functorch_gradient():
    x, a = torch.randn(2, 5, 3), torch.rand(2, 5, 3)
    gradient = torch.func.grad(lambda u: griffin_kernels.linear_scan(u, a)[0].sum())(x)
    leaf = x.clone().requires_grad_()
    griffin_kernels.linear_scan(leaf, a)[0].sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_meta_tensors_give_shapes():
    x = torch.empty(2, 5, 3, device="meta", dtype=torch.bfloat16)
    h, h_last = torch.ops.griffin_kernels.linear_scan(x, x, None, None, None, False)
    assert (h.shape, h.dtype, h_last.shape, h_last.dtype) == (x.shape, x.dtype, (2, 3), torch.float32)


def test_nan_in_a_propagates_and_stays_in_its_channel():
    x, a = torch.randn(1, 6, 4), torch.rand(1, 6, 4)
    a[0, 2, 1] = float("nan")
    h, h_last = griffin_kernels.linear_scan(x, a)
    assert h[0, 2:, 1].isnan().all()
    assert h_last[0, 1].isnan()
    assert h.isnan().sum() == 4


@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5), (0, 0)])
def test_empty_input_gives_empty_output_and_the_state_back(batch, time):
    x = torch.randn(batch, time, 3, requires_grad=True)
    h0 = torch.randn(batch, 3)
    h, h_last = griffin_kernels.linear_scan(x, x, h0=h0)
    assert h.shape == (batch, time, 3)
    torch.testing.assert_close(h_last, h0)
    assert h_last.data_ptr() != h0.data_ptr() or batch == 0
    h.sum().backward()
    assert x.grad.shape == x.shape


X = torch.randn(2, 5, 3)
BAD = {
    "a of another shape": ((X, X[:, :4]), {}, errors.ShapeError, r"a has shape \[2, 4, 3\], expected \[B=2, T=5"),
    "x of two dims": ((X[0], X), {}, errors.ShapeError, r"x has shape \[5, 3\], expected \[B, T, D\]"),
    "integers": ((X.int(), X.int()), {}, errors.DtypeError, "x is int32, expected one of float32"),
    "mixed dtypes": ((X, X.bfloat16()), {}, errors.DtypeError, "a is bfloat16, expected float32"),
    "h0 of half": ((X, X), {"h0": X[:, 0].half()}, errors.DtypeError, "h0 is float16, expected float32"),
    "h0 of another batch": ((X, X), {"h0": X[:1, 0]}, errors.ShapeError, r"h0 has shape \[1, 3\], expected \[N=2"),
    "reset of floats": ((X, X), {"reset": X[..., 0]}, errors.DtypeError, "reset is float32, expected bool"),
    "reset of another length": (
        (X, X), {"reset": torch.ones(2, 4, dtype=torch.bool)}, errors.ShapeError, r"reset has shape \[2, 4\]"
    ),
    "another device": ((X, X.to("meta")), {}, errors.DeviceMismatchError, "a is on meta, the first argument on cpu"),
    "a number": ((X, 0.9), {}, errors.ArgumentError, "a is a float, expected a tensor"),
    "offsets with a batch": (
        (X, X), {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)}, errors.ShapeError, "batch 1, x has batch 2"
    ),
    "offsets of int64": (
        (X[:1], X[:1]), {"cu_seqlens": torch.tensor([0, 5])}, errors.DtypeError, "cu_seqlens is int64, expected int32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_argument_is_named(what):
    args, options, error, message = BAD[what]
    with pytest.raises(error, match=message):
        griffin_kernels.linear_scan(*args, **options)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([1, 5], "from 0 to T=5"), ([0, 4], "from 0 to T=5"), ([0, 4, 2, 5], "must not decrease"), ([0], "N\\+1 >= 2")],
)
def test_bad_offsets_are_named_on_every_call(offsets, message):
    x = X[:1]
    good = torch.linspace(0, 5, max(2, len(offsets))).int()
    griffin_kernels.linear_scan(x, x, cu_seqlens=good)
    with pytest.raises(errors.ArgumentError, match=message):
        griffin_kernels.linear_scan(x, x, cu_seqlens=torch.tensor(offsets, dtype=torch.int32))
