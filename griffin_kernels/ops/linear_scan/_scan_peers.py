"""linear_scan and its backward for two peers that scan each row from a zero state.

accelerated-scan: time last, [B, D, T]; gates as they are. Its warp form needs a power of two of steps. Both forms
multiply and add in the data's dtype, in bfloat16 too.
Source: github.com/proger/accelerated-scan at 866fa4c, accelerated_scan/warp.py, warp.cuh and scalar.py.

flash-linear-attention: HGRN's recurrence h_t = exp(g_t) h_{t-1} + x_t, [B, T, D]. g = log a is float32: in bfloat16 it
would miss small changes of a, and costs the chunked form 6% less traffic (of 32 bytes per element, 2).
Source: github.com/fla-org/flash-linear-attention at bc3b101, fla/ops/hgrn/chunk.py and fused_recurrent.py.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, Variant, from_parts
from griffin_kernels.device import Device
from griffin_kernels.ops import _peer
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import _scan_eager

DTYPES = ("float32", "bfloat16", "float16")

SLACK = 64.0
"""Multiples of the tolerance for what carries in bfloat16: its 2^-9 for each of some 1000 steps that are remembered is
6% in the norm, if roundings are independent, and the tolerance there is 0.2%."""

WARP_STEPS = (32, 65536)
"""Fewest and most steps of accelerated-scan's warp form."""


def function(module: str, name: str) -> Any:
    """What a peer's module calls ``name``; imported at the first call, which may build CUDA code."""
    return getattr(importlib.import_module(module), name)


def gates(given: Any) -> Tensor:
    """a [B,T,D], zero at resets."""
    a: Tensor = given.a
    return _scan_eager.unless(given.reset, a)


def time_last(values: Tensor) -> Tensor:
    """[B,T,D] -> [B,D,T]."""
    return values.transpose(1, 2).contiguous()


def log_gates(given: Any) -> Tensor:
    """log a [B,T,D] in float32, minus infinity where no earlier state enters."""
    return gates(given).float().log()


def upstream(given: Any) -> Tensor:
    """dh [B,T,D] with the gradient of the last state added to its step."""
    dh: Tensor = given.dh
    dh_last: Tensor | None = given.dh_last
    if dh_last is None:
        return dh.contiguous()
    dh = dh.clone(memory_format=torch.contiguous_format)
    dh[:, -1] += dh_last.to(dh.dtype)
    return dh


def finish_gradients(dx: Tensor, da: Tensor, given: Any) -> tuple[Tensor, Tensor, None]:
    """dx and da [B,T,D] in the data's dtype; a gate at a reset has no gradient."""
    dtype = given.dh.dtype
    return dx.to(dtype), _scan_eager.unless(given.reset, da.to(dtype)), None


def time_last_variant(kind: str, module: str, words: str, reject: Callable[[Case, Device, Any], str | None]) -> Variant:
    """A form of accelerated-scan: the ``scan`` of its module. Layouts are not timed."""

    def prepare(given: Any) -> Inputs:
        return {"gates": time_last(gates(given)), "tokens": time_last(given.x)}

    def call(gates: Tensor, tokens: Tensor) -> Any:
        return function(module, "scan")(gates, tokens)

    def finish(h: Tensor, given: Any) -> tuple[Tensor, Tensor, None]:
        return h.transpose(1, 2).contiguous(), h[..., -1].to(torch.float32, copy=True), None

    return Variant(
        op="linear_scan",
        name=f"peer.accelerated_scan_{kind}",
        summary=f"accelerated-scan's {words}",
        reject=reject,
        baseline=True,
        adapter=Adapter(prepare, call, finish),
        package="accelerated_scan",
        slack=SLACK,
    )


def time_last_gradient(forward: Variant, module: str, saved: Callable[[Tensor, Tensor], _peer.Saved]) -> Variant:
    """Its gradient: the ``Scan`` of the module. saved: what that keeps of gates and states [B,D,T]."""

    def prepare(given: Any) -> Inputs:
        kept = saved(time_last(gates(given)), time_last(given.h))
        return {"saved": kept, "dh": time_last(upstream(given))}

    def call(saved: _peer.Saved, dh: Tensor) -> Any:
        return function(module, "Scan").backward(saved, dh)

    def finish(gradients: Any, given: Any) -> tuple[Tensor, Tensor, None]:
        da, dx = (values.transpose(1, 2).contiguous() for values in gradients)
        return finish_gradients(dx, da, given)

    return backward_of(forward, from_parts, adapter=Adapter(prepare, call, finish))


def log_gate_variant(kind: str, module: str, name: str, words: str) -> Variant:
    """A form of flash-linear-attention's HGRN: ``name`` of its module. Making logarithms of gates is not timed."""

    def prepare(given: Any) -> Inputs:
        return {"x": given.x.contiguous(), "g": log_gates(given)}

    def call(x: Tensor, g: Tensor) -> Any:
        return function(module, name)(x, g, output_final_state=True)

    def finish(results: Any, given: Any) -> tuple[Tensor, Tensor, None]:
        h, h_last = results
        return h, h_last.float(), None

    return Variant(
        op="linear_scan",
        name=f"peer.fla_hgrn_{kind}",
        summary=f"flash-linear-attention's {words}",
        reject=functools.partial(problem, amd=True, positive=True),
        baseline=True,
        adapter=Adapter(prepare, call, finish),
        package="fla",
    )


def log_gate_gradient(forward: Variant, module: str, name: str, **facts: Any) -> Variant:
    """Its gradient: the Function ``name`` of the module. Making of that of log a one of a is not timed.

    facts: what the Function keeps besides log a, h and the initial state.
    """

    def prepare(given: Any) -> Inputs:
        saved = _peer.Saved(log_gates(given), given.h.contiguous(), None, **facts)
        return {"saved": saved, "dh": upstream(given)}

    def call(saved: _peer.Saved, dh: Tensor) -> Any:
        return function(module, name).backward(saved, dh, None)

    def finish(gradients: Any, given: Any) -> tuple[Tensor, Tensor, None]:
        dx, dg, *_ = gradients
        return finish_gradients(dx, dg / given.a.float(), given)

    return backward_of(forward, from_parts, adapter=Adapter(prepare, call, finish))


def problem(case: Case, device: Device, config: Any, *, amd: bool = False, positive: bool = False) -> str | None:
    """Why a plain scan of rows cannot be what is asked for. positive: gates are taken as logarithms."""
    if (reason := _peer.problem(case, device, DTYPES, amd=amd)) is not None:
        return reason
    if "h0" in case.data:
        return "begins with a zero state"
    if other := [flag for flag in case.flags if flag != "reset"]:
        return f"has no form for {' and '.join(other)}"
    if "wild" in case.data:
        return "multiplies gates with each other: NaN where such a product overflows"
    return "takes the logarithm of gates" if positive and {"signed", "zeros"} & set(case.data) else None


def warp_problem(case: Case, device: Device, config: Any) -> str | None:
    """Why accelerated-scan's warp form cannot run."""
    least, most = WARP_STEPS
    steps = case["T"]
    if steps & (steps - 1) or not least <= steps <= most:
        return f"needs a power of two of steps, {least} to {most}, and not {steps}"
    return problem(case, device, config)
