"""Time cut into chunks that are scanned side by side, then joined by a scan of their ends.

    within chunks (all at once):  l_t = a_t l_{t-1} + x_t,   p_t = a_t p_{t-1}
    over chunk ends:              c_k = p_end,k c_{k-1} + l_end,k
    fix-up:                       h_t = l_t + p_t c_{k-1}

chunk + T/chunk launches instead of T, each on B * T/chunk * D elements; about 9 streams of traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager


@dataclass(frozen=True)
class Config:
    """chunk: steps per chunk; about sqrt(T) makes the launches fewest."""

    chunk: int = 64


@_scan_eager.careful
def core(x: Tensor, a: Tensor, cut: Tensor | None, config: Config) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] within [-1, 1] and a zero state; see ``_scan_eager`` for cut."""
    (batch, time, width), chunk = x.shape, config.chunk
    pad = -time % chunk
    # padded steps have x = 0 at the end of time, where nothing reads them
    local = torch.nn.functional.pad(x, (0, 0, 0, pad)).reshape(batch, -1, chunk, width)  # [B, K, chunk, D]
    products = torch.nn.functional.pad(a, (0, 0, 0, pad)).reshape(batch, -1, chunk, width).clone()
    local = local.clone() if pad == 0 else local
    stops, stopped = None, None  # [B or 1, K, chunk]: a cut here; a cut in the chunk up to here
    if cut is not None:
        stops = torch.nn.functional.pad(cut, (0, pad)).reshape(cut.shape[0], -1, chunk)
        stopped = stops.cumsum(2) > 0
    for t in range(1, chunk):
        before = _scan_eager.unless(None if stops is None else stops[:, :, t], local[:, :, t - 1])
        local[:, :, t].addcmul_(products[:, :, t], before)
        products[:, :, t] *= products[:, :, t - 1]
    products = _scan_eager.unless(stopped, products)
    for k in range(1, local.shape[1]):
        # after this the chunk's last row is the true state; its other rows are fixed below
        entering = _scan_eager.unless(None if stopped is None else stopped[:, k, -1], local[:, k - 1, -1])
        local[:, k, -1].addcmul_(products[:, k, -1], entering)
    entering = local[:, :-1, -1:]
    if stopped is not None:
        entering = _scan_eager.unless(stopped[:, 1:, :-1], entering.expand(-1, -1, chunk - 1, -1))
    local[:, 1:, :-1].addcmul_(products[:, 1:, :-1], entering)
    return local.reshape(batch, time + pad, width)[:, :time]


def rank(case: Case, device: Device) -> int:
    """The default among the eager forms for all but short sequences."""
    return 9 if case["T"] > 64 else 3


VARIANT = Variant(
    op="linear_scan",
    name="eager.chunked",
    summary="chunks of time side by side, joined by a scan of their ends",
    run=through(_scan_eager.forward_and_product, core),
    config=Config,
    axes={"chunk": (16, 32, 64, 128)},
    rank=rank,
)
