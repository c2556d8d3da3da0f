"""The public complex_scan and linear_scan of complex tensors: what they reduce to, other references, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog
from griffin_kernels.errors import ArgumentError, DtypeError, ShapeError
from griffin_kernels.ops.complex_scan.cost import make_case
from tests.calls import public

OP = catalog.op("complex_scan")
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

COMMON = settings(max_examples=20, deadline=None)
SIZES = {
    "batch": st.integers(1, 3),
    "time": st.integers(2, 50),
    "width": st.integers(1, 19),
    "seed": st.integers(0, 2**31),
}


def problem(batch, time, width, seed, dtype="float32"):
    inputs = OP.make_inputs(make_case(batch, time, width, dtype, data=("h0",)), CPU, seed)
    return inputs["x"], inputs["a"], inputs["h0"], torch.Generator().manual_seed(seed)


def numbers(batch, time, width, seed=0):
    """x, a, h0 of complex128."""
    return [torch.view_as_complex(pairs) for pairs in problem(batch, time, width, seed, "float64")[:3]]


def same(mine, theirs):
    # both run in float32 on the same data in another order: a few roundings of values of order ten
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-4)


@COMMON
@given(**SIZES, cut=st.floats(0, 1))
def test_two_halves_joined_by_the_state_are_the_whole(batch, time, width, seed, cut):
    x, a, h0, _ = problem(batch, time, width, seed)
    at = 1 + int(cut * (time - 2))
    h, last = griffin_kernels.complex_scan(x, a, h0=h0)
    first, state = griffin_kernels.complex_scan(x[:, :at], a[:, :at], h0=h0)
    second, end = griffin_kernels.complex_scan(x[:, at:], a[:, at:], h0=state)
    same(torch.cat([first, second], dim=1), h)
    same(end, last)


@COMMON
@given(**SIZES, reverse=st.booleans(), sequences=st.integers(1, 5))
def test_packed_is_separate(batch, time, width, seed, reverse, sequences):
    x, a, _, generator = problem(1, time, width, seed)
    h0 = torch.randn(sequences, width, 2, generator=generator)
    cuts = torch.randint(0, time + 1, (sequences - 1,), generator=generator).sort().values.tolist()
    bounds = [0, *cuts, time]
    offsets = torch.tensor(bounds)
    h, last = griffin_kernels.complex_scan(x, a, h0=h0, cu_seqlens=offsets, reverse=reverse)
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        part, state = griffin_kernels.complex_scan(
            x[:, start:end], a[:, start:end], h0=h0[row : row + 1], reverse=reverse
        )
        same(h[:, start:end], part)
        same(last[row], state[0])


@COMMON
@given(**SIZES, reverse=st.booleans())
def test_matrices_of_two_by_two_are_the_same_scan_with_the_same_gradients(batch, time, width, seed, reverse):
    x, a, h0, generator = problem(batch, time, width, seed, "float64")
    reset = torch.rand(batch, time, generator=generator) < 0.2
    results = []
    for matrices in (False, True):
        values, gates, state = (t.clone().requires_grad_() for t in (x, a, h0))
        if matrices:
            real, imaginary = gates.unbind(-1)
            blocks = torch.stack((real, -imaginary, imaginary, real), dim=-1).unflatten(-1, (2, 2))
            h, last = griffin_kernels.block_diagonal_scan(
                values.flatten(2), blocks, h0=state.flatten(1), reset=reset, reverse=reverse
            )
        else:
            h, last = griffin_kernels.complex_scan(values, gates, h0=state, reset=reset, reverse=reverse)
        h, last = h.reshape(x.shape), last.reshape(h0.shape)
        (h.sin().sum() + last.square().sum()).backward()
        results.append([h, last, values.grad, gates.grad, state.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_real_gates_scan_both_parts_alone():
    x, gates = torch.randn(2, 33, 5, 2), torch.rand(2, 33, 5) * 2 - 1
    h, last = griffin_kernels.complex_scan(x, torch.stack((gates, torch.zeros_like(gates)), dim=-1))
    for part in (0, 1):
        want, end = griffin_kernels.linear_scan(x[..., part], gates)
        same(h[..., part], want)
        same(last[..., part], end)


def test_the_imaginary_unit_turns_a_quarter():
    x = torch.zeros(1, 5, 1, 2)
    x[0, 0, 0, 0] = 1.0
    h, _ = griffin_kernels.complex_scan(x, torch.tensor([[0.0, 1.0]]))
    assert h[0, :, 0].tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]]


def associative(a, x):
    """The inclusive scan of (a, x) under the operator of JAX's associative_scan in S5 and LRU, halves first."""
    if x.shape[1] == 1:
        return a, x
    half = x.shape[1] // 2
    (a_first, x_first), (a_then, x_then) = associative(a[:, :half], x[:, :half]), associative(a[:, half:], x[:, half:])
    carried = a_then * x_first[:, -1:] + x_then
    return torch.cat([a_first, a_then * a_first[:, -1:]], dim=1), torch.cat([x_first, carried], dim=1)


@pytest.mark.parametrize("time", [2, 3, 37])
def test_an_associative_scan_agrees_forward_and_backward(time):
    results = []
    for scan in (lambda x, a: griffin_kernels.linear_scan(x, a)[0], lambda x, a: associative(a, x)[1]):
        x, a = (v.clone().requires_grad_() for v in numbers(2, time, 5)[:2])
        h = scan(x, a)
        (h.abs().square() * torch.linspace(0, 1, 5)).sum().backward()
        results.append((h, x.grad, a.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_lru_and_s5_with_a_constant_gate_agree_forward_and_backward():
    """x_k = Lambda x_{k-1} + gamma B u_k, y_k = Re(C x_k): LRU (arXiv 2303.06349), and S5 with its own Lambda and B."""
    batch, time, inputs, states = 2, 23, 3, 4
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    u, nu, theta = drawn(batch, time, inputs), drawn(states), drawn(states)
    b, c = drawn(states, inputs, dtype=torch.complex128), drawn(inputs, states, dtype=torch.complex128)
    parameters, results = (u, nu, theta, b, c), []
    for loop in (False, True):
        gate = torch.exp(torch.complex(-torch.exp(nu), theta))
        driven = (1 - gate.abs().square()).sqrt() * torch.einsum("pi,bti->btp", b, u.to(b.dtype))
        if loop:
            state, found = torch.zeros(batch, states, dtype=b.dtype), []
            for t in range(time):
                state = gate * state + driven[:, t]
                found.append(state)
            x = torch.stack(found, dim=1)
        else:
            pairs, _ = griffin_kernels.complex_scan(torch.view_as_real(driven), torch.view_as_real(gate))
            x = torch.view_as_complex(pairs)
        y = torch.einsum("ip,btp->bti", c, x).real
        results.append((y, *torch.autograd.grad(y.square().sum(), parameters)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("flags", [{}, {"reset": True}, {"packed": True, "reverse": True}])
def test_complex_gradients_are_pytorch_s(flags):
    x, a, h0 = numbers(1, 7, 3)
    options = {"reverse": flags.get("reverse", False)}
    if "reset" in flags:
        options["reset"] = torch.tensor([[False, False, True, False, False, True, False]])
    if "packed" in flags:
        options["cu_seqlens"], h0 = torch.tensor([0, 3, 3, 7]), h0.expand(3, 3).clone()
    given = [value.requires_grad_() for value in (x, a, h0)]

    def scan(x, a, h0):
        return griffin_kernels.linear_scan(x, a, h0=h0, **options)

    h, last = scan(*given)
    assert h.dtype == last.dtype == torch.complex128
    assert torch.autograd.gradcheck(scan, given)
    assert torch.autograd.gradgradcheck(scan, given)


@pytest.mark.parametrize("flags", [(), ("reset", "reverse"), ("packed",)])
def test_gradients_of_pairs_tangents_and_second_derivatives(flags):
    case = make_case(1, 6, 2, "float64", flags=flags, rows=3 if "packed" in flags else None, data=("h0",))
    inputs = OP.make_inputs(case, CPU, 0)
    given = [inputs[name].requires_grad_() for name in ("x", "a", "h0")]

    def scan(x, a, h0):
        return public("complex_scan", inputs | {"x": x, "a": a, "h0": h0})

    assert torch.autograd.gradcheck(scan, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(scan, given)


def test_complex_tensors_are_views_of_pairs_in_float32():
    x, a, h0, _ = problem(2, 9, 3, 0)
    h, last = griffin_kernels.linear_scan(*map(torch.view_as_complex, (x, a)), h0=torch.view_as_complex(h0))
    pairs, end = griffin_kernels.complex_scan(x, a, h0=h0)
    assert h.dtype == last.dtype == torch.complex64
    assert torch.equal(torch.view_as_real(h), pairs)
    assert torch.equal(torch.view_as_real(last), end)


def test_a_conjugated_tensor_counts_as_what_it_means():
    x, a, _ = numbers(2, 9, 3)
    h, _ = griffin_kernels.linear_scan(x.conj(), a.conj())
    torch.testing.assert_close(h, griffin_kernels.linear_scan(x, a)[0].conj().resolve_conj())


@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 2), (1, 1, 4, 2), (2, 1, 4, 2), (1, 9, 4, 2)])
def test_a_gate_that_is_the_same_for_many_steps(shape):
    x = torch.randn(2, 9, 4, 2, dtype=torch.float64)
    results = []
    for whole in (False, True):
        a = (torch.linspace(-0.9, 0.9, torch.Size(shape).numel(), dtype=torch.float64).view(shape)).requires_grad_()
        h, _ = griffin_kernels.complex_scan(x, a.expand(x.shape).contiguous() if whole else a)
        results.append((h, *torch.autograd.grad(h.square().sum(), a)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_gates_beside_narrow_data_are_not_rounded(dtype):
    x, a, h0, _ = problem(2, 40, 5, 0)
    x = x.to(dtype).requires_grad_()
    a, state = a.clone().requires_grad_(), h0.to(dtype).requires_grad_()
    h, last = griffin_kernels.complex_scan(x, a, h0=state)
    want, end = griffin_kernels.complex_scan(x.float(), a, h0=state.float())
    assert (h.dtype, last.dtype) == (dtype, torch.float32)
    assert torch.equal(h, want.to(dtype))
    assert torch.equal(last, end)
    gradients = torch.autograd.grad(h.float().square().sum(), (x, a, state))
    assert [g.dtype for g in gradients] == [dtype, torch.float32, dtype]


def test_gates_on_the_unit_circle_do_not_drift():
    angle = torch.linspace(0, 3, 8)
    a = torch.stack((angle.cos(), angle.sin()), dim=-1)
    x = torch.zeros(1, 5000, 8, 2)
    x[:, 0, :, 0] = 1.0
    for name in (key for key in catalog.variants("complex_scan") if key.startswith(("eager", "numba"))):
        with griffin_kernels.use(variant=f"complex_scan/{name}"):
            h, _ = griffin_kernels.complex_scan(x, a)
        # |a| is off by at most 2^-24 a step, a product by as much again
        assert (torch.view_as_complex(h).abs() - 1).abs().max() < 5000 * 3 * 2**-24, name


def test_nan_stays_in_its_number():
    x, a, _, _ = problem(1, 6, 3, 0)
    a[0, 2, 1, 0] = float("nan")
    h, last = griffin_kernels.complex_scan(x, a)
    assert h.isnan().any(-1).any(1).tolist() == [[False, True, False]]
    assert h[0, 2:, 1].isnan().all()
    assert last[0].isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "given", "kind", "words"),
    [
        ("linear_scan", {"a": torch.rand(1, 3, 2)}, DtypeError, "a is float32, expected complex64 as x is"),
        ("linear_scan", {"h0": torch.ones(1, 2)}, DtypeError, "h0 is float32, expected complex64 as x is"),
        ("linear_scan", {"x": torch.ones(1, 3, 2)}, DtypeError, "a is complex64, expected float32"),
        ("linear_scan", {"a": torch.ones(1, 2, 2) + 0j}, ShapeError, r"a has shape \[1, 2, 2, 2\], expected"),
        ("complex_scan", {}, DtypeError, "x is complex64, expected one of float32"),
        ("block_diagonal_scan", {}, DtypeError, "x is complex64, expected one of float32"),
    ],
)
def test_complex_tensors_where_they_do_not_belong(name, given, kind, words):
    usual = {"x": torch.ones(1, 3, 2) + 0j, "a": torch.ones(1, 3, 2) + 0j}
    with pytest.raises(kind, match=words):
        getattr(griffin_kernels, name)(**usual | given)


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_complex_tensors_of_float16_are_refused():
    x = torch.ones(1, 3, 2, dtype=torch.complex32)
    with pytest.raises(DtypeError, match="x is complex32: complex64 and complex128 are"):
        griffin_kernels.linear_scan(x, x)


@pytest.mark.parametrize("option", ["log_a", "convex", "return_a_prod"])
def test_options_of_real_gates_are_refused_by_name(option):
    x = torch.ones(1, 3, 2) + 0j
    options = {"log_a": x} if option == "log_a" else {"a": x, option: True}
    with pytest.raises(ArgumentError, match=f"{option} has no form for complex x"):
        griffin_kernels.linear_scan(x, **options)
