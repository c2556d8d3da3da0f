"""What one gated_gelu costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.temporal_conv1d.cost import GELU_FLOPS, GELU_SPECIALS


def elements(case: Case) -> int:
    """Of each tensor of a call."""
    return case["B"] * case["T"] * case["D"]


def cost(case: Case) -> Cost:
    """Read gate and value, write their product; a gelu and a product per element."""
    count, size = elements(case), case.bytes_per_element()
    return Cost(
        2 * count * size, count * size, vector_flops=(GELU_FLOPS + 1) * count, special_ops=GELU_SPECIALS * count
    )


def make_case(batch: int, time: int, width: int, dtype: str = "float32", **facts: Any) -> BenchCase:
    """A case from sizes. D, the width, is that of an MLP: 3 times the model's in every published one."""
    facts.setdefault("op", "gated_gelu")
    return BenchCase({"B": batch, "T": time, "D": width}, dtype, **facts)
