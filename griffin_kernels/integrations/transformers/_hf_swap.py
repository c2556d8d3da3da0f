"""Puts the accelerated classes in place of transformers' own, and back."""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any, TypeVar

import transformers
from torch import nn

from griffin_kernels import errors
from griffin_kernels.integrations.transformers import _hf_modules as ours
from griffin_kernels.integrations.transformers._hf_cache import CACHE, modeling

capturing: Any = importlib.import_module("transformers.utils.output_capturing")

SUPPORTED = "5.23 and 5.24"
"""Versions of transformers whose code was read and is tested."""

_Model = TypeVar("_Model", bound=nn.Module)

_SWAPS: dict[type, type] = {
    modeling.RecurrentGemmaRMSNorm: ours.AcceleratedRMSNorm,
    modeling.RecurrentGemmaMlp: ours.AcceleratedMlp,
    modeling.RecurrentGemmaRglru: ours.AcceleratedRglru,
    modeling.RecurrentGemmaRecurrentBlock: ours.AcceleratedRecurrentBlock,
    modeling.RecurrentGemmaAttention: ours.AcceleratedAttention,
    modeling.RecurrentGemmaModel: ours.AcceleratedModel,
    modeling.RecurrentGemmaForCausalLM: ours.AcceleratedForCausalLM,
}
_BACK: dict[type, type] = {swapped: original for original, swapped in _SWAPS.items()}
"""Classes in place, by those that take it; of wrapped classes, added as they are met, too."""

_REPLACEABLE = (modeling.RecurrentGemmaRMSNorm, modeling.RecurrentGemmaMlp)
"""What nothing else rests on: those with another's forward keep it."""

_EXPECTED: dict[type, str] = {
    modeling.RecurrentGemmaRMSNorm: "x",
    modeling.RecurrentGemmaMlp: "hidden_states",
    modeling.RecurrentGemmaRglru: "activations position_ids",
    modeling.RecurrentGemmaRecurrentBlock: "input_states position_ids attention_mask use_cache kwargs",
    modeling.RecurrentGemmaAttention: f"hidden_states position_ids attention_mask {CACHE} kwargs",
    modeling.RecurrentGemmaDecoderLayer: f"activations position_ids attention_mask use_cache {CACHE} kwargs",
    modeling.RecurrentGemmaModel: (f"input_ids position_ids attention_mask inputs_embeds use_cache {CACHE} kwargs"),
    modeling.RecurrentGemmaForCausalLM: (
        f"input_ids position_ids attention_mask inputs_embeds labels use_cache logits_to_keep {CACHE} kwargs"
    ),
}
"""Parameters of the forward that each class has in the supported versions."""


def accelerate(model: _Model, *, compatible: bool = False) -> _Model:
    """Run transformers' RecurrentGemma on the kernels, in place; ``restore`` undoes it.

    Recurrent blocks, attention and the models around them change their class for a subclass. No parameter, module or
    hook is added or moved: state_dict, save_pretrained, adapters, wrappers and optimizers stay as they are, and
    from_pretrained gives transformers' own class again. Linear layers are called as modules.

    What plain RecurrentGemma has wrong, its states in modules instead of the cache, padding and packed documents that
    reach each other, calls that do not go on from a cache, becomes right; docs/transformers.md has it row by row.

    model: a RecurrentGemmaForCausalLM or RecurrentGemmaModel, or any module that contains one: a PeftModel, a compiled
        or sharded one, a trainer's wrapper.
    compatible: keep the numbers of the plain model's forward without a cache, where right ones differ: documents and
        padding are told apart as there. States are in the cache all the same. Attention is transformers' own.

    Returns model. A second call changes nothing, or the mode. Raises ArgumentError where nothing is found to
    accelerate, where a class or its forward was replaced by someone else, or where this version of transformers has
    another forward than the supported ones.
    """
    _check_version()
    found: list[Any] = [module for module in model.modules() if isinstance(module, tuple(_SWAPS))]
    if not found:
        raise errors.ArgumentError(
            f"model: a {type(model).__name__} without a RecurrentGemma of transformers in it; with transformers "
            f"{transformers.__version__}, modules of {modeling.__name__} are accelerated"
        )
    done = [module for module in found if isinstance(module, ours.Accelerated)]
    if any(module.griffin_compatible is not compatible for module in done):
        restore(model)
    plan = [
        (module, _accelerated(type(module)))
        for module in found
        if not (compatible and isinstance(module, modeling.RecurrentGemmaAttention)) and not _keeps_forward(module)
    ]
    for module, swapped in plan:
        _check_forward(module, swapped)
    for module, swapped in plan:
        _become(module, swapped)
        module.griffin_compatible = compatible
        if isinstance(module, modeling.RecurrentGemmaModel):
            _number(module)
            # outputs that were recorded by the class's name
            capturing._CAN_RECORD_REGISTRY[module] = module._can_record_outputs
    return model


def restore(model: _Model) -> _Model:
    """Make what ``accelerate`` changed in a model transformers' own again, in place, and return the model."""
    module: Any
    for module in model.modules():
        if isinstance(module, ours.Accelerated):
            for name in ("griffin_compatible", "griffin_said"):
                module.__dict__.pop(name, None)
            if isinstance(module, modeling.RecurrentGemmaRecurrentBlock):
                module.__dict__.pop("layer_idx", None)
            _become(module, _plain(type(module)))
    return model


def _check_version() -> None:
    for cls, expected in _EXPECTED.items():
        found = " ".join(list(inspect.signature(cls.forward).parameters)[1:])  # type: ignore[attr-defined]
        if found != expected:
            raise errors.ArgumentError(
                f"transformers {transformers.__version__}: {cls.__name__}.forward takes ({found.replace(' ', ', ')}), "
                f"expected ({expected.replace(' ', ', ')}) as in the supported versions, {SUPPORTED}"
            )


def _accelerated(cls: type) -> type:
    """The class that takes a class's place: for a subclass, such as fully_shard's, a subclass of that."""
    if issubclass(cls, ours.Accelerated):
        return cls
    if cls in _SWAPS:
        return _SWAPS[cls]
    original = next(base for base in cls.__mro__ if base in _SWAPS)
    if cls.forward is not original.forward:  # type: ignore[attr-defined]
        raise errors.ArgumentError(
            f"{cls.__module__}.{cls.__name__} has a forward of its own in place of {original.__name__}'s in "
            f"transformers {transformers.__version__}; supported are the classes of {SUPPORTED} and their wrappers"
        )
    swapped = type(cls.__name__, (_SWAPS[original], cls), {"__module__": cls.__module__})
    _SWAPS[cls], _BACK[swapped] = swapped, cls
    return swapped


def _plain(cls: type) -> type:
    """The class before ``accelerate``; of one that was wrapped since, a wrapper of that."""
    if cls in _BACK:
        return _BACK[cls]
    bases = tuple(_plain(base) if issubclass(base, ours.Accelerated) else base for base in cls.__bases__)
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, bases, own)


def _keeps_forward(module: nn.Module) -> bool:
    """Whether a module's forward is someone else's and stays."""
    if isinstance(module, ours.Accelerated) or not isinstance(module, _REPLACEABLE):
        return False
    original = next(base for base in type(module).__mro__ if base in _SWAPS)
    return _own_forward(module) is not None or type(module).forward is not original.forward  # type: ignore[attr-defined]


def _own_forward(module: nn.Module) -> Any:
    """The forward that a module has and its class has not; None if it has none."""
    given = module.__dict__.get("_old_forward", module.__dict__.get("forward"))
    return None if getattr(given, "__func__", None) is type(module).forward else given


def _check_forward(module: nn.Module, swapped: type) -> None:
    """Raise ArgumentError where a module's forward is not its class's, so that another class would change nothing."""
    if isinstance(module, ours.Accelerated):
        return
    given = _own_forward(module)
    if given is not None:
        raise errors.ArgumentError(
            f"the forward of a {type(module).__name__} was replaced by {getattr(given, '__qualname__', given)}: "
            "undo that first, or accelerate the model before it"
        )


def _become(module: Any, cls: type) -> None:
    if type(module) is cls:
        return
    if isinstance(module, modeling.RecurrentGemmaRglru):
        module.recurrent_states = None
    if isinstance(module, modeling.RecurrentGemmaRecurrentBlock):
        module.conv1d_state = None
    module.__class__ = cls
    if "_old_forward" in module.__dict__:  # under a hook of the accelerate library
        module._old_forward = types.MethodType(cls.forward, module)  # type: ignore[attr-defined]


def _number(model: Any) -> None:
    """Tell recurrent blocks which layer of a cache is theirs."""
    for index, layer in enumerate(model.layers):
        for module in layer.modules():
            if isinstance(module, modeling.RecurrentGemmaRecurrentBlock):
                module.layer_idx = index
