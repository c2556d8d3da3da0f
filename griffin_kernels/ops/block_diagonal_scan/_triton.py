"""What the hosts of the Triton kernels of block_diagonal_scan and its gradient share."""

from __future__ import annotations

import math
from typing import Any

import triton
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host as plain


def padded(size: int) -> int:
    """The power of two from n on: what a block is in registers."""
    power: int = triton.next_power_of_2(size)
    return power


def blocks_in(block_a: int, size: int) -> int:
    """Blocks of a program whose tile has ``block_a`` elements of a in a step."""
    return max(1, block_a // padded(size) ** 2)


def matrix_strides(name: str, a: Tensor, reverse: bool) -> dict[str, Any]:
    """Parameters ``<NAME>_STEP``, signed by direction, ``<NAME>_BLOCK``, ``_ROW`` and ``_COLUMN``, in elements."""
    size = a.shape[4]
    row, column = (a.stride(3), a.stride(4)) if size > 1 else (1, 1)
    names = (f"{name}_STEP", f"{name}_BLOCK", f"{name}_ROW", f"{name}_COLUMN")
    return dict(zip(names, (plain.signed_step(a, reverse), plain.known_stride(a, 2), row, column), strict=True))


def tile_constexprs(a: Tensor, block_a: int) -> dict[str, int]:
    """Constexprs H, SIZE, N, BLOCK_H: the sizes of a and of a program's tile."""
    blocks, size = a.shape[2:4]
    return {"H": blocks, "SIZE": size, "N": padded(size), "BLOCK_H": blocks_in(block_a, size)}


def scan_arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last."""
    x, a, h0, reset, cu_seqlens, reverse = (inputs[name] for name in ("x", "a", "h0", "reset", "cu_seqlens", "reverse"))
    batch, time, width = x.shape
    rows = plain.rows_of(inputs, batch)
    args = {
        "x": x,
        "a": a,
        "h0": h0,
        "reset": plain.flags_of(reset),
        "cu_seqlens": cu_seqlens,
        "h": plain.empty(outputs, "h", x, batch, time, width, dtype=x.dtype),
        "h_last": plain.empty(outputs, "h_last", x, rows, width, dtype=accumulator(x.dtype)),
        "T": time,
        "x_batch": plain.row_stride(x, 0),
        "a_batch": plain.row_stride(a, 0),
        "reset_batch": plain.row_stride(reset, 0),
        "h0_row": plain.row_stride(h0, 0),
    }
    constexprs = {
        **plain.time_strides("X", x, reverse),
        **matrix_strides("A", a, reverse),
        "RESET_STEP": plain.signed_step(reset, reverse),
        "H0_CHANNEL": plain.channel_stride(h0),
        "REVERSE": reverse,
        "ACC": plain.wide(x.dtype),
    }
    return rows, args, constexprs


def load_bits(a: Tensor, block_a: int, num_warps: int) -> int:
    """Width of a thread's load of matrices, as far as alignment lets it be that wide."""
    itemsize, size = a.element_size(), a.shape[4]
    if a[0, 0].stride() != (size * size, size, 1) or size != padded(size):
        return 8 * itemsize
    elements = min(16 // itemsize, block_a // (32 * num_warps))
    steps = (plain.row_stride(a, 0), plain.row_stride(a, 1))
    aligned = (blocks_in(block_a, size) * size * size, *steps, a.storage_offset())
    return 8 * itemsize * max(1, math.gcd(elements, *aligned))


def unfit(case: Case, device: Device, block_a: int, num_warps: int) -> str | None:
    """Why a kernel whose programs own groups of blocks cannot run, or would only waste threads."""
    size = padded(case["n"])
    if reason := plain.not_here(device):
        return reason
    if case["n"] == 1:
        return "blocks of n = 1 are linear_scan, which has kernels of its own"
    if size * size > block_a:
        return f"a matrix of n = {case['n']} has {size * size} elements in registers, block_a={block_a} holds fewer"
    threads = num_warps * (device.warp_size or 32)
    if block_a < threads:
        return f"block_a={block_a} leaves threads without an element: {num_warps} warps here are {threads} threads"
    if block_a > 512 and blocks_in(block_a, case["n"]) >= 2 * case["H"]:
        return f"block_a={block_a} is at least twice the {case['H']} blocks of n = {case['n']}"
    return None


def starves(case: Case, device: Device, rows: int, streams: int) -> bool:
    """Whether one pass over time has too few loads in flight to keep the memory busy, and time should be split.

    rows: steps loaded ahead. streams: elements loaded per element of h besides the n of a.
    """
    # an H100 needs about 18 KB in flight per SM to reach its bandwidth; below half of that, reading a twice is cheaper
    ahead = case["N"] * case["D"] * (case["n"] + streams) * rows * case.bytes_per_element()
    return case["T"] >= 512 and ahead < 9 * 1024 * device.units
