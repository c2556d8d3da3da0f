"""local_attention_bwd: the gradient of local_attention. The contract.

out and lse are the forward outputs. With p_tk = exp(s_tk - lse_t) over visible keys, and delta_t = dout_t . out_t:

    dv_k = sum over t of p_tk dout_t
    ds_tk = p_tk (dout_t . v_k - delta_t),  times 1 - (s_tk / softcap)^2 where softcap is given
    dq_t = scale sum over k of ds_tk k_k,   dk_k = scale sum over t of ds_tk q_t

dk and dv also sum over the query heads that share a key head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import ROWS, Case, Cost, Inputs, Op, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops.local_attention import op as forward
from griffin_kernels.ops.local_attention.cost import keys_within_reach, visible_pairs
from griffin_kernels.ops.rg_lru.cost import index_bytes


def check(
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
) -> None:
    """As for the forward op."""
    forward.check_options(q, k, cu_seqlens, window, softcap, scale)


def reference(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas at the top of this file, for a few queries at a time."""
    batch, keys_given, shared, d = k.shape
    time = q.shape[1]
    earlier = keys_given - time
    group = q.shape[2] // shared
    factor = d**-0.5 if scale is None else scale
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    first = forward.first_keys(time, keys_given, window, segment_pos, cu_seqlens, q.device)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for start in range(0, time, forward.REFERENCE_ROWS):
        end = min(start + forward.REFERENCE_ROWS, time)
        low, high = max(0, start + earlier - window + 1), end + earlier
        rows, columns = slice(start, end), slice(low, high)
        keys = torch.arange(low, high, device=q.device, dtype=torch.int64)
        own = torch.arange(start + earlier, high, device=q.device, dtype=torch.int64)[:, None]
        visible = ((keys >= first[:, rows, None]) & (keys <= own))[:, None]  # [B or 1, 1, t, k]
        s = forward.scores_of(q[:, rows], k[:, columns], softcap, scale)
        p = torch.where(visible, torch.exp(s - lse[:, :, rows, None]), 0.0)
        delta = (dout[:, rows] * out[:, rows]).sum(3).transpose(1, 2)  # [B, H, t]
        ds = p * (torch.einsum("bthd,bkhd->bhtk", dout[:, rows], v[:, columns]) - delta[..., None])
        if softcap is not None:
            ds = ds * (1 - (s / softcap) ** 2)
        ds = torch.where(visible, ds, 0.0)
        dv[:, columns] += forward.weighted(p.mT, visible.mT, dout[:, rows])
        dq[:, rows] = factor * forward.weighted(ds, visible, k[:, columns])
        dk[:, columns] += factor * forward.weighted(ds.mT, visible.mT, q[:, rows])
    grouped = (batch, keys_given, shared, group, d)
    return dq, dk.reshape(grouped).sum(3), dv.reshape(grouped).sum(3)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, the forward outputs by the reference in the accumulator's dtype, and a random gradient."""
    inputs = forward.make_inputs(case, device, seed) | {"with_lse": True}
    wide = accumulator(case.torch_dtype)
    out, lse = pieces.reference(forward.OP, inputs, wide)
    assert out is not None and lse is not None
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float32, device="cpu").to(device, case.torch_dtype)
    tensors = {name: inputs[name] for name in ("q", "k", "v")}
    others = {name: inputs[name] for name in ("segment_pos", "cu_seqlens", "window", "softcap", "scale")}
    return {"dout": dout, **tensors, "out": out.to(device, case.torch_dtype), "lse": lse.to(device), **others}


def cost(case: Case) -> Cost:
    """Read dout, q, k, v within reach, out, lse; write dq, dk, dv; five products over the pairs in the window."""
    pairs = case["B"] * case["Hq"] * visible_pairs(case)
    queries = case["B"] * case["T"] * case["Hq"]
    keys, all_keys = (case["B"] * count * case["Hkv"] for count in (keys_within_reach(case), case["S"]))
    size = case.bytes_per_element()
    capped = "softcap" in case.flags
    # per pair: scale 1, difference 1, dP - delta 1, product 1; softcap 4 more
    return Cost(
        bytes_read=(3 * queries + 2 * keys) * case["d"] * size + 4 * queries + index_bytes(case),
        bytes_written=(queries + 2 * all_keys) * case["d"] * size,
        tensor_flops=10 * pairs * case["d"],
        vector_flops=(8 if capped else 4) * pairs,
        special_ops=(2 if capped else 1) * pairs,
    )


def tolerance(case: Case) -> Tolerance:
    """Twice the forward bounds and more: ds is a difference of two terms, each with the error of p."""
    # dv sums p over up to W queries, dk and dq sum ds. In half precision p and ds are rounded before their products,
    # and an implementation that keeps its own output subtracts a delta that is not rounded as out is.
    # dq nearly cancels where a query sees few keys (with one key it is zero): what is left there are errors of p's own
    # size, bounded through the rms in `worst`.
    one_way = forward.tolerance(case)
    return Tolerance(rel_norm=3 * one_way.rel_norm, worst=4 * one_way.worst)


def case_of(
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
) -> Case:
    """The case that a real call is."""
    return forward.call_case("local_attention_bwd", q, k, segment_pos, cu_seqlens, window, softcap)


OP = Op(
    name="local_attention_bwd",
    summary="dq, dk, dv of local_attention from its output and lse, scores recomputed",
    inputs={
        "dout": TensorSpec("B T Hq d"),
        **{name: forward.INPUTS[name] for name in ("q", "k", "v")},
        "out": TensorSpec("B T Hq d"),
        "lse": TensorSpec("B Hq T", "accumulator"),
        **{name: forward.INPUTS[name] for name in ("segment_pos", "cu_seqlens")},
    },
    options=("window", "softcap", "scale"),
    outputs={
        "dq": TensorSpec("B T Hq d"),
        "dk": TensorSpec("B S Hkv d"),
        "dv": TensorSpec("B S Hkv d"),
    },
    reference=reference,
    cases=forward.cases("local_attention_bwd"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("Hkv", "Hq")),
    exact_dims=("Hkv", "d"),
    free_dims=("N",),
    check=check,
    forward="local_attention",
)
