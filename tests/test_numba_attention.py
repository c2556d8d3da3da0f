"""local_attention/numba.blocked and its gradient beyond the table of cases: blocks, tiles, parts, threads, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, verify
from griffin_kernels.ops import _blas, _threads
from griffin_kernels.ops.local_attention.cost import make_case

OPS = pytest.mark.parametrize("op_name", ["local_attention", "local_attention_bwd"])
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_blas.found() is None, reason="native code cannot call this PyTorch's BLAS")


def verdict(case, inputs=None, **config):
    op, variant = catalog.op(case.op), catalog.variant(f"{case.op}/numba.blocked")
    inputs = op.make_inputs(case, CPU, 0) if inputs is None else inputs
    return verify.check(op, variant, case, variant.config(**config), inputs)


def outputs(case, inputs=None, **config):
    variant = catalog.variant(f"{case.op}/numba.blocked")
    inputs = catalog.op(case.op).make_inputs(case, CPU, 0) if inputs is None else inputs
    return variant.run(**inputs, config=variant.config(**config))


def lse_for(op_name):
    return () if op_name.endswith("_bwd") else ("lse",)


@OPS
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(8, 70),
    earlier=st.integers(0, 50),
    shared=st.integers(1, 3),
    group=st.integers(1, 4),
    d=st.integers(1, 40),
    window=st.integers(4, 90),
    flags=st.sampled_from([(), ("softcap",), ("segmented",), ("softcap", "segmented")]),
    rows=st.integers(1, 90),
    keys=st.integers(1, 100),
    part=st.integers(1, 50),
)
def test_however_the_work_is_cut(op_name, batch, time, earlier, shared, group, d, window, flags, rows, keys, part):
    sizes = (batch, time, shared * group, shared, d, window)
    case = make_case(*sizes, keys=time + earlier, flags=flags, op=op_name, data=lse_for(op_name))
    config = {"rows": rows, "keys": keys} | ({"part": part} if op_name.endswith("_bwd") else {})
    found = verdict(case, **config)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("window", [15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_edges_of_windows_at_edges_of_blocks_and_tiles(op_name, window):
    """Blocks of 16 queries, tiles of 64 keys."""
    found = verdict(make_case(1, 200, 4, 1, 8, window, op=op_name, data=lse_for(op_name)), rows=64, keys=64)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("flags", [("segmented",), ("packed",)])
def test_documents_that_end_with_a_block_or_a_tile(op_name, flags):
    """Rows whose first tiles hold nothing that they see."""
    case = make_case(1, 256, 2, 1, 8, 250, rows=5, flags=flags, op=op_name, data=lse_for(op_name))
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    cuts = torch.tensor([0, 64, 128, 192, 255, 256], dtype=torch.int32)
    if flags == ("packed",):
        inputs["cu_seqlens"] = cuts
    else:
        steps = torch.arange(256)
        inputs["segment_pos"] = (steps - cuts[torch.searchsorted(cuts, steps, right=True) - 1])[None]
    if op_name.endswith("_bwd"):
        given = {name: inputs[name] for name in ("q", "k", "v", "segment_pos", "cu_seqlens", "window", "softcap")}
        out, lse = catalog.op("local_attention").reference(**given, scale=None, with_lse=True)
        inputs |= {"out": out, "lse": lse, "scale": None}
    found = verdict(case, inputs, rows=48, keys=64)
    assert found.ok, found.problem


@OPS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(op_name, dtype, monkeypatch):
    """One thread, two, more than there are items, and Python's own where OpenMP cannot be had."""
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    case = make_case(2, 150, 6, 2, 32, 60, dtype, ("softcap",), op=op_name, data=lse_for(op_name))
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 50):
            torch.set_num_threads(threads)
            found.append(outputs(case, inputs))
        torch.set_num_threads(3)
        monkeypatch.setattr(_threads, "_team", lambda: _threads._python_threads)
        found.append(outputs(case, inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@OPS
def test_products_of_torch_keep_their_threads(op_name):
    before = torch.__config__.parallel_info()
    outputs(make_case(1, 300, 4, 1, 32, 100, op=op_name, data=lse_for(op_name)))
    assert torch.__config__.parallel_info() == before


@OPS
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_large_scores(op_name, softcap):
    """Scores to 1e4 either way: finite, and without a softcap each query takes the value of its heaviest key."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 120, 2, 16) for _ in range(3))
    given = {"q": 1e3 * q, "k": k, "v": v, "segment_pos": None, "cu_seqlens": None}
    given |= {"window": 50, "softcap": softcap, "scale": 1.0}
    case = make_case(1, 120, 2, 2, 16, 50, data=("lse",))
    out, lse = outputs(case, given | {"with_lse": True})
    assert out.isfinite().all() and lse.isfinite().all()
    if op_name.endswith("_bwd"):
        gradients = {"dout": torch.randn_like(out), "out": out, "lse": lse}
        found = outputs(make_case(1, 120, 2, 2, 16, 50, op=op_name), gradients | given)
        assert all(tensor.isfinite().all() for tensor in found)
    elif softcap is None:
        wide = {name: given[name].double() for name in ("q", "k", "v")}
        want, want_lse = catalog.op("local_attention").reference(**(given | wide), with_lse=True)
        assert want_lse.abs().max() > 5e3
        assert (lse - want_lse).abs().max() <= 1e-5 * want_lse.abs().max()
        # scores near each other at 1e4 differ by the rounding of either
        assert ((out - want).abs() < 1e-2).float().mean() > 0.99


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_with_its_query(softcap, dtype):
    case = make_case(1, 90, 4, 1, 16, 30, dtype, data=("lse",))
    inputs = catalog.op("local_attention").make_inputs(case, CPU, 0) | {"softcap": softcap}
    inputs["q"][0, 40, 2, 3] = math.nan
    out, lse = outputs(case, inputs)
    lost = torch.zeros(1, 90, 4, dtype=torch.bool)
    lost[0, 40, 2] = True
    assert torch.equal(out.isnan().all(3), lost) and torch.equal(out.isnan().any(3), lost)
    assert torch.equal(lse.isnan(), lost.transpose(1, 2))


@OPS
def test_expanded_keys(op_name):
    """One key and value for all steps, as a view without strides: every query gets that value."""
    case = make_case(2, 40, 4, 2, 8, 13, op=op_name, data=lse_for(op_name))
    inputs = catalog.op(op_name).make_inputs(case, CPU, 0)
    for name in ("k", "v"):
        inputs[name] = inputs[name][:, :1].expand(-1, 40, -1, -1)
    if op_name.endswith("_bwd"):
        given = {name: inputs[name] for name in ("q", "k", "v", "segment_pos", "cu_seqlens", "window", "softcap")}
        out, lse = catalog.op("local_attention").reference(**given, scale=None, with_lse=True)
        _, dk, dv = outputs(case, inputs | {"out": out, "lse": lse, "scale": None})
        # weights sum to one, and slopes to none
        by_head = inputs["dout"].reshape(2, 40, 2, 2, 8).sum((1, 3))
        torch.testing.assert_close(dv.sum(1), by_head, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dk.sum(1), torch.zeros(2, 2, 8), rtol=0, atol=1e-3)
    else:
        out, _ = outputs(case, inputs)
        torch.testing.assert_close(out, inputs["v"].repeat_interleave(2, dim=2), rtol=1e-5, atol=1e-5)


@OPS
@pytest.mark.parametrize("sizes", [(0, 5, 4, 2, 8, 3), (2, 0, 4, 2, 8, 3)])
def test_nothing_to_do(op_name, sizes):
    case = make_case(*sizes, keys=5, op=op_name)
    batch, time, heads, shared, d, window = sizes
    q, keys = torch.zeros(batch, time, heads, d), torch.zeros(batch, 5, shared, d)
    inputs = {"q": q, "k": keys, "v": keys, "segment_pos": None, "cu_seqlens": None, "window": window}
    inputs |= {"softcap": None, "scale": None}
    if op_name.endswith("_bwd"):
        inputs |= {"dout": q, "out": q, "lse": torch.zeros(batch, heads, time)}
        dq, dk, dv = outputs(case, inputs)
        assert dq.shape == q.shape and torch.equal(dk, keys) and torch.equal(dv, keys)
    else:
        out, lse = outputs(case, inputs | {"with_lse": True})
        assert out.shape == q.shape and lse.shape == (batch, heads, time)


@OPS
def test_a_published_size(op_name):
    """RecurrentGemma's heads; the window spans several tiles and many blocks."""
    found = verdict(make_case(1, 1100, 10, 1, 256, 512, op=op_name, data=lse_for(op_name)), keys=256)
    assert found.ok, found.problem


@OPS
def test_what_it_rejects(op_name, monkeypatch):
    variant = catalog.variant(f"{op_name}/numba.blocked")
    here = device.cpu()
    case = make_case(1, 10, 2, 1, 8, 5, op=op_name)
    assert variant.reject(case, here, variant.config()) is None
    assert "at least 1" in variant.reject(case, here, variant.config(rows=0))
    assert "float64" in variant.reject(make_case(1, 10, 2, 1, 8, 5, "float64", op=op_name), here, variant.config())
    assert "CPU" in variant.reject(case, device.INTERPRETER, variant.config())
    monkeypatch.setattr(_blas, "found", lambda: None)
    assert "BLAS" in variant.reject(case, here, variant.config())
