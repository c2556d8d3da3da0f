"""What the hosts of the windowed flash kernels share: arguments, choice of tiles, claims, reasons to refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import KIB, SCRATCH, no_products, over_shared, shared_bytes
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case, dtype_name
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.host import channel_stride, known_stride, row_stride
from griffin_kernels.ops.local_attention._key_ranges import may_be_blind
from griffin_kernels.ops.local_attention._triton_attention import Entries, Heads, Parts, Score, Sizes
from griffin_kernels.ops.local_attention._triton_bounds import Bounds
from griffin_kernels.ops.local_attention._triton_bounds import first_keys as first_keys_kernel
from griffin_kernels.ops.local_attention._triton_bounds import last_keys as last_keys_kernel
from griffin_kernels.ops.local_attention.op import Call

LOG2E = math.log2(math.e)

TENSOR_MEMORY = frozenset({"sm_100", "sm_103"})
"""Where products leave their sums in tensor memory."""

WARP_GROUPS = TENSOR_MEMORY | {"sm_90"}
"""Where whole warp groups multiply tiles that lie in shared memory."""

FIRST_KEYS = 256
"""Queries per program of the kernel that finds first keys."""

LEAST_FACTOR = 1e-20
"""In place of a scale of 0: scores vanish times it, and hidden keys, at -1e30, stay hidden."""


@dataclass(frozen=True)
class Tiles:
    """block_m: rows, queries times heads of a key head, of a tile. block_n: keys per iteration.

    0 in any field of a configuration: by head_dim, dtype and architecture, see ``forward_default``.
    """

    block_m: int = 0
    block_n: int = 0
    num_warps: int = 0
    num_stages: int = 0

    def chosen(self, config: Any) -> Tiles:
        """Those fields of ``config`` that are not 0, in place of these."""
        return Tiles(**{name: getattr(config, name) or usual for name, usual in vars(self).items()})


@dataclass(frozen=True)
class Parted:
    """parts: programs that share the keys of a tile, or the rows that see one, or a ring."""

    parts: int = 4


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
    if arch in WARP_GROUPS:
        return Tiles(128, 32 if arch in TENSOR_MEMORY else 64, 8, 2)
    return Tiles(64, 64 if roomy(arch) else 32, 8, 2)


def roomy(arch: str) -> bool:
    """Whether a block may keep more than 100 KiB in an NVIDIA architecture's shared memory."""
    return arch.startswith("sm_") and (shared_bytes(arch) or 0) > 100 * KIB


def arguments(call: Any) -> tuple[dict[str, Any], list[Launch]]:
    """Arguments that the kernels of a pass share, and the launches that find what queries see; see ``bounds``."""
    q, k, softcap = call.q, call.k, call.softcap
    first, before = bounds(call)
    scale = float(q.shape[3] ** -0.5 if call.scale is None else call.scale)
    factor = max(abs(scale) * LOG2E, LEAST_FACTOR) if softcap is None else scale / softcap
    args = {
        "q": heads(q),
        "k": heads(k),
        "v": heads(call.v),
        "first": first,
        "T": q.shape[1],
        "S": k.shape[1],
        "window": min(call.window, k.shape[1]),
        "batches": q.shape[0],
        "score": Score(scale, factor, softcap, tl.constexpr(softcap is None and scale < 0)),
    }
    return args, before


def sizes_of(call: Any, tiles: Tiles, parts: int = 1) -> Sizes:
    """The compile-time sizes of a call."""
    q, k = call.q, call.k
    d = q.shape[3]
    return Sizes(q.shape[2] // k.shape[2], k.shape[2], d, tiles.block_m, tiles.block_n, padded(d), parts)


def empty_parts(sizes: tuple[int, ...], q: Tensor) -> Parts:
    """Room for parts of ``sizes`` rows."""
    shapes = ((*sizes, q.shape[-1]), sizes, sizes)
    return Parts(*(torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes))


def heads(tensor: Tensor) -> Heads:
    """The bundle of [B,T,H,d]; strides as if contiguous where a dim is of size 1."""
    step, head = known_stride(tensor, 1), known_stride(tensor, 2)
    return Heads(tensor, row_stride(tensor, 0), step, head, tl.constexpr(channel_stride(tensor)))


def entries(tensor: Tensor) -> Entries:
    """The bundle of [B], or of a contiguous [B,T]."""
    return Entries(tensor, row_stride(tensor, 0))


def bounds(call: Any) -> tuple[Bounds | None, list[Launch]]:
    """The first and the last key that each query sees, and the launches that find them.

    None without documents and without ``right``, unless queries may be blind; the last only with one of these two.
    """
    q, segment_pos, cu_seqlens, right = call.q, call.segment_pos, call.cu_seqlens, min(call.right, call.q.shape[1])
    blind = tl.constexpr(True) if may_be_blind(call) else None
    if segment_pos is None and cu_seqlens is None and not right and blind is None:
        return None, []
    time, keys = q.shape[1], call.k.shape[1]
    rows = 1 if segment_pos is None else q.shape[0]
    count = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    first = torch.empty((rows, time), dtype=torch.int32, device=q.device)
    args = {"segment_pos": segment_pos, "cu_seqlens": cu_seqlens, "cu_seqlens_k": call.cu_seqlens_k}
    args |= {"T": time, "S": keys, "count": count, "steps": (count - 1).bit_length()}
    args |= {"pos_batch": row_stride(segment_pos, 0), "POS_STEP": known_stride(segment_pos, 1)}
    grid, block = (triton.cdiv(time, FIRST_KEYS), rows), {"BLOCK": FIRST_KEYS}
    of_first, last = args | {"first": first, "window": min(call.window, keys)}, None
    found = [Launch(first_keys_kernel, grid, of_first, block, num_warps=2, tile=FIRST_KEYS)]
    if right or blind is not None:
        last = torch.empty_like(first)
        of_last = args | {"last": last, "right": right}
        found.append(Launch(last_keys_kernel, grid, of_last, block, num_warps=2, tile=FIRST_KEYS))
    return Bounds(first, row_stride(first, 0), last, right, blind), found


def twice(
    kernel: Any, tiles: Tiles, sizes: Sizes, programs: int, rows: int, args: dict[str, Any], claims: Claims
) -> list[Launch]:
    """A launch, and one that does again what was broken by values that are not finite; see _triton_attention.py.

    rows: of the sums of a program.
    """
    constexprs: dict[str, Any] = {"SIZES": sizes}
    args = args | {"broken": torch.empty((programs, rows), dtype=torch.int8, device=args["q"].at.device)}
    warps, tile = tiles.num_warps, tiles.block_m * tiles.block_n
    first = Launch(kernel, (programs,), args, constexprs | {"AGAIN": False}, warps, tiles.num_stages, tile, claims)
    # tiles and warps have to be the same for sums in the same order; nothing is loaded ahead
    rare = Claims(spills="returns at once, unless there is something that is not finite")
    again = replace(first, constexprs=constexprs | {"AGAIN": True}, num_stages=1, tile=0, claims=rare, rare=True)
    return [first, again]


def forward_outputs(call: Call, outputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """out [B,T,Hq,d] and lse [B,Hq,T] or None, allocated contiguous unless the caller gave them."""
    q = call.q
    batch, time, heads, _ = q.shape
    out = host.empty(outputs, "out", q, *q.shape, dtype=q.dtype)
    if not call.with_lse:
        outputs["lse"] = None
        return out, None
    return out, host.empty(outputs, "lse", q, batch, heads, time, dtype=torch.float32)


def load_bits(tensors: tuple[Tensor, ...]) -> int:
    """Width of a thread's load of neighbouring channels of [B,T,H,d], as far as alignment lets it be that wide."""
    return host.load_bits(tensors, 16, dims=3)


def claims(streamed: tuple[Tensor, ...], tiles: Tiles, spills: str = "") -> Claims:
    """Of a kernel that multiplies tiles and streams these tensors."""
    bits = load_bits(streamed)
    half = streamed[0].element_size() == 2
    return Claims(load_bits=bits, async_copies=tiles.num_stages > 1 and bits >= 32, matrix=half, spills=spills)


def unfit(case: Case, device: Device) -> str | None:
    """Why no Triton kernel of local attention runs this case, if so."""
    if reason := host.not_here(device):
        return reason
    if case.dtype == "float64":
        return "has no float64 kernel: matrix products of Triton tiles are float32 at most"
    if case["d"] > 256:
        return f"head_dim {case['d']} is more than 256, the widest tile whose sums fit in registers"
    return None


def reject(case: Case, device: Device, config: Any) -> str | None:
    """Why no kernel of the forward pass runs this case with these tiles, if so."""
    if reason := unfit(case, device) or no_products(device.arch, case.dtype):
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
    return 2 * (tiles.num_stages - (device.arch not in WARP_GROUPS))
