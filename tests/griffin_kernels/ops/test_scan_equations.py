"""linear_scan's options against the equations of others, forward and backward, in float64 and in float32."""

from __future__ import annotations

import math

import pytest
import torch

import griffin_kernels
from griffin_kernels.errors import ArgumentError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BATCH, STEPS, WIDTH = 2, 41, 5


def drawn(*shape, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def fla_naive_hgrn(x, g):
    """naive_recurrent_hgrn of flash-linear-attention, fla/ops/hgrn/naive.py: g is the log of the forget gate."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = g[:, t].exp() * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def hgrn(z, u):
    g = torch.nn.functional.logsigmoid(z)
    x = (1 - g.exp()) * u
    ours = griffin_kernels.linear_scan(u, log_a=g, convex=True)[0]
    also = griffin_kernels.linear_scan(x, log_a=g)[0]
    return (ours, also), fla_naive_hgrn(x, g)


def heinsen(log_a, log_b):
    """Heinsen 2023 (arXiv 2311.06281): h = exp(A + logcumsumexp(log b - A)), A = cumsum(log a), from h_0 = 0."""
    total = log_a.cumsum(1)
    return (total + torch.logcumsumexp(log_b - total, dim=1)).exp()


def min_gru(z, u):
    """minGRU, arXiv 2410.01201, appendix B.2.1: (1 - z) h + z g(u) in log form; g(u) is u + 1/2 where u >= 0."""
    log_keep, log_z = -torch.nn.functional.softplus(z), -torch.nn.functional.softplus(-z)
    log_g = torch.where(u >= 0, (torch.relu(u) + 0.5).log(), -torch.nn.functional.softplus(-u))
    ours = griffin_kernels.linear_scan(log_g.exp(), log_a=log_keep, convex=True)[0]
    return (ours,), heinsen(log_keep, log_z + log_g)


def sru(z, u):
    """SRU, arXiv 1709.02755, equation 4, and fo-pooling of QRNN, arXiv 1611.01576: c = f c + (1 - f) u."""
    f, c, out = torch.sigmoid(z), torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        c = f[:, t] * c + (1 - f[:, t]) * u[:, t]
        out.append(c)
    return (griffin_kernels.linear_scan(u, f, convex=True)[0],), torch.stack(out, 1)


def gilr(z, u):
    """GILR, Martin and Cundy 2018 (arXiv 1709.04057), section 4: h = g h + (1 - g) tanh(u)."""
    g, values = torch.sigmoid(z), torch.tanh(u)
    h, out = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        h = g[:, t] * h + (1 - g[:, t]) * values[:, t]
        out.append(h)
    return (griffin_kernels.linear_scan(values, g, convex=True)[0],), torch.stack(out, 1)


def s4d_real(z, u):
    """S4D-Real's mode, arXiv 2206.11893: a constant a = exp(dt A), as the convolution with the kernel a^(t - s)."""
    log_a = -torch.nn.functional.softplus(z[0, 0])
    time = torch.arange(u.shape[1], dtype=u.dtype)
    lags = time[:, None] - time[None]
    kernel = torch.where(lags[..., None] >= 0, (lags.clamp(min=0)[..., None] * log_a).exp(), 0.0)
    theirs = torch.einsum("tsd,bsd->btd", kernel, u)
    shapes = (log_a, log_a[None, None], log_a.expand(len(u), 1, -1))
    ours = [griffin_kernels.linear_scan(u, log_a=gate)[0] for gate in shapes]
    return (*ours, griffin_kernels.linear_scan(u, log_a.exp())[0]), theirs


LAYERS = [hgrn, min_gru, sru, gilr, s4d_real]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_of_others(layer, dtype):
    z, u = (drawn(BATCH, STEPS, WIDTH, seed=seed) for seed in (1, 2))
    upstream = drawn(BATCH, STEPS, WIDTH, seed=3)
    exact = [value.clone().requires_grad_() for value in (z, u)]
    theirs = layer(*exact)[1]
    wanted = torch.autograd.grad(theirs, exact, upstream)
    inputs = [value.to(dtype).requires_grad_() for value in (z, u)]
    for ours in layer(*inputs)[0]:
        found = torch.autograd.grad(ours, inputs, upstream.to(dtype), retain_graph=True)
        # a few roundings a step, of which a hundred are remembered at most; sums over 82 steps
        bound = 200 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), theirs, rtol=bound, atol=bound)
        for mine, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine.double(), want, rtol=10 * bound, atol=10 * bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_in_float32_beside_data_of_16_bits(dtype):
    """Gates that 16 bits would round to 1: the state would not decay."""
    x = torch.ones(1, 400, 3, dtype=dtype)
    a = torch.full((3,), 1 - 1e-4, requires_grad=True)
    _, h_last = griffin_kernels.linear_scan(x, a)
    exact = (1 - a.detach().double() ** 400) / (1 - a.detach().double())
    torch.testing.assert_close(h_last[0].double(), exact.double(), rtol=1e-4, atol=0.0)
    (gradient,) = torch.autograd.grad(h_last.sum(), a)
    assert gradient.dtype == torch.float32 and gradient.shape == (3,)


def test_gates_of_other_dtypes_are_used_in_float32():
    x, a = drawn(2, 9, 3).bfloat16(), torch.sigmoid(drawn(3)).requires_grad_()
    ours = griffin_kernels.linear_scan(x, a)[0]
    assert torch.equal(ours, griffin_kernels.linear_scan(x, a.detach().float())[0])
    assert torch.autograd.grad(ours.sum(), a)[0].dtype == torch.float64


def test_autocast_casts_x_and_keeps_gates():
    x, log_a = drawn(2, 9, 3).float(), -torch.nn.functional.softplus(drawn(3)).float()
    with torch.autocast("cpu", torch.bfloat16):
        h, h_last = griffin_kernels.linear_scan(x, log_a=log_a, convex=True)
    wanted, last = griffin_kernels.linear_scan(x.bfloat16(), log_a=log_a, convex=True)
    assert h.dtype == torch.bfloat16 and torch.equal(h, wanted) and torch.equal(h_last, last)


def test_small_shares_do_not_cancel():
    """1 - exp(log a) of log a = -1e-6 is right to its last bits, and so is what it weighs."""
    x = torch.full((1, 1, 4), 3.0)
    h, _ = griffin_kernels.linear_scan(x, log_a=torch.full((1, 1, 4), -1e-6), convex=True)
    torch.testing.assert_close(h.double(), torch.full_like(h, -3 * math.expm1(-1e-6)).double(), rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("log", [False, True])
def test_product_of_gates(log):
    """a_prod is what h_last is to h0; its gradient is exact where gates are 0 and of any sign."""
    a = drawn(2, 7, 4)
    a[0, 3, 0] = a[1, 2, 1] = a[1, 5, 1] = 0.0
    a = a.abs().log().clamp(min=-3) if log else a
    mine, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    h0 = drawn(2, 4, seed=4).requires_grad_()
    gates = {"log_a": mine} if log else {"a": mine}
    _, h_last, product = griffin_kernels.linear_scan(torch.zeros_like(a), h0=h0, return_a_prod=True, **gates)
    torch.testing.assert_close(h_last, product * h0)
    want = (theirs.exp() if log else theirs).prod(1)
    torch.testing.assert_close(product, want)
    upstream = drawn(2, 4, seed=5)
    torch.testing.assert_close(
        torch.autograd.grad(product, mine, upstream, retain_graph=True), torch.autograd.grad(want, theirs, upstream)
    )
    torch.testing.assert_close(torch.autograd.grad(h_last, h0, upstream)[0], product * upstream)


def test_product_of_gates_of_sequences():
    """0 where a reset lies in a sequence, 1 where it has no steps."""
    x, a = drawn(1, 6, 3), torch.full((3,), 0.5, dtype=torch.float64)
    reset = torch.tensor([[False, False, False, False, True, False]])
    offsets = torch.tensor([0, 3, 3, 6], dtype=torch.int32)
    *_, product = griffin_kernels.linear_scan(x, a, reset=reset, cu_seqlens=offsets, return_a_prod=True)
    assert product.tolist() == [[0.125] * 3, [1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), (2, 1, 3), (2, 6, 3)])
def test_everything_at_once_compiles(shape):
    x, log_a = drawn(2, 6, 3).requires_grad_(), (-drawn(*shape, seed=6).abs()).requires_grad_()

    def function(x, log_a):
        h, h_last, product = griffin_kernels.linear_scan(x, log_a=log_a, convex=True, return_a_prod=True)
        return (h.square().sum() + h_last.sum() + product.square().sum(),)

    (eager,) = function(x, log_a)
    (compiled,) = torch.compile(function, fullgraph=True, backend="aot_eager")(x, log_a)
    torch.testing.assert_close(compiled, eager)
    for mine, want in zip(
        torch.autograd.grad(compiled, (x, log_a)), torch.autograd.grad(eager, (x, log_a)), strict=True
    ):
        torch.testing.assert_close(mine, want)
    assert torch.autograd.gradcheck(function, (x, log_a))


def test_per_sample_gradients_of_a_constant_gate():
    x, a = drawn(4, 6, 3), torch.sigmoid(drawn(3, seed=7))

    def loss(a, x):
        return griffin_kernels.linear_scan(x[None], a)[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(a, x)
    torch.testing.assert_close(found, torch.stack([torch.func.grad(loss)(a, row) for row in x]))


X, A = torch.zeros(2, 5, 3), torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("kind", "words", "given"),
    [
        (ArgumentError, "a and log_a are both given", {"a": A, "log_a": A}),
        (ArgumentError, "neither a nor log_a is given", {}),
        (ShapeError, r"a has shape \[2, 4, 3\], expected \[2, 5, D\], \[2, 1, D\] or \[1, 1, D\]", {"a": A[:, 1:]}),
        (ShapeError, r"a has shape \[1, 5, 3\]", {"a": A[:1]}),
        (ShapeError, "a has shape", {"log_a": A[..., 0]}),
    ],
)
def test_wrong_gates(kind, words, given):
    with pytest.raises(kind, match=words):
        griffin_kernels.linear_scan(X, **given)


def test_explain_and_select_know_the_options():
    shared = {"x": X, "a": A[:1, :1], "log_a": True, "with_a_prod": True}
    told = griffin_kernels.explain("linear_scan", shared)
    assert {"log", "constant", "a_prod"} <= set(told.case.flags)
    assert griffin_kernels.select("linear_scan", shared).variant.name == told.choice.variant.name
