"""The reverse scan of the gradient by dense diagonal blocks; see linear_scan/eager_blocked_diagonal.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, eager_blocked_diagonal

VARIANT = _scan_eager.gradient_of(eager_blocked_diagonal)
