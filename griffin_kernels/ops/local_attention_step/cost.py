"""What one local_attention_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost

FLAGS = ("softcap",)
"""Properties of a call that look-up matches exactly."""


def cost(case: Case) -> Cost:
    """Read q, positions and the whole cache, write out; two products and a softmax over all slots of a full ring."""
    pairs = case["B"] * case["Hq"] * case["W"]
    queries = case["B"] * case["Hq"] * case["d"]
    cached = 2 * case["B"] * case["W"] * case["Hkv"] * case["d"]
    size = case.bytes_per_element()
    capped = "softcap" in case.flags
    # per pair: scale 1, maximum 1, difference 1, sum 1; softcap 2 more
    return Cost(
        bytes_read=(queries + cached) * size + 8 * case["B"],
        bytes_written=queries * size,
        tensor_flops=4 * pairs * case["d"],
        vector_flops=(6 if capped else 4) * pairs,
        special_ops=(2 if capped else 1) * pairs,
    )


def make_case(
    batch: int,
    window: int,
    heads: int,
    shared: int,
    d: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    op: str = "local_attention_step",
    **facts: object,
) -> Case:
    """A case from sizes: W slots of Hkv heads of d."""
    dims = tuple(zip(("B", "W", "Hq", "Hkv", "d"), (batch, window, heads, shared, d), strict=True))
    return Case(op, dims, dtype, tuple(flags), **facts)  # type: ignore[arg-type]
