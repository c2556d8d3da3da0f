"""linear_scan: h_t = a_t * h_{t-1} + x_t over time, per channel. The contract.

log_a: a holds log a, and a = exp(log a) in the accumulator's dtype. convex: x_t is multiplied by 1 - a_t, which is
-expm1(log a) of logarithms. a of one step is that of every step, and of one row that of every row. with_a_prod: the
product of each sequence's gates too, 0 where a reset lies in it: h_last of the scan with x = 0 and h0 = 1.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops._arguments import Gates, Offsets, Resets, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan import wild
from griffin_kernels.ops.linear_scan.cost import FLAGS, MINOR_FLAGS, cost, make_case

MODULUS = 1 + 2.0**-17
"""Complex gates with |a| up to this count as within 1: rounding puts them there, and a million leave no dtype."""


class Call(NamedTuple):
    """The arguments of linear_scan; see ``functional/_scans.py``."""

    x: Sequence
    a: Gates
    h0: State = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False
    log_a: bool = False
    convex: bool = False
    with_a_prod: bool = False


def check_scan(call: Any, name: str = "linear_scan") -> None:
    """What the tensor specs cannot express: what a may have one of, and the layout of packed sequences.

    name: of the function that is called.
    """
    (batch, time, _), (rows, steps, _) = call[0].shape, call.a.shape
    if not (steps == time or steps == 1) or not (rows == batch or rows == steps == 1):
        wanted = f"[{batch}, {time}, D], [{batch}, 1, D] or [1, 1, D]"
        raise errors.ShapeError(f"{name}: a has shape {list(call.a.shape)}, expected {wanted}")
    check(call)


def check(call: Any) -> None:
    """The layout of packed sequences."""
    if call.cu_seqlens is not None:
        check_cu_seqlens(call.cu_seqlens, batch=call[0].shape[0], total=call[0].shape[1])


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, total: int, *, name: str = "cu_seqlens", dim: str = "T") -> None:
    """Raise ShapeError or ArgumentError unless ``cu_seqlens`` [N+1] splits the first steps of ``total``, batch of one.

    name, dim: what the argument and its steps are called. Values are read only on the CPU: reading them on a GPU would
    wait for the device at every call.
    """
    if batch != 1:
        raise errors.ShapeError(f"{name} needs packed inputs of batch 1, x has batch {batch}")
    if cu_seqlens.shape[0] < 2:
        raise errors.ShapeError(f"{name} must hold N+1 >= 2 offsets, it holds {cu_seqlens.shape[0]}")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] > total:
        raise errors.ArgumentError(
            f"{name} must run from 0 to {dim}={total} at most, it runs from {offsets[0]} to {offsets[-1]}"
        )
    if any(later < earlier for earlier, later in itertools.pairwise(offsets)):
        raise errors.ArgumentError(f"{name} must not decrease, it is {offsets[:8]}{'...' if len(offsets) > 8 else ''}")


def steps(time: int, cu_seqlens: Tensor | None, reverse: bool) -> Iterator[tuple[int, int, bool]]:
    """(t, row of h0, starts a sequence) in the order in which the recurrence visits time."""
    bounds = [0, time] if cu_seqlens is None else cu_seqlens.tolist()
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        order = range(end - 1, start - 1, -1) if reverse else range(start, end)
        for position, t in enumerate(order):
            yield t, row, position == 0


def gates_and_shares(call: Any) -> tuple[Tensor, Tensor | None]:
    """(a, what x is multiplied by or None): of a's shape, from what a call holds."""
    a = call.a.exp() if call.log_a else call.a
    if not call.convex:
        return a, None
    return a, -call.a.expm1() if call.log_a else 1 - call.a


def through_options(call: Any, a: Tensor, share: Tensor | None, g: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
    """dx and da of a gradient's call from those of the plain scan of its gates, [B,T,D].

    a, share: ``gates_and_shares``.
    """
    if share is not None:
        da = da - g * call.x
    if call.log_a:
        da = da * a
    return g if share is None else share * g, da.sum_to_size(call.a.shape)


def is_constant(call: Any) -> bool:
    """Whether a is the same in all steps, or rows, of a call of the scan or of its gradient."""
    return bool(call.a.ndim == 3 and call.a.shape != call[0].shape)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """The recurrence as written, one step at a time. Returns h [B,T,D], and h_last and a_prod [B or N, D]."""
    a, share = gates_and_shares(call)
    plain = call._replace(a=a.expand(call.x.shape), x=call.x if share is None else share * call.x)
    h, h_last = recurrence(plain, torch.mul)
    if not call.with_a_prod:
        return h, h_last, None
    _, product = recurrence(plain._replace(x=torch.zeros_like(call.x), h0=torch.ones_like(h_last)), torch.mul)
    return h, h_last, product


def recurrence(call: Any, times: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``reference`` of a scan whose step is ``times(a_t, h)`` plus x_t, with h [B,D]."""
    x, a, h0, reset, cu_seqlens, reverse = call[:6]
    batch, time, width = x.shape
    packed = cu_seqlens is not None
    rows = rows_of(batch, cu_seqlens)
    # a sequence without steps ends where it began
    start = x.new_zeros(rows, width) if h0 is None else h0
    last = [start[row : row + 1] for row in range(rows)] if packed else [start]
    h: list[Tensor] = [x.new_empty(0)] * time
    for t, row, _ in steps(time, cu_seqlens, reverse):
        before = last[row if packed else 0]  # [B, D]
        if reset is not None:
            before = torch.where(reset[:, t, None], 0.0, before)
        h[t] = times(a[:, t], before) + x[:, t]
        last[row if packed else 0] = h[t]
    return torch.stack(h, dim=1) if time else torch.empty_like(x), torch.cat(last)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x; a in [0.9, 0.999], where RG-LRU is initialised, or as the case's ``data`` says.

    Where it is constant, it is one for each row with ``by_row``, and one for all rows without.
    """
    draw = Draws(case, device, seed)
    batch, time, width = case["B"], case["T"], case["D"]
    x = draw.normal(batch, time, width)
    shape = (batch, time, width)
    if "constant" in case.flags:
        shape = (batch if "by_row" in case.data else 1, 1, width)
    a = draw.uniform(*shape) * 0.099 + 0.9
    if "signed" in case.data:
        a = torch.where(draw.uniform(*shape) < 0.5, -a, a)
    if "zeros" in case.data:
        a = torch.where(draw.uniform(*shape) < 0.2, 0.0, a)
    given = states_and_flags(draw)
    if "wild" in case.data:
        drawn = wild.gates_and_inputs(case.torch_dtype, batch, time, width, draw.generator)
        a, x = (in_time(case, values) for values in drawn)
        if given["h0"] is not None:
            starts, _ = visits(case, given["cu_seqlens"])
            given["h0"] = draw.wide(wild.initial(case.torch_dtype, time, width, starts))
    options = {"log_a": "log" in case.flags, "convex": "convex" in case.flags, "with_a_prod": "a_prod" in case.flags}
    a = a.log() if options["log_a"] else a
    return {"x": draw.placed(x), "a": draw.placed(a, parameter=True)} | given | options


def states_and_flags(draw: Draws) -> dict[str, Any]:
    """Inputs of a scan besides x and a, as the case's data and flags ask for."""
    case = draw.case
    return {
        "h0": draw.wide(draw.normal(case["N"], case["D"])) if "h0" in case.data else None,
        "reset": (draw.uniform(case["B"], case["T"]) < 0.15).to(draw.device) if "reset" in case.flags else None,
        "cu_seqlens": draw.offsets() if "packed" in case.flags else None,
        "reverse": "reverse" in case.flags,
    }


def in_time(case: Case, values: Tensor) -> Tensor:
    """[B,T,D] in visiting order, as time runs."""
    return values.flip(1) if "reverse" in case.flags else values


def visits(case: Case, cu_seqlens: Tensor | None) -> tuple[list[int], list[int]]:
    """(first step, step after the last one) of every row of h0, counted in visiting order."""
    time = case["T"]
    if cu_seqlens is None:
        return [0] * case["N"], [time] * case["N"]
    offsets = cu_seqlens.tolist()
    if "reverse" in case.flags:
        return [time - end for end in offsets[1:]], [time - start for start in offsets[:-1]]
    return offsets[:-1], offsets[1:]


def tolerance(case: Case) -> Tolerance:
    """Bounds that follow from rounding, with a factor for how errors add up."""
    # The carry is rounded to the accumulator's unit u once per step, and an error decays with a. With a <= 0.999 it is
    # remembered for up to min(T, 1000) steps, so it grows like sqrt(1000) u = 32 u if roundings are independent and
    # like 1000 u at worst. A chunked or tree order multiplies products of a too: twice the roundings.
    # The output adds its own rounding: 2^-9 bf16, 2^-12 fp16, relative to the element. Wild gates have exact answers.
    # The exponential of a logarithm has an error of its own, three units with its argument's rounding; where gates are
    # constant, all steps have the same one, so that it grows like the number of steps.
    steps = min(case["T"], 1000)
    memory = steps**0.5
    if "log" in case.flags:
        memory = max(4 * memory, steps) if "constant" in case.flags else 4 * memory
    unit, rounding = roundings(case.torch_dtype)
    return Tolerance(rel_norm=4 * unit * memory + rounding, worst=32 * unit * memory + 2 * rounding)


def case_of(call: Any, op: str = "linear_scan") -> Case:
    """The case that a real call is, of linear_scan or of its backward."""
    batch, time, width = call[0].shape
    rows = rows_of(batch, call.cu_seqlens)
    flags = flags_of(call) + [flag for flag in MINOR_FLAGS if minor_flags_of(call)[flag]]
    return make_case(batch, time, width, dtype_name(call[0].dtype), flags, rows=rows, op=op, tag="call")


def flags_of(call: Any) -> list[str]:
    """The flags that calls of all scans have."""
    present = {"reset": call.reset is not None, "packed": call.cu_seqlens is not None, "reverse": call.reverse}
    return [flag for flag in FLAGS if present.get(flag)]


def minor_flags_of(call: Any) -> dict[str, bool]:
    """Whether a call of linear_scan, or of its gradient, has each of MINOR_FLAGS."""
    return {
        "log": call.log_a,
        "convex": call.convex,
        "constant": is_constant(call),
        "wide": call.a.dtype != call[0].dtype,
        "a_prod": getattr(call, "with_a_prod", False),
    }


def rows_of(batch: int, cu_seqlens: Tensor | None) -> int:
    """N: rows of h0, that is batch entries or packed sequences."""
    return batch if cu_seqlens is None else cu_seqlens.shape[0] - 1


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by linear_scan and its backward."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 24, dtype=d, tag="smoke") for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, tag="smoke", data=("h0",)))
    edge = [
        case(1, 1, 1, tag="edge", data=("h0",)),
        case(3, 1, 70, tag="edge"),
        case(1, 130, 5, tag="edge", data=("h0", "signed")),
        case(2, 67, 131, tag="edge", data=("strided", "h0")),
        case(2, 67, 131, tag="edge", flags=("reset",), data=("h0", "zeros")),
        case(2, 50, 33, tag="edge", flags=("reverse",), data=("h0",)),
        case(2, 50, 33, tag="edge", flags=("reset", "reverse"), data=("h0", "strided"), dtype="bfloat16"),
        case(1, 97, 40, rows=4, tag="edge", flags=("packed",), data=("h0",)),
        case(1, 97, 40, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence")),
        case(1, 97, 40, rows=3, tag="edge", flags=("packed", "reverse"), data=("h0",)),
        case(1, 97, 40, rows=3, tag="edge", flags=("reset", "packed", "reverse"), data=("h0",), dtype="float16"),
        case(2, 70, 13, tag="edge", data=("h0", "wild")),
        case(1, 70, 13, rows=3, tag="edge", flags=("packed", "reverse"), data=("h0", "wild"), dtype="bfloat16"),
        case(2, 70, 13, tag="edge", flags=("reset",), data=("h0", "wild"), dtype="float16"),
    ]
    edge += _option_cases(case)
    if op != "linear_scan":  # the gradient of the product is that of a scan
        edge = [case for case in edge if "a_prod" not in case.flags]
    rg2b, rg9b = "RecurrentGemma-2B, lru_width 2560", "RecurrentGemma-9B, lru_width 4096"
    hawk = "Hawk 1.3B, D_RNN 2560, trained at T 2048"
    bench = [
        case(1, 2048, 2560, where="cpu", source=f"{rg2b}; {hawk}"),
        case(1, 4096, 2560, where="cpu", source=rg2b, thorough=True),
        case(8, 512, 2560, where="cpu", source=rg2b, thorough=True),
        case(1, 2048, 4096, where="cpu", source=rg9b, thorough=True),
        case(1, 2048, 2560, where="cpu", dtype="bfloat16", source=rg2b),
        case(1, 2048, 2560, where="cpu", flags=("reset",), source=f"{rg2b}, packed documents", thorough=True),
    ]
    for dtype in ("bfloat16", "float32"):
        for width, source in ((2560, f"{rg2b}; {hawk}"), (4096, rg9b)):
            for batch in (1, 8):
                for time in (2048, 8192):
                    slow = dtype == "float32" or width == 4096
                    bench.append(case(batch, time, width, where="gpu", dtype=dtype, source=source, thorough=slow))
    bench.append(case(1, 2**20, 2560, where="gpu", dtype="bfloat16", source=f"{rg2b}, a million steps", thorough=True))
    bench.append(
        case(8, 2048, 2560, where="gpu", dtype="bfloat16", flags=("reset",), source=f"{hawk}, packed documents")
    )
    return (*smoke, *edge, *bench)


def _option_cases(case: Callable[..., BenchCase]) -> list[BenchCase]:
    """Edge cases of every option alone and beside others."""
    edge = functools.partial(case, tag="edge")
    bf16, fp16, fp64 = "bfloat16", "float16", "float64"
    found = [edge(2, 37, 24, flags=(flag,)) for flag in MINOR_FLAGS if flag != "wide"]
    found += [edge(2, 37, 24, dtype=dtype, flags=("wide",), data=("h0",)) for dtype in (bf16, fp16)]
    found += [edge(1, 37, 24, dtype=fp64, flags=MINOR_FLAGS[:3], data=("h0",))]
    # of every step
    found += [
        edge(2, 50, 33, flags=("reset", "log"), data=("h0", "zeros")),
        edge(2, 67, 131, dtype=bf16, flags=("log", "wide"), data=("h0", "strided")),
        edge(2, 50, 33, flags=("reverse", "log", "convex"), data=("h0", "zeros", "strided")),
        edge(2, 50, 33, flags=("reset", "convex"), data=("h0", "signed", "zeros")),
        edge(1, 97, 40, rows=3, dtype=bf16, flags=("packed", "reverse", "convex", "wide"), data=("h0",)),
        edge(1, 70, 13, rows=3, flags=("packed", "reverse", "convex"), data=("h0", "wild")),
    ]
    # the same in all steps
    found += [
        edge(2, 67, 131, flags=("constant",), data=("h0", "by_row", "strided", "signed")),
        edge(2, 67, 131, dtype=bf16, flags=("constant", "wide"), data=("h0", "strided")),
        edge(2, 50, 33, flags=("reset", "reverse", "log", "constant"), data=("h0",)),
        edge(1, 97, 40, rows=4, flags=("packed", "convex", "constant"), data=("h0", "empty_sequence")),
        edge(1, 97, 40, rows=3, dtype=fp16, flags=("packed", "reverse", "log", "convex", "constant"), data=("h0",)),
        edge(3, 1, 70, flags=("log", "convex", "constant"), data=("h0",)),
    ]
    # with the product of gates
    found += [
        edge(1, 97, 40, rows=4, flags=("packed", "a_prod"), data=("h0", "signed", "empty_sequence")),
        edge(1, 97, 40, rows=3, flags=("reset", "packed", "reverse", "log", "a_prod"), data=("h0",)),
        edge(2, 67, 131, flags=("constant", "a_prod"), data=("h0", "strided", "by_row")),
        edge(2, 50, 33, dtype=bf16, flags=("log", "convex", "constant", "wide", "a_prod"), data=("h0",)),
    ]
    return found


OP = Op(
    name="linear_scan",
    summary="h_t = a_t * h_{t-1} + x_t",
    call=Call,
    outputs={
        "h": TensorSpec("B T D"),
        "h_last": TensorSpec("N D", "accumulator"),
        "a_prod": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    cases=cases("linear_scan"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    free_dims=("N",),
    minor_flags=MINOR_FLAGS,
    check=check_scan,
)
