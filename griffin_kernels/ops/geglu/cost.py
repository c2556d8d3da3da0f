"""What one geglu costs, from sizes alone: what gated_gelu does, which moves as much. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.ops.gated_gelu.cost import cost as cost
