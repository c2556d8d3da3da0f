"""The reverse scan of the gradient by recursive doubling; see linear_scan/eager_associative.py."""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan.eager_associative import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.eager_associative import core_of

VARIANT = backward_of(FORWARD, through(_scan_eager.backward, core_of))
