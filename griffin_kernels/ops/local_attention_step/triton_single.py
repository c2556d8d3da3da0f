"""One launch: a program for every row and key head goes through the whole ring.

For batches that fill a device. Each visible slot is read once; all G query heads of a key head are rows of one product.
The program takes the new key and value from the arguments, writes them to their slot, and reads that slot from memory
at no time. Nothing is read on the host and no size depends on a value: safe in CUDA graphs.

Bytes: the ideal, the visible slots of the ring. Bound by memory bandwidth where B Hkv programs fill the device.
Source: the online softmax of Milakov and Gimelshein (2018), as in local_attention/triton.flash_window.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention_step import _triton_decoding


@dataclass(frozen=True)
class Config:
    """block_n: slots per iteration. num_stages: iterations with loads under way; 0: ``_triton_decoding.stages_of``."""

    block_n: int = 32
    num_warps: int = 4
    num_stages: int = 0


def rank(case: Case, device: Device) -> int:
    """Above eager and, for batches that fill the device, above triton.split."""
    return 35


VARIANT = Variant(
    op="local_attention_step",
    name="triton.single",
    summary="one launch, a program per row and key head",
    config=Config,
    axes={"block_n": (16, 32, 64), "num_warps": (2, 4, 8), "num_stages": (2, 3, 4)},
    reject=_triton_decoding.unfit,
    rank=rank,
    launches=_triton_decoding.launches,
)
