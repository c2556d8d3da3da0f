"""Layers as modules: each against its operation or its formula, documents, states, steps; names, draws, refusals."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from griffin_kernels import errors, nn, recurrent_block, rg_lru, temporal_conv1d
from griffin_kernels.models import Griffin, preset

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

WIDTH, TIME = 16, 23
LENGTHS = (9, 1, 13)

# the same products in another order, in float64
EXACT = 1e-12

MIXERS = {
    "RGLRU": lambda **f: nn.RGLRU(WIDTH, 4, **f),
    "RecurrentBlock": lambda **f: nn.RecurrentBlock(WIDTH, 24, heads=3, conv_width=3, **f),
    "TemporalConv1D": lambda **f: nn.TemporalConv1D(WIDTH, 5, **f),
    "LocalAttention": lambda **f: nn.LocalAttention(WIDTH, heads=4, kv_heads=2, head_dim=8, window=6, **f),
    "global": lambda **f: nn.LocalAttention(WIDTH, heads=2, window=None, **f),
}
LAYERS = MIXERS | {"GatedMLP": lambda **f: nn.GatedMLP(WIDTH, 20, **f), "RMSNorm": lambda **f: nn.RMSNorm(WIDTH, **f)}


def make(name, dtype=torch.float64):
    """With biases and norms that are not 0, where they would hide mistakes."""
    torch.manual_seed(0)
    layer = LAYERS[name](dtype=dtype)
    with torch.no_grad():
        for label, parameter in layer.named_parameters():
            if "bias" in label or parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def data(batch=2, time=TIME, dtype=torch.float64):
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def first(result):
    return result[0] if isinstance(result, tuple) else result


def same(got, want, tolerance=EXACT):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got - want).norm() <= tolerance * want.norm()


def test_modules_call_their_operations():
    x, h0 = data(), data()[:, 0]
    lru, conv = make("RGLRU"), make("TemporalConv1D")
    for mine, theirs in zip(lru(x, h0=h0), rg_lru(x, lru.weights, h0=h0), strict=True):
        assert torch.equal(mine, theirs)
    state, options = data()[:, :4], {"activation": "silu", "residual": x}
    want = temporal_conv1d(x, conv.weight, conv.bias, state=state, **options)
    for mine, theirs in zip(conv(x, state=state, **options), want, strict=True):
        assert torch.equal(mine, theirs)


def test_recurrent_block_is_its_formula():
    block, x = make("RecurrentBlock"), data()
    u, conv_state = block.conv(block.linear_x(x))
    h, h_last = block.rg_lru(u)
    want = block.linear_out(h * functional.gelu(block.linear_y(x), approximate="tanh"))
    for mine, theirs in zip(block(x), (want, conv_state, h_last), strict=True):
        same(mine, theirs)


def test_norm_and_mlp_are_their_formulas():
    norm, mlp, x = make("RMSNorm"), make("GatedMLP"), data()
    same(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight))
    residual = data()[:, :, torch.arange(WIDTH - 1, -1, -1)]
    y, s = norm(x, residual)
    assert torch.equal(s, x + residual) and torch.equal(y, norm(s))
    y, s = norm(x.bfloat16(), residual.float())
    assert y.dtype == s.dtype == torch.float32 and torch.equal(s, x.bfloat16() + residual.float())
    gate, value = (x @ mlp.up.weight.T + mlp.up.bias).split(20, dim=-1)
    same(mlp(x), mlp.down(functional.gelu(gate, approximate="tanh") * value))


@pytest.mark.parametrize("name", ["LocalAttention", "global"])
def test_attention_is_its_formula(name):
    layer, x = make(name), data()
    d, group = layer.head_dim, layer.heads // layer.kv_heads
    q, k, v = layer.qkv(x).split([layer.heads * d, layer.kv_heads * d, layer.kv_heads * d], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, d)).transpose(1, 2) for part in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    angles = torch.arange(TIME)[:, None] * 10_000.0 ** -(torch.arange(d // 4, dtype=torch.float64) * 4 / d)

    def turned(heads):  # as complex numbers, channel i with i + d / 4
        pairs = torch.complex(heads[..., : d // 4], heads[..., d // 4 : d // 2]) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([pairs.real, pairs.imag, heads[..., d // 2 :]], -1)

    age = torch.arange(TIME)[:, None] - torch.arange(TIME)
    seen = (age >= 0) & (age < (layer.window or TIME))
    scores = (turned(q) @ turned(k).transpose(2, 3) / math.sqrt(d)).masked_fill(~seen, -torch.inf)
    want = layer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    same(layer(x), want)


@pytest.mark.parametrize("name", MIXERS)
def test_packed_documents_are_as_each_by_itself(name):
    layer, x = make(name), data(batch=1)
    want = torch.cat([first(layer(part)) for part in x.split(LENGTHS, dim=1)], dim=1)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    same(first(layer(x, cu_seqlens=offsets)), want)
    same(first(layer(x, segment_pos=positions)), want)
    assert (first(layer(x)) - want).norm() > 1e-3 * want.norm()


@pytest.mark.parametrize("offsets", [torch.int32, torch.int64])
def test_positions_of_packed_sequences_may_end_early(offsets):
    from griffin_kernels.nn.attention_layers import packed_positions

    got = packed_positions(torch.tensor([0, 3, 3, 5], dtype=offsets), 8, torch.device("cpu"))
    assert got.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]] and got.dtype == torch.int64


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 20])
def test_going_on_from_states_is_as_one_call(cut):
    x, block, lru = data(), make("RecurrentBlock"), make("RGLRU")
    before, conv_state, h = block(x[:, :cut])
    after, *states = block(x[:, cut:], conv_state=conv_state, h0=h)
    whole = block(x)
    same(torch.cat([before, after], 1), whole[0])
    same(states[0], whole[1])
    same(states[1], whole[2])
    y, h = lru(x[:, :cut])
    same(torch.cat([y, lru(x[:, cut:], h0=h)[0]], 1), lru(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["RGLRU", "RecurrentBlock", "LocalAttention"])
def test_steps_are_as_one_call(name):
    layer, x = make(name), data()
    want = first(layer(x))
    if name == "RGLRU":
        states = [torch.zeros(2, WIDTH, dtype=torch.float64)]
    elif name == "RecurrentBlock":
        states = [torch.zeros(2, 2, 24, dtype=torch.float64), torch.zeros(2, 24, dtype=torch.float64)]
    else:
        states = [torch.full((2, 6, 2, 8), torch.nan, dtype=torch.float64) for _ in range(2)]
    for step in range(TIME):
        positions = torch.full((2,), step)
        given = (positions,) if name == "LocalAttention" else ()
        options = {} if given else {"positions": positions}
        same(layer.step(x[:, step], *states, *given, **options), want[:, step], 1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_every_parameter_in_its_dtype_under_autocast(name):
    layer, x = make(name, torch.float32), data(dtype=torch.float32).requires_grad_()
    want = torch.autograd.grad(first(layer(x)).square().sum(), list(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        first(layer(x)).float().square().sum().backward()
    for (label, parameter), exact in zip(layer.named_parameters(), want, strict=True):
        assert parameter.grad.dtype == torch.float32
        off = (parameter.grad - exact).norm() / exact.norm()
        assert off <= 20**0.5 * torch.finfo(torch.bfloat16).eps, (label, off)  # of some twenty roundings


def test_decays_stay_float32_in_a_block_of_bfloat16():
    block = make("RecurrentBlock", torch.float32)
    exact, x = copy.deepcopy(block), data(dtype=torch.bfloat16)
    block.bfloat16().rg_lru.float()
    block.rg_lru.load_state_dict(exact.rg_lru.state_dict())
    out = first(block(x))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and block.rg_lru.a_param.grad.dtype == torch.float32
    assert block.linear_x.weight.grad.dtype == torch.bfloat16
    assert torch.equal(block.rg_lru.a_param, exact.rg_lru.a_param)
    same(out.float(), first(exact(x.float())), 20**0.5 * torch.finfo(torch.bfloat16).eps)


class OwnNetwork(torch.nn.Module):
    """What a user might write."""

    def __init__(self, **factory):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, **factory)
        self.block = nn.RecurrentBlock(WIDTH, heads=2, **factory)
        self.attention = nn.LocalAttention(WIDTH, heads=2, window=7, **factory)
        self.mlp = nn.GatedMLP(WIDTH, 32, bias=False, **factory)

    def forward(self, x, segment_pos=None):
        x = x + self.block(self.norm(x), segment_pos=segment_pos)[0]
        return x + self.mlp(x + self.attention(x, segment_pos=segment_pos))


def test_a_network_of_ones_own_compiles_without_a_break():
    torch.manual_seed(0)
    network, x = OwnNetwork(dtype=torch.float64), data()
    positions = torch.cat([torch.arange(10), torch.arange(13)]).repeat(2, 1)
    found = []
    for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        out = run(x, positions)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))])
    for got, want in zip(*reversed(found), strict=True):
        same(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name):
    layer, x = make(name), data()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(first(other(x)), first(layer(x)))
    assert "(" in repr(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_where_and_what_they_are_asked_to_be(name):
    assert {(p.device.type, p.dtype) for p in LAYERS[name](device="meta", dtype=torch.bfloat16).parameters()} == {
        ("meta", torch.bfloat16)
    }
    with FakeTensorMode():
        fake = LAYERS[name]()
    assert {p.dtype for p in fake.parameters()} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            layer = LAYERS[name]()
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_are_as_published():
    torch.manual_seed(0)
    block = nn.RecurrentBlock(64, 4096, heads=64, conv_width=4)
    variances = {
        block.linear_x.weight: 1 / 64,
        block.linear_y.weight: 1 / 64,
        block.linear_out.weight: 1 / 4096,
        block.conv.weight: 0.01 / 4,
        block.rg_lru.input_gate_weight: 1 / 64,
        block.rg_lru.recurrence_gate_weight: 1 / 64,
    }
    for weight, variance in variances.items():  # the variance of n draws is off by sqrt(2 / n) in standard errors
        assert abs(weight.var().item() / variance - 1) < 5 * (2 / weight.numel()) ** 0.5
    square = torch.exp(-2 * functional.softplus(block.rg_lru.a_param))
    assert 0.9**2 - 1e-6 <= square.min() and square.max() <= 0.999**2 + 1e-6
    assert not any(p.any() for name, p in block.named_parameters() if name.endswith("bias"))
    old = block.linear_out.weight.detach().clone()
    block.reset_parameters(last=1 / 4)
    assert abs(block.linear_out.weight.var() / old.var() - 1 / 4) < 0.01


def test_a_model_keeps_the_names_of_its_parameters():
    """Checkpoints that were written before there were modules are read."""
    tiny = preset("griffin-tiny")
    names = {name: tuple(value.shape) for name, value in Griffin(tiny, device="meta").state_dict().items()}
    norm_and_mlp = {
        "temporal_norm.weight": (64,),
        "channel_norm.weight": (64,),
        "mlp.up.weight": (384, 64),
        "mlp.up.bias": (384,),
        "mlp.down.weight": (64, 192),
        "mlp.down.bias": (64,),
    }
    recurrent = {
        "mixing.linear_x.weight": (96, 64),
        "mixing.linear_x.bias": (96,),
        "mixing.linear_y.weight": (96, 64),
        "mixing.linear_y.bias": (96,),
        "mixing.conv.weight": (4, 96),
        "mixing.conv.bias": (96,),
        "mixing.rg_lru.a_param": (96,),
        "mixing.rg_lru.input_gate_weight": (4, 24, 24),
        "mixing.rg_lru.recurrence_gate_weight": (4, 24, 24),
        "mixing.rg_lru.input_gate_bias": (4, 24),
        "mixing.rg_lru.recurrence_gate_bias": (4, 24),
        "mixing.linear_out.weight": (64, 96),
        "mixing.linear_out.bias": (64,),
    }
    attention = {"mixing.qkv.weight": (96, 64), "mixing.out.weight": (64, 64), "mixing.out.bias": (64,)}
    expected = {"embedding.weight": (256, 64), "final_norm.weight": (64,)}
    for index, mixing in enumerate((recurrent, recurrent, attention)):
        expected |= {f"blocks.{index}.{name}": shape for name, shape in (norm_and_mlp | mixing).items()}
    assert names == expected


def test_draw_false_draws_nothing(monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.nn.init, "normal_", never)
    for name in LAYERS:
        if name != "RMSNorm":  # begins at 0
            LAYERS[name](draw=False)
    with pytest.raises(AssertionError):
        nn.RGLRU(8, 2)


BAD = {
    "heads is 3, which does not divide width=16": lambda: nn.RGLRU(16, 3),
    "heads is 0, expected at least 1": lambda: nn.RGLRU(16, 0),
    "heads is 5, which does not divide width=24": lambda: nn.RecurrentBlock(16, 24, heads=5),
    "lru_width is -1, expected at least 1": lambda: nn.RecurrentBlock(16, -1, heads=1),
    "conv_width is 0, expected at least 1": lambda: nn.TemporalConv1D(16, 0),
    "mlp_width is 0, expected at least 1": lambda: nn.GatedMLP(16, 0),
    "width is 0, expected at least 1": lambda: nn.RMSNorm(0),
    "heads is 3, which does not divide width=16; give head_dim": lambda: nn.LocalAttention(16, heads=3),
    "kv_heads is 3, which does not divide heads=4": lambda: nn.LocalAttention(16, heads=4, kv_heads=3),
    "head_dim is 6, expected a multiple of 4": lambda: nn.LocalAttention(16, heads=2, head_dim=6),
    "window is 0, expected at least 1": lambda: nn.LocalAttention(16, heads=2, window=0),
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(errors.ArgumentError) as caught:
        BAD[message]()
    assert message in str(caught.value)


def test_another_operation_through_the_unit_that_has_the_weights():
    block, x = make("RecurrentBlock"), data()
    u, y, weight, bias = block.branches(x)
    got = block.rg_lru(u, y, weight, bias, op=recurrent_block)
    for mine, theirs in zip(got, recurrent_block(u, y, weight, bias, block.rg_lru.weights), strict=True):
        assert torch.equal(mine, theirs)
