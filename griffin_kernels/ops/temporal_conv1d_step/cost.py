"""What one temporal_conv1d_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.temporal_conv1d.cost import activation_flops

FLAGS = ("silu", "gelu")
"""Positions and slots are read, but change nothing that look-up should tell apart."""


def cost(case: Case) -> Cost:
    """Read x, weights and the state, write y and the state; K multiply-adds per channel."""
    channels = case["B"] * case["D"]
    taps = (case["K"] - 1) * channels
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(channels + taps + (case["K"] + 1) * case["D"]) * size + index_bytes(case),
        bytes_written=(channels + taps) * size,
        vector_flops=(2 * case["K"] + activation_flops(case)) * channels,
        special_ops=channels if activation_flops(case) else 0,
    )


def index_bytes(case: Case) -> int:
    """Of positions and slots."""
    return 8 * case["B"] * sum(name in case.data for name in ("positions", "slots", "dst_slots"))


def make_case(
    batch: int, width: int, taps: int = 4, dtype: str = "float32", *, pool: int | None = None, **facts: object
) -> BenchCase:
    """A case from sizes: P states, of which a batch of B works on B."""
    sizes = (("B", batch), ("D", width), ("K", taps), ("P", batch if pool is None else pool))
    return BenchCase(dict(sizes), dtype, op="temporal_conv1d_step", **facts)  # type: ignore[arg-type]
