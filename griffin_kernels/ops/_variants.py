"""Ops and variants that follow from others: a gradient that goes about it as its forward pass does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from griffin_kernels.contract import Op, Variant, from_parts


def gradient_of(forward: Any, **own: Any) -> Op:
    """The op of the gradient of the one in module ``forward``, whose table of cases and dims it has.

    own: everything else, ``check`` included, which may be the forward's.
    """
    op: Op = forward.OP
    name = f"{op.name}_bwd"
    usual = {"cases": forward.cases(name), "case_of": functools.partial(forward.case_of, op=name), "check": None}
    return dataclasses.replace(op, name=name, forward=op.name, **usual | own)


def backward_of(forward: Variant, run: Callable[..., Any] = from_parts, **facts: Any) -> Variant:
    """The variant of the same name of the op's gradient: summary, configurations, rank and refusals are ``forward``'s.

    run: of the gradient, where that is not its launches or adapter. facts: what is its own; its traffic is the ideal
    unless they say otherwise.
    """
    usual: dict[str, Any] = {"op": f"{forward.op}_bwd", "run": run, "traffic": None}
    return dataclasses.replace(forward, **usual | facts)


def through(scan: Callable[..., Any], core: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` of a scan that is ``scan(core, call)`` with the configuration as the core's last argument."""
    return lambda call, config: scan(functools.partial(core, config=config), call)
