"""Hawk, Griffin and the MQA Transformer as modules over the tuned operations.

``preset`` and ``GriffinConfig`` need no PyTorch; ``Griffin`` and the checkpoint loaders are imported at first use.
"""

import importlib
from typing import TYPE_CHECKING

from griffin_kernels.models.config import GriffinConfig as GriffinConfig
from griffin_kernels.models.presets import PRESETS as PRESETS
from griffin_kernels.models.presets import preset as preset

if TYPE_CHECKING:
    from griffin_kernels.models.cache import Cache as Cache
    from griffin_kernels.models.checkpoint import config_from_deepmind as config_from_deepmind
    from griffin_kernels.models.checkpoint import config_from_transformers as config_from_transformers
    from griffin_kernels.models.checkpoint import from_deepmind as from_deepmind
    from griffin_kernels.models.checkpoint import from_transformers as from_transformers
    from griffin_kernels.models.checkpoint import load_transformers as load_transformers
    from griffin_kernels.models.checkpoint import to_deepmind as to_deepmind
    from griffin_kernels.models.checkpoint import to_transformers as to_transformers
    from griffin_kernels.models.griffin import Griffin as Griffin

_HOMES = {
    "Cache": "cache",
    "Griffin": "griffin",
    "config_from_deepmind": "checkpoint",
    "config_from_transformers": "checkpoint",
    "from_deepmind": "checkpoint",
    "from_transformers": "checkpoint",
    "load_transformers": "checkpoint",
    "to_deepmind": "checkpoint",
    "to_transformers": "checkpoint",
}

__all__ = sorted(["PRESETS", "GriffinConfig", "preset", *_HOMES])


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
