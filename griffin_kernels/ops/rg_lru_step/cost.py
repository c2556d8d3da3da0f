"""What one rg_lru_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.temporal_conv1d_step.cost import index_bytes

FLAGS: tuple[str, ...] = ()
"""Positions and slots are read, but change nothing that look-up should tell apart."""

STATE_BYTES = 4
"""The state is float32, but for float64 data."""


def cost(case: Case) -> Cost:
    """Read x, both gates' weights and the state, write y and the state; operations per channel as in rg_lru."""
    channels = case["B"] * case["D"]
    size = case.bytes_per_element()
    state = max(size, STATE_BYTES) * channels
    return Cost(
        bytes_read=(channels + weight_elements(case)) * size + state + index_bytes(case),
        bytes_written=channels * size + state,
        tensor_flops=2 * 2 * channels * case["n"],
        vector_flops=9 * channels,
        special_ops=5 * channels,
    )


def weight_elements(case: Case) -> int:
    """Of both gates, their biases and a_param."""
    return 2 * case["H"] * case["n"] * (case["n"] + 1) + case["D"]


def make_case(
    batch: int, width: int, blocks: int, dtype: str = "float32", *, pool: int | None = None, **facts: object
) -> BenchCase:
    """A case from sizes: H blocks of width n = D / H; P states, of which a batch of B works on B."""
    sizes = (batch, width, blocks, width // max(blocks, 1), batch if pool is None else pool)
    return BenchCase(dict(zip(("B", "D", "H", "n", "P"), sizes, strict=True)), dtype, op="rg_lru_step", **facts)  # type: ignore[arg-type]
