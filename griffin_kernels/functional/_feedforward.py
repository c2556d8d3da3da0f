"""The public operations of a gated MLP: what lies between its linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional._bridge import registered
from griffin_kernels.functional._common import autocast, documented, in_dtype

_gated_gelu: Callable[..., Tensor] = registered("gated_gelu")
_geglu: Callable[..., Tensor] = registered("geglu")


@documented((1e-7, 4e-3, 4e-4), (1e-7, 4e-3, 4e-4))
def gated_gelu(gate: Tensor, value: Tensor) -> Tensor:
    """The gate of Griffin's and Hawk's MLP, as of Gemma's.

        out = gelu(gate) * value          gelu in its tanh form

    Source: arXiv 2402.19427, section 2.2; Shazeer, arXiv 2002.05202, which names it GEGLU.
    gate, value: [..., M] of one shape and dtype, float32, bfloat16, float16 or float64; any strides. Three dimensions
        run as they are; of others the first ones become one.

    Returns out [..., M] in their dtype. Differentiable in gate and value.

    Numerics: gelu and both products are float32 (float64 for float64 data); out is rounded once, where the published
    code rounds gelu too. The gradient does gelu again: nothing is kept for it but gate and value.
    """
    if (dtype := autocast(gate)) is not None:
        gate, value = in_dtype(dtype, gate, value)
    if not isinstance(gate, Tensor) or gate.dim() == 3 or not _many_rows("gated_gelu", gate, value):
        return _gated_gelu(gate, value)
    return _gated_gelu(_in_rows(gate), _in_rows(value)).view(gate.shape)


@documented((1e-7, 4e-3, 4e-4), (1e-7, 4e-3, 4e-4))
def geglu(x: Tensor) -> Tensor:
    """``gated_gelu`` of the two halves of one tensor, the gate first, as one fused linear layer makes them.

        out = gelu(x[..., :M]) * x[..., M:]          gelu in its tanh form

    Source: as gated_gelu; vLLM names it gelu_tanh_and_mul, Liger geglu.
    x: [..., 2M], float32, bfloat16, float16 or float64; any strides. The halves are read where they are.

    Returns out [..., M] in x's dtype. Differentiable in x; its gradient is one tensor, written once.

    Numerics: as gated_gelu. Nothing is kept for the gradient but x.
    """
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    return _geglu(x) if not isinstance(x, Tensor) else _packed(x)


def _packed(x: Tensor) -> Tensor:
    """geglu of a tensor. Raises ShapeError where it has no two halves."""
    if x.dim() < 1 or x.shape[-1] % 2:
        raise errors.ShapeError(f"geglu: x has shape {list(x.shape)}, expected [..., 2 M]: a gate and a value")
    width = x.shape[-1] // 2
    rows = x if x.dim() == 3 else _in_rows(x)
    out = _geglu(rows.view(*rows.shape[:2], 2, width))  # the last dimension splits without a copy
    return out if x.dim() == 3 else out.view(*x.shape[:-1], width)


def _many_rows(op_name: str, gate: Tensor, value: Any) -> bool:
    """Whether both are tensors of one number of dimensions. Raises ShapeError where their shapes then differ."""
    if not isinstance(value, Tensor) or value.dim() != gate.dim() or gate.dim() < 1:
        return False  # for the op's own checks
    if value.shape != gate.shape:
        raise errors.ShapeError(f"{op_name}: value has shape {list(value.shape)}, expected gate's {list(gate.shape)}")
    return True


def _in_rows(tensor: Tensor) -> Tensor:
    """[..., M] as [1, rows, M]; without a copy where it can be seen so."""
    return tensor[None, None] if tensor.dim() == 1 else tensor.flatten(0, -2)[None]
