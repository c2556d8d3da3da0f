"""Named models: the paper's Hawk, Griffin and MQA Transformer from 100M to 14B, RecurrentGemma, tiny ones.

Sizes after arXiv 2402.19427 (its table of model sizes; head dimension 128, MLP expansion 3, window 1024, 16 gate
blocks) and google-deepmind/recurrentgemma, common.py (vocabulary 256,000; one gate block per head in RecurrentGemma).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from griffin_kernels import errors
from griffin_kernels.models.config import PATTERNS, GriffinConfig, repeat
from griffin_kernels.texts import did_you_mean, shortened

# name: width, lru_width, layers, heads of 128
_PAPER = {
    "100m": (768, 1024, 12, 6),
    "200m": (1024, 1536, 12, 8),
    "400m": (1536, 2048, 12, 12),
    "1b3": (2048, 2560, 24, 16),
    "3b": (3072, 4096, 24, 24),
    "7b": (4096, 5632, 32, 32),
    "14b": (5120, 8192, 40, 40),
}


def _sized(family: str, width: int, lru_width: int, layers: int, heads: int, **others: Any) -> GriffinConfig:
    """The paper's proportions but for ``others``."""
    sizes = {"vocab_size": 256_000, "head_dim": 128, "gate_blocks": 16} | others
    blocks = repeat(PATTERNS[family], layers)
    return GriffinConfig(
        width=width, mlp_width=3 * width, block_types=blocks, num_heads=heads, lru_width=lru_width, **sizes
    )


_TINY = {"vocab_size": 256, "head_dim": 16, "gate_blocks": 4, "window": 16}
_GEMMA = {"head_dim": 256, "window": 2048, "scale_embeddings": True, "logits_softcap": 30.0}

PRESETS: Mapping[str, GriffinConfig] = MappingProxyType(
    {f"{family}-tiny": _sized(family, 64, 96, 3, 4, **_TINY) for family in PATTERNS}
    | {f"{family}-{size}": _sized(family, *sizes) for size, sizes in _PAPER.items() for family in PATTERNS}
    | {
        "recurrentgemma-2b": _sized("griffin", 2560, 2560, 26, 10, gate_blocks=10, **_GEMMA),
        "recurrentgemma-9b": _sized("griffin", 4096, 4096, 38, 16, gate_blocks=16, **_GEMMA),
    }
)
"""Every preset by name, small ones first."""


def preset(name: str) -> GriffinConfig:
    """The configuration called ``name``; raises UnknownModelError naming those that are spelt alike."""
    try:
        return PRESETS[name]
    except KeyError:
        meant = did_you_mean(name, PRESETS) or f"; `griffin roofline list` shows all {len(PRESETS)}"
        raise errors.UnknownModelError(f"no model {shortened(name)}{meant}") from None
