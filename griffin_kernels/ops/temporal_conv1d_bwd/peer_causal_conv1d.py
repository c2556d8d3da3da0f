"""The gradient of causal-conv1d; see temporal_conv1d/peer_causal_conv1d.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs
from griffin_kernels.ops._peer import Saved
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import peer_causal_conv1d as forward


def prepare(given: Any) -> Inputs:
    """What the forward pass keeps."""
    x, weight, documents, state = forward.arguments(given).values()
    kept = (x, weight, None if given.bias is None else given.bias.contiguous(), documents, state)
    wanted = {"return_final_states": documents is None, "return_dinitial_states": state is not None}
    saved = Saved(*kept, activation=given.activation is not None, **wanted)
    upstream = (forward.channels_last(given.dy), forward.channels_last(given.dnew_state))
    return {"saved": saved, "upstream": upstream if documents is None else upstream[:1]}


def call(saved: Saved, upstream: tuple[Tensor | None, ...]) -> Any:
    return forward.function("CausalConv1dFn").backward(saved, *upstream)


def finish(gradients: Any, given: Any) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, _, dstate, *_ = gradients
    dstate = None if given.state is None else dstate.transpose(1, 2)
    dbias = None if given.bias is None else dbias.to(given.bias.dtype)
    return dx.transpose(1, 2), dweight.t().to(given.weight.dtype), dbias, dstate


VARIANT = backward_of(forward.VARIANT, adapter=Adapter(prepare, call, finish))
