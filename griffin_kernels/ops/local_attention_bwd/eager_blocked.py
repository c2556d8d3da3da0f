"""The analytic gradient by blocks of queries, scores recomputed from lse; see local_attention/eager_blocked.py.

p = exp(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout        dk, dv summed in float32
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.ops import _products
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _blocks, _isolated
from griffin_kernels.ops.local_attention._key_ranges import near
from griffin_kernels.ops.local_attention.cost import right_of
from griffin_kernels.ops.local_attention.eager_blocked import VARIANT as FORWARD
from griffin_kernels.ops.local_attention.eager_blocked import Config
from griffin_kernels.ops.local_attention.op import scale_of
from griffin_kernels.ops.local_attention_bwd.op import Call


@_isolated.backward
def run(call: Call, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    given, call = call, near(call)
    dout, q, k, v, out, lse, dlse, softcap = *call[:7], call.softcap
    (batch, count_keys, shared, d), wide = k.shape, accumulator(q.dtype)
    keys, values = _blocks.by_key_head(k), _blocks.by_key_head(v)  # [B*Hkv, S, d]
    visibility, factor = _blocks.Visibility(call), scale_of(call)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk = torch.zeros(keys.shape, dtype=wide, device=q.device)
    dv = torch.zeros_like(dk)
    for block in _blocks.blocks(call, config.block):
        if block.low == block.high:
            dq[:, block.start : block.end] = 0.0
            continue
        reach = slice(block.low, block.high)
        rows, upstream = _blocks.rows_of(q, block, shared), _blocks.rows_of(dout, block, shared)
        scores = _products.unrounded(rows, keys[:, reach].transpose(1, 2)).mul_(factor)
        scores = _blocks.capped(scores, softcap)
        bend = None if softcap is None else (scores / softcap).square_().neg_().add_(1.0)
        weights = scores.sub_(_blocks.rows_of(lse.mT[..., None], block, shared)).exp_()
        visibility.hide(weights, block, batch, 0.0)
        delta = (upstream.to(wide) * _blocks.rows_of(out, block, shared)).sum(2, keepdim=True)
        if dlse is not None:
            delta = delta - _blocks.rows_of(dlse.mT[..., None], block, shared)
        dv[:, reach] += _products.unrounded(weights.to(upstream.dtype).transpose(1, 2), upstream)
        ds = _products.unrounded(upstream, values[:, reach].transpose(1, 2)).sub_(delta).mul_(weights).mul_(factor)
        ds = (ds if bend is None else ds.mul_(bend)).to(rows.dtype)
        part = _products.unrounded(ds, keys[:, reach])
        dq[:, block.start : block.end] = _blocks.from_rows(part, batch, block.end - block.start)
        dk[:, reach] += _products.unrounded(ds.transpose(1, 2), rows)

    def by_step(summed: Tensor) -> Tensor:
        near_gradient = summed.reshape(batch, shared, count_keys, d).transpose(1, 2)
        if count_keys == given.k.shape[1]:
            return near_gradient.to(k.dtype).contiguous()
        gradient = torch.zeros(given.k.shape, dtype=k.dtype, device=k.device)
        gradient[:, -count_keys:] = near_gradient
        return gradient

    return dq, by_step(dk), by_step(dv)


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: each block reads its keys and values and adds to their float32 gradients; scores stay in a cache."""
    size = case.bytes_per_element()
    block = min(config.block, case["T"])
    reach = min(case["W"] + right_of(case) + block, case["S"])
    per_block = reach * case["Hkv"] * (2 * size + 2 * 2 * 4) + 4 * block * case["Hq"] * size
    return case["B"] * -(-case["T"] // block) * per_block * case["d"]


VARIANT = backward_of(FORWARD, run, summary="analytic, blocks of queries, scores recomputed from lse", traffic=traffic)
