"""local_attention as ``eager.blocked`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost, Pass
from griffin_kernels.ops.local_attention.cost import right_of

BLOCK = 64
"""Queries treated at a time."""


def reached(time: int, past: int, window: int) -> int:
    """Keys within reach of each block of queries, summed over the blocks: not one by one, as there may be billions."""
    blocks = -(-time // BLOCK)
    ends = BLOCK * blocks * (blocks - 1) // 2 + time + blocks * past
    before = past - window + 1  # block b leaves out the first BLOCK b + before keys, where that is above 0
    first = min(blocks, max(0, -(before // BLOCK)))
    leaving = blocks - first
    return ends - leaving * before - BLOCK * leaving * (first + blocks - 1) // 2


def after(time: int, right: int) -> int:
    """Keys after the own ones of each block of queries within reach, summed over the blocks."""
    full = -(-time // BLOCK) - 1  # blocks with others after them: time - BLOCK full queries come after the last of them
    short = time - BLOCK * full
    cut = min(full, max(0, -((short - right) // BLOCK)))  # blocks with fewer queries after them than ``right``
    return cut * short + BLOCK * cut * (cut - 1) // 2 + (full - cut) * right


def passes(case: Case) -> tuple[Pass, ...]:
    """For each block of queries: scores with the keys within reach, a softmax in seven steps, the weighted values."""
    window, d, keys = case["W"], case["d"], case.dims.get("S", case["T"])
    time = min(case["T"], keys)  # queries before the first key have nothing to read
    past = keys - time
    blocks = -(-time // BLOCK)
    if not blocks or not case["B"]:
        return ()
    queries = case["B"] * case["Hq"] * min(BLOCK, time)
    mean_keys = (reached(time, past, window) + after(time, right_of(case))) // blocks
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
