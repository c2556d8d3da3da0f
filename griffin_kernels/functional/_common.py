"""What the public operations share: the words of their docstrings, the parameters of an RG-LRU, and dtypes."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import accumulator

SHARED = {
    "h0": "[B, D], the state before the first step, in x's dtype or float32; zeros if None.",
    "reset": "bool [B, T]; where True the state before that step counts as 0.",
    "reverse": "run from the last step to the first; h0 enters at the end, h_last is the state at the start.",
    "conv_weight": "[K, D]. conv_bias: [D]. weights: RGLRUWeights.",
    "softcap": "scores become softcap * tanh(scores / softcap). scale: of the scores; d ** -0.5 if None.",
    "cu_seqlens": "int32 or int64 [N+1], offsets of N sequences packed into a batch of one, none of which reads "
    "another; states then have N rows in place of B. They run from 0 to T; where they are on the CPU, beside data on "
    "any device, the last one may be less: steps from there on only pad, outputs and gradients there are 0. On a GPU "
    "their values are not looked at, as that would wait for the device.",
    "slots": "int64 or int32 [B], which of a state's P rows belongs to which row of the batch, each once at most; P = B"
    " if None. A negative one marks a row that only pads: no state is touched and its output is 0. On a GPU values are "
    "not checked, as that would wait for the device: there a slot of P or more pads too.",
    "states": "[P, D], float32 (float64 for float64), the pool; rows may lie apart, as in an engine's pages.",
    "keep": "int64 or int32 [B, T], the row that the state after each token is written to; negative: it is not kept. "
    "Two tokens cannot be kept in one row, nor one in a row that another sequence starts from. last_tokens makes it.",
    "pad_slot": "a slot that marks such a row besides the negative ones: 0 for engines that reserve row 0 of the pool. "
    "Any number of rows may have it.",
    "dst_slots": "int64 or int32 [B], which of the P rows each new state is written to. ``slots`` then only says where "
    "the old one is read, which stays as it is; rows of the batch may share it. No two may write one row, nor one that "
    "another of them reads: on a GPU, where that is not checked, what comes of it is undefined. None: where the old "
    "one was. Where it is negative or pad_slot, the new state is not kept.",
    "rotary": "(cos, sin), both [positions, d_rot / 2], float32 or q's dtype: q and the new k are turned by row p of "
    "both at position p, in float32 or better, and rounded, before the key is kept. Channels from d_rot on stay as "
    "they are. Rows that only pad may have any position. On a GPU one beyond the tables counts as their last. It is "
    "not fused: PyTorch's operators do it before the kernel, in a dozen launches, and q and k are moved twice more.",
    "rotary_interleaved": "channels 2i and 2i + 1 are turned as a pair (GPT-J); else i and i + d_rot / 2 (GPT-NeoX).",
    "out": "a tensor like the result, any strides, which is written and returned; it may not overlap an argument. With "
    "int64 indices and weights in x's dtype, kernels of one launch then allocate nothing.",
}
"""What arguments are in every function that has them and does not say it itself."""

_EMPTY = "T = 0 and B = 0 give empty outputs, and the states come back as they were given."
_EMPTY_STEP = """B = 0 gives an empty output. It reads no value on the host and allocates nothing of varying size, so
that it can be captured in a CUDA graph; works under torch.compile."""
_NO_GRADIENT = """, and leaves states as they were. It has no gradient: in grad mode, tensors that require one raise
ArgumentError"""

_Function = TypeVar("_Function", bound=Callable[..., object])


def documented(*measured: tuple[float, float, float]) -> Callable[[_Function], _Function]:
    """Completes a docstring by what many functions share: arguments before what it returns, the rest at the end.

    measured: errors of results and, where there are any, of gradients, in float32, bfloat16 and float16.
    """

    def completed(function: _Function) -> _Function:
        steps = len(measured) == 1
        own, _, returns = (inspect.getdoc(function) or "").partition("\n\nReturns ")
        shared = [name for name in inspect.signature(function).parameters if name in SHARED and f"{name}:" not in own]
        by_dtype = ["float32 {:.0e}, bfloat16 {:.0e}, float16 {:.0e}".format(*kind) for kind in measured]
        common = (
            _EMPTY_STEP if steps else _EMPTY,
            "Error against float64, the worst variant on normal inputs, as norm of the error over norm of the result: "
            f"{'; of gradients '.join(by_dtype)}.",
            "Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault"
            f"{_NO_GRADIENT if steps else ''}.",
        )
        arguments = [textwrap.fill(f"{name}: {SHARED[name]}", 116, subsequent_indent=" " * 4) for name in shared]
        wrapped = "\n\n".join(textwrap.fill(text, 116) for text in common)
        function.__doc__ = "\n".join([own, *arguments]) + f"\n\nReturns {returns}\n\n{wrapped}"
        return function

    return completed


class RGLRUWeights(NamedTuple):
    """Parameters of an RG-LRU with H gate blocks of width n = D / H, of any float dtype, each of its own.

    Matrices are multiplied in x's dtype, to which they are rounded. The others are used as they are: in float32.
    a_param: [D], minus the paper's Lambda: log a = -8 softplus(a_param) r.
    input_gate_weight, recurrence_gate_weight: [H, n, n], y_hj = sum_i x_hi W_hij. Their biases: [H, n].
    """

    a_param: Tensor
    input_gate_weight: Tensor
    recurrence_gate_weight: Tensor
    input_gate_bias: Tensor
    recurrence_gate_bias: Tensor


def checked(op_name: str, weights: RGLRUWeights, x: Any) -> tuple[Any, ...]:
    """The five parameters in the order of the ops' inputs, in dtypes that go with x's.

    ArgumentError where they are not RGLRUWeights.
    """
    if not isinstance(weights, RGLRUWeights):
        raise errors.ArgumentError(f"{op_name}: weights is a {type(weights).__name__}, expected RGLRUWeights")
    a_param, input_weight, recurrence_weight, input_bias, recurrence_bias = weights
    try:
        # the usual case, which should cost no more than a look
        alike = x.dtype is a_param.dtype is input_weight.dtype is recurrence_weight.dtype is input_bias.dtype
        alike = alike and x.dtype is recurrence_bias.dtype
    except AttributeError:  # no tensor: for the op's own checks
        alike = True
    if not alike:
        input_weight, recurrence_weight = in_dtype(x.dtype, input_weight, recurrence_weight)
        a_param, input_bias, recurrence_bias = beside(x, a_param, input_bias, recurrence_bias)
    return a_param, input_weight, input_bias, recurrence_weight, recurrence_bias


def in_dtype(dtype: torch.dtype, *tensors: Any) -> tuple[Any, ...]:
    """Tensors of floats in a dtype."""
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in tensors
    )


def beside(x: Any, *parameters: Any) -> tuple[Any, ...]:
    """Parameters that an op takes beside data like x: in x's dtype, or else in its accumulator's. None stays None."""
    try:
        for parameter in parameters:
            if parameter is not None and parameter.dtype is not x.dtype:
                break
        else:
            return parameters
    except AttributeError:
        return parameters
    wide = accumulator(x.dtype)
    return tuple(p if getattr(p, "dtype", wide) in (x.dtype, wide) else in_dtype(wide, p)[0] for p in parameters)


def one_of(op_name: str, a: Any, log_a: Any) -> Any:
    """The gates of a scan, or their logarithms: whichever is given. ArgumentError where none is, or both."""
    if (a is None) == (log_a is None):
        found = "neither a nor log_a is" if a is None else "a and log_a are both"
        raise errors.ArgumentError(f"{op_name}: {found} given, expected one of them")
    return log_a if a is None else a


def gates_beside(x: Any, gates: Any) -> Any:
    """Gates in a dtype that goes beside x, those [D] of all steps as [1, 1, D]."""
    (gates,) = beside(x, gates)
    return gates[None, None] if isinstance(gates, Tensor) and gates.ndim == 1 else gates


def autocast(x: Any, kept: Any = None) -> torch.dtype | None:
    """What data like x is cast to under torch.autocast, as nn.Linear casts it; None where it stays as it is.

    kept: a step's state of data, whose dtype the data then gets.
    """
    if not torch._C._is_any_autocast_enabled() or not isinstance(x, Tensor) or x.dtype == torch.float64:
        return None
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return kept.dtype if isinstance(kept, Tensor) and kept.is_floating_point() else torch.get_autocast_dtype(kind)
