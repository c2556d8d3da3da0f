"""Baseline: PyTorch's own associative scan over (a, x) pairs, through torch.compile.

    (A, X) o (a, x) = (A a, a X + x)

What a user gets from torch without a kernel of their own. On a GPU Inductor never splits a scan of pairs over several
programs along time; on a CPU the generic form runs log2(T) sliced passes.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable

import torch
import torch._dynamo.config
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.linear_scan import _eager

MAX_SHAPES = 512

Pair = tuple[Tensor, Tensor]


def combine(left: Pair, right: Pair) -> Pair:
    """One pair that covers the steps of both."""
    return left[0] * right[0], right[0] * left[1] + right[1]


@functools.cache
def _compiled(device_type: str) -> Callable[[Tensor, Tensor], Tensor]:
    mode = "pointwise" if device_type == "cuda" else "generic"

    def scan(x: Tensor, a: Tensor) -> Tensor:
        return associative_scan(combine, (a, x), dim=1, combine_mode=mode)[1]

    return torch.compile(scan, fullgraph=True, dynamic=False)


def core(x: Tensor, a: Tensor) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] and a zero state."""
    if x.shape[1] == 1:  # the operator refuses a scan of one step
        return x.clone()
    # every shape is compiled for itself; past dynamo's default of 8 it would refuse
    with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=MAX_SHAPES):
        return _compiled(x.device.type)(x.contiguous(), a.contiguous())


def run(
    x: Tensor,
    a: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor]:
    return _eager.forward(core, x, a, h0, reset, cu_seqlens, reverse)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    if device.kind == "interpreter":
        return "torch.compile does not run in Triton's interpreter"
    if device.kind == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "torch.compile needs a C++ compiler on a CPU; none was found (c++, g++, clang++)"
    return None


VARIANT = Variant(
    op="linear_scan",
    name="compiled.associative_scan",
    summary="torch's associative_scan under torch.compile",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
