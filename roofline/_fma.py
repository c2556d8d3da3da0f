"""Chains of fused multiply-adds on a CPU: what its vector units reach when nothing comes from memory.

The loop is written in vectors, not left to the vectoriser: as many independent chains as hide the latency of the
instruction, all in registers.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from griffin_kernels.device import Device
from griffin_kernels.ops import _threads

CHAINS = 12
"""Latency times issue rate of x86 cores is 8 to 10; two constants must fit in 16 registers as well."""

STEPS = 20_000
"""Links of a chain in one call: about a tenth of a millisecond."""

# numba has types for some of these, which know nothing of compiled code
_cfunc: Any = numba.cfunc
_pointer: Any = types.CPointer
_cgutils: Any = cgutils

_FLOAT = ir.FloatType()


def lanes(device: Device) -> int:
    """Float32 lanes of the widest vector register."""
    return {"avx512": 16, "avx2": 8, "avx": 8}.get(device.arch.rsplit("-", 1)[-1], 4)


@functools.cache
def _chains(width: int) -> Any:
    """An intrinsic ``(steps, data)``: every chain takes data[0] to itself * data[1] + data[2]; their sum to data[3]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        steps, data = arguments
        vector = ir.VectorType(_FLOAT, width)
        declared = ir.FunctionType(vector, [vector] * 3)
        fma = _cgutils.get_or_insert_function(builder.module, declared, f"llvm.fma.v{width}f32")

        def spread(index: int) -> Any:
            cell = builder.load(builder.gep(data, [ir.Constant(ir.IntType(64), index)]))
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), cell, ir.Constant(ir.IntType(32), 0))
            places = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            return builder.shuffle_vector(one, one, places)

        start, factor, term = (spread(index) for index in range(3))
        # the chains begin apart, or they would be one
        first = [start]
        for _ in range(CHAINS - 1):
            first.append(builder.fadd(first[-1], term))
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(steps.type)
        chains = [builder.phi(vector) for _ in range(CHAINS)]
        links = [builder.call(fma, [chain, factor, term]) for chain in chains]
        fewer = builder.sub(count, ir.Constant(steps.type, 1))
        for phi, begin, again in zip([count, *chains], [steps, *first], [fewer, *links], strict=True):
            phi.add_incoming(begin, before)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed(">", fewer, ir.Constant(steps.type, 0)), loop, after)
        builder.position_at_end(after)
        total = functools.reduce(builder.fadd, links)
        lane = functools.reduce(
            builder.fadd, [builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(width)]
        )
        builder.store(lane, builder.gep(data, [ir.Constant(ir.IntType(64), 3)]))
        return context.get_dummy_value()

    def typed(typing_context: Any, steps: Any, data: Any) -> Any:
        return types.void(types.int64, _pointer(types.float32)), generate

    return intrinsic(typed)


@functools.cache
def _kernel(width: int) -> tuple[Any, Any]:
    chains = _chains(width)

    def kernel(data: Any) -> None:
        chains(STEPS, data)

    function = _cfunc(types.void(_pointer(types.float32)), nopython=True)(kernel)
    # the compiled code lives as long as ``function`` does
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address), function


def chains(device: Device) -> tuple[Callable[[], float], int]:
    """(call, FLOP of one call): runs the chains on all of torch's threads and gives the sum of one thread's."""
    width, threads = lanes(device), torch.get_num_threads()
    compiled, _ = _kernel(width)
    data = array("f", [1.0, 0.5, 0.25, 0.0])

    def call() -> float:
        _threads.run(compiled, data.buffer_info()[0], threads)
        return data[3]

    return call, 2 * CHAINS * width * STEPS * threads
