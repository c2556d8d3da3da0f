"""What published models run: gelu, then a product, each rounded to the data's dtype.

Source: google-deepmind/recurrentgemma, modules.py (MLPBlock); transformers' RecurrentGemmaMlp.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.case import Case
from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.gated_gelu.op import Call, reference


def run(call: Call, config: NoConfig) -> tuple[Tensor]:
    return reference(call)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: two streams of gelu and three of the product."""
    return 5 * elements(case) * case.bytes_per_element()


VARIANT = Variant(
    op="gated_gelu",
    name="eager.published",
    summary="the published code: gelu and a product, each rounded",
    run=run,
    baseline=True,
    slack=3.0,  # gelu is rounded too, within PyTorch's kernel and after it
    traffic=traffic,
)
