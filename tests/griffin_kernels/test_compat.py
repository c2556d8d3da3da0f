"""Scans by other projects' names, against their equations in float64, and against the originals where installed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools

import pytest
import torch

from griffin_kernels.compat.accelerated_scan import scan
from griffin_kernels.compat.fla import chunk_hgrn, fused_recurrent_hgrn
from griffin_kernels.compat.heinsen import heinsen_associative_scan_log
from griffin_kernels.errors import DtypeError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BATCH, WIDTH = 3, 10
STEPS = (1, 37, 64)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
F = torch.nn.functional


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def log_gates(*shape, seed=7, dtype=torch.float64):
    return F.logsigmoid(2 + drawn(*shape, seed=seed)).to(dtype)


def recurrence(x, log_a, h0=None):
    """h_t = exp(log_a_t) h_{t-1} + x_t over [B, T, D] as written, and the last state."""
    h = torch.zeros_like(x[:, 0]) if h0 is None else h0
    states = []
    for t in range(x.shape[1]):
        h = log_a[:, t].exp() * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1), h


def bound(dtype):
    """Relative to the largest element: a rounding of each result, and of each carry of some 8 that are remembered."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return 2 * torch.finfo(dtype).eps + 32 * torch.finfo(wide).eps


def agrees(ours, reference, *given, extra=0.0):
    """Results and gradients of ``ours`` are those of ``reference`` in float64, each in its tensor's dtype.

    extra: what intermediate values in the data's dtype add to the bound, in roundings.
    """
    leaves = [value.detach().clone().requires_grad_() for value in given]
    exact = [value.detach().double().requires_grad_() for value in given]
    found, wanted = ours(*leaves), reference(*exact)
    found, wanted = ((out,) if isinstance(out, torch.Tensor) else out for out in (found, wanted))
    upstream = [drawn(*out.shape, seed=at + 20).to(out.dtype) for at, out in enumerate(found)]
    gradients = torch.autograd.grad(found, leaves, upstream)
    exact_gradients = torch.autograd.grad(wanted, exact, [u.double() for u in upstream])
    unit = torch.finfo(given[0].dtype).eps
    for mine, want in zip((*found, *gradients), (*wanted, *exact_gradients), strict=True):
        assert mine.shape == want.shape
        error = (mine.double() - want).abs().max()
        assert error <= (bound(given[0].dtype) + extra * unit) * want.abs().max().clamp_min(1e-30)
    assert [g.dtype for g in gradients] == [value.dtype for value in given]
    return found


def time_last(gates, tokens):
    # a gate of 0 has no logarithm, and is none here
    h, _ = recurrence(tokens.transpose(1, 2), gates.transpose(1, 2).log())
    return h.transpose(1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_accelerated_scan(steps, dtype):
    gates, tokens = log_gates(BATCH, WIDTH, steps).exp().to(dtype), drawn(BATCH, WIDTH, steps, dtype=dtype)
    (h,) = agrees(scan, time_last, gates, tokens, extra=4)  # da takes h as it was rounded
    assert h.is_contiguous() and h.dtype == dtype
    strided = [value.transpose(1, 2).contiguous().transpose(1, 2) for value in (gates, tokens)]
    assert torch.equal(scan(*strided), h)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("function", [fused_recurrent_hgrn, chunk_hgrn])
def test_hgrn(function, steps, dtype, wide):
    """g in x's dtype, or in float32 as fla's layers have it; states of their own dtypes."""
    of_gates = torch.float32 if wide and dtype != torch.float64 else dtype
    x, g = drawn(BATCH, steps, WIDTH, dtype=dtype), log_gates(BATCH, steps, WIDTH, dtype=of_gates)
    state = drawn(BATCH, WIDTH, dtype=dtype)
    o, last = agrees(lambda *given: function(*given, output_final_state=True), recurrence, x, g, state, extra=4)
    same = torch.float64 if dtype == torch.float64 else torch.float32
    assert o.dtype == dtype and last.dtype == (dtype if function is fused_recurrent_hgrn else same)
    alone, none = function(x, g)
    assert none is None
    assert torch.equal(alone, function(x, g, torch.zeros_like(state), output_final_state=True)[0])


@pytest.mark.parametrize("offsets", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_packed_hgrn(carried, offsets):
    cuts = [0, 5, 5, 17, 40]
    x, g, state = drawn(1, 40, WIDTH), log_gates(1, 40, WIDTH), drawn(4, WIDTH, seed=3)

    def alone(x, g, state=None):
        parts = [
            recurrence(x[:, a:b], g[:, a:b], None if state is None else state[n : n + 1])
            if a < b
            else (x[:, a:a], x.new_zeros(1, WIDTH) if state is None else state[n : n + 1])
            for n, (a, b) in enumerate(itertools.pairwise(cuts))
        ]
        return torch.cat([h for h, _ in parts], 1), torch.cat([last for _, last in parts])

    def packed(x, g, state=None):
        return fused_recurrent_hgrn(x, g, state, True, cu_seqlens=torch.tensor(cuts, dtype=offsets))

    agrees(packed, alone, *((x, g, state) if carried else (x, g)), extra=4)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("shape", [(BATCH, 37, WIDTH), (BATCH, 1, WIDTH), (2, 9, 3, 4), (2, 9)], ids=str)
def test_heinsen(shape, dtype):
    coeffs, values = log_gates(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
    # exp(log_values) is rounded to the data's dtype before the scan, and its gradient after
    agrees(heinsen_associative_scan_log, lambda a, x: recurrence(x.exp(), a)[0], coeffs, values, extra=4)


def test_heinsen_of_gates_and_values_of_zero():
    """Minus infinity, of which sums of logarithms make NaN."""
    coeffs, values = log_gates(2, 12, 4), drawn(2, 12, 4)
    coeffs[:, 5], values[:, 7] = -torch.inf, -torch.inf
    h = heinsen_associative_scan_log(coeffs, values)
    torch.testing.assert_close(h, recurrence(values.exp(), coeffs)[0])
    torch.testing.assert_close(h[:, 5], values[:, 5].exp())


def test_a_layer_of_mingru():
    """Candidates and gates as minGRU makes them, step by step, from a hidden state that is prepended."""
    hidden, gate, before = drawn(2, 30, 6), drawn(2, 30, 6, seed=1), drawn(2, 1, 6, seed=2)
    positive = lambda z: torch.where(z >= 0, z + 0.5, z.sigmoid())  # noqa: E731
    h, want = positive(before)[:, 0], []
    for t in range(30):
        h = torch.lerp(h, positive(hidden[:, t]), gate[:, t].sigmoid())
        want.append(h)
    values = torch.cat([positive(before).log(), F.logsigmoid(gate) + positive(hidden).log()], 1)
    coeffs = F.pad(F.logsigmoid(-gate), (0, 0, 1, 0))
    torch.testing.assert_close(heinsen_associative_scan_log(coeffs, values)[:, 1:], torch.stack(want, 1))


if importlib.util.find_spec("fla") is not None:

    @pytest.mark.parametrize("function", [fused_recurrent_hgrn, chunk_hgrn])
    def test_hgrn_is_what_fla_computes(function):
        theirs = importlib.import_module("fla.ops.hgrn.naive").naive_recurrent_hgrn
        x, g, state = (v.float() for v in (drawn(2, 64, 8), log_gates(2, 64, 8), drawn(2, 8, seed=3)))
        for mine, want in zip(function(x, g, state, True), theirs(x, g, state, True), strict=True):
            torch.testing.assert_close(mine, want)


if importlib.util.find_spec("minGRU_pytorch") is not None:

    def test_heinsen_is_what_mingru_computes():
        theirs = importlib.import_module("minGRU_pytorch.minGRU")
        coeffs, values = log_gates(2, 64, 8), drawn(2, 64, 8)
        agrees(heinsen_associative_scan_log, theirs.heinsen_associative_scan_log, coeffs, values, extra=64)


def test_bad_arguments_are_named():
    x, g = drawn(2, 8, 4), log_gates(2, 8, 4)
    with pytest.raises(ShapeError, match=r"a has shape \[2, 3, 4\]"):
        scan(drawn(2, 4, 3), drawn(2, 4, 8))
    with pytest.raises(ShapeError, match="h0 has shape"):
        fused_recurrent_hgrn(x, g, drawn(3, 4))
    with pytest.raises(DtypeError, match="is int64"):
        chunk_hgrn(x.long(), g)
    with pytest.raises(ShapeError, match=r"has shape \[2, 7, 4\]"):
        heinsen_associative_scan_log(g[:, :7], x)
