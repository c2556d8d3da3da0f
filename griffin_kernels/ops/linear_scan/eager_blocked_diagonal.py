"""The T x T transfer matrix, cut into blocks of time: diagonal blocks applied densely, the rest through the carry.

    h = M x,   M_ts = a_t a_{t-1} ... a_{s+1}  for s <= t, else 0

Each diagonal block [L, L] (one per chunk and channel) is built by L - 1 doubled products and applied as one batched
product; everything below the diagonal blocks has rank one per chunk and reaches a chunk through the state before it.
Dense blocks cost L times the traffic of a scan: only short blocks can pay, and only where launches dominate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager


@dataclass(frozen=True)
class Config:
    """block: rows L of a diagonal block."""

    block: int = 8


@_scan_eager.careful
def core(x: Tensor, a: Tensor, cut: Tensor | None, config: Config) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] within [-1, 1] and a zero state; see ``_scan_eager`` for cut."""
    (batch, time, width), block = x.shape, config.block
    pad = -time % block
    gates = torch.nn.functional.pad(a, (0, 0, 0, pad)).reshape(batch, -1, block, width)  # [B, K, L, D]
    values = torch.nn.functional.pad(x, (0, 0, 0, pad)).reshape(batch, -1, block, width)
    matrix = transfer(gates)
    reaches = torch.ones(block, block, dtype=torch.bool, device=x.device).tril()  # [t, s]: step s enters step t
    stopped = None  # [B or 1, K, L]: a cut in the block up to here
    if cut is not None:
        passed = torch.nn.functional.pad(cut, (0, pad)).reshape(cut.shape[0], -1, block).cumsum(2)
        reaches = reaches & (passed[..., :, None] == passed[..., None, :])
        stopped = passed > 0
    decay = matrix[..., 0, :] * gates[:, :, :1]  # [B, K, L, D]: what the state before the block is multiplied by
    decay = _scan_eager.unless(stopped, decay)
    # a product with a matrix would add 0 * x_s of later steps, which is NaN where x_s is
    local = matrix.mul_(values[:, :, None]).masked_fill_(~reaches[..., None], 0.0).sum(3)
    carry = torch.zeros_like(local[:, 0, 0])
    carries = []
    for k in range(local.shape[1]):
        carries.append(carry)
        entering = _scan_eager.unless(None if stopped is None else stopped[:, k, -1], carry)
        carry = torch.addcmul(local[:, k, -1], decay[:, k, -1], entering)
    before = torch.stack(carries, dim=1)[:, :, None]  # [B, K, 1, D]
    h = local + decay * (before if stopped is None else _scan_eager.unless(stopped, before.expand_as(local)))
    return h.reshape(batch, time + pad, width)[:, :time]


def transfer(gates: Tensor) -> Tensor:
    """Diagonal blocks [B,K,L,L,D] of the transfer matrix from gates [B,K,L,D]; entry (t, s) leads from s to t."""
    length = gates.shape[2]
    rows: list[Tensor] = []
    for t in range(length):
        row = torch.zeros_like(gates)
        row[:, :, t] = 1.0
        if t:
            row[:, :, :t] = rows[-1][:, :, :t] * gates[:, :, t : t + 1]
        rows.append(row)
    return torch.stack(rows, dim=2)


def traffic(case: Case, config: Config) -> int:
    """Bytes: the matrix is written once and read once beside the scan's own three streams."""
    elements = case["B"] * case["T"] * case["D"]
    return elements * (2 * config.block * 4 + 3 * case.bytes_per_element())


VARIANT = Variant(
    op="linear_scan",
    name="eager.blocked_diagonal",
    summary="dense diagonal blocks of the transfer matrix, carry between them",
    run=through(_scan_eager.forward_and_product, core),
    config=Config,
    axes={"block": (4, 8, 16)},
    rank=lambda case, device: 1,  # never the default
    traffic=traffic,
)
