"""What the gradient of one geglu costs, from sizes alone: as gated_gelu_bwd. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.ops.gated_gelu_bwd.cost import cost as cost
