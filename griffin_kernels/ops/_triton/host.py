"""What the hosts of Triton kernels share: facts about tensors, outputs, reasons to refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels import datasheet
from griffin_kernels.contract import Case, accumulator
from griffin_kernels.datasheet import DRAM_LATENCY_S
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import strides


def row_stride(tensor: Tensor | None, dim: int) -> int:
    """Stride along ``dim`` in elements; 0 where there is nothing to step over, so that it cannot cause a recompile."""
    return 0 if tensor is None or tensor.shape[dim] == 1 else tensor.stride(dim)


def channel_stride(tensor: Tensor | None) -> int:
    """Stride along the last dimension in elements; 1 where it does not matter."""
    return 1 if tensor is None or tensor.shape[-1] == 1 else tensor.stride(-1)


def known_stride(tensor: Tensor | None, dim: int) -> Any:
    """Stride along ``dim`` in elements as a kernel takes it, which may be as a constant; see ``strides.known``."""
    if tensor is None:
        return strides.known(0, 0)
    dense = math.prod(tensor.shape[dim + 1 :])
    return strides.known(dense if tensor.shape[dim] == 1 else tensor.stride(dim), dense)


def signed_step(tensor: Tensor | None, reverse: bool) -> Any:
    """Elements of [B,T,...] from one step to the next in visiting order, as a kernel takes them."""
    step = known_stride(tensor, 1)
    return -step if reverse else step


def empty(outputs: dict[str, Any], name: str, like: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """The output ``name``, allocated contiguous on the device of ``like`` unless the caller gave it."""
    if outputs.get(name) is None:
        outputs[name] = torch.empty(shape, dtype=dtype, device=like.device)
    tensor: Tensor = outputs[name]
    return tensor


def wide(dtype: torch.dtype) -> Any:
    """The accumulator of ``dtype`` as Triton names it."""
    return tl.float64 if accumulator(dtype) == torch.float64 else tl.float32


def load_bits(tensors: Sequence[Tensor], per_thread: int, dims: int = 2) -> int:
    """Width of a thread's load of ``per_thread`` neighbouring channels, as far as alignment lets it be that wide.

    dims: of each tensor, from the first on, along which kernels step.
    """
    sizes = [tensor.element_size() for tensor in tensors]
    elements = min(16 // min(sizes), per_thread)
    for tensor in tensors:
        if channel_stride(tensor) != 1:
            return 8 * max(sizes)
        for number in (tensor.shape[-1], *(row_stride(tensor, dim) for dim in range(dims)), tensor.storage_offset()):
            elements = math.gcd(elements, number)
    return max(8 * size * max(1, min(elements, 16 // size)) for size in sizes)


def channel_launch(
    kernel: Any, programs: int, inputs: Sequence[Tensor], config: Any, args: dict[str, Any], constexprs: dict[str, Any]
) -> Launch:
    """The launch of ``programs`` programs for every block of channels of inputs [B,T,D], which it loads.

    config: block_t, block_d and num_warps; a kernel has the first two, and D, besides ``constexprs``.
    """
    width = inputs[0].shape[2]
    return Launch(
        kernel=kernel,
        grid=(programs * triton.cdiv(width, config.block_d),),
        args=args,
        constexprs=constexprs | {"D": width, "BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=load_bits(inputs, config.block_d // (32 * config.num_warps))),
    )


def not_here(device: Device) -> str | None:
    """Why no Triton kernel runs on a device, if so."""
    if device.kind in ("interpreter", "cuda", "hip"):
        return None
    return f"Triton kernels need an NVIDIA or AMD GPU, this is a {device.kind.upper()} ({device.name})"


def unfit(case: Case, device: Device, block_d: int, num_warps: int, rows: int | None = None) -> str | None:
    """Why a kernel cannot run, or would only waste threads. They own channels, or elements of a tile of ``rows``."""
    if reason := not_here(device) or idle_channels(case, block_d):
        return reason
    threads = num_warps * (device.warp_size or 32)
    if rows is None and block_d < threads:
        return f"block_d={block_d} leaves threads without a channel: {num_warps} warps here are {threads} threads"
    if rows is not None and rows * block_d < threads:
        return f"a tile of {rows} x {block_d} leaves threads without an element: there are {threads}"
    return None


def idle_channels(case: Case, block_d: int) -> str | None:
    """Why a block is too wide for the channels there are, if so."""
    if block_d > 64 and block_d >= 2 * case["D"]:
        return f"block_d={block_d} is at least twice the {case['D']} channels: half of it does the same work"
    return None


def bytes_in_flight(device: Device) -> float:
    """Loads that keep the memory busy: its bandwidth times its latency (Little's law).

    18 KB per unit, as on an H100, where no datasheet tells.
    """
    sheet = datasheet.find(device.name)
    return sheet.dram_bytes_per_s * DRAM_LATENCY_S if sheet is not None else 18 * 1024 * device.units


def load_share(case: Case, device: Device) -> float:
    """One step of one stream of all rows and channels, as a share of ``bytes_in_flight``."""
    step: int = case["N"] * case["D"] * case.bytes_per_element()
    return step / bytes_in_flight(device)


def starves(case: Case, device: Device, below: float) -> bool:
    """Whether one pass over time has too few loads in flight to keep the memory busy, and time should be split.

    below: the share (``load_share``) from which on one pass is the faster form in the static model.
    """
    return case["T"] >= 512 and load_share(case, device) < below
