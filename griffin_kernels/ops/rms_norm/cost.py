"""What one rms_norm costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost

MINOR_FLAGS = ("residual",)
"""Properties that hardly change which kernel is right."""


def cost(case: Case) -> Cost:
    """Read x and the weights, write y: two streams. With a residual that is read and the sum written: four."""
    rows = case["B"] * case["T"]
    elements = rows * case["D"]
    size, added = case.bytes_per_element(), elements if "residual" in case.flags else 0
    # square and sum 2, two products 2, the residual 1; the offset a channel; mean and eps a row
    return Cost(
        bytes_read=(elements + added + case["D"]) * size,
        bytes_written=(elements + added) * size,
        vector_flops=4 * elements + added + case["D"] + 2 * rows,
        special_ops=rows,
    )


def make_case(
    batch: int, time: int, width: int, dtype: str = "float32", flags: Sequence[str] = (), **facts: Any
) -> BenchCase:
    """A case from sizes: batch * time rows of ``width`` channels."""
    facts.setdefault("op", "rms_norm")
    return BenchCase({"B": batch, "T": time, "D": width}, dtype, tuple(flags), **facts)
