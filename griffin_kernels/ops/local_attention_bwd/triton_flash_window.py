"""Flash attention's gradient within the window, in two kernels: one owns keys, one owns queries.

    delta_t = dout_t . out_t
    dk_k = scale sum_t ds_tk q_t,  dv_k = sum_t p_tk dout_t      a program per tile of keys, over the rows that see it
    dq_t = scale sum_k ds_tk k_k                                 a program per tile of rows, over the keys they see

Every sum is taken by one program in one order: no atomics, the same bits from run to run. p is recomputed from lse by
both kernels, seven products where five would do: what sums without atomics cost. Rows are queries times the heads of
a key head, so that dk and dv of shared keys need no sum afterwards. Tiles outside the window or document are not
visited, those inside run without masks. p and ds are rounded to the data's dtype before their products; sums float32.

Bytes: q, k, v, dout, out once or twice, W G / tile times from the L2 cache. Bound by the tensor cores, 14 d operations
per pair; in dk and dv by the number of key tiles where B Hkv S / tile programs do not fill the device.
Source: Dao, "FlashAttention-2" (2023), algorithm 2, with its loop over keys split in two.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops.local_attention_bwd import _flash_gradient


@dataclass(frozen=True)
class Config:
    """resident: keys that a program owns (for dk, dv). streamed: rows per iteration.

    rows: rows that a program owns (for dq). rows_streamed: keys per iteration; rows_warps, rows_stages: that kernel's.
    0 in any field: by head_dim, dtype and architecture, see ``_flash_gradient.default``.
    """

    resident: int = 0
    streamed: int = 0
    num_warps: int = 0
    num_stages: int = 0
    rows: int = 0
    rows_streamed: int = 0
    rows_warps: int = 0
    rows_stages: int = 0


VARIANT = Variant(
    op="local_attention_bwd",
    name="triton.flash_window",
    summary="analytic within the window, a kernel for dk and dv, one for dq, deterministic",
    config=Config,
    axes={"resident": (32, 64, 128), "streamed": (64, 32), "num_warps": (4, 8), "num_stages": (1, 2)}
    | _flash_gradient.ROWS_AXES,
    reject=_flash_gradient.reject,
    rank=lambda case, device: 30,
    launches=_flash_gradient.launches,
)
