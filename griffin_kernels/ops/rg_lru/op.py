"""rg_lru: the gated linear recurrence of Griffin and Hawk, gate products included. The contract.

    i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r)         block-diagonal W: y_hj = sum_k x_hk W_hkj
    log a = -8 softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

At a *reset* a counts as 0 and the multiplier sqrt(1 - a^2) as 1: a document begins with its own input at full weight.
Which steps are resets:

    segment_pos is given        where it is 0, whether h0 is given or not
    neither it nor h0           the first step of each sequence, a batch row or a packed one: it is a fresh sequence
    h0 alone                    none: the call continues

Both published codes ask for positions at every call, and number tokens from 0 where no state is cached.
A packed sequence never sees its neighbour's state, whatever its positions say.

The square root's gradient is clipped at 1000: d sqrt(v) = dv / sqrt(max(4 v, 1e-6)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import ROWS, Case, Inputs, Op, TensorSpec, Tolerance, accumulator, dtype_name
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.rg_lru.cost import FLAGS, cost, make_case

DECAY = 8.0
"""log a = -DECAY softplus(a_param) r."""

GATES = (
    "a_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrence_gate_weight",
    "recurrence_gate_bias",
)
"""Parameters in the order of the arguments."""

MAX_SQRT_GRADIENT = 1000.0
"""Largest derivative of the square root in the multiplier."""


def check(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    """What the tensor specs cannot express: blocks fill the width, packed sequences fill time."""
    check_blocks(x, input_gate_bias)
    if cu_seqlens is not None:
        scan.check_cu_seqlens(cu_seqlens, batch=x.shape[0], total=x.shape[1])


def check_blocks(x: Tensor, input_gate_bias: Tensor) -> None:
    """Raise ShapeError where the gates' blocks [H, n] do not make the channels of x."""
    blocks, block_width = input_gate_bias.shape
    if blocks * block_width != x.shape[-1]:
        raise errors.ShapeError(
            f"input_gate_weight has {blocks} blocks of width {block_width}, which make {blocks * block_width} "
            f"channels; x has {x.shape[-1]}"
        )


def is_fresh(h0: Tensor | None, segment_pos: Tensor | None) -> bool:
    """Whether the first step of each sequence, and no other, is a reset."""
    return h0 is None and segment_pos is None


def resets(x: Tensor, h0: Tensor | None, segment_pos: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """bool [B,T] or [1,T], True where a document begins; None where no step is a reset. Reads no value on the host."""
    if segment_pos is not None:
        return segment_pos == 0
    if h0 is not None:
        return None
    # an empty sequence begins where the next one does, or at T, which is cut off
    begins = torch.zeros(x.shape[1] + 1, dtype=torch.bool, device=x.device)
    if cu_seqlens is None:
        begins[:1] = True
    else:
        begins[cu_seqlens[:-1].long()] = True
    return begins[None, :-1]


class ClippedSqrt(torch.autograd.Function):
    """sqrt(v), v >= 0, with a derivative of at most MAX_SQRT_GRADIENT."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.sqrt(v)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, dm: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return dm * sqrt_derivative(v)


def sqrt_derivative(v: Tensor) -> Tensor:
    """1 / (2 sqrt(v)), at most MAX_SQRT_GRADIENT."""
    return (4.0 * v).clamp_min(MAX_SQRT_GRADIENT**-2).rsqrt()


def reference(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file. Returns y [B,T,D] and h_last [B or N, D]. Differentiable."""
    blocks = x.reshape(*x.shape[:2], *input_gate_bias.shape)  # [B, T, H, n]
    i = torch.sigmoid(torch.einsum("bthk,hkj->bthj", blocks, input_gate_weight) + input_gate_bias).flatten(2)
    r = torch.sigmoid(torch.einsum("bthk,hkj->bthj", blocks, recurrence_gate_weight) + recurrence_gate_bias).flatten(2)
    log_a = -DECAY * torch.logaddexp(a_param, torch.zeros_like(a_param)) * r
    a = torch.exp(log_a)
    multiplier: Tensor = ClippedSqrt.apply(-torch.expm1(2 * log_a))  # type: ignore[no-untyped-call]
    reset = resets(x, h0, segment_pos, cu_seqlens)
    if reset is not None:
        a = torch.where(reset[..., None], 0.0, a)
        multiplier = torch.where(reset[..., None], 1.0, multiplier)
        reset = reset.expand(x.shape[:2])
    return scan.reference(scan.Call(multiplier * i * x, a, h0, reset, cu_seqlens))


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x, gates and a_param as the published code initialises them, small biases.

    With ``near_one`` in the case's data, a_param reaches down to -30: 1 - a^2 goes far below the clipping threshold.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    batch, time, width, rows, blocks, n = (case[name] for name in ("B", "T", "D", "N", "H", "n"))

    def place(values: Tensor) -> Tensor:
        values = values.to(device, case.torch_dtype)
        if "strided" in case.data and values.dim() == 3:
            # every second channel of a buffer whose outer dimensions are swapped: no stride is 1, what lies between is
            # nobody's
            wide = values.new_full((values.shape[1], values.shape[0], 2 * values.shape[2]), math.nan)
            view = wide.transpose(0, 1)[..., ::2]
            view.copy_(values)
            return view
        return values

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") * std

    radius = 0.9 + 0.099 * torch.rand(width, generator=generator, dtype=torch.float32, device="cpu")
    a_param = torch.log(torch.expm1(-torch.log(radius)))
    if "near_one" in case.data:
        a_param = -30 + 26 * torch.rand(width, generator=generator, dtype=torch.float32, device="cpu")
    inputs: Inputs = {
        "x": place(normal(batch, time, width)),
        "a_param": place(a_param),
        "input_gate_weight": place(normal(blocks, n, n, std=n**-0.5)),
        "input_gate_bias": place(normal(blocks, n, std=0.3)),
        "recurrence_gate_weight": place(normal(blocks, n, n, std=n**-0.5)),
        "recurrence_gate_bias": place(normal(blocks, n, std=0.3)),
        "h0": None,
        "segment_pos": None,
        "cu_seqlens": None,
    }
    if "h0" in case.data:
        inputs["h0"] = normal(rows, width).to(device, accumulator(case.torch_dtype))
    if "packed" in case.flags:
        cuts = (
            torch.randint(0, time + 1, (rows - 1,), generator=generator, dtype=torch.int64, device="cpu").sort().values
        )
        if "empty_sequence" in case.data:
            cuts[-1] = time
        inputs["cu_seqlens"] = torch.tensor([0, *cuts.tolist(), time], dtype=torch.int32, device=device)
    if "segmented" in case.flags:
        inputs["segment_pos"] = make_segment_pos(batch, time, generator).to(device)
    return inputs


def make_segment_pos(batch: int, time: int, generator: torch.Generator) -> Tensor:
    """int64 [batch, time]: several documents a row; odd rows go on with an earlier one, at position 3."""
    starts = torch.rand(batch, time, generator=generator, dtype=torch.float32, device="cpu") < min(0.1, 4 / time)
    rows = []
    for row, begins in enumerate(starts.tolist()):
        position, positions = 3 if row % 2 else 0, []
        for begin in begins:
            position = 0 if begin else position
            positions.append(position)
            position += 1
        rows.append(positions)
    return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(batch, time)


def gate_rounding(case: Case) -> float:
    """Relative error of what the gates multiply, from rounding of their arguments."""
    # A gate's argument z = x W + b is of order 1 and may be rounded to the data's dtype, as matrix products of that
    # dtype give it; in float32 it carries sqrt(n) roundings. sigmoid passes on at most a quarter of |dz|, which
    # relative to sigmoid(z) is below |dz|.
    unit: float = torch.finfo(case.torch_dtype).eps / 2
    return unit if case.dtype in ("bfloat16", "float16") else unit * case["n"] ** 0.5


def tolerance(case: Case) -> Tolerance:
    """The scan's own bounds, plus the gates' rounding carried through it."""
    # i enters once. r enters log a and sqrt(1 - a^2): a relative error e of log a changes a state that remembers
    # 1 / |log a| steps by about e, and the multiplier by e / 2. The product multiplier * i * x may be rounded to the
    # data's dtype too. All are independent from step to step, so that they average out: 2 in the norm; a single
    # element can see |z| = 4 and an |x| whose neighbours are small: 16.
    # Between the products and the scan lie some eight elementwise steps, each with its rounding.
    gate = gate_rounding(case)
    unit = torch.finfo(accumulator(case.torch_dtype)).eps / 2
    one_way = scan.tolerance(case)
    return Tolerance(one_way.rel_norm + 2 * gate + 8 * unit, one_way.worst + 16 * gate + 8 * unit)


def case_of(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Case:
    """The case that a real call is."""
    return call_case("rg_lru", x, input_gate_bias, segment_pos, cu_seqlens)


def call_case(
    op: str, x: Tensor, input_gate_bias: Tensor, segment_pos: Tensor | None, cu_seqlens: Tensor | None
) -> Case:
    """The case of a call of rg_lru or its backward."""
    batch, time, width = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    present = {"segmented": segment_pos is not None, "packed": cu_seqlens is not None}
    flags = [flag for flag in FLAGS if present[flag]]
    return make_case(
        batch, time, width, input_gate_bias.shape[0], dtype_name(x.dtype), flags, rows=rows, op=op, tag="call"
    )


def cases(op: str) -> tuple[Case, ...]:
    """The table of cases, shared by rg_lru and its backward."""

    def case(*sizes: int, **facts: object) -> Case:
        return make_case(*sizes, op=op, **facts)  # type: ignore[arg-type]

    smoke = [case(2, 37, 24, 3, dtype=d, tag="smoke") for d in ("float32", "bfloat16", "float16", "float64")]
    edge = [
        case(1, 1, 1, 1, tag="edge", data=("h0",)),
        case(2, 67, 131, 1, tag="edge", data=("strided", "h0")),
        case(3, 50, 24, 3, tag="edge", data=("near_one", "h0")),
        case(2, 67, 24, 24, tag="edge", flags=("segmented",), data=("h0",)),
        case(2, 50, 40, 4, tag="edge", flags=("segmented",), dtype="bfloat16", data=("strided",)),
        case(1, 97, 40, 4, rows=4, tag="edge", flags=("packed",)),
        case(1, 97, 40, 4, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence")),
        case(1, 97, 40, 4, rows=3, tag="edge", flags=("segmented", "packed"), data=("h0",)),
    ]
    rg2b = "RecurrentGemma-2B, lru_width 2560, 10 blocks"
    rg9b = "RecurrentGemma-9B, lru_width 4096, 16 blocks"
    paper = "Hawk and Griffin 1.3B, D_RNN 2560, 16 blocks, trained at T 2048"
    bench = [
        case(1, 2048, 2560, 10, where="cpu", source=rg2b),
        case(1, 1024, 4096, 16, where="cpu", source=rg9b, thorough=True),
        case(1, 2048, 2560, 10, where="cpu", dtype="bfloat16", source=rg2b, thorough=op == "rg_lru_bwd"),
        case(1, 2048, 2560, 16, where="cpu", source=paper, thorough=True),
        case(1, 2048, 2560, 10, where="cpu", flags=("segmented",), source=f"{rg2b}, documents", thorough=True),
        case(8, 256, 2560, 10, where="cpu", source=rg2b, thorough=True),
    ]
    if op == "rg_lru":
        small = "Hawk and Griffin 100M, a prompt"
        bench.append(case(1, 1024, 1024, 16, where="cpu", flags=("segmented",), source=small, thorough=True))
    for width, blocks, source in ((2560, 10, rg2b), (4096, 16, rg9b)):
        for batch in (1, 8):
            for time in (2048, 8192):
                facts = {"where": "gpu", "dtype": "bfloat16", "source": source}
                bench.append(case(batch, time, width, blocks, thorough=width == 4096, **facts))
    bench.append(case(8, 2048, 2560, 16, where="gpu", dtype="bfloat16", source=paper))
    bench.append(case(8, 2048, 2560, 10, where="gpu", dtype="float32", source=rg2b, thorough=True))
    bench.append(
        case(8, 2048, 2560, 16, where="gpu", dtype="bfloat16", flags=("segmented",), source=f"{paper}, documents")
    )
    return (*smoke, *edge, *bench)


INPUTS = {
    "x": TensorSpec("B T D"),
    "a_param": TensorSpec("D"),
    "input_gate_weight": TensorSpec("H n n"),
    "input_gate_bias": TensorSpec("H n"),
    "recurrence_gate_weight": TensorSpec("H n n"),
    "recurrence_gate_bias": TensorSpec("H n"),
    "h0": TensorSpec("N D", "state", optional=True),
    "segment_pos": TensorSpec("B T", "int64", optional=True, least=0),
    "cu_seqlens": TensorSpec("N+1", "int32", optional=True),
}

OP = Op(
    name="rg_lru",
    summary="gates of x by block-diagonal products, then h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t",
    inputs=INPUTS,
    outputs={"y": TensorSpec("B T D"), "h_last": TensorSpec("N D", "accumulator")},
    reference=reference,
    cases=cases("rg_lru"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    free_dims=("n", "N"),
    check=check,
)
