"""The native variants of local_attention and its gradient beyond the table: blocks, tiles, threads, extremes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, verify
from griffin_kernels.ops import _blas, _threads
from griffin_kernels.ops.local_attention.cost import make_case
from tests.everywhere import INTERPRETER

CPU = torch.device("cpu")

ATTENTION = catalog.op("local_attention")


def op_of(key):
    return key.split("/")[0]


def runs(key, dtype="float32"):
    """Whether a variant takes data of this dtype here: not every processor has AVX-512, nor every torch a BLAS."""
    variant = catalog.variant(key)
    return variant.reject(make_case(1, 10, 2, 1, 8, 5, dtype, op=op_of(key)), device.cpu(), variant.config()) is None


def needs(key, dtype):
    if not runs(key, dtype):
        pytest.skip(f"{key} has no {dtype} here")


def marked(key):
    return pytest.param(key, marks=pytest.mark.skipif(not runs(key), reason=f"{key} does not run here"))


FORWARD = pytest.mark.parametrize("key", [marked(f"local_attention/numba.{name}") for name in ("blocked", "tiled")])
BOTH = pytest.mark.parametrize(
    "key", [marked(f"local_attention{way}/numba.{name}") for way in ("", "_bwd") for name in ("blocked", "tiled")]
)


def verdict(key, case, inputs=None, **config):
    op, variant = catalog.op(case.op), catalog.variant(key)
    inputs = op.make_inputs(case, CPU, 0) if inputs is None else inputs
    return verify.check(op, variant, case, variant.config(**config), inputs)


def outputs(key, case, inputs=None, **config):
    variant = catalog.variant(key)
    inputs = catalog.op(op_of(key)).make_inputs(case, CPU, 0) if inputs is None else inputs
    return variant.on(inputs, variant.config(**config))


def lse_for(op_name):
    return () if op_name.endswith("_bwd") else ("lse",)


@BOTH
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(8, 70),
    earlier=st.integers(0, 50),
    shared=st.integers(1, 3),
    group=st.integers(1, 4),
    d=st.integers(1, 40),
    window=st.integers(4, 90),
    right=st.integers(0, 90),
    flags=st.sampled_from([(), ("softcap",), ("segmented",), ("softcap", "segmented")]),
    rows=st.integers(1, 90),
    keys=st.integers(1, 100),
    part=st.integers(1, 50),
)
def test_however_the_work_is_cut(key, batch, time, earlier, shared, group, d, window, right, flags, rows, keys, part):
    sizes, data = (batch, time, shared * group, shared, d, window), lse_for(op_of(key))
    case = make_case(*sizes, keys=time + earlier, right=right, flags=flags, op=op_of(key), data=data)
    config = {"rows": rows, "keys": keys} | ({"part": part} if op_of(key).endswith("_bwd") else {})
    found = verdict(key, case, **config)
    assert found.ok, found.problem


@BOTH
@pytest.mark.parametrize("window", [15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_edges_of_windows_at_edges_of_blocks_and_tiles(key, window):
    """Blocks of 16 queries, tiles of 64 keys."""
    found = verdict(key, make_case(1, 200, 4, 1, 8, window, op=op_of(key), data=lse_for(op_of(key))), rows=64, keys=64)
    assert found.ok, found.problem


@BOTH
@pytest.mark.parametrize("flags", [("segmented",), ("packed",)])
def test_documents_that_end_with_a_block_or_a_tile(key, flags):
    """Rows whose first tiles hold nothing that they see."""
    case = make_case(1, 256, 2, 1, 8, 250, rows=5, flags=flags, op=op_of(key), data=lse_for(op_of(key)))
    inputs = catalog.op(op_of(key)).make_inputs(case, CPU, 0)
    cuts = torch.tensor([0, 64, 128, 192, 255, 256], dtype=torch.int32)
    if flags == ("packed",):
        inputs["cu_seqlens"] = cuts
    else:
        steps = torch.arange(256)
        inputs["segment_pos"] = (steps - cuts[torch.searchsorted(cuts, steps, right=True) - 1])[None]
    if op_of(key).endswith("_bwd"):
        given = {
            name: inputs[name]
            for name in ("q", "k", "v", "segment_pos", "cu_seqlens", "cu_seqlens_k", "window", "softcap")
        }
        out, lse = catalog.op("local_attention").reference(
            catalog.op("local_attention").call(**given, scale=None, with_lse=True)
        )
        inputs |= {"out": out, "lse": lse, "scale": None}
    found = verdict(key, case, inputs, rows=48, keys=64)
    assert found.ok, found.problem


@FORWARD
@pytest.mark.parametrize("cut", [100, 150, 200, 215])
def test_a_document_that_begins_tiles_after_the_block_s_first_key(key, cut):
    """The last rows of a block see nothing of its first tiles, and nothing is written beyond those rows."""
    case = make_case(1, 256, 2, 1, 8, 250, flags=("segmented",), data=("lse",))
    inputs = catalog.op("local_attention").make_inputs(case, CPU, 0)
    steps = torch.arange(256)
    inputs["segment_pos"] = torch.where(steps < cut, steps, steps - cut)[None]
    for rows in (48, 160, 480):
        found = verdict(key, case, inputs, rows=rows, keys=64)
        assert found.ok, found.problem


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(key, dtype, monkeypatch):
    """One thread, two, more than there are items, and Python's own where OpenMP cannot be had."""
    needs(key, dtype)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    case = make_case(2, 150, 6, 2, 32, 60, dtype, ("softcap",), op=op_of(key), data=lse_for(op_of(key)))
    inputs = catalog.op(op_of(key)).make_inputs(case, CPU, 0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 50):
            torch.set_num_threads(threads)
            found.append(outputs(key, case, inputs))
        torch.set_num_threads(3)
        monkeypatch.setattr(_threads, "_team", lambda: _threads._python_threads)
        found.append(outputs(key, case, inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@BOTH
def test_products_of_torch_keep_their_threads(key):
    before = torch.__config__.parallel_info()
    outputs(key, make_case(1, 300, 4, 1, 32, 100, op=op_of(key), data=lse_for(op_of(key))))
    assert torch.__config__.parallel_info() == before


@BOTH
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_large_scores(key, softcap):
    """Scores to 1e4 either way: finite, and without a softcap each query takes the value of its heaviest key."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 120, 2, 16) for _ in range(3))
    given = {"q": 1e3 * q, "k": k, "v": v, "segment_pos": None, "cu_seqlens": None, "cu_seqlens_k": None}
    given |= {"window": 50, "softcap": softcap, "scale": 1.0}
    case = make_case(1, 120, 2, 2, 16, 50, data=("lse",))
    out, lse = outputs(key.replace("_bwd", ""), case, given | {"with_lse": True})
    assert out.isfinite().all() and lse.isfinite().all()
    if op_of(key).endswith("_bwd"):
        gradients = {"dout": torch.randn_like(out), "out": out, "lse": lse, "dlse": None}
        found = outputs(key, make_case(1, 120, 2, 2, 16, 50, op=op_of(key)), gradients | given)
        assert all(tensor.isfinite().all() for tensor in found)
    elif softcap is None:
        wide = {name: given[name].double() for name in ("q", "k", "v")}
        want, want_lse = catalog.op("local_attention").reference(
            catalog.op("local_attention").call(**(given | wide), with_lse=True)
        )
        assert want_lse.abs().max() > 5e3
        assert (lse - want_lse).abs().max() <= 1e-5 * want_lse.abs().max()
        # scores near each other at 1e4 differ by the rounding of either
        assert ((out - want).abs() < 1e-2).float().mean() > 0.99


@FORWARD
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_with_its_query(key, softcap, dtype):
    needs(key, dtype)
    case = make_case(1, 90, 4, 1, 16, 30, dtype, data=("lse",))
    inputs = catalog.op("local_attention").make_inputs(case, CPU, 0) | {"softcap": softcap}
    inputs["q"][0, 40, 2, 3] = math.nan
    out, lse = outputs(key, case, inputs)
    lost = torch.zeros(1, 90, 4, dtype=torch.bool)
    lost[0, 40, 2] = True
    assert torch.equal(out.isnan().all(3), lost) and torch.equal(out.isnan().any(3), lost)
    assert torch.equal(lse.isnan(), lost.transpose(1, 2))


@BOTH
def test_expanded_keys(key):
    """One key and value for all steps, as a view without strides: every query gets that value."""
    case = make_case(2, 40, 4, 2, 8, 13, op=op_of(key), data=lse_for(op_of(key)))
    inputs = catalog.op(op_of(key)).make_inputs(case, CPU, 0)
    for name in ("k", "v"):
        inputs[name] = inputs[name][:, :1].expand(-1, 40, -1, -1)
    if op_of(key).endswith("_bwd"):
        given = {
            name: inputs[name]
            for name in ("q", "k", "v", "segment_pos", "cu_seqlens", "cu_seqlens_k", "window", "softcap")
        }
        out, lse = catalog.op("local_attention").reference(
            catalog.op("local_attention").call(**given, scale=None, with_lse=True)
        )
        _, dk, dv = outputs(key, case, inputs | {"out": out, "lse": lse, "scale": None})
        # weights sum to one, and slopes to none
        by_head = inputs["dout"].reshape(2, 40, 2, 2, 8).sum((1, 3))
        torch.testing.assert_close(dv.sum(1), by_head, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dk.sum(1), torch.zeros(2, 2, 8), rtol=0, atol=1e-3)
    else:
        out, _ = outputs(key, case, inputs)
        torch.testing.assert_close(out, inputs["v"].repeat_interleave(2, dim=2), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("sizes", [(0, 5, 4, 2, 8, 3), (2, 0, 4, 2, 8, 3)])
def test_nothing_to_do(key, sizes):
    case = make_case(*sizes, keys=5, op=op_of(key))
    batch, time, heads, shared, d, window = sizes
    q, keys = torch.zeros(batch, time, heads, d), torch.zeros(batch, 5, shared, d)
    inputs = {
        "q": q,
        "k": keys,
        "v": keys,
        "segment_pos": None,
        "cu_seqlens": None,
        "cu_seqlens_k": None,
        "window": window,
    }
    inputs |= {"softcap": None, "scale": None}
    if op_of(key).endswith("_bwd"):
        inputs |= {"dout": q, "out": q, "lse": torch.zeros(batch, heads, time), "dlse": None}
        dq, dk, dv = outputs(key, case, inputs)
        assert dq.shape == q.shape and torch.equal(dk, keys) and torch.equal(dv, keys)
    else:
        out, lse = outputs(key, case, inputs | {"with_lse": True})
        assert out.shape == q.shape and lse.shape == (batch, heads, time)


@BOTH
def test_a_published_size(key):
    """RecurrentGemma's heads; the window spans several tiles and many blocks."""
    found = verdict(key, make_case(1, 1100, 10, 1, 256, 512, op=op_of(key), data=lse_for(op_of(key))), keys=256)
    assert found.ok, found.problem


@pytest.mark.parametrize("op_name", ["local_attention", "local_attention_bwd"])
def test_what_they_reject(op_name, monkeypatch):
    blocked, tiled = (catalog.variant(f"{op_name}/numba.{name}") for name in ("blocked", "tiled"))
    cpu = device.Device("cpu", "a processor", "x86-64-avx512", 2, 0, 0, details=(("isa", ("avx2", "avx512f")),))
    older = dataclasses.replace(cpu, details=(("isa", ("avx2",)),))
    case, wide = (make_case(1, 10, 2, 1, 8, 5, dtype, op=op_name) for dtype in ("float32", "float64"))
    half = make_case(1, 10, 2, 1, 8, 5, "bfloat16", op=op_name)
    for variant in (blocked, tiled):
        assert "at least 1" in variant.reject(case, cpu, variant.config(rows=0))
        assert "float64" in variant.reject(wide, cpu, variant.config())
        assert "CPU" in variant.reject(case, INTERPRETER, variant.config())
    assert tiled.reject(case, cpu, tiled.config()) is None
    assert "AVX-512" in tiled.reject(case, older, tiled.config())
    forward = op_name == "local_attention"
    assert (tiled.reject(half, cpu, tiled.config()) == "bfloat16 needs a processor with AVX512-BF16") is forward
    monkeypatch.setattr(_blas, "found", lambda: None)
    assert "BLAS" in blocked.reject(case, cpu, blocked.config())


def test_default_where_nothing_is_tuned():
    """Tiles in registers, unless there are too few rows to lay the keys out for."""
    tiled, blocked = (catalog.variant(f"local_attention/numba.{name}") for name in ("tiled", "blocked"))
    for time, first in ((2048, tiled), (1, blocked)):
        case = make_case(1, time, 10, 1, 256, 2048, keys=2048 + time - 1)
        assert max((tiled, blocked), key=lambda variant: variant.rank(case, device.cpu())) is first
