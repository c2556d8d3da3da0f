"""What one linear_scan_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.linear_scan.cost import gates, special_ops


def cost(case: Case) -> Cost:
    """Read dh, a, h, and x of a convex scan; write dx, da. One multiply-add and one product per element."""
    elements = case["B"] * case["T"] * case["D"]
    count, size = gates(case)
    data = elements * case.bytes_per_element()
    convex, summed = "convex" in case.flags, "constant" in case.flags
    return Cost(
        bytes_read=(3 if convex else 2) * data + count * size,
        bytes_written=data + count * size,
        vector_flops=elements * (3 + 3 * convex + ("log" in case.flags) + summed),
        special_ops=special_ops(case),
    )
