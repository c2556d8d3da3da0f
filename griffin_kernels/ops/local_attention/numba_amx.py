"""Native code for bfloat16: blocks of queries against their keys, products on the matrix unit (AMX).

s = q k^T,  p = 2^(s - max s),  out = p v / sum p

As numba.tiled, with tiles of 32 rows by 32 columns in the registers of AMX, sixteen times as fast as vectors of floats.
Sums and softmax in float32; weights are rounded to bfloat16 before they are multiplied, as FlashAttention-2 does, and
summed before that. The unit takes what is subnormal in bfloat16 as 0. Bound by the softmax: about 20 vector operations
per pair of a query and a key, against 4 d operations of the unit.
Source: the blocks are those of FlashAttention-2 (Dao, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _native_amx, _threads
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops._cpu import has, unfit_cpu
from griffin_kernels.ops._native_amx import BLOCK
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, _numba_matrix_unit, numba_blocked
from griffin_kernels.ops.local_attention._numba_rows import LANES

_LAYOUT = native.Family(_numba_matrix_unit.Layout, _numba_matrix_unit.FILES)


@dataclass(frozen=True)
class Config(numba_blocked.Config):
    """As numba.blocked's."""


def laid_out(call: Any, gradient: bool) -> tuple[Any, dict[str, Any]]:
    """Tiles of a call's keys and values, and their fields."""
    # asks for the unit too, where nobody has asked reject()
    granted = _native_amx.granted()
    assert granted, "reject() lets no call come here without it"
    batch, keys, shared, d = call.k.shape
    padded, wide = _numba_attention.whole(keys, BLOCK), _numba_attention.whole(d, BLOCK)
    layouts = ("k_across", "k_down", "v_across") if gradient else ("k_across", "v_down")
    laid = memory.empty((len(layouts), batch * shared, padded, wide), torch.bfloat16)
    items = batch * shared * padded // BLOCK
    threads = _threads.threads_for(items, laid.numel())
    staged = memory.empty((threads, BLOCK, wide), torch.bfloat16)
    given: dict[str, Tensor] = {"k": _numba_attention.rows_of(call.k), "v": _numba_attention.rows_of(call.v)}
    tiles = {name: address(f"tiles of {name}", part, part.nbytes) for name, part in zip(layouts, laid, strict=True)}
    fields = _LAYOUT.fields(
        **{name: _numba_attention.placed(name, rows, 2 * rows.numel()) for name, rows in given.items()},
        places=0,
        items=items,
        keys=keys,
        padded=padded,
        shared=shared,
        d=d,
        wide=wide,
        **(dict.fromkeys(("k_across", "k_down", "v_across", "v_down"), 0) | tiles),
        scratch=address("scratch", staged, staged.nbytes),
    )
    _LAYOUT.run(torch.bfloat16, None, fields, (_numba_matrix_unit.lay_out, threads))
    names = {"k_across": "k", "k_down": "k_down", "v_across": "v", "v_down": "v"}
    return laid, {names[layout]: (at, 0, 0, 0) for layout, at in tiles.items()} | {"pairs": 1}


KERNELS = _numba_attention.Kernels(_numba_matrix_unit, laid_out, unit=BLOCK, rows=BLOCK, spare=LANES, scales=False)


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Only where the unit is, and may be used."""
    if reason := unfit_cpu(case, device, config):
        return reason
    if case.dtype != "bfloat16":
        return f"has no {case.dtype} kernel, only bfloat16"
    if not has(device, "amx_bf16"):
        return "needs a processor with AMX-BF16"
    if not _native_amx.granted():
        return "AMX is not granted to this process, by its operating system or by numba's settings"
    return None


def rank(case: Case, device: Device) -> int:
    """Above numba.tiled where there are queries enough to lay keys and values out for."""
    return 24 if case["T"] * (case["Hq"] // case["Hkv"]) >= 64 else 14


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: keys and values into tiles, which each block reads again; its scores stay in a cache."""
    keys = 2 * 2 * case["S"] * case["Hkv"] + _numba_attention.keys_read(case, config)
    return case["B"] * (keys + 2 * case["T"] * case["Hq"]) * case["d"] * case.bytes_per_element()


VARIANT = Variant(
    op="local_attention",
    name="numba.amx",
    summary="native code, bfloat16 products on the matrix unit of x86 processors",
    run=_isolated.forward(KERNELS.forward),
    config=Config,
    axes={"rows": (80, 160, 320, 480), "keys": (256, 512, 1088)},
    reject=reject,
    rank=rank,
    traffic=traffic,
)
