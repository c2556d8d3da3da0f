"""Earlier keys copied from the ring, then the native code of local_attention's numba.tiled.

For chunks of a prefill, whose products outweigh that keys and values are copied twice: in order, and into panels.
"""

from __future__ import annotations

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import numba_tiled
from griffin_kernels.ops.local_attention_extend import _ring_keys


def rank(case: Case, device: Device) -> int:
    """Above numba.split where there are queries enough to lay keys and values out for."""
    return 25 if case["T"] * (case["Hq"] // case["Hkv"]) >= 128 else 14


VARIANT = Variant(
    op="local_attention_extend",
    name="numba.tiled",
    summary="keys copied in order, native code with products in registers",
    run=_ring_keys.extending(numba_tiled.VARIANT.run),
    config=numba_tiled.Config,
    axes={"rows": (80, 160, 240), "keys": (256, 512, 1024)},
    reject=numba_tiled.reject,
    rank=rank,
)
