"""What one temporal_conv1d costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru.cost import FLAGS as FLAGS  # a state is none: it costs K-1 rows
from griffin_kernels.ops.rg_lru.cost import index_bytes


def cost(case: Case) -> Cost:
    """Read x, weights and state, write y and the new state; K multiply-adds per element."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(elements + weight_elements(case) + state_elements(case)) * size + index_bytes(case),
        bytes_written=(elements + case["N"] * (case["K"] - 1) * case["D"]) * size,
        vector_flops=2 * case["K"] * elements,
    )


def weight_elements(case: Case) -> int:
    """Of weight and bias."""
    return (case["K"] + 1) * case["D"]


def state_elements(case: Case) -> int:
    """Of the state that is passed in, which is what one decoded token mostly reads."""
    return case["N"] * (case["K"] - 1) * case["D"] if "state" in case.data else 0


def make_case(
    batch: int, time: int, width: int, taps: int = 4, dtype: str = "float32", flags: Sequence[str] = (), **facts: Any
) -> BenchCase:
    """A case from sizes. K, the taps, is 4 in every published model; N is the batch, or ``rows`` packed sequences."""
    facts.setdefault("op", "temporal_conv1d")
    sizes = {"B": batch, "T": time, "D": width, "K": taps, "N": facts.pop("rows", batch)}
    return BenchCase(sizes, dtype, tuple(flags), **facts)
