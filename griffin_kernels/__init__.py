"""Tuned kernels for Griffin and Hawk language models.

``linear_scan`` and its relatives run the fastest correct kernel known for the hardware at hand; ``select`` and
``explain`` tell which one that is and why, ``use`` overrides the choice, and ``griffin tune`` measures it.

Names are imported at first use: the analytic tools, which only count, need not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from griffin_kernels.dispatch import explain as explain
    from griffin_kernels.dispatch import refresh as refresh
    from griffin_kernels.dispatch import select as select
    from griffin_kernels.dispatch import use as use
    from griffin_kernels.functional import *  # noqa: F403

__version__ = "0.1.0"

_HOMES = {
    "dispatch": "explain refresh select use",
    "functional": "RGLRUWeights block_diagonal_scan complex_rg_lru complex_scan gated_gelu geglu last_tokens "
    "linear_scan linear_scan_extend linear_scan_step local_attention local_attention_extend local_attention_step "
    "recurrent_block recurrent_block_extend recurrent_block_step rg_lru rg_lru_extend rg_lru_gated rg_lru_step "
    "rms_norm segment_positions temporal_conv1d temporal_conv1d_extend temporal_conv1d_step",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names.split():
            found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
