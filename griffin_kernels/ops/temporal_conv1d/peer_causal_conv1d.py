"""causal-conv1d; see _conv_peer.py. The state after a call with documents, which it does not give, is not timed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.temporal_conv1d import _conv_peer
from griffin_kernels.ops.temporal_conv1d.op import new_state


def prepare(given: Any) -> Inputs:
    arguments = _conv_peer.arguments(given)
    return arguments | {"bias": given.bias.contiguous(), "return_final_states": arguments["seq_idx"] is None}


def call(**arguments: Any) -> Any:
    return _conv_peer.function("causal_conv1d_fn")(**arguments)


def finish(results: Any, given: Any) -> tuple[Tensor | None, ...]:
    if isinstance(results, tuple):
        y, after = results
        return y.transpose(1, 2), after.transpose(1, 2)
    after = new_state(given.x, given.state, given.segment_pos, given.cu_seqlens, given.weight.shape[0])
    return results.transpose(1, 2), after


ADAPTER = Adapter(prepare, call, finish)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    return _conv_peer.problem(case, device)


VARIANT = Variant(
    op="temporal_conv1d",
    name="peer.causal_conv1d",
    summary="the causal-conv1d package",
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
    package=_conv_peer.PACKAGE,
)
