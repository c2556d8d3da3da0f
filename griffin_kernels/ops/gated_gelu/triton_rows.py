"""One launch, a program per ``block_t`` steps and block of channels.

    out = gelu(gate) value

All loads of a program are issued before the first is used, 16 bytes of a tensor at a time where a thread has 8 channels
of 16 bits. Bytes per element: the ideal three data elements, 6 in bf16. Bound by memory bandwidth, for one token by the
launch: an exponential and a reciprocal per element are a third of what an H100 has time for in 16 bits.
Source: the two-operand forms of Liger's geglu and vLLM's gelu_tanh_and_mul do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.activations import GELU, activated
from griffin_kernels.ops._triton.tensors import at, load_rows, own_channels, store_row
from griffin_kernels.ops.gated_gelu import _gelu_launches
from griffin_kernels.ops.gated_gelu.op import Call


@dataclass(frozen=True)
class Config:
    """block_t: steps of a program. block_d: its channels; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 2
    block_d: int = 512
    num_warps: int = 2


@triton.jit
def gelu_tile(
    gate, value, out, batch, time, channels, left, ACC: tl.constexpr, BLOCK_T: tl.constexpr, TAIL: tl.constexpr
):
    """The BLOCK_T steps from ``time`` on, ``left`` of them in the tail."""
    gates = load_rows(at(gate, batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    values = load_rows(at(value, batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        product = activated(gates[u].to(ACC), GELU) * values[u].to(ACC)
        store_row(at(out, batch, time, 1), u, product, channels, left, TAIL)


@triton.jit(do_not_specialize=["T"])
def gated_gelu_rows(
    gate, value, out, T, ACC: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr
):
    """gate, value, out: [B,T,D]. Grid: B * ceil(T / block_t) * ceil(D / block_d), channels fastest."""
    place, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    parts = (T + BLOCK_T - 1) // BLOCK_T
    batch = tl.cast(place // parts, tl.int64)
    time = tl.cast(place % parts, tl.int64) * BLOCK_T
    left = T - time
    if left >= BLOCK_T:
        gelu_tile(gate, value, out, batch, time, channels, left, ACC, BLOCK_T, False)
    else:
        gelu_tile(gate, value, out, batch, time, channels, left, ACC, BLOCK_T, True)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """The only launch; allocates out."""
    out = host.empty(outputs, "out", call.gate, *call.gate.shape, dtype=call.gate.dtype)
    return [_gelu_launches.launch(gated_gelu_rows, call._asdict(), {"out": out}, config)]


VARIANT = Variant(
    op="gated_gelu",
    name="triton.rows",
    summary="one launch, a program per few steps and block of channels",
    config=Config,
    axes={"block_t": (1, 2, 4), "block_d": (256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=_gelu_launches.unfit,
    rank=lambda case, device: 30,
    launches=launches,
)
