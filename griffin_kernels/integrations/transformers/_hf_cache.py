"""Recurrent states in transformers' caches: beside keys and values, so that beams, resets and turns move them too."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.contract import accumulator

# what a version of transformers has or has not is looked at when it runs
caches: Any = importlib.import_module("transformers.cache_utils")
modeling: Any = importlib.import_module("transformers.models.recurrent_gemma.modeling_recurrent_gemma")

CACHE = "cache" if "cache" in inspect.signature(modeling.RecurrentGemmaModel.forward).parameters else "past_key_values"
"""The argument of forward that takes a cache: its name differs by version."""


class CountedStateLayer(caches.LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """The states of a recurrent block, and how many tokens they have seen: of a cache without attention, which would
    not know. It has no keys."""

    seen: int = 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reset(self) -> None:
        caches.LinearAttentionCacheLayerMixin.reset(self)
        self.seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        caches.LinearAttentionCacheLayerMixin.reorder_cache(self, beam_idx)


def adopted(cache: Any, config: Any) -> Any:
    """A cache with a layer for each block, made so in place where it has none yet. Raises ArgumentError for others."""
    layers = getattr(cache, "layers", None)
    if not isinstance(cache, caches.Cache) or layers is None:
        raise errors.ArgumentError(
            f"{CACHE} is a {type(cache).__name__}, expected a Cache such as DynamicCache(config=model.config)"
        )
    if not layers and cache.layer_class_to_replicate is not None:
        layers = cache.layers = caches.DynamicCache(config=config).layers
        cache.layer_class_to_replicate = None
    kinds = config.layer_types
    if len(layers) != len(kinds):
        raise errors.ArgumentError(f"{CACHE} has {len(layers)} layers, the model {len(kinds)}")
    for index, kind in enumerate(kinds):
        expected = caches.LinearAttentionCacheLayerMixin if kind == "linear_attention" else caches.CacheLayerMixin
        if not isinstance(layers[index], expected):
            raise errors.ArgumentError(
                f"{CACHE}: layer {index} is a {type(layers[index]).__name__}, which cannot hold what a {kind} layer "
                "keeps; make the cache with DynamicCache(config=model.config)"
            )
    if "sliding_attention" not in kinds and not isinstance(layers[0], CountedStateLayer):
        counted = CountedStateLayer()
        counted.__dict__.update(layers[0].__dict__)
        layers[0] = counted
    return cache


def seen_tokens(cache: Any, batch: int | None = None) -> int:
    """How many tokens an adopted cache holds of each row.

    Raises ArgumentError where it has keys of them, but no states, ShapeError where it holds another number of rows.
    """
    if cache is None:
        return 0
    seen = int(cache.get_seq_length())
    if seen:
        for layer in cache.layers:
            if not isinstance(layer, caches.LinearAttentionCacheLayerMixin):
                continue
            if not layer.has_previous_state[0]:
                raise errors.ArgumentError(
                    f"{CACHE} has keys of {seen} tokens but no recurrent states of them: the model that filled it was "
                    "not accelerated; fill it anew"
                )
            rows = layer.conv_states[0].shape[0]
            if batch is not None and rows != batch:
                raise errors.ShapeError(f"{CACHE} holds {rows} rows, but tokens have {batch}")
    return seen


def advance(cache: Any, tokens: int) -> None:
    """Count tokens where no attention layer does."""
    if cache is not None and isinstance(cache.layers[0], CountedStateLayer):
        cache.layers[0].seen += tokens


def valid_keys(cache: Any, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of what ``Cache.update`` returned, [B, H, S, d], the part that is filled: a static layer returns all its room."""
    layer = cache.layers[layer_idx]
    if not isinstance(layer, caches.StaticLayer):
        return keys, values
    filled = min(int(layer.get_seq_length()), keys.shape[2])
    return keys[:, :, :filled], values[:, :, :filled]


def close_up(cache: Any, layer_idx: int, keys: Tensor, values: Tensor, padding: Tensor) -> None:
    """Move each row's last real key to the end of a layer, of keys and values [B, H, S, d] of which ``padding`` [B]
    last ones are none."""
    layer = cache.layers[layer_idx]
    length = keys.shape[2]
    kept = min(layer.keys.shape[2], length)
    steps = torch.arange(length - kept, length, device=keys.device, dtype=torch.int64)
    index = (steps - padding[:, None]) % length
    moved = [part.detach().gather(2, index[:, None, :, None].expand(*part.shape[:2], kept, part.shape[3]))
             for part in (keys, values)]  # fmt: skip
    if isinstance(layer, caches.StaticLayer):
        layer.keys[:, :, :kept].copy_(moved[0])
        layer.values[:, :, :kept].copy_(moved[1])
    else:
        layer.keys, layer.values = moved


class States:
    """The two states of a recurrent block in a cache's layer, as the kernels take them.

    conv: [B, K-1, D] in x's dtype, a view of the last K-1 of the layer's K columns. h: [B, D], float32 (float64 for
    float64). continues: they are of earlier tokens.
    """

    def __init__(self, layer: Any, x: Tensor, taps: int) -> None:
        """x: [B, T, D], what the convolution takes. taps: K."""
        self.layer = layer
        batch, _, width = x.shape
        if not layer.is_conv_states_initialized[0]:
            conv = torch.zeros(batch, width, taps, dtype=x.dtype, device=x.device)
            h = torch.zeros(batch, width, dtype=accumulator(x.dtype), device=x.device)
            layer.lazy_initialization(conv_states=conv, recurrent_states=h)
        if layer.conv_states[0].shape[0] != batch:
            held = layer.conv_states[0].shape[0]
            raise errors.ShapeError(f"{CACHE} has room for {held} rows, but tokens have {batch}; make a new one")
        if layer.conv_states[0].dtype != x.dtype:
            layer.conv_states[0] = layer.conv_states[0].to(x.dtype)
        if not torch.compiler.is_compiling() and layer.conv_states[0].is_inference():
            if not torch.is_inference_mode_enabled():  # where nothing may be written to them
                layer.conv_states[0], layer.recurrent_states[0] = self.copies()
        self.continues = bool(layer.has_previous_state[0])

    @property
    def conv(self) -> Tensor:
        return self.layer.conv_states[0][:, :, 1:].transpose(1, 2)  # type: ignore[no-any-return]

    @property
    def h(self) -> Tensor:
        return self.layer.recurrent_states[0]  # type: ignore[no-any-return]

    def copies(self) -> tuple[Tensor, Tensor]:
        """Both as the layer has them, [B, D, K] and [B, D], elsewhere."""
        return self.layer.conv_states[0].clone(), self.layer.recurrent_states[0].clone()

    def before(self) -> tuple[Tensor | None, Tensor | None]:
        """conv and h of earlier tokens; None where there are none."""
        return (self.conv, self.h) if self.continues else (None, None)

    def written(self) -> None:
        """The kernels have changed both in place."""
        self.layer.has_previous_state[0] = True

    def store(self, conv: Tensor, h: Tensor) -> None:
        """New states, of the shapes of ``conv`` and ``h``: in place, or in new memory where a gradient may need the
        old ones."""
        if torch.is_grad_enabled():
            self.layer.conv_states[0] = functional.pad(conv.detach().transpose(1, 2), (1, 0))
            self.layer.recurrent_states[0] = h.detach()
        else:
            self.conv.copy_(conv)
            self.h.copy_(h)
        self.written()
