"""The analytic gradient by blocks of queries, scores recomputed from lse; see local_attention/eager_blocked.py.

p = exp(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout        dk, dv summed in float32
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant, accumulator
from griffin_kernels.ops import _products
from griffin_kernels.ops.local_attention import _blocks, _isolated
from griffin_kernels.ops.local_attention.op import within_reach


@dataclass(frozen=True)
class Config:
    """block: queries treated at a time."""

    block: int = 64


@_isolated.backward
def run(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    *,
    config: Config,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _, d = q.shape
    shared, wide = k.shape[2], accumulator(q.dtype)
    near_k, near_v = within_reach(k, time, window), within_reach(v, time, window)
    count_keys = near_k.shape[1]
    keys, values = _blocks.by_key_head(near_k), _blocks.by_key_head(near_v)  # [B*Hkv, S, d]
    visibility = _blocks.Visibility(time, count_keys, window, segment_pos, cu_seqlens, q.device)
    factor = d**-0.5 if scale is None else scale
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk = torch.zeros(keys.shape, dtype=wide, device=q.device)
    dv = torch.zeros_like(dk)
    for block in _blocks.blocks(time, count_keys, window, config.block):
        reach = slice(block.low, block.high)
        rows, upstream = _blocks.rows_of(q, block, shared), _blocks.rows_of(dout, block, shared)
        scores = _products.unrounded(rows, keys[:, reach].transpose(1, 2)).mul_(factor)
        scores = _blocks.capped(scores, softcap)
        bend = None if softcap is None else (scores / softcap).square_().neg_().add_(1.0)
        weights = scores.sub_(_blocks.row_values(lse, block, shared)).exp_()
        visibility.hide(weights, block, batch, 0.0)
        delta = (upstream.to(wide) * _blocks.rows_of(out, block, shared)).sum(2, keepdim=True)
        dv[:, reach] += _products.unrounded(weights.to(upstream.dtype).transpose(1, 2), upstream)
        ds = _products.unrounded(upstream, values[:, reach].transpose(1, 2)).sub_(delta).mul_(weights).mul_(factor)
        ds = (ds if bend is None else ds.mul_(bend)).to(rows.dtype)
        part = _products.unrounded(ds, keys[:, reach])
        dq[:, block.start : block.end] = _blocks.from_rows(part, batch, block.end - block.start)
        dk[:, reach] += _products.unrounded(ds.transpose(1, 2), rows)

    def by_step(summed: Tensor) -> Tensor:
        near = summed.reshape(batch, shared, count_keys, d).transpose(1, 2)
        if count_keys == k.shape[1]:
            return near.to(k.dtype).contiguous()
        gradient = torch.zeros(k.shape, dtype=k.dtype, device=k.device)
        gradient[:, -count_keys:] = near
        return gradient

    return dq, by_step(dk), by_step(dv)


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: each block reads its keys and values and adds to their float32 gradients; scores stay in a cache."""
    size = case.bytes_per_element()
    block = min(config.block, case["T"])
    reach = min(case["W"] + block, case["S"])
    per_block = reach * case["Hkv"] * (2 * size + 2 * 2 * 4) + 4 * block * case["Hq"] * size
    return case["B"] * -(-case["T"] // block) * per_block * case["d"]


VARIANT = Variant(
    op="local_attention_bwd",
    name="eager.blocked",
    summary="analytic, blocks of queries, scores recomputed from lse",
    run=run,
    config=Config,
    axes={"block": (32, 64, 128, 256, 512)},
    rank=lambda case, device: 10,
    traffic=traffic,
)
