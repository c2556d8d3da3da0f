"""What the Triton forms of recurrent_block_extend share: the passes of temporal_conv1d_extend, then a kernel of
rg_lru_extend that also gates. Why the convolution is a pass of its own is told in
``recurrent_block/_recurrent_launches.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from griffin_kernels.contract import Case, Variant, from_parts
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block_extend.cost import row_bytes
from griffin_kernels.ops.recurrent_block_extend.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru._lru_launches import Branch
from griffin_kernels.ops.rg_lru_extend.cost import cost, rows_kept
from griffin_kernels.ops.temporal_conv1d._triton_conv import too_many_taps
from griffin_kernels.ops.temporal_conv1d.triton_rows import Config
from griffin_kernels.ops.temporal_conv1d_extend import triton_rows


def steps(call: Call, outputs: dict[str, Any], config: Any, recurrent: Callable[..., Sequence[Step]]) -> list[Step]:
    """Those of the convolution and of ``recurrent``, a variant of rg_lru_extend; fills ``outputs``."""
    convolved: dict[str, Any] = {}
    first = triton_rows.launches(convolution(call), convolved, Config())
    found = {"out": outputs.get("out")}
    then = recurrent(recurrence(call, convolved["y"]), found, config, Branch(call.y, False))
    outputs["out"] = found["out"]
    return [*first, *then]


def around(lru: Variant, summary: str) -> Variant:
    """The block around a Triton variant of rg_lru_extend, with its name, configurations and rank."""
    recurrent: Any = lru.launches

    def traffic(case: Case, config: Any) -> int:
        # the convolution's x and u, and y; windows gathered, read by the convolution, kept from x
        stream = case["B"] * case["T"] * case["D"] * case.bytes_per_element()
        windows = (2 * case["N"] + 2 * rows_kept(case)) * (row_bytes(case) - 4 * case["D"])
        base = cost(case).bytes_total if lru.traffic is None else lru.traffic(case, config)
        total: int = 3 * stream + windows + base
        return total

    return dataclasses.replace(
        lru,
        op="recurrent_block_extend",
        summary=summary,
        run=from_parts,
        reject=lambda case, device, config: too_many_taps(case) or lru.reject(case, device, config),
        launches=lambda call, outputs, config: steps(call, outputs, config, recurrent),
        traffic=traffic,
    )
