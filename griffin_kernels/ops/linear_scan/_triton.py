"""What the Triton scans share: where a program works, rows ahead of the scan, and facts about tensors.

Time is visited in steps 0, 1, ... of a *span*; ``reverse`` only makes the row strides negative, so no kernel copies or
flips. Row and channel strides are compile-time constants (they follow from the model, not from the call), which makes
row offsets immediates and lets the compiler see that neighbouring channels are neighbours in memory. Bases are 64-bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, accumulator
from griffin_kernels.device import Device

WIDE: dict[torch.dtype, Any] = {torch.float32: tl.float32, torch.float64: tl.float64}
"""Accumulator dtypes as Triton names them."""


@triton.jit
def span(row, cu_seqlens, T, REVERSE: tl.constexpr):
    """(batch, time of step 0, steps) of row ``row`` of h0: a batch entry, or a packed sequence."""
    if cu_seqlens is None:
        batch = tl.cast(row, tl.int64)
        begin = tl.cast(0, tl.int64)
        end = tl.cast(T, tl.int64)
    else:
        batch = tl.cast(0, tl.int64)
        begin = tl.cast(tl.load(cu_seqlens + row), tl.int64)
        end = tl.cast(tl.load(cu_seqlens + row + 1), tl.int64)
    first = begin
    if REVERSE:
        first = end - 1
    return batch, first, tl.cast(end - begin, tl.int32)


@triton.jit
def load_rows(
    pointers,
    inside,
    left,
    STEP: tl.constexpr,
    OTHER: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,
    TAIL: tl.constexpr,
):
    """ROWS rows as a tuple, every load issued before the first is used. pointers, inside: [block_d].

    MASKED: some channels are outside. TAIL: rows from ``left`` on are outside. Those read OTHER.
    """
    rows = ()
    for u in tl.static_range(ROWS):
        if TAIL:
            rows += (tl.load(pointers + u * STEP, mask=inside & (u < left), other=OTHER),)
        elif MASKED:
            rows += (tl.load(pointers + u * STEP, mask=inside, other=OTHER),)
        else:
            rows += (tl.load(pointers + u * STEP),)
    return rows


@triton.jit
def load_flags(pointer, left, STEP: tl.constexpr, OTHER: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr):
    """ROWS scalars, one per step, as a tuple; a tuple of OTHER where ``pointer`` is None."""
    flags = ()
    for u in tl.static_range(ROWS):
        if pointer is None:
            flags += (OTHER,)
        elif TAIL:
            flags += (tl.load(pointer + u * STEP, mask=u < left, other=OTHER),)
        else:
            flags += (tl.load(pointer + u * STEP),)
    return flags


@triton.jit
def store_row(pointers, value, inside, u, left, MASKED: tl.constexpr, TAIL: tl.constexpr):
    """Row u of an output, rounded to its dtype. pointers, value, inside: [block_d]."""
    value = value.to(pointers.dtype.element_ty)
    if TAIL:
        tl.store(pointers, value, mask=inside & (u < left))
    elif MASKED:
        tl.store(pointers, value, mask=inside)
    else:
        tl.store(pointers, value)


@triton.jit
def load_state(state, row, stride, columns, inside, CHANNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row ``row`` of a state [N, D] as [block_d] in ACC; zeros where there is none."""
    if state is None:
        value = tl.zeros((BLOCK_D,), dtype=ACC)
    else:
        base = state + tl.cast(row, tl.int64) * stride
        value = tl.load(base + columns * CHANNEL, mask=inside, other=0.0).to(ACC)
    return value


@triton.jit
def combine(a_first, x_first, a_then, x_then):
    """Two affine maps s -> a s + x, one after the other."""
    return a_first * a_then, a_then * x_first + x_then


def row_stride(tensor: Tensor | None, dim: int) -> int:
    """Stride along ``dim`` in elements; 0 where there is nothing to step over, so that it cannot cause a recompile."""
    return 0 if tensor is None or tensor.shape[dim] == 1 else tensor.stride(dim)


def channel_stride(tensor: Tensor | None) -> int:
    """Stride along the last dimension in elements; 1 where it does not matter."""
    return 1 if tensor is None or tensor.shape[-1] == 1 else tensor.stride(-1)


def flags_of(reset: Tensor | None) -> Tensor | None:
    """reset [B,T] bool as bytes, the same memory."""
    return None if reset is None else reset.view(torch.uint8)


def signed_step(tensor: Tensor | None, reverse: bool) -> int:
    """Elements of [B,T,...] from one step to the next in visiting order."""
    return -row_stride(tensor, 1) if reverse else row_stride(tensor, 1)


def time_strides(name: str, tensor: Tensor, reverse: bool) -> dict[str, int]:
    """Constexprs ``<NAME>_STEP``, signed by direction, and ``<NAME>_CHANNEL``, in elements."""
    return {f"{name}_STEP": signed_step(tensor, reverse), f"{name}_CHANNEL": channel_stride(tensor)}


def empty(outputs: dict[str, Any], name: str, like: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """The output ``name``, allocated contiguous on the device of ``like`` unless the caller gave it."""
    if outputs.get(name) is None:
        outputs[name] = torch.empty(shape, dtype=dtype, device=like.device)
    tensor: Tensor = outputs[name]
    return tensor


def scan_arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last."""
    x, a, h0, reset, cu_seqlens, reverse = (inputs[name] for name in ("x", "a", "h0", "reset", "cu_seqlens", "reverse"))
    batch, time, width = x.shape
    rows = rows_of(inputs, batch)
    args = {
        "x": x,
        "a": a,
        "h0": h0,
        "reset": flags_of(reset),
        "cu_seqlens": cu_seqlens,
        "h": empty(outputs, "h", x, batch, time, width, dtype=x.dtype),
        "h_last": empty(outputs, "h_last", x, rows, width, dtype=accumulator(x.dtype)),
        "T": time,
        "x_batch": row_stride(x, 0),
        "a_batch": row_stride(a, 0),
        "reset_batch": row_stride(reset, 0),
        "h0_row": row_stride(h0, 0),
    }
    constexprs = {
        "D": width,
        **time_strides("X", x, reverse),
        **time_strides("A", a, reverse),
        "RESET_STEP": signed_step(reset, reverse),
        "H0_CHANNEL": channel_stride(h0),
        "REVERSE": reverse,
        "ACC": wide(x.dtype),
    }
    return rows, args, constexprs


def rows_of(inputs: Inputs, batch: int) -> int:
    """N: rows of h0, that is batch entries or packed sequences."""
    cu_seqlens = inputs["cu_seqlens"]
    return batch if cu_seqlens is None else cu_seqlens.shape[0] - 1


def wide(dtype: torch.dtype) -> Any:
    """The accumulator of ``dtype`` as Triton names it."""
    return WIDE[accumulator(dtype)]


def load_bits(tensors: tuple[Tensor, ...], per_thread: int) -> int:
    """Width of a thread's load of ``per_thread`` neighbouring channels, as far as alignment lets it be that wide."""
    size = tensors[0].element_size()
    elements = min(16 // size, per_thread)
    for tensor in tensors:
        if channel_stride(tensor) != 1:
            return 8 * size
        for number in (tensor.shape[-1], row_stride(tensor, 0), row_stride(tensor, 1), tensor.storage_offset()):
            elements = math.gcd(elements, number)
    return 8 * size * max(elements, 1)


def not_here(device: Device) -> str | None:
    """Why no Triton kernel runs on a device, if so."""
    if device.kind in ("cuda", "hip", "interpreter"):
        return None
    return f"Triton kernels need an NVIDIA or AMD GPU, this is a {device.kind.upper()} ({device.name})"


def idle_threads(block_d: int, num_warps: int, device: Device) -> str | None:
    """Why a block of channels is too narrow for its warps, if so."""
    threads = num_warps * (device.warp_size or 32)
    if block_d < threads:
        return f"block_d={block_d} leaves threads without a channel: {num_warps} warps here are {threads} threads"
    return None


def bytes_ahead(case: Case, block_t: int, streams: int) -> int:
    """Bytes that one pass over time has in flight on the whole device: block_t rows of every channel and stream."""
    return case["N"] * case["D"] * block_t * streams * case.bytes_per_element()


def starves(case: Case, device: Device, streams: int) -> bool:
    """Whether one pass over time has too few loads in flight to keep the memory busy, and time should be split."""
    # an H100 needs about 18 KB in flight per SM to reach its bandwidth; half of that is where 10 B per element in three
    # phases beat 6 B in one
    return case["T"] >= 512 and bytes_ahead(case, 32, streams) < 9 * 1024 * device.units
