"""What one local_attention_extend costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.local_attention.cost import attending

FLAGS = ("softcap", "paged")
"""Properties of a call that look-up matches exactly."""


def cost(case: Case) -> Cost:
    """Read q, k, v, indices and W - 1 earlier keys and values; write out, k and v.

    Two products and a softmax over the W keys that every query sees.
    """
    batch, time = case["B"], case["T"]
    pairs = batch * time * case["Hq"] * case["W"]
    queries = batch * time * case["Hq"] * case["d"]
    new = 2 * batch * time * case["Hkv"] * case["d"]
    earlier = 2 * batch * (case["W"] - 1) * case["Hkv"] * case["d"]
    size = case.bytes_per_element()
    indices = 1 + ("slots" in case.data) + ("lengths" in case.data)
    if "paged" in case.flags:
        indices += case["P"] // batch
    return Cost(
        bytes_read=(queries + new + earlier) * size + 8 * batch * indices,
        bytes_written=(queries + new) * size,
        **attending(case, pairs),
    )


def make_case(
    batch: int,
    time: int,
    window: int,
    heads: int,
    shared: int,
    d: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    pool: int | None = None,
    op: str = "local_attention_extend",
    **facts: object,
) -> BenchCase:
    """A case from sizes: T new tokens of each of B rows, which work on B of P rings of Hkv heads of d.

    With the flag ``paged`` on rings of P // B pages of a pool of P.
    """
    sizes = (batch, time, window, heads, shared, d, batch if pool is None else pool)
    dims = tuple(zip(("B", "T", "W", "Hq", "Hkv", "d", "P"), sizes, strict=True))
    return BenchCase(dict(dims), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
