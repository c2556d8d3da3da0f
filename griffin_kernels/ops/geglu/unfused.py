"""geglu as PyTorch's kernels compose it: as gated_gelu, since a chunk is a view. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.ops.gated_gelu.unfused import passes as passes
