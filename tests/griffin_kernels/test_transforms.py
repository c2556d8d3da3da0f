"""Transforms of torch that the operators have no rule for are errors in words, and never a lost tangent."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import griffin_kernels
from griffin_kernels import catalog, errors
from tests.calls import CPU, DIFFERENTIABLE, STEPS, operator, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

FORWARD, BATCHED = "no rule for forward-mode", "no rule for vmap"


def problem(name):
    """(function of the first input, that input) of an op."""
    op = catalog.op(name)
    given = op.make_inputs(small(name)[0], CPU, 0)
    call, first = operator(name), next(iter(op.inputs))

    def function(value):
        outputs = call(**given | {first: value})
        return outputs if isinstance(outputs, torch.Tensor) else outputs[0]

    return function, given[first]


@pytest.mark.parametrize("name", DIFFERENTIABLE + STEPS)
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


@pytest.mark.parametrize("name", DIFFERENTIABLE + STEPS)
def test_vmap(name):
    function, x = problem(name)
    with pytest.raises(errors.TransformError, match=f"{name} has {BATCHED}.*loop over it"):
        torch.func.vmap(function)(torch.stack([x, x]))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batched_and_second_gradients(name):
    function, x = problem(name)
    with pytest.raises(errors.TransformError, match=f"{name}_bwd has {BATCHED}"):
        torch.func.jacrev(function)(x)
    with pytest.raises(errors.TransformError):
        torch.func.hessian(lambda value: function(value).sum())(x)
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    with pytest.raises(errors.TransformError, match=f"{name}_bwd has {BATCHED}"):
        torch.autograd.grad(out, leaf, torch.stack([torch.ones_like(out)] * 2), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(errors.TransformError, match=f"{name}_bwd has {FORWARD}"):
        dual = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        torch.autograd.grad(function(leaf), leaf, dual)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_reverse_mode_of_torch_func(name):
    """grad within its level, and vjp, whose function is called when the level is over."""
    function, x = problem(name)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(function(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda value: function(value).sum())(x), want)
    out, pull = torch.func.vjp(function, x)
    torch.testing.assert_close(pull(torch.ones_like(out))[0], want)


def test_compiled_code_loses_no_tangent():
    x, a = torch.randn(1, 4, 3), torch.rand(1, 4, 3)
    compiled = torch.compile(
        lambda value: griffin_kernels.linear_scan(value, a)[0], backend="aot_eager", fullgraph=True
    )
    compiled(x)
    with forward_ad.dual_level(), pytest.raises(errors.TransformError, match=FORWARD):
        compiled(forward_ad.make_dual(x, torch.ones_like(x)))
