"""Rows of a pool that engines ask for: padding rows, states that go elsewhere; and outputs written where asked."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import griffin_kernels
from griffin_kernels import catalog, planted, verify
from griffin_kernels.errors import DeviceMismatchError
from tests.calls import CPU, STEPS, copies, operator, public
from tests.everywhere import device_of

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

OPS = [name for name in STEPS if catalog.op(name).destination is not None]


def variants(*backends, ops=OPS):
    found = [v for op in ops for v in catalog.variants(op).values() if v.backend in backends]
    return pytest.mark.parametrize("variant", found, ids=lambda v: v.key)


@functools.cache
def case_of(op_name):
    """The small case with padding rows and states in pages."""
    return next(c for c in catalog.op(op_name).cases_tagged("edge") if {"pad_zero", "paged"} <= {*c.data})


def inputs_of(op_name, **changes):
    op = catalog.op(op_name)
    given = op.make_inputs(case_of(op_name), CPU, 3)
    return {k: verify.copy_of(v) if k in op.in_place else v for k, v in given.items()} | changes


def test_the_table_has_every_one_token_op_but_that_of_rings():
    assert {*STEPS} - {*OPS} <= {name for name in STEPS if "attention" in name or "extend" in name}
    assert len(OPS) >= 4


def test_padding_rows_repeat_and_pages_are_apart():
    """What the cases claim to hold."""
    for name in OPS:
        given = inputs_of(name)
        assert (given["slots"] == 0).sum() >= 2 and given["pad_slot"] == 0
        for state in catalog.op(name).in_place:
            assert given[state].stride(0) == 8 * given[state][0].numel()


FORKS = {
    "a state read by two": ([2, 2, 5, 7, 0], [1, 3, 5, 4, 6]),
    "states that are not kept": ([2, 3, 5, 7, 0], [-1, 0, 5, -9, 1]),
    "all elsewhere": ([8, 7, 6, 5, 4], [1, 2, 3, 9, 10]),
    "padding rows that name a place": ([0, -1, 3, 0, 4], [3, 3, 3, 4, 1]),
}


@pytest.mark.parametrize("what", FORKS)
@variants("eager", "numba", "triton")
def test_states_go_where_they_are_told(variant, what):
    slots, others = (torch.tensor(rows) for rows in FORKS[what])
    op = catalog.op(variant.op)
    inputs = inputs_of(op.name)
    batch = len(slots)
    rows = {k: inputs[k][:batch] for k, spec in op.inputs.items() if spec.names[0] == "B" and inputs[k] is not None}
    inputs |= rows | {"slots": slots, "dst_slots": others}
    verdict = verify.check(op, variant, case_of(op.name), variant.config(), inputs)
    assert verdict.ok, verdict.problem
    with griffin_kernels.use() if variant.backend == "triton" else griffin_kernels.use(variant=variant.key):
        before = copies(inputs)
        operator(op.name)(**inputs)  # on the CPU these rows pass the checks
    real = (slots != 0) & (slots >= 0)
    kept = set(others[real & (others > 0)].tolist())
    for state in op.in_place:
        same = planted.same(inputs[state], before[state]).flatten(1).all(1)
        assert {row for row in range(len(same)) if not same[row]} == kept


@variants("numba", "triton", ops=("recurrent_block_step",))
def test_gate_blocks_that_several_programs_share_keep_and_move_states_apart(variant):
    op = catalog.op(variant.op)
    case = next(c for c in op.cases_tagged("edge") if "dst_slots" in c.data and c["n"] > 64)
    least = {"block_n": 32} if variant.backend == "triton" else {"block_d": 32}
    inputs = op.make_inputs(case, device_of(variant.backend).torch_device, 0)
    inputs["dst_slots"][1] = -1
    verdict = verify.check(op, variant, case, variant.config(**least), inputs)
    assert verdict.ok, verdict.problem


LAYOUTS = {
    "contiguous": lambda b, d: torch.full((b, d), torch.nan),
    "rows apart": lambda b, d: torch.full((b, 3 * d), torch.nan)[:, d : 2 * d],
    "channels apart": lambda b, d: torch.full((b, 2 * d), torch.nan)[:, ::2],
    "transposed": lambda b, d: torch.full((d, b), torch.nan).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@variants("eager", "numba", "triton")
def test_out_is_written_and_given_back(variant, layout):
    op, config = catalog.op(variant.op), variant.config()
    inputs, again = inputs_of(op.name), inputs_of(op.name)
    out = LAYOUTS[layout](*inputs["x"].shape)
    memory = torch.empty(0).set_(out.untyped_storage())
    want, *states = variant.on(inputs, config)
    got, *theirs = variant.on(again | {"out": out}, config)
    assert got is out and torch.equal(out, want)
    assert int(memory.isnan().sum()) == memory.numel() - want.numel()  # what lies between is nobody's
    for mine, other in zip(states, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", OPS)
def test_out_of_the_public_function(name):
    inputs, again = inputs_of(name), inputs_of(name)
    batch, width = inputs["x"].shape
    rows = torch.zeros(batch, 2 * width)
    rows[:, :width] = inputs["x"]  # x and the output side by side: neither reaches the other
    out = rows[:, width:]
    for _ in range(2):  # when the signature is new, and when it is known
        (want,) = public(name, inputs)
        (got,) = public(name, again | {"x": rows[:, :width], "out": out})
        assert got is out and torch.equal(got, want)
    empty = torch.ones(0, width)
    none = {k: inputs[k][:0] for k, s in catalog.op(name).inputs.items() if s.names[0] == "B" and inputs[k] is not None}
    assert public(name, inputs | none | {"out": empty})[0] is empty


@pytest.mark.parametrize("name", OPS)
def test_out_under_torch_compile(name):
    """The operator's outputs are new ones, which are copied: a compiler may not see an output that is an argument."""
    mine, theirs = inputs_of(name), inputs_of(name)
    out = torch.zeros(mine["x"].shape[0], 2 * mine["x"].shape[1])[:, ::2]

    def model(given, out):
        return public(name, given | {"x": given["x"].tanh(), "out": out})[0] + 1

    torch.compiler.reset()
    result = torch.compile(model, fullgraph=True)(mine, out)
    want = model(theirs, torch.empty_like(theirs["x"]))
    torch.testing.assert_close(result, want)
    torch.testing.assert_close(out + 1, want)
    for state in catalog.op(name).in_place:
        torch.testing.assert_close(mine[state], theirs[state])


def allocations(run):
    """Bytes of tensors that are allocated meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    return sum(max(event.self_cpu_memory_usage, 0) for event in seen.events())


@variants("numba")
def test_calls_that_are_given_out_allocate_nothing(variant):
    inputs = inputs_of(variant.op)
    out, config = torch.empty_like(inputs["x"]), variant.config()
    operator(variant.op)(**inputs, out=out)
    with griffin_kernels.use(variant=variant.key):
        operator(variant.op)(**inputs, out=out)  # checks, scratch
        given = catalog.op(variant.op).call(**inputs, out=out)
        assert allocations(lambda: variant.run(given, config)) == 0
        assert allocations(lambda: variant.run(given._replace(out=None), config)) >= out.nbytes


@variants("triton")
def test_launches_that_are_given_out_allocate_nothing(variant):
    inputs = inputs_of(variant.op)
    op, out = catalog.op(variant.op), torch.empty_like(inputs["x"])
    call, config = op.call(**inputs), variant.config()
    assert allocations(lambda: variant.launches(call, {op.destination: out}, config)) == 0
    assert allocations(lambda: variant.launches(call, {}, config)) >= out.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_a_call_in_a_cuda_graph_allocates_nothing(name):
    inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs_of(name).items()}
    out = torch.empty_like(inputs["x"])
    operator(name)(**inputs, out=out)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    operator(name)(**inputs, out=out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("name", OPS)
def test_int32_rows_are_taken(name):
    inputs, again = inputs_of(name), inputs_of(name)
    rows = {k: again[k].int() for k in ("slots", "positions") if again.get(k) is not None}
    others = torch.where(inputs["slots"] > 0, inputs["slots"], -1)
    (want,) = public(name, inputs | {"dst_slots": others})
    assert torch.equal(public(name, again | rows | {"dst_slots": others.int()})[0], want)


@pytest.mark.parametrize("name", STEPS)
def test_mixed_devices_are_named_whatever_the_default_device_is(name):
    op = catalog.op(name)
    inputs, state = op.make_inputs(op.cases_tagged("edge")[2], CPU, 0), op.in_place[0]
    torch.set_default_device("meta")
    try:
        with pytest.raises(DeviceMismatchError, match=f"{state} is on meta, the first argument on cpu"):
            public(name, inputs | {state: torch.empty_like(inputs[state], device="meta")})
        public(name, inputs)
    finally:
        torch.set_default_device(None)
