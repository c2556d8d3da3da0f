"""Baseline: the reverse scan of the gradient by torch's own operator; see linear_scan/compiled_associative_scan.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, compiled_associative_scan

VARIANT = _scan_eager.gradient_of(compiled_associative_scan)
