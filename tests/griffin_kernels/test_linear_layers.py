"""Linear layers of one or two tokens with bfloat16 weights: the native product, and every case that is torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from griffin_kernels.nn import linear_layers
from griffin_kernels.nn.linear_layers import Linear, linear
from griffin_kernels.ops import _few_rows

EPS, ROUNDED = 2.0**-24, 2.0**-8


@pytest.fixture
def native(monkeypatch):
    """How often the native product was called; with it no layer is too small."""
    calls = []
    real = _few_rows.few_rows
    monkeypatch.setattr(_few_rows, "few_rows", lambda *given: calls.append(given[1].shape) or real(*given))
    monkeypatch.setattr(linear_layers, "LEAST_WEIGHTS", 1)
    return calls


def drawn(outputs, inputs, bias=True, dtype=torch.bfloat16):
    return Linear(inputs, outputs, bias=bias, dtype=dtype)


# vectors, lines and groups of four rows, and what is left over; one and several items
@pytest.mark.parametrize(
    "shape, outputs, inputs",
    [((1, 1), 1, 1), ((2, 3), 5, 3), ((1, 1, 16), 4, 16), ((32,), 7, 32), ((2, 1, 79), 67, 79), ((2, 200), 130, 200)],
)
@torch.no_grad()
def test_products(native, shape, outputs, inputs):
    """Against float64: a sum of n products is off by at most n eps of that of their magnitudes, then rounded once."""
    layer = drawn(outputs, inputs, bias=outputs % 2 == 1)
    x = torch.randn(shape).bfloat16()
    got = layer(x)
    assert native and got.dtype == torch.bfloat16
    bias = torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.double()
    want = functional.linear(x.double(), layer.weight.double(), bias)
    magnitude = functional.linear(x.double().abs(), layer.weight.double().abs(), bias.abs())
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= ((inputs + 1) * EPS + ROUNDED) * magnitude).all()


@torch.no_grad()
def test_a_layer_as_large_as_in_models(monkeypatch):
    layer = drawn(1030, 1024)
    x = torch.randn(1, 1024).bfloat16()
    called = []
    real = _few_rows.few_rows
    monkeypatch.setattr(_few_rows, "few_rows", lambda *given: called.append(1) or real(*given))
    want = functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert (layer(x).double() - want).abs().max() <= 2 * ROUNDED * want.abs().max() and called


@pytest.mark.parametrize("inputs", [3, 40])
@torch.no_grad()
def test_nan_and_infinity_stay_in_their_rows(native, inputs):
    layer = drawn(6, inputs)
    x = torch.randn(2, inputs).bfloat16()
    want = layer(x)
    spoilt = x.clone()
    spoilt[0, 1], spoilt[0, 2] = torch.inf, torch.nan
    got = layer(spoilt)
    assert torch.equal(got[1], want[1]) and got[0].isnan().all()
    layer.weight[2] = torch.nan
    got = layer(x)
    assert got[:, 2].isnan().all() and torch.equal(got[:, [0, 1, 3, 4, 5]], want[:, [0, 1, 3, 4, 5]])
    assert len(native) == 3


def torchs(native, layer, x):
    """A call that gives what torch gives, and is torch's."""
    got = layer(x)
    assert not native
    assert torch.equal(got, functional.linear(x, layer.weight, layer.bias))
    return got


def test_what_is_left_to_torch(native, monkeypatch):
    layer, x = drawn(5, 8), torch.randn(1, 8).bfloat16()
    assert torchs(native, layer, x).requires_grad
    with torch.no_grad():
        torchs(native, layer, torch.randn(3, 8).bfloat16())
        torchs(native, layer, torch.randn(0, 8).bfloat16())
        torchs(native, drawn(5, 8, dtype=torch.float32), x.float())
        with torch.autocast("cpu", torch.bfloat16):
            torchs(native, copy.deepcopy(layer).float(), x.float())
            torchs(native, layer, x)
        turned = drawn(8, 5)
        turned.weight.data = turned.weight.data.t()
        turned.bias = None
        torchs(native, turned, x)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            assert forward_ad.unpack_dual(layer(dual)).tangent is not None
        monkeypatch.setattr(linear_layers, "LEAST_WEIGHTS", 41)
        torchs(native, layer, x)
    assert not native


def test_traced_compiled_and_mapped(native):
    layer, x, other = drawn(5, 8).requires_grad_(False), torch.randn(1, 8).bfloat16(), torch.randn(1, 8).bfloat16()
    want = functional.linear(other, layer.weight, layer.bias)
    assert torch.equal(torch.jit.trace(layer, x, check_trace=False)(other), want)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(other), want)
    mapped = torch.func.vmap(layer)(torch.stack([x, other]))[1]  # a product of another shape
    assert (mapped - want).abs().max() <= 2 * ROUNDED * want.abs().max()
    assert layer.to("meta")(other.to("meta")).shape == (1, 5)
    assert not native


def test_it_is_a_linear_layer():
    layer = drawn(5, 8)
    assert isinstance(layer, nn.Linear) and set(layer.state_dict()) == {"weight", "bias"}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(1, 9).bfloat16())
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(1, 8).bfloat16(), layer.weight, layer.bias.float())
