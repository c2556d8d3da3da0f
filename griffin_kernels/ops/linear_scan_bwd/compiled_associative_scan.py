"""Baseline: the reverse scan of the gradient by torch's own operator; see linear_scan/compiled_associative_scan.py."""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan.compiled_associative_scan import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.compiled_associative_scan import core_of

VARIANT = backward_of(FORWARD, through(_scan_eager.backward, core_of))
