"""The Triton scans where the shared cases do not go: lengths that meet tiles and chunks exactly, strides past 2**31."""

from __future__ import annotations

import pytest
import torch

from griffin_kernels import catalog, device, launch, pieces, verify
from griffin_kernels.ops.linear_scan.cost import make_case
from tests.everywhere import INTERPRETER

WHERE = device.gpu(0) if torch.cuda.is_available() else INTERPRETER
SCANS = [
    variant
    for op in ("linear_scan", "linear_scan_bwd")
    for variant in catalog.variants(op).values()
    if variant.launches is not None
]


def first_config(variant):
    """All axes at their first value: the smallest tiles and chunks."""
    return variant.config(**{name: values[0] for name, values in variant.axes.items()})


@pytest.mark.parametrize("flags", [(), ("reset", "reverse"), ("packed",)], ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("time", [8, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("variant", SCANS, ids=lambda v: v.key)
def test_lengths_that_meet_tiles_and_chunks(variant, time, flags):
    op = catalog.op(variant.op)
    rows = 3 if "packed" in flags else 1
    case = make_case(1, time, 3, flags=flags, rows=rows, op=op.name, tag="edge", data=("h0",))
    inputs = op.make_inputs(case, WHERE.torch_device, seed=time)
    verdict = verify.check(op, variant, case, first_config(variant), inputs)
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", SCANS, ids=lambda v: v.key)
def test_launches_fill_the_given_outputs_and_can_be_run_again(variant):
    op = catalog.op(variant.op)
    flags, data = ("a_prod", "packed"), ("h0", "empty_sequence")
    case = make_case(1, 70, 5, flags=flags, rows=4, op=op.name, tag="edge", data=data)
    inputs = op.make_inputs(case, WHERE.torch_device, seed=0)
    outputs = {}
    launches = variant.launches(catalog.op(variant.op).call(**inputs), outputs, first_config(variant))
    assert list(op.outputs) == [name for name in op.outputs if outputs[name] is not None]
    again = variant.launches(catalog.op(variant.op).call(**inputs), dict(outputs), first_config(variant))
    launch.run_all(launches)
    first = {name: value.clone() for name, value in outputs.items()}
    for list_of_launches in (launches, again):
        for value in outputs.values():
            value.fill_(float("nan"))
        launch.run_all(list_of_launches)
        for name, value in outputs.items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("variant", SCANS, ids=lambda v: v.key)
def test_rows_further_apart_than_32_bits_reach(variant):
    """Three rows 2**30 elements apart: the last begins at 2**31. Only the touched pages take memory."""
    op = catalog.op(variant.op)
    case = make_case(1, 3, 4, "bfloat16", op=op.name, tag="edge", data=("h0",))
    inputs = op.make_inputs(case, WHERE.torch_device, seed=0)
    for name in ("x", "dh"):
        if inputs.get(name) is not None:
            memory = torch.empty(2**31 + 4, dtype=torch.bfloat16, device=WHERE.torch_device)
            inputs[name] = memory.as_strided((1, 3, 4), (0, 2**30, 1)).copy_(inputs[name])
    got = variant.on(inputs, variant.config())
    verdict = verify.compare(op, case, got, pieces.reference(op, inputs), op.tolerance(case))
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", SCANS, ids=lambda v: v.key)
def test_refusals_say_why(variant):
    case = make_case(1, 64, 24, op=variant.op)
    assert "GPU" in variant.reject(case, device.cpu(), variant.config())
    assert variant.reject(case, INTERPRETER, variant.config()) is None
    wide = variant.config(**{"block_d": 256})
    assert "24 channels" in variant.reject(case, INTERPRETER, wide)


def test_default_follows_the_width_of_the_problem():
    h100 = device.Device("cuda", "NVIDIA H100", "sm_90", 132, 80 * 2**30, 50 * 2**20, warp_size=32)
    for op in ("linear_scan", "linear_scan_bwd"):
        table = catalog.variants(op)

        def default(case, table=table):
            accepted = [v for v in table.values() if v.reject(case, h100, v.config()) is None]
            return max(accepted, key=lambda v: v.rank(case, h100)).name

        assert default(make_case(8, 2048, 2560, "bfloat16", op=op)) == "triton.sequential"
        assert default(make_case(1, 2**20, 2560, "bfloat16", op=op)) == "triton.chunked"
        assert default(make_case(1, 16, 2560, "bfloat16", op=op)) == "triton.sequential"


def test_traffic_counts_the_second_reading():
    for op in ("linear_scan", "linear_scan_bwd"):
        variant = catalog.variants(op)["triton.chunked"]
        case = make_case(1, 2**20, 2560, "bfloat16", op=op)
        ideal = catalog.op(op).cost(case).bytes_total
        extra = variant.traffic(case, variant.config()) - ideal
        again = 2 * case["T"] * case["D"] * 2
        assert again * 0.99 < extra < again * 1.1
