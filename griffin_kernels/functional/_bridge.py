"""Makes PyTorch operators out of the ops that users call, differentiable or in place.

Two roads lead to the same kernels. Under torch.compile and other tracers the ``torch.library`` custom op is called,
which they can see. A plain eager call goes past it, straight to dispatch or through an autograd.Function, because a
Python custom op costs about 10 us a call without gradients and 30 us with them.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from griffin_kernels import catalog, dispatch, errors, specs
from griffin_kernels.contract import LARGEST_INDEX, Op, dtype_name
from griffin_kernels.functional import _derivatives, _flops
from griffin_kernels.functional._batching import batching_rule

_functorch: Any = torch._C._functorch

_PLAIN = dispatch.OTHERS | {Tensor, Parameter}
"""Types of arguments that nothing traces or wraps."""

_TANGENTS = (
    "forward-mode derivatives (jvp, jacfwd, linearize, dual numbers): "
    "use reverse mode (backward, torch.func.grad or vjp)"
)


SCHEMAS: dict[str, str] = {}
"""Of every operator that is registered, by its op."""


def _no_rule(op_name: str, transform: str) -> Callable[..., Any]:
    """A rule of a transform of torch that only says that there is none, and what to use instead."""

    def rule(*_: Any, **__: Any) -> Any:
        raise errors.TransformError(f"{op_name} has no rule for {transform}")

    return rule


def has_tangents(args: Any) -> bool:
    """Whether any argument is a dual number. There has to be a dual level."""
    # an operator's implementation is called below autograd, where torch would not look for tangents
    keys = torch._C.DispatchKey
    with (
        torch._C._SetExcludeDispatchKeyGuard(keys.AutogradFunctionality, False),
        torch._C._SetExcludeDispatchKeyGuard(keys.ADInplaceOrView, False),
    ):
        return any([isinstance(value, Tensor) and _is_dual(value) for value in args])


def _is_dual(value: Tensor) -> bool:
    while _functorch.is_batchedtensor(value):  # vmap has no rule for unpacking
        value = _functorch.get_unwrapped(value)
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def check_tangents(op_name: str, args: Any) -> None:
    """Raise TransformError for dual numbers, whose tangents a kernel would lose. There has to be a dual level."""
    if has_tangents(args):
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

    count: how many of a call's fields are its arguments, all but ``out``.
    new: picks from a call's outputs those that are no input changed in place: a tuple, or the only one. An output that
    is None comes back from torch as a tensor without elements, since a schema's outputs are always there.
    """

    def __init__(self, op: Op) -> None:
        self.name, self.call, self.count = op.name, op.call, len(op.arguments)
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
        SCHEMAS[op.name] = schema
        self.custom_op = torch.library.custom_op(name, implementation, mutates_args=op.in_place, schema=schema)
        self.custom_op.register_fake(lambda *args: new(specs.empty_outputs(op, op.call(*args))))
        self.custom_op.register_vmap(batching_rule(op, self.custom_op))

    def run(self, *args: Any) -> Any:
        """The tuned kernel, past torch's dispatcher."""
        return self.new(dispatch.call(self.name, self.call(*args)))

    def traced(self, *args: Any) -> Any:
        """The custom op, which modes, tracers and DTensors see."""
        if not torch.compiler.is_compiling():
            _flops.know(self.name)
            if "torch.distributed.tensor" in sys.modules:
                _know_sharding(self.name)
        return self.custom_op(*args)

    def __call__(self, *args: Any) -> Any:
        return self.traced(*args)


@functools.cache
def _know_sharding(op_name: str) -> None:
    """Register an op's sharding rules; where no DTensor exists, torch's module of them is not loaded for this."""
    from griffin_kernels.functional import _sharding

    _sharding.register(catalog.op(op_name), getattr(torch.ops.griffin_kernels, op_name).default)


def _keep(save: Callable[..., None], ctx: Any, values: Sequence[Any]) -> None:
    """Keep values of any kind on the context of an autograd.Function, tensors by ``save``."""
    save(*[value for value in values if isinstance(value, Tensor)])
    ctx.others = [None if isinstance(value, Tensor) else (value,) for value in values]


def _kept(ctx: Any) -> list[Any]:
    """What ``_keep`` kept."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


def _function(kind: str, op: Op, methods: dict[str, Any]) -> Any:
    """An autograd.Function of static methods."""
    return type(f"{kind}_{op.name}", (torch.autograd.Function,), {k: staticmethod(m) for k, m in methods.items()})


class WithGradient(Operator):
    """An op that autograd records: as a custom op, in an eager call, and within the transforms of torch.func.

    setup_context, backward: as of a torch.autograd.Function with setup_context apart. once: backward has no derivative.
    tangents: ``(op, call, first output, tangents by name) -> tangents of the outputs``; without it forward mode raises.
    """

    def record(self, op: Op, setup_context: Any, backward: Any, *, once: bool, tangents: Any = None) -> None:
        """Give the op its derivatives."""
        self.custom_op.register_autograd(backward, setup_context=setup_context)
        self.has_forward_mode = tangents is not None

        def forward_and_save(ctx: Any, *args: Any) -> Any:
            outputs = self.run(*args)
            setup_context(ctx, args, outputs)
            return outputs

        def setup_both(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, inputs, output)
            if tangents is not None:
                _keep(ctx.save_for_forward, ctx, (*inputs, output[0] if isinstance(output, tuple) else output))

        def jvp(ctx: Any, *moved: Any) -> Any:
            *inputs, first = _kept(ctx)
            return self.new(tangents(self, op.call(*inputs), first, op.call(*moved)))

        pulled = torch.autograd.function.once_differentiable(backward) if once else backward
        # functorch wants setup_context apart; with it apart torch inspects signatures at every call, some 40 us
        self.saving = _function("Eager", op, {"forward": forward_and_save, "backward": pulled})
        apart = {"forward": self.run, "setup_context": setup_both, "backward": pulled}
        apart |= {"jvp": jvp if tangents else _no_rule(op.name, _TANGENTS), "vmap": batching_rule(op, self)}
        self.transformable = _function("Transformable", op, apart)

    def __call__(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling():
            dual = forward_ad._current_level >= 0 and has_tangents(args)
            if dual and not self.has_forward_mode:
                _no_rule(self.name, _TANGENTS)()
            if dual or _functorch.peek_interpreter_stack() is not None:
                return self.transformable.apply(*args)  # functorch refuses custom ops whose gradient is Python
        if not is_plain(args):
            return self.traced(*args)
        if wants_gradient(args):
            return self.saving.apply(*args)
        return self.run(*args)


class Gradient(WithGradient):
    """A gradient op that has a gradient itself: that of ``composed``, the same gradient made of the forward op."""

    def __init__(self, op: Op, composed: Callable[[Any], tuple[Tensor | None, ...]]) -> None:
        super().__init__(op)
        fields = op.call._fields

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _keep(ctx.save_for_backward, ctx, inputs)

        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            call = op.call(*_kept(ctx))
            moving = [k for k, v in zip(fields, call, strict=True) if isinstance(v, Tensor) and v.is_floating_point()]

            def results(*values: Tensor) -> list[Tensor]:
                moved = composed(call._replace(**dict(zip(moving, values, strict=True))))
                return [out for out in moved if out is not None]

            pulled: Any = torch.func.vjp(results, *[getattr(call, name) for name in moving])
            outputs, pull = pulled
            # dh0, the last of the outputs, may be absent
            given = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, gradients, strict=False)]
            found = dict(zip(moving, pull(given), strict=True))
            return tuple([found.get(name) for name in fields])

        self.record(op, setup_context, backward, once=False)


class Differentiable(WithGradient):
    """A forward op with its gradient ``<op>_bwd``.

    What is kept for the gradient, and what of its results is a gradient of what, is told by names: an argument of the
    gradient is the forward pass's input, output or option of that name, or with a ``d`` before it what reaches an
    output; its results are inputs' names with a ``d`` before them.
    """

    def __init__(self, op: Op) -> None:
        super().__init__(op)
        backward_op = catalog.op(f"{op.name}_bwd")
        fields, results = op.call._fields, tuple(op.outputs)
        rules = _derivatives.RULES.get(op.name)
        if rules is None:
            backward_operator = Operator(backward_op)
        else:
            backward_operator = Gradient(backward_op, functools.partial(rules.gradient, self))
        apart = {f"d{output}": rule for output, rule in rules.apart.items()} if rules else {}
        added, instead = _derivatives.ADDED.get(op.name, {}), _derivatives.INSTEAD.get(op.name, {})
        upstream = [name for name in backward_op.call._fields if name.removeprefix("d") in results and name[0] == "d"]
        kept = [name for name in backward_op.inputs if name not in upstream]
        options = [name for name in backward_op.options if name in fields]
        # zeros where nothing reaches an output that the gradient does not take as None: like what is kept of that shape
        known_as = backward_op.inputs
        zeros = {
            name: next(other for other in kept if known_as[other] == known_as[name])
            for name in upstream
            if not known_as[name].optional and len(results) > 1
        }

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            known = dict(zip(results, outputs, strict=True)) | dict(zip(fields, inputs, strict=True))
            known |= {name: known[output] for name, (there, output) in instead.items() if known[there] is not None}
            # what only an option needs stays with those calls that have it
            needed = [not (when := backward_op.inputs[name].when) or known[when] for name in kept]
            ctx.save_for_backward(*[known[name] if need else None for name, need in zip(kept, needed, strict=True)])
            ctx.options = {name: known[name] for name in options}
            ctx.added = [name for name in added if known[name] is not None]
            ctx.absent = [f"d{output}" for there, output in instead.values() if known[there] is None]
            ctx.set_materialize_grads(False)  # torch would make plain zeros for DTensors too

        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            if gradients == (None,):  # nothing reaches the only output
                return (None,) * len(fields)
            saved = dict(zip(kept, ctx.saved_tensors, strict=True))
            reached = {f"d{name}": gradient for name, gradient in zip(results, gradients, strict=True)}
            reached |= dict.fromkeys(ctx.absent)
            for name, like in zeros.items():
                if reached[name] is None:
                    reached[name] = torch.zeros_like(saved[like])
            given = backward_op.call(**saved, **ctx.options, **{name: reached[name] for name in upstream})
            found = dict(zip(backward_op.outputs, _backward(backward_operator, given), strict=True))
            for output, (name, rule) in apart.items():
                gradient = reached[output]
                if gradient is not None and gradient.numel():
                    mine = found[f"d{name}"]
                    assert mine is not None
                    found[f"d{name}"] = mine + rule(
                        self, functools.partial(_backward, backward_operator), given, gradient
                    )
            for name in ctx.added:
                found[f"d{name}"] = _handed_on((found | reached)[f"d{added[name]}"], saved.get("cu_seqlens"))
            for name, value in saved.items():  # autograd takes a gradient in the dtype of its input
                if not known_as[name].when and (mine := found.get(f"d{name}")) is not None:
                    found[f"d{name}"] = None if value is None else mine.to(value.dtype)
            return tuple([found.get(f"d{name}") for name in fields])

        self.record(op, setup_context, backward, once=rules is None, tangents=rules and rules.tangents)


class InPlace(Operator):
    """An op that changes its states where they are.

    It has no gradient: in grad mode, a tensor that requires one raises ArgumentError, which names the op to use.
    """

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            check_tangents(self.name, args)
        if torch.is_grad_enabled():
            for name, value in zip(self.call._fields, args, strict=True):
                if isinstance(value, Tensor) and value.requires_grad:
                    text = f"{self.name}: {name} requires a gradient, and a call that changes states in place has none"
                    sequence = self.name.removesuffix("_step").removesuffix("_extend")
                    instead = f"call it under torch.no_grad(), or use {sequence}"
                    raise errors.ArgumentError(f"{text}: {instead}")
        if is_plain(args):
            return self.run(*args)
        new = self.traced(*args[: self.count])
        into = [out for out in args[self.count :] if out is not None]
        return _written(self.name, into[0], new) if into else new


def _written(op_name: str, out: Any, new: Tensor) -> Tensor:
    """``out``, with what a traced step gave copied into it: an operator's outputs may not be its inputs."""
    if not isinstance(out, Tensor):
        raise errors.ArgumentError(f"{op_name}: out is a {type(out).__name__}, expected a tensor {list(new.shape)}")
    if out.shape != new.shape:
        raise errors.ShapeError(f"{op_name}: out has shape {list(out.shape)}, expected {list(new.shape)}")
    if out.dtype != new.dtype:
        raise errors.DtypeError(f"{op_name}: out is {dtype_name(out.dtype)}, expected {dtype_name(new.dtype)}")
    if out.device != new.device:
        raise errors.DeviceMismatchError(f"{op_name}: out is on {out.device}, the first argument on {new.device}")
    return out.copy_(new)


@functools.cache
def registered(op_name: str) -> Callable[..., Any]:
    """The operator of an op that users call, registered with torch as ``griffin_kernels::<op>``."""
    op = catalog.op(op_name)
    return InPlace(op) if op.in_place else Differentiable(op)


def wants_gradient(args: Sequence[Any]) -> bool:
    """Whether autograd will ask for a gradient of a call."""
    return torch.is_grad_enabled() and any(
        [type(arg) not in dispatch.OTHERS and isinstance(arg, Tensor) and arg.requires_grad for arg in args]
    )


def whole(index: Any) -> Any:
    """Positions and slots as int64; whatever else comes is for the op's own checks."""
    return index.long() if index is not None and isinstance(index, Tensor) and index.dtype == torch.int32 else index


def offsets(index: Any) -> Any:
    """Offsets of packed sequences as int32; whatever else comes is for the op's own checks."""
    if index is None or not isinstance(index, Tensor) or index.dtype != torch.int64:
        return index
    return index.clamp(-1, LARGEST_INDEX).int()  # what does not fit stays wrong


def _backward(op: Operator, call: Any) -> tuple[Tensor | None, ...]:
    """Run a backward op by whichever road the forward pass is on; absent outputs are None or without elements."""
    if forward_ad._current_level >= 0:
        check_tangents(op.name, call)
    outputs: Any
    if is_plain(call) and not (isinstance(op, Gradient) and wants_gradient(call)):
        try:
            return dispatch.call(op.name, call)
        except RuntimeError:
            # looked at only now, as asking takes as long as a small call: both kinds pass for plain tensors
            if any([isinstance(value, Tensor) and _functorch.is_legacy_batchedtensor(value) for value in call]):
                outputs = op.custom_op(*call)  # torch calls it once per entry
            else:
                # what torch.func wrapped in a forward pass that is over, as the function of vjp keeps it
                wrapped = [isinstance(v, Tensor) and _functorch.is_functorch_wrapped_tensor(v) for v in call]
                unwrapped = op.call(
                    *[_functorch.unwrap_if_dead(v) if dead else v for v, dead in zip(call, wrapped, strict=True)]
                )
                if all([mine is given for mine, given in zip(unwrapped, call, strict=True)]):
                    raise
                return dispatch.call(op.name, unwrapped)
    else:
        outputs = op(*call)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _handed_on(gradient: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """The gradient [B,T,D] of an output as that of what was added to it: 0 at steps past the sequences' end."""
    if gradient is None or cu_seqlens is None or not specs.is_on_host("cu_seqlens", cu_seqlens):
        return gradient
    time = gradient.shape[1]
    if is_plain((gradient, cu_seqlens)) and int(cu_seqlens[-1]) == time:
        return gradient
    past = torch.arange(time, dtype=torch.int64, device=gradient.device) >= cu_seqlens[-1]
    return gradient.masked_fill(past[:, None], 0.0)


def is_plain(args: tuple[Any, ...]) -> bool:
    """True for ordinary tensors outside any tracer, mode or transform."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _functorch.peek_interpreter_stack():
        return False
    return not any([type(arg) not in _PLAIN and isinstance(arg, Tensor) for arg in args])
