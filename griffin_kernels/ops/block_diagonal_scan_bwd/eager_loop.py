"""Baseline: the plain loop, run the other way through time for the gradient; see block_diagonal_scan/eager_loop.py."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.block_diagonal_scan import _eager
from griffin_kernels.ops.block_diagonal_scan.eager_loop import VARIANT as FORWARD
from griffin_kernels.ops.block_diagonal_scan.eager_loop import core


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
    op="block_diagonal_scan_bwd",
    name="eager.loop",
    summary=FORWARD.summary,
    run=run,
    config=NoConfig,
    baseline=True,
)
