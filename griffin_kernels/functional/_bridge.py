"""Makes PyTorch operators out of the ops that users call, differentiable or in place.

Two roads lead to the same kernels. Under torch.compile and other tracers the ``torch.library`` custom op is called,
which they can see. A plain eager call goes past it, straight to dispatch or through an autograd.Function, because a
Python custom op costs about 10 us a call without gradients and 30 us with them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from griffin_kernels import catalog, dispatch, errors, specs
from griffin_kernels.contract import Op

_functorch: Any = torch._C._functorch

_TANGENTS = (
    "forward-mode derivatives (jvp, jacfwd, linearize, dual numbers): "
    "use reverse mode (backward, torch.func.grad or vjp)"
)
_BATCHING = (
    "vmap, nor for what is made of it (jacrev, jacfwd, hessian, is_grads_batched=True): "
    "put the mapped dimension into the batch, or loop over it"
)


def _no_rule(op_name: str, transform: str) -> Callable[..., Any]:
    """A rule of a transform of torch that only says that there is none, and what to use instead."""

    def rule(*_: Any, **__: Any) -> Any:
        raise errors.TransformError(f"{op_name} has no rule for {transform}")

    return rule


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
                _no_rule(op_name, _TANGENTS)()


def _schema(op: Op) -> str:
    """The schema of a ``torch.library`` operator with the op's arguments, giving its new outputs."""
    letters = iter("abcdefgh")
    arguments = [
        f"Tensor{f'({next(letters)}!)' if name in op.in_place else ''}{'?' if spec.optional else ''} {name}"
        for name, spec in op.inputs.items()
    ]
    arguments += [f"{kind} {name}" for name, kind in op.option_types.items()]
    count = len(op.outputs) - len(op.in_place)
    returns = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    return f"({', '.join(arguments)}) -> {returns}"


class Operator:
    """An op that is registered with torch as ``griffin_kernels::<op>``, with schema, implementation and fake one.

    new: picks from a call's outputs those that are no input changed in place: a tuple, or the only one. An output that
    is None comes back from torch as a tensor without elements, since a schema's outputs are always there.
    """

    def __init__(self, op: Op) -> None:
        self.name, self.call = op.name, op.call
        new = self.new = operator.itemgetter(*[at for at, name in enumerate(op.outputs) if name not in op.in_place])

        def implementation(*args: Any) -> Any:
            if forward_ad._current_level >= 0:
                check_tangents(op.name, args)
            call = op.call(*args)
            data = specs.data_dtype(op, call)
            return new(
                [
                    call[0].new_empty(0, dtype=specs.expected_dtype(spec, data)) if out is None else out
                    for spec, out in zip(op.outputs.values(), dispatch.call(op.name, call), strict=True)
                ]
            )

        name, schema = f"griffin_kernels::{op.name}", _schema(op)
        self.custom_op = torch.library.custom_op(name, implementation, mutates_args=op.in_place, schema=schema)
        self.custom_op.register_fake(lambda *args: new(specs.empty_outputs(op, op.call(*args))))
        self.custom_op.register_vmap(_no_rule(op.name, _BATCHING))

    def run(self, *args: Any) -> Any:
        """The tuned kernel, past torch's dispatcher."""
        return self.new(dispatch.call(self.name, self.call(*args)))


class Differentiable(Operator):
    """A forward op with its gradient ``<op>_bwd``.

    What is kept for the gradient, and what of its results is a gradient of what, is told by names: an argument of the
    gradient is the forward pass's input, output or option of that name, or with a ``d`` before it what reaches an
    output; its results are inputs' names with a ``d`` before them.
    """

    def __init__(self, op: Op) -> None:
        super().__init__(op)
        backward_op = catalog.op(f"{op.name}_bwd")
        fields, results = op.call._fields, tuple(op.outputs)
        backward_operator = Operator(backward_op)
        upstream = [name for name in backward_op.call._fields if name.removeprefix("d") in results and name[0] == "d"]
        kept = [name for name in backward_op.inputs if name not in upstream]
        options = [name for name in backward_op.options if name in fields]

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            known = dict(zip(results, outputs, strict=True)) | dict(zip(fields, inputs, strict=True))
            ctx.save_for_backward(*[known[name] for name in kept])
            ctx.options = {name: known[name] for name in options}

        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = dict(zip(kept, ctx.saved_tensors, strict=True))
            reached = {f"d{name}": gradient for name, gradient in zip(results, gradients, strict=True)}
            given = backward_op.call(**saved, **ctx.options, **{name: reached[name] for name in upstream})
            found = dict(zip(backward_op.outputs, _backward(backward_operator, given), strict=True))
            for name, value in saved.items():  # autograd takes a gradient in the dtype of its input
                if (mine := found.get(f"d{name}")) is not None:
                    found[f"d{name}"] = None if value is None else mine.to(value.dtype)
            return tuple([found.get(f"d{name}") for name in fields])

        self.custom_op.register_autograd(backward, setup_context=setup_context)

        def forward_and_save(ctx: Any, *args: Any) -> Any:
            outputs = self.run(*args)
            setup_context(ctx, args, outputs)
            return outputs

        once = staticmethod(torch.autograd.function.once_differentiable(backward))
        # functorch wants setup_context apart; with it apart torch inspects signatures at every call, some 40 us
        fast = {"forward": staticmethod(forward_and_save), "backward": once}
        apart = {"forward": staticmethod(self.run), "setup_context": staticmethod(setup_context), "backward": once}
        rules = {"jvp": staticmethod(_no_rule(op.name, _TANGENTS)), "vmap": staticmethod(_no_rule(op.name, _BATCHING))}
        self.saving: Any = type(f"Eager_{op.name}", (torch.autograd.Function,), fast)
        self.transformable: Any = type(f"Transformable_{op.name}", (torch.autograd.Function,), apart | rules)

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            check_tangents(self.name, args)
        if _functorch.peek_interpreter_stack() is not None and not torch.compiler.is_compiling():
            return self.transformable.apply(*args)  # functorch refuses custom ops whose gradient is Python
        if not is_plain(args):
            return self.custom_op(*args)
        if wants_gradient(args):
            return self.saving.apply(*args)
        return self.run(*args)


class InPlace(Operator):
    """A one-token op that changes its states where they are.

    It has no gradient: in grad mode, a tensor that requires one raises ArgumentError, which names the op to use.
    """

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            check_tangents(self.name, args)
        if torch.is_grad_enabled():
            for name, value in zip(self.call._fields, args, strict=True):
                if isinstance(value, Tensor) and value.requires_grad:
                    text = f"{self.name}: {name} requires a gradient, and decoding has none"
                    instead = f"call it under torch.no_grad(), or use {self.name.removesuffix('_step')}"
                    raise errors.ArgumentError(f"{text}: {instead}")
        return self.run(*args) if is_plain(args) else self.custom_op(*args)


@functools.cache
def registered(op_name: str) -> Callable[..., Any]:
    """The operator of an op that users call, registered with torch as ``griffin_kernels::<op>``."""
    op = catalog.op(op_name)
    return InPlace(op) if op.in_place else Differentiable(op)


def wants_gradient(args: Sequence[Any]) -> bool:
    """Whether autograd will ask for a gradient of a call."""
    return torch.is_grad_enabled() and any([isinstance(arg, Tensor) and arg.requires_grad for arg in args])


def whole(index: Any) -> Any:
    """Positions and slots as int64; whatever else comes is for the op's own checks."""
    return index.long() if isinstance(index, Tensor) and index.dtype == torch.int32 else index


def _backward(op: Operator, call: Any) -> tuple[Tensor | None, ...]:
    """Run a backward op by whichever road the forward pass is on; absent outputs are None or without elements."""
    if forward_ad._current_level >= 0:
        check_tangents(op.name, call)
    if is_plain(call):
        try:
            return dispatch.call(op.name, call)
        except RuntimeError:
            # looked at only now, as asking takes as long as a small call: both kinds pass for plain tensors
            if any([isinstance(value, Tensor) and _functorch.is_legacy_batchedtensor(value) for value in call]):
                _no_rule(op.name, _BATCHING)()
            # what torch.func wrapped in a forward pass that is over, as the function of vjp keeps it
            wrapped = [isinstance(v, Tensor) and _functorch.is_functorch_wrapped_tensor(v) for v in call]
            unwrapped = op.call(
                *[_functorch.unwrap_if_dead(v) if dead else v for v, dead in zip(call, wrapped, strict=True)]
            )
            if all([mine is given for mine, given in zip(unwrapped, call, strict=True)]):
                raise
        return dispatch.call(op.name, unwrapped)
    outputs = op.custom_op(*call)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def is_plain(args: tuple[Any, ...]) -> bool:
    """True for ordinary tensors outside any tracer, mode or transform."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _functorch.peek_interpreter_stack():
        return False
    return not any([type(arg) not in (Tensor, Parameter) and isinstance(arg, Tensor) for arg in args])
