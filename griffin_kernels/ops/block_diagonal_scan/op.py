"""block_diagonal_scan: linear_scan with a matrix for every block of n channels. The contract.

    h_t[block] = A_t[block] h_{t-1}[block] + x_t[block]

with the state of a block as a column vector: h_j = sum_k A[j, k] h_k + x_j. Channel block * n + j of x and h is entry j
of its block. n = 1 is linear_scan.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops._arguments import Offsets, Resets, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.block_diagonal_scan.cost import cost, make_case
from griffin_kernels.ops.linear_scan import op as plain

Matrices = Annotated[Tensor, TensorSpec("B T H n n")]


class Call(NamedTuple):
    """The arguments of block_diagonal_scan; see ``functional/block_diagonal_scan.py``."""

    x: Sequence
    a: Matrices
    h0: State = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False


def check(call: Any) -> None:
    """What the tensor specs cannot express: the blocks make up D, and the layout of packed sequences."""
    (blocks, size), width = call.a.shape[2:4], call[0].shape[2]
    if blocks * size != width:
        raise errors.ShapeError(f"a has {blocks} blocks of {size} channels, H * n = {blocks * size}, but D is {width}")
    plain.check(call)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one step at a time. Returns h [B,T,D] and h_last [B or N, D]."""
    return plain.recurrence(call, lambda a, h: blockwise("bhjk,bhk->bhj", a, h))


def blockwise(products: str, a: Tensor, states: Tensor) -> Tensor:
    """Matrices [B,H,n,n] times the vectors that states [B,D] are made of; products: as ``torch.einsum`` has them."""
    return torch.einsum(products, a, states.reshape(a.shape[:-1])).reshape(states.shape)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x; A = s (I - 2 u u^T) (I - 2 v v^T) with unit u, v and s in [0.9, 0.999], or nearer to 1.

    That is a random rotation, shrunk: not symmetric, so that a transposed A is seen, and with all singular values s,
    so that long products neither vanish nor grow.
    """
    draw = Draws(case, device, seed)
    batch, time, width, blocks, size = (case[dim] for dim in ("B", "T", "D", "H", "n"))
    x = draw.normal(batch, time, width)
    u, v = torch.nn.functional.normalize(draw.normal(2, batch, time, blocks, size), dim=-1)
    low, high = (0.999, 1.0) if "near_one" in case.data else (0.9, 0.999)
    shrink = draw.uniform(batch, time, blocks, 1, 1) * (high - low) + low
    across = 4 * (u * v).sum(-1)[..., None, None] * u[..., :, None] * v[..., None, :]
    a = (
        torch.eye(size, dtype=torch.float32, device="cpu")
        - 2 * u[..., :, None] * u[..., None, :]
        - 2 * v[..., :, None] * v[..., None, :]
        + across
    )
    return {"x": draw.placed(x), "a": draw.placed(shrink * a)} | plain.states_and_flags(draw)


def tolerance(case: Case) -> Tolerance:
    """The bounds of linear_scan, with n roundings in a step where it has one."""
    # A step sums n products and x in the accumulator: n roundings of its unit u, each relative to |A| |h|, which add up
    # like sqrt(n) u where they are independent. A shrinks by s <= 0.999 (by no more than 0.1% where s is near 1), so
    # an error is remembered for up to min(T, 1000) steps. Chunked forms multiply matrices of chunks too: twice the
    # roundings. Blocks whose state is large have large errors in all their channels, small ones among them: the worst
    # element has 8 times the room of the norm. The output adds its own rounding.
    memory = min(case["T"], 1000) ** 0.5
    unit, rounding = roundings(case.torch_dtype)
    once = 4 * unit * case["n"] ** 0.5 * memory
    return Tolerance(rel_norm=once + rounding, worst=8 * once + 2 * rounding)


def case_of(call: Any, op: str = "block_diagonal_scan") -> Case:
    """The case that a real call is, of block_diagonal_scan or of its backward."""
    batch, time, blocks, size, _ = call.a.shape
    rows = plain.rows_of(batch, call.cu_seqlens)
    flags = plain.flags_of(call)
    return make_case(batch, time, blocks, size, dtype_name(call.a.dtype), flags, rows=rows, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by block_diagonal_scan and its backward."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 6, 4, dtype=d, tag="smoke") for d in DTYPE_BYTES]
    smoke.append(case(2, 21, 3, 16, tag="smoke", data=("h0",)))
    edge = [
        case(1, 1, 1, 2, tag="edge", data=("h0",)),
        case(3, 40, 5, 1, tag="edge", data=("h0",)),
        case(2, 67, 13, 2, tag="edge", flags=("reset",), data=("h0",)),
        case(2, 50, 7, 8, tag="edge", flags=("reset", "reverse"), data=("h0", "strided"), dtype="bfloat16"),
        case(1, 97, 5, 3, tag="edge", data=("h0", "near_one")),
        case(2, 33, 11, 16, tag="edge", flags=("reverse",), data=("h0", "near_one")),
        case(1, 97, 9, 4, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence")),
        case(1, 97, 9, 4, rows=3, tag="edge", flags=("reset", "packed", "reverse"), data=("h0",), dtype="float16"),
    ]
    # No published model has this layer: the shapes are a Hawk 1.3B recurrent block, whose width is 2560 and training
    # length 2048, with its diagonal transition replaced by a block-diagonal one.
    small = "no published model: Hawk 1.3B's width and length with blocks of 4 (block-diagonal state space models)"
    large = "no published model: Hawk 1.3B's width and length with blocks of 16 (block-diagonal state space models)"
    bench = [
        case(1, 2048, 640, 4, where="cpu", source=small),
        case(1, 2048, 160, 16, where="cpu", source=large, thorough=True),
        case(1, 2048, 640, 4, where="cpu", dtype="bfloat16", source=small, thorough=True),
        case(1, 2048, 160, 16, where="cpu", dtype="bfloat16", source=large, thorough=True),
    ]
    for batch in (8, 1):
        bench.append(case(batch, 2048, 160, 16, where="gpu", dtype="bfloat16", source=large))
        bench.append(case(batch, 2048, 640, 4, where="gpu", dtype="bfloat16", source=small))
    bench.append(case(8, 2048, 640, 4, where="gpu", dtype="float32", source=small, thorough=True))
    return (*smoke, *edge, *bench)


OP = Op(
    name="block_diagonal_scan",
    summary="h_t = A_t h_{t-1} + x_t, A_t made of H blocks of n x n",
    call=Call,
    outputs={"h": TensorSpec("B T D"), "h_last": TensorSpec("N D", "accumulator")},
    reference=reference,
    cases=cases("block_diagonal_scan"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=("n",),
    free_dims=("N", "H"),
    check=check,
)
