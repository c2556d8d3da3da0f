"""Runs scans of two channels for each complex number on calls of pairs. Shared by all forms of complex_scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from griffin_kernels.contract import Variant, ordinary
from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.complex_scan.op import flat, paired
from griffin_kernels.ops.linear_scan import _scan_eager

Run = Callable[..., tuple[Tensor | None, ...]]


def on_pairs(run: Run) -> Run:
    """``run`` of a variant whose scan has flat states and outputs [..., 2 D], but for the gradient of a."""

    def of_pairs(call: Any, config: Any) -> tuple[Tensor | None, ...]:
        outputs = run(flat(call), config)
        return tuple(out if out is None or out.dim() == 4 else ordinary(paired(out)) for out in outputs)

    of_pairs.__module__ = run.__module__
    return of_pairs


def eager(core: Callable[..., Tensor]) -> tuple[Run, Run]:
    """``run`` of an eager variant and of its gradient, from a core of gates; see ``_scan_eager``."""
    pairs = _scan_eager.on_numbers(core)
    return on_pairs(through(_scan_eager.forward, pairs)), on_pairs(through(_scan_eager.backward, pairs))


def gradient_of(form: Any) -> Variant:
    """The variant of the gradient that has the core of an eager form of linear_scan; form: the forward's module."""
    return backward_of(form.VARIANT, eager(form.core)[1])
