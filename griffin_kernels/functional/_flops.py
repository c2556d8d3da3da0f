"""FLOP formulas of the ops for torch.utils.flop_counter, from what the roofline says that a call costs.

All operations count, those of tensor cores and those of vectors alike: a multiply-add is two, sigmoid and exp are none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from griffin_kernels import catalog


def _formula(name: str) -> Callable[..., int]:
    op = catalog.op(name)

    def flops(*args: Any, out_val: Any = None) -> int:
        cost = op.cost(op.case_of(op.call(*args)))
        return int(cost.tensor_flops + cost.vector_flops)

    return flops


def know(name: str) -> None:
    """Register an op's formula, where the counter is loaded: loading it takes longer than this package.

    A counter that is at work has a copy of the formulas that there were when it was made.
    """
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    packet = getattr(torch.ops.griffin_kernels, name)
    if packet not in counter.flop_registry:
        counter.register_flop_formula(packet, get_raw=True)(_formula(name))
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, counter._FlopCounterMode):
            mode.counter.flop_registry.setdefault(packet, counter.flop_registry[packet])
