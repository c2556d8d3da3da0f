"""recurrent_block_bwd/numba.fused beyond the table of cases: how work is cut, extremes of y, threads, what it beats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, dispatch, pieces, verify
from griffin_kernels.ops import _native_call, _threads
from griffin_kernels.ops.recurrent_block.cost import make_case
from tests.everywhere import INTERPRETER

OP = catalog.op("recurrent_block_bwd")
FORWARD = catalog.op("recurrent_block")
VARIANT = catalog.variant("recurrent_block_bwd/numba.fused")
CPU = torch.device("cpu")
BOTH = ("state", "h0")


def case_of(*sizes, **facts):
    return make_case(*sizes, op=OP.name, **facts)


def inputs_of(case, **changes):
    """Inputs with something changed; h is that of the changed ones."""
    inputs = OP.make_inputs(case, CPU, 0) | changes
    given = {name: inputs[name] for name in FORWARD.inputs}
    *_, h = pieces.reference(FORWARD, given | {"with_h": True})
    return inputs | {"h": h.to(inputs["x"].dtype)}


def verdict(case, inputs=None, **config):
    inputs = OP.make_inputs(case, CPU, 0) if inputs is None else inputs
    return verify.check(OP, VARIANT, case, VARIANT.config(**config), inputs)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    time=st.integers(1, 40),
    blocks=st.integers(1, 3),
    n=st.integers(1, 70),
    taps=st.sampled_from([1, 2, 4, 7]),
    block_t=st.integers(1, 50),
    state=st.booleans(),
    positions=st.none() | st.lists(st.integers(0, 8), min_size=200, max_size=200),
)
def test_however_the_work_is_cut(batch, time, blocks, n, taps, block_t, state, positions):
    assume(n * blocks >= 8)  # sums over time of fewer channels may all cancel: nothing to be relative to
    flags = () if positions is None else ("segmented",)
    case = case_of(batch, time, n * blocks, blocks, taps, flags=flags, data=BOTH if state else ())
    inputs = None
    if positions is not None:
        inputs = inputs_of(case, segment_pos=torch.tensor(positions[: batch * time]).reshape(batch, time))
    found = verdict(case, inputs, block_t=block_t)
    assert found.ok, found.problem


@pytest.mark.parametrize("time", [11, 12, 13, 48, 49, 100])
@pytest.mark.parametrize("flags", [("packed",), ("segmented", "packed")], ids="-".join)
def test_block_edges_of_packed_sequences(time, flags):
    found = verdict(case_of(1, time, 96, 2, flags=flags, data=(*BOTH, "empty_sequence"), rows=5), block_t=12)
    assert found.ok, found.problem


@pytest.mark.parametrize("n", [255, 257, 530])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gate_blocks_wider_than_one_block_array(n, dtype):
    found = verdict(case_of(1, 30, n, 1, 5, dtype=dtype, flags=("segmented",), data=BOTH), block_t=13)
    assert found.ok, found.problem


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_outputs_written_past_the_caches(dtype, monkeypatch):
    monkeypatch.setattr(_native_call, "STREAMED", 0)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    # rows and blocks that begin on a cache line, and ones that do not
    for width, blocks in ((192, 3), (120, 3)):
        found = verdict(case_of(2, 70, width, blocks, dtype=dtype, data=BOTH), block_t=32)
        assert found.ok, found.problem


def test_a_published_width():
    found = verdict(case_of(1, 200, 2560, 10))
    assert found.ok, found.problem


@pytest.mark.parametrize("flags", [("segmented",), ("packed",)], ids="-".join)
def test_every_thread_count_gives_the_same_bits(flags):
    batch = 1 if "packed" in flags else 3
    case = case_of(batch, 450 // batch, 320, 5, flags=flags, data=BOTH, rows=3)
    inputs = OP.make_inputs(case, CPU, 0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(VARIANT.on(inputs, VARIANT.config()))
    finally:
        torch.set_num_threads(before)
    for outputs in results[1:]:
        for mine, first in zip(outputs, results[0], strict=True):
            assert torch.equal(mine, first)


def test_gelu_far_from_zero():
    """Its slope is 0 or 1 where the cube of y overflows, and right to a few units in the last place where it bends."""
    far = torch.tensor([1e4, 1e13, 1e15, 1e25])
    values = torch.cat([torch.linspace(-12, 12, 24), far, -far])
    case = case_of(1, 6, 32, 2)
    inputs = inputs_of(case, y=values.expand(1, 6, 32).contiguous())
    _, dy, *_ = VARIANT.on(inputs, VARIANT.config())
    y = values.double()
    t = torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))
    bend = 0.5 * y * (1 - t**2) * (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * y**2)
    slope = 0.5 * (1 + t) + torch.where(t.abs() == 1, 0.0, bend)
    want = inputs["dout"].double() * inputs["h"].double() * slope
    torch.testing.assert_close(dy.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_stay_where_they_belong(bad):
    """In y at one step: its own dy, and what the earlier steps of its gate block get, nothing else."""
    case = case_of(1, 40, 32, 2)
    inputs = OP.make_inputs(case, CPU, 0)
    inputs["y"][0, 20, 5] = bad
    dx, dy, *_ = VARIANT.on(inputs, VARIANT.config(block_t=12))
    assert not dx[0, :18, :16].isfinite().all()
    assert dx[0, 21:].isfinite().all()
    assert dx[..., 16:].isfinite().all()
    assert dy[0, 20, 5].isnan() == math.isnan(bad)
    dy[0, 20, 5] = 0
    assert dy.isfinite().all()


def test_a_nan_in_x_reaches_the_steps_whose_taps_read_it():
    case = case_of(1, 40, 32, 2)
    inputs = OP.make_inputs(case, CPU, 0)
    inputs["x"][0, 20, 5] = float("nan")
    _, dy, dconv_weight, dconv_bias, *_ = VARIANT.on(inputs, VARIANT.config(block_t=12))
    assert dy.isfinite().all()  # h is given
    assert dconv_weight[:, 5].isnan().all()
    assert dconv_bias[16:].isfinite().all()


def test_gradients_of_states_only_where_states_are_given():
    for data in ((), ("state",), ("h0",), BOTH):
        inputs = OP.make_inputs(case_of(2, 9, 12, 3, data=data), CPU, 0)
        *_, dconv_state, dh0 = VARIANT.on(inputs, VARIANT.config())
        assert (dconv_state is not None) == ("state" in data)
        assert (dh0 is not None) == ("h0" in data)


def test_default_on_a_cpu_and_rejected_elsewhere():
    case = case_of(1, 2048, 2560, 10)
    able = [v for v in catalog.variants(OP.name).values() if v.reject(case, device.cpu(), v.config()) is None]
    best = max(able, key=lambda v: v.rank(case, device.cpu()))
    assert best is VARIANT
    assert VARIANT.reject(case, INTERPRETER, VARIANT.config()) == "needs a CPU"
    exact = case_of(1, 8, 16, 2, dtype="float64")
    assert VARIANT.reject(exact, device.cpu(), VARIANT.config()) == "computes in float32"
    many = case_of(1, 8, 16, 2, 17)
    assert VARIANT.reject(many, device.cpu(), VARIANT.config()) == "17 taps are more than the 16 it keeps in registers"
    for rejected in (exact, many):
        assert dispatch.select(OP.name, rejected, device.cpu()).variant.backend == "eager"
