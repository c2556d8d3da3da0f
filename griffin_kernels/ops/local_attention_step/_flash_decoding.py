"""What the hosts of the Triton decoding kernels share: launches, reasons to refuse."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, WITHOUT_PRODUCTS, over_shared
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.host import channel_stride, empty, known_stride, row_stride
from griffin_kernels.ops.local_attention import _flash as attention
from griffin_kernels.ops.local_attention._flash import padded
from griffin_kernels.ops.local_attention._triton_attention import Heads, Parts, Score, Sizes
from griffin_kernels.ops.local_attention_step import _triton_decoding as kernels
from griffin_kernels.ops.local_attention_step.op import Call

MOST_HEADS = 128
"""Query heads of a key head: rows of a tile whose sums fit in registers."""


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """The ring in ``config.parts`` or one, for every row and key head, and their join where there are several."""
    q, k_cache, v_cache, slots, softcap = call.q, call.k_cache, call.v_cache, call.slots, call.softcap
    batch, heads, d = q.shape
    shared = k_cache.shape[2]
    group, lanes = heads // shared, batch * shared
    parts = min(getattr(config, "parts", 1), triton.cdiv(k_cache.shape[1], config.block_n))
    sizes = Sizes(group, shared, d, max(16, triton.next_power_of_2(group)), config.block_n, padded(d), parts)
    result = empty(outputs, "out", q, *q.shape, dtype=q.dtype)
    outputs |= {"k_cache": k_cache, "v_cache": v_cache}
    out = attention.empty_parts((lanes, parts, group), q) if parts > 1 else Parts(result, None, None)
    scale = float(d**-0.5 if call.scale is None else call.scale)
    factor = scale * attention.LOG2E if softcap is None else scale / softcap
    arch = launch.architecture(q)
    stages = stages_of(config, amd=arch.startswith("gfx"))
    bits = attention.load_bits((k_cache, v_cache))
    found = [
        Launch(
            kernel=kernels.local_attention_step_part,
            grid=(lanes * parts,),
            args={
                "q": token(q),
                "k": token(call.k),
                "v": token(call.v),
                "k_cache": attention.heads(k_cache),
                "v_cache": attention.heads(v_cache),
                "positions": attention.entries(call.positions),
                "slots": None if slots is None else attention.entries(slots),
                "out": out,
                "P": k_cache.shape[0],
                "W": k_cache.shape[1],
                "score": Score(scale, factor, softcap, tl.constexpr(False)),
            },
            constexprs={"SIZES": sizes},
            num_warps=config.num_warps,
            num_stages=stages,
            tile=config.block_n * padded(d),
            claims=Claims(
                load_bits=bits,
                async_copies=stages > 1 and bits >= 32,
                spills="16 bytes a thread, none of them in the loop" if arch in ("sm_86", "sm_89") else "",
            ),
        )
    ]
    if parts > 1:
        found.append(
            Launch(
                kernel=kernels.local_attention_step_join,
                grid=(batch * heads,),
                args={"parts": out, "out": result},
                constexprs={"SIZES": sizes, "BLOCK_P": triton.next_power_of_2(parts)},
                num_warps=4,
                tile=parts * padded(d),
            )
        )
    return found


def stages_of(config: Any, amd: bool) -> int:
    """What num_stages=0 means: three on NVIDIA, two on AMD, whose shared memory is smaller."""
    return config.num_stages or (2 if amd else 3)


def token(tensor: Tensor) -> Heads:
    """The bundle of [B,H,d]; strides as if contiguous where a dim is of size 1."""
    return Heads(tensor, row_stride(tensor, 0), None, known_stride(tensor, 1), tl.constexpr(channel_stride(tensor)))


def unfit(case: Case, device: Device, config: Any) -> str | None:
    """Why no kernel here runs this case with this configuration, if so."""
    if reason := attention.unfit(case, device):
        return reason
    if device.arch in WITHOUT_PRODUCTS:
        return f"Triton has no matrix instructions for {device.arch}: products one by one would spill registers"
    group = case["Hq"] // case["Hkv"]
    if group > MOST_HEADS:
        return f"{group} query heads share a key head, {MOST_HEADS} at most fit in registers"
    rows = max(16, triton.next_power_of_2(group))
    weights = rows * config.block_n * 4
    width = padded(case["d"]) * DTYPE_BYTES[case.dtype]
    amd = device.kind == "hip"
    # rows this few are products of one warp, whatever the architecture, and a buffer is free when it has been read
    ahead = 2 * max(1, stages_of(config, amd) - 1) * config.block_n * width
    queries = 0 if amd else rows * width
    return over_shared(ahead + queries + weights + SCRATCH, device.arch)
