"""Native code: blocks of queries against their keys, products by torch's BLAS, one thread to a block.

s = q k^T,  p = 2^(s - max s),  out = p v / sum p        per block: [bq G, d] @ [d, keys], [bq G, keys] @ [keys, d]

The G heads that share a key head are rows of one product, so that a block of few queries, which wastes little on keys
that only some of them see, is still a large matrix. Each thread takes whole blocks, with products of its own: none
waits for another. Scores stay in the second-level cache between the two products, in tiles of keys with a running
maximum where a window is longer than one. Bound by the products: 4 d operations per pair of a query and a key, against
about 20 for the softmax. Sums and softmax in float32, in which bfloat16 and float16 are multiplied too.
Source: the blocks are those of FlashAttention-2 (Dao, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _blas
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, _numba_blas

_MOST_STEP = 2**31 - 1
"""BLAS counts in 32 bits."""


@dataclass(frozen=True)
class Config:
    """rows: queries times heads of a key head in a block. keys: in a tile of scores, at most."""

    rows: int = 160
    keys: int = 1088


def _rows(keys: Tensor) -> Tensor:
    """Keys [B,S,Hkv,d] as BLAS reads them: float32, channels contiguous, rows apart."""
    keys = keys.float().resolve_neg()
    d = keys.shape[3]
    if (keys.stride(3) == 1 or d == 1) and d <= keys.stride(1) <= _MOST_STEP:
        return keys
    return keys.contiguous()


def _laid_out(call: Any, gradient: bool) -> tuple[Any, dict[str, Any]]:
    k, v, size = _rows(call.k), _rows(call.v), 4 * call.k.numel()
    blas = _blas.found()
    assert blas is not None, "reject() lets no call come here without it"
    rows = _numba_attention.placed("k", k, size)
    fields = {"k": rows, "k_down": rows, "v": _numba_attention.placed("v", v, size)}
    return (k, v), fields | {"sgemm": blas.sgemm, "set_threads": blas.set_threads}


KERNELS = _numba_attention.Kernels(_numba_blas, _laid_out, unit=1, rows=1, spare=16, scales=True)


def reject(case: Case, device: Device, config: Any) -> str | None:
    """Shared with the gradient."""
    if case.dtype == "float64":
        return "has no float64 kernel: scores are float32"
    return unfit_cpu(case, device, config) or _blas.problem()


def rank(case: Case, device: Device) -> int:
    """Above every eager variant."""
    return 20


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: each block reads its keys and values again; its scores stay in a cache."""
    keys = 4 * _numba_attention.keys_read(case, config)
    return case["B"] * (keys + 2 * case["T"] * case["Hq"] * case.bytes_per_element()) * case["d"]


VARIANT = Variant(
    op="local_attention",
    name="numba.blocked",
    summary="native code, blocks of queries against their keys, products by torch's BLAS",
    run=_isolated.forward(KERNELS.forward),
    config=Config,
    axes={"rows": (64, 128, 160, 256, 512), "keys": (256, 512, 1088, 2112)},
    reject=reject,
    rank=rank,
    traffic=traffic,
)
