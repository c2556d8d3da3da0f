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
    from griffin_kernels.functional.block_diagonal_scan import block_diagonal_scan as block_diagonal_scan
    from griffin_kernels.functional.linear_scan import linear_scan as linear_scan
    from griffin_kernels.functional.local_attention import local_attention as local_attention
    from griffin_kernels.functional.local_attention_step import local_attention_step as local_attention_step
    from griffin_kernels.functional.recurrent_block import recurrent_block as recurrent_block
    from griffin_kernels.functional.recurrent_block_step import recurrent_block_step as recurrent_block_step
    from griffin_kernels.functional.rg_lru import RGLRUWeights as RGLRUWeights
    from griffin_kernels.functional.rg_lru import rg_lru as rg_lru
    from griffin_kernels.functional.rg_lru_step import rg_lru_step as rg_lru_step
    from griffin_kernels.functional.temporal_conv1d import temporal_conv1d as temporal_conv1d
    from griffin_kernels.functional.temporal_conv1d_step import temporal_conv1d_step as temporal_conv1d_step

__version__ = "0.1.0"

_HOMES = {
    "explain": "griffin_kernels.dispatch",
    "refresh": "griffin_kernels.dispatch",
    "select": "griffin_kernels.dispatch",
    "use": "griffin_kernels.dispatch",
    "block_diagonal_scan": "griffin_kernels.functional.block_diagonal_scan",
    "linear_scan": "griffin_kernels.functional.linear_scan",
    "local_attention": "griffin_kernels.functional.local_attention",
    "local_attention_step": "griffin_kernels.functional.local_attention_step",
    "recurrent_block": "griffin_kernels.functional.recurrent_block",
    "recurrent_block_step": "griffin_kernels.functional.recurrent_block_step",
    "rg_lru_step": "griffin_kernels.functional.rg_lru_step",
    "temporal_conv1d_step": "griffin_kernels.functional.temporal_conv1d_step",
    "RGLRUWeights": "griffin_kernels.functional.rg_lru",
    "rg_lru": "griffin_kernels.functional.rg_lru",
    "temporal_conv1d": "griffin_kernels.functional.temporal_conv1d",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    found = globals()[name] = getattr(importlib.import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
