"""What the hosts of rg_lru_extend's Triton kernels share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.ops._triton import pools
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru_extend.cost import STATE_BYTES, rows_kept
from griffin_kernels.ops.rg_lru_extend.op import Call, gate_call


def arguments(
    call: Call,
    outputs: dict[str, Any],
    config: Any,
    branch: lru.Branch | None,
    products: tuple[Tensor, ...] | None = None,
) -> dict[str, Any]:
    """Arguments of every kernel here; allocates what they write. products: x W_i and x W_r if given."""
    args = lru.scanning(gate_call(call), outputs, config, branch, products)
    return args | {"pool": pools.pool(call.states, call.slots, call.keep)}


def traffic(case: Case, streams: int, chunk: int = 0, again: int = 0) -> int:
    """As rg_lru's, with the states that are read and kept, and their indices."""
    states = (case["N"] + rows_kept(case)) * case["D"] * STATE_BYTES
    return lru.traffic(case, streams, chunk, again) + states + 8 * (case["N"] + case["B"] * case["T"])
