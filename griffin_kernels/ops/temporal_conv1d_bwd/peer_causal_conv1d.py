"""The gradient of causal-conv1d; see temporal_conv1d/_conv_peer.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant
from griffin_kernels.ops._peer import Saved
from griffin_kernels.ops.temporal_conv1d import _conv_peer
from griffin_kernels.ops.temporal_conv1d.peer_causal_conv1d import VARIANT as FORWARD


def prepare(given: Any) -> Inputs:
    """What the forward pass keeps. Its bias does not matter, but that there is one."""
    arguments = _conv_peer.arguments(given)
    with_state = arguments["seq_idx"] is None
    saved = Saved(
        arguments["x"],
        arguments["weight"],
        arguments["weight"].new_zeros(arguments["weight"].shape[0]),
        arguments["seq_idx"],
        arguments["initial_states"],
        activation=False,
        return_final_states=with_state,
        return_dinitial_states=arguments["initial_states"] is not None,
    )
    upstream = (_conv_peer.channels_last(given.dy), _conv_peer.channels_last(given.dnew_state))
    return {"saved": saved, "upstream": upstream if with_state else upstream[:1]}


def call(saved: Saved, upstream: tuple[Tensor | None, ...]) -> Any:
    return _conv_peer.function("CausalConv1dFn").backward(saved, *upstream)


def finish(gradients: Any, given: Any) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, _, dstate, *_ = gradients
    dtype = given.x.dtype
    return (
        dx.transpose(1, 2),
        dweight.t().to(dtype),
        dbias.to(dtype),
        None if given.state is None else dstate.transpose(1, 2),
    )


ADAPTER = Adapter(prepare, call, finish)


VARIANT = Variant(
    op="temporal_conv1d_bwd",
    name=FORWARD.name,
    summary=FORWARD.summary,
    reject=FORWARD.reject,
    baseline=True,
    adapter=ADAPTER,
    package=FORWARD.package,
)
