"""Baseline: the reverse scan of the gradient by torch's own operator; see linear_scan/compiled_associative_scan.py."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.linear_scan import _eager
from griffin_kernels.ops.linear_scan.compiled_associative_scan import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.compiled_associative_scan import core


def run(
    dh: Tensor,
    dh_last: Tensor | None,
    a: Tensor,
    h: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _eager.backward(core, dh, dh_last, a, h, h0, reset, cu_seqlens, reverse)


VARIANT = Variant(
    op="linear_scan_bwd",
    name="compiled.associative_scan",
    summary=FORWARD.summary,
    run=run,
    config=NoConfig,
    reject=FORWARD.reject,
    baseline=True,
)
