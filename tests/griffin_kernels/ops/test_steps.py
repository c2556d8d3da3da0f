"""Decoding in place: steps one after the other are the whole sequence, pools of states, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog, verify
from griffin_kernels.contract import config_dict
from griffin_kernels.ops.recurrent_block_step.cost import make_case
from griffin_kernels.ops.rg_lru_step.cost import make_case as lru_case
from tests import calls
from tuning.static.recorded import CompileRequest
from tuning.static.requests import compilable
from tuning.static.table import compile_all
from tuning.static.targets import target

OPS = ("temporal_conv1d_step", "rg_lru_step", "recurrent_block_step")
STATES = {"temporal_conv1d_step": ("state",), "rg_lru_step": ("h",), "recurrent_block_step": ("conv_state", "h")}
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
each_op = pytest.mark.parametrize("op", OPS)


def variants(*backends):
    found = [v for op in OPS for v in catalog.variants(op).values() if v.backend in backends]
    assert found
    return pytest.mark.parametrize("variant", found, ids=lambda v: v.key)


def sequence(op, batch, steps, blocks, n, taps, dtype, seed=0):
    """Inputs of the op for ``steps`` tokens: x, y [B,T,D], parameters, states [B,...]; names as in the op."""
    width = blocks * n
    inputs = catalog.op("recurrent_block_step").make_inputs(make_case(batch, width, blocks, taps), CPU, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    for name in ("x", "y"):
        inputs[name] = torch.randn(batch, steps, width, generator=generator)
    if op == "temporal_conv1d_step":
        inputs |= {name: inputs[f"conv_{name}"] for name in ("weight", "bias", "state")}
    names = [name for name in catalog.op(op).inputs if name not in catalog.op(op).indices]
    return {name: inputs[name].to(dtype) for name in names}


def positions_of(batch, steps, seed):
    """int64 [B,T]: documents that begin now and then; a row may begin in the middle of one."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 4, (batch,), generator=generator)
    begins = torch.rand(batch, steps, generator=generator) < 0.25
    positions = torch.empty(batch, steps, dtype=torch.int64)
    for t in range(steps):
        before = start if t == 0 else positions[:, t - 1] + 1
        positions[:, t] = torch.where(begins[:, t], 0, before)
    return positions


def whole(op, given, positions):
    """(output [B,T,D], states) of the public op for a whole sequence, in float64."""
    exact = {"h0" if name == "h" else name: value.double() for name, value in given.items()}
    out, *states = calls.public(op.removesuffix("_step"), exact | {"segment_pos": positions})
    return out, tuple(states)


def public(op, given, **index):
    """One token by the public function."""
    return calls.public(op, given | index)[0]


def one_step(variant, given, positions=None, slots=None, **changes):
    """One token by a variant: through the public function, or in the interpreter where that is what there is."""
    if variant.backend == "triton":
        return variant.on(given | {"positions": positions, "slots": slots}, variant.config(**changes))[0]
    with griffin_kernels.use(variant=variant.key):
        return public(variant.op, given, positions=positions, slots=slots)


def pooled(given, names, slots, pool):
    """``given`` with its states laid into pools of NaN, where a row that nothing belongs to shows if it is touched."""
    pools = {}
    for name in names:
        pools[name] = torch.full((pool, *given[name].shape[1:]), float("nan"), dtype=given[name].dtype)
        pools[name][slots] = given[name]
    return given | pools


def check_steps(variant, batch, steps, blocks, n, taps, seed, with_positions, padded, **changes):
    """Steps one after the other, in a pool with one row too many and, if ``padded``, with a row that only pads."""
    op, dtype = variant.op, torch.float64 if variant.backend == "eager" else torch.float32
    given = sequence(op, batch, steps, blocks, n, taps, dtype, seed)
    positions = positions_of(batch, steps, seed) if with_positions else None
    want, states = whole(op, given, positions)
    slots = torch.randperm(batch + 1, generator=torch.Generator().manual_seed(seed))[:batch]
    spare = (set(range(batch + 1)) - set(slots.tolist())).pop()
    working = pooled(given, STATES[op], slots, batch + 1)
    rows = slots
    if padded:
        rows = torch.cat([slots, torch.tensor([-1])])
        for name in {"x", "y"} & set(working):
            working[name] = torch.cat([given[name], torch.full_like(given[name][:1], float("nan"))])
        positions = None if positions is None else torch.cat([positions, positions[:1]])
    outs = []
    for t in range(steps):
        token = working | {name: working[name][:, t] for name in {"x", "y"} & set(working)}
        outs.append(one_step(variant, token, None if positions is None else positions[:, t], rows, **changes))
    out = torch.stack(outs, 1)
    close = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(out[:batch], want.to(dtype), **close)
    assert not out[batch:].any()
    for name, state in zip(STATES[op], states, strict=True):
        torch.testing.assert_close(working[name][slots], state.to(dtype), **close)
        assert working[name][spare].isnan().all()


@variants("eager", "numba")
@given(
    batch=st.integers(1, 9),
    steps=st.integers(1, 8),
    blocks=st.integers(1, 3),
    n=st.integers(1, 70),
    taps=st.integers(1, 6),
    seed=st.integers(0, 99),
    with_positions=st.booleans(),
    padded=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_steps_equal_the_whole_sequence(variant, batch, steps, blocks, n, taps, seed, with_positions, padded):
    check_steps(variant, batch, steps, blocks, n, taps, seed, with_positions, padded)


@variants("triton")
@pytest.mark.parametrize(("batch", "blocks", "n", "taps"), [(3, 2, 20, 4), (2, 1, 40, 3)])
def test_steps_equal_the_whole_sequence_in_triton(variant, batch, blocks, n, taps):
    # two programs share a gate block of 40
    changes = {"block_n": 32} if n == 40 and variant.op != "temporal_conv1d_step" else {}
    check_steps(variant, batch, 6, blocks, n, taps, 3, True, True, **changes)


def test_triton_compiles_with_and_without_positions_and_slots():
    """The interpreter takes what the compiler does not, such as a function that gives back None."""
    asked = []
    for variant in [v for op in (*OPS, "linear_scan_step") for v in compilable(op)]:
        changes = {} if variant.op.endswith(("lru_step", "block_step")) else {"block_d": 64, "num_warps": 1}
        config = variant.config(**changes)
        for case in catalog.op(variant.op).cases_tagged("smoke", "edge"):
            rows = set(case.data) & {"pad_zero", "dst_slots"}
            plain = case.data in ((), ("positions", "slots"))
            if not (rows or plain) or case.dtype not in ("float32", "bfloat16") or case["D"] == 1:
                continue
            for arch in ("sm_80", "sm_90", "gfx942") if rows else ("sm_90",):
                if variant.reject(case, target(arch).device, config) is None:
                    asked.append(CompileRequest(variant.key, case.plain(), config_dict(config), arch))
    assert {request.variant for request in asked} >= {v.key for op in OPS for v in compilable(op)}
    answers = compile_all(asked)
    assert not answers.failures, "\n\n".join(f"{f.request}: {f.reason}" for f in answers.failures)
    assert not [(r.variant, r.case, r.broken) for r in answers.reports if r.broken]


@variants("eager", "numba", "triton")
def test_a_beginning_reads_no_state(variant):
    """What another sequence left may be anything."""
    given = sequence(variant.op, 3, 1, 2, 20, 4, torch.float32)
    for name in STATES[variant.op]:
        given[name].fill_(float("nan"))
    token = given | {name: given[name][:, 0] for name in {"x", "y"} & set(given)}
    out = one_step(variant, token, torch.zeros(3, dtype=torch.int64))
    assert out.isfinite().all()
    for name in STATES[variant.op]:
        assert given[name].isfinite().all()


@pytest.mark.parametrize("batch", [1, 50, 100])
@pytest.mark.parametrize("block_d", [32, 256])
@pytest.mark.parametrize("op", ["rg_lru_step", "recurrent_block_step"])
def test_blocks_shared_by_threads(op, batch, block_d):
    """Several items of a gate block on several threads, and more rows than are worked on at a time."""
    contract, variant = catalog.op(op), catalog.variant(f"{op}/numba.fused")
    case = make_case(batch, 768, 3) if op == "recurrent_block_step" else lru_case(batch, 768, 3)
    inputs = contract.make_inputs(case, CPU, 1)
    for _ in range(3):
        verdict = verify.check(contract, variant, case, variant.config(block_d=block_d), inputs)
        assert verdict.ok, verdict.problem


def token_of(op, batch=3, blocks=2, n=5, taps=4, dtype=torch.float32, pool=None):
    """Inputs of one call of the public function."""
    given = sequence(op, batch, 1, blocks, n, taps, dtype)
    if pool is not None:
        for name in STATES[op]:
            given[name] = torch.zeros(pool, *given[name].shape[1:], dtype=given[name].dtype)
    return given | {name: given[name][:, 0] for name in {"x", "y"} & set(given)}


@each_op
def test_rows_and_states_that_are_not_contiguous(op):
    """Any strides of x, y and the states: written where they lie, not into a copy."""
    given = token_of(op)
    want = public(op, copies := {name: value.clone() for name, value in given.items()})
    for name in {"x", "y", *STATES[op]} & set(given):
        wide = given[name].new_zeros(*given[name].shape[:-1], 2 * given[name].shape[-1])[..., ::2]
        given[name] = wide.copy_(given[name])
    torch.testing.assert_close(public(op, given), want)
    for name in STATES[op]:
        assert given[name].stride(-1) == 2
        torch.testing.assert_close(given[name], copies[name])


@pytest.mark.gpu
@each_op
def test_captured_in_a_cuda_graph(op):
    """Replays take the next step with what lies in the same memory then."""
    given = {name: value.cuda() for name, value in token_of(op, batch=4, blocks=2, n=64, pool=6).items()}
    positions = torch.tensor([0, 7, 3, 1], device="cuda")
    slots = torch.tensor([5, 0, 2, -1], device="cuda")
    plain = {name: value.clone() for name, value in given.items()}
    public(op, {name: value.clone() for name, value in given.items()}, positions=positions, slots=slots)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = public(op, given, positions=positions, slots=slots)
    for _ in range(3):
        given["x"].normal_()
        plain["x"].copy_(given["x"])
        graph.replay()
        torch.testing.assert_close(out, public(op, plain, positions=positions, slots=slots))
        for name in STATES[op]:
            torch.testing.assert_close(given[name], plain[name])
        positions += 1
