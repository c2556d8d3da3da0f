"""The reverse scan of the gradient by recursive doubling; see linear_scan/eager_associative.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, eager_associative

VARIANT = _scan_eager.gradient_of(eager_associative)
