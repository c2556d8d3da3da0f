"""local_attention_bwd: the gradient of local_attention. The contract.

out and lse are the forward outputs. With p_tk = exp(s_tk - lse_t) over visible keys, and delta_t = dout_t . out_t, less
dlse_t where a gradient reaches lse:

    dv_k = sum over t of p_tk dout_t
    ds_tk = p_tk (dout_t . v_k - delta_t),  times 1 - (s_tk / softcap)^2 where softcap is given
    dq_t = scale sum over k of ds_tk k_k,   dk_k = scale sum over t of ds_tk q_t

A query that sees nothing has no p, whatever its lse, and dq = 0. dk and dv also sum over the query heads that share a
key head.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Offsets
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.local_attention import op as forward
from griffin_kernels.ops.local_attention.op import Documents, Keys, Queries
from griffin_kernels.ops.local_attention_bwd.cost import cost as cost

Sums = TensorSpec("B Hq T", "accumulator")
"""A number for each query."""


class Call(NamedTuple):
    """The arguments of local_attention_bwd. out, lse: as local_attention gave them. dout, dlse: what reaches them."""

    dout: Queries
    q: Queries
    k: Keys
    v: Keys
    out: Queries
    lse: Annotated[Tensor, Sums]
    dlse: Annotated[Tensor | None, Sums]
    segment_pos: Documents
    cu_seqlens: Offsets
    cu_seqlens_k: Offsets
    window: int
    softcap: float | None = None
    scale: float | None = None
    right: int = 0


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas at the top of this file, for a few queries at a time."""
    group, factor = call.q.shape[2] // call.k.shape[2], forward.scale_of(call)
    k, v = call.k.repeat_interleave(group, dim=2), call.v.repeat_interleave(group, dim=2)
    dq, dk, dv = torch.zeros_like(call.q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, columns, visible in forward.rows_and_columns(call):
        q, dout = call.q[:, rows], call.dout[:, rows]
        s = forward.scores_of(call, q, k[:, columns])
        p = torch.where(visible, torch.exp(s - call.lse[:, :, rows, None]), 0.0)
        delta = (dout * call.out[:, rows]).sum(3).transpose(1, 2)  # [B, H, t]
        if call.dlse is not None:
            delta = delta - call.dlse[:, :, rows]
        ds = p * (torch.einsum("bthd,bkhd->bhtk", dout, v[:, columns]) - delta[..., None])
        if call.softcap is not None:
            ds = ds * (1 - (s / call.softcap) ** 2)
        ds = torch.where(visible, ds, 0.0)
        dv[:, columns] += forward.weighted(p.mT, visible.mT, dout)
        dq[:, rows] = factor * forward.weighted(ds, visible, k[:, columns])
        dk[:, columns] += factor * forward.weighted(ds.mT, visible.mT, q)
    grouped = (*call.k.shape[:3], group, call.k.shape[3])
    return dq, dk.reshape(grouped).sum(3), dv.reshape(grouped).sum(3)


def recorded(call: Call) -> tuple[forward.Call, list[Tensor]]:
    """(the call of local_attention that this is the gradient of, its q, k and v): they record what is done."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in (call.q, call.k, call.v))
    names = ("segment_pos", "cu_seqlens", "cu_seqlens_k", "window", "softcap", "scale", "right")
    shared = {name: getattr(call, name) for name in names}
    return forward.Call(q, k, v, **shared, with_lse=call.dlse is not None), [q, k, v]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, the forward outputs by the reference in the accumulator's dtype, and a random gradient."""
    inputs = forward.make_inputs(case, device, seed) | {"with_lse": True}
    wide = accumulator(case.torch_dtype)
    out, lse = pieces.reference(forward.OP, inputs, wide)
    assert out is not None and lse is not None
    draw = Draws(case, device, seed + 1)
    dout = draw.data(draw.normal(*out.shape))
    inputs |= {"dout": dout, "out": out.to(device, case.torch_dtype), "lse": lse.to(device)}
    inputs["dlse"] = draw.wide(draw.normal(*lse.shape)) if "dlse" in case.data else None
    return {name: inputs[name] for name in Call._fields}


def tolerance(case: Case) -> Tolerance:
    """Twice the forward bounds and more: ds is a difference of two terms, each with the error of p."""
    # dv sums p over up to W queries, dk and dq sum ds. In half precision p and ds are rounded before their products,
    # and an implementation that keeps its own output subtracts a delta that is not rounded as out is.
    # dq nearly cancels where a query sees few keys (with one key it is zero): what is left there are errors of p's own
    # size, bounded through the rms in `worst`.
    one_way = forward.tolerance(case)
    return Tolerance(rel_norm=3 * one_way.rel_norm, worst=4 * one_way.worst)


OP = gradient_of(
    forward,
    summary="dq, dk, dv of local_attention from its output and lse, scores recomputed",
    call=Call,
    outputs={"dq": TensorSpec("B T Hq d"), "dk": TensorSpec("B S Hkv d"), "dv": TensorSpec("B S Hkv d")},
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    check=forward.check,
)
