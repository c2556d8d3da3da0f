"""The scan of the gradient in chunks of time; see block_diagonal_scan/eager_chunked.py."""

from __future__ import annotations

import functools

from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops.block_diagonal_scan import _eager
from griffin_kernels.ops.block_diagonal_scan.eager_chunked import VARIANT as FORWARD
from griffin_kernels.ops.block_diagonal_scan.eager_chunked import Config, core


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
    config: Config,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _eager.backward(
        functools.partial(core, chunk=config.chunk), dh, dh_last, a, h, h0, reset, cu_seqlens, reverse
    )


VARIANT = Variant(
    op="block_diagonal_scan_bwd",
    name="eager.chunked",
    summary=FORWARD.summary,
    run=run,
    config=Config,
    axes=FORWARD.axes,
    rank=FORWARD.rank,
)
