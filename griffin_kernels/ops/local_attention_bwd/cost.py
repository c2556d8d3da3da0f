"""What one local_attention_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.local_attention.cost import keys_within_reach, offset_bytes, visible_pairs


def cost(case: Case) -> Cost:
    """Read dout, q, k, v within reach, out, lse; write dq, dk, dv; five products over the pairs in the window."""
    pairs = case["B"] * case["Hq"] * visible_pairs(case)
    queries = case["B"] * case["T"] * case["Hq"]
    keys, all_keys = (case["B"] * count * case["Hkv"] for count in (keys_within_reach(case), case["S"]))
    size = case.bytes_per_element()
    capped, of_queries = "softcap" in case.flags, 8 if "dlse" in case.data else 4
    # per pair: scale 1, difference 1, dP - delta 1, product 1; softcap 4 more
    return Cost(
        bytes_read=(3 * queries + 2 * keys) * case["d"] * size + of_queries * queries + offset_bytes(case),
        bytes_written=(queries + 2 * all_keys) * case["d"] * size,
        tensor_flops=10 * pairs * case["d"],
        vector_flops=(8 if capped else 4) * pairs,
        special_ops=(2 if capped else 1) * pairs,
    )
