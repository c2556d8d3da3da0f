"""gelu and a product in the accumulator's dtype, rounded once. Works on every device and dtype.

16-bit data is widened first: 20 bytes an element in bfloat16 for gelu and product, and 18 more to widen and round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant, accumulator
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.gated_gelu.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor]:
    wide = accumulator(call.gate.dtype)
    made = torch.nn.functional.gelu(call.gate.to(wide), approximate="tanh").mul_(call.value)
    return (made.to(call.gate.dtype),)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: gelu reads and writes, the product reads that and value and writes; 16 bits are widened."""
    if case.half:
        return elements(case) * ((2 + 4) + (4 + 4) + (4 + 2 + 4) + (4 + 2))
    return elements(case) * 5 * case.bytes_per_element()


VARIANT = Variant(
    op="gated_gelu",
    name="eager.unfused",
    summary="gelu and a product in float32",
    run=run,
    rank=lambda case, device: 10,
    traffic=traffic,
)
