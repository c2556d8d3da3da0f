"""What one linear_scan_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru_step.cost import STATE_BYTES
from griffin_kernels.ops.temporal_conv1d_step.cost import index_bytes

FLAGS = ("log", "wide")
"""The gates' logarithms are given; gates are float32 beside 16-bit data."""


def cost(case: Case) -> Cost:
    """Read x, a and the state, write y and the state; a multiply-add per channel."""
    channels, size = case["B"] * case["D"], case.bytes_per_element()
    wide = max(size, STATE_BYTES)
    gates = wide if "wide" in case.flags else size
    resets = case["B"] if "reset" in case.data else 0
    return Cost(
        bytes_read=(size + gates + wide) * channels + index_bytes(case) + resets,
        bytes_written=(size + wide) * channels,
        vector_flops=2 * channels,
        special_ops=channels if "log" in case.flags else 0,
    )


def make_case(
    batch: int,
    width: int,
    dtype: str = "float32",
    flags: tuple[str, ...] = (),
    *,
    pool: int | None = None,
    **facts: object,
) -> BenchCase:
    """A case from sizes: P states, of which a batch of B works on B."""
    sizes = (("B", batch), ("D", width), ("P", batch if pool is None else pool))
    return BenchCase(dict(sizes), dtype, flags, op="linear_scan_step", **facts)  # type: ignore[arg-type]
