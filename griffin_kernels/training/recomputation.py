"""Activation checkpointing: which results are kept, and which are computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

import griffin_kernels.functional  # noqa: F401  registers the operators
from griffin_kernels import errors
from griffin_kernels.models.layers import ResidualBlock

_KEPT = (
    "block_diagonal_scan",
    "complex_scan",
    "linear_scan",
    "local_attention",
    "recurrent_block",
    "rg_lru",
    "rg_lru_gated",
)


def save_ops() -> frozenset[torch._ops.OpOverload]:
    """The operators of this package whose results selective checkpointing should keep, as OpOverloads.

    They are those that mix time: their results are a few tensors of x's size, and to have them again takes a pass over
    all steps. Linear layers, norms and gelus around them are computed again. For lists of one's own, such as
    torchtitan's, add them: a list that holds names or OpOverloadPackets matches nothing, and says nothing.
    """
    return frozenset(getattr(torch.ops.griffin_kernels, name).default for name in _KEPT)


def checkpoint_contexts(save: Iterable[torch._ops.OpOverload] | None = None) -> Callable[[], Any]:
    """``context_fn`` for ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``: keep ``save``, redo the rest.

    save: OpOverloads; ``save_ops()`` if None. Raises ArgumentError for anything else, which would match nothing.
    """
    kept = save_ops() if save is None else frozenset(save)
    for op in kept:
        if not isinstance(op, torch._ops.OpOverload):
            raise errors.ArgumentError(f"save: {op} is a {type(op).__name__}, expected an OpOverload (op.default)")
    return functools.partial(create_selective_checkpoint_contexts, functools.partial(_policy, kept))


def _policy(kept: frozenset[torch._ops.OpOverload], ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_blocks(model: nn.Module, save: Iterable[torch._ops.OpOverload] | None = None) -> None:
    """Checkpoint every residual block of a Griffin in training, in place: its inputs are kept, and results of ``save``.

    save: ``save_ops()`` if None; ``()`` keeps nothing, which takes the least memory and a second forward pass.
    Parameters keep their names in state dicts. Do it before FSDP2's ``fully_shard``, and train with ``Griffin.loss`` or
    ``return_cache=False``: a block that is run twice would update a cache twice.

    Raises ArgumentError where there is no such block: transformers' models have ``gradient_checkpointing_enable``.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

    contexts = checkpoint_contexts(save)
    places = [
        (parent, name)
        for parent in model.modules()
        if not isinstance(parent, CheckpointWrapper)
        for name, child in parent.named_children()
        if isinstance(child, ResidualBlock)
    ]
    if not places:
        raise errors.ArgumentError("model: it has no residual block of a Griffin that is not checkpointed yet")
    for parent, name in places:
        wrapped = checkpoint_wrapper(getattr(parent, name), context_fn=contexts)
        setattr(parent, name, wrapped)
