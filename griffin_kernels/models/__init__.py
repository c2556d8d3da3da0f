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
    from griffin_kernels.models.cache import PendingTokens as PendingTokens
    from griffin_kernels.models.checkpoint import load_deepmind as load_deepmind
    from griffin_kernels.models.checkpoint import load_pretrained as load_pretrained
    from griffin_kernels.models.checkpoint import load_transformers as load_transformers
    from griffin_kernels.models.checkpoint import save_deepmind as save_deepmind
    from griffin_kernels.models.checkpoint import save_pretrained as save_pretrained
    from griffin_kernels.models.checkpoint_layouts import from_deepmind as from_deepmind
    from griffin_kernels.models.checkpoint_layouts import from_transformers as from_transformers
    from griffin_kernels.models.checkpoint_layouts import to_deepmind as to_deepmind
    from griffin_kernels.models.checkpoint_layouts import to_transformers as to_transformers
    from griffin_kernels.models.checkpoint_settings import config_from_deepmind as config_from_deepmind
    from griffin_kernels.models.checkpoint_settings import config_from_transformers as config_from_transformers
    from griffin_kernels.models.checkpoint_settings import config_to_transformers as config_to_transformers
    from griffin_kernels.models.generation import Generation as Generation
    from griffin_kernels.models.generation import generate as generate
    from griffin_kernels.models.griffin import Griffin as Griffin
    from griffin_kernels.models.loss import linear_cross_entropy as linear_cross_entropy
    from griffin_kernels.models.speculation import Acceptance as Acceptance

_HOMES = {
    "cache": "Cache PendingTokens",
    "griffin": "Griffin",
    "generation": "Generation generate",
    "loss": "linear_cross_entropy",
    "checkpoint": "load_deepmind load_pretrained load_transformers save_deepmind save_pretrained",
    "checkpoint_layouts": "from_deepmind from_transformers to_deepmind to_transformers",
    "checkpoint_settings": "config_from_deepmind config_from_transformers config_to_transformers",
    "speculation": "Acceptance",
}

__all__ = sorted(["PRESETS", "GriffinConfig", "preset", *" ".join(_HOMES.values()).split()])


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names.split():
            found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
