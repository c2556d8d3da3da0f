"""What the hosts of the windowed flash kernels share: arguments, choice of tiles, claims, reasons to refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, no_products, over_shared
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case, Inputs, dtype_name
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.host import channel_stride, known_stride, row_stride
from griffin_kernels.ops.local_attention._triton_jit import first_keys as first_keys_kernel

LOG2E = math.log2(math.e)

LEAST_FACTOR = 1e-20
"""In place of a scale of 0: scores vanish times it, and hidden keys, at -1e30, stay hidden."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: rows and keys of a tile, warps, buffers of loads."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def constexprs(self, d: int) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_D": padded(d)}

    def chosen(self, config: Any) -> Tiles:
        """Those fields of ``config`` that are not 0, in place of these."""
        names = ("block_m", "block_n", "num_warps", "num_stages")
        return replace(self, **{name: getattr(config, name) for name in names if getattr(config, name)})


def padded(d: int) -> int:
    """Channels of a tile: a power of two, 16 or more as matrix units take them; those beyond d are masked."""
    return max(16, 1 << (d - 1).bit_length())


def forward_tiles(q: Tensor, config: Any) -> Tiles:
    """The tiles of the forward pass for the device that ``q`` is on."""
    return forward_default(q.shape[3], dtype_name(q.dtype), launch.architecture(q)).chosen(config)


def forward_default(d: int, dtype: str, arch: str) -> Tiles:
    """What a Config of zeros means: the largest tiles that keep their sums in registers and fit shared memory."""
    wide = padded(d)
    if dtype == "float32":
        if wide <= 128:
            return Tiles(32, 32, 4, 2)
        return Tiles(32, 16, 4, 2) if arch.startswith("gfx") else Tiles(32, 32, 8, 1)
    if wide <= 128:
        return Tiles(128, 64, 8, 2)
    if arch.startswith("gfx"):
        return Tiles(64, 32, 4, 2)
    return {
        "sm_80": Tiles(64, 64, 8, 2),
        "sm_87": Tiles(64, 64, 8, 2),
        "sm_90": Tiles(128, 64, 8, 2),
        "sm_100": Tiles(128, 32, 8, 2),
        "sm_103": Tiles(128, 32, 8, 2),
    }.get(arch, Tiles(64, 32, 8, 2))


def sizes(inputs: Inputs) -> dict[str, Any]:
    """T, S, window, batches; the factor of scores before exp2, or before tanh, and the softcap."""
    q, k, softcap = inputs["q"], inputs["k"], inputs["softcap"]
    scale = scale_of(inputs)
    factor = max(abs(scale) * LOG2E, LEAST_FACTOR) if softcap is None else scale / softcap
    window = min(inputs["window"], k.shape[1])
    return {
        "T": q.shape[1],
        "S": k.shape[1],
        "window": window,
        "batches": q.shape[0],
        "factor": factor,
        "softcap": softcap or 0.0,
    }


def scale_of(inputs: Inputs) -> float:
    """The scale of scores as a number."""
    scale: float | None = inputs["scale"]
    return float(inputs["q"].shape[3] ** -0.5 if scale is None else scale)


def constexprs(inputs: Inputs) -> dict[str, Any]:
    """Heads, channels, strides of q, k, v, and what the options are; without tiles."""
    q, k, v, softcap = inputs["q"], inputs["k"], inputs["v"], inputs["softcap"]
    shared = k.shape[2]
    return {
        "G": q.shape[2] // shared,
        "HKV": shared,
        "D": q.shape[3],
        **strides("Q", q),
        **strides("K", k),
        **strides("V", v),
        "CAPPED": softcap is not None,
        "NEGATIVE": softcap is None and scale_of(inputs) < 0,
    }


def strides(name: str, tensor: Tensor) -> dict[str, Any]:
    """Parameters <NAME>_STEP, _HEAD, _CHANNEL of [B,T,H,d] in elements; as if contiguous where a dim is of size 1."""
    step, head = known_stride(tensor, 1), known_stride(tensor, 2)
    return {f"{name}_STEP": step, f"{name}_HEAD": head, f"{name}_CHANNEL": channel_stride(tensor)}


def batch_strides(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    """Arguments <name>_batch in elements; 0 where there is nothing to step over."""
    return {f"{name}_batch": 0 if t is None or t.shape[0] == 1 else t.stride(0) for name, t in tensors.items()}


def first_keys(inputs: Inputs) -> tuple[Tensor | None, list[Launch]]:
    """int32 [B or 1, T], the first key that each query sees, and the launch that finds it; None without documents."""
    q, segment_pos, cu_seqlens = inputs["q"], inputs["segment_pos"], inputs["cu_seqlens"]
    if segment_pos is None and cu_seqlens is None:
        return None, []
    time, keys = q.shape[1], inputs["k"].shape[1]
    rows = 1 if segment_pos is None else q.shape[0]
    count = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    first = torch.empty((rows, time), dtype=torch.int32, device=q.device)
    block = 256
    found = Launch(
        kernel=first_keys_kernel,
        grid=(triton.cdiv(time, block), rows),
        args={
            "segment_pos": segment_pos,
            "cu_seqlens": cu_seqlens,
            "first": first,
            "T": time,
            "S": keys,
            "count": count,
            "steps": (count - 1).bit_length(),
            "window": min(inputs["window"], keys),
            "pos_batch": 0 if segment_pos is None or rows == 1 else segment_pos.stride(0),
        },
        constexprs={
            "POS_STEP": known_stride(segment_pos, 1),
            "BLOCK": block,
        },
        num_warps=2,
        tile=block,
    )
    return first, [found]


def twice(
    kernel: Any,
    programs: int,
    rows: int,
    device: torch.device,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    num_warps: int,
    num_stages: int,
    tile: int,
    claims: Claims,
) -> list[Launch]:
    """A launch, and one that does again what was broken by values that are not finite; see _triton_jit.py.

    rows: of the sums of a program.
    """
    args = args | {"broken": torch.empty((programs, rows), dtype=torch.int8, device=device)}
    first = Launch(kernel, (programs,), args, constexprs | {"AGAIN": False}, num_warps, num_stages, tile, claims)
    # tiles and warps have to be the same for sums in the same order; nothing is loaded ahead
    rare = Claims(spills="returns at once, unless there is something that is not finite")
    again = replace(first, constexprs=constexprs | {"AGAIN": True}, num_stages=1, tile=0, claims=rare, rare=True)
    return [first, again]


def forward_outputs(inputs: Inputs, outputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """out [B,T,Hq,d] and lse [B,Hq,T] or None, allocated contiguous unless the caller gave them."""
    q = inputs["q"]
    batch, time, heads, _ = q.shape
    if outputs.get("out") is None:
        outputs["out"] = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if inputs["with_lse"] and outputs.get("lse") is None:
        outputs["lse"] = torch.empty((batch, heads, time), dtype=torch.float32, device=q.device)
    elif not inputs["with_lse"]:
        outputs["lse"] = None
    return outputs["out"], outputs["lse"]


def load_bits(tensors: tuple[Tensor, ...]) -> int:
    """Width of a thread's load of neighbouring channels, as far as alignment lets it be that wide."""
    size = tensors[0].element_size()
    elements = 16 // size
    for tensor in tensors:
        if channel_stride(tensor) != 1:
            return 8 * size
        for number in (tensor.shape[3], *(row_stride(tensor, dim) for dim in range(3)), tensor.storage_offset()):
            elements = math.gcd(elements, number)
    return 8 * size * elements


def claims(streamed: tuple[Tensor, ...], tiles: Tiles, spills: str = "") -> Claims:
    """Of a kernel that multiplies tiles and streams these tensors."""
    bits = load_bits(streamed)
    half = streamed[0].element_size() == 2
    return Claims(load_bits=bits, async_copies=tiles.num_stages > 1 and bits >= 32, matrix=half, spills=spills)


def unfit(case: Case, device: Device) -> str | None:
    """Why no Triton kernel of local attention runs this case, if so."""
    if device.kind not in ("cuda", "hip", "interpreter"):
        return f"Triton kernels need an NVIDIA or AMD GPU, this is a {device.kind.upper()} ({device.name})"
    if case.dtype == "float64":
        return "has no float64 kernel: matrix products of Triton tiles are float32 at most"
    if case["d"] > 256:
        return f"head_dim {case['d']} is more than 256, the widest tile whose sums fit in registers"
    return None


def too_large(case: Case, device: Device, config: Any) -> str | None:
    """Why the tiles of a forward configuration do not suit the device, if so."""
    if reason := no_products(device.arch, case.dtype):
        return reason
    tiles = forward_default(case["d"], case.dtype, device.arch).chosen(config)
    size = DTYPE_BYTES[case.dtype]
    streamed = tiles.block_n * padded(case["d"]) * size
    kept, weights = tiles.block_m * padded(case["d"]) * size, tiles.block_m * tiles.block_n * size
    if device.kind == "hip":
        # queries only pass through; loads wait in registers for a buffer
        return over_shared(max(kept, 2 * max(1, tiles.num_stages - 1) * streamed + weights) + SCRATCH, device.arch)
    return over_shared(kept + buffers(tiles, device) * streamed + weights + SCRATCH, device.arch)


def buffers(tiles: Tiles, device: Device) -> int:
    """Tiles of two streamed tensors that wait in shared memory at a time."""
    if tiles.num_stages == 1:
        return 1
    # products of whole warp groups read their operands there, so that a buffer is free one iteration later
    return 2 * (tiles.num_stages - (device.arch not in ("sm_90", "sm_100", "sm_103")))
