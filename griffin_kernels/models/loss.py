"""Cross-entropy of the next token from hidden states, without the logits of all tokens and words at once."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.contract import accumulator
from griffin_kernels.functional import _bridge
from griffin_kernels.functional._common import autocast

Implementation = Literal["chunked", "liger", "cut"]
Reduction = Literal["mean", "sum", "none"]

_AT_ONCE = 2**25
"""Logits that are held at once, 128 MiB of float32."""

_FOR_ALL = "torch.nn.functional.cross_entropy of the logits has everything"

_PACKAGES = {"liger": "liger_kernel.transformers", "cut": "cut_cross_entropy"}
"""What other implementations import."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    implementation: Implementation = "chunked",
    chunk: int | None = None,
) -> Tensor:
    """``cross_entropy(softcap(hidden @ weight.T), targets)`` that never holds all logits.

    hidden: [..., D], float32, bfloat16, float16 or float64. weight: [V, D], the output matrix, of any float dtype; it
        is multiplied in hidden's dtype, both in autocast's where that is on. targets: int64 or int32, hidden's shape
        without D: from 0 to V - 1, or ignore_index, which counts for nothing.
    softcap: c; logits become c tanh(logits / c). reduction: "mean" over the targets that count (NaN if none does, as
        torch has it), "sum", or "none".
    implementation: "chunked" is plain PyTorch on any device: it goes through the rows of ``weight`` in chunks, and
        again in the backward pass. "liger" and "cut" are the kernels of liger-kernel and cut-cross-entropy, on a GPU.
    chunk: rows of ``weight`` at a time; as many as make 2^25 logits if None.

    Returns the loss in float32 (float64 for float64 data), a scalar or targets' shape. Differentiable once in hidden
    and weight, whose gradients have their own dtypes.

    Numerics: logits are rounded to the dtype they are multiplied in; softcap, softmax and sums are float32 (float64 for
    float64 data). In the backward pass, gradients of logits are rounded to that dtype before their products; those
    with weight are summed over chunks in float32. On a GPU targets are not checked: the loss of one out of range is
    NaN with "chunked".

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatchError naming the argument at fault.
    """
    _check(hidden, weight, targets, ignore_index, reduction, softcap)
    if implementation not in get_args(Implementation):
        raise errors.ArgumentError(
            f"no implementation {implementation!r}; there are {', '.join(get_args(Implementation))}"
        )
    if chunk is not None and chunk < 1:
        raise errors.ArgumentError(f"chunk is {chunk}, expected at least 1")
    compute = autocast(hidden) or hidden.dtype
    rows, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1).long()
    if implementation != "chunked":
        loss = _theirs(implementation, rows.to(compute), weight.to(compute), labels, softcap, ignore_index, reduction)
        return loss.reshape(targets.shape) if reduction == "none" else loss
    if chunk is None:
        chunk = max(256, _AT_ONCE // max(rows.shape[0], 1))
    losses: Tensor = _Chunked.apply(rows, weight, labels, softcap, ignore_index, compute, chunk)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return losses.reshape(targets.shape)
    return losses.sum() / (labels != ignore_index).sum() if reduction == "mean" else losses.sum()


class _Chunked(torch.autograd.Function):
    """The loss of every token, [N]; of a token that is ignored 0. What is kept is its logsumexp."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        ignore_index: int,
        compute: torch.dtype,
        chunk: int,
    ) -> Tensor:
        wide = accumulator(compute)
        lse = hidden.new_full((hidden.shape[0],), -torch.inf, dtype=wide)
        picked = torch.zeros_like(lse)
        rows = hidden.to(compute)
        for begin in range(0, weight.shape[0], chunk):
            part = weight[begin : begin + chunk]
            logits = _logits(rows, part.to(compute), softcap, wide)
            inside, at = _within(targets, begin, part.shape[0])
            picked += torch.where(inside, logits.gather(1, at)[:, 0], 0)
            lse = torch.logaddexp(lse, logits.logsumexp(1))
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.settings = softcap, ignore_index, compute, chunk
        wrong = (targets < 0) | (targets >= weight.shape[0])
        return (lse - picked).masked_fill(wrong, torch.nan).masked_fill(targets == ignore_index, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise errors.TransformError(f"linear_cross_entropy has no second derivatives; {_FOR_ALL}")
        hidden, weight, targets, lse = ctx.saved_tensors
        softcap, ignore_index, compute, chunk = ctx.settings
        wide = lse.dtype
        rows = hidden.to(compute)
        scale = grad.to(wide).masked_fill(targets == ignore_index, 0)[:, None]
        to_hidden = torch.zeros_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for begin in range(0, weight.shape[0], chunk):
            part = weight[begin : begin + chunk].to(compute)
            logits = _logits(rows, part, softcap, wide)
            inside, at = _within(targets, begin, part.shape[0])
            error = (logits - lse[:, None]).exp_()
            error.scatter_add_(1, at, -inside.to(wide)[:, None])
            error.mul_(scale)
            if softcap is not None:
                error.mul_(logits.div_(softcap).square_().neg_().add_(1))  # the derivative of c tanh(z / c)
            error = error.to(compute)
            if to_hidden is not None:
                to_hidden += error @ part
            if to_weight is not None:
                to_weight[begin : begin + chunk] = error.T @ rows
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, None, None, None, None, None


def _logits(rows: Tensor, part: Tensor, softcap: float | None, wide: torch.dtype) -> Tensor:
    """[N, chunk] in ``wide``, a tensor of its own."""
    with torch.autocast(rows.device.type, enabled=False):  # rows and part are cast already
        logits = functional.linear(rows, part).to(wide)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _within(targets: Tensor, begin: int, count: int) -> tuple[Tensor, Tensor]:
    """Which targets are among ``count`` words from ``begin`` on [N], and where there [N, 1]; anywhere if not."""
    at = targets - begin
    return (at >= 0) & (at < count), at.clamp(0, count - 1)[:, None]


def _theirs(
    implementation: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The loss by another package, called as its own documentation has it."""
    package = _PACKAGES[implementation]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name not in (package, package.partition(".")[0]):
            raise
        name = package.partition(".")[0].replace("_", "-")
        raise errors.ArgumentError(f'implementation="{implementation}" needs {name}: pip install {name}') from None
    if hidden.device.type != "cuda":
        raise errors.ArgumentError(
            f'implementation="{implementation}" runs on a GPU, and hidden is on {hidden.device}: use "chunked"'
        )
    options = {"softcap": softcap, "ignore_index": ignore_index, "reduction": reduction}
    loss: Tensor
    if implementation == "liger":
        loss = module.LigerFusedLinearCrossEntropyLoss(**options)(weight, hidden, targets)
    else:
        loss = module.linear_cross_entropy(hidden, weight, targets, **options)
    return loss


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str, softcap: float | None
) -> None:
    for name, value in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise errors.ArgumentError(f"{name} is a {type(value).__name__}, expected a tensor")
        if value.device != hidden.device:
            raise errors.DeviceMismatchError(f"{name}: on {value.device}, but hidden is on {hidden.device}")
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not value.is_floating_point():
            raise errors.DtypeError(f"{name}: dtype {value.dtype}, expected floats")
    if targets.dtype not in (torch.int64, torch.int32):
        raise errors.DtypeError(f"targets: dtype {targets.dtype}, expected int64 or int32")
    if hidden.dim() < 1 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or not weight.shape[0]:
        raise errors.ShapeError(
            f"weight: shape {list(weight.shape)}, expected [V, D] beside hidden {list(hidden.shape)}"
        )
    if targets.shape != hidden.shape[:-1]:
        raise errors.ShapeError(f"targets: shape {list(targets.shape)}, expected {list(hidden.shape[:-1])}")
    if reduction not in get_args(Reduction):
        raise errors.ArgumentError(f"no reduction {reduction!r}; there are {', '.join(get_args(Reduction))}")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise errors.ArgumentError(f"softcap is {softcap}, expected a finite number above 0, or None")
    if targets.device.type != "cpu" or not targets.numel() or not _bridge.is_plain((targets,)):
        return  # values are read where that waits for nothing
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= weight.shape[0]))
    if bool(wrong.any()):
        found = int(targets[wrong][0])
        raise errors.ArgumentError(f"targets: {found}, expected 0 to {weight.shape[0] - 1}, or {ignore_index=}")
