"""Numbers computed with google-deepmind/recurrentgemma 1.0.1 (PyTorch, float32); see tests/data."""

from __future__ import annotations

import numpy
import pytest
import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog
from tests import ROOT
from tests.everywhere import running

DATA = ROOT / "tests" / "data"
NAMES = {  # ours -> the published module's
    "a_param": "a_param",
    "input_gate_weight": "input_gate.w",
    "recurrence_gate_weight": "a_gate.w",
    "input_gate_bias": "input_gate.b",
    "recurrence_gate_bias": "a_gate.b",
}

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@pytest.fixture(scope="module")
def golden():
    with numpy.load(DATA / "rg_lru.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def run(golden, dtype):
    weights = RGLRUWeights(*[golden[f"param/{NAMES[n]}"].to(dtype).requires_grad_() for n in RGLRUWeights._fields])
    x, h0 = (golden[name].to(dtype).requires_grad_() for name in ("x", "h0"))
    y, h_last = griffin_kernels.rg_lru(x, weights, h0=h0, segment_pos=golden["segment_pos"])
    gradients = torch.autograd.grad(
        [y, h_last], [x, h0, *weights], [golden["dy"].to(dtype), golden["dh_last"].to(dtype)]
    )
    named = dict(zip(("dx", "dh0", *[f"grad/{NAMES[n]}" for n in RGLRUWeights._fields]), gradients, strict=True))
    return {"y": y, "h_last": h_last} | named


def run_fresh(golden, dtype):
    """The second document of the first row alone, without positions: a fresh sequence, and what it has to give."""
    start = int((golden["segment_pos"][0] == 0).nonzero()[-1])
    assert 0 < start < golden["x"].shape[1] - 1
    weights = RGLRUWeights(*[golden[f"param/{NAMES[n]}"].to(dtype) for n in RGLRUWeights._fields])
    x = golden["x"][:1, start:].to(dtype).requires_grad_()
    y, h_last = griffin_kernels.rg_lru(x, weights)
    upstream = [golden["dy"][:1, start:].to(dtype), golden["dh_last"][:1].to(dtype)]
    (dx,) = torch.autograd.grad([y, h_last], [x], upstream)
    want = {"y": golden["y"][:1, start:], "h_last": golden["h_last"][:1], "dx": golden["dx"][:1, start:]}
    return {"y": y, "h_last": h_last, "dx": dx}, want


def assert_golden(got, golden):
    # float32 on both sides, in different orders: a few hundred roundings of the largest element
    for name, value in got.items():
        want = golden[name].double()
        error = (value.double() - want).abs().max() / want.abs().max()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_rg_lru_and_all_gradients_in_float64(golden):
    assert_golden(run(golden, torch.float64), golden)
    assert_golden(*run_fresh(golden, torch.float64))


@pytest.mark.parametrize("variant", [v for op in ("rg_lru", "rg_lru_bwd") for v in catalog.variants(op).values()],
                         ids=lambda v: v.key)  # fmt: skip
def test_every_variant_forward_and_backward(golden, variant):
    with running(variant):
        assert_golden(run(golden, torch.float32), golden)
        assert_golden(*run_fresh(golden, torch.float32))
