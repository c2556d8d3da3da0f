"""What the hosts of the Triton scans share, of gates and of matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan._triton_scan import Streams
from griffin_kernels.ops.linear_scan.op import rows_of

Arguments = tuple[int, dict[str, Any], dict[str, Any]]


def scan_arguments(call: Any, outputs: dict[str, Any], bundle: Callable[..., Any] = rows) -> Arguments:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last.

    bundle: of a, and whether time is visited from its end.
    """
    x, a, h0, reset, cu_seqlens, reverse = call
    count = rows_of(x.shape[0], cu_seqlens)
    h_last = host.empty(outputs, "h_last", x, count, x.shape[2], dtype=accumulator(x.dtype))
    h = host.empty(outputs, "h", x, *x.shape, dtype=x.dtype)
    args = {
        "given": Streams(rows(x, reverse), bundle(a, reverse), rows(reset, reverse), h),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "h_last": dense_state(h_last),
        "T": x.shape[1],
    }
    return count, args, {"REVERSE": reverse, "ACC": host.wide(x.dtype)}


def pipelined(launch: Launch, inputs: tuple[Tensor, ...], config: Any, spills: str = "") -> Launch:
    """A launch whose tiles of ``inputs`` are loaded ahead through shared memory."""
    bits = host.load_bits(inputs, launch.tile // (32 * config.num_warps))
    # copies below 4 bytes per thread cannot be asynchronous
    claims = Claims(load_bits=bits, async_copies=config.num_stages > 1 and bits >= 32, spills=spills)
    return dataclasses.replace(launch, num_stages=config.num_stages, claims=claims)
