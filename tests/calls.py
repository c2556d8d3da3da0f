"""Calls of any op through its operator, for tests that loop over the table."""

from __future__ import annotations

import inspect

import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights, catalog
from griffin_kernels.contract import Case, Inputs
from griffin_kernels.functional._bridge import registered

CPU = torch.device("cpu")
DIFFERENTIABLE = [name for name in catalog.ops() if name in {catalog.op(other).forward for other in catalog.ops()}]
STEPS = [name for name in catalog.ops() if catalog.op(name).in_place]

ROWS = {
    "linear_scan": "B2-T{}-D6-{}~h0",
    "block_diagonal_scan": "B2-T{}-D12-H3-n4-{}~h0",
    "block_diagonal_scan, blocks of one": "B2-T{}-D3-H3-n1-{}~h0",
    "complex_scan": "B2-T{}-D3-{}~h0",
    "rg_lru": "B2-T{}-D8-H2-n4-{}+segmented~h0",
    "rg_lru_gated": "B2-T{}-D8-{}+segmented~h0~c",
    "temporal_conv1d": "B2-T{}-D8-K4-{}~state",
    "temporal_conv1d, documents": "B2-T{}-D8-K4-{}+segmented~state",
    "temporal_conv1d, silu": "B2-T{}-D8-K4-{}+silu~state",
    "temporal_conv1d, residual": "B2-T{}-D8-K4-{}+residual~state",
    "temporal_conv1d, gelu without a bias": "B2-T{}-D8-K4-{}+gelu~state~no_bias",
    "recurrent_block": "B2-T{}-D8-K4-H2-n4-{}+segmented~state~h0",
    "gated_gelu": "B2-T{}-D8-{}",
    "geglu": "B2-T{}-D8-{}",
    "local_attention": "B2-T{}-Hq4-Hkv2-d8-W5-{}+softcap",
    "local_attention, documents": "B2-T{}-Hq4-Hkv2-d8-W5-{}+segmented",
    "rms_norm": "B2-T{}-D8-{}+residual~offset",
    "rms_norm, alone": "B2-T{}-D8-{}",
    "rg_lru_step": "B3-D8-H2-n4-P5-{1}~positions~slots",
    "temporal_conv1d_step": "B3-D8-K4-P5-{1}~positions~slots",
    "recurrent_block_step": "B3-D8-K4-H2-n4-P5-{1}~positions~slots",
    "linear_scan_step": "B3-D8-P5-{1}~reset~slots",
    "local_attention_step": "B3-W5-Hq4-Hkv2-d8-P5-{1}~early~slots",
    "rg_lru_extend": "B3-T{}-D8-H2-n4-P7-{}+segmented~checkpoints",
    "recurrent_block_extend": "B3-T{}-D8-K4-H2-n4-P7-{}+segmented~checkpoints",
    "local_attention_extend": "B3-T{}-W5-Hq4-Hkv2-d8-P5-{}~early~slots~lengths",
    "local_attention_extend, pages": "B3-T{}-W5-Hq4-Hkv2-d8-P7-{}+paged~early~lengths",
    "linear_scan_extend": "B3-T{}-D8-P7-{}+reset~checkpoints",
    "temporal_conv1d_extend": "B3-T{}-D8-K4-P7-{}+segmented+silu~checkpoints",
}
"""A small call of every public op by label: its case, but for the number of steps and the dtype."""

SEQUENCES = [label for label in ROWS if not catalog.op(label.partition(",")[0]).in_place]
STATES = {"h_last": "h0", "new_state": "state", "new_conv_state": "conv_state"}
"""Outputs that are a later value of an input."""


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
    if name == "geglu" and isinstance(given["x"], torch.Tensor) and given["x"].dim() > 1:
        given = given | {"x": given["x"].flatten(-2)}  # [B,T,2,D]; the function has both halves in one dimension
    if name == "linear_scan":
        given = given | {"return_a_prod": given.get("with_a_prod", False)}
    outputs = getattr(griffin_kernels, name)(**{k: v for k, v in given.items() if k in PARAMETERS[name]})
    return outputs if isinstance(outputs, tuple) else (outputs,)


def small(name, count=1, wanted=(), dtype="float32"):
    """The smallest cases of an op and a dtype that have all the ``wanted`` flags or data."""
    op = catalog.op(name)
    cases = [c for c in op.cases if c.dtype == dtype and set(wanted) <= {*c.flags, *c.data}]
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


def op_of(label):
    return catalog.op(label.partition(",")[0])


def row(label, steps=6, dtype="float32"):
    """Inputs of a row by name."""
    op = op_of(label)
    return op.make_inputs(Case.parse(op.name, ROWS[label].format(steps, dtype), tuple(op.cases[0].dims)), CPU, 0)


def floats(inputs):
    return {name: v for name, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad}
