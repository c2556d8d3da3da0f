"""Flash attention's gradient within the window, the rows that see a tile of keys split over programs.

A tile of keys is seen by (W + tile) G rows, and with one key head there are few tiles: 32 of 64 keys for a sequence of
2048, on a device of 132 processors. Here ``parts`` programs share the rows of a tile. Each leaves its sums of dk and
dv in float32, which another launch adds in the order of the parts: as deterministic as one program. dq and all else as
in triton.flash_window.

Bytes: those of triton.flash_window and 16 ``parts`` per element of k. Bound by the tensor cores.
Source: see triton.flash_window; the split is that of Flash-Decoding (Dao et al., 2023) turned round.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention._flash import Parted
from griffin_kernels.ops.local_attention_bwd import _flash_gradient, triton_flash_window
from griffin_kernels.ops.local_attention_bwd.op import cost


@dataclass(frozen=True)
class Config(triton_flash_window.Config, Parted):
    """parts: programs that share the rows of a tile of keys. The rest as in triton.flash_window."""

    parts: int = 8


def rank(case: Case, device: Device) -> int:
    """The default where tiles of keys alone are few for the device's units and many rows see each."""
    cut, _ = _flash_gradient.default(case["d"], case.dtype, device.arch)
    programs = case["B"] * case["Hkv"] * -(-case["S"] // cut.resident)
    rows = min(case["W"], case["T"]) * (case["Hq"] // case["Hkv"])
    return 40 if programs < 5 * device.units and rows >= 1024 else 20


def traffic(case: Case, config: Config) -> int:
    """Besides the ideal: the float32 parts of dk and dv, written and read again."""
    return cost(case).bytes_total + 2 * 2 * 4 * config.parts * case["B"] * case["S"] * case["Hkv"] * case["d"]


VARIANT = Variant(
    op="local_attention_bwd",
    name="triton.flash_split",
    summary="analytic within the window, the rows that see a key split over programs, deterministic",
    config=Config,
    axes={
        "parts": (2, 4, 8, 16),
        "resident": (32, 64, 128),
        "streamed": (64, 32),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
    }
    | _flash_gradient.ROWS_AXES,
    reject=_flash_gradient.reject,
    rank=rank,
    launches=_flash_gradient.launches,
    traffic=traffic,
)
