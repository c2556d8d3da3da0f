"""The Triton gradients of rg_lru where the shared cases do not go: exact tiles and chunks, determinism, refusals."""

from __future__ import annotations

import pytest
import torch

from griffin_kernels import catalog, device, launch, pieces, verify
from griffin_kernels.device import Device
from griffin_kernels.ops.rg_lru.cost import make_case
from tests.everywhere import INTERPRETER

WHERE = device.gpu(0) if torch.cuda.is_available() else INTERPRETER
OP = catalog.op("rg_lru_bwd")
VARIANTS = [variant for variant in catalog.variants(OP.name).values() if variant.launches is not None]
CHUNKED = catalog.variant("rg_lru_bwd/triton.fused_scan_chunked")
DEVICE = Device("cuda", "GPU", "sm_90", 132, 0, 0, warp_size=32)


def first_config(variant):
    """All axes at their first value: the smallest tiles and chunks."""
    return variant.config(**{name: values[0] for name, values in variant.axes.items()})


def some(time, *, flags=(), rows=None, data=("h0",), dtype="float32", width=8, blocks=2):
    """A case of one batch entry and its inputs."""
    case = make_case(1, time, width, blocks, dtype, flags, rows=rows, op=OP.name, tag="edge", data=data)
    return case, OP.make_inputs(case, WHERE.torch_device, seed=time)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
@pytest.mark.parametrize("time", [4, 5, 16, 17, 64])
def test_lengths_that_meet_tiles_and_chunks(variant, time):
    """The first step has no row of y before it, wherever in a tile or chunk it comes to lie."""
    case, inputs = some(time)
    verdict = verify.check(OP, variant, case, first_config(variant), inputs)
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("data", [(), ("h0",)], ids=["fresh", "h0"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_sequences_that_begin_and_end_at_tiles_and_chunks(variant, data):
    """One is empty, one has a single step; without h0 their first steps are resets."""
    case, inputs = some(68, flags=("packed",), rows=5, data=data)
    inputs["cu_seqlens"] = torch.tensor([0, 32, 32, 36, 67, 68], dtype=torch.int32, device=WHERE.torch_device)
    verdict = verify.check(OP, variant, case, first_config(variant), inputs)
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_a_state_that_nothing_reaches_has_no_gradient(variant):
    """The first step is a reset: dh0 is exactly zero, and h0 may hold anything finite."""
    _, inputs = some(37, flags=("segmented",))
    inputs["segment_pos"] = torch.arange(37, device=WHERE.torch_device)[None]
    inputs["h0"] = inputs["h0"] * 1e30
    got = variant.on(inputs, first_config(variant))
    assert torch.equal(got[-1], torch.zeros_like(got[-1]))
    inputs["h0"] = torch.zeros_like(inputs["h0"])
    for mine, theirs in zip(got, variant.on(inputs, first_config(variant)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_runs_again_into_given_outputs_with_the_same_bits(variant):
    """The list of steps may be run again, and sums over time do not depend on the order in which programs run."""
    _, inputs = some(70, flags=("packed",), rows=4, data=("h0", "empty_sequence"), dtype="bfloat16")
    outputs = {}
    steps = variant.launches(catalog.op(variant.op).call(**inputs), outputs, first_config(variant))
    assert sorted(outputs) == sorted(OP.outputs)
    again = variant.launches(catalog.op(variant.op).call(**inputs), dict(outputs), first_config(variant))
    launch.run_all(steps)
    first = {name: value.clone() for name, value in outputs.items()}
    for some_steps in (steps, again):
        for value in outputs.values():
            value.fill_(float("nan"))
        launch.run_all(some_steps)
        for name, value in outputs.items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_rows_further_apart_than_32_bits_reach(variant):
    """Three rows 2**30 elements apart: the last begins at 2**31. Only the touched pages take memory."""
    case, inputs = some(3, dtype="bfloat16")
    for name in ("dy", "x", "y"):
        memory = torch.empty(2**31 + 8, dtype=torch.bfloat16, device=WHERE.torch_device)
        inputs[name] = memory.as_strided((1, 3, 8), (0, 2**30, 1)).copy_(inputs[name])
    got = variant.on(inputs, variant.config())
    verdict = verify.compare(OP, case, got, pieces.reference(OP, inputs), OP.tolerance(case))
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_refusals_say_why(variant):
    case = make_case(1, 64, 24, 3, op=OP.name)
    assert "GPU" in variant.reject(case, device.cpu(), variant.config())
    assert variant.reject(case, INTERPRETER, variant.config()) is None
    double = make_case(1, 64, 24, 3, "float64", op=OP.name)
    assert "float64" in variant.reject(double, INTERPRETER, variant.config())
    name, count = ("block_d", "24 channels") if "block_d" in variant.axes else ("block_n", "8 channels")
    assert count in variant.reject(case, INTERPRETER, variant.config(**{name: 128}))


def test_chunks_hold_whole_tiles():
    case = make_case(1, 64, 24, 3, op=OP.name)
    assert "not a multiple of block_t=16" in CHUNKED.reject(case, DEVICE, CHUNKED.config(chunk=8, block_t=16))


def test_products_inside_need_shared_memory_and_matrix_instructions():
    gates = catalog.variant("rg_lru_bwd/triton.fused_gates")
    wide = make_case(8, 2048, 2560, 10, "bfloat16", op=OP.name)
    assert gates.reject(wide, DEVICE, gates.config()) is None
    assert "shared memory" in gates.reject(wide, DEVICE, gates.config(block_n=128, block_t=64, num_stages=3))
    assert "TF32" in gates.reject(make_case(8, 2048, 2560, 10, op=OP.name), DEVICE, gates.config())
    assert "512 input channels" in gates.reject(
        make_case(8, 2048, 2560, 5, "bfloat16", op=OP.name), DEVICE, gates.config()
    )
    assert "1 channels" in gates.reject(make_case(1, 64, 24, 24, op=OP.name), INTERPRETER, gates.config())


def test_default_follows_the_size_of_the_problem():
    """Few loads in flight: time is split. float32: no matrix instructions."""

    def default(*sizes, dtype="bfloat16"):
        case = make_case(*sizes, dtype, op=OP.name)
        able = [v for v in catalog.variants(OP.name).values() if v.reject(case, DEVICE, v.config()) is None]
        return max(able, key=lambda v: v.rank(case, DEVICE)).name

    assert default(1, 2048, 2560, 10) == "triton.fused_scan_chunked"
    assert default(8, 2048, 2560, 10) == "triton.fused_gates"
    assert default(32, 2048, 2560, 10) == "triton.fused_gates"
    assert default(1, 2048, 2560, 10, dtype="float32") == "triton.fused_scan_chunked"
    assert default(64, 2048, 2560, 10, dtype="float32") == "triton.fused_scan"
