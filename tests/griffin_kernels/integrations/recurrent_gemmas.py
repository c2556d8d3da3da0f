"""Tiny RecurrentGemmas of transformers, and what is right for them: each document by itself, without a cache."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor

from griffin_kernels.integrations.transformers._hf_cache import CACHE

VOCABULARY = 97

CONFIGS: dict[str, dict[str, Any]] = {
    "mix": {},
    "hawk": {"block_types": ["recurrent"], "num_hidden_layers": 2},
    "wide": {"lru_width": 48},
    "grouped": {"num_key_value_heads": 2, "attention_window_size": 5, "block_types": ["attention", "recurrent"]},
    "two_taps": {"conv1d_width": 2, "hidden_activation": "silu", "attention_window_size": 3},
}
"""The published pattern; without attention; a recurrence wider than the model; grouped queries and attention first;
two taps and another activation, which no fused kernel has."""

SHORT = {"num_hidden_layers": 2, "block_types": ["recurrent", "attention"]}
"""For tests that take a second a layer."""

# a dozen float32 roundings a layer over at most 3 layers, each of a sum of up to 100 products: as in test_models_parity
FLOAT32 = 1e-5


@functools.cache
def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A plain model in which every parameter counts: transformers draws most of them tiny, and biases zero."""
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 1, "attention_window_size": 8, "vocab_size": VOCABULARY, "pad_token_id": 0}
    config = transformers.RecurrentGemmaConfig(**(sizes | {"eos_token_id": None} | (CONFIGS | {"short": SHORT})[name]))
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith("recurrent_param"):
                fan_in = parameter.shape[1] if parameter.dim() > 1 else 25
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.uniform_(-5.0, -1.0, generator=generator)
    return model.to(dtype)


def document(tokens: int, seed: int = 0) -> Tensor:
    """int64 [1, tokens], none of which is padding."""
    return torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(97 * seed + tokens))


@torch.no_grad()
def alone(model: Any, text: Tensor) -> Tensor:
    """[1, T, V], what a plain model has right: one document, without a cache."""
    return model(text, use_cache=False).logits  # type: ignore[no-any-return]


def dynamic(model: Any) -> Any:
    return transformers.DynamicCache(config=model.config)


@torch.no_grad()
def told(model: Any, tokens: Tensor, cache: Any, **more: Any) -> Tensor:
    """Logits of tokens that go on from a cache."""
    return model(tokens, use_cache=True, **{CACHE: cache}, **more).logits  # type: ignore[no-any-return]


def in_pieces(model: Any, text: Tensor, pieces: list[int], cache: Any) -> Tensor:
    """Logits of a text that is told in pieces, with positions as generate gives them."""
    logits, at = [], int(cache.get_seq_length()) if "sliding_attention" in model.config.layer_types else 0
    for piece in text.split(pieces, 1):
        positions = torch.arange(at, at + piece.shape[1]).expand(piece.shape)
        logits.append(told(model, piece, cache, position_ids=positions))
        at += piece.shape[1]
    return torch.cat(logits, 1)


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got.float() - want).abs().max() / want.abs().max()).item()
