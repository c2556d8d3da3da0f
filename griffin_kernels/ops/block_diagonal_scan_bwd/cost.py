"""What one block_diagonal_scan_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost


def cost(case: Case) -> Cost:
    """Read dh, h and a, write dx and da. n multiply-adds per element, and n products for da."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(case["n"] + 2) * elements * size,
        bytes_written=(case["n"] + 1) * elements * size,
        vector_flops=3 * case["n"] * elements,
    )
