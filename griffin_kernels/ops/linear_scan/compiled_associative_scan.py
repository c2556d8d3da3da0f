"""Baseline: PyTorch's own associative scan over (a, x) pairs, through torch.compile.

    (A, X) o (a, x) = (A a, a X + x)

What a user gets from torch without a kernel of their own. On a GPU Inductor never splits a scan of pairs over several
programs along time; on a CPU the generic form runs log2(T) sliced passes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _compiled
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager

Pair = tuple[Tensor, Tensor]


def combine(left: Pair, right: Pair) -> Pair:
    """One pair that covers the steps of both."""
    return left[0] * right[0], right[0] * left[1] + right[1]


def combine_cut(left: Pair, right: Pair) -> Pair:
    """Likewise; a gate of zero cuts, and what is left of it then does not even count as a factor."""
    stop = right[0] == 0.0
    both, after = combine(left, right)
    return torch.where(stop, right[0], both), torch.where(stop, right[1], after)


def whole(x: Tensor, a: Tensor) -> Tensor:
    """Steps that all follow each other."""
    return associative_scan(combine, (a, x), dim=1, combine_mode=_mode(x))[1]


def in_parts(x: Tensor, a: Tensor) -> Tensor:
    """Steps with cuts among them."""
    return associative_scan(combine_cut, (a, x), dim=1, combine_mode=_mode(x))[1]


def _mode(x: Tensor) -> str:
    """On a GPU one Triton kernel; on a CPU sliced passes, log2(T) deep."""
    return "generic" if x.device.type == "cpu" else "pointwise"


def core(x: Tensor, a: Tensor, cut: Tensor | None, config: NoConfig) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] and a zero state; see ``_scan_eager`` for cut."""
    if x.shape[1] == 1:  # the operator refuses a scan of one step
        return x.clone()
    scan, gates = (whole, a) if cut is None else (in_parts, _scan_eager.unless(cut, a))
    # every shape is compiled for itself: symbolic sizes take twice as long to compile
    return _compiled.compiled(scan, key=(x.shape, x.dtype), dynamic=False)(x.contiguous(), gates.contiguous())  # type: ignore[no-any-return]


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    if "wild" in case.data:
        return "multiplies gates with each other as its users do: NaN where such a product overflows"
    return _compiled.problem(device)


VARIANT = Variant(
    op="linear_scan",
    name="compiled.associative_scan",
    summary="torch's associative_scan under torch.compile",
    run=through(_scan_eager.forward_and_product, core),
    config=NoConfig,
    reject=reject,
    baseline=True,
)
