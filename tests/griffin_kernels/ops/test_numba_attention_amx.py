"""numba.amx of local_attention and its gradient beyond the table: tiles, what a mask hides, threads, precision."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_kernels import catalog, device, verify
from griffin_kernels.contract import roundings
from griffin_kernels.ops import _native_amx, _threads
from griffin_kernels.ops.local_attention import numba_amx
from griffin_kernels.ops.local_attention.cost import PACKED_KEYS, make_case
from tests.everywhere import INTERPRETER

CPU = torch.device("cpu")
OP = catalog.op("local_attention")
AMX = catalog.variant("local_attention/numba.amx")
BACKWARD = "local_attention_bwd"

BOTH = pytest.mark.parametrize("op_name", [OP.name, BACKWARD])

UNIT = pytest.mark.skipif(not _native_amx.granted(), reason="this processor has no matrix unit")


def bfloat16_case(*sizes, op=OP.name, **facts):
    return make_case(*sizes, "bfloat16", op=op, data=("lse",) if op == OP.name else (), **facts)


def inputs_of(case):
    return catalog.op(case.op).make_inputs(case, CPU, 0)


def run(inputs, op=OP.name, **config):
    variant = catalog.variant(f"{op}/numba.amx")
    return variant.on(inputs, variant.config(**config))


def gradient_inputs(inputs):
    """Of the gradient, for changed inputs of its forward pass or of itself."""
    given = {name: value for name, value in inputs.items() if name in OP.call._fields}
    wide = {name: inputs[name].double() for name in ("q", "k", "v")}
    out, lse = OP.reference(OP.call(**given | wide | {"with_lse": True}))
    return inputs | {"out": out.bfloat16(), "lse": lse.float()}


def holds(case, inputs=None, **config):
    op, variant = catalog.op(case.op), catalog.variant(f"{case.op}/numba.amx")
    found = verify.check(op, variant, case, variant.config(**config), inputs_of(case) if inputs is None else inputs)
    assert found.ok, found.problem


@UNIT
@BOTH
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(8, 90),
    earlier=st.integers(0, 70),
    shared=st.integers(1, 3),
    group=st.integers(1, 4),
    d=st.integers(1, 70),
    window=st.integers(4, 120),
    right=st.integers(0, 90),
    flags=st.sampled_from([(), ("softcap",), ("segmented",), ("softcap", "segmented")]),
    rows=st.integers(1, 90),
    keys=st.integers(1, 130),
    part=st.integers(1, 50),
)
def test_amx_however_the_work_is_cut(
    op_name, batch, time, earlier, shared, group, d, window, right, flags, rows, keys, part
):
    sizes = (batch, time, shared * group, shared, d, window)
    case = bfloat16_case(*sizes, keys=time + earlier, right=right, flags=flags, op=op_name)
    holds(case, rows=rows, keys=keys, **({"part": part} if op_name == BACKWARD else {}))


@UNIT
@pytest.mark.parametrize(("time", "keys", "window", "right"), [(90, 60, 120, 90), (70, 33, 40, 0), (64, 1, 9, 70)])
def test_amx_fewer_keys_than_queries(time, keys, window, right):
    """The first queries may see none."""
    holds(bfloat16_case(2, time, 4, 2, 40, window, keys=keys, right=right), rows=48, keys=64)


@UNIT
@BOTH
@pytest.mark.parametrize("window", [31, 32, 33, 63, 64, 65])
def test_amx_edges_of_windows_at_edges_of_tiles(op_name, window):
    holds(bfloat16_case(1, 200, 4, 1, 32, window, op=op_name), rows=64, keys=64)


@UNIT
@BOTH
@pytest.mark.parametrize("flags", [("segmented",), ("packed",)])
def test_amx_documents_that_end_with_a_tile(op_name, flags):
    """Rows whose first tiles hold nothing that they see."""
    case = bfloat16_case(1, 256, 2, 1, 48, 250, rows=6, flags=flags, op=op_name)
    inputs = inputs_of(case)
    cuts = torch.tensor([0, 32, 64, 160, 161, 255, 256], dtype=torch.int32)
    if flags == ("packed",):
        inputs["cu_seqlens"] = cuts
    else:
        steps = torch.arange(256)
        inputs["segment_pos"] = (steps - cuts[torch.searchsorted(cuts, steps, right=True) - 1])[None]
    inputs = gradient_inputs(inputs) if op_name == BACKWARD else inputs
    for rows in (48, 160):
        holds(case, inputs, rows=rows, keys=64)


@UNIT
@BOTH
@pytest.mark.parametrize("right", [0, 40])
def test_amx_keys_packed_apart(op_name, right):
    """Blocks that hold queries of several sequences, some of which see no key."""
    flags = ("packed", PACKED_KEYS)
    case = bfloat16_case(1, 150, 4, 2, 40, 50, keys=110, rows=5, right=right, flags=flags, op=op_name)
    inputs = inputs_of(case)
    inputs["cu_seqlens"] = torch.tensor([0, 40, 41, 41, 100, 140], dtype=torch.int32)
    inputs["cu_seqlens_k"] = torch.tensor([0, 33, 33, 60, 100, 105], dtype=torch.int32)
    inputs = gradient_inputs(inputs) if op_name == BACKWARD else inputs
    for rows in (48, 160):
        holds(case, inputs, rows=rows, keys=64)


@UNIT
@BOTH
@pytest.mark.parametrize("given", ["gaps", "negated"])
def test_amx_keys_as_they_lie(op_name, given):
    """Views of every third channel, and of negated numbers."""
    case = bfloat16_case(2, 45, 4, 2, 40, 20, keys=50, op=op_name)
    inputs = inputs_of(case)
    for name in ("k", "v"):
        if given == "gaps":
            inputs[name] = inputs[name].repeat_interleave(3, dim=3)[..., ::3]
        else:
            inputs[name] = torch._neg_view(-inputs[name])
    holds(case, inputs)


@UNIT
def test_amx_expanded_keys():
    """One key and value for all steps, as a view without strides: every query gets that value."""
    case = bfloat16_case(2, 40, 4, 2, 8, 13)
    inputs = inputs_of(case)
    for name in ("k", "v"):
        inputs[name] = inputs[name][:, :1].expand(-1, 40, -1, -1)
    out, _ = run(inputs)
    # weights are all 1
    assert torch.equal(out, inputs["v"].repeat_interleave(2, dim=2))


@UNIT
@pytest.mark.parametrize(("keys", "d"), [(33, 7), (64, 64), (70, 100)])
def test_amx_tiles_hold_every_key_once(keys, d):
    """Pairs of channels of a key, pairs of keys of a channel, zeros elsewhere."""
    case = bfloat16_case(2, keys, 4, 2, d, keys)
    call = OP.call(**inputs_of(case))
    laid, _ = numba_amx.laid_out(call, False)
    padded, wide = laid.shape[2:]
    k, v = (torch.zeros(2, 2, padded, wide, dtype=torch.bfloat16) for _ in range(2))
    k[:, :, :keys, :d], v[:, :, :keys, :d] = call.k.transpose(1, 2), call.v.transpose(1, 2)
    # [32 keys, tile, key] [32 channels, pair, of it]
    across = k.view(4, padded // 32, 2, 16, wide // 32, 16, 2).permute(0, 1, 4, 2, 5, 3, 6)
    down = v.view(4, padded // 32, 16, 2, wide // 32, 2, 16).permute(0, 4, 1, 5, 2, 6, 3)
    assert torch.equal(laid[0].flatten(), across.flatten()) and torch.equal(laid[1].flatten(), down.flatten())


@UNIT
def test_amx_scores_are_not_rounded():
    """Products are exact and sums are of float32: so is lse, though data is bfloat16."""
    case = bfloat16_case(1, 150, 4, 1, 128, 100)
    inputs = inputs_of(case)
    wide = {name: inputs[name].double() for name in ("q", "k", "v")}
    _, want = OP.reference(OP.call(**inputs | wide))
    _, lse = run(inputs)
    # a score's error is |s| sqrt(d) u, with |s| to 12 here; the sum's sqrt(100) u; lse itself is near 8
    unit, _ = roundings(torch.float32)
    assert (lse - want).abs().max() <= (12 * 128**0.5 + 100**0.5 + 8) * unit


@UNIT
def test_amx_weights_are_rounded_once():
    """Values of 1 give 1 but for the rounding of weights, each of at most half a last place and of either sign."""
    case = bfloat16_case(1, 150, 4, 1, 64, 100)
    inputs = inputs_of(case) | {"v": torch.ones(1, 150, 1, 64, dtype=torch.bfloat16)}
    out, _ = run(inputs)
    # 2^-9 of the weights that are rounded, at most, and of the output: one last place of bfloat16 below 1 is 2^-8
    assert (out.float() - 1).abs().max() <= 2**-8


@UNIT
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_amx_large_scores(softcap):
    """Scores to 1e4 either way stay finite."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 120, 2, 16).bfloat16() for _ in range(3))
    given = {"q": 1e3 * q, "k": k, "v": v, "segment_pos": None, "cu_seqlens": None, "cu_seqlens_k": None, "scale": 1.0}
    out, lse = run(given | {"window": 50, "softcap": softcap, "with_lse": True})
    assert out.isfinite().all() and lse.isfinite().all()
    if softcap is None:
        wide = {name: given[name].double() for name in ("q", "k", "v")}
        _, want = OP.reference(OP.call(**(given | wide), window=50, with_lse=True))
        assert want.abs().max() > 5e3
        torch.testing.assert_close(lse.double(), want, rtol=1e-5, atol=0)
    else:
        assert lse.abs().max() <= softcap + math.log(50)


@UNIT
@BOTH
def test_amx_negative_scale(op_name):
    case = bfloat16_case(1, 80, 4, 1, 32, 40, op=op_name)
    inputs = inputs_of(case) | {"scale": -0.3}
    holds(case, gradient_inputs(inputs) if op_name == BACKWARD else inputs)


@UNIT
@pytest.mark.parametrize("flags", [(), ("segmented",)])
def test_amx_what_a_mask_hides_does_not_change_a_bit(flags):
    """Neither the largest numbers, nor those that are none, whose tiles a query's own keys share."""
    case = bfloat16_case(1, 100, 4, 2, 40, 20, flags=flags, rows=1)
    inputs = inputs_of(case)
    seen = torch.arange(100)
    if flags:
        inputs["segment_pos"] = torch.where(seen < 50, seen, seen - 50)[None]
    clean = run(inputs)
    for value in (3e38, -3e38, math.inf, math.nan):
        changed = dict(inputs)
        for name in ("k", "v"):
            changed[name] = inputs[name].clone()
            changed[name][:, 45:50] = value
        found = run(changed)
        # the queries that see keys 45 .. 49
        last = 49 if flags else 68
        for one, two, at in zip(clean, found, (1, 2), strict=True):
            for part in (slice(0, 45), slice(last + 1, 100)):
                index = [slice(None)] * at + [part]
                assert torch.equal(one[tuple(index)], two[tuple(index)])
        if math.isnan(value):
            assert found[0][:, 45 : last + 1].isnan().all()


@UNIT
def test_amx_gradients_of_what_a_mask_hides_do_not_change_a_bit():
    case = bfloat16_case(1, 100, 4, 2, 40, 20, op=BACKWARD)
    inputs = inputs_of(case)
    clean = run(inputs, BACKWARD, rows=48)
    for value in (3e38, -3e38, math.inf, math.nan):
        changed = dict(inputs)
        for name in ("k", "v"):
            changed[name] = inputs[name].clone()
            changed[name][:, 45:50] = value
        found = run(changed, BACKWARD, rows=48)
        # queries 45 .. 68 see keys 45 .. 49, and keys from 26 on
        for one, two, begin in zip(clean, found, (45, 26, 26), strict=True):
            assert torch.equal(one[:, :begin], two[:, :begin]) and torch.equal(one[:, 69:], two[:, 69:])
        if math.isnan(value):
            assert found[0][:, 45:69].isnan().all()


@UNIT
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_amx_nan_stays_with_its_query(softcap):
    inputs = inputs_of(bfloat16_case(1, 90, 4, 1, 16, 30)) | {"softcap": softcap}
    inputs["q"][0, 40, 2, 3] = math.nan
    out, lse = run(inputs)
    lost = torch.zeros(1, 90, 4, dtype=torch.bool)
    lost[0, 40, 2] = True
    assert torch.equal(out.isnan().all(3), lost) and torch.equal(out.isnan().any(3), lost)
    assert torch.equal(lse.isnan(), lost.transpose(1, 2))


@UNIT
@BOTH
def test_amx_threads_do_not_change_a_bit(op_name, monkeypatch):
    """One thread, two, more than there are items: each asks for tiles of its own."""
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    inputs = inputs_of(bfloat16_case(2, 150, 6, 2, 40, 60, flags=("softcap",), op=op_name))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 50):
            torch.set_num_threads(threads)
            found.append(run(inputs, op_name))
        torch.set_num_threads(3)
        monkeypatch.setattr(_threads, "_team", lambda: _threads._python_threads)
        found.append(run(inputs, op_name))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@UNIT
@BOTH
@pytest.mark.parametrize("sizes", [(0, 5, 4, 2, 8, 3), (2, 0, 4, 2, 8, 3)])
def test_amx_nothing_to_do(op_name, sizes):
    batch, time, heads, shared, d, window = sizes
    q, keys = (torch.zeros(*size, d, dtype=torch.bfloat16) for size in ((batch, time, heads), (batch, 5, shared)))
    given = {
        "q": q,
        "k": keys,
        "v": keys,
        "segment_pos": None,
        "cu_seqlens": None,
        "cu_seqlens_k": None,
        "window": window,
    }
    given |= {"softcap": None, "scale": None}
    if op_name == BACKWARD:
        given |= {"dout": q, "out": q, "lse": torch.zeros(batch, heads, time), "dlse": None}
        dq, dk, dv = run(given, op_name)
        assert dq.shape == q.shape and torch.equal(dk, keys) and torch.equal(dv, keys)
    else:
        out, lse = run(given | {"with_lse": True})
        assert out.shape == q.shape and lse.shape == (batch, heads, time)


@UNIT
@BOTH
def test_amx_a_published_size(op_name):
    """RecurrentGemma's heads; the window spans several tiles and many blocks."""
    holds(bfloat16_case(1, 500, 10, 1, 256, 300, op=op_name), keys=256)


ALONE = """
import torch
from griffin_kernels import catalog
op, variant = catalog.op("local_attention"), catalog.variant("local_attention/numba.amx")
q = torch.ones(1, 8, 1, 32, dtype=torch.bfloat16)
print(variant.run(op.call(q, q, q, None, None, None, 4), variant.config())[0].float().mean().item())
"""


@UNIT
def test_amx_is_asked_for_by_the_call_itself():
    """A process that was granted nothing yet is killed at the first instruction of the unit."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "1.0", done.stderr


@BOTH
def test_amx_what_is_rejected(op_name, monkeypatch):
    variant = catalog.variant(f"{op_name}/numba.amx")
    facts = (("isa", ("f16c", "avx2", "avx512f", "avx512_bf16", "amx_bf16")),)
    cpu = device.Device("cpu", "a processor", "x86-64-avx512", 2, 0, 0, details=facts)
    older = dataclasses.replace(cpu, details=(("isa", ("avx2", "avx512f", "avx512_bf16")),))
    case, config = make_case(1, 10, 2, 1, 8, 5, "bfloat16", op=op_name), variant.config()
    monkeypatch.setattr(_native_amx, "granted", lambda: True)
    assert variant.reject(case, cpu, config) is None
    assert "at least 1" in variant.reject(case, cpu, variant.config(rows=0))
    assert "CPU" in variant.reject(case, INTERPRETER, config)
    assert "AMX-BF16" in variant.reject(case, older, config)
    for dtype in ("float32", "float16", "float64"):
        assert "only bfloat16" in variant.reject(make_case(1, 10, 2, 1, 8, 5, dtype, op=op_name), cpu, config)
    monkeypatch.setattr(_native_amx, "granted", lambda: False)
    assert "not granted" in variant.reject(case, cpu, config)


def test_amx_is_the_default_of_prompts():
    """Where there are too few rows to lay the keys out for, others are."""
    others = [catalog.variant(f"local_attention/numba.{name}") for name in ("tiled", "blocked")]
    for time, first in ((2048, True), (1, False)):
        case = make_case(1, time, 10, 1, 256, 2048, "bfloat16", keys=2048 + time - 1)
        ranks = [variant.rank(case, device.cpu()) for variant in others]
        assert (AMX.rank(case, device.cpu()) > max(ranks)) is first
