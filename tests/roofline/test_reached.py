"""What kernels reach on a SKU: its own published figure, or what is assumed, and every constant's source."""

from __future__ import annotations

import statistics

import msgspec
import pytest

from griffin_kernels import datasheet
from roofline import kernel_time, reached
from roofline.ceilings import MATMUL_DTYPES
from roofline.kernel_time import Constants, constants_of, smooth_maximum, traffic
from roofline.target import of_sku

pytestmark = pytest.mark.unit

SHEETS = [datasheet.datasheet(sku) for sku in datasheet.skus()]
GPUS = [sheet for sheet in SHEETS if sheet.vendor != "Google"]
BY_ARCH = {
    "dram_latency_ns": reached.LATENCY_NS,
    "graph_node_us": reached.GRAPH_NODE_US,
    "stream_kernel_us": reached.STREAM_KERNEL_US,
    "l2_bytes_per_clock": reached.L2_BYTES_PER_CLOCK,
}


def test_what_is_assumed_is_the_median_of_what_is_published():
    shares = [sheet.achieved_dram_gb_per_s / sheet.dram_gb_per_s for sheet in SHEETS if sheet.achieved_dram_gb_per_s]
    assert len(shares) >= 10
    assert statistics.median(shares) == pytest.approx(reached.ACHIEVED_DRAM, abs=0.005)
    overheads = [sheet.event_overhead_us for sheet in SHEETS if sheet.event_overhead_us]
    assert statistics.median(overheads) == reached.EVENT_OVERHEAD_US
    vector = [sheet.achieved_float32_tflops / sheet.fp32_tflops for sheet in SHEETS if sheet.achieved_float32_tflops]
    free = [share for share in vector if share >= reached.CAPPED_BELOW]
    assert statistics.median(free) == pytest.approx(reached.ACHIEVED_VECTOR, abs=0.01)
    for field, table in BY_ARCH.items():
        nvidia = [value for arch, (value, _) in table.items() if arch.startswith("sm_")]
        assert statistics.median(nvidia) == pytest.approx(reached.ELSEWHERE["NVIDIA"][field][0], abs=0.06), field


@pytest.mark.parametrize("field", BY_ARCH)
def test_a_datasheets_own_figure_agrees_with_its_architectures(field):
    own = [(sheet.arch, getattr(sheet, field)) for sheet in SHEETS if getattr(sheet, field) is not None]
    assert own
    for arch, value in own:
        # an H100 PCIe and an H200 stand for their architecture together
        assert value == pytest.approx(BY_ARCH[field][arch][0], rel=0.06), arch


def test_a_figure_says_whether_it_is_of_the_sku():
    a100, h100, tpu = (datasheet.datasheet(sku) for sku in ("nvidia-a100-80gb-sxm", "nvidia-h100-sxm", "google-tpu-v3"))
    own, assumed = reached.graph_node_s(a100), reached.graph_node_s(h100)
    assert (own.value, own.published) == (pytest.approx(1.34e-6), True)
    assert not assumed.published and "an H200" in assumed.why
    assert reached.graph_node_s(tpu) is reached.event_overhead_s(tpu) is reached.latency_s(tpu) is None
    assert reached.event_overhead_s(h100).published and not reached.event_overhead_s(SHEETS[0]).published


def test_matrix_shares_by_dtype():
    t4, l4, h100, l40s = (datasheet.datasheet(f"nvidia-{sku}") for sku in ("t4", "l4", "h100-sxm", "l40s"))
    assert reached.tensor(t4, "float16").value == pytest.approx(24 / 65)
    assert reached.tensor(t4, "bfloat16") is None
    assert reached.tensor(h100, "float16").value == reached.tensor(h100, "bfloat16").value == pytest.approx(795 / 989)
    assert not reached.tensor(h100, "fp8").published and "795 TFLOP/s" in reached.tensor(h100, "fp8").why
    assert reached.tensor(l4, "float16").value < reached.tensor(l4, "bfloat16").value
    assert reached.tensor(l40s, "bfloat16").value == reached.ACHIEVED_TENSOR
    assert reached.tensor(l40s, "float32").value == reached.ACHIEVED_VECTOR


def test_only_boards_that_their_power_limit_holds_back_run_below_their_clock():
    shares = {sheet.sku: reached.clock_share(sheet).value for sheet in SHEETS}
    assert {sku for sku, share in shares.items() if share < 1} == {"nvidia-l4", "nvidia-t4"}
    assert shares["nvidia-l4"] == pytest.approx(8.7 / 30.3 / reached.ACHIEVED_VECTOR)


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.sku)
def test_targets_use_the_figures_and_say_so(sheet):
    target = of_sku(sheet.sku)
    if target.mode == "compiled":  # by one share of the floor
        assert any("a compiler fuses the pass" in line for line in target.assumptions)
        return
    for dtype in MATMUL_DTYPES:
        share = reached.tensor(sheet, dtype)
        if share is not None:
            assert target.reached("tensor", dtype) == share.value
            assert dtype in ("tf32", "fp8") or any(dtype in line and share.why in line for line in target.assumptions)
    assert target.reached("dram", "bfloat16") == reached.dram(sheet).value
    assert any("memory traffic" in line and reached.dram(sheet).why in line for line in target.assumptions)


def test_every_constant_has_a_source_or_says_that_it_is_a_guess():
    wanted = {*Constants.__struct_fields__, *(n for n in vars(kernel_time) if n.isupper())} - {"ASSUMED", "SOURCES"}
    # the table by architecture is told with the constant that it sets
    assert wanted - {"MATRIX_SHARE"} == set(kernel_time.SOURCES)
    for name, source in kernel_time.SOURCES.items():
        assert source.startswith(("published", "fitted:", "a guess:")), name
        assert len(source.split()) > 3, name


@pytest.mark.parametrize("sheet", GPUS, ids=lambda sheet: sheet.sku)
def test_constants_of_a_sku_are_its_figures(sheet):
    found = constants_of(sheet)
    assert found.launch_s == reached.stream_kernel_s(sheet).value
    assert found.latency_s == reached.latency_s(sheet).value
    assert found.dram_reach == reached.dram(sheet).value
    assert found.cache_reach * kernel_time.L2_BYTES_PER_CLOCK == reached.l2_bytes_per_clock(sheet).value
    rest = {name: getattr(found, name) for name in ("issue_reach", "dependent_cycles")}
    assert rest == {name: getattr(kernel_time.ASSUMED, name) for name in rest}


def test_a_constant_must_be_positive():
    with pytest.raises(ValueError, match="launch_s is 0"):
        msgspec.structs.replace(kernel_time.ASSUMED, launch_s=0.0)


def test_limits_that_are_close_overlap_badly():
    assert smooth_maximum({}) == smooth_maximum({"dram": 0.0}) == 0.0
    assert smooth_maximum({"dram": 2.0, "issue": 0.0}) == 2.0
    assert smooth_maximum({"dram": 1.0, "issue": 1.0}) == pytest.approx(2 ** (1 / 3))
    assert 1.0 < smooth_maximum({"dram": 1.0, "issue": 0.5}) < 1.05


def test_rows_read_again_and_spilled_registers_come_from_memory_when_they_outgrow_the_cache():
    assert traffic(100.0, 40, again=30.0, together=20.0) == (100.0, 30.0)
    assert traffic(100.0, 40, again=30.0, together=30.0) == (115.0, 15.0)
    assert traffic(100.0, 40, again=30.0, together=40.0) == (130.0, 0.0)
    assert traffic(100.0, 40, spilled=50.0, spill_space=20.0) == (100.0, 50.0)
    assert traffic(100.0, 40, spilled=50.0, spill_space=1e6) == (150.0, 0.0)
    assert traffic(100.0, 0, again=30.0) == (130.0, 0.0), "no cache is known"


def test_a_loop_waits_or_runs_ahead():
    assert kernel_time.iteration_s(4.0, 1.0) == 5.0
    assert kernel_time.iteration_s(4.0, 1.0, ahead=2) == 2.0
    assert kernel_time.iteration_s(4.0, 3.0, ahead=2) == 3.0
