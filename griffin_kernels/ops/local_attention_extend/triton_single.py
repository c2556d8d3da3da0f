"""One launch: a program for every row, key head and tile of tokens goes through all keys that its tokens see.

For batches, or chunks, that fill a device. The keys of the call come from the arguments and are written to their slots,
which no program reads. Nothing is read on the host and no size depends on a value: safe in CUDA graphs.

Bytes: the ideal for tokens of one tile; each further tile reads its keys again, mostly from a cache. Bound by memory
bandwidth where tokens are few, by products where they are many.
Source: the online softmax of Milakov and Gimelshein (2018), as in local_attention/triton.flash_window.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention._flash import Tiles
from griffin_kernels.ops.local_attention_extend import _triton_ring_tokens


@dataclass(frozen=True)
class Config(Tiles):
    """0 in any field: by head_dim, dtype, architecture and tokens; see ``_triton_ring_tokens.tiles_for``."""


def rank(case: Case, device: Device) -> int:
    """Above eager and, for batches that fill the device, above triton.split."""
    return 35


VARIANT = Variant(
    op="local_attention_extend",
    name="triton.single",
    summary="one launch, a program per row, key head and tile of tokens",
    config=Config,
    axes={"block_m": (16, 32, 64), "block_n": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=_triton_ring_tokens.unfit,
    rank=rank,
    launches=_triton_ring_tokens.launches,
)
