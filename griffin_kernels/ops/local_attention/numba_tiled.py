"""Native code: blocks of queries against their keys, products in registers and only where something is seen.

s = q k^T,  p = 2^(s - max s),  out = p v / sum p

The G heads that share a key head are rows of one block. Products are made of tiles of 8 rows by 32 columns in the
registers of AVX-512, against keys and values that are laid out in panels once per call; a tile is left out, or cut
short, where none of its rows sees anything. Each thread takes whole blocks. bfloat16 is multiplied in pairs where the
processor does that (twice the operations per instruction), with float32 sums and softmax; weights are rounded to it.
Bound by the products: 4 d operations per pair of a query and a key, against about 20 for the softmax.
Source: the blocks are those of FlashAttention-2 (Dao, 2023), the tiles those of BLIS (Van Zee, van de Geijn, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops._cpu import has, unfit_cpu
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, _numba_register_tiles, numba_blocked
from griffin_kernels.ops.local_attention._numba_register_tiles import PANEL, ROWS
from griffin_kernels.ops.local_attention._numba_rows import LANES

_OLDEST_LLVM = 19
"""Of which LLVM multiplies pairs of bfloat16 under the name and types that are used here."""


@dataclass(frozen=True)
class Config(numba_blocked.Config):
    """As numba.blocked's."""

    keys: int = 512


def _by_head(keys: Tensor, rows: int, columns: int) -> Tensor:
    """[B,S,Hkv,d] -> [B * Hkv, rows, columns], zeros beyond S and d."""
    batch, count, shared, d = keys.shape
    padded = keys.new_zeros(batch, shared, rows, columns)
    padded[:, :, :count, :d] = keys.transpose(1, 2)
    return padded.view(-1, rows, columns)


def _across(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of keys, d down: [B * Hkv, S / PANEL, d, PANEL], pairs along d."""
    pair = 2 if pairs else 1
    rows, columns = _numba_attention.whole(keys.shape[1], PANEL), _numba_attention.whole(keys.shape[3], pair)
    tiles = _by_head(keys, rows, columns).view(-1, rows // PANEL, PANEL, columns // pair, pair)
    return tiles.transpose(2, 3).contiguous()


def _down(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of d, keys down: [B * Hkv, d / PANEL, S, PANEL], pairs along keys."""
    pair = 2 if pairs else 1
    rows, columns = _numba_attention.whole(keys.shape[1], PANEL), _numba_attention.whole(keys.shape[3], PANEL)
    tiles = _by_head(keys, rows, columns).view(-1, rows // pair, pair, columns // PANEL, PANEL)
    return tiles.permute(0, 3, 1, 4, 2).contiguous()


def _laid_out(call: Any, gradient: bool) -> tuple[Any, dict[str, Any]]:
    """Panels of a call's keys and values, and their fields; the gradient's are float32."""
    (batch, keys, shared, d), pairs = call.k.shape, call.q.dtype == torch.bfloat16 and not gradient
    k, v = (call.k.float(), call.v.float()) if gradient else (call.k, call.v)
    each = (2 if pairs else 4) * batch * shared * _numba_attention.whole(keys, PANEL)  # bytes of a column
    size, other = each * _numba_attention.whole(d, 2 if pairs else 1), each * _numba_attention.whole(d, PANEL)
    laid = {"k": (_across(k, pairs), size), "v": (_across(v, pairs), size) if gradient else (_down(v, pairs), other)}
    if gradient:
        laid["k_down"] = _down(k, False), other
    fields = {name: (address(name, panels, count), 0, 0, 0) for name, (panels, count) in laid.items()}
    return laid, fields | {"pairs": int(pairs)}


KERNELS = _numba_attention.Kernels(_numba_register_tiles, _laid_out, unit=PANEL, rows=ROWS, spare=LANES, scales=False)


def problem(case: Case, device: Device, config: Any) -> str | None:
    """What holds for the gradient too."""
    if reason := unfit_cpu(case, device, config):
        return reason
    if not has(device, "avx512f"):
        return "needs a processor with AVX-512"
    if case.dtype not in ("float32", "bfloat16"):
        return f"has no {case.dtype} kernel, only float32 and bfloat16"
    return None


def reject(case: Case, device: Device, config: Config) -> str | None:
    """bfloat16 only in pairs; numba.blocked widens it."""
    if reason := problem(case, device, config):
        return reason
    if case.dtype == "bfloat16" and not has(device, "avx512_bf16"):
        return "bfloat16 needs a processor with AVX512-BF16"
    if case.dtype == "bfloat16" and llvmlite.binding.llvm_version_info[0] < _OLDEST_LLVM:
        return f"bfloat16 needs llvmlite with LLVM {_OLDEST_LLVM} or later"
    return None


def rank(case: Case, device: Device) -> int:
    """Above numba.blocked where there are queries enough to lay keys and values out for."""
    return 22 if case["T"] * (case["Hq"] // case["Hkv"]) >= 64 else 15


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: keys and values into panels, which each block reads again; its scores stay in a cache."""
    keys = 2 * 2 * case["S"] * case["Hkv"] + _numba_attention.keys_read(case, config)
    return case["B"] * (keys + 2 * case["T"] * case["Hq"]) * case["d"] * case.bytes_per_element()


VARIANT = Variant(
    op="local_attention",
    name="numba.tiled",
    summary="native code, products in registers, only where something is seen",
    run=_isolated.forward(KERNELS.forward),
    config=Config,
    axes={"rows": (80, 160, 240, 480), "keys": (256, 512, 1024)},
    reject=reject,
    rank=rank,
    traffic=traffic,
)
