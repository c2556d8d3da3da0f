"""The layers of Griffin, Hawk and the MQA Transformer (arXiv 2402.19427, section 2).

R is lru_width, H gate_blocks, n = R / H; Hq query heads and Hkv key heads of d channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from griffin_kernels.functional import (
    RGLRUWeights,
    local_attention,
    local_attention_step,
    recurrent_block,
    recurrent_block_extend,
    recurrent_block_step,
)
from griffin_kernels.functional._rotary import rotate
from griffin_kernels.models.cache import AttentionCache, LayerCache, PendingTokens, RecurrentCache
from griffin_kernels.models.config import BlockType, GriffinConfig

MIN_RADIUS, MAX_RADIUS = 0.9, 0.999
"""a_param is drawn so that exp(-softplus(a_param))^2 is uniform between the squares of these."""


Factory = dict[str, Any]
"""device and dtype of parameters, as torch's layers take them."""


class Place:
    """Where the tokens of a call stand; the same for every layer. No tuple, in which FSDP would round cos and sin.

    segment_pos: int64 [B, T]. documents: segment_pos where a document can begin inside the call or a cache goes before
    it, else None: one document from its first token. before: int64 [B], the cache's positions before the call, or None.
    tokens_before, bound_before: its ``tokens`` and ``bound``. update: whether the cache takes in these tokens.
    lengths: int64 [B], how many of the tokens it takes in, or None: all. last: int64 [B], the position of the last of
    these. pending: where blocks leave what the cache may take in later, or None; then ``update`` is False.
    cos, sin: [B, T, 1, d / 4], RoPE's; None without attention.
    """

    before: Tensor | None = None
    lengths: Tensor | None = None
    pending: PendingTokens | None = None
    tokens_before: int = 0
    bound_before: int = 0
    cos: Tensor | None = None
    sin: Tensor | None = None

    def __init__(self, segment_pos: Tensor, documents: Tensor | None, update: bool) -> None:
        self.segment_pos, self.documents, self.update = segment_pos, documents, update
        self.last = segment_pos[:, -1]

    @property
    def whole_step(self) -> bool:
        """Whether every row takes in one token, which is all there is."""
        return self.update and self.lengths is None and self.segment_pos.shape[1] == 1


Layer = TypeVar("Layer", bound=nn.Module)


def undrawn(module: type[Layer], *sizes: int, factory: Factory, **options: bool) -> Layer:
    """A layer whose weights are not drawn yet; unlike torch's ``skip_init`` it can be made under FakeTensorMode."""
    layer = module(*sizes, **options, **factory | {"device": "meta"})
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty_like(parameter, device=factory["device"])))
    return layer


def linears(config: GriffinConfig, part: BlockType | Literal["mlp"], factory: Factory) -> Iterator[nn.Linear]:
    """The linear layers of a kind of time mixing, or of the MLP, whose weights are not drawn yet."""
    for inputs, outputs, bias in config.linears(part).values():
        yield undrawn(nn.Linear, inputs, outputs, bias=bias, factory=factory)


def rope_tables(segment_pos: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, 1, head_dim / 4] of position * base^(-2i / (head_dim / 2)).

    float32, as in the published models; float64 for a float64 model. Source: google-deepmind/recurrentgemma.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=compute, device=segment_pos.device) / half
    angles = segment_pos[:, :, None, None].to(compute) * (1.0 / base**exponents)
    return angles.cos(), angles.sin()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dim, in float32 or better; weight [width] begins at 0.

    The weight is an offset from 1, as both published checkpoints store it.
    """

    def __init__(self, width: int, eps: float, factory: Factory) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width, **factory))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]; the result has its shape and dtype."""
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = 1.0 + self.weight.to(compute)
        return functional.rms_norm(x.to(compute), self.weight.shape, scale, self.eps).to(x.dtype)


class GatedMLP(nn.Module):
    """down(gelu(gate) * value), gate and value [..., mlp_width] from one matmul; gelu in its tanh approximation.

    ``up.weight``: [2 mlp_width, width], the gate's rows first.
    """

    def __init__(self, config: GriffinConfig, factory: Factory) -> None:
        super().__init__()
        self.up, self.down = linears(config, "mlp", factory)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]; the result has its shape and dtype."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(functional.gelu(gate, approximate="tanh") * value)  # type: ignore[no-any-return]


class TemporalConv1D(nn.Module):
    """Causal depthwise convolution. weight: [K, R], the last row for the present token. bias: [R]."""

    def __init__(self, config: GriffinConfig, factory: Factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.conv_width, config.lru_width, **factory))
        self.bias = nn.Parameter(torch.empty(config.lru_width, **factory))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=math.sqrt(0.01 / self.weight.shape[0]))  # as published
        nn.init.zeros_(self.bias)


class RGLRU(nn.Module):
    """The RG-LRU with its parameters, named as in RGLRUWeights."""

    def __init__(self, config: GriffinConfig, factory: Factory) -> None:
        super().__init__()
        heads, n = config.gate_blocks, config.gate_block_width
        shapes = RGLRUWeights((config.lru_width,), (heads, n, n), (heads, n, n), (heads, n), (heads, n))  # type: ignore[arg-type]
        for name, shape in shapes._asdict().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))

    @property
    def weights(self) -> RGLRUWeights:
        return RGLRUWeights(*[getattr(self, name) for name in RGLRUWeights._fields])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        a_param, *gates, input_bias, recurrence_bias = self.weights
        for gate in gates:
            nn.init.normal_(gate, std=gate.shape[1] ** -0.5)
        nn.init.zeros_(input_bias)
        nn.init.zeros_(recurrence_bias)
        square = torch.empty_like(a_param, dtype=torch.float32).uniform_(MIN_RADIUS**2, MAX_RADIUS**2)
        a_param.copy_(torch.log(torch.rsqrt(square) - 1))  # softplus of it is -log a


class RecurrentBlock(nn.Module):
    """out(rg_lru(conv(x W_x)) * gelu(x W_y)): Griffin's and Hawk's recurrent block."""

    def __init__(self, config: GriffinConfig, factory: Factory) -> None:
        super().__init__()
        self.linear_x, self.linear_y, linear_out = linears(config, "recurrent", factory)
        self.conv = TemporalConv1D(config, factory)
        self.rg_lru = RGLRU(config, factory)
        self.linear_out = linear_out

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        assert cache is None or isinstance(cache, RecurrentCache)
        before = cache if place.tokens_before else None
        y, x = self.linear_y(x), self.linear_x(x)
        weights = (self.conv.weight, self.conv.bias, self.rg_lru.weights)
        training = torch.is_grad_enabled() and x.requires_grad
        if cache is not None and place.whole_step and not training:  # the step has no gradient
            states = (cache.conv, cache.state)  # zeros before the first token
            out = recurrent_block_step(x[:, 0], y[:, 0], *weights, *states, positions=place.segment_pos[:, 0])
            return self.linear_out(out[:, None])  # type: ignore[no-any-return]
        some = cache if place.pending is not None or (place.update and place.lengths is not None) else None
        if some is not None and not training:  # nor have pools
            out = self._extend(x, y, place, some)
            return self.linear_out(out)  # type: ignore[no-any-return]
        conv, state = (None, None) if before is None else (before.conv, before.state)
        out, conv, state = recurrent_block(x, y, *weights, conv_state=conv, h0=state, segment_pos=place.segment_pos)
        if some is not None:
            self._extend(x, y, place, some)
        elif cache is not None and place.update:
            cache.update(state, conv)
        return self.linear_out(out)  # type: ignore[no-any-return]

    def _extend(self, x: Tensor, y: Tensor, place: Place, cache: RecurrentCache) -> Tensor:
        """Output without gradient [B, T, R]. The cache takes in some of the tokens, or all are left pending."""
        batch, time = x.shape[:2]
        rows = torch.arange(batch, device=x.device, dtype=torch.int64)
        steps = torch.arange(time, device=x.device, dtype=torch.int64)
        if place.pending is not None:
            pools = cache.with_room(time)
            rows = rows * (1 + time)
            keep = rows[:, None] + 1 + steps
        else:
            assert place.lengths is not None
            pools = cache.owned()
            keep = torch.where(steps == place.lengths[:, None] - 1, rows[:, None], -1)
        with torch.no_grad():
            weights = (self.conv.weight, self.conv.bias, self.rg_lru.weights)
            out = recurrent_block_extend(x, y, *weights, *pools, rows, keep, segment_pos=place.segment_pos)
        if place.pending is not None:
            place.pending.hold(cache, *(pool.view(batch, 1 + time, *pool.shape[1:]) for pool in pools))
        return out


class AttentionBlock(nn.Module):
    """Causal attention to the last ``window`` tokens of the document, or to all of them; multi-query by default.

    ``qkv.weight``: [(Hq + 2 Hkv) d, width]: rows of the queries, the keys, the values.
    """

    def __init__(self, config: GriffinConfig, window: int | None, factory: Factory) -> None:
        super().__init__()
        self.window = window
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.qkv, self.out = linears(config, "local_attention", factory)

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        assert cache is None or isinstance(cache, AttentionCache)
        assert place.cos is not None and place.sin is not None
        qkv = self.qkv(x).unflatten(2, (-1, self.head_dim))
        rotated = rotate(qkv[:, :, : -self.kv_heads], place.cos, place.sin)  # the first half of every head
        q, k, v = rotated[:, :, : self.heads], rotated[:, :, self.heads :], qkv[:, :, -self.kv_heads :]
        training = torch.is_grad_enabled() and q.requires_grad
        if cache is not None and place.whole_step and not training:  # the step has no gradient
            rings = (cache.keys, cache.values)
            out = local_attention_step(q[:, 0], k[:, 0], v[:, 0], *rings, place.segment_pos[:, 0])
            return self.out(out[:, None].flatten(2))  # type: ignore[no-any-return]
        keys, values = k, v
        reach = place.bound_before if self.window is None else self.window - 1
        past = min(place.tokens_before, reach)
        if cache is not None and place.before is not None and past:
            old_keys, old_values = cache.past(place.before, past)
            keys, values = torch.cat([old_keys, k], dim=1), torch.cat([old_values, v], dim=1)
        window = keys.shape[1] if self.window is None else self.window
        out = local_attention(q, keys, values, window=window, segment_pos=place.documents)
        if cache is not None and place.pending is not None:
            place.pending.hold(cache, k, v)
        elif cache is not None and place.update:
            cache.write(k, v, place.last, place.lengths)
        return self.out(out.flatten(2))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """x + mixing(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GriffinConfig, kind: BlockType, factory: Factory) -> None:
        super().__init__()
        self.temporal_norm = RMSNorm(config.width, config.norm_eps, factory)
        self.mixing: RecurrentBlock | AttentionBlock
        if kind == "recurrent":
            self.mixing = RecurrentBlock(config, factory)
        else:
            self.mixing = AttentionBlock(config, config.window if kind == "local_attention" else None, factory)
        self.channel_norm = RMSNorm(config.width, config.norm_eps, factory)
        self.mlp = GatedMLP(config, factory)

    def forward(self, x: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x: [B, T, width]; the result has its shape and dtype. The cache is updated in place."""
        x = x + self.mixing(self.temporal_norm(x), place, cache)
        return x + self.mlp(self.channel_norm(x))  # type: ignore[no-any-return]
