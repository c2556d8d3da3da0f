"""temporal_conv1d/numba.direct and its gradient beyond the table of cases: pieces, streaming, threads, rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, dispatch, verify
from griffin_kernels.ops import _native_call, _threads
from griffin_kernels.ops.temporal_conv1d.cost import make_case
from tests.everywhere import INTERPRETER

OPS = pytest.mark.parametrize("op_name", ["temporal_conv1d", "temporal_conv1d_bwd"])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
CPU = torch.device("cpu")


def verdict(case, inputs=None, **config):
    op, variant = catalog.op(case.op), catalog.variant(f"{case.op}/numba.direct")
    inputs = op.make_inputs(case, CPU, 0) if inputs is None else inputs
    return verify.check(op, variant, case, variant.config(**config), inputs)


def conv(x, weight, bias, state=None, segment_pos=None, **config):
    variant = catalog.variant("temporal_conv1d/numba.direct")
    call = catalog.op("temporal_conv1d").call(x, weight, bias, state, segment_pos)
    return variant.run(call, variant.config(**config))


@OPS
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    time=st.integers(1, 30),
    width=st.integers(1, 70),
    block_t=st.integers(1, 40),
    block_d=st.integers(1, 80),
    tile=st.integers(1, 9),
    state=st.booleans(),
    positions=st.none() | st.lists(st.integers(-1, 5), min_size=150, max_size=150),
    activation=st.sampled_from([None, "silu", "gelu"]),
    added=st.booleans(),
)
def test_however_the_work_is_cut(
    op_name, batch, time, width, block_t, block_d, tile, state, positions, activation, added
):
    """Positions in any order, below zero too: each step's own one says how far back it reads."""
    flags = (*(() if positions is None else ("segmented",)), *((activation,) if activation else ()))
    flags = (*flags, "residual") if added and op_name == "temporal_conv1d" else flags
    case = make_case(batch, time, width, 4, flags=flags, data=("state",) if state else (), op=op_name)
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    if width < 8:  # a norm over few sums, all of which may happen to cancel, says nothing: here nothing cancels
        inputs = {k: v.abs() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    if positions is not None:
        inputs["segment_pos"] = torch.tensor(positions[: batch * time]).reshape(batch, time)
    found = verdict(case, inputs, block_t=block_t, block_d=block_d, tile=tile)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("taps", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_number_of_taps(op_name, taps, dtype):
    for activation in ((), ("silu",)):
        flags = ("segmented", *activation)
        found = verdict(make_case(2, 41, 70, taps, dtype, flags, data=("state",), op=op_name), block_t=19)
        assert found.ok, found.problem


@OPS
def test_activations_of_large_sums(op_name):
    """Far out silu and gelu are 0 or the identity, and their slopes 0 or 1: nothing overflows on the way."""
    for activation in ("silu", "gelu"):
        op, case = catalog.op(op_name), make_case(1, 8, 40, 1, flags=(activation,), op=op_name)
        inputs = op.make_inputs(case, CPU, 0)
        sizes = torch.tensor([1e2, 1e4, 1e9, 1e18])
        inputs["x"] = torch.cat([sizes, -sizes])[None, :, None].expand(1, 8, 40).contiguous()
        inputs["weight"] = torch.ones_like(inputs["weight"])
        for backend in ("numba.direct", "eager.shifted"):
            variant = catalog.variant(f"{op_name}/{backend}")
            first = variant.on(inputs, variant.config())[0]
            gone = torch.zeros_like(first[:, 4:])
            kept = inputs["dy"][:, :4] if "dy" in inputs else inputs["x"][:, :4] + inputs["bias"]
            torch.testing.assert_close(first[:, :4], kept)
            torch.testing.assert_close(first[:, 4:], gone)


@OPS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_outputs_written_past_the_caches(op_name, dtype, monkeypatch):
    monkeypatch.setattr(_native_call, "STREAMED", 0)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    # rows that begin on a cache line, and rows and blocks that do not
    for width, block in ((320, 128), (331, 128), (320, 100)):
        case = make_case(2, 130, width, 4, dtype, ("segmented",), data=("state",), op=op_name)
        found = verdict(case, block_t=32, block_d=block)
        assert found.ok, found.problem


@OPS
def test_a_published_size(op_name):
    found = verdict(make_case(1, 2048, 2560, op=op_name))
    assert found.ok, found.problem


@OPS
def test_every_thread_count_gives_the_same_bits(op_name):
    case = make_case(3, 1000, 300, 4, flags=("segmented",), data=("state",), op=op_name)
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    variant = catalog.variant(f"{op_name}/numba.direct")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(variant.on(inputs, variant.config(block_d=128)))
    finally:
        torch.set_num_threads(before)
    for outputs in results[1:]:
        for mine, first in zip(outputs, results[0], strict=True):
            assert torch.equal(mine, first)


@HALVES
def test_every_half_value_survives_a_round_trip(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, -1)
    one = torch.ones(1, x.shape[2], dtype=dtype)
    y, _ = conv(x, one, -0.0 * one[0])
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(), x.nan_to_num())
    assert torch.equal(torch.signbit(y[~x.isnan()]), torch.signbit(x[~x.isnan()]))


@HALVES
def test_rounding_is_torchs(dtype):
    """A product of two halves is exact in float32, and most of its bits lie below the half's last one."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (2, 2**16), generator=generator).to(torch.int16).view(dtype)
    x, weight = bits[:1, None], bits[1:]
    y, _ = conv(x, weight, torch.full_like(weight[0], -0.0))
    want = (x.float() * weight.float()).to(dtype)
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y.nan_to_num(), want.nan_to_num())


def test_one_more_tap_than_registers_hold_is_refused_and_runs_elsewhere():
    variant = catalog.variant("temporal_conv1d/numba.direct")
    case = make_case(2, 9, 5, 17)
    assert "17 taps" in variant.reject(case, device.cpu(), variant.config())
    assert dispatch.select("temporal_conv1d", case, device.cpu()).variant.backend == "eager"


@OPS
def test_default_on_a_cpu_and_rejected_elsewhere(op_name):
    case = make_case(1, 2048, 2560, op=op_name)
    able = [v for v in catalog.variants(op_name).values() if v.reject(case, device.cpu(), v.config()) is None]
    best = max(able, key=lambda v: v.rank(case, device.cpu()))
    assert best.name == "numba.direct"
    assert best.reject(case, INTERPRETER, best.config()) == "needs a CPU"
