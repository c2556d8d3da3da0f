"""The Triton attention kernels where the shared cases do not go: edges of windows and tiles, documents, packed heads,
what is visited, the same bits twice, strides past 2**31, slots, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from griffin_kernels import catalog, device, launch, pieces, poison, verify
from griffin_kernels.ops.local_attention import _flash
from griffin_kernels.ops.local_attention.cost import PACKED_KEYS, make_case
from griffin_kernels.ops.local_attention_step.cost import make_case as make_step
from tests.everywhere import INTERPRETER

WHERE = device.gpu(0) if torch.cuda.is_available() else INTERPRETER
FORWARD = [v for v in catalog.variants("local_attention").values() if v.launches is not None]
BACKWARD = [v for v in catalog.variants("local_attention_bwd").values() if v.launches is not None]
STEP = [v for v in catalog.variants("local_attention_step").values() if v.launches is not None]

variants = pytest.mark.parametrize("variant", [*FORWARD, *BACKWARD], ids=lambda v: v.key)
forward_variants = pytest.mark.parametrize("variant", FORWARD, ids=lambda v: v.key)
backward_variants = pytest.mark.parametrize("variant", BACKWARD, ids=lambda v: v.key)
step_variants = pytest.mark.parametrize("variant", STEP, ids=lambda v: v.key)

ATTENTION = catalog.op("local_attention")


def small(variant, edge=32):
    """Tiles of edge x edge, and two parts where there are parts."""
    values = {"block_m": edge, "block_n": edge, "resident": edge, "streamed": edge, "num_warps": 4, "parts": 2}
    return variant.config(**{name: value for name, value in values.items() if hasattr(variant.config(), name)})


def case_for(variant, *sizes, **facts):
    return make_case(*sizes, op=variant.op, tag="edge", **facts)


def verdict_of(variant, case, inputs=None, config=None):
    op = catalog.op(variant.op)
    inputs = op.make_inputs(case, WHERE.torch_device, seed=1) if inputs is None else inputs
    return verify.check(op, variant, case, config or small(variant), inputs)


@variants
@pytest.mark.parametrize(("window", "keys"), [(2, 70), (32, 64), (33, 96), (64, 70), (200, 70), (31, 200)])
def test_windows_that_meet_tiles(variant, window, keys):
    time = min(keys, 64)
    verdict = verdict_of(variant, case_for(variant, 1, time, 2, 1, 16, window, keys=keys))
    assert verdict.ok, verdict.problem


@forward_variants
def test_a_window_of_one_gives_v(variant):
    verdict = verdict_of(variant, case_for(variant, 1, 70, 4, 2, 16, 1, data=("lse",)))
    assert verdict.ok, verdict.problem


@variants
@pytest.mark.parametrize(("heads", "shared"), [(10, 1), (3, 1), (6, 2), (40, 1)])
def test_heads_packed_into_rows(variant, heads, shared):
    """Groups that do not divide a tile, and one of more heads than a tile has rows."""
    verdict = verdict_of(variant, case_for(variant, 2, 21, heads, shared, 16, 9))
    assert verdict.ok, verdict.problem


@variants
@pytest.mark.parametrize("starts", [(0, 32, 64), (0, 31, 33), (0, 1, 2, 3, 64)], ids=str)
@pytest.mark.parametrize("kind", ["packed", "segmented", "both"])
def test_documents_that_begin_at_tile_edges(variant, starts, kind):
    op = catalog.op(variant.op)
    flags = {"packed": ("packed",), "segmented": ("segmented",), "both": ("segmented", "packed")}[kind]
    case = case_for(variant, 1, 70, 2, 1, 16, 40, flags=flags, rows=len(starts) if "packed" in flags else 1)
    spans = list(itertools.pairwise((*starts, 70)))
    documents = {
        "cu_seqlens": torch.tensor([*starts, 70], dtype=torch.int32) if "packed" in flags else None,
        "segment_pos": torch.tensor([[t - a for a, b in spans for t in range(a, b)]]) if kind != "packed" else None,
    }
    documents = {k: v if v is None else v.to(WHERE.torch_device) for k, v in documents.items()}
    plain = catalog.op("local_attention").make_inputs(case, WHERE.torch_device, 0) | documents | {"with_lse": True}
    if op.forward:
        out, lse = ATTENTION.reference(ATTENTION.call(**plain))
        shared = {name: value for name, value in plain.items() if name != "with_lse"}
        plain = {"dout": torch.randn_like(out), "out": out, "lse": lse, "dlse": None} | shared
        plain = {name: plain[name] for name in (*op.inputs, *op.options)}
    verdict = verdict_of(variant, case, plain)
    assert verdict.ok, verdict.problem


@variants
@pytest.mark.parametrize(("window", "right", "keys"), [(9, 32, 40), (40, 1, 70), (2, 31, 40), (40, 500, 40)])
def test_windows_to_the_right_that_meet_tiles(variant, window, right, keys):
    verdict = verdict_of(variant, case_for(variant, 1, 40, 2, 1, 16, window, keys=keys, right=right))
    assert verdict.ok, verdict.problem


@variants
def test_documents_of_any_positions_end_before_the_next_that_is_not_above_zero(variant):
    """Several begin in a stretch of 16, some far apart, padding is below 0; packed sequences that are empty."""
    op = catalog.op(variant.op)
    case = case_for(variant, 1, 40, 2, 1, 16, 30, right=25, rows=5, flags=("segmented", "packed"))
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    given = {
        "segment_pos": torch.tensor([[5, 0, 3, -2, -2, 9, 1, *range(8, 29), 0, 7, 7, 0, *range(1, 9)]]),
        "cu_seqlens": torch.tensor([0, 11, 11, 33, 40, 40], dtype=torch.int32),
    }
    inputs |= {name: value.to(WHERE.torch_device) for name, value in given.items()}
    if op.forward:
        plain = {name: inputs[name] for name in (*ATTENTION.inputs, *op.options)}
        inputs["out"], inputs["lse"] = ATTENTION.reference(ATTENTION.call(**plain, with_lse=True))
    verdict = verdict_of(variant, case, inputs)
    assert verdict.ok, verdict.problem


@variants
@pytest.mark.parametrize(
    ("queries", "keys"),
    [((0, 32, 32, 38), (0, 64, 70, 70)), ((0, 3, 35, 36, 38), (0, 33, 34, 66, 68)), ((0, 2, 38), (0, 68, 70))],
    ids=str,
)
def test_packed_keys_that_meet_tiles(variant, queries, keys):
    """Sequences that end with a tile, without keys, of more queries than keys; two queries and two keys of none."""
    op = catalog.op(variant.op)
    flags = ("packed", PACKED_KEYS)
    case = case_for(variant, 1, 40, 2, 1, 16, 20, keys=72, right=3, rows=len(queries) - 1, flags=flags)
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    given = {"cu_seqlens": queries, "cu_seqlens_k": keys}
    inputs |= {name: torch.tensor(at, dtype=torch.int32, device=WHERE.torch_device) for name, at in given.items()}
    if op.forward:
        plain = {name: inputs[name] for name in (*ATTENTION.inputs, *op.options)}
        inputs["out"], inputs["lse"] = ATTENTION.reference(ATTENTION.call(**plain, with_lse=True))
    else:
        inputs["with_lse"] = True
    verdict = verdict_of(variant, case, inputs)
    assert verdict.ok, verdict.problem


@variants
@pytest.mark.parametrize(("time", "keys", "right"), [(70, 32, 0), (40, 3, 20)])
def test_more_queries_than_keys(variant, time, keys, right):
    data = () if variant.op.endswith("_bwd") else ("lse",)
    verdict = verdict_of(variant, case_for(variant, 1, time, 2, 1, 16, 20, keys=keys, right=right, data=data))
    assert verdict.ok, verdict.problem


@variants
def test_positions_in_no_order(variant):
    """The contract is a formula: it holds for positions that no tokenizer makes, padding below 0 too."""
    op = catalog.op(variant.op)
    case = case_for(variant, 2, 70, 2, 1, 16, 30, flags=("segmented",))
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    inputs["segment_pos"] = torch.randint(-3, 50, (2, 70), generator=torch.Generator().manual_seed(3))
    inputs["segment_pos"] = inputs["segment_pos"].to(WHERE.torch_device)
    if op.forward:
        plain = {name: inputs[name] for name in catalog.op("local_attention").inputs}
        options = {name: inputs[name] for name in op.options}
        inputs["out"], inputs["lse"] = catalog.op("local_attention").reference(
            catalog.op("local_attention").call(**plain, **options, with_lse=True)
        )
    verdict = verdict_of(variant, case, inputs)
    assert verdict.ok, verdict.problem


@forward_variants
@pytest.mark.parametrize("flags", [(), ("segmented",)], ids=str)
def test_tiles_outside_are_not_visited(variant, flags):
    """Values that are NaN give NaN even with a weight of 0, so a tile that is visited shows."""
    case = case_for(variant, 1, 8, 4, 1, 16, 20, keys=200, flags=flags)
    inputs = catalog.op("local_attention").make_inputs(case, WHERE.torch_device, 0)
    low = 200 - 8 - 20 + 1
    if flags:
        inputs["segment_pos"] = torch.arange(4, 12, device=WHERE.torch_device)[None]
        low = 200 - 8 - 4
    want = pieces.reference(catalog.op("local_attention"), inputs)
    for name in ("k", "v"):
        inputs[name][:, :low] = torch.nan
    got = variant.on(inputs, small(variant))
    verdict = verify.compare(catalog.op("local_attention"), case, got, want, _tolerance(case))
    assert verdict.ok, verdict.problem


def _tolerance(case):
    return catalog.op(case.op).tolerance(case)


@forward_variants
def test_hidden_keys_of_a_visited_tile_may_be_nan(variant):
    """Scores are replaced before the maximum; only hidden values have to be finite."""
    case = case_for(variant, 1, 40, 2, 1, 16, 5)
    op = catalog.op("local_attention")
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    want = pieces.reference(op, inputs)
    part = {name: inputs[name][:, 20:] for name in ("q", "k", "v")}
    before = {name: inputs[name][:, :20].clone() for name in ("k", "v")}
    before["k"][:, :16] = torch.nan
    joined = {name: torch.cat([before[name], part[name]], dim=1) for name in ("k", "v")}
    got = variant.on(inputs | {"q": part["q"]} | joined, small(variant))
    verdict = verify.compare(op, case, got, (want[0][:, 20:], None), op.tolerance(case))
    assert verdict.ok, verdict.problem


@backward_variants
def test_gradients_have_the_same_bits_twice(variant):
    op = catalog.op(variant.op)
    case = case_for(variant, 1, 70, 6, 1, 16, 40, "bfloat16", flags=("softcap", "segmented"))
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    first, second = (variant.on(inputs, small(variant)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@backward_variants
def test_keys_out_of_reach_have_no_gradient(variant):
    op = catalog.op(variant.op)
    case = case_for(variant, 1, 8, 2, 1, 16, 5, keys=90)
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    with poison.poisoned():
        _, dk, dv = variant.on(inputs, small(variant))
    assert not dk[:, : 90 - 8 - 4].any()
    assert not dv[:, : 90 - 8 - 4].any()


@variants
@pytest.mark.parametrize("scale", [-0.4, 0.0, 30.0])
@pytest.mark.parametrize("flags", [(), ("softcap",)], ids=str)
def test_other_scales(variant, scale, flags):
    op, forward = catalog.op(variant.op), catalog.op("local_attention")
    case = case_for(variant, 1, 40, 2, 1, 16, 20, flags=flags)
    inputs = op.make_inputs(case, WHERE.torch_device, 0) | {"scale": scale}
    if op.forward:
        plain = {name: inputs[name] for name in (*forward.inputs, *op.options)}
        inputs["out"], inputs["lse"] = (
            x.float() for x in forward.reference(forward.call(**pieces.in_dtype(torch.float64, plain), with_lse=True))
        )
        if scale == 30.0 and not flags:
            return  # every weight is 0 or 1 to rounding: dq and dk are rounding errors alone
    want = pieces.reference(op, inputs)
    got = variant.on(inputs, small(variant))
    # an error of a score grows with the scale, by 30 sqrt(d) against the usual 1
    factor = 120.0 if scale == 30.0 else 1.0
    verdict = verify.compare(op, case, got, want, op.tolerance(case).times(factor))
    assert verdict.ok, verdict.problem


@forward_variants
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_rows_that_see_nothing_of_the_first_tile(variant, scale):
    """64 queries against tiles of 32 keys. Scores so large give one key all the weight: q is a multiple of that key."""
    op = catalog.op("local_attention")
    case = case_for(variant, 1, 70, 1, 1, 16, 4)
    inputs = op.make_inputs(case, WHERE.torch_device, 0) | {"scale": scale}
    inputs["k"] = torch.nn.functional.normalize(inputs["k"], dim=3)
    inputs["q"] = inputs["k"].clone()
    config = variant.config(block_m=64, block_n=32)
    verdict = verify.check(op, variant, case, config, inputs)
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", [*FORWARD, *BACKWARD, *STEP], ids=lambda v: v.key)
def test_launches_fill_the_given_outputs(variant):
    op = catalog.op(variant.op)
    case = op.cases_tagged("smoke")[0]
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    outputs = {}
    steps = variant.launches(catalog.op(variant.op).call(**inputs), outputs, variant.config())
    assert list(op.outputs) == [name for name in op.outputs if outputs[name] is not None]
    fresh = [name for name in op.outputs if name not in op.in_place]
    again = variant.launches(catalog.op(variant.op).call(**inputs), dict(outputs), variant.config())
    launch.run_all(steps)
    first = {name: outputs[name].clone() for name in fresh}
    for each in (steps, again):
        for name in fresh:
            outputs[name].fill_(torch.nan)
        launch.run_all(each)  # a step writes the same token to the same slot again
        for name in fresh:
            assert torch.equal(outputs[name], first[name]), name


@forward_variants
def test_rows_further_apart_than_32_bits_reach(variant):
    """Three queries and keys 2**30 elements apart: the last begins at 2**31. Only the touched pages take memory."""
    op = catalog.op("local_attention")
    case = case_for(variant, 1, 3, 2, 1, 16, 3, "bfloat16")
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    for name in ("q", "k"):
        values = inputs[name]
        memory = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=WHERE.torch_device)
        inputs[name] = memory.as_strided(values.shape, (0, 2**30, 16, 1)).copy_(values)
    got = variant.on(inputs, variant.config())
    verdict = verify.compare(op, case, got, pieces.reference(op, inputs), op.tolerance(case))
    assert verdict.ok, verdict.problem


@step_variants
@pytest.mark.parametrize("slots", [[3, -1, 0], [-1, -1, -1], [4, 0, 1]], ids=str)
@pytest.mark.parametrize("positions", [[0, 5, 31], [32, 33, 95], [1000, 63, 16]], ids=str)
def test_steps_with_slots(variant, slots, positions):
    op = catalog.op(variant.op)
    case = make_step(3, 33, 6, 2, 16, pool=5, tag="edge", data=("slots",))
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    inputs |= {name: torch.tensor(values, device=WHERE.torch_device) for name, values in
               (("slots", slots), ("positions", positions))}  # fmt: skip
    config = variant.config(block_n=16)
    verdict = verify.check(op, variant, case, config, inputs)
    assert verdict.ok, verdict.problem


@step_variants
def test_the_slot_to_be_written_is_not_read(variant):
    op = catalog.op(variant.op)
    case = make_step(2, 33, 4, 1, 16, tag="edge")
    inputs = op.make_inputs(case, WHERE.torch_device, 0)
    want = pieces.reference(op, inputs)
    for row, place in enumerate(inputs["positions"].tolist()):
        for name in ("k_cache", "v_cache"):
            inputs[name][row, place % 33] = torch.nan
    got = variant.on(inputs, variant.config(block_n=16))
    verdict = verify.compare(op, case, got, want, op.tolerance(case))
    assert verdict.ok, verdict.problem


H100, MI300, RTX = (
    device.Device(kind, name, arch, units, 0, 0, warp_size=warp)
    for kind, name, arch, units, warp in (
        ("cuda", "H100", "sm_90", 132, 32),
        ("hip", "MI300X", "gfx942", 304, 64),
        ("cuda", "RTX", "sm_120", 170, 32),
    )
)


@pytest.mark.parametrize("variant", [*FORWARD, *BACKWARD], ids=lambda v: v.key)
def test_refusals_say_why(variant):
    wide = case_for(variant, 1, 2048, 10, 1, 256, 2048, "bfloat16")
    large = variant.config(**{name: 128 for name in ("block_m", "block_n", "resident") if name in variant.axes})
    assert "GPU" in variant.reject(wide, device.cpu(), variant.config())
    assert "float64" in variant.reject(case_for(variant, 1, 8, 1, 1, 16, 4, "float64"), H100, variant.config())
    assert "head_dim 512" in variant.reject(case_for(variant, 1, 8, 1, 1, 512, 4), H100, variant.config())
    for where in (H100, MI300, RTX):
        assert variant.reject(wide, where, variant.config()) is None
    for where, limit in ((RTX, 99), (MI300, 64)):
        assert f"shared memory, {where.arch} has {limit * 1024} for a block" in variant.reject(wide, where, large)


def test_defaults_follow_the_device_and_the_batch():
    def best(op, where, *sizes, **facts):
        case = make_case(*sizes, "bfloat16", op=op, **facts)
        able = [v for v in catalog.variants(op).values() if v.reject(case, where, v.config()) is None]
        return max((v for v in able if not v.baseline), key=lambda v: v.rank(case, where)).name

    assert best("local_attention", H100, 8, 2048, 10, 1, 256, 2048) == "triton.flash_window"
    assert best("local_attention", H100, 1, 32, 10, 1, 256, 2048, keys=2079) == "triton.flash_split"
    assert best("local_attention_bwd", H100, 1, 2048, 10, 1, 256, 2048) == "triton.flash_split"
    assert best("local_attention_bwd", H100, 8, 8192, 10, 1, 256, 2048) == "triton.flash_window"
    assert _flash.forward_default(256, "bfloat16", "sm_90").block_m == 128
    step = {batch: make_step(batch, 2048, 10, 1, 256, "bfloat16") for batch in (1, 512)}
    ranks = {b: max(STEP, key=lambda v: v.rank(case, H100)).name for b, case in step.items()}
    assert ranks == {1: "triton.split", 512: "triton.single"}


@step_variants
def test_step_refusals_say_why(variant):
    assert "GPU" in variant.reject(make_step(1, 64, 4, 1, 64), device.cpu(), variant.config())
    assert "float64" in variant.reject(make_step(1, 64, 4, 1, 64, "float64"), H100, variant.config())
    assert "200 query heads" in variant.reject(make_step(1, 64, 200, 1, 64), H100, variant.config())
    tall = variant.config(block_n=64)
    assert "shared memory" in variant.reject(make_step(1, 2048, 10, 1, 256), RTX, tall)
