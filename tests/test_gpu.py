"""What only a GPU can show: launches on the device, CUDA graphs, more than 2**31 elements, timing, a tune run."""

from __future__ import annotations

import functools

import msgspec
import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, pieces, verify
from griffin_kernels.ops.linear_scan.cost import make_case
from roofline import measure
from tests.calls import public, small
from tests.griffin_kernels.ops.test_offsets import PACKED, padded
from tuning.measure import timing
from tuning.plan.planner import Options
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.static.requests import representative

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")]

OPS = list(catalog.ops())


def triton_variants(op_name):
    return [v for v in catalog.variants(op_name).values() if v.backend == "triton"]


@pytest.mark.parametrize("op_name", OPS)
def test_bench_shapes_match_the_reference(op_name):
    """The sizes that people run, cut to 1000 steps: full widths, heads and windows, default configurations."""
    here = device.gpu(0)
    op = catalog.op(op_name)
    assert triton_variants(op_name)
    for bench in representative(op.cases):
        dims = {name: min(size, 1000) if name in ("T", "S") else size for name, size in bench.dims.items()}
        case = msgspec.structs.replace(bench, dims=dims)
        inputs = op.make_inputs(case, here.torch_device, 0)
        want = pieces.reference(op, inputs)
        for variant in triton_variants(op_name):
            if variant.reject(case, here, variant.config()) is None:
                verdict = verify.check(op, variant, case, variant.config(), inputs, want)
                assert verdict.ok, f"{variant.key} {case.key}: {verdict.problem}"


def test_more_than_two_to_the_31_elements():
    x = torch.ones(1, 2**31 // 2560 + 64, 2560, dtype=torch.bfloat16, device="cuda")
    a = torch.full_like(x, 0.5)
    for variant in triton_variants("linear_scan"):
        with griffin_kernels.use(variant=variant.key):
            h, h_last = griffin_kernels.linear_scan(x, a)
        assert h.numel() > 2**31
        torch.testing.assert_close(h_last, torch.full_like(h_last, 2.0), rtol=1e-2, atol=0)
        torch.testing.assert_close(h[0, -1].float(), h_last[0], rtol=1e-2, atol=0)
        del h, h_last


@pytest.mark.parametrize("name", PACKED)
def test_offsets_on_the_cpu_end_before_the_data(name):
    """What follows is NaN and is not read; outputs there are 0."""
    op, cuda = catalog.op(name), torch.device("cuda")
    given = op.make_inputs(small(name, 1, ("packed",))[0], cuda, 3)
    wanted = public(name, given)[0]
    for got in (public(name, given | {"cu_seqlens": given["cu_seqlens"].cpu()}), public(name, padded(name, given))):
        torch.testing.assert_close(got[0][:, : wanted.shape[1]], wanted, rtol=0, atol=0)
        assert not got[0][:, wanted.shape[1] :].any()


def test_captured_in_a_cuda_graph_and_replayed_on_new_data():
    x, a = (torch.rand(2, 300, 256, device="cuda") for _ in range(2))
    griffin_kernels.linear_scan(x, a)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h, _ = griffin_kernels.linear_scan(x, a)
    x.copy_(torch.rand_like(x))
    graph.replay()
    torch.testing.assert_close(h, griffin_kernels.linear_scan(x, a)[0])


@pytest.mark.parametrize("op_name", [name for name in OPS if catalog.op(name).in_place])
def test_steps_replayed_from_a_cuda_graph_advance_the_states(op_name):
    op, where = catalog.op(op_name), device.gpu(0)
    case = next(c for c in op.cases_tagged("edge") if {"slots", "every_token"} & {*c.data} and c.dtype == "bfloat16")
    for variant in triton_variants(op_name):
        inputs = op.make_inputs(case, where.torch_device, 0)
        kept = {name: verify.copy_of(inputs[name]) for name in op.in_place}
        run = functools.partial(variant.on, config=variant.config())
        run(inputs)  # compiles
        replayed = inputs | {name: verify.copy_of(kept[name]) for name in op.in_place}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(replayed)
        for name in op.in_place:
            replayed[name].copy_(kept[name])
            inputs[name].copy_(kept[name])
        for _ in range(3):
            graph.replay()
            want = run(inputs)
            for mine, theirs in zip(captured, want, strict=True):
                assert torch.equal(mine, theirs), variant.key


def test_sampler_is_positive_and_bandwidth_plausible():
    here = device.gpu(0)
    for ceiling in measure.dram(here, seconds=0.2):
        assert 5e10 < ceiling.low <= ceiling.value <= ceiling.high < 2e13
    op = catalog.op("linear_scan")
    variant = catalog.variant("linear_scan/triton.sequential")
    run = functools.partial(variant.run, config=variant.config())
    for time in (16, 4096):  # one captured in a graph, one not
        case = make_case(1, time, 2560, "bfloat16")
        inputs = timing.copies(op.make_inputs(case, here.torch_device, 0), here, op.call)
        sample = timing.sampler(run, inputs, here)
        assert 0 < sample() < 1


def test_quick_tune_publishes(tmp_path):
    class Quiet:
        def __getattr__(self, name):
            return lambda *args: None

    options = Options(ops=("linear_scan",), cases=("B1-T2048-D2560-bfloat16",), budget="quick", device="cuda")
    outcome = tune(options, Paths.choose(tmp_path, device.gpu(0)), Quiet())
    assert [entry.op for entry in outcome.entries] == ["linear_scan"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", ["hawk-tiny", "griffin-tiny", "mqa-tiny"])
def test_forward_passes_are_timed_part_by_part(model, phase):
    from roofline import pass_timing
    from roofline.ceilings import Ceilings
    from roofline.forward import analyse
    from roofline.target import at_hand

    here = device.gpu(0)
    known = Ceilings(here.name, tuple(measure.measure(here, seconds=1.0)), here.last_level_cache_bytes)
    found = analyse(model, at_hand(here, known), phase=phase, batch=2, seq=64, dtype="bfloat16")
    measured = pass_timing.measure(pass_timing.build(found, here), found.record, here, 0.2)
    assert len(measured.parts_s) == len(found.record.parts) and min(measured.parts_s) > 0
    # events between parts add little to what the passes take without them
    assert sum(measured.parts_s) < 3 * measured.median_s
