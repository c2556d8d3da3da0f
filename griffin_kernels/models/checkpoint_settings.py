"""Configurations of the published RecurrentGemma codes, to and from ours. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from griffin_kernels import errors
from griffin_kernels.models.config import BlockType, GriffinConfig, repeat

NATIVE = "griffin_kernels"
"""``model_type`` of a config.json with the fields of GriffinConfig."""

DEFAULTS: Mapping[str, Any] = {
    "block_types": ["recurrent", "recurrent", "attention"],
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "rms_norm_eps": 1e-6,
    "logits_soft_cap": 30.0,
}
"""What transformers' RecurrentGemmaConfig takes for an entry that is not there; sizes must be there."""

BLOCKS: Mapping[str, BlockType] = {
    "recurrent": "recurrent",
    "attention": "local_attention",
    "linear_attention": "recurrent",
    "sliding_attention": "local_attention",
}
"""transformers' names of blocks, in ``block_types`` and in ``layer_types``."""


def config_from_transformers(config: Any) -> GriffinConfig:
    """Our configuration from transformers' RecurrentGemmaConfig, or from the mapping that a config.json holds.

    The pattern of blocks is ``block_types``, ``_block_types`` or ``layer_types``, or the default one where none is
    there. Their MLP is ``intermediate_size // 2`` wide, their gates have one block a head, ``head_dim`` may be other
    than ``hidden_size // num_attention_heads``, and they scale embeddings always. Raises ArgumentError for a missing
    size and for settings that the published models do not have.
    """
    given = config if isinstance(config, Mapping) else config.to_dict()
    rope = given.get("rope_parameters") or {}
    kinds = {"model_type": "recurrent_gemma", "hidden_activation": "gelu_pytorch_tanh", "rope_type": "default"}
    fixed = kinds | {"attention_bias": False, "tie_word_embeddings": True, "partial_rotary_factor": 0.5}
    for name, only in fixed.items():
        if (value := given.get(name, rope.get(name, only))) != only:
            raise errors.ArgumentError(f"config: {name} is {value!r}, expected {only!r}")
    try:
        width, heads = given["hidden_size"], given["num_attention_heads"]
        if not given.get("head_dim") and width % heads:
            raise errors.ArgumentError(f"config: hidden_size {width} is no multiple of {heads} heads, and no head_dim")
        return GriffinConfig(
            vocab_size=given["vocab_size"],
            width=width,
            mlp_width=given["intermediate_size"] // 2,
            block_types=_block_types(given, given["num_hidden_layers"]),
            num_heads=heads,
            head_dim=given.get("head_dim") or width // heads,
            lru_width=given.get("lru_width") or width,
            gate_blocks=heads,
            num_kv_heads=given.get("num_key_value_heads") or heads,
            window=_entry(given, "attention_window_size"),
            conv_width=_entry(given, "conv1d_width"),
            rope_base=given.get("rope_theta", rope.get("rope_theta", 10_000.0)),
            norm_eps=_entry(given, "rms_norm_eps"),
            scale_embeddings=True,
            logits_softcap=_entry(given, "logits_soft_cap") or None,
        )
    except KeyError as error:
        raise errors.ArgumentError(f"config: no entry {error.args[0]!r}") from None
    except TypeError as error:  # null or text where a number must be
        raise errors.ArgumentError(f"config: an entry is of the wrong type: {error}") from None


def _entry(given: Mapping[str, Any], name: str) -> Any:
    return given.get(name, DEFAULTS[name])


def _block_types(given: Mapping[str, Any], layers: int) -> tuple[BlockType, ...]:
    names = ("block_types", "_block_types", "layer_types", "layers_block_type")
    pattern = next((given[name] for name in names if given.get(name)), DEFAULTS["block_types"])
    if unknown := [kind for kind in pattern if kind not in BLOCKS]:
        raise errors.ArgumentError(f"config: no block type {unknown[0]!r}; there are {', '.join(BLOCKS)}")
    return repeat(tuple(BLOCKS[kind] for kind in pattern), layers)


def _pattern(block_types: Sequence[BlockType]) -> list[str]:
    """The shortest pattern that repeats to ``block_types``, by transformers' names."""
    whole = tuple(block_types)
    length = next(n for n in range(1, len(whole) + 1) if repeat(whole[:n], len(whole)) == whole)
    return ["recurrent" if kind == "recurrent" else "attention" for kind in whole[:length]]


def not_in_transformers(config: GriffinConfig) -> list[str]:
    """What a model has that transformers' RecurrentGemma cannot have; empty where it can be one."""
    heads = config.num_heads
    faults = {
        "block_types have global_attention": "global_attention" in config.block_types,
        "scale_embeddings is False": not config.scale_embeddings,
        "logits_softcap is None": config.logits_softcap is None,
        f"gate_blocks is {config.gate_blocks}, not num_heads, {heads}": config.gate_blocks != heads,
    }
    return [fault for fault, there in faults.items() if there]


def config_to_transformers(config: GriffinConfig) -> dict[str, Any]:
    """The inverse of ``config_from_transformers``: entries of a config.json, or arguments of RecurrentGemmaConfig.

    Raises ArgumentError naming the settings that transformers' RecurrentGemma cannot have.
    """
    if faults := not_in_transformers(config):
        raise errors.ArgumentError(f"transformers' RecurrentGemma has no such model: {', '.join(faults)}")
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": 2 * config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "block_types": _pattern(config.block_types),
        "num_attention_heads": config.num_heads,
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_kv_heads,
        "lru_width": config.lru_width,
        "attention_window_size": config.window,
        "conv1d_width": config.conv_width,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base, "partial_rotary_factor": 0.5},
        "rope_theta": config.rope_base,  # before transformers 5
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": config.norm_eps,
        "logits_soft_cap": config.logits_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
    }


def native_entries(config: GriffinConfig) -> dict[str, Any]:
    """Entries of a config.json of our own: the fields of GriffinConfig."""
    return {"model_type": NATIVE, **asdict(config)}


def native_config(given: Mapping[str, Any]) -> GriffinConfig:
    """The inverse of ``native_entries``; entries that are no fields are passed over."""
    known = {field.name: given[field.name] for field in fields(GriffinConfig) if field.name in given}
    try:
        return GriffinConfig(**known | {"block_types": tuple(known.get("block_types", ()))})
    except TypeError as error:
        raise errors.ArgumentError(f"config: {error}") from None


def config_from_deepmind(config: Mapping[str, Any]) -> GriffinConfig:
    """Our configuration from the fields of google-deepmind/recurrentgemma's GriffinConfig, block types by name.

    That code's mask lets a query see itself and ``attention_window_size`` tokens before it, in decode too, so our
    window is one more than that. Raises ArgumentError for a missing entry.
    """
    kinds = {"RECURRENT": "recurrent", "ATTENTION": "local_attention"}
    try:
        return GriffinConfig(
            vocab_size=config["vocab_size"],
            width=config["width"],
            mlp_width=config["mlp_expanded_width"],
            block_types=tuple(kinds[str(getattr(kind, "name", kind))] for kind in config["block_types"]),  # type: ignore[misc]
            num_heads=config["num_heads"],
            head_dim=config["width"] // config["num_heads"],
            lru_width=config.get("lru_width") or config["width"],
            gate_blocks=config["num_heads"],
            window=config["attention_window_size"] + 1,
            scale_embeddings=bool(config["embeddings_scale_by_sqrt_dim"]),
            logits_softcap=config["logits_soft_cap"] or None,
        )
    except KeyError as error:
        raise errors.ArgumentError(f"config: no entry or block type {error.args[0]!r}") from None


def config_from_deepmind_shapes(
    shapes: Mapping[str, Sequence[int]],
    *,
    attention_window_size: int = 2048,
    embeddings_scale_by_sqrt_dim: bool = True,
    logits_soft_cap: float | None = 30.0,
) -> GriffinConfig:
    """Our configuration from the shapes in a state dict of that code; defaults are what both released sizes have."""
    kinds: list[str] = []
    heads = recurrence = None
    try:
        vocab, width = shapes["embedder.input_embedding"]
        while f"blocks.{len(kinds)}.channel_pre_norm.scale" in shapes:
            block = f"blocks.{len(kinds)}"
            if (gate := shapes.get(f"{block}.recurrent_block.rg_lru.a_gate.w")) is not None:
                kinds.append("RECURRENT")
                heads, recurrence = gate[0], gate[0] * gate[1]
            else:
                kinds.append("ATTENTION")
                heads = width // shapes[f"{block}.attention_block.proj_k.weight"][0]
        return config_from_deepmind(
            {
                "vocab_size": vocab,
                "width": width,
                "mlp_expanded_width": shapes["blocks.0.mlp_block.ffw_up.w"][2],
                "num_heads": heads,
                "lru_width": recurrence,
                "block_types": kinds,
                "attention_window_size": attention_window_size,
                "embeddings_scale_by_sqrt_dim": embeddings_scale_by_sqrt_dim,
                "logits_soft_cap": logits_soft_cap,
            }
        )
    except KeyError as error:
        raise errors.ArgumentError(f"no state dict of DeepMind's RecurrentGemma: it lacks {error.args[0]}") from None
