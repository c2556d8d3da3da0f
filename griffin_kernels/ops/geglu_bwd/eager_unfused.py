"""gated_gelu_bwd/eager_unfused.py on the halves, whose gradients are then put side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.gated_gelu_bwd import eager_unfused as apart
from griffin_kernels.ops.geglu import eager_unfused as forward
from griffin_kernels.ops.geglu_bwd.op import Call, halves


def run(call: Call, config: NoConfig) -> tuple[Tensor]:
    return (torch.stack(apart.run(halves(call), config), dim=2),)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: gated_gelu_bwd's, and both gradients read and written again."""
    return apart.traffic(case, config) + 4 * elements(case) * case.bytes_per_element()


VARIANT = backward_of(forward.VARIANT, run, summary=apart.VARIANT.summary, traffic=traffic)
