"""What each parameter of a model is, and what follows from it: weight decay, initialisation, precision.

A role follows from the type of the module that a parameter belongs to, so that fused names, transformers' names, LoRA
and FSDP2, which changes modules' classes to subclasses, make no difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from griffin_kernels import errors
from griffin_kernels.models.griffin import Griffin
from griffin_kernels.nn import RGLRU, TemporalConv1D
from griffin_kernels.nn.drawing import draw_decay, draw_gate, draw_linear, draw_taps

Role = Literal["decay", "gate", "bias", "norm", "conv", "embedding", "matrix", "other"]

_LAST = (".linear_out", ".out", ".down", ".o_proj", ".down_proj")
"""Ends of the names of matrices whose results are added to the residual stream: ours and transformers'."""


class _Found(NamedTuple):
    """A parameter, the first module that owns it, that module's full name, and its role."""

    parameter: nn.Parameter
    module: nn.Module
    place: str
    role: Role


def _role(module: nn.Module, name: str, parameter: nn.Parameter) -> Role:
    own = dict(module.named_parameters(recurse=False))
    if name == "bias" or name.endswith("_bias"):
        return "bias"
    if not own.keys().isdisjoint({"a_param", "recurrent_param"}):  # an RG-LRU, ours or transformers'
        return "gate" if name.endswith("_gate_weight") else "decay"
    if isinstance(module, nn.Embedding):
        return "embedding"
    convolution = isinstance(module, nn.Conv1d) and module.groups == module.in_channels > 1
    if convolution or isinstance(module, TemporalConv1D):
        return "conv"
    if any(re.search(r"Norm(\dd)?$", kind.__name__) for kind in type(module).__mro__):
        return "norm"
    return "matrix" if parameter.ndim >= 2 else "other"


def _found(model: nn.Module) -> Iterator[_Found]:
    """Every parameter once, in the model's order; one shared with an embedding is that embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    seen = set()
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                role = "embedding" if id(parameter) in embeddings else _role(module, name, parameter)
                yield _Found(parameter, module, place, role)


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_embeddings: bool = False, decay_gates: bool = False
) -> list[dict[str, Any]]:
    """Two groups for an optimizer, of parameters that decay and of those that do not; both always, in this order.

    Weight decay pulls towards 0, which is a good place for the matrices of linear layers, and for these it is not:

    - ``a_param``: at 0, a = exp(-8 r log 2), so that nothing is remembered for more than a few tokens.
    - biases, those of the gates [H, n] too, which rules by number of dims miss: few, and offsets need their size.
    - norms' weights: they are offsets from 1 here, and factors elsewhere; decay would only fight the matrices' scale.
    - the temporal convolution: K numbers a channel begin at a tenth of a matrix's scale and feed a recurrence that has
      no norm of its own.
    - the gates' matrices, unless ``decay_gates``: the RecurrentGemma report (arXiv 2404.07839) has no decay on any
      parameter of an RG-LRU.
    - embeddings, unless ``decay_embeddings``: rows of words that do not occur in a batch would shrink with no gradient
      against it.

    model: any module; Griffin, transformers' RecurrentGemma, networks with ``griffin_kernels.nn`` inside. What has two
    dims or more and is none of the above decays. Frozen parameters are in no group, shared ones in one.

    Raises ArgumentError for a weight_decay below 0, and where no parameter is trained.
    """
    if not 0 <= weight_decay < float("inf"):
        raise errors.ArgumentError(f"weight_decay is {weight_decay}, expected a finite number, at least 0")
    decaying = {"matrix"} | ({"embedding"} if decay_embeddings else set()) | ({"gate"} if decay_gates else set())
    trained = [found for found in _found(model) if found.parameter.requires_grad]
    if not trained:
        raise errors.ArgumentError("model: no parameter requires a gradient")
    yes = [found.parameter for found in trained if found.role in decaying]
    no = [found.parameter for found in trained if found.role not in decaying]
    return [{"params": yes, "weight_decay": weight_decay}, {"params": no, "weight_decay": 0.0}]


def float32_modules(model: nn.Module) -> list[nn.Module]:
    """The RG-LRUs of a Griffin, or of a network of ``griffin_kernels.nn``, whose parameters should stay float32.

    bfloat16 rounds ``a_param`` by up to 3% of -log a, and an optimizer's step is smaller than its spacing. With FSDP2,
    wrap each by itself, without a mixed precision policy, before the blocks: ``for part in float32_modules(model):
    fully_shard(part)``. A model in bfloat16: ``part.float()``. They are some 1% of a model's parameters.
    """
    return [module for module in model.modules() if isinstance(module, RGLRU)]


@torch.no_grad()
def initialise(model: nn.Module, *, layers: int | None = None) -> None:
    """Draw every parameter anew as google-deepmind/recurrentgemma does, in place.

    Linear layers are normal with variance 1 / inputs, 2 / layers of that where the result is added to the residual
    stream; embeddings 1 / width; gates 1 / n; the convolution 0.01 / K; biases and norms 0; decays have
    exp(-softplus(a_param))^2 uniform in [0.9^2, 0.999^2].

    transformers' own initialisation of RecurrentGemma differs: gates' matrices have 0.01 / n, and everything that is
    not in a recurrent or attention block, the MLPs and the embedding, 0.01 / K whatever its width.

    model: a Griffin, transformers' RecurrentGemma, or a network with an RG-LRU. layers: residual blocks; what the
    model's configuration says if None. Raises ArgumentError where it says nothing, where there is no RG-LRU and the
    model is no Griffin, or for a module of which nothing is known; the model then is as it was.
    """
    if isinstance(model, Griffin):
        model.reset_parameters()
        return
    every = list(_found(model))
    if not any(found.role == "decay" for found in every):
        raise errors.ArgumentError("model: it has no RG-LRU, so nothing is known of how it begins")
    config = getattr(model, "config", None)
    if layers is None:
        layers = getattr(config, "num_hidden_layers", getattr(config, "num_layers", None))
    if not isinstance(layers, int) or layers < 1:
        told = "pass how many residual blocks there are"
        raise errors.ArgumentError(f"layers is {layers}, and model has no config that says it: {told}")
    for draw in [_drawing(found, layers) for found in every]:
        draw()


def _drawing(found: _Found, layers: int) -> Callable[[], object]:
    """What draws a parameter, and with it the bias of its module."""
    parameter, module, place, role = found
    if role == "bias":
        return partial(nn.init.zeros_, parameter)
    if role == "decay":
        return partial(draw_decay, parameter)
    if role == "gate":
        return partial(draw_gate, parameter)
    if role == "conv":  # [K, D], or [D, 1, K]
        return partial(draw_taps, parameter, parameter.shape[0 if isinstance(module, TemporalConv1D) else -1])
    if role == "embedding":
        return partial(nn.init.normal_, parameter, std=parameter.shape[1] ** -0.5)
    if isinstance(module, nn.Linear):
        return partial(draw_linear, module, 2 / layers if f".{place}".endswith(_LAST) else 1.0)
    reset: Callable[[], object] | None = getattr(module, "reset_parameters", None)
    if role == "norm" and reset is not None:
        return reset
    if role == "norm" and type(module).__name__.startswith("RecurrentGemma"):
        return partial(nn.init.zeros_, parameter)  # an offset from 1
    raise errors.ArgumentError(f"model: nothing is known of how {place}, a {type(module).__name__}, begins")
