"""Tree scan of (gate, gradient) pairs over tiles of time, from the last step to the first.

    g_t = dh_t + m_{t+1} a_{t+1} g_{t+1},   dx_t = g_t,   da_t = m_t g_t h_{t-1},   dh0 = m_0 a_0 g_0

The mirror of linear_scan/triton.associative. A tile of a is loaded one step late and a tile of h one step early, so
both line up with dh and no tile is shifted in registers.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). Bound by instruction issue: the tree's
multiplications, shuffles and exchanges between warps.
Source: as linear_scan/triton.associative, by the chain rule.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host as forward
from griffin_kernels.ops._triton.scan import (
    AGAIN,
    beyond_one,
    combine,
    combine_cut,
    last_row,
    load_state,
    span,
    tile_offsets,
)
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.linear_scan_bwd import _triton
from griffin_kernels.ops.linear_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of a tile. num_stages: tiles in flight, the one in work included."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    num_stages: int = 3


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_associative(
    dh,
    dh_last,
    a,
    h,
    h0,
    reset,
    cu_seqlens,
    dx,
    da,
    dh0,
    T,
    dh_batch,
    a_batch,
    h_batch,
    reset_batch,
    dh_last_row,
    h0_row,
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dh, a, h, dx, da: [B,T,D]; dh_last, h0, dh0: [N,D]; reset: [B,T] bytes. Grid: N * ceil(D / block_d)."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    final = tl.cast(tl.maximum(steps - 1, 0), tl.int64)
    dh += batch * dh_batch + first * (SIGN * far(DH_STEP))
    a += batch * a_batch + first * (SIGN * far(A_STEP))
    h += batch * h_batch + first * (SIGN * far(H_STEP))
    dx += (batch * T + first) * D
    da += (batch * T + first) * D
    final_gate = a + final * far(A_STEP)
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
        final_reset = reset + final * far(RESET_STEP)
    rows = tl.arange(0, BLOCK_T)
    dh_tile = tile_offsets(rows, columns, far(DH_STEP), DH_CHANNEL, BLOCK_T, D)
    a_tile = tile_offsets(rows, columns, far(A_STEP), A_CHANNEL, BLOCK_T, D)
    h_tile = tile_offsets(rows, columns, far(H_STEP), H_CHANNEL, BLOCK_T, D)
    out_tile = tile_offsets(rows, columns, SIGN * D, 1, BLOCK_T, D)
    before_first = load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_D)  # [block_d]
    carry = load_state(dh_last, row, dh_last_row, columns, inside, DH_LAST_CHANNEL, ACC, BLOCK_D)  # [block_d]
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    for begin in tl.range(0, steps, BLOCK_T, num_stages=STAGES):
        left = steps - begin
        here = rows < left  # [block_t]
        late = here & (rows + begin > 0)
        mask = here[:, None] & inside[None, :]
        values = tl.load(dh + dh_tile, mask=mask, other=0.0).to(ACC)
        gates = tl.load(a - far(A_STEP) + a_tile, mask=late[:, None] & inside[None, :], other=1.0).to(ACC)
        early = (rows < left - 1)[:, None] & inside[None, :]
        before = tl.load(h + far(H_STEP) + h_tile, mask=early, other=0.0).to(ACC)
        before = tl.where((rows == left - 1)[:, None], before_first[None, :], before)
        if reset is not None:
            late_resets = tl.load(reset - far(RESET_STEP) + rows * far(RESET_STEP), mask=late, other=0)
            gates = tl.where(late_resets[:, None] != 0, 0.0, gates)
            reach, local = tl.associative_scan((gates, values), 0, combine_cut)
            g = tl.where(reach == 0.0, local, reach * carry[None, :] + local)
            resets = tl.load(reset + rows * far(RESET_STEP), mask=here, other=0)
            before = tl.where(resets[:, None] != 0, 0.0, before)
            reset += BLOCK_T * far(RESET_STEP)
        else:
            reach, local = tl.associative_scan((gates, values), 0, combine)
            g = reach * carry[None, :] + local
        most = tl.maximum(most, tl.max(tl.abs(gates), axis=0))
        tl.store(dx + out_tile, g.to(dx.dtype.element_ty), mask=mask)
        tl.store(da + out_tile, (g * before).to(da.dtype.element_ty), mask=mask)
        carry = last_row(g, rows, BLOCK_T)
        dh += BLOCK_T * far(DH_STEP)
        a += BLOCK_T * far(A_STEP)
        h += BLOCK_T * far(H_STEP)
        dx += BLOCK_T * SIGN * D
        da += BLOCK_T * SIGN * D
    if dh0 is not None:
        # a sequence without steps hands its gradient through
        gate = tl.load(final_gate + columns * A_CHANNEL, mask=inside & (steps > 0), other=1.0).to(ACC)
        handed = gate * carry
        if reset is not None:
            handed = tl.where(tl.load(final_reset, mask=steps > 0, other=0) != 0, 0.0, handed)
        tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, handed, mask=inside)
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        # products may be of no use: those channels again, whose rows other threads have written
        tl.debug_barrier()
        back = tl.cast(tl.cdiv(steps, BLOCK_T), tl.int64) * BLOCK_T
        a -= back * far(A_STEP)
        wild = beyond_one(a, columns, inside, steps, far(A_STEP), A_CHANNEL, ACC, BLOCK_D)
        if reset is not None:
            reset -= back * far(RESET_STEP)
        carry = scan_rows(
            dh - back * far(DH_STEP),
            a,
            h - back * far(H_STEP),
            reset,
            None,
            None,
            dx - back * SIGN * D,
            da - back * SIGN * D,
            None,
            0,
            None,
            0,
            None,
            load_state(dh_last, row, dh_last_row, columns, wild, DH_LAST_CHANNEL, ACC, BLOCK_D),
            before_first,
            columns,
            wild,
            steps,
            steps,
            D=D,
            DH_STEP=far(DH_STEP),
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=far(A_STEP),
            A_CHANNEL=A_CHANNEL,
            H_STEP=far(H_STEP),
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=far(RESET_STEP),
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=AGAIN,
            BLOCK_D=BLOCK_D,
            SOME=True,
        )
        if dh0 is not None:
            tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, carry, mask=wild)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    dh, a, h = inputs["dh"], inputs["a"], inputs["h"]
    bits = forward.load_bits((dh, a, h), config.block_t * config.block_d // (32 * config.num_warps))
    return [
        Launch(
            kernel=linear_scan_bwd_associative,
            grid=(rows * triton.cdiv(a.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d, "STAGES": config.num_stages},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            tile=config.block_t * config.block_d,
            # copies below 4 bytes per thread cannot be asynchronous
            claims=Claims(
                load_bits=bits,
                async_copies=config.num_stages > 1 and bits >= 32,
                spills="8 bytes a thread, none of them in the loop" if launch.architecture(a) == "sm_100" else "",
            ),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return forward.not_here(device) or forward.idle_channels(case, config.block_d)


def rank(case: Case, device: Device) -> int:
    """Never the default among Triton's scans: more instructions for the same bytes."""
    return 12


VARIANT = Variant(
    op="linear_scan_bwd",
    name="triton.associative",
    summary="tree scan of (gate, gradient) pairs over pipelined tiles",
    config=Config,
    axes={"block_t": (16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2, 4), "num_stages": (2, 3, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
