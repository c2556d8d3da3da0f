"""Names and shapes of parameters in three layouts of a checkpoint, and the way from each to ours and back.

Layouts: transformers' ``RecurrentGemmaForCausalLM``, the PyTorch code of google-deepmind/recurrentgemma, and our own
names. A ``Rule`` says where one of our parameters comes from, and how to get back: the way back also serves gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.griffin import Griffin

Layout = Literal["transformers", "deepmind", "griffin_kernels"]
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
    "griffin_kernels": {},
}
"""Parts of our names -> of theirs, to be replaced in this order; ``{}`` stands for each of the several they have."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""transformers' names of the embedding, and of the output matrix, which is tied to it."""

WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch.compile, DDP, FSDP and activation checkpointing put in."""


def rules(config: GriffinConfig, layout: Layout) -> dict[str, Rule]:
    """One rule for each of our parameters, in the order of the module."""
    if layout != "griffin_kernels" and "global_attention" in config.block_types:
        raise errors.ArgumentError("config: the published layouts have no global attention")
    kv_rows = config.num_kv_heads * config.head_dim
    qkv_rows = [config.num_heads * config.head_dim, kv_rows, kv_rows]
    found = {}
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
        found[mine] = rule
    return found


def _listed(names: Sequence[str]) -> str:
    """At most six names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def plain_names(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Name in the layout -> name as given.

    Wrappers' parts of names are dropped. Names of transformers' RecurrentGemmaModel get its ``model.`` in front. An
    output matrix without the embedding to which it is tied stands for both.
    """
    found: dict[str, str] = {}
    for given in names:
        plain = ".".join(part for part in given.split(".") if part not in WRAPPERS)
        if plain in found:
            raise errors.ArgumentError(f"the state dict has both {found[plain]} and {given}, expected one of them")
        found[plain] = given
    if layout == "transformers":
        if not any(name.startswith("model.") for name in found):
            found = {name if name == HEAD else f"model.{name}": given for name, given in found.items()}
        if HEAD in found and EMBEDDING not in found:
            found[EMBEDDING] = found.pop(HEAD)
    return found


def check(shapes: Mapping[str, Sequence[int]], config: GriffinConfig, layout: Layout) -> dict[str, Rule]:
    """The rules, if ``shapes`` of tensors by their plain name are all that they need and no more.

    Raises for keys that are missing or unexpected, then for tensors of the wrong shape.
    """
    found = rules(config, layout)
    ours = Griffin(config, device="meta").state_dict()
    expected = {
        name: list(part.shape)
        for mine, rule in found.items()
        for name, part in zip(rule.theirs, rule.split(ours[mine]), strict=True)
    }
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    faults = [f"lacks {_listed(missing)}"] if missing else []
    faults += [f"has {_listed(unexpected)}, which this model has no place for"] if unexpected else []
    if faults:
        raise errors.ArgumentError(f"the state dict {' and '.join(faults)}")
    misshapen = [
        f"{name} is {list(shapes[name])}, expected {shape}"
        for name, shape in expected.items()
        if list(shapes[name]) != shape
    ]
    if misshapen:
        raise errors.ShapeError(f"the state dict does not fit the configuration: {_listed(misshapen)}")
    return found


def check_tied(head: Tensor, embedding: Tensor) -> None:
    """Raise if the output matrix is another than the embedding."""
    if head is embedding or head.data_ptr() == embedding.data_ptr():
        return
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise errors.ArgumentError(f"{HEAD} differs from {EMBEDDING}, to which it must be tied")


def _to_ours(state_dict: StateDict, config: GriffinConfig, layout: Layout) -> dict[str, Tensor]:
    tensors = {plain: state_dict[given] for plain, given in plain_names(state_dict, layout).items()}
    if layout == "transformers" and (head := tensors.pop(HEAD, None)) is not None:
        check_tied(head, tensors[EMBEDDING])
    found = check({name: tensor.shape for name, tensor in tensors.items()}, config, layout)
    return {mine: rule.join(*[tensors[name] for name in rule.theirs]) for mine, rule in found.items()}


def to_theirs(tensors: StateDict, config: GriffinConfig, layout: Layout) -> dict[str, Tensor]:
    """Tensors by their names from those by ours: views where they can be."""
    found: dict[str, Tensor] = {}
    for mine, rule in rules(config, layout).items():
        if mine not in tensors:
            raise errors.ArgumentError(f"the state dict lacks {mine}")
        found |= zip(rule.theirs, rule.split(tensors[mine]), strict=True)
    return found


def from_transformers(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """Our state dict from that of transformers' RecurrentGemmaForCausalLM, or of its RecurrentGemmaModel.

    ``lm_head.weight`` may be there: it must be the embedding, to which it is tied. Prefixes of torch.compile, DDP and
    FSDP are dropped from names. Tensors keep dtype and device; those that need no rearrangement are not copied. Raises
    ArgumentError naming missing and unexpected keys, ShapeError naming tensors that do not fit ``config``.
    """
    return _to_ours(state_dict, config, "transformers")


def to_transformers(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """The inverse of ``from_transformers``, without ``lm_head.weight``; gradients by name can be given as well."""
    return to_theirs(state_dict, config, "transformers")


def from_deepmind(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """Our state dict from that of google-deepmind/recurrentgemma's PyTorch ``Griffin``; errors as above.

    The window of ``config`` must be their ``attention_window_size + 1``, see ``config_from_deepmind``.
    """
    return _to_ours(state_dict, config, "deepmind")


def to_deepmind(state_dict: StateDict, config: GriffinConfig) -> dict[str, Tensor]:
    """The inverse of ``from_deepmind``; gradients by name can be given as well."""
    return to_theirs(state_dict, config, "deepmind")
