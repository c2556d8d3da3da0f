"""Weights in int8 and int4: our own linear layer, and torchao's on the linear layers of a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

from griffin_kernels import errors
from griffin_kernels.models import Griffin
from griffin_kernels.nn import Int8Linear, int8_linear, int8_linears_
from tests.small_models import VOCABULARY, draw, small

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-53}
"""Relative error of rounding to a dtype."""


def layer(outputs, inputs, bias=True, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight[0] = 0  # a row without a scale
    return linear


# (rows of x, outputs, inputs): vectors, lines and groups of four rows, and what is left over; one and several items
SIZES = [(1, 1, 1), (2, 5, 3), (1, 4, 16), (3, 7, 64), (8, 67, 79), (16, 130, 200), (17, 130, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows, outputs, inputs", SIZES)
@torch.no_grad()
def test_products(rows, outputs, inputs, dtype):
    """Against float64 with the same int8 weights.

    A sum of n products is off by at most n eps of that of their magnitudes. Where weights are widened, product, scale
    and bias are rounded to the dtype: 3 eps more of them.
    """
    linear = layer(outputs, inputs, bias=outputs % 2 == 1)
    mine = Int8Linear.from_linear(linear)
    x = torch.randn(rows, inputs, dtype=torch.float64).to(dtype)
    weight = mine.weight.double() * mine.scale.double()[:, None]
    bias = torch.zeros(outputs, dtype=torch.float64) if linear.bias is None else linear.bias.double()
    want = x.double() @ weight.T + bias
    magnitude = x.double().abs() @ weight.abs().T + bias.abs()
    got = mine(x)
    assert got.dtype == dtype
    sums = EPS[torch.float64] if dtype == torch.float64 else EPS[torch.float32]
    scales = EPS[torch.float32]  # a scale times a sum is fused with the bias, or rounded
    bound = ((inputs + 2) * sums + scales + 4 * EPS[dtype]) * magnitude
    assert ((got.double() - want).abs() <= bound).all()
    if dtype == torch.float32:
        half = mine.scale.double() / 2 * (1 + 1e-6)  # rounding of weights
        assert ((want - linear.double()(x.double())).abs() <= x.double().abs().sum(1, keepdim=True) * half).all()


@torch.no_grad()
def test_layouts_of_x():
    mine = Int8Linear.from_linear(layer(6, 10))
    x = torch.randn(2, 3, 20)
    want = mine(x[..., ::2].contiguous())
    assert torch.equal(mine(x[..., ::2]), want) and want.shape == (2, 3, 6)
    assert torch.equal(mine(x[0, 0, :10]), mine(x[..., :10])[0, 0])
    assert mine(x[:0, :, :10]).shape == (0, 3, 6)
    with pytest.raises(errors.ShapeError, match=r"x: shape \[2, 3, 20\], expected \[..., 10\]"):
        mine(x)
    with pytest.raises(errors.DtypeError, match=r"x: dtype torch.int64"):
        mine(torch.ones(10, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(x[..., :10]).dtype == torch.bfloat16


def test_threads_and_a_million_weights():
    mine = Int8Linear.from_linear(layer(1029, 517))
    x = torch.randn(3, 517)
    before = torch.get_num_threads()
    found = []
    try:
        with torch.no_grad():
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(mine(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - functional.linear(x, mine.weight * mine.scale[:, None], mine.bias)).abs().max() < 1e-5


@torch.no_grad()
def test_more_weights_than_are_widened_at_once(monkeypatch):
    mine = Int8Linear.from_linear(layer(23, 30))
    x = torch.randn(20, 30)
    want = mine(x)
    monkeypatch.setattr(int8_linear, "AT_ONCE", 155)
    assert torch.allclose(mine(x), want, rtol=1e-5, atol=1e-6)


def test_gradients():
    linear = layer(5, 9)
    mine = Int8Linear.from_linear(linear)
    x = torch.randn(4, 9, requires_grad=True)
    mine(x).square().sum().backward()
    got, x.grad = x.grad, None
    functional.linear(x, mine.weight * mine.scale[:, None], mine.bias).square().sum().backward()
    assert torch.allclose(got, x.grad, rtol=1e-5, atol=1e-5) and mine.bias.grad is not None


def test_compiled():
    mine = Int8Linear.from_linear(layer(5, 9))
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 9)
    with torch.no_grad():
        assert torch.equal(compiled(x), mine(x))
        for rows in (x, torch.randn(20, 9, dtype=torch.bfloat16)):
            given = (rows, mine.weight, mine.scale, mine.bias)
            torch.library.opcheck(torch.ops.griffin_kernels.int8_linear.default, given)


def test_what_is_refused():
    with pytest.raises(errors.ArgumentError, match=r"weight: torch.float32 \[2, 3\], expected int8"):
        Int8Linear(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(errors.ShapeError, match=r"scale: shape \[3\], expected \[2\]"):
        Int8Linear(torch.ones(2, 3, dtype=torch.int8), torch.ones(3))
    for config in (Int8DynamicActivationInt8WeightConfig(), IntxWeightOnlyConfig(weight_dtype=torch.int4)):
        network = nn.Sequential(nn.Linear(32, 32))
        quantize_(network, config)
        with pytest.raises(errors.ArgumentError, match=r"0: weight: "):
            int8_linears_(network)


# whole models


def quantised(model, config=None):
    other = copy.deepcopy(model)
    if config is not None:
        quantize_(other, config)
    return other


KINDS = {
    "ours": lambda model: int8_linears_(copy.deepcopy(model)),
    "torchao_int8": lambda model: quantised(model, Int8WeightOnlyConfig()),
    "ours_of_torchao": lambda model: int8_linears_(quantised(model, Int8WeightOnlyConfig())),
    "torchao_int4": lambda model: quantised(
        model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_models(kind, dtype, tmp_path):
    model = small("griffin", dtype)
    other = KINDS[kind](model)
    tokens = draw(2, 11)
    logits, cache = other(tokens)
    pieces = [other(tokens[:, :7])]
    for t in range(7, 11):
        pieces.append(other(tokens[:, t : t + 1], cache=pieces[-1][1]))
    close = 1e-4 if dtype == torch.float32 else 0.06
    assert (torch.cat([piece[0] for piece in pieces], dim=1) - logits).abs().max() <= close * logits.abs().max()
    assert cache.dtype == dtype and logits.dtype == dtype
    assert other.generate(tokens[:1], 4).shape == (1, 15)

    torch.save(other.state_dict(), tmp_path / "weights.pt")
    empty = Griffin(model.config, device="meta", dtype=dtype)
    if kind.startswith("ours"):
        empty = int8_linears_(empty)
    state = torch.load(tmp_path / "weights.pt", weights_only=kind.startswith("ours"))
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(tokens)[0], logits)
    compiled = torch.compile(other, backend="eager")(tokens)[0]  # whose norms are left to the compiler
    assert (compiled - logits).abs().max() <= close * logits.abs().max()
    with pytest.raises(errors.ArgumentError, match="only whole floating-point tensors with values are written"):
        other.save_pretrained(tmp_path)


def test_models_train_beside_int8_weights():
    model = int8_linears_(small("griffin", torch.float32))
    loss = model.loss(draw(2, 9), draw(2, 9, seed=1))
    loss.backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not names


@pytest.fixture(scope="module")
def trained(one_thread):
    """A model of a text in which a token follows from the one three before, but for one token in ten."""
    model = small("griffin", torch.float32).train()
    generator = torch.Generator().manual_seed(5)

    def text():
        rows = torch.randint(0, VOCABULARY, (16, 48), generator=generator)
        noise = torch.rand(16, 48, generator=generator) < 0.1
        for t in range(3, 48):
            rows[:, t] = torch.where(noise[:, t], rows[:, t], (rows[:, t - 3] * 7 + 3) % VOCABULARY)
        return rows

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        rows = text()
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    return model.eval(), text()


@torch.no_grad()
def test_perplexity_of_a_trained_model(trained):
    """int8: within 1% of the float model's, int4 in groups of 16 within 10%; and the model has learnt something."""
    model, rows = trained
    plain = model.loss(rows[:, :-1], rows[:, 1:]).exp()
    print(f"perplexity {plain:.3f}")
    assert plain < 0.5 * VOCABULARY
    for kind, make in KINDS.items():
        ratio = make(model).loss(rows[:, :-1], rows[:, 1:]).exp() / plain
        print(kind, f"{ratio:.4f}")
        assert abs(ratio - 1) < (0.1 if kind.endswith("int4") else 0.01), (kind, ratio)
