"""rg_lru/numba.fused and its gradient beyond the table of cases: how work is cut, extremes, threads, stale caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, dispatch, pieces, verify
from griffin_kernels.contract import Inputs
from griffin_kernels.ops import _native, _native_amx, _native_call, _threads
from griffin_kernels.ops.rg_lru.cost import make_case
from tests.everywhere import INTERPRETER

OPS = pytest.mark.parametrize("op_name", ["rg_lru", "rg_lru_bwd"])
CPU = torch.device("cpu")


def verdict(case, inputs=None, **config):
    op, variant = catalog.op(case.op), catalog.variant(f"{case.op}/numba.fused")
    inputs = op.make_inputs(case, CPU, 0) if inputs is None else inputs
    return verify.check(op, variant, case, variant.config(**config), inputs)


def forward(inputs: Inputs, **config: int):
    variant = catalog.variant("rg_lru/numba.fused")
    return variant.on(inputs, variant.config(**config))


def plain(time=6, width=32, blocks=2, **changes):
    return catalog.op("rg_lru").make_inputs(make_case(1, time, width, blocks), CPU, 0) | changes


MATRICES = [
    make_case(2, 37, 64, 2, dtype="bfloat16"),
    make_case(3, 7, 160, 1, dtype="bfloat16", data=("h0", "strided")),
    make_case(1, 70, 288, 1, dtype="bfloat16", data=("h0",)),  # a block wider than an array
    make_case(1, 97, 128, 2, rows=4, dtype="bfloat16", flags=("segmented", "packed"), data=("empty_sequence",)),
]


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("case", MATRICES, ids=lambda case: case.key)
@OPS
def test_bfloat16_with_and_without_the_matrix_unit(op_name, case, granted, monkeypatch):
    """Refused by the operating system, or where there is none: vectors then do the same work."""
    if not granted:
        monkeypatch.setattr(_native_amx, "granted", lambda: False)
    case = msgspec.structs.replace(case, op=op_name)
    for config in ({}, {"block_t": 24}, {"block_t": 192}):
        found = verdict(case, **config)
        assert found.ok, found.problem


def test_the_matrix_unit_is_used_where_there_is_one():
    """Its sums are made in another order than those of vectors, which shows in some of float32's last bits."""
    inputs = catalog.op("rg_lru").make_inputs(make_case(1, 64, 256, 1, dtype="bfloat16"), CPU, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native_amx, "granted", lambda: False)
        _, by_vectors = forward(inputs)
    _, found = forward(inputs)
    assert torch.equal(found, by_vectors) == (not _native_amx.granted())
    torch.testing.assert_close(found, by_vectors, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_rows_of_the_matrix_unit():
    inputs = catalog.op("rg_lru").make_inputs(make_case(3, 40, 64, 2, dtype="bfloat16"), CPU, 0)
    clean, _ = forward(inputs)
    spoilt, _ = forward(inputs | {"x": inputs["x"].index_fill(0, torch.tensor([1]), torch.nan)})
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]]) and spoilt[1].isnan().all()


@OPS
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    time=st.integers(1, 40),
    blocks=st.integers(1, 3),
    n=st.integers(1, 70),
    block_t=st.integers(1, 50),
    block_d=st.sampled_from([16, 32, 64]),
    state=st.booleans(),
    positions=st.none() | st.lists(st.integers(0, 5), min_size=200, max_size=200),
)
def test_however_the_work_is_cut(op_name, batch, time, blocks, n, block_t, block_d, state, positions):
    assume(n * blocks >= 8)  # sums over time of fewer channels may all cancel: nothing to be relative to
    flags = () if positions is None else ("segmented",)
    data = ("h0",) if state else ()
    case = make_case(batch, time, n * blocks, blocks, flags=flags, data=data, op=op_name)
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    if positions is not None:
        inputs["segment_pos"] = torch.tensor(positions[: batch * time]).reshape(batch, time)
        if op_name == "rg_lru_bwd":  # y is the forward's
            names = catalog.op("rg_lru").inputs
            inputs["y"], _ = forward({name: inputs[name] for name in names})
    config = {"block_t": block_t} | ({"block_d": block_d} if op_name == "rg_lru" else {})
    found = verdict(case, inputs, **config)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("time", [11, 12, 13, 47, 48, 49, 100])
def test_block_and_tile_edges_of_packed_sequences(op_name, time):
    flags, data = ("packed",), ("h0", "empty_sequence")
    case = make_case(1, time, 96, 2, flags=flags, data=data, rows=5, op=op_name)
    found = verdict(case, block_t=24)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("n", [255, 256, 257, 530])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_wider_than_one_block_array(op_name, n, dtype):
    """Products over more than CHUNK channels are summed piece by piece."""
    found = verdict(make_case(1, 30, n, 1, dtype, ("segmented",), data=("h0",), op=op_name), block_t=13)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_outputs_written_past_the_caches(op_name, dtype, monkeypatch):
    monkeypatch.setattr(_native_call, "STREAMED", 0)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    # rows and blocks that begin on a cache line, and ones that do not
    for width, blocks in ((192, 3), (120, 3)):
        found = verdict(make_case(2, 70, width, blocks, dtype, data=("h0",), op=op_name), block_t=32)
        assert found.ok, found.problem


@OPS
def test_a_published_width(op_name):
    found = verdict(make_case(1, 200, 2560, 10, op=op_name))
    assert found.ok, found.problem


@OPS
def test_every_thread_count_gives_the_same_bits(op_name):
    case = make_case(3, 150, 320, 5, flags=("segmented",), data=("h0",), op=op_name)
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    variant = catalog.variant(f"{op_name}/numba.fused")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(variant.on(inputs, variant.config()))
    finally:
        torch.set_num_threads(before)
    for outputs in results[1:]:
        for mine, first in zip(outputs, results[0], strict=True):
            assert torch.equal(mine, first)


def test_few_rows_use_weights_where_they_are():
    """Decoded tokens: the same result as with packed weights, which more rows get."""
    for batch in (1, 3, 16, 40):
        found = verdict(make_case(batch, 1, 64, 2, flags=("segmented",), data=("h0",)))
        assert found.ok, found.problem


def test_pieces_joined_by_the_state_equal_the_whole():
    inputs = plain(101)
    whole, last = forward(inputs)
    pieces, state = [], None
    for piece in inputs["x"].split(37, dim=1):
        y, state = forward(inputs | {"x": piece, "h0": state})
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4, 3e38])
def test_gates_far_from_zero(size):
    """Both gates shut or open in every combination: no overflow, and a and m reach 0 and 1."""
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).repeat(1, 8) * size
    inputs = plain(input_gate_bias=signs[0].reshape(2, 16), recurrence_gate_bias=signs[1].reshape(2, 16))
    inputs["a_param"] = torch.full((32,), 3.0)  # an open r gives a = exp(-24)
    y, h_last = forward(inputs)
    want, want_last = pieces.reference(catalog.op("rg_lru"), inputs)
    torch.testing.assert_close(y.double(), want, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(h_last.double(), want_last, rtol=2e-6, atol=1e-7)


def test_decay_beyond_the_smallest_float():
    inputs = plain(a_param=torch.linspace(-100, 200, 32))
    y, _ = forward(inputs)
    want, _ = pieces.reference(catalog.op("rg_lru"), inputs)
    torch.testing.assert_close(y.double(), want, rtol=2e-6, atol=1e-7)


def test_subnormal_inputs_survive():
    inputs = plain(3)
    inputs["x"] = torch.full_like(inputs["x"], 1e-41)
    y, _ = forward(inputs)
    want, _ = pieces.reference(catalog.op("rg_lru"), inputs)
    torch.testing.assert_close(y.double(), want, rtol=0, atol=1e-44)
    assert (y != 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_input_stays_in_its_gate_block_and_flows_forward(bad):
    inputs = plain(40)
    inputs["x"][0, 20, 5] = bad
    y, h_last = forward(inputs, block_t=12)
    want, want_last = pieces.reference(catalog.op("rg_lru"), inputs)
    # a gate that is shut by an infinite argument is tiny here and zero there: infinity instead of NaN
    assert torch.equal(y.isfinite(), want.isfinite())
    assert torch.equal(h_last.isfinite(), want_last.isfinite())
    assert not y[0, 20:, 5].isfinite().any()
    assert y[..., 16:].isfinite().all()
    assert y[0, :20].isfinite().all()


def test_nan_in_a_parameter_reaches_its_channel():
    for name in ("a_param", "input_gate_bias", "recurrence_gate_bias"):
        inputs = plain()
        inputs[name].view(-1)[7] = float("nan")
        y, _ = forward(inputs)
        first = 0 if name == "input_gate_bias" else 1  # a fresh first step has no use for the recurrence gate
        assert y[:, first:, 7].isnan().all()
        y[:, first:, 7] = 0
        assert y.isfinite().all()


def test_a_changed_helper_is_compiled_again(tmp_path):
    """numba watches the kernel's own file; a change in another one that it is made of has to count too."""
    package = Path(_native.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import torch\n"
        "from griffin_kernels import catalog\n"
        "from griffin_kernels.ops.rg_lru.cost import make_case\n"
        "i = catalog.op('rg_lru').make_inputs(make_case(1, 1, 4, 1), torch.device('cpu'), 0)\n"
        "i['h0'] = torch.zeros(1, 4)\n"  # a first step without it is a reset, which takes another way
        "v = catalog.variant('rg_lru/numba.fused')\n"
        "print(v.on(i, v.config())[0].abs().sum().item() > 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def nonzero():
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert nonzero() == "True"
    tiles = tmp_path / package.name / "ops" / "rg_lru" / "_lru_numba_tiles.py"
    source = tiles.read_text()
    changed = source.replace("v.multiply(gates.i, x, gates.m))", "v.constant(0.0))")
    assert changed != source
    tiles.write_text(changed)
    assert nonzero() == "False"


@OPS
def test_default_on_a_cpu_and_rejected_elsewhere(op_name):
    case = make_case(1, 2048, 2560, 10, op=op_name)
    able = [v for v in catalog.variants(op_name).values() if v.reject(case, device.cpu(), v.config()) is None]
    best = max(able, key=lambda v: v.rank(case, device.cpu()))
    assert best.name == "numba.fused"
    assert best.reject(case, INTERPRETER, best.config()) == "needs a CPU"
    exact = make_case(1, 8, 16, 2, "float64", op=op_name)
    assert best.reject(exact, device.cpu(), best.config()) == "computes in float32"
    assert dispatch.select(op_name, exact, device.cpu()).variant.backend == "eager"
