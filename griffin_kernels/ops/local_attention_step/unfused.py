"""local_attention_step as ``eager.matmul`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost, Pass


def passes(case: Case) -> tuple[Pass, ...]:
    """Indices, k and v into their slots; scores, scale, mask, softmax, weighted values over all slots, in float32."""
    pairs = case["B"] * case["Hq"] * case["W"]
    queries = case["B"] * case["Hq"] * case["d"]
    keys = case["B"] * case["W"] * case["Hkv"] * case["d"]
    size = case.bytes_per_element()
    new = case["B"] * case["Hkv"] * case["d"] * size
    return (
        Pass.elementwise(case["B"], 8, 8, count=2),
        Pass(Cost(new, new), 2),
        Pass(Cost((queries + keys) * size, 4 * pairs, tensor_flops=2 * pairs * case["d"])),
        Pass.elementwise(pairs, 4, 4, vector=1),
        *([Pass.elementwise(pairs, 4, 4, vector=1, count=2)] if "softcap" in case.flags else []),
        *([Pass.elementwise(pairs, 4, 4, special=1)] if "softcap" in case.flags else []),
        Pass.elementwise(case["B"] * case["W"], 8, 1),
        Pass.elementwise(pairs, 4, 4),
        Pass.elementwise(pairs, 4, 4, vector=3, special=1),
        Pass(Cost(4 * pairs + keys * size, queries * 4, tensor_flops=2 * pairs * case["d"])),
        *([Pass.elementwise(queries, 4, size)] if size < 4 else []),
    )
