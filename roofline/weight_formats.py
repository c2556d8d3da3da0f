"""Linear layers that hold their weights in int8, int4 or fp8: bytes, and work to use them. Needs no PyTorch.

Quantised are the linear layers, as by ``griffin_kernels.nn.int8_linears_`` and torchao's ``quantize_``. Embedding (the
output matrix too), gates, convolution, norms and biases keep the dtype of the pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import BlockType, GriffinConfig
from griffin_kernels.texts import did_you_mean, shortened
from roofline.work import Kernel, PartKind


@dataclass(frozen=True)
class WeightFormat:
    """How a linear layer holds its weights.

    bits: of a weight. group: inputs of an output that share a scale; 0: all of them.
    zero_points: whether each scale has a zero point beside it; then both are of the pass's dtype, else scales are
    float32. source: whose layout that is.
    """

    name: str
    bits: int
    source: str
    group: int = 0
    zero_points: bool = False

    def matrix_bytes(self, inputs: int, outputs: int, dtype: str) -> int | None:
        """Bytes of a matrix with its scales; None for one that is left as it is, whose rows are no whole groups."""
        if self.group and inputs % self.group:
            return None
        scales = outputs * (inputs // self.group if self.group else 1)
        each = 2 * DTYPE_BYTES[dtype] if self.zero_points else 4
        return inputs * outputs * self.bits // 8 + scales * each


FORMATS: Mapping[str, WeightFormat] = {
    found.name: found
    for found in (
        WeightFormat("int8", 8, "a float32 scale for each output, as int8_linears_"),
        WeightFormat(
            "int4", 4, "groups of 128 with scale and zero point, as torchao's Int4WeightOnlyConfig", 128, True
        ),
        WeightFormat("fp8", 8, "a float32 scale for each output, as torchao's Float8WeightOnlyConfig"),
    )
}
"""Formats by name. torchao's are those of version 0.18, with its defaults."""

KERNELS: Mapping[str, str] = {"out": "output"}
"""Names of kernels where they differ from those of linear layers."""

FP8 = "fp8"
"""The one format whose weights matrix units can multiply as they are, with activations rounded alike."""


def weight_format(name: str) -> WeightFormat:
    """The format called ``name``; ArgumentError lists what there is."""
    if (found := FORMATS.get(name)) is None:
        meant = did_you_mean(name, FORMATS)
        raise errors.ArgumentError(f"weights is {shortened(name)}, expected {', '.join(FORMATS)}{meant}")
    return found


def weight_bytes(config: GriffinConfig, dtype: str, held: WeightFormat | None = None) -> int:
    """Bytes of all weights of a model whose linear layers hold them so; None: in ``dtype``, as everything else."""
    size = DTYPE_BYTES[dtype]
    whole = config.parameters() * size
    if held is None:
        return whole
    for part in (*config.block_types, *(["mlp"] * config.num_layers)):
        for inputs, outputs, _ in config.linears(part).values():  # type: ignore[arg-type]
            stored = held.matrix_bytes(inputs, outputs, dtype)
            whole -= 0 if stored is None else inputs * outputs * size - stored
    return whole


def left_out(config: GriffinConfig, dtype: str, held: WeightFormat) -> list[str]:
    """Names of linear layers that stay as they are."""
    parts: dict[BlockType, None] = dict.fromkeys(config.block_types)
    return [
        name
        for part in (*parts, "mlp")
        for name, (inputs, outputs, _) in config.linears(part).items()  # type: ignore[arg-type]
        if held.matrix_bytes(inputs, outputs, dtype) is None
    ]


def quantised(
    kernels: Mapping[PartKind, tuple[Kernel, ...]], config: GriffinConfig, dtype: str, held: WeightFormat, products: str
) -> dict[PartKind, tuple[Kernel, ...]]:
    """The kernels of a pass with linear layers that read such weights.

    products: dtype of their matrix products; weights of another one are widened as they are read. Counted besides: a
    product of each output and its scales, or with groups a multiply-add of each weight.
    """
    found: dict[PartKind, tuple[Kernel, ...]] = {}
    for kind, those in kernels.items():
        linears = {} if kind in ("embedding", "head") else config.linears(kind)  # type: ignore[arg-type]
        matrices = {KERNELS.get(name, name): (inputs, outputs) for name, (inputs, outputs, _) in linears.items()}
        found[kind] = tuple(
            _quantised(kernel, *matrices[kernel.name], dtype, held, products) if kernel.name in matrices else kernel
            for kernel in those
        )
        assert matrices.keys() <= {kernel.name for kernel in those}, f"a linear layer of {kind} has no kernel"
    return found


def _quantised(kernel: Kernel, inputs: int, outputs: int, dtype: str, held: WeightFormat, products: str) -> Kernel:
    stored = held.matrix_bytes(inputs, outputs, dtype)
    if stored is None:
        return kernel
    less = inputs * outputs * DTYPE_BYTES[dtype] - stored
    scaling = 2 * inputs * outputs if held.group else kernel.rows * outputs * (2 if products == FP8 else 1)
    cost = replace(
        kernel.cost,
        bytes_read=kernel.cost.bytes_read - less,
        vector_flops=kernel.cost.vector_flops + scaling,
    )
    # no rows: rates that were measured by rows are those of wide weights
    return replace(kernel, cost=cost, parameter_bytes=kernel.parameter_bytes - less, rows=0, products=products)


def assumptions(
    config: GriffinConfig, dtype: str, held: WeightFormat, products: str, device: str, fp8: tuple[float, float] | None
) -> tuple[str, ...]:
    """What a forecast with such weights rests on, in sentences. fp8: FLOP/s of its peak, and the share reached."""
    told = [f"linear layers hold {held.name} weights ({held.source}); everything else is {dtype}"]
    if products == FP8 and fp8:
        peak, share = fp8
        reached = f"their products reach {share:.0%} of the fp8 peak of {peak / 1e12:,.0f} TFLOP/s"
        told.append(f"{reached}; rounding activations to fp8 is not counted; not measured")
    else:
        why = f"no fp8 peak of {device} is known: " if held.name == FP8 else ""
        told.append(f"{why}weights are widened to {dtype} as they are read, so only memory traffic falls; not measured")
    if names := left_out(config, dtype, held):
        told.append(f"{', '.join(names)} stay in {dtype}: their inputs are no multiple of {held.group}")
    return tuple(told)
