"""local_attention as ``eager.blocked`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost, Pass

BLOCK = 64
"""Queries treated at a time."""


def passes(case: Case) -> tuple[Pass, ...]:
    """For each block of queries: scores with the keys within reach, a softmax in seven steps, the weighted values."""
    time, window, d = case["T"], case["W"], case["d"]
    keys = case.size.get("S", time)
    past = keys - time
    reaches = [min(start + BLOCK, time) + past - max(0, start + past - window + 1) for start in range(0, time, BLOCK)]
    blocks = len(reaches)
    if not blocks or not case["B"]:
        return ()
    queries = case["B"] * case["Hq"] * min(BLOCK, time)
    mean_keys = sum(reaches) // blocks
    pairs = queries * mean_keys
    size = case.bytes_per_element()
    key_bytes = case["B"] * case["Hkv"] * mean_keys * d * size
    query_bytes = queries * d * size

    def step(read: int, written: int, vector: int = 1, special: int = 0) -> Pass:
        return Pass.elementwise(pairs, read, written, vector, special, count=blocks)

    return (
        Pass(Cost(query_bytes + key_bytes, 4 * pairs, tensor_flops=2 * pairs * d), blocks),
        step(4, 4),  # scale
        *((step(4, 4), step(4, 4, 0, 1), step(4, 4)) if "softcap" in case.flags else ()),
        step(4, 4, 0),  # mask
        step(4, 0),  # maximum
        step(4, 4),  # difference
        step(4, 4, 0, 1),  # exp
        step(4, 0),  # sum
        Pass(Cost(4 * pairs + key_bytes, query_bytes, tensor_flops=2 * pairs * d), blocks),
        Pass.elementwise(queries * d, size, size, vector=1, count=blocks),  # over the sum
        Pass.elementwise(queries * d, size, size, count=blocks),  # into the output
    )
