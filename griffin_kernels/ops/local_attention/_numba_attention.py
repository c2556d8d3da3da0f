"""Calls the compiled kernels of the native variants: scratch, addresses, threads, shares of gradients."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.case import Case
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys, may_be_blind, near
from griffin_kernels.ops.local_attention._numba_fields import Fields, Headed
from griffin_kernels.ops.local_attention._numba_rows import LANES
from griffin_kernels.ops.local_attention.cost import right_of
from griffin_kernels.ops.local_attention.op import Call, scale_of
from griffin_kernels.ops.local_attention_bwd.op import Call as BackwardCall

LOG2_E = math.log2(math.e)
_ITEMS = 4
"""Work items, at least, if there are as many queries: so that a few long rows still have work for several threads."""
_ABSENT: dict[str, Any] = dict.fromkeys(
    ("sgemm", "set_threads", "pairs", "dq", "part", "reach", "bases", "dk", "dv", "dlse"), 0
)
_ABSENT |= dict.fromkeys(("dout", "k_down"), (0, 0, 0, 0))
"""Fields that not every kernel has."""


def whole(count: int, unit: int) -> int:
    """``count`` rounded up to whole units."""
    return -(-count // unit) * unit


def rows_of(tensor: Tensor) -> Tensor:
    """Rows [B,T,Hq,d] that the kernels read element by element: contiguous channels, float16 as float32."""
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def placed(name: str, tensor: Tensor, size: int) -> Headed:
    """The field of a tensor [B,T,H,d] whose elements take ``size`` bytes."""
    return *strided(name, tensor, size), tensor.stride(2)


def factor_of_dk(softcap: float | None) -> float:
    """Of dk, where queries have been scaled for their scores."""
    return 1 / LOG2_E if softcap is None else softcap / (2 * LOG2_E)


def block_of(batch: int, time: int, heads: int, shared: int, rows: int) -> int:
    """Queries in a block of ``rows`` queries times heads of a key head."""
    return max(1, min(rows // (heads // shared), -(-batch * shared * time // _ITEMS)))


def part_of(time: int, window: int, block: int, part: int) -> int:
    """Queries whose share of dk and dv is summed apart: a fourth of the window or more, or shares are mostly zeros."""
    wanted = min(max(part, min(window, time) // 4), time)
    return max(1, -(-wanted // block)) * block


@dataclass(frozen=True)
class Kernels:
    """The kernels of a module, ``attend`` and ``gradient``, and how what they work on lies.

    laid_out: ``(call within reach, whether for the gradient) -> tensors to be kept, fields``: keys and values.
    unit: keys and channels lie in whole multiples of it. rows: so do the rows of a block.
    spare: float32 numbers between rows of scores, which must not all fall on the same lines of a cache.
    scales: whether products multiply with the gradients' factors; else dq gets its own when it is written, dk when its
    shares are joined.
    scaled: whether the gradient's products are of queries that were scaled for their scores.
    arrays: of scores, in float32 numbers, that a row of a block takes room for.
    """

    module: Any
    laid_out: Callable[[Any, bool], tuple[Any, dict[str, Any]]]
    unit: int
    rows: int
    spare: int
    scales: bool
    scaled: bool = True
    arrays: int = 2

    @cached_property
    def _family(self) -> native.Family:
        return native.Family(Fields, self.module.FILES)

    def _run(
        self, call: Any, config: Any, out: Tensor, lse: Tensor | None, block: int, piece: int, **gradient: Any
    ) -> None:
        """Run ``attend``, or ``gradient`` with fields of its own.

        call: within reach. block, piece: queries of a block and of an item.
        """
        (batch, time, heads, d), (_, keys, shared, _), cap = call.q.shape, call.k.shape, call.softcap
        group, pieces, wide = heads // shared, -(-time // piece), whole(d, self.unit)
        items, tile = batch * shared * pieces, whole(min(config.keys, keys), self.unit)
        pitch = whole(tile, LANES) + self.spare
        right = min(call.right, keys)
        threads = _threads.threads_for(items, batch * heads * time * min(call.window + right, keys) * d // 8)
        # of a row: arrays of scores, three of channels, two numbers; attend takes less
        place = whole(whole(block * group, self.rows) * (self.arrays * pitch + 3 * wide + 2 * 16 + 2), 16)
        scratch = memory.empty((threads, place), torch.float32)
        first = first_keys(call).contiguous()
        last = last_keys(call).contiguous() if right or may_be_blind(call) else None
        factor, of_rows = scale_of(call), LOG2_E if cap is None else 2 * LOG2_E / cap
        of_gradients = (factor, factor_of_dk(cap), 1.0) if self.scales else (1.0, 1.0, factor)
        factors = array("f", (factor * of_rows, (cap or 0.0) * LOG2_E, *of_gradients))
        _kept, laid_out = self.laid_out(call, bool(gradient))
        fields = self._family.fields(
            q=placed("q", call.q, call.q.nbytes),
            out=placed("out", out, call.q.nbytes),
            places=0,
            items=items,
            pieces=pieces,
            block=block,
            unit=self.unit,
            rows=self.rows,
            time=time,
            keys=keys,
            padded=whole(keys, self.unit),
            shared=shared,
            group=group,
            d=d,
            wide=wide,
            tile=tile,
            pitch=pitch,
            window=call.window,
            first=address("first keys", first, 8 * first.shape[0] * time),
            first_batch=time if first.shape[0] > 1 else 0,
            right=right,
            last=address("last keys", last, 8 * first.shape[0] * time),
            lse=address("lse", lse, 4 * batch * heads * time),
            scratch=address("scratch", scratch, 4 * threads * place),
            scratch_place=place,
            factors=factors.buffer_info()[0],
            capped=cap is not None,
            **(_ABSENT | laid_out | gradient),
        )
        kernel = self.module.gradient if gradient else self.module.attend
        self._family.run(call.q.dtype, None, fields, (kernel, threads))

    def forward(self, call: Call, config: Any) -> tuple[Tensor, Tensor | None]:
        """local_attention by blocks of ``rows`` queries times heads and tiles of ``keys`` keys."""
        (batch, time, heads, _), dtype = call.q.shape, call.q.dtype
        call = near(call)._replace(q=rows_of(call.q))
        out = memory.empty(call.q.shape, call.q.dtype)
        lse = torch.empty(batch, heads, time, dtype=torch.float32, device="cpu") if call.with_lse else None
        block = block_of(batch, time, heads, call.k.shape[2], config.rows)
        self._run(call, config, out, lse, block, block)
        return out.to(dtype), lse

    def backward(self, call: BackwardCall, config: Any) -> tuple[Tensor, Tensor, Tensor]:
        """local_attention_bwd likewise; dk, dv of ``part`` queries or more are summed apart, then joined in order."""
        (batch, time, heads, d), shared, window, unit = call.q.shape, call.k.shape[2], call.window, self.unit
        reached = near(call)._replace(q=rows_of(call.q))
        q, out, dout, lse = reached.q, rows_of(call.out), rows_of(call.dout), call.lse.contiguous()
        dlse = None if call.dlse is None else call.dlse.contiguous()
        dq = memory.empty(q.shape, q.dtype)
        block = block_of(batch, time, heads, shared, config.rows)
        piece = part_of(time, window, block, config.part)
        keys, pieces = reached.k.shape[1], -(-time // piece)
        reach = whole(min(keys, piece + window - 1 + call.right) + unit - 1, unit)
        bases = None
        if call.cu_seqlens_k is not None:
            first, after = first_keys(call)[0].split(piece), last_keys(call)[0].split(piece)
            bases = torch.stack([of_piece.min() for of_piece in first]) // unit * unit
            spans = torch.stack([of_piece[-1] for of_piece in after]) + 1 - bases
            reach = max(whole(int(spans.max()), unit), unit)
        shares = memory.empty((2, batch, shared, pieces, reach, whole(d, unit)), torch.float32)
        share = 4 * batch * shared * pieces * reach * whole(d, unit)
        self._run(
            reached,
            config,
            out,
            lse,
            block,
            piece,
            dout=placed("dout", dout, q.nbytes),
            dq=address("dq", dq, q.nbytes),
            part=piece,
            reach=reach,
            bases=address("bases", bases, 8 * pieces),
            dk=address("dk", shares[0], share),
            dv=address("dv", shares[1], share),
            dlse=address("gradient of lse", dlse, 4 * batch * heads * time),
        )

        def joined(share: Tensor, like: Tensor, factor: float) -> Tensor:
            """[B, Hkv, pieces, reach, wide] -> the gradient of ``like`` [B,S,Hkv,d], times factor; 0 out of reach."""
            summed = torch.zeros(batch, like.shape[1], shared, d, dtype=torch.float32, device="cpu")
            within = summed[:, like.shape[1] - keys :].transpose(1, 2)
            for index in range(pieces):
                base = max(0, keys - time + index * piece - (window - 1)) // unit * unit
                base = base if bases is None else int(bases[index])
                length = min(reach, keys - base)
                within[:, :, base : base + length].add_(share[:, :, index, :length, :d], alpha=factor)
            return summed.to(like.dtype)

        of_dk = factor_of_dk(call.softcap) if self.scaled else scale_of(call)
        dk = joined(shares[0], call.k, 1.0 if self.scales else of_dk)
        return dq.to(call.q.dtype), dk, joined(shares[1], call.v, 1.0)


def keys_read(case: Case, config: Any) -> int:
    """Keys and values that the blocks of a batch row read, of all key heads."""
    block: int = max(1, min(config.rows // (case["Hq"] // case["Hkv"]), case["T"]))
    return -(-case["T"] // block) * 2 * min(case["W"] + right_of(case) + block, case["S"]) * case["Hkv"]


def gradient_traffic(case: Case, config: Any) -> int:
    """Bytes moved: each block reads its keys and values and adds to their shares, which are cleared and joined."""
    batch, time, heads, shared, window = (case[name] for name in ("B", "T", "Hq", "Hkv", "W"))
    sees = window + right_of(case)
    block = block_of(batch, time, heads, shared, config.rows)
    part = part_of(time, window, block, config.part)
    per_block = 4 * 2 * 3 * min(sees + block, case["S"]) * shared
    per_part = 4 * 2 * 4 * min(sees + part, case["S"]) * shared
    per_query = 4 * heads * case.bytes_per_element()
    return batch * (-(-time // block) * per_block + -(-time // part) * per_part + time * per_query) * case["d"]
