"""The backward pass of a model, kernel by kernel: what autograd runs for each kernel of ``work``. Needs no PyTorch.

``gradient_kernels`` answers for a kernel of the forward pass: an operation of this package by its ``_bwd`` operation,
any other by its name. One that has no entry here is an error: a step that counts nothing would look fast.
tests/roofline/test_training_work.py holds FLOPs against torch's counter and bytes against traces of the modules.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from griffin_kernels.case import DTYPE_BYTES, BenchCase, Cost, Pass
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.ops.gated_gelu import cost as gate
from griffin_kernels.ops.geglu_bwd import cost as geglu
from griffin_kernels.ops.rms_norm import cost as norm_forward
from griffin_kernels.ops.rms_norm_bwd import cost as norm
from griffin_kernels.ops.temporal_conv1d.cost import GELU_FLOPS, GELU_SPECIALS
from roofline.work import Kernel, glue, is_operation

GELU_SLOPE_FLOPS = 8
"""Of the derivative of gelu's tanh form, beside gelu itself; as recurrent_block_bwd counts it."""


@dataclass(frozen=True)
class StepSizes:
    """What a training step is of: ``batch`` sequences of ``seq`` tokens. gpu: as ``work.part_kernels`` takes it."""

    config: GriffinConfig
    batch: int
    seq: int
    dtype: str
    gpu: bool

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    @property
    def size(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def stream(self) -> int:
        """Elements of the residual stream."""
        return self.tokens * self.config.width


def gradient_kernels(sizes: StepSizes, forward: Kernel) -> tuple[Kernel, ...]:
    """What the backward pass runs for a kernel of the forward pass; KeyError for one that it does not know."""
    if forward.case is not None:
        return (_operation(forward, forward.case),)
    return tuple(GRADIENTS["product" if forward.rows else forward.name](sizes, forward))


def _operation(forward: Kernel, case: BenchCase) -> Kernel:
    """The gradient of an operation of this package, which is one too: at its own cost."""
    op = f"{case.op}_bwd"
    gradient = msgspec.structs.replace(case, op=op)
    cost: Cost = importlib.import_module(f"griffin_kernels.ops.{op}.cost").cost(gradient)
    return Kernel(f"{forward.name}_bwd", cost, parameter_bytes=forward.parameter_bytes, case=gradient)


def product(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """dX = dY W^T and dW = X^T dY, the bias' sum, and what is added where two products had the same input."""
    rows, size, cost = forward.rows, sizes.size, forward.cost
    inner, columns = (cost.bytes_read - forward.parameter_bytes) // (rows * size), cost.bytes_written // (rows * size)
    given, received, matrix = rows * columns * size, rows * inner * size, inner * columns * size
    name = forward.name
    flops = cost.tensor_flops
    yield Kernel(f"{name} dX", Cost(given + matrix, received, flops), parameter_bytes=matrix, rows=rows)
    yield Kernel(f"{name} dW", Cost(given + received, matrix, flops), rows=rows)
    if forward.parameter_bytes > matrix:
        yield glue(f"{name} bias", Pass.elementwise(rows * columns, size, 0, vector=1))
    if name == "linear_x":  # linear_y had the same input
        yield glue("sum", _sum(sizes, rows * inner))


def _sum(sizes: StepSizes, elements: int) -> Pass:
    return Pass.elementwise(elements, 2 * sizes.size, sizes.size, vector=1)


def _casts(sizes: StepSizes, elements: int, read: int, written: int) -> list[Pass]:
    return [Pass.elementwise(elements, read, written)] if read != written else []


def _norm(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """Of a sum, with what else reaches the sum."""
    flags = ("residual",) if forward.name == "add_norm" else ()
    case = norm_forward.make_case(1, sizes.tokens, sizes.config.width, sizes.dtype, flags)
    yield glue(forward.name, Pass(norm.cost(case)))


def _residual(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """The two ways into the stream are added up."""
    yield glue("residual", _sum(sizes, sizes.stream))


def _gelu_gate(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """An operation as in the forward pass, or PyTorch's own."""
    hidden, size = sizes.tokens * sizes.config.mlp_width, sizes.size
    if is_operation(forward):
        yield glue("gelu_gate", Pass(geglu.cost(gate.make_case(1, 1, hidden, sizes.dtype))))
        return
    yield glue(
        "gelu_gate",
        Pass.elementwise(hidden, 2 * size, size, vector=1, count=2),
        Pass.elementwise(hidden, 2 * size, size, vector=GELU_FLOPS + GELU_SLOPE_FLOPS, special=GELU_SPECIALS),
        Pass.elementwise(2 * hidden, size, size),  # both halves into one
    )


def _rope(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """Turned back; each slice of the forward pass is zeros of the whole, a copy into it, and a sum with the others."""
    config, size = sizes.config, sizes.size
    heads = sizes.tokens * (config.num_heads + config.num_kv_heads) * config.head_dim
    shared = sizes.tokens * config.num_kv_heads * config.head_dim
    both, turned, half = heads + shared, heads // 2, heads // 4
    yield glue(
        "rope",
        *_casts(sizes, turned, size, 4),
        Pass.elementwise(half, 4, 4, vector=1, count=5),  # four products and a negation
        *([Pass.elementwise(half, 4, size, count=4)] if size < 4 else []),
        Pass.elementwise(half, 2 * size, size, vector=1, count=2),
        Pass.elementwise(heads, 0, size, count=5),  # zeros: three parts of a head, q, k
        Pass.elementwise(half, size, size, count=2),
        Pass.elementwise(turned, size, size),
        Pass.elementwise(heads, size, size),  # q and k
        Pass.elementwise(heads, 2 * size, size, vector=1, count=3),
        Pass.elementwise(both, 0, size, count=2),
        Pass.elementwise(both, size, size),
        Pass.elementwise(both, 2 * size, size, vector=1),
    )


def _embedding(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    """Dense: rows are added into zeros of the whole table, and these to the output matrix' gradient.

    The least would add the rows to that gradient.
    """
    elements, size, table = sizes.stream, sizes.size, sizes.config.embedding_parameters()
    rows = Cost(2 * elements * size + 8 * sizes.tokens, elements * size, vector_flops=elements)
    yield Kernel("embedding", rows, (Pass.elementwise(table, 0, size), Pass(rows), _sum(sizes, table)))


def _scale(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    yield glue("scale", Pass.elementwise(sizes.stream, sizes.size, sizes.size, vector=1))


def _nothing(sizes: StepSizes, forward: Kernel) -> Iterable[Kernel]:
    return ()


GRADIENTS: Mapping[str, Callable[[StepSizes, Kernel], Iterable[Kernel]]] = {
    "product": product,
    "norm": _norm,
    "add_norm": _norm,
    "residual": _residual,
    "gelu_gate": _gelu_gate,
    "rope": _rope,
    "rope_tables": _nothing,
    "embedding": _embedding,
    "scale": _scale,
}
"""Name of a kernel of the forward pass that is no operation of this package -> its gradient's.

Whoever adds such a kernel to ``work`` adds its gradient here.
"""
