"""rms_norm as PyTorch's kernels compose it in float32, with casts around it: what fusing saves. Needs no PyTorch.

As its CPU runs ``rms_norm``, step by step; on a GPU torch has one kernel for all between the casts.
"""

from __future__ import annotations

from griffin_kernels.case import Case, Pass


def passes(case: Case) -> tuple[Pass, ...]:
    """The sum, a cast, square, mean, eps, root, two products and a cast; the weights once."""
    rows, width = case["B"] * case["T"], case["D"]
    elements, size = rows * width, case.bytes_per_element()
    wide = max(size, 4)

    def cast(count: int, read: int, written: int) -> list[Pass]:
        return [Pass.elementwise(count, read, written)] if read != written else []

    return (
        *([Pass.elementwise(elements, 2 * size, size, vector=1)] if "residual" in case.flags else []),
        *cast(width, size, wide),
        Pass.elementwise(width, wide, wide, vector=1),
        *cast(elements, size, wide),
        Pass.elementwise(elements, wide, wide, vector=1),
        Pass.elementwise(elements, wide, 0, vector=1),
        Pass.elementwise(rows, wide, wide, vector=1),
        Pass.elementwise(rows, wide, wide, special=1),
        Pass.elementwise(elements, wide, wide, vector=1, count=2),
        *cast(elements, wide, size),
    )
