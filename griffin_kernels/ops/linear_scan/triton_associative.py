"""Tree scan of (a, x) pairs over tiles of time, tiles loaded ahead through shared memory.

    h_t = a_t * h_{t-1} + x_t        (a_1, x_1) then (a_2, x_2)  =  (a_1 a_2, a_2 x_1 + x_2)

A program owns ``block_d`` channels of one batch entry or packed sequence and goes through time in tiles of
[block_t, block_d]. ``tl.associative_scan`` along time gives every step's map from the tile's first state; the state
itself enters afterwards, h = A * carry + X. Pairs are float32 before the scan, which combines in its input's dtype.
Channels with a gate beyond [-1, 1] are done again, step by step: their products may overflow where the state does not.
Few warps per tile keep most of the tree inside a thread; more exchange through shared memory at every tile.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32). Bound by instruction issue: two
multiplications and an addition per level of the tree, shuffles and exchanges between warps, against one multiply-add
for triton.sequential.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4; arXiv 2208.04933 (S5), appendix H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.gating import gate_of, held_gates, input_of
from griffin_kernels.ops._triton.scan import combine, combine_cut, last_row, span
from griffin_kernels.ops._triton.tensors import Rows, load_state, own_channels, store_state, tile_offsets
from griffin_kernels.ops.linear_scan._scan_launches import pipelined, scan_arguments
from griffin_kernels.ops.linear_scan._triton_scan import ScanEnds, scan_again, streams_at, streams_later
from griffin_kernels.ops.linear_scan.op import Call


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of a tile. num_stages: tiles in flight, the one in work included."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    num_stages: int = 3


@triton.jit(do_not_specialize=["T"])
def linear_scan_associative(
    given,
    h0,
    cu_seqlens,
    h_last,
    a_prod,
    T,
    gating,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """given: x, h [B,T,D], a [Ba,Ta,D], reset [B,T]; h0, h_last, a_prod: [N,D]. Grid: N * ceil(D / block_d)."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    NEUTRAL: tl.constexpr = 1.0 if gating is None or not gating.log else 0.0
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, steps = span(row, cu_seqlens, T, REVERSE)
    streams = streams_at(given, batch, first, T, D, SIGN)
    times = tl.arange(0, BLOCK_T)
    x_tile = tile_offsets(times, channels.columns, given.x, BLOCK_T, D)
    a_tile = tile_offsets(times, channels.columns, given.a, BLOCK_T, D)
    h_tile = tile_offsets(times, channels.columns, Rows(given.h, 0, SIGN * D, 1), BLOCK_T, D)
    carry = load_state(h0, row, channels, ACC)  # [block_d]
    product = None if a_prod is None else tl.full((BLOCK_D,), 1.0, dtype=ACC)
    held = held_gates(streams.a, channels, gating, ACC)
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    for begin in tl.range(0, steps, BLOCK_T, num_stages=STAGES):
        here = times < steps - begin  # [block_t]
        mask = here[:, None] & channels.inside[None, :]
        values = tl.load(streams.x.at + x_tile, mask=mask, other=0.0).to(ACC)
        if held is None:
            given_gates = tl.load(streams.a.at + a_tile, mask=mask, other=NEUTRAL)
        else:
            given_gates = tl.where(mask, held[None, :], NEUTRAL)
        gates = gate_of(given_gates, gating, ACC).to(ACC)
        values = input_of(values, given_gates, gates, gating)
        if given.reset is not None:
            resets = tl.load(streams.reset.at + times * streams.reset.step, mask=here, other=0)
            gates = tl.where(resets[:, None] != 0, 0.0, gates)
            reach, local = tl.associative_scan((gates, values), 0, combine_cut)
            states = tl.where(reach == 0.0, local, reach * carry[None, :] + local)
            if product is not None:
                passed = last_row(reach, times, BLOCK_T)
                product = tl.where(passed == 0.0, 0.0, passed * product)
        else:
            reach, local = tl.associative_scan((gates, values), 0, combine)
            states = reach * carry[None, :] + local
            if product is not None:
                product *= last_row(reach, times, BLOCK_T)
        most = tl.maximum(most, tl.max(tl.abs(gates), axis=0))
        tl.store(streams.h.at + h_tile, states.to(given.h.dtype.element_ty), mask=mask)
        carry = last_row(states, times, BLOCK_T)
        streams = streams_later(streams, BLOCK_T)
    store_state(h_last, row, carry, channels)
    store_state(a_prod, row, product, channels)
    done = tl.cast(tl.cdiv(steps, BLOCK_T), tl.int64) * BLOCK_T
    scan_again(streams, ScanEnds(h0, h_last, a_prod), row, most, channels, steps, done, gating)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    count, args, constexprs = scan_arguments(call, outputs)
    inputs, constexprs = (call.x, call.a), constexprs | {"STAGES": config.num_stages}
    launch = host.channel_launch(linear_scan_associative, count, inputs, config, args, constexprs)
    return [pipelined(launch, inputs, config)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return host.not_here(device) or host.idle_channels(case, config.block_d)


VARIANT = Variant(
    op="linear_scan",
    name="triton.associative",
    summary="tree scan of (a, x) pairs over pipelined tiles",
    config=Config,
    axes={"block_t": (16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2, 4), "num_stages": (2, 3, 4)},
    reject=reject,
    rank=lambda case, device: 12,  # never the default of Triton's scans: more instructions for the same bytes
    launches=launches,
)
