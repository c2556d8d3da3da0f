"""What the hosts of the Triton kernels of block_diagonal_scan and its gradient share."""

from __future__ import annotations

import math
from typing import Any

import triton
from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import BlockSizes, Matrices


def padded(size: int) -> int:
    """The power of two from n on: what a block is in registers."""
    power: int = triton.next_power_of_2(size)
    return power


def blocks_in(block_a: int, size: int) -> int:
    """Blocks of a program whose tile has ``block_a`` elements of a in a step."""
    return max(1, block_a // padded(size) ** 2)


def matrices(a: Tensor, reverse: bool) -> Matrices:
    """The bundle of a tensor [B,T,H,n,n]."""
    row, column = (a.stride(3), a.stride(4)) if a.shape[4] > 1 else (1, 1)
    steps = host.row_stride(a, 0), host.signed_step(a, reverse)
    return Matrices(a, *steps, constant(1), host.known_stride(a, 2), constant(row), constant(column))


def tile_of(a: Tensor, block_a: int) -> BlockSizes:
    """The sizes of a and of a program's tile."""
    blocks, size = a.shape[2:4]
    return BlockSizes(*(constant(number) for number in (blocks, size, padded(size), blocks_in(block_a, size))))


def launch(kernel: Any, programs: int, a: Tensor, config: Any, args: dict[str, Any], constexprs: Any) -> Launch:
    """The launch of ``programs`` programs for every group of blocks. config: block_t, block_a, num_warps."""
    held = blocks_in(config.block_a, a.shape[3])
    return Launch(
        kernel=kernel,
        grid=(programs * triton.cdiv(a.shape[2], held),),
        args=args | {"tile": tile_of(a, config.block_a)},
        constexprs=constexprs | {"BLOCK_T": config.block_t},
        num_warps=config.num_warps,
        tile=config.block_t * held * a.shape[3],
        claims=Claims(load_bits=load_bits(a, config.block_a, config.num_warps)),
    )


def load_bits(a: Tensor, block_a: int, num_warps: int) -> int:
    """Width of a thread's load of matrices, as far as alignment lets it be that wide."""
    itemsize, size = a.element_size(), a.shape[4]
    if a[0, 0].stride() != (size * size, size, 1) or size != padded(size):
        return 8 * itemsize
    elements = min(16 // itemsize, block_a // (32 * num_warps))
    steps = (host.row_stride(a, 0), host.row_stride(a, 1))
    aligned = (blocks_in(block_a, size) * size * size, *steps, a.storage_offset())
    return 8 * itemsize * max(1, math.gcd(elements, *aligned))


def unfit(case: Case, device: Device, block_a: int, num_warps: int) -> str | None:
    """Why a kernel whose programs own groups of blocks cannot run, or would only waste threads."""
    size = padded(case["n"])
    if reason := host.not_here(device):
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


def splits(case: Case, device: Device, config: Any, below: float) -> bool:
    """Whether one program per row and group of blocks leaves units without work, and time should be split.

    below: the share of units with work up to which that is the faster form in the static model.
    """
    programs = case["N"] * -(-case["H"] // blocks_in(config.block_a, case["n"]))
    return case["T"] >= 512 and programs < below * device.units
