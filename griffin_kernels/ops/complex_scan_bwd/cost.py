"""What one complex_scan_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost


def cost(case: Case) -> Cost:
    """Read dh, a, h; write dx, da. A complex multiply-add and a product per number."""
    numbers = case["B"] * case["T"] * case["D"]
    size = 2 * case.bytes_per_element()
    return Cost(bytes_read=3 * numbers * size, bytes_written=2 * numbers * size, vector_flops=14 * numbers)
