"""Calls of any op through its operator, for tests that loop over the table."""

from __future__ import annotations

import inspect

import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog
from griffin_kernels.contract import Inputs
from griffin_kernels.functional._bridge import registered

CPU = torch.device("cpu")
DIFFERENTIABLE = [name for name in catalog.ops() if name in {catalog.op(other).forward for other in catalog.ops()}]
STEPS = [name for name in catalog.ops() if catalog.op(name).in_place]


def operator(name):
    """The callable behind the public function, with the op's arguments by name."""
    return lambda **given: registered(name)(*catalog.op(name).call(**given))


PARAMETERS = {
    name: tuple(inspect.signature(getattr(griffin_kernels, name)).parameters) for name in DIFFERENTIABLE + STEPS
}


def public(name, given):
    """A call of the public function, by the op's names; a tuple of its results."""
    if "weights" in PARAMETERS[name]:
        given = given | {"weights": RGLRUWeights(**{gate: given[gate] for gate in RGLRUWeights._fields})}
    if isinstance(given.get("log_a"), bool):  # the op's option; the function has an argument for each
        given = given | {"log_a": given["a"] if given["log_a"] else None, "a": None if given["log_a"] else given["a"]}
    if name == "linear_scan":
        given = given | {"return_a_prod": given.get("with_a_prod", False)}
    outputs = getattr(griffin_kernels, name)(**{k: v for k, v in given.items() if k in PARAMETERS[name]})
    return outputs if isinstance(outputs, tuple) else (outputs,)


def small(name, count=1, wanted=()):
    """The smallest float32 cases of an op that have all the ``wanted`` flags or data."""
    op = catalog.op(name)
    cases = [c for c in op.cases if c.dtype == "float32" and set(wanted) <= {*c.flags, *c.data}]
    return sorted((c for c in cases if 0 not in c.dims.values()), key=lambda case: op.cost(case).bytes_total)[:count]


def leaves(inputs: Inputs) -> Inputs:
    """Inputs that require gradients where they can."""
    return {
        name: value.clone().requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def copies(inputs: Inputs) -> Inputs:
    """The same inputs with memory of their own and no gradients."""
    return {name: v.detach().clone() if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
