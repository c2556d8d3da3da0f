"""What one rms_norm_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost


def cost(case: Case) -> Cost:
    """Read dy, x and the weights, write dx and the weights' gradient: three streams; four with ds."""
    rows = case["B"] * case["T"]
    elements = rows * case["D"]
    size, added = case.bytes_per_element(), elements if "residual" in case.flags else 0
    # g 1, both sums 4, dx 4, dweight 3, ds 1; the offset a channel; two means, eps, r^2 and its product a row
    return Cost(
        bytes_read=(2 * elements + added + case["D"]) * size,
        bytes_written=(elements + case["D"]) * size,
        vector_flops=12 * elements + added + case["D"] + 5 * rows,
        special_ops=rows,
    )
