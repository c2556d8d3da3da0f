"""temporal_conv1d and its backward by causal-conv1d, the kernels that Mamba's code calls.

It takes [B, D, T] of any layout whose channels or steps are neighbours, so that ours goes in without a copy. Documents
are told by a number for each step; a state, given or wanted, excludes them.
Source: github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and csrc/causal_conv1d.cpp.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs
from griffin_kernels.device import Device
from griffin_kernels.ops import _peer

PACKAGE = "causal_conv1d"
DTYPES = ("float32", "bfloat16", "float16")
TAPS = (2, 3, 4)
CHANNELS = 8
"""Channels come in vectors of so many."""


def function(name: str) -> Any:
    """What the package's interface calls ``name``."""
    return getattr(importlib.import_module(f"{PACKAGE}.causal_conv1d_interface"), name)


def channels_last(values: Tensor | None) -> Tensor | None:
    """[B,T,D] as [B,D,T], its channels still neighbours."""
    return None if values is None else values.contiguous().transpose(1, 2)


def documents(given: Any) -> Tensor | None:
    """int32 [B,T]: a number for the document of each step; None where all steps follow each other."""
    segment_pos, cu_seqlens, time = given.segment_pos, given.cu_seqlens, given.x.shape[1]
    if segment_pos is None and cu_seqlens is None:
        return None
    begins = torch.zeros(given.x.shape[:2], dtype=torch.int32, device=given.x.device)
    if segment_pos is not None:
        begins += segment_pos == 0
    if cu_seqlens is not None:
        starts = cu_seqlens[:-1].long()
        begins[0, starts[starts < time]] = 1
    return begins.cumsum(1, dtype=torch.int32)


def arguments(given: Any) -> Inputs:
    """x, weight, sequence numbers and state as the package wants them. Weights are kept as [D, K]."""
    return {
        "x": channels_last(given.x),
        "weight": given.weight.t().contiguous(),
        "seq_idx": documents(given),
        "initial_states": channels_last(given.state),
    }


def problem(case: Case, device: Device) -> str | None:
    """Why it cannot do what is asked for."""
    if (reason := _peer.problem(case, device, DTYPES, amd=True)) is not None:
        return reason
    if case["K"] not in TAPS:
        return f"has 2 to 4 taps, and not {case['K']}"
    if case["D"] % CHANNELS or case["T"] == 1:  # one step does not tell which of its strides is that of channels
        return f"needs channels in multiples of {CHANNELS} and more than one step"
    return "takes no state together with documents" if case.flags and "state" in case.data else None
