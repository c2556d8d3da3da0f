"""Where tests run a variant: native and eager ones on the CPU, Triton on a GPU or else in its interpreter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch
from griffin_kernels.contract import Variant
from griffin_kernels.device import Device

INTERPRETER = Device("interpreter", "Triton interpreter", "python", 1, 0, 0, warp_size=32)
"""The device that variants see when tests run Triton kernels on the CPU with TRITON_INTERPRET=1."""


def device_of(backend: str) -> Device:
    """The device on which tests run variants of a backend."""
    if torch.cuda.is_available() and backend != "numba":
        return device.gpu(0)
    return INTERPRETER if backend == "triton" else device.cpu()


def runs_somewhere(variant: Variant, dtype: str) -> bool:
    """False for a variant that refuses every small case of ``dtype`` where tests run.

    flex_attention has no backward on a CPU, and numba.amx no float32.
    """
    where = INTERPRETER if variant.backend == "triton" else device.cpu()
    cases = [case for case in catalog.op(variant.op).cases_tagged("smoke", "edge") if case.dtype == dtype]
    return any(variant.reject(case, where, variant.config()) is None for case in cases)


@contextlib.contextmanager
def running(variant: Variant) -> Iterator[None]:
    """Public calls on CPU tensors run this variant of its op; Triton's then take the interpreter for their device."""
    where = INTERPRETER if variant.backend == "triton" else device.cpu()
    with mock.patch.object(dispatch.devices, "detect", lambda *_: where):
        griffin_kernels.refresh()
        try:
            with griffin_kernels.use(variant=variant.key):
                yield
        finally:
            griffin_kernels.refresh()
