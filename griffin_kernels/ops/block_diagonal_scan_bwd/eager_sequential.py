"""The scan of the gradient, one batched multiply-add per step; see block_diagonal_scan/eager_sequential.py."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.block_diagonal_scan import _eager
from griffin_kernels.ops.block_diagonal_scan.eager_sequential import VARIANT as FORWARD


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
    return _eager.backward(_eager.sequential, dh, dh_last, a, h, h0, reset, cu_seqlens, reverse)


VARIANT = Variant(
    op="block_diagonal_scan_bwd",
    name="eager.sequential",
    summary=FORWARD.summary,
    run=run,
    config=NoConfig,
    rank=FORWARD.rank,
)
