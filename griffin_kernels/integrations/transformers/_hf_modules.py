"""RecurrentGemma's modules with the kernels in them: what ``accelerate`` puts in place of transformers' own classes.

They add no parameter and have the names of what they replace, so that checkpoints, configurations and everything that
goes by a class's name stay as they are.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.functional import RGLRUWeights, gated_gelu, local_attention, rms_norm
from griffin_kernels.functional._bridge import wants_gradient
from griffin_kernels.integrations.transformers._hf_cache import (
    CACHE,
    States,
    adopted,
    advance,
    caches,
    close_up,
    modeling,
    seen_tokens,
    valid_keys,
)
from griffin_kernels.integrations.transformers._hf_mixing import Mixing
from griffin_kernels.integrations.transformers._hf_placement import Given, Placement, additive_mask, placed

activations: Any = importlib.import_module("transformers.activations")
hooks: Any = importlib.import_module("transformers.integrations.accelerate")
masks: Any = importlib.import_module("transformers.masking_utils")

GELU = type(activations.ACT2FN["gelu_pytorch_tanh"])
"""The activation that the fused kernels have."""

_Class = TypeVar("_Class", bound=type)

FEW = 2**13
"""Elements below which two kernels of torch are done before one of ours is called."""

PLACEMENT = "griffin_placement"
"""The keyword by which the model hands its blocks a Placement."""


class Accelerated:
    """What all classes here are, and no class of transformers'."""

    griffin_compatible = False


def _named(cls: _Class) -> _Class:
    """A class with the name of what it replaces: configurations and wrapping policies go by it."""
    cls.__name__ = cls.__mro__[2].__name__
    return cls


@_named
class AcceleratedRMSNorm(Accelerated, modeling.RecurrentGemmaRMSNorm):  # type: ignore[misc]
    """One pass in place of eight."""

    @functools.wraps(modeling.RecurrentGemmaRMSNorm.forward)
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps, weight_offset=1.0)


@_named
class AcceleratedMlp(Accelerated, modeling.RecurrentGemmaMlp):  # type: ignore[misc]
    """Activation and product in one pass; another activation than the tanh form of GELU runs as it is."""

    @functools.wraps(modeling.RecurrentGemmaMlp.forward)
    def forward(self, hidden_states: Tensor) -> Tensor:
        if type(self.act_fn) is not GELU:
            return super().forward(hidden_states)  # type: ignore[no-any-return]
        gate, value = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if gate.numel() < FEW and not wants_gradient((gate, value)):
            product = self.act_fn(gate) * value
        else:
            product = gated_gelu(gate, value)
        return self.down_proj(product)  # type: ignore[no-any-return]


@_named
class AcceleratedRglru(Accelerated, modeling.RecurrentGemmaRglru):  # type: ignore[misc]
    """Runs what its block gives it, so that whatever wraps or hooks it and its parameters takes part."""

    def forward(self, activations: Tensor, position_ids: Tensor | None = None, mixing: Mixing | None = None) -> Any:
        if mixing is None:
            return super().forward(activations, position_ids)
        weights = RGLRUWeights(
            self.recurrent_param,
            self.input_gate_weight,
            self.recurrent_gate_weight,
            self.input_gate_bias,
            self.recurrent_gate_bias,
        )
        return mixing._replace(x=activations).run(weights)


@_named
class AcceleratedRecurrentBlock(Accelerated, modeling.RecurrentGemmaRecurrentBlock):  # type: ignore[misc]
    """Its states are in the cache, and no document reads another."""

    @functools.wraps(modeling.RecurrentGemmaRecurrentBlock.forward)
    @hooks.force_accelerate_hooks("conv_1d")  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_states: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        conv = self.conv_1d
        if type(conv).forward is not nn.Conv1d.forward:
            raise errors.ArgumentError(
                f"conv_1d is a {type(conv).__module__}.{type(conv).__name__}, whose change of the convolution would be "
                "lost: leave conv_1d out of what is adapted, or restore() the model"
            )
        position_ids = None if position_ids is None else position_ids.expand(*input_states.shape[:2])
        placement = kwargs.get(PLACEMENT)
        if placement is None:
            placement = Placement(position_ids)
        input_states = placement.ordered(input_states)
        y, x = self.linear_y(input_states), self.linear_x(input_states)
        cache = kwargs.get(CACHE)
        states = None if cache is None else States(cache.layers[self.layer_idx], x, conv.kernel_size[0])
        mixing = Mixing(
            x,
            y,
            conv.weight[:, 0].t(),
            conv.bias,
            self.act_fn,
            not self.griffin_compatible and type(self.act_fn) is GELU,
            states,
            None if self.griffin_compatible else placement.segment_pos,
            position_ids if self.griffin_compatible else placement.segment_pos,
            placement.lengths,
        )
        out = self.rg_lru(x, position_ids, mixing=mixing)
        return placement.in_place(self.linear_out(out)), None


@_named
class AcceleratedAttention(Accelerated, modeling.RecurrentGemmaAttention):  # type: ignore[misc]
    """Local attention by position in the document; with a mask, transformers' own."""

    @functools.wraps(modeling.RecurrentGemmaAttention.forward)
    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        placement = kwargs.pop(PLACEMENT, None)
        if placement is None or placement.theirs or attention_mask is not None or position_ids is None:
            return super().forward(hidden_states, position_ids, attention_mask, **kwargs)  # type: ignore[no-any-return]
        hidden_states = placement.ordered(hidden_states)
        batch, time, _ = hidden_states.shape
        position_ids = placement.ordered(position_ids.expand(batch, time))
        heads = (batch, time, -1, self.head_dim)
        q, k, v = (
            linear(hidden_states).view(heads).transpose(1, 2) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = modeling.apply_rotary_pos_emb(q, k, *self.rotary_emb(v, position_ids))
        cache = kwargs.get(CACHE)
        keys, values = k, v
        if cache is not None:
            keys, values = cache.update(k.detach(), v.detach(), self.layer_idx)
            keys, values = valid_keys(cache, self.layer_idx, keys, values)
            if placement.lengths is not None:
                close_up(cache, self.layer_idx, keys, values, time - placement.lengths)
            if wants_gradient((k, v)):  # what is kept has none
                keys = torch.cat([keys[:, :, : keys.shape[2] - time], k], dim=2)
                values = torch.cat([values[:, :, : values.shape[2] - time], v], dim=2)
        if time == 1 and not wants_gradient((q, keys, values)):
            out = self._one_token(q, keys, values, placement.segment_pos)
        else:
            q, keys, values = (part.transpose(1, 2) for part in (q, keys, values))
            out = local_attention(
                q, keys, values, window=self.sliding_window, scale=self.scaling, segment_pos=placement.segment_pos
            )
        return placement.in_place(self.o_proj(out.flatten(2))), None

    def _one_token(self, q: Tensor, keys: Tensor, values: Tensor, segment_pos: Tensor | None) -> Tensor:
        """[B, 1, Hq, d] of q [B, Hq, 1, d] and the last keys, by torch's attention.

        The cache's keys are one more at every step, and a kernel is chosen anew for every shape.
        """
        keys, values = keys[:, :, -self.sliding_window :], values[:, :, -self.sliding_window :]
        ages = torch.arange(keys.shape[2] - 1, -1, -1, device=keys.device, dtype=torch.int64)
        sees = None if segment_pos is None else (ages <= segment_pos)[:, None, None]
        options = {"attn_mask": sees, "scale": self.scaling, "enable_gqa": True}
        return functional.scaled_dot_product_attention(q, keys, values, **options).transpose(1, 2)


@_named
class AcceleratedModel(Accelerated, modeling.RecurrentGemmaModel):  # type: ignore[misc]
    """Tells its blocks where tokens stand, and brings a cache."""

    @functools.wraps(modeling.RecurrentGemmaModel.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        cache, use_cache = _memory(self, cache, use_cache, kwargs)
        tokens = inputs_embeds if input_ids is None else input_ids
        if tokens is not None:
            seen = seen_tokens(cache, tokens.shape[0])
            if self.griffin_compatible:
                if position_ids is None:
                    position_ids = torch.arange(seen, seen + tokens.shape[1], dtype=torch.int64, device=tokens.device)[
                        None
                    ]
            else:
                mask = attention_mask if _is_padding(attention_mask) else None
                offsets, numbers = kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx")
                keeps = cache is not None
                sizes = tokens.shape[0], tokens.shape[1], tokens.device, seen
                given = Given(*sizes, position_ids, mask, offsets, numbers, keeps)
                placement, position_ids = placed(given)
                attention_mask, theirs = self._mask(placement, given, attention_mask, cache, kwargs)
                kwargs[PLACEMENT] = placement._replace(theirs=theirs)
        outputs = super().forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        if tokens is not None:
            advance(cache, tokens.shape[1])
        return _with_cache(outputs, cache)

    def _mask(
        self, placement: Placement, given: Given, mask: Any, cache: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, bool]:
        """What transformers' forward is to take for attention_mask, and whether attention is its own."""
        config = self.config
        if isinstance(mask, dict):
            return mask, False
        if mask is not None and not _is_padding(mask):
            if not self.__dict__.get("griffin_said"):
                self.griffin_said = True
                text = "attention_mask: not [B, T], so that attention runs as transformers has it; recurrent blocks "
                errors.warn(text + "cannot follow it, they go by position_ids alone", errors.FallbackWarning)
            return mask, True
        backwards = kwargs.get("is_causal", getattr(config, "is_causal", None)) is False
        weights = kwargs.get("output_attentions", getattr(config, "output_attentions", False))
        dropout = self.training and config.attention_dropout > 0
        if "sliding_attention" not in config.layer_types or not (backwards or weights or dropout):
            return {"sliding_attention": None}, False
        if backwards or config._attn_implementation not in ("eager", "sdpa"):
            return mask, True
        sizes = (given.time, 0)
        if cache is not None:
            sizes = cache.get_mask_sizes(given.time, config.layer_types.index("sliding_attention"))
        mask = additive_mask(placement, given, config.sliding_window, sizes, self.dtype)
        return {"sliding_attention": mask}, True


@_named
class AcceleratedForCausalLM(Accelerated, modeling.RecurrentGemmaForCausalLM):  # type: ignore[misc]
    """Its output has the cache as an attribute, though not among its fields."""

    @functools.wraps(modeling.RecurrentGemmaForCausalLM.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        cache, use_cache = _memory(self, cache, use_cache, kwargs)
        outputs = super().forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE: cache},
            **kwargs,
        )
        return _with_cache(outputs, cache)

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """The mask as generate has it, [B, T]: no other is needed."""
        if self.griffin_compatible:
            return masks.create_masks_for_generate(*args, **kwargs)
        return kwargs["attention_mask"]

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if model_kwargs.get(CACHE) is not None:
            adopted(model_kwargs[CACHE], self.config)


def _is_padding(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() == 2


def _memory(model: Any, cache: Any, use_cache: bool | None, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """The cache to use, a new one where one is wanted and none given, and what use_cache then is."""
    for name in {CACHE, "past_key_values"}:
        if name in kwargs:
            other = kwargs.pop(name)
            cache = other if cache is None else cache
            if name != CACHE:
                errors.warn(f"{name} is now called {CACHE}", FutureWarning)
    learning = model.training and torch.is_grad_enabled()
    if use_cache is None:  # training asks for no cache, but configurations do
        use_cache = bool(model.config.use_cache) and not learning
    checkpointing = learning and (use_cache or cache is not None)
    if checkpointing and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        if cache is not None and adopted(cache, model.config) and seen_tokens(cache):
            raise errors.ArgumentError(f"{CACHE}: gradient checkpointing would run layers twice on it; pass none")
        cache, use_cache = None, False
    if cache is not None:
        cache = adopted(cache, model.config)
    elif use_cache:
        cache = adopted(caches.DynamicCache(config=model.config), model.config)
    return cache, use_cache


def _with_cache(outputs: Any, cache: Any) -> Any:
    """Outputs with the cache as an attribute. Were it a field, what gathers all fields would gather it too."""
    if cache is not None and not isinstance(outputs, tuple):
        setattr(outputs, CACHE, cache)
    return outputs
