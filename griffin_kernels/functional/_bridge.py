"""Makes a differentiable PyTorch operator out of a forward op and its backward op.

Two roads lead to the same kernels. Under torch.compile and other tracers the ``torch.library`` custom op is called,
which they can see. A plain eager call goes past it, straight to dispatch or through an autograd.Function, because a
Python custom op costs about 10 us a call without gradients and 30 us with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from griffin_kernels import catalog, dispatch, errors, specs
from griffin_kernels.contract import Inputs

NAMESPACE = "griffin_kernels"

_functorch: Any = torch._C._functorch


def _no_rule(op_name: str, transform: str, instead: str) -> Callable[..., Any]:
    """A rule of a transform of torch that only says that there is none."""

    def rule(*_: Any, **__: Any) -> Any:
        raise errors.TransformError(f"{op_name} has no rule for {transform}: {instead}")

    return rule


def _no_tangents(op_name: str) -> Callable[..., Any]:
    return _no_rule(
        op_name,
        "forward-mode derivatives (jvp, jacfwd, linearize, dual numbers)",
        "use reverse mode (backward, torch.func.grad or vjp)",
    )


def _no_batching(op_name: str) -> Callable[..., Any]:
    return _no_rule(
        op_name,
        "vmap, nor for what is made of it (jacrev, jacfwd, hessian, is_grads_batched=True)",
        "put the mapped dimension into the batch, or loop over it",
    )


def check_tangents(op_name: str, args: Any) -> None:
    """Raise TransformError for dual numbers, whose tangents a kernel would lose. There has to be a dual level."""
    # an operator's implementation is called below autograd, where torch would not look for tangents
    keys = torch._C.DispatchKey
    with (
        torch._C._SetExcludeDispatchKeyGuard(keys.AutogradFunctionality, False),
        torch._C._SetExcludeDispatchKeyGuard(keys.ADInplaceOrView, False),
    ):
        for value in args:
            if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
                _no_tangents(op_name)()


def register(op_name: str, option_types: dict[str, str]) -> Any:
    """Register ``griffin_kernels::<op>`` with schema, implementation and fake implementation; returns the CustomOpDef.

    option_types: schema type of each option, ``{"reverse": "bool"}``.
    An output that is None comes back as a tensor without elements, since a schema's outputs are always there.
    """
    op = catalog.op(op_name)
    names = [*op.inputs, *op.options]
    arguments = [f"Tensor{'?' if spec.optional else ''} {name}" for name, spec in op.inputs.items()]
    arguments += [f"{option_types[name]} {name}" for name in op.options]
    returns = ", ".join(["Tensor"] * len(op.outputs))
    first = next(iter(op.inputs))

    def implementation(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            check_tangents(op_name, args)
        inputs = dict(zip(names, args, strict=True))
        outputs = dispatch.call(op_name, inputs)
        data = specs.data_dtype(op, inputs)
        filled = tuple(
            inputs[first].new_empty(0, dtype=specs.expected_dtype(spec, data)) if out is None else out
            for spec, out in zip(op.outputs.values(), outputs, strict=True)
        )
        return filled[0] if len(filled) == 1 else filled

    def fake(*args: Any) -> Any:
        outputs = specs.empty_outputs(op, dict(zip(names, args, strict=True)))
        return outputs[0] if len(outputs) == 1 else outputs

    schema = f"({', '.join(arguments)}) -> {returns if len(op.outputs) == 1 else f'({returns})'}"
    definition = torch.library.custom_op(f"{NAMESPACE}::{op_name}", implementation, mutates_args=(), schema=schema)
    definition.register_fake(fake)
    definition.register_vmap(_no_batching(op_name))
    return definition


class Differentiable:
    """A forward op with its gradient, callable with the op's inputs and options in order.

    setup_context: ``(ctx, inputs, output) -> None`` saves for backward. backward: ``(ctx, *gradients) -> gradients`` of
    every input. Both serve the custom op and the eager autograd.Function.
    """

    def __init__(
        self,
        op_name: str,
        option_types: dict[str, str],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        self.op_name = op_name
        op = catalog.op(op_name)
        self.names = (*op.inputs, *op.options)
        self.custom_op = register(op_name, option_types)
        self.custom_op.register_autograd(backward, setup_context=setup_context)
        names = self.names

        def forward(*args: Any) -> Any:
            outputs = dispatch.call(op_name, dict(zip(names, args, strict=True)))
            return outputs[0] if len(outputs) == 1 else outputs

        def forward_and_save(ctx: Any, *args: Any) -> Any:
            outputs = forward(*args)
            setup_context(ctx, args, outputs)
            return outputs

        once = staticmethod(torch.autograd.function.once_differentiable(backward))
        # functorch wants setup_context apart; with it apart torch inspects signatures at every call, some 40 us
        fast = {"forward": staticmethod(forward_and_save), "backward": once}
        apart = {"forward": staticmethod(forward), "setup_context": staticmethod(setup_context), "backward": once}
        rules = {"jvp": staticmethod(_no_tangents(op_name)), "vmap": staticmethod(_no_batching(op_name))}
        self.eager: Any = type(f"Eager_{op_name}", (torch.autograd.Function,), fast)
        self.transformable: Any = type(f"Transformable_{op_name}", (torch.autograd.Function,), apart | rules)

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            check_tangents(self.op_name, args)
        if torch._C._functorch.peek_interpreter_stack() is not None and not torch.compiler.is_compiling():
            return self.transformable.apply(*args)  # functorch refuses custom ops whose gradient is Python
        if not is_plain(args):
            return self.custom_op(*args)
        if torch.is_grad_enabled() and any([isinstance(arg, Tensor) and arg.requires_grad for arg in args]):
            return self.eager.apply(*args)
        outputs = dispatch.call(self.op_name, dict(zip(self.names, args, strict=True)))
        return outputs[0] if len(outputs) == 1 else outputs


class InPlace:
    """A one-token op that works on its states in place, callable with the op's inputs and options in order.

    Gives the outputs that are new; the states are changed where they are. It has no gradient: in grad mode, a tensor
    that requires one raises ArgumentError, which names ``instead``, the op to use.
    """

    def __init__(self, op_name: str, option_types: dict[str, str], instead: str) -> None:
        self.op = catalog.op(op_name)
        self.instead = instead
        op, names = self.op, (*self.op.inputs, *self.op.options)
        self.fresh = [at for at, name in enumerate(op.outputs) if name not in op.in_place]

        def argument(name: str, letter: str) -> str:
            written = f"({letter}!)" if name in op.in_place else ""
            return f"Tensor{written}{'?' if op.inputs[name].optional else ''} {name}"

        def implementation(*args: Any) -> Any:
            if forward_ad._current_level >= 0:
                check_tangents(op_name, args)
            return self._new(dispatch.call(op_name, dict(zip(names, args, strict=True))))

        def fake(*args: Any) -> Any:
            return self._new(specs.empty_outputs(op, dict(zip(names, args, strict=True))))

        letters = iter("abcdefgh")
        arguments = [argument(name, next(letters) if name in op.in_place else "") for name in op.inputs]
        arguments += [f"{option_types[name]} {name}" for name in op.options]
        returns = ", ".join(["Tensor"] * len(self.fresh))
        schema = f"({', '.join(arguments)}) -> {returns if len(self.fresh) == 1 else f'({returns})'}"
        self.names = names
        self.custom_op: Any = torch.library.custom_op(
            f"{NAMESPACE}::{op_name}", implementation, mutates_args=op.in_place, schema=schema
        )
        self.custom_op.register_fake(fake)
        self.custom_op.register_vmap(_no_batching(op_name))

    def _new(self, outputs: tuple[Tensor | None, ...]) -> Any:
        new = tuple(outputs[at] for at in self.fresh)
        return new[0] if len(new) == 1 else new

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            check_tangents(self.op.name, args)
        if torch.is_grad_enabled():
            for name, value in zip(self.names, args, strict=True):
                if isinstance(value, Tensor) and value.requires_grad:
                    raise errors.ArgumentError(
                        f"{self.op.name}: {name} requires a gradient, and decoding has none: call it under "
                        f"torch.no_grad(), or use {self.instead}"
                    )
        if not is_plain(args):
            return self.custom_op(*args)
        return self._new(dispatch.call(self.op.name, dict(zip(self.names, args, strict=True))))


def whole(index: Any) -> Any:
    """Positions and slots as int64; whatever else comes is for the op's own checks."""
    return index.long() if isinstance(index, Tensor) and index.dtype == torch.int32 else index


def _unwrapped(value: Any) -> Any:
    """The tensor within what torch.func wrapped in a forward pass that is over, as the function of vjp keeps it."""
    if isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        return _functorch.unwrap_if_dead(value)
    return value


def call_backward(op_name: str, custom_op: Any, inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Run a backward op by whichever road the forward pass is on; absent outputs are None or without elements."""
    if forward_ad._current_level >= 0:
        check_tangents(op_name, inputs.values())
    if is_plain(tuple(inputs.values())):
        try:
            return dispatch.call(op_name, inputs)
        except RuntimeError:
            # looked at only now, as asking takes as long as a small call: both kinds pass for plain tensors
            if any(
                [isinstance(value, Tensor) and _functorch.is_legacy_batchedtensor(value) for value in inputs.values()]
            ):
                _no_batching(op_name)()
            unwrapped = {name: _unwrapped(value) for name, value in inputs.items()}
            if all([unwrapped[name] is inputs[name] for name in inputs]):
                raise
        return dispatch.call(op_name, unwrapped)
    outputs = custom_op(*inputs.values())
    return outputs if isinstance(outputs, tuple) else (outputs,)


def is_plain(args: tuple[Any, ...]) -> bool:
    """True for ordinary tensors outside any tracer, mode or transform."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    for arg in args:
        kind = type(arg)
        if kind is not Tensor and kind is not Parameter and isinstance(arg, Tensor):
            return False
    return True
