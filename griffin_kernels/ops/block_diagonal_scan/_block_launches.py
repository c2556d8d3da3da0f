"""Where the Triton kernels of block_diagonal_scan and its gradient fit."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.linear_scan._scan_launches import blocks_in, padded


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
