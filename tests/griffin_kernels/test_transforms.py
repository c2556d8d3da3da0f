"""Transforms of torch: each op has the rule, or says in words that it has none; a tangent is never lost."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.jit.frontend import NotSupportedError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import griffin_kernels
from griffin_kernels import catalog, errors, pieces
from griffin_kernels.contract import Case
from griffin_kernels.functional import _derivatives
from griffin_kernels.models import Griffin, preset
from tests.calls import CPU, DIFFERENTIABLE, STEPS, copies, leaves, operator, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

FORWARD = "no rule for forward-mode"
RULED = sorted(_derivatives.RULES)
SCANS = [name for name in RULED if "a" in catalog.op(name).inputs]
OTHERS = [name for name in DIFFERENTIABLE if name not in _derivatives.RULES]


def inputs_of(name, case, seed=0):
    """Inputs with all that the gradient needs."""
    op = catalog.op(name)
    return op.make_inputs(case, CPU, seed) | {option: True for option in op.options if option.startswith("with_")}


def problem(name):
    """(function of the first input, that input) of an op."""
    op = catalog.op(name)
    given = inputs_of(name, small(name)[0])
    call, first = operator(name), next(iter(op.inputs))

    def function(value):
        outputs = call(**given | {first: value})
        return outputs if isinstance(outputs, torch.Tensor) else outputs[0]

    return function, given[first]


def results(name, given):
    """Outputs of a call that are there, a tuple."""
    outputs = operator(name)(**given)
    return tuple(o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None)


def floats(given):
    return [k for k, v in given.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]


def stacked(draws, names):
    """(inputs with entries for vmap where ``names`` says, its in_dims)."""
    given = {k: torch.stack([d[k] for d in draws]) if k in names else v for k, v in copies(draws[0]).items()}
    return given, {k: 0 if k in names else None for k in given}


def few(name):
    """Small cases with all that an op knows: packed, segmented, reset, states."""
    return [case for case in small(name, 6) if "slots" not in case.data]


BY_CASE = pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in DIFFERENTIABLE + STEPS for case in few(name)],
    ids=lambda value: getattr(value, "key", value),
)


@BY_CASE
@pytest.mark.parametrize("which", ["all", "first"])
def test_vmap_is_a_loop(name, case, which):
    op = catalog.op(name)
    draws = [inputs_of(name, case, seed) for seed in range(3)]
    names = {"all": floats(draws[0]), "first": [*floats(draws[0])[:1], *op.in_place]}[which]
    given, dims = stacked(draws, names)
    found = torch.func.vmap(lambda given: results(name, given), in_dims=(dims,))(given)
    for entry, draw in enumerate(draws):
        one = copies({k: draw[k] if k in names else draws[0][k] for k in given})
        wanted = results(name, one)
        for mine, want in zip(found, wanted, strict=True):
            # products of wild gates are not finite
            torch.testing.assert_close(mine[entry], want, rtol=1e-4, atol=1e-5, equal_nan=True)
        for state in op.in_place:
            torch.testing.assert_close(given[state][entry], one[state], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_vmap_over_a_shared_state_is_an_error(name):
    function, x = problem(name)
    with pytest.raises(errors.TransformError, match=f"{name}: vmap maps over another argument but not over"):
        torch.func.vmap(function)(torch.stack([x, x]))


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in DIFFERENTIABLE for c in few(n)[:3]], ids=str)
def test_per_sample_gradients(name, case):
    draws = [inputs_of(name, case, seed) for seed in range(2)]
    first = floats(draws[0])[0]
    fixed = {k: v for k, v in draws[0].items() if k not in floats(draws[0])}
    given, dims = stacked([{k: d[k] for k in floats(d)} for d in draws], [first])

    def loss(values):
        return sum(out.float().square().sum() for out in results(name, fixed | values))

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(dims,))(given)
    for entry, draw in enumerate(draws):
        want = torch.func.grad(loss)(given | {first: draw[first]})
        for key, gradient in want.items():
            torch.testing.assert_close(found[key][entry], gradient, rtol=1e-4, atol=1e-4)


def double_cases():
    """Of what has rules, in float64: a state, resets, packed sequences with an empty one, either direction."""
    for name in RULED:
        for case in catalog.op(name).cases_tagged("smoke", "edge"):
            if case.dtype == "float32" and not {"wild", "near_one"} & set(case.data) and case["T"] * case["D"] < 6000:
                dims = dict(case.dims) | {"T": min(case["T"], 9)}
                for axis in ("D", "H"):
                    if axis in dims and "n" not in dims:
                        dims[axis] = min(dims[axis], 3)
                if "n" in dims:
                    dims |= {"H": 1, "D": dims["n"]}
                if dims.get("n", 1) <= 4:
                    yield name, Case(dims, "float64", case.flags, data=case.data)


@pytest.mark.parametrize(("name", "case"), dict.fromkeys(double_cases()), ids=lambda v: getattr(v, "key", v))
def test_what_has_rules_has_every_derivative(name, case):
    """Tangents, batched gradients, and gradients of gradients, against differences."""
    given = inputs_of(name, case)
    names = floats(given)

    def function(*values):
        # what an operator gives for an absent output has no elements
        return tuple(o for o in results(name, given | dict(zip(names, values, strict=True))) if o.numel())

    values = list(leaves({k: given[k] for k in names}).values())
    assert gradcheck(function, values, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, values)


@pytest.mark.parametrize("name", SCANS)
def test_transforms_compose(name):
    given = pieces.in_dtype(torch.float64, inputs_of(name, small(name)[0]))

    def first(a):
        return results(name, given | {"a": a})[0]

    a = given["a"]
    torch.testing.assert_close(torch.func.jacfwd(first)(a), torch.func.jacrev(first)(a))
    squared = lambda a: first(a).square().sum()  # noqa: E731
    hessian = torch.func.jacrev(torch.func.jacrev(squared))(a)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(squared, a))
    with pytest.raises(errors.TransformError, match=f"{name}_bwd has {FORWARD}"):
        torch.func.hessian(squared)(a)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_second_gradients_of_16_bit_data(name, dtype):
    """As those of the same values in float64, within the rounding of results to the dtype."""
    case = next(c for c in catalog.op(name).cases_tagged("smoke", "edge") if c.dtype == dtype and not c.data)
    given = inputs_of(name, case)

    def second(cast):
        values = [given[k].to(cast).requires_grad_() for k in ("x", "a")]
        out = results(name, given | dict(zip(("x", "a"), values, strict=True)))[0]
        first = torch.autograd.grad((out.double() / 64).square().sum(), values, create_graph=True)
        return torch.autograd.grad(sum((g.double() / 64).square().sum() for g in first), values)

    # three passes over data rounded to the dtype, each with an error of one unit in the norm of what it reads
    unit = torch.finfo(getattr(torch, dtype)).eps
    for mine, want in zip(second(getattr(torch, dtype)), second(torch.float64), strict=True):
        assert (mine.double() - want).norm() <= 8 * unit * want.norm()


@pytest.mark.parametrize("name", OTHERS + STEPS)
def test_forward_mode(name):
    function, x = problem(name)
    with pytest.raises(errors.TransformError, match=f"{name} has {FORWARD}.*reverse mode"):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        function(x)  # no dual number, no error
        with pytest.raises(errors.TransformError, match=FORWARD):
            function(forward_ad.make_dual(x, torch.ones_like(x)))
    if name in DIFFERENTIABLE:
        with forward_ad.dual_level(), pytest.raises(errors.TransformError, match=FORWARD):
            function(forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x)))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batched_gradients(name):
    function, x = problem(name)
    jacobian = torch.func.jacrev(function)(x)
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    basis = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    (batched,) = torch.autograd.grad(out, leaf, basis, is_grads_batched=True)
    torch.testing.assert_close(batched.view_as(jacobian), jacobian)
    (last,) = torch.autograd.grad(function(leaf), leaf, basis[-1])
    torch.testing.assert_close(batched[-1], last)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_tangents_of_gradients_are_an_error(name):
    function, x = problem(name)
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level(), pytest.raises(errors.TransformError, match=f"{name}_bwd has {FORWARD}"):
        out = function(leaf)
        dual = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        torch.autograd.grad(out, leaf, dual)


@pytest.mark.parametrize("name", OTHERS)
def test_second_gradients_are_an_error(name):
    function, x = problem(name)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_reverse_mode_of_torch_func(name):
    """grad within its level, and vjp, whose function is called when the level is over."""
    function, x = problem(name)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(function(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda value: function(value).sum())(x), want)
    out, pull = torch.func.vjp(function, x)
    torch.testing.assert_close(pull(torch.ones_like(out))[0], want)


def test_compiled_code_has_tangents():
    x, a = torch.randn(1, 4, 3), torch.rand(1, 4, 3)
    scan = lambda value: griffin_kernels.linear_scan(value, a)[0]  # noqa: E731
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    compiled(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        want = forward_ad.unpack_dual(scan(dual)).tangent
        with pytest.raises(errors.TransformError, match=FORWARD):
            compiled(dual)
        assert want is not None


@pytest.mark.parametrize("name", DIFFERENTIABLE + STEPS)
def test_flops_are_those_of_the_roofline(name):
    op = catalog.op(name)
    case = small(name)[0]
    given = inputs_of(name, case)
    given = leaves(given) if name in DIFFERENTIABLE else given

    def flops(op, case):
        cost = op.cost(case)
        return cost.tensor_flops + cost.vector_flops

    with FlopCounterMode(display=False) as counter:
        outputs = results(name, given)
        if name in DIFFERENTIABLE:
            outputs[0].sum().backward()
    counts = counter.get_flop_counts()["Global"]
    packets = torch.ops.griffin_kernels
    assert counts[getattr(packets, name)] == flops(op, op.case_of(op.call(**given)))
    if name in DIFFERENTIABLE:
        assert counts[getattr(packets, f"{name}_bwd")] > 0


@pytest.mark.parametrize("name", DIFFERENTIABLE + STEPS)
def test_meta_tensors(name):
    """Shapes and dtypes without memory, forward and backward."""
    given = inputs_of(name, small(name)[0])
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    wanted = results(name, copies(given))
    meta = leaves(meta) if name in DIFFERENTIABLE else meta
    found = results(name, meta)[: len(wanted)]
    assert [(o.shape, o.dtype, o.device.type) for o in found] == [(o.shape, o.dtype, "meta") for o in wanted]
    if name in DIFFERENTIABLE:
        found[0].sum().backward()
        assert all(v.grad.shape == v.shape for k, v in meta.items() if k in floats(meta) and v.grad is not None)


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = Griffin(preset("griffin-tiny"))
        logits = model(torch.zeros(2, 12, dtype=torch.int64))[0]
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Logits(torch.nn.Module):
    """A model without its cache among the results."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0]


def test_a_model_is_exported():
    model = Logits(Griffin(preset("griffin-tiny"))).eval()
    tokens = torch.randint(0, 32, (2, 12))
    program = torch.export.export(model, (tokens,))
    assert "griffin_kernels.recurrent_block" in str(program.graph)
    torch.testing.assert_close(program.module()(tokens), model(tokens))


def test_a_model_of_fake_tensors():
    with FakeTensorMode():
        model = Griffin(preset("griffin-tiny"))
        tokens = torch.zeros(2, 12, dtype=torch.int64)
        logits, cache = model(tokens)
        assert logits.shape == (2, 12, model.config.vocab_size)
        logits.sum().backward()
        with torch.no_grad():
            assert model(tokens[:, :1], cache=cache)[0].shape == (2, 1, model.config.vocab_size)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_selective_checkpointing_keeps_an_op_by_name(name):
    """What the policy keeps is not computed again in the backward pass, and gradients are the same."""
    function, x = problem(name)
    kept = getattr(torch.ops.griffin_kernels, name).default
    ran = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            ran.append(op)
            return op(*args, **kwargs or {})

    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op is kept else CheckpointPolicy.PREFER_RECOMPUTE

    def loss(value):
        return function(value.sin()).square().sum()

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with Watch():
        out = checkpoint(loss, leaf, use_reentrant=False, context_fn=contexts)
        (found,) = torch.autograd.grad(out, leaf)
    torch.testing.assert_close(found, want)
    assert ran.count(kept) == 1
    assert ran.count(torch.ops.aten.sin.default) == 2


def test_torch_script_refuses():
    with pytest.raises(NotSupportedError, match="keyword-only arguments"):
        torch.jit.script(griffin_kernels.linear_scan)
