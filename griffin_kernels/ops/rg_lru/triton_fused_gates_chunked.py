"""triton.fused_gates with time split over programs, for long sequences of few channels.

    1. reduce: products and gates of every chunk but the last, as one map h_out = P h_in + S      reads x
    2. carry:  h_in of every chunk                                          reads and writes rows of chunks only
    3. scan:   products and gates once more, h from the right h_in          reads x; writes y

The products are made twice rather than kept: they would be as many bytes as x, twice. P is a product of gates a <= 1,
which can only go to 0, where it should. Phase 3 takes the chunks in the opposite order, so that what phase 1 read last,
and the cache still holds, is read first.

Bytes per element, in data elements: 1 + 2 (bf16: 6), plus six float32 per chunk and channel and, from the cache, what
triton.fused_gates reads more; tensor FLOPs, special functions and instructions twice those of it. Bound by instruction
issue. One pass would leave most of the device idle here.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, on the recurrence of arXiv 2402.19427.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import chunks as _triton_chunks
from griffin_kernels.ops._triton.chunks import entering
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru import _triton
from griffin_kernels.ops.rg_lru._triton_jit import decay
from griffin_kernels.ops.rg_lru._triton_tiles import (
    gate_tile,
    load_weight,
    reduce_tile,
    scan_tile,
    steps_of_columns,
    store_tile,
)


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps of a tile, 0 for as many as fit the device. block_n: output channels.

    num_stages: tiles of x in shared memory. fast: sigmoids by the hardware's tanh, bf16 only.
    """

    chunk: int = 256
    block_t: int = 0
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2
    fast: bool = False


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_gates_chunks(
    x,
    weight_i,
    weight_r,
    a_param,
    bias_i,
    bias_r,
    h0,
    positions,
    enter,
    leave,
    product,
    result,
    branch,
    y,
    out,
    h_last,
    T,
    chunks,
    x_batch,
    position_batch,
    branch_batch,
    h0_row,
    D: tl.constexpr,
    n: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    REDUCE: tl.constexpr,
    FAST: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One chunk. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds the states that leave all chunks
    but the last, and y, out and h_last are written. Grid: B * (chunks, or chunks + 1) * H * ceil(n / block_n).
    """
    SLICES: tl.constexpr = (n + BLOCK_N - 1) // BLOCK_N
    PROGRAMS: tl.constexpr = SLICES * (D // n)
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    pieces = chunks if REDUCE else chunks + 1
    block = place // SLICES % (D // n)
    batch = tl.cast(place // PROGRAMS // pieces, tl.int64)
    chunk = tl.cast(place // PROGRAMS % pieces, tl.int64)
    outputs = place % SLICES * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = block * n + outputs
    inside = outputs < n
    first = chunk * CHUNK
    length = tl.cast(tl.minimum(T - first, CHUNK), tl.int32)
    x += batch * x_batch + first * far(X_STEP) + tl.cast(block, tl.int64) * (n * X_CHANNEL)
    if branch is not None:
        branch += batch * branch_batch + first * far(BRANCH_STEP) + tl.cast(block, tl.int64) * (n * BRANCH_CHANNEL)
    if y is not None:
        y += (batch * T + first) * D
    if out is not None:
        out += (batch * T + first) * D
    if positions is not None:
        positions += batch * position_batch + first * far(POSITION_STEP)
    state = h0
    if enter is not None:
        state = None
        enter += first
        leave += first
    w_i = load_weight(weight_i, block, outputs, n, PART)
    w_r = load_weight(weight_r, block, outputs, n, PART)
    b_i = tl.load(bias_i + columns, mask=inside, other=0.0).to(tl.float32)
    b_r = tl.load(bias_r + columns, mask=inside, other=0.0).to(tl.float32)
    decay_log2 = decay(tl.load(a_param + columns, mask=inside, other=0.0))
    steps = steps_of_columns(BLOCK_T)
    p = tl.full((BLOCK_N,), 1.0, dtype=tl.float32)
    s = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if not REDUCE:
        s = entering(result, state, batch, chunk, chunks, h0_row, columns, inside, D, H0_CHANNEL, tl.float32, BLOCK_N)
    for begin in tl.range(0, length, BLOCK_T, num_stages=STAGES):
        left = length - begin
        a, u, cut = gate_tile(
            x,
            positions,
            enter,
            h0,
            h0_row,
            w_i,
            w_r,
            b_i,
            b_r,
            decay_log2,
            outputs,
            columns,
            steps,
            first + begin,
            left,
            n=n,
            D=D,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            H0_CHANNEL=H0_CHANNEL,
            FRESH=FRESH,
            FAST=FAST,
            PART=PART,
            BLOCK_N=BLOCK_N,
            BLOCK_T=BLOCK_T,
        )
        if REDUCE:
            p, s = reduce_tile(a, u, cut, p, s, BLOCK_N, BLOCK_T)
        else:
            states, s = scan_tile(a, u, cut, s, BLOCK_N, BLOCK_T)
            store_tile(y, out, branch, states, outputs, columns, inside, steps, left, n, D, far(BRANCH_STEP),
                       BRANCH_CHANNEL, FAST, BLOCK_N, BLOCK_T)  # fmt: skip
            if leave is not None:
                ends = tl.load(leave + steps, mask=steps < left, other=-1)
                last = h_last + (ends.to(tl.int64)[None, :] * D + columns[:, None])
                tl.store(last, states, mask=(ends >= 0)[None, :] & inside[:, None])
                leave += BLOCK_T
            if branch is not None:
                branch += BLOCK_T * far(BRANCH_STEP)
            if y is not None:
                y += BLOCK_T * D
            if out is not None:
                out += BLOCK_T * D
        x += BLOCK_T * far(X_STEP)
        if positions is not None:
            positions += BLOCK_T * far(POSITION_STEP)
        if enter is not None:
            enter += BLOCK_T
    if REDUCE:
        out = (batch * chunks + chunk) * D + columns
        tl.store(product + out, p, mask=inside)
        tl.store(result + out, s, mask=inside)
    elif enter is None:
        tl.store(h_last + batch * D + columns, s, mask=inside & (chunk == chunks))


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    args, constexprs = _triton.arguments(inputs, outputs)
    x, h0 = inputs["x"], inputs["h0"]
    batch, time, width = x.shape
    blocks, n = inputs["input_gate_bias"].shape
    block_t = _triton.tile_steps(n, x.element_size(), config, launch.architecture(x))
    enter, leave, marks = _triton_chunks.mark(
        inputs["cu_seqlens"], h0, outputs["h_last"], time, width, False, tl.float32
    )
    chunks = triton.cdiv(time, config.chunk) - 1
    product = result = None
    if chunks:
        product, result = torch.empty((2, batch, chunks, width), dtype=torch.float32, device=x.device)
    args |= _triton.weights(inputs)
    args |= {"enter": enter, "leave": leave, "product": product, "result": result, "chunks": chunks}
    constexprs |= _triton.tile_constexprs(n, block_t, config) | {"CHUNK": config.chunk, "STAGES": config.num_stages}

    def phase(reduce: bool) -> Launch:
        return Launch(
            kernel=rg_lru_gates_chunks,
            grid=(batch * (chunks if reduce else chunks + 1) * blocks * triton.cdiv(n, config.block_n),),
            args=args,
            constexprs=constexprs | {"REDUCE": reduce},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            tile=block_t * config.block_n,
            claims=_triton.claims(x, n, block_t, config),
        )

    before: list[Launch] = []
    if product is not None and result is not None:
        before = [phase(True), _triton_chunks.carry(product, result, h0 if enter is None else None)]
    return [*marks, *before, phase(False)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.block_t and config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return _triton.unfit_gates(case, device, config)


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data where one program per channel slice would leave units idle."""
    return 50 if case.bytes_per_element() == 2 and _triton.underfills(case, device, VARIANT.config()) else 11


def traffic(case: Case, config: Config) -> int:
    """Bytes of the one-pass form, x of all chunks but the last once more, scratch rows."""
    rows = case["B"] * case["D"]
    before = triton.cdiv(case["T"], config.chunk) - 1
    again: int = rows * before * config.chunk * case.bytes_per_element()
    return _triton.traffic(case, streams=2, scratch=again + 6 * rows * before * 4)


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_gates_chunked",
    summary="gate products on matrix units, time split over programs: reduce, carry, scan",
    config=Config,
    axes={
        "chunk": (64, 128, 256, 512),
        "block_t": (16, 32, 64),
        "block_n": (32, 64, 128),
        "num_stages": (2, 3),
        "fast": (False, True),
    },
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
