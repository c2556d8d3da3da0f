"""What one geglu costs, from sizes alone: what gated_gelu does, which moves as much. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.ops.gated_gelu.cost import cost as cost

LEAST_GATED = 2**15
"""Numbers of gate and value on a CPU below which PyTorch's two calls take less time than one of ``geglu``: 20 against
4 us of a call, by measurement."""
