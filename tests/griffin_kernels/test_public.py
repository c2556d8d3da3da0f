"""The public operations as one table: gradients, opcheck, torch.compile, empty input, of every op alike."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from griffin_kernels import catalog, pieces, verify
from griffin_kernels.functional import _derivatives
from tests.calls import (
    CPU,
    DIFFERENTIABLE,
    ROWS,
    SEQUENCES,
    STATES,
    STEPS,
    copies,
    floats,
    leaves,
    op_of,
    public,
    row,
)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call_cases(name):
    """Smoke and edge cases of a forward op; of attention those of its gradient, which are fewer.

    Random gradients leave the floats on their way through wild gates: linear_scan_bwd's wild cases bring their own.
    """
    op = catalog.op("local_attention_bwd" if name == "local_attention" else name)
    return [case for case in op.cases_tagged("smoke", "edge") if "wild" not in case.data]


DERIVED = pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in DIFFERENTIABLE for case in call_cases(name)],
    ids=lambda value: getattr(value, "key", value),
)


@DERIVED
def test_backward_reference_is_autograd_of_the_forward_reference(name, case):
    op, backward = catalog.op(name), catalog.op(f"{name}_bwd")
    inputs = leaves(pieces.in_dtype(torch.float64, op.make_inputs(case, CPU, 0))) | {
        option: True for option in op.options if option.startswith("with_")
    }
    outputs = dict(zip(op.outputs, op.reference(op.call(**inputs)), strict=True))
    known_as = backward.inputs
    upstream = {f"d{k}": torch.randn_like(v) for k, v in outputs.items() if f"d{k}" in known_as and v is not None}
    wanted = floats(inputs)
    targets = [outputs[k.removeprefix("d")] for k in upstream]
    want = torch.autograd.grad(targets, list(wanted.values()), list(upstream.values()), allow_unused=True)
    known = copies(outputs) | copies(inputs) | upstream
    instead = _derivatives.INSTEAD.get(name, {}).items()
    known |= {k: known[output] for k, (there, output) in instead if known[there] is not None}
    got = backward.reference(backward.call(**{k: known.get(k) for k in backward.call._fields}))
    found = dict(zip(backward.outputs, got, strict=True))
    reached = found | upstream
    found |= {f"d{k}": reached[f"d{y}"] for k, y in _derivatives.ADDED.get(name, {}).items() if k in wanted}
    assert {k for k, v in found.items() if v is not None} == {f"d{k}" for k in wanted}
    bound = {"rg_lru": 1e-10, "recurrent_block": 1e-10, "local_attention": 1e-11}.get(name, 1e-12)
    for argument, theirs in zip(wanted, want, strict=True):
        mine = found[f"d{argument}"]
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound, msg=lambda text, n=argument: f"{n}: {text}")


@DERIVED
def test_gradients_match_float64_autograd(name, case):
    op = catalog.op(name)
    inputs = op.make_inputs(case, CPU, 0)
    exact = leaves(pieces.in_dtype(torch.float64, inputs))
    inputs = leaves(inputs)
    targets = public(name, inputs)
    upstream = [torch.randn_like(target) for target in targets]
    got = torch.autograd.grad(targets, list(floats(inputs).values()), upstream)
    references = op.reference(op.call(**exact))[: len(targets)]
    want = torch.autograd.grad(
        references, list(floats(exact).values()), [u.double() for u in upstream], allow_unused=True
    )
    tolerance = catalog.op(f"{name}_bwd").tolerance(case)
    # a recurrence's gradient multiplies by h as returned, which is rounded to the data's dtype: one more rounding than
    # the contract of the backward op, whose reference is given the rounded h
    extra = 0.0 if name in ("temporal_conv1d", "local_attention") else torch.finfo(case.torch_dtype).eps
    for argument, mine, theirs in zip(floats(inputs), got, want, strict=True):
        error = verify.error_of(argument, mine, mine.new_zeros(mine.shape).double() if theirs is None else theirs)
        assert error.rel_norm <= tolerance.rel_norm + extra, error
        assert error.worst <= tolerance.worst + 2 * extra, error


@pytest.mark.parametrize("label", SEQUENCES)
def test_gradient_of_one_argument_alone(label):
    inputs = row(label, 5, "float64")
    for name in floats(leaves(inputs)):
        given = inputs | {name: inputs[name].clone().requires_grad_()}
        function, fast = lambda _, given=given: public(op_of(label).name, given), label != "linear_scan"
        assert torch.autograd.gradcheck(function, (given[name],), fast_mode=fast)


@pytest.mark.parametrize("label", SEQUENCES)
def test_functorch_gradient(label):
    name, inputs = op_of(label).name, row(label)
    first = next(iter(inputs))
    gradient = torch.func.grad(lambda value: public(name, inputs | {first: value})[0].sum())(inputs[first])
    leaf = inputs[first].clone().requires_grad_()
    public(name, inputs | {first: leaf})[0].sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def opchecked():
    """(op, case) for every public op and gradient; of the dearer ones a few, plain, packed or strided."""
    for name in DIFFERENTIABLE:
        cases, every = call_cases(name), catalog.op(name).cases_tagged("smoke", "edge")
        some = {
            "linear_scan": (cases, every[::4]),
            "block_diagonal_scan": (every[::3], every[::4]),
            "complex_scan": (cases[::4], every[::5]),
            "temporal_conv1d": ([every[at] for at in (0, 4, 9, -5, -3, -1) if at < len(every)],) * 2,
            "local_attention": (
                [c for c in cases if c is cases[0] or "packed" in c.flags or c["T"] < c.dims.get("S", 0)],
            )
            * 2,
        }.get(name, ((*every[:1], *every[-2:]),) * 2)
        yield from ((op, case) for op, picked in zip((name, f"{name}_bwd"), some, strict=True) for case in picked)
    for name in STEPS:
        cases = catalog.op(name).cases_tagged("smoke", "edge")
        small = (*cases[:6], catalog.op(name).cases_tagged("edge")[-2])
        if not name.startswith("local_attention"):
            small = [case for case in cases if case.dtype == "float32" and 1 < case["D"] < 100]
        yield from ((name, case) for case in small)


@pytest.mark.parametrize(("name", "case"), list(opchecked()), ids=lambda value: getattr(value, "key", value))
def test_opcheck(name, case):
    op = catalog.op(name)
    inputs = op.make_inputs(case, CPU, 0)
    operator = getattr(torch.ops.griffin_kernels, name).default
    options = [option for option in op.options if option.startswith("with_")]
    if name not in DIFFERENTIABLE or options:  # what is kept for the gradient is not asked for
        call = op.call(**inputs | dict.fromkeys(options, False))
        opcheck(operator, [getattr(call, argument) for argument in op.arguments])
    if name in DIFFERENTIABLE:
        opcheck(operator, op.call(**leaves(inputs) | dict.fromkeys(options, True)))


STATIC = ["linear_scan", "block_diagonal_scan", "block_diagonal_scan, blocks of one"]


@pytest.mark.parametrize(
    ("label", "dynamic"), [*((label, True) for label in SEQUENCES), *((label, False) for label in STATIC)]
)
def test_compiles_fullgraph_forward_and_backward(label, dynamic):
    name = op_of(label).name
    first = next(iter(op_of(label).inputs))

    def model(inputs):
        outputs = public(name, inputs | {first: inputs[first].tanh()})
        return outputs[0].square().sum() + sum(out.sum() for out in outputs[1:])

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for steps in (5, 12):
        inputs = row(label, steps)
        torch.testing.assert_close(compiled(inputs), model(inputs))
        gradients = []
        for run in (model, compiled):
            given = leaves(inputs)
            gradients.append(torch.autograd.grad(run(given), list(floats(given).values())))
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", STEPS)
def test_compiles_fullgraph_and_updates_the_states(name):
    first, *_ = catalog.op(name).inputs

    def model(inputs):
        return public(name, inputs | {first: inputs[first].abs()})[0] * 2  # exact: states may be copies of it

    mine, theirs = row(name), row(name)
    torch.compiler.reset()  # the model is one piece of code for all ops, which torch compiles anew eight times at most
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(mine), model(theirs))
        for state in catalog.op(name).in_place:
            torch.testing.assert_close(mine[state], theirs[state])  # inductor's tanh is its own
            assert not torch.equal(mine[state], row(name)[state])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_tensors_give_shapes(name):
    op, inputs = catalog.op(name), row(name, dtype="bfloat16")
    on_meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    given = op.call(**on_meta)
    found = getattr(torch.ops.griffin_kernels, name)(*given)
    found = found if isinstance(found, tuple) else (found,)
    for mine, theirs in zip(found, public(name, inputs), strict=False):
        assert (mine.shape, mine.dtype, mine.device.type) == (theirs.shape, theirs.dtype, "meta")


@pytest.mark.parametrize("label", [label for label in SEQUENCES if "segmented" in ROWS[label]])
def test_int32_positions_are_taken(label):
    name, inputs = op_of(label).name, row(label)
    for mine, theirs in zip(
        public(name, inputs | {"segment_pos": inputs["segment_pos"].int()}), public(name, inputs), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("batch", "steps"), [(2, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("label", SEQUENCES)
def test_empty_input_gives_empty_output_and_the_state_back(label, batch, steps):
    op, cut = op_of(label), {"B": slice(batch), "N": slice(batch), "T": slice(steps), "S": slice(steps)}
    cut |= {"Ba": cut["B"], "Ta": cut["T"]}
    inputs = leaves(pieces.piece(op, row(label, dtype="float64"), cut))
    outputs = dict(zip(op.outputs, public(op.name, inputs), strict=False))
    first, *_ = outputs.values()
    assert first.shape[:2] == (batch, steps) and first.numel() == 0
    for name in outputs.keys() & STATES:
        state = inputs[STATES[name]]
        assert torch.equal(outputs[name], state)
        assert outputs[name].data_ptr() != state.data_ptr() or batch == 0
    wanted = floats(inputs)
    gradients = torch.autograd.grad(sum(out.sum() for out in outputs.values()), list(wanted.values()))
    for (name, value), gradient in zip(wanted.items(), gradients, strict=True):
        assert gradient.shape == value.shape
        assert (gradient == (1.0 if name in STATES.values() else 0.0)).all(), name


@pytest.mark.parametrize("pool", [0, 5])
@pytest.mark.parametrize("name", STEPS)
def test_no_rows(name, pool):
    op = catalog.op(name)
    inputs = pieces.piece(op, row(name), dict.fromkeys(("B", "Ba", "N"), slice(0)) | {"P": slice(pool)})
    if not pool and op.inputs["slots"].optional:
        inputs["slots"] = None
    before = copies(inputs)
    assert public(name, inputs)[0].shape[0] == 0
    assert all(torch.equal(inputs[state], before[state]) for state in op.in_place)
