"""What the blocked variants share: blocks of queries, the keys that each sees, and the part of their scores to hide.

A block holds queries start .. end - 1 of every head. With S - T earlier keys it sees keys low .. high - 1,
low = start + S - T - W + 1 or 0, high = end + S - T, or up to ``right`` more. Where keys are packed apart from queries,
on a CPU only, low and high are read from what the queries see. A block that sees nothing has low = high.
Heads that share a key head are rows of one matrix product: [B * Hkv, t * G, d] @ [B * Hkv, d, k], G = Hq / Hkv.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops import _products
from griffin_kernels.ops.local_attention._key_ranges import (
    document_ends,
    document_starts,
    first_keys,
    last_keys,
    may_be_blind,
)
from griffin_kernels.ops.local_attention.cost import PACKED_KEYS


@dataclass(frozen=True)
class QueryBlock:
    """Queries start .. end - 1 and keys low .. high - 1."""

    start: int
    end: int
    low: int
    high: int


def blocks(call: Any, size: int) -> Iterator[QueryBlock]:
    """All blocks of up to ``size`` queries of a call, in order."""
    time, earlier = call.q.shape[1], call.k.shape[1] - call.q.shape[1]
    ranges = None if call.cu_seqlens_k is None else (first_keys(call)[0], last_keys(call)[0])
    for start in range(0, time, size):
        end = min(start + size, time)
        low, high = max(0, start + earlier - call.window + 1), min(end + earlier + call.right, time + earlier)
        if ranges is not None:
            low, high = int(ranges[0][start:end].min()), int(ranges[1][end - 1]) + 1
        yield QueryBlock(start, end, low, max(low, high))


def unbounded(case: Case, device: Device) -> str | None:
    """Why the blocks' keys are not known before a kernel runs, if so."""
    if PACKED_KEYS in case.flags and device.kind != "cpu":
        return "cu_seqlens_k lies on the device: which keys a block sees would have to be read from there"
    return None


def by_key_head(keys: Tensor) -> Tensor:
    """[B,S,Hkv,d] -> [B * Hkv, S, d], in the dtype that products take on this device."""
    wide = keys.dtype if _products.has_unrounded(keys) else accumulator(keys.dtype)
    return keys.to(wide).transpose(1, 2).reshape(-1, keys.shape[1], keys.shape[3])


def rows_of(queries: Tensor, block: QueryBlock, shared: int) -> Tensor:
    """Queries of a block: [B,T,Hq,d] -> [B * Hkv, t * G, d], a copy only where Hkv > 1 or strides are unusual."""
    batch, _, heads, d = queries.shape
    wide = queries.dtype if _products.has_unrounded(queries) else accumulator(queries.dtype)
    part = queries[:, block.start : block.end].to(wide)
    part = part.reshape(batch, block.end - block.start, shared, heads // shared, d)
    return part.transpose(1, 2).reshape(batch * shared, -1, d)


def from_rows(rows: Tensor, batch: int, count: int) -> Tensor:
    """[B * Hkv, t * G, d] -> [B, t, Hq, d] for ``count`` = t queries."""
    d = rows.shape[2]
    return rows.reshape(batch, -1, count, rows.shape[1] // count, d).transpose(1, 2).reshape(batch, count, -1, d)


class Visibility:
    """Which scores of a block are hidden; the same for every block of a size unless there are documents."""

    def __init__(self, call: Any) -> None:
        self.window, self.right = call.window, call.right
        self.earlier = call.k.shape[1] - call.q.shape[1]
        self.steps = torch.arange(call.k.shape[1], device=call.q.device, dtype=torch.int64)
        self.starts, self.ends = document_starts(call), document_ends(call) if call.right else None
        self.ranges = (first_keys(call), last_keys(call)) if may_be_blind(call) else None

    def hide(self, scores: Tensor, block: QueryBlock, batch: int, fill: float) -> None:
        """Set scores [B * Hkv, t * G, k] that a query does not see to ``fill``, in place."""
        count, columns = block.end - block.start, block.high - block.low
        tile = scores.view(batch, -1, count, scores.shape[1] // count, columns)
        for begin, end in self._edges(block):
            keys = self.steps[begin:end]
            if self.ranges is not None:
                first, last = (bound[:, block.start : block.end, None] for bound in self.ranges)
                hidden = (keys < first) | (keys > last)
            else:
                queries = self.steps[block.start + self.earlier : block.end + self.earlier, None]
                hidden = (keys > queries + self.right) | (keys <= queries - self.window)
                if self.starts is not None:
                    hidden = hidden | (keys < self.starts[:, block.start : block.end, None])
                if self.ends is not None:
                    hidden = hidden | (keys > self.ends[:, block.start : block.end, None])
            hidden = hidden.reshape(-1, 1, count, 1, end - begin)  # [B or 1, 1, t, 1, k]
            tile[..., begin - block.low : end - block.low].masked_fill_(hidden, fill)

    def blind(self, block: QueryBlock) -> Tensor | None:
        """bool [B or 1, t, 1, 1]: queries of a block that see nothing; None where there are none."""
        if self.ranges is None:
            return None
        first, last = (bound[:, block.start : block.end, None, None] for bound in self.ranges)
        return last < first

    def _edges(self, block: QueryBlock) -> tuple[tuple[int, int], ...]:
        """Ranges of keys of which some query of the block sees only a part: behind the last query's window, and after
        what the first query sees. Documents may begin anywhere."""
        behind = max(block.end + self.earlier - self.window, block.low)
        after = min(block.start + self.earlier + self.right + 1, block.high)
        if self.ranges is not None or self.starts is not None or behind >= after:
            return ((block.low, block.high),)
        return tuple((a, b) for a, b in ((block.low, behind), (after, block.high)) if a < b)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(scores / softcap), in place."""
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)
