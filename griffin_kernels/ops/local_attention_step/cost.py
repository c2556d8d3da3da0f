"""What one local_attention_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.nearness import Nearness
from griffin_kernels.ops.local_attention.cost import attending

FLAGS = ("softcap",)
"""Properties of a call that look-up matches exactly."""


NEAR = Nearness(exact_dims=("Hkv", "d"), free_dims=("P",))
"""What look-up compares."""


def cost(case: Case) -> Cost:
    """Read q, k, v, indices and a full ring, all but the slot that k and v go to; write out, k and v.

    Two products and a softmax over all slots.
    """
    pairs = case["B"] * case["Hq"] * case["W"]
    queries = case["B"] * case["Hq"] * case["d"]
    new = 2 * case["B"] * case["Hkv"] * case["d"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(queries + case["W"] * new) * size + 8 * case["B"] * (2 if "slots" in case.data else 1),
        bytes_written=(queries + new) * size,
        **attending(case, pairs),
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
    pool: int | None = None,
    op: str = "local_attention_step",
    **facts: object,
) -> BenchCase:
    """A case from sizes: P rings of W slots of Hkv heads of d, of which a batch of B works on B."""
    sizes = (batch, window, heads, shared, d, batch if pool is None else pool)
    dims = tuple(zip(("B", "W", "Hq", "Hkv", "d", "P"), sizes, strict=True))
    return BenchCase(dict(dims), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
