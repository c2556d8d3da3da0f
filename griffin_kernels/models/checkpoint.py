"""Parameters and settings of the published RecurrentGemma codes, to and from ours.

Two layouts: transformers' ``RecurrentGemmaForCausalLM``, and the PyTorch code of google-deepmind/recurrentgemma. A
``Rule`` says where one of our parameters comes from, and how to get back: the way back also serves gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig, repeat
from griffin_kernels.models.griffin import Griffin

Layout = Literal["transformers", "deepmind"]
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """``theirs``: names there. join: their tensors -> ours. split: ours -> theirs; on meta tensors it tells shapes."""

    theirs: tuple[str, ...]
    join: Callable[..., Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]


RENAMED: Mapping[Layout, Mapping[str, str]] = {
    "transformers": {
        "embedding": "model.embed_tokens",
        "final_norm": "model.final_norm",
        "blocks": "model.layers",
        "temporal_norm": "temporal_pre_norm",
        "channel_norm": "channel_pre_norm",
        "mixing.qkv": "mixing.{}_proj",
        "mixing.out": "mixing.o_proj",
        "mixing": "temporal_block",
        "conv": "conv_1d",
        "a_param": "recurrent_param",
        "recurrence_gate": "recurrent_gate",
        "mlp.up": "mlp_block.{}_proj",
        "mlp.down": "mlp_block.down_proj",
    },
    "deepmind": {
        "embedding.weight": "embedder.input_embedding",
        "norm.weight": "norm.scale",
        "temporal_norm": "temporal_pre_norm",
        "channel_norm": "channel_pre_norm",
        "mixing.qkv": "attention_block.proj_{}",
        "mixing.out": "attention_block.proj_final",
        "mixing": "recurrent_block",
        "conv.weight": "conv_1d.w",
        "conv.bias": "conv_1d.b",
        "recurrence_gate": "a_gate",
        "gate_weight": "gate.w",
        "gate_bias": "gate.b",
        "mlp.up.weight": "mlp_block.ffw_up.w",
        "mlp.up.bias": "mlp_block.ffw_up.b",
        "mlp.down": "mlp_block.ffw_down",
    },
}
"""Parts of our names -> of theirs, to be replaced in this order; ``{}`` stands for each of the several they have."""


def _rules(config: GriffinConfig, layout: Layout) -> dict[str, Rule]:
    """One rule for each of our parameters, in the order of the module."""
    if "global_attention" in config.block_types:
        raise errors.ArgumentError("config: the published layouts have no global attention")
    kv_rows = config.num_kv_heads * config.head_dim
    qkv_rows = [config.num_heads * config.head_dim, kv_rows, kv_rows]
    rules = {}
    for mine in Griffin(config, device="meta").state_dict():
        their = mine
        for ours, name in RENAMED[layout].items():
            their = their.replace(ours, name)
        rule = Rule((their,), lambda tensor: tensor, lambda tensor: (tensor,))
        if "{}" in their:  # ours has their rows one below the other
            which, rows = ("qkv", qkv_rows) if "qkv" in mine else (("gate", "up"), [config.mlp_width] * 2)
            split = partial(torch.split, split_size_or_sections=rows)
            rule = Rule(tuple(map(their.format, which)), lambda *parts: torch.cat(parts), split)
        elif their.endswith("conv_1d.weight"):  # nn.Conv1d's, [R, 1, K], ours [K, R]; both put the present token last
            rule = Rule((their,), lambda tensor: tensor[:, 0].T, lambda tensor: (tensor.T[:, None],))
        elif their.endswith("ffw_up.w"):  # [2, inputs, outputs], ours [2 * outputs, inputs]
            rule = Rule(
                (their,),
                lambda tensor: tensor.transpose(1, 2).flatten(0, 1),
                lambda tensor: (tensor.view(2, -1, tensor.shape[1]).transpose(1, 2),),
            )
        elif their.endswith("ffw_up.b"):  # [2, 1, 1, outputs], ours [2 * outputs]
            rule = Rule((their,), lambda tensor: tensor.flatten(), lambda tensor: (tensor.view(2, 1, 1, -1),))
        rules[mine] = rule
    return rules


def _listed(names: list[str]) -> str:
    """At most six names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _to_ours(state_dict: StateDict, config: GriffinConfig, layout: Layout) -> dict[str, Tensor]:
    """Raises for keys that are missing or unexpected, then for tensors of the wrong shape."""
    rules = _rules(config, layout)
    ours = Griffin(config, device="meta").state_dict()
    expected = {
        name: part.shape
        for mine, rule in rules.items()
        for name, part in zip(rule.theirs, rule.split(ours[mine]), strict=True)
    }
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    faults = [f"lacks {_listed(missing)}"] if missing else []
    faults += [f"has {_listed(unexpected)}, which this model has no place for"] if unexpected else []
    if faults:
        raise errors.ArgumentError(f"the state dict {' and '.join(faults)}")
    misshapen = [
        f"{name} is {list(state_dict[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if state_dict[name].shape != shape
    ]
    if misshapen:
        raise errors.ShapeError(f"the state dict does not fit the configuration: {_listed(misshapen)}")
    return {mine: rule.join(*[state_dict[name] for name in rule.theirs]) for mine, rule in rules.items()}


def _to_theirs(tensors: StateDict, config: GriffinConfig, layout: Layout) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mine, rule in _rules(config, layout).items():
        if mine not in tensors:
            raise errors.ArgumentError(f"the state dict lacks {mine}")
        found |= zip(rule.theirs, rule.split(tensors[mine]), strict=True)
    return found


def from_transformers(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """Our state dict from that of transformers' RecurrentGemmaForCausalLM.

    ``lm_head.weight`` may be there: it must be the embedding, to which it is tied. Tensors keep dtype and device; those
    that need no rearrangement are not copied. Raises ArgumentError naming missing and unexpected keys, ShapeError
    naming tensors that do not fit ``config``.
    """
    given = dict(state_dict)
    head, embedding = given.pop("lm_head.weight", None), given.get("model.embed_tokens.weight")
    if head is not None and embedding is not None and head is not embedding:
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            raise errors.ArgumentError(
                "lm_head.weight differs from model.embed_tokens.weight, to which it must be tied"
            )
    return _to_ours(given, config, "transformers")


def to_transformers(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """The inverse of ``from_transformers``, without ``lm_head.weight``; gradients by name can be given as well."""
    return _to_theirs(state_dict, config, "transformers")


def from_deepmind(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """Our state dict from that of google-deepmind/recurrentgemma's PyTorch ``Griffin``; errors as above.

    The window of ``config`` must be their ``attention_window_size + 1``, see ``config_from_deepmind``.
    """
    return _to_ours(state_dict, config, "deepmind")


def to_deepmind(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """The inverse of ``from_deepmind``; gradients by name can be given as well."""
    return _to_theirs(state_dict, config, "deepmind")


def config_from_transformers(config: Any) -> GriffinConfig:
    """Our configuration from transformers' RecurrentGemmaConfig, or from the mapping that a config.json holds.

    Their MLP is ``intermediate_size // 2`` wide, their gates have one block a head, and they scale embeddings always.
    Raises ArgumentError for a missing entry and for settings that the published models do not have.
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
        pattern = tuple("local_attention" if kind == "attention" else kind for kind in given["block_types"])
        return GriffinConfig(
            vocab_size=given["vocab_size"],
            width=width,
            mlp_width=given["intermediate_size"] // 2,
            block_types=repeat(pattern, given["num_hidden_layers"]),  # type: ignore[arg-type]
            num_heads=heads,
            head_dim=width // heads,
            lru_width=given.get("lru_width") or width,
            gate_blocks=heads,
            num_kv_heads=given.get("num_key_value_heads") or heads,
            window=given["attention_window_size"],
            conv_width=given["conv1d_width"],
            rope_base=given.get("rope_theta", rope.get("rope_theta", 10_000.0)),
            norm_eps=given["rms_norm_eps"],
            scale_embeddings=True,
            logits_softcap=given["logits_soft_cap"] or None,
        )
    except KeyError as error:
        raise errors.ArgumentError(f"config: no entry {error.args[0]!r}") from None


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


def load_transformers(
    model: nn.Module | StateDict,
    config: GriffinConfig | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Griffin:
    """A Griffin with copies of the parameters of a RecurrentGemmaForCausalLM, or of its state dict and a ``config``.

    device, dtype: of the copies; those of the given embedding if None. Raises as ``from_transformers``.
    """
    if isinstance(model, nn.Module):
        config = config or config_from_transformers(model.config)
        model = model.state_dict()
    if config is None:
        raise errors.ArgumentError("config is None, expected a GriffinConfig beside a state dict")
    tensors = from_transformers(model, config)
    embedding = tensors["embedding.weight"]
    filled = Griffin(config, device="meta", dtype=dtype or embedding.dtype)
    filled.to_empty(device=device or embedding.device)
    filled.load_state_dict(tensors)
    return filled


def read_folder(folder: str | Path) -> tuple[StateDict, GriffinConfig]:
    """The tensors and the configuration that a folder as transformers writes it holds."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise errors.ArgumentError("reading checkpoints needs safetensors: pip install safetensors") from None
    folder = Path(folder)
    settings, index = folder / "config.json", folder / "model.safetensors.index.json"
    if not settings.is_file():
        raise errors.ArgumentError(f"{folder} has no config.json, so it is no checkpoint folder")
    config = config_from_transformers(_json(settings))
    files = [folder / "model.safetensors"]
    if index.is_file():
        files = [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise errors.ArgumentError(f"{folder} lacks {file.name}")
        try:
            tensors |= load_file(file)
        except Exception as error:  # safetensors' own class, and OSError
            raise errors.ArgumentError(f"{file} cannot be read as safetensors: {error}") from None
    return tensors, config


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise errors.ArgumentError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise errors.ArgumentError(f"{file} holds a {type(found).__name__}, expected an object")
    return found
