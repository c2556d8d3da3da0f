"""Time cut into chunks that go side by side, joined by a scan of their ends.

A chunk is an affine map of the state that enters it, c -> P c + S with P the product of its matrices.

    1. reduce, all chunks at once:  [P | S] := A_t [P | S] + [0 | x_t]      one product of n x n and n x (n+1) per step
    2. carry, chunk after chunk:    c := P c + S
    3. scan, all chunks at once:    h_t = A_t h_{t-1} + x_t                 from the state that enters each chunk

3 chunk + T / chunk launches instead of T, each on B * T / chunk * H blocks. A is read twice; the products cost n + 2
times the multiply-adds of the plain scan, which is why n = 16 gains less than n = 2. The host looks at whether a
product overflowed, which waits for a GPU; a call that a CUDA graph records goes step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.block_diagonal_scan import eager_sequential
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan._scan_eager import apply, recorded, unless


@dataclass(frozen=True)
class Config:
    """chunk: steps per chunk."""

    chunk: int = 32


def core(x: Tensor, a: Tensor, cut: Tensor | None, config: Config) -> Tensor:
    """h [B,T,H,n] from x [B,T,H,n], a [B,T,H,n,n] and a zero state; see ``_scan_eager`` for cut."""
    if recorded(x):
        return eager_sequential.core(x, a, cut, NoConfig())
    (batch, time, blocks, size), chunk = x.shape, config.chunk
    chunks = -(-time // chunk)
    whole = (chunks - 1) * chunk
    maps = torch.zeros(batch, chunks - 1, blocks, size, size + 1, dtype=x.dtype, device=x.device)
    maps[..., :size] = torch.eye(size, dtype=x.dtype, device=x.device)
    for c in range(chunk if whole else 0):
        maps = torch.matmul(a[:, c:whole:chunk], unless(None if cut is None else cut[:, c:whole:chunk], maps))
        maps[..., size] += x[:, c:whole:chunk]
    # a map that overflowed says nothing of a state that does not: such a chunk is gone through
    lost = ~maps.isfinite().flatten(3).all(3)  # [B, chunks - 1, H]
    through = lost.flatten(2).any(2).any(0).tolist()
    stopped = None if cut is None else cut[:, :whole].reshape(cut.shape[0], -1, chunk).any(2)  # [B or 1, chunks - 1]
    entering = [x.new_zeros(batch, blocks, size)]
    for k in range(chunks - 1):
        before = unless(None if stopped is None else stopped[:, k], entering[-1])
        leaving = apply(maps[:, k, ..., :size], before) + maps[:, k, ..., size]
        if through[k]:
            state = entering[-1]
            for t in range(k * chunk, (k + 1) * chunk):
                state = apply(a[:, t], unless(None if cut is None else cut[:, t], state)) + x[:, t]
            leaving = torch.where(lost[:, k, :, None], state, leaving)
        entering.append(leaving)
    state = torch.stack(entering, dim=1)  # [B, chunks, H, n]
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    for c in range(min(chunk, time)):
        step = a[:, c::chunk]  # the last chunk may have ended
        state = unless(None if cut is None else cut[:, c::chunk], state[:, : step.shape[1]])
        state = apply(step, state) + x[:, c::chunk]
        h[:, c::chunk] = state
    return h


def rank(case: Case, device: Device) -> int:
    """Fewer launches for more arithmetic: for GPUs. Batched products of such sizes are slow on a CPU."""
    return 9 if case["T"] > 64 and device.kind != "cpu" else 3


VARIANT = Variant(
    op="block_diagonal_scan",
    name="eager.chunked",
    summary="chunks of time side by side, joined by a scan of their ends",
    run=through(_scan_eager.forward, core),
    config=Config,
    axes={"chunk": (8, 16, 32, 64, 128)},
    rank=rank,
)
