"""Predictions of forward passes: how times follow from ceilings, what is refused, what users get back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from griffin_kernels import datasheet, errors
from griffin_kernels.case import Cost
from griffin_kernels.models import PRESETS, preset
from roofline.ceilings import Ceiling, Ceilings
from roofline.forward import analyse, frame, sweep
from roofline.study_records import REGIMES
from roofline.target import AnalysisTarget, Tuned, of_sku

pytestmark = pytest.mark.unit

TABLE = {
    "dram_triad": ("bytes_per_s", 1e9),
    "matmul_float32": ("flops_per_s", 1e10),
    "vector_float32": ("flops_per_s", 5e9),
    "special_exp": ("ops_per_s", 1e8),
    "launch": ("s", 1e-4),
}


def ceilings(**others):
    table = TABLE | others
    return Ceilings("toy", tuple(Ceiling.stated(n, u, v, "measured", "toy") for n, (u, v) in table.items()))


def target(asynchronous=False, **facts):
    return AnalysisTarget(
        "toy", facts.pop("ceilings", ceilings()), facts.pop("memory_bytes", 10**10), asynchronous, **facts
    )


def run(where, model="griffin-tiny", phase="prefill", batch=2, seq=40, dtype="float32"):
    return analyse(model, where, phase=phase, batch=batch, seq=seq, dtype=dtype)


def times_of(result):
    return [time for times in result.kernels for time in times]


def test_floor_is_the_longest_of_four_times_and_sums_up():
    result = run(target())
    for time in times_of(result):
        cost = time.kernel.cost
        want = max(cost.bytes_total / 1e9, cost.tensor_flops / 1e10, cost.vector_flops / 5e9, cost.special_ops / 1e8)
        assert time.floor_s == pytest.approx(want)
        assert time.floors.get(time.bound, 0.0) == time.floor_s
    assert result.record.floor_s == pytest.approx(sum(time.floor_s for time in times_of(result)))
    assert result.latency_s == pytest.approx(sum(time.predicted_s for time in times_of(result)))
    assert result.latency_s == pytest.approx(sum(result.record.predicted_by_regime_s.values()))


def test_launches_are_added_on_a_cpu_and_hidden_on_a_gpu():
    here, gpu = run(target()), run(target(asynchronous=True, host_s=1e-4))
    assert here.record.predicted_by_regime_s["launch"] == pytest.approx(
        1e-4 * sum(t.kernel.launches for t in times_of(here))
    )
    launches = sum(time.launches for time in times_of(gpu))
    kernels = sum(seconds for name, seconds in gpu.record.predicted_by_regime_s.items() if name != "launch")
    assert gpu.latency_s == pytest.approx(max(kernels, 1e-4 * launches))
    assert gpu.latency_s < here.latency_s
    assert gpu.record.graphed_s <= here.record.graphed_s


def test_a_tuned_kernel_counts_at_its_share_of_the_floor():
    plain = run(target())
    tuned = run(target(tuned=lambda case: Tuned(0.5, "measured") if case.op == "recurrent_block" else None))
    for before, after in zip(times_of(plain), times_of(tuned), strict=True):
        if after.kernel.name == "recurrent_block":
            assert after.predicted_s == pytest.approx(2 * after.floor_s)
            assert after.how == "measured"
        else:
            assert after.predicted == before.predicted


def test_a_product_of_few_rows_counts_at_the_rate_measured_for_them():
    curve = {f"matmul_rows_float32_{rows}": ("flops_per_s", rate) for rows, rate in ((1, 5e8), (100, 5e9))}
    result = run(target(ceilings=ceilings(**curve)), phase="decode", batch=10)
    up = next(time for time in times_of(result) if time.kernel.name == "up")
    # 10 rows lie halfway between 1 and 100 in the logarithm
    assert up.predicted_s - 1e-4 == pytest.approx(up.kernel.cost.tensor_flops / (5e8 * 5e9) ** 0.5)


def test_a_share_of_a_ceiling_that_kernels_reach_lengthens_times():
    full = run(target(asynchronous=True, ceilings=ceilings(launch=("s", 1e-12))))
    half = dataclasses.replace(full.target, reach=dict.fromkeys(("dram", "tensor"), 0.5))
    for before, after in zip(times_of(full), times_of(run(half)), strict=True):
        assert after.floor_s == before.floor_s
        if before.kernel.rows:
            assert after.predicted_s == pytest.approx(2 * before.predicted_s)


def test_glue_moves_nothing_at_the_floor_and_something_as_run():
    for time in times_of(run(target())):
        if time.kernel.name in ("norm", "residual", "gelu", "gelu_gate", "gate", "rope"):
            activations = time.kernel.cost.bytes_total - time.kernel.parameter_bytes
            assert activations == 0 < time.kernel.run_bytes


@pytest.mark.parametrize("family", ["hawk", "griffin", "mqa"])
def test_regimes_of_decode_with_fused_kernels_and_captured_launches(family):
    # a small batch reads weights; many long sequences read keys and values, but for Hawk, whose state
    # does not grow
    sheet = of_sku("nvidia-h100-sxm")
    table = tuple(c for c in sheet.ceilings.table if not c.name.startswith("launch"))
    bare = dataclasses.replace(sheet.ceilings, table=table)
    where = dataclasses.replace(sheet, ceilings=bare, tuned=lambda case: Tuned(1.0, "fused, at its floor"))
    small = run(where, f"{family}-1b3", "decode", 1, 2048, "bfloat16")
    long = run(where, f"{family}-1b3", "decode", 128, 65536, "bfloat16")
    assert small.regime == "parameters"
    assert (long.regime == "cache") == (family == "mqa")
    assert set(small.record.predicted_by_regime_s) == set(REGIMES)


def test_memory_and_the_largest_batch():
    one = run(target(memory_bytes=10**9), "mqa-100m", "decode", 1, 1000)
    memory = one.memory
    assert memory.weights == 4 * preset("mqa-100m").parameters()
    assert memory.fits is False and memory.largest_batch == 0
    assert f"needs {memory.needed / 1e9:.2f} GB, the device has 1.00 GB: it does not fit" == memory.sentence()
    room = run(target(memory_bytes=10**10), "mqa-100m", "decode", 1, 1000).memory
    at_most = run(target(memory_bytes=10**10), "mqa-100m", "decode", room.largest_batch, 1000).memory
    above = run(target(memory_bytes=10**10), "mqa-100m", "decode", room.largest_batch + 1, 1000).memory
    assert at_most.fits and not above.fits
    assert run(target(memory_bytes=0)).memory.fits is None


def test_tables_agree():
    result = run(target(), "griffin-100m", seq=128)
    frame, kernels = result.frame(), result.kernel_frame()
    assert len(frame) == 2 * 12 + 2
    for name in ("floor_s", "predicted_s", "bytes", "launches"):
        assert frame[name].sum() == pytest.approx(kernels[name].sum())
        assert sum(getattr(row, name) for row in result.record.kinds) == pytest.approx(frame[name].sum())
    assert result.record.predicted_s == result.latency_s and len(result.record.parts) == len(frame)
    assert result.record.tokens_per_s == pytest.approx(2 * 128 / result.latency_s)


def test_sweep_is_the_same_passes():
    where = of_sku("nvidia-a100-40gb-sxm")
    points = sweep("griffin-7b", where, phase="decode", dtype="bfloat16", batches=(1, 64), seqs=(128, 4096))
    assert [(p.batch, p.seq) for p in points] == [(1, 128), (1, 4096), (64, 128), (64, 4096)]
    alone = run(where, "griffin-7b", "decode", 64, 4096, "bfloat16")
    assert points[-1] == alone.record.point
    assert list(frame(points)["batch"]) == [1, 1, 64, 64]


@pytest.mark.parametrize("sku", datasheet.skus())
def test_every_preset_on_every_device(sku):
    where = of_sku(sku)
    dtype = "bfloat16" if "bfloat16" in where.ceilings.tensor_flops_per_s else "float16"
    for name in PRESETS:
        for phase in ("prefill", "decode"):
            result = run(where, name, phase, 1, 512, dtype)
            assert 0 < result.record.floor_s <= result.latency_s
            assert result.regime in REGIMES


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model": "griffin-1b"}, errors.UnknownModelError, "griffin-1b3"),
        ({"seq": 0}, errors.ArgumentError, "seq is 0"),
        ({"batch": 0}, errors.ArgumentError, "batch is 0"),
        ({"batch": -3}, errors.ArgumentError, "batch is -3"),
        ({"phase": "training"}, errors.ArgumentError, "expected prefill, decode or train"),
        ({"dtype": "int8"}, errors.DtypeError, "float32, bfloat16 or float16"),
        ({"dtype": "bfloat16"}, errors.DtypeError, "toy has no known matrix peak in bfloat16; it has float32"),
    ],
)
def test_bad_input_is_one_sentence(changed, error, words):
    with pytest.raises(error) as caught:
        run(target(), **changed)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_dtype_that_a_gpu_lacks():
    with pytest.raises(errors.DtypeError, match="no known matrix peak in bfloat16; it has float32, float16"):
        run(of_sku("nvidia-t4"), dtype="bfloat16")


def test_assumptions_name_what_is_assumed():
    published = " ".join(of_sku("nvidia-h100-sxm").assumptions)
    assert "795 TFLOP/s" in published and "nothing was measured" in published
    sku = next(s for s in datasheet.skus() if not datasheet.datasheet(s).achieved_bfloat16_tflops)
    assert "median of five GPUs" in " ".join(of_sku(sku).assumptions)


@pytest.mark.process
def test_analysis_needs_neither_torch_nor_triton():
    code = (
        "import sys, roofline.forward as f, roofline.target as t, roofline.tables\n"
        "f.analyse('griffin-14b', t.of_sku('nvidia-h100-sxm'), phase='decode', batch=1, seq=2048, dtype='bfloat16')\n"
        "print([m for m in ('torch', 'triton', 'numba', 'numpy', 'pandas', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_cost_gives_no_time():
    assert ceilings().slow(Cost(0, 0), "float32", launches=0) == {}


def test_floors_take_the_best_samples_and_predictions_the_median():
    sampled = [0.5e9, 0.5e9, 1e9]
    memory = Ceiling(
        name="dram_triad",
        unit="bytes_per_s",
        value=1e9,
        low=1e9,
        high=1e9,
        origin="measured",
        source="",
        samples=sampled,
    )
    others = tuple(c for c in ceilings().table if c.name in ("matmul_float32", "launch"))
    result = run(target(ceilings=Ceilings("toy", (memory, *others))), phase="decode", batch=1)
    down = next(time for time in times_of(result) if time.kernel.name == "down")
    assert down.bound == "dram" and down.floor_s == pytest.approx(down.kernel.cost.bytes_total / 1e9)
    assert down.predicted_s == pytest.approx(2 * down.floor_s + 1e-4)
