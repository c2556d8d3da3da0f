"""Blocks of queries against the keys within reach: work and memory grow with T * W, not T^2.

For queries at key indices s .. e - 1 only keys s - W + 1 .. e - 1 are multiplied; all heads that share a key head are
rows of one product. Scores of one block live at a time, small enough for a CPU's cache. Only the two edges of a block's
scores need a mask, unless there are documents. Sums and softmax in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops import _products
from griffin_kernels.ops.local_attention import _blocks, _isolated
from griffin_kernels.ops.local_attention._key_ranges import near
from griffin_kernels.ops.local_attention.cost import right_of
from griffin_kernels.ops.local_attention.op import Call, scale_of


@dataclass(frozen=True)
class Config:
    """block: queries treated at a time."""

    block: int = 64


@_isolated.forward
def run(call: Call, config: Config) -> tuple[Tensor, Tensor | None]:
    call = near(call)
    q, k, v, softcap, with_lse = call.q, call.k, call.v, call.softcap, call.with_lse
    (batch, time, heads, _), shared = q.shape, k.shape[2]
    keys, values = _blocks.by_key_head(k).transpose(1, 2), _blocks.by_key_head(v)  # [B*Hkv, d, S], [B*Hkv, S, d]
    visibility, factor = _blocks.Visibility(call), scale_of(call)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, time, dtype=accumulator(q.dtype), device=q.device) if with_lse else None
    for block in _blocks.blocks(call, config.block):
        count, blind = block.end - block.start, visibility.blind(block)
        if block.low == block.high:
            out[:, block.start : block.end] = 0.0
            if lse is not None:
                lse[:, :, block.start : block.end] = -torch.inf
            continue
        rows = _blocks.rows_of(q, block, shared)
        scores = _products.unrounded(rows, keys[:, :, block.low : block.high]).mul_(factor)
        scores = _blocks.capped(scores, softcap)
        visibility.hide(scores, block, batch, -torch.inf)
        largest = scores.amax(2, keepdim=True)
        if blind is not None:
            largest.clamp_min_(torch.finfo(largest.dtype).min)
        weights = scores.sub_(largest).exp_()
        total = weights.sum(2, keepdim=True)
        part = _products.unrounded(weights.to(values.dtype), values[:, block.low : block.high]).div_(total)
        made = _blocks.from_rows(part, batch, count)
        out[:, block.start : block.end] = made if blind is None else made.masked_fill(blind, 0.0)
        if lse is not None:
            of_block = _blocks.from_rows(total.log_().add_(largest), batch, count)  # [B, t, Hq, 1]
            lse[:, :, block.start : block.end] = of_block[..., 0].transpose(1, 2)
    return out, lse


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: each block reads its keys and values again; its scores stay in a cache."""
    block = min(config.block, case["T"])
    reach = min(case["W"] + right_of(case) + block, case["S"])
    per_block = 2 * reach * case["Hkv"] + 2 * block * case["Hq"]
    return case["B"] * -(-case["T"] // block) * per_block * case["d"] * case.bytes_per_element()


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Of the gradient too."""
    return _blocks.unbounded(case, device)


VARIANT = Variant(
    op="local_attention",
    name="eager.blocked",
    summary="blocks of queries against the keys within reach",
    run=run,
    config=Config,
    axes={"block": (32, 64, 128, 256, 512)},
    reject=reject,
    rank=lambda case, device: 10,
    traffic=traffic,
)
