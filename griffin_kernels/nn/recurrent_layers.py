"""The temporal convolution, the RG-LRU, and the recurrent block around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from griffin_kernels import errors
from griffin_kernels.functional import (
    RGLRUWeights,
    recurrent_block,
    recurrent_block_step,
    rg_lru,
    rg_lru_step,
    temporal_conv1d,
)
from griffin_kernels.nn.drawing import draw_decay, draw_gate, draw_linear, draw_taps, factory_of, positive, undrawn
from griffin_kernels.nn.linear_layers import Linear
from griffin_kernels.nn.sharded import local


class TemporalConv1D(nn.Module):
    """Causal depthwise convolution over time. weight: [K, width], the last row for the present token. bias: [width].

    width: channels. conv_width: taps, K. bias: whether there is one.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        width: int,
        conv_width: int = 4,
        *,
        bias: bool = True,
        draw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(width=width, conv_width=conv_width)
        factory = factory_of(device, dtype)
        self.weight = nn.Parameter(torch.empty(conv_width, width, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(width, **factory)) if bias else None)
        if draw:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        draw_taps(self.weight, self.weight.shape[0])
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def taps(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return local(self.weight), None if self.bias is None else local(self.bias)

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """x: [B, T, width]; options: state, segment_pos, cu_seqlens, activation and residual of ``temporal_conv1d``.

        Returns y [B, T, width] and the state [B, K-1, width] for the tokens that follow, both in x's dtype.
        """
        return temporal_conv1d(x, *self.taps, **options)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, conv_width={self.weight.shape[0]}, bias={self.bias is not None}"


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit with its parameters, named as in RGLRUWeights; see ``rg_lru``.

    width: channels, D. heads: H, blocks of the gates' block-diagonal matrices; divides width. a_param is drawn so that
    exp(-softplus(a_param))^2 is uniform in [0.9^2, 0.999^2], gate matrices with variance 1 / n for n = D / H.

    Parameters may be of any float dtype beside any x. ``a_param`` wants float32: at a = 0.99, bfloat16's spacing is 3%
    of -log a, more than an optimizer's step. So a model in bfloat16 keeps its RG-LRUs in float32,
    ``module.rg_lru.float()``: they are 1% of its parameters.

    Under FSDP2 with ``MixedPrecisionPolicy(param_dtype=torch.bfloat16)``, wrap it by itself, before what holds it:
    ``fully_shard(module.rg_lru)``. Its parameters then are gathered in float32 when it is called, and a_param is not
    rounded. ``griffin_kernels.nn.RecurrentBlock`` calls it so too.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        draw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(width=width, heads=heads)
        if width % heads:
            raise errors.ArgumentError(f"heads is {heads}, which does not divide {width=}")
        factory, n = factory_of(device, dtype), width // heads
        shapes = RGLRUWeights((width,), (heads, n, n), (heads, n, n), (heads, n), (heads, n))  # type: ignore[arg-type]
        for name, shape in shapes._asdict().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))
        if draw:
            self.reset_parameters()

    @property
    def weights(self) -> RGLRUWeights:
        return RGLRUWeights(*[local(getattr(self, name)) for name in RGLRUWeights._fields])

    def reset_parameters(self) -> None:
        a_param, *gates, input_bias, recurrence_bias = self.weights
        for gate in gates:
            draw_gate(gate)
        nn.init.zeros_(input_bias)
        nn.init.zeros_(recurrence_bias)
        draw_decay(a_param)

    def forward(self, x: Tensor, *others: Tensor | None, op: Callable[..., Any] = rg_lru, **options: Any) -> Any:
        """x: [B, T, D]; options: h0 [B, D], segment_pos [B, T] and cu_seqlens [N+1], as ``rg_lru`` takes them.

        Returns y [B, T, D] in x's dtype and h_last [B, D] in float32 (float64 for float64).

        op: another operation with the weights of an RG-LRU. It is called as ``op(x, *others, weights, **options)``
        and its results are returned. It is called here, because FSDP2 gathers parameters of the module that is called.
        """
        return op(x, *others, self.weights, **options)

    def step(self, x: Tensor, h: Tensor, **options: Any) -> Tensor:
        """One token: ``rg_lru_step``. x: [B, D]; h: [P, D], changed in place. Returns y [B, D]; it has no gradient.

        options: positions, slots, dst_slots, pad_slot and out; position 0 begins a document, which does not read h.
        """
        return self(x, op=rg_lru_step, h=h, **options)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        heads, n, _ = self.weights.input_gate_weight.shape
        return f"{heads * n}, heads={heads}"


class RecurrentBlock(nn.Module):
    """linear_out(rg_lru(conv(linear_x(x))) * gelu(linear_y(x))): Griffin's and Hawk's recurrent block.

    width: of x and of the result. lru_width: R, channels of the recurrence; width if None. heads: gate blocks of the
    RG-LRU, which divide lru_width. conv_width: K, taps of the convolution. All between the linear layers is one
    operation, ``recurrent_block``.
    """

    def __init__(
        self,
        width: int,
        lru_width: int | None = None,
        *,
        heads: int,
        conv_width: int = 4,
        draw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        lru_width = width if lru_width is None else lru_width
        positive(width=width, lru_width=lru_width)
        factory = factory_of(device, dtype)
        self.linear_x = undrawn(Linear, width, lru_width, factory=factory)
        self.linear_y = undrawn(Linear, width, lru_width, factory=factory)
        self.conv = TemporalConv1D(lru_width, conv_width, draw=False, **factory)
        self.rg_lru = RGLRU(lru_width, heads, draw=False, **factory)
        self.linear_out = undrawn(Linear, lru_width, width, factory=factory)
        if draw:
            self.reset_parameters()

    def reset_parameters(self, last: float = 1.0) -> None:
        """last: variance of the last matrix, in 1 / inputs; published models have 2 / layers."""
        draw_linear(self.linear_x)
        draw_linear(self.linear_y)
        self.conv.reset_parameters()
        self.rg_lru.reset_parameters()
        draw_linear(self.linear_out, last)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What ``recurrent_block`` is given before the weights of the RG-LRU: both branches, the convolution's."""
        return self.linear_x(x), self.linear_y(x), *self.conv.taps

    def forward(
        self,
        x: Tensor,
        *,
        conv_state: Tensor | None = None,
        h0: Tensor | None = None,
        segment_pos: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, T, width]; the rest as ``recurrent_block`` takes it, states of R channels.

        Returns the result [B, T, width] in x's dtype, and for the tokens that follow conv_state [B, K-1, R] and h_last
        [B, R]. Differentiable in everything, from everything.
        """
        states = {"conv_state": conv_state, "h0": h0, "segment_pos": segment_pos, "cu_seqlens": cu_seqlens}
        out, conv_state, h_last = self.rg_lru(*self.branches(x), op=recurrent_block, **states)
        return self.linear_out(out), conv_state, h_last

    def step(self, x: Tensor, conv_state: Tensor, h: Tensor, **options: Any) -> Tensor:
        """One token. x: [B, width]; conv_state [P, K-1, R] and h [P, R] are changed in place; no gradient.

        options: positions, slots, dst_slots and pad_slot of ``recurrent_block_step``. Returns [B, width].
        """
        out = self.rg_lru(*self.branches(x), op=recurrent_block_step, conv_state=conv_state, h=h, **options)
        return self.linear_out(out)  # type: ignore[no-any-return]
