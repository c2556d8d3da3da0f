"""causal-conv1d, the kernels that Mamba's code calls; the gradient shares what is said here.

It takes [B, D, T] of any layout whose channels or steps are neighbours, so that ours goes in without a copy. Documents
are told by a number for each step; a state, given or wanted, excludes them: the state after a call with documents,
which it does not give, is not timed.
Source: github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and csrc/causal_conv1d.cpp.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _peer
from griffin_kernels.ops.temporal_conv1d.op import new_state


def function(name: str) -> Any:
    """What the package's interface calls ``name``."""
    return getattr(importlib.import_module("causal_conv1d.causal_conv1d_interface"), name)


def channels_last(values: Tensor | None) -> Tensor | None:
    """[B,T,D] as [B,D,T], its channels still neighbours."""
    return None if values is None else values.contiguous().transpose(1, 2)


def arguments(given: Any) -> Inputs:
    """x, weight, sequence numbers and state as the package wants them. Weights are kept as [D, K].

    seq_idx: int32 [B,T], a number for the document of each step; None where all steps follow each other.
    """
    segment_pos, cu_seqlens, time = given.segment_pos, given.cu_seqlens, given.x.shape[1]
    begins = torch.zeros(given.x.shape[:2], dtype=torch.int32, device=given.x.device)
    if segment_pos is not None:
        begins += segment_pos == 0
    if cu_seqlens is not None:
        starts = cu_seqlens[:-1].long()
        begins[0, starts[starts < time]] = 1
    alone = segment_pos is None and cu_seqlens is None
    return {
        "x": channels_last(given.x),
        "weight": given.weight.t().contiguous(),
        "seq_idx": None if alone else begins.cumsum(1, dtype=torch.int32),
        "initial_states": channels_last(given.state),
    }


def prepare(given: Any) -> Inputs:
    found = arguments(given)
    bias = None if given.bias is None else given.bias.contiguous()
    return found | {"bias": bias, "return_final_states": found["seq_idx"] is None, "activation": given.activation}


def call(**arguments: Any) -> Any:
    return function("causal_conv1d_fn")(**arguments)


def finish(results: Any, given: Any) -> tuple[Tensor | None, ...]:
    if isinstance(results, tuple):
        y, after = results
        return y.transpose(1, 2), after.transpose(1, 2)
    after = new_state(given.x, given.state, given.segment_pos, given.cu_seqlens, given.weight.shape[0])
    return results.transpose(1, 2), after


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    if (reason := _peer.problem(case, device, ("float32", "bfloat16", "float16"), amd=True)) is not None:
        return reason
    if case["K"] not in (2, 3, 4):
        return f"has 2 to 4 taps, and not {case['K']}"
    if "residual" in case.flags:
        return "adds no residual"
    if "gelu" in case.flags:
        return "knows silu, and not gelu"
    # channels come in vectors; one step does not tell which of its strides is that of channels
    if case["D"] % 8 or case["T"] == 1:
        return "needs channels in multiples of 8 and more than one step"
    documents = {"segmented", "packed"} & set(case.flags)
    return "takes no state together with documents" if documents and "state" in case.data else None


VARIANT = Variant(
    op="temporal_conv1d",
    name="peer.causal_conv1d",
    summary="the causal-conv1d package",
    reject=reject,
    baseline=True,
    adapter=Adapter(prepare, call, finish),
    package="causal_conv1d",
)
