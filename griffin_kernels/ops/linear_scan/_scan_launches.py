"""What the hosts of the Triton scans share, of gates of every kind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import triton
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.gating import gate_rows, gating_of
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan._triton_scan import Matrices, Streams, Tile
from griffin_kernels.ops.linear_scan.op import rows_of

Arguments = tuple[int, dict[str, Any], dict[str, Any]]


def scan_arguments(call: Any, outputs: dict[str, Any]) -> Arguments:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h, h_last and a_prod."""
    x, a, h0, reset, cu_seqlens, reverse = call[:6]
    count = rows_of(x.shape[0], cu_seqlens)
    wide = accumulator(x.dtype)
    h_last = host.empty(outputs, "h_last", x, count, x.shape[2], dtype=wide)
    h = host.empty(outputs, "h", x, *x.shape, dtype=x.dtype)
    if getattr(call, "with_a_prod", False):
        host.empty(outputs, "a_prod", x, count, x.shape[2], dtype=wide)
    else:
        outputs["a_prod"] = None
    args = {
        "given": Streams(rows(x, reverse), steps_of(a, x, reverse), rows(reset, reverse), h),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "h_last": dense_state(h_last),
        "a_prod": dense_state(outputs["a_prod"]),
        "T": x.shape[1],
        "gating": gating_of(call),
    }
    return count, args, {"REVERSE": reverse, "ACC": host.wide(x.dtype)}


def steps_of(a: Tensor, x: Tensor, reverse: bool) -> Any:
    """The bundle of gates [Ba,Ta,D], matrices [B,T,H,n,n] or complex gates [B,T,D,2]; reverse: from the end of time."""
    if a.ndim < 5:
        return gate_rows(in_channels(a), x, reverse)
    row, column = (a.stride(3), a.stride(4)) if a.shape[4] > 1 else (1, 1)
    steps = host.row_stride(a, 0), host.signed_step(a, reverse)
    return Matrices(a, *steps, constant(1), host.known_stride(a, 2), constant(row), constant(column))


def in_channels(tensor: Tensor) -> Tensor:
    """Complex gates [B,T,D,2] with two channels for each; others as they are."""
    return tensor.flatten(2) if tensor.ndim == 4 else tensor


def read_by(call: Any) -> tuple[Tensor, ...]:
    """What kernels load of a call's data: x and a; of a gradient's dh, a, h, and x where it needs it."""
    others = getattr(call, "h", None), getattr(call, "x", None) if hasattr(call, "dh") else None
    return call[0], call.a, *(tensor for tensor in others if tensor is not None)


def padded(size: int) -> int:
    """The power of two from n on: what a block is in registers."""
    power: int = triton.next_power_of_2(size)
    return power


def blocks_in(block_a: int, size: int) -> int:
    """Blocks of a program whose tile has ``block_a`` elements of a in a step."""
    return max(1, block_a // padded(size) ** 2)


def scan_launch(
    kernel: Any,
    programs: int,
    inputs: tuple[Tensor, ...],
    config: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
) -> Launch:
    """The launch of ``programs`` programs for every block of channels of inputs, or every group of matrices or numbers.

    inputs: x, or dh; a; others that are loaded. config: block_t, block_d, or block_a of matrices, num_warps.
    """
    a = inputs[1]
    each = 1
    if a.ndim < 5:
        blocks, held = a.shape[2], config.block_d
        size, in_registers = (1, None) if a.ndim == 3 else (2, 2)
        load_bits = host.load_bits([*map(in_channels, inputs)], held * size // (32 * config.num_warps))
    else:
        (blocks, size), in_registers = a.shape[2:4], padded(a.shape[3])
        each, held, load_bits = size, blocks_in(config.block_a, size), _load_bits(a, config.block_a, config.num_warps)
    in_registers = in_registers and constant(in_registers)
    tile = Tile(constant(blocks), constant(size), in_registers, constant(held), constant(each))
    return Launch(
        kernel=kernel,
        grid=(programs * triton.cdiv(blocks, held),),
        args=args | {"tile": tile},
        constexprs=constexprs | {"BLOCK_T": config.block_t},
        num_warps=config.num_warps,
        tile=config.block_t * held * each,  # of the channels that a case counts: numbers
        claims=Claims(load_bits=load_bits),
    )


def _load_bits(a: Tensor, block_a: int, num_warps: int) -> int:
    """Width of a thread's load of matrices, as far as alignment lets it be that wide."""
    itemsize, size = a.element_size(), a.shape[4]
    if a[0, 0].stride() != (size * size, size, 1) or size != padded(size):
        return 8 * itemsize
    elements = min(16 // itemsize, block_a // (32 * num_warps))
    steps = (host.row_stride(a, 0), host.row_stride(a, 1))
    aligned = (blocks_in(block_a, size) * size * size, *steps, a.storage_offset())
    return 8 * itemsize * max(1, math.gcd(elements, *aligned))


def pipelined(launch: Launch, inputs: tuple[Tensor, ...], config: Any, spills: str = "") -> Launch:
    """A launch whose tiles of ``inputs`` are loaded ahead through shared memory."""
    bits = host.load_bits(inputs, launch.tile // (32 * config.num_warps))
    # copies below 4 bytes per thread cannot be asynchronous
    claims = Claims(load_bits=bits, async_copies=config.num_stages > 1 and bits >= 32, spills=spills)
    return dataclasses.replace(launch, num_stages=config.num_stages, claims=claims)
