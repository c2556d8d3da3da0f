"""The published set: what ships, its totals, and what they say of a prediction's uncertainty."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import msgspec
import pytest
from typer.testing import CliRunner

from griffin_kernels import datasheet, errors
from reports.cli import app
from roofline import kernel_time, published_set, reached, validation
from roofline.published_set import PublishedKernel, TimedSize, sources
from roofline.validation import FITTED, Judged, of_kernel, of_pass, total, validate
from tests import ROOT

pytestmark = pytest.mark.unit

KERNELS = [kernel for source in sources() for kernel in source.kernels]
PASSES = [each for source in sources() for each in source.passes]


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["roofline", "validate", *words])
    assert done.exit_code == code, done.output
    return done.output


def test_totals_hold():
    found = validate().totals
    kernels, held_out = found["kernels"], found["kernels, held-out GPUs"]
    assert kernels.rows > 100 and held_out.rows > 25
    assert kernels.mape <= 0.08 and held_out.mape <= 0.12
    assert kernels.spearman >= 0.99 and held_out.spearman >= 0.99
    assert all(row.error <= 0.10 for row in validate().rows if row.kind == "decode" and not row.weak)
    assert found["decode"].rows == 8
    assert found["prefill"].rows == 32 and found["prefill"].mape <= 0.12


def test_totals_are_of_their_rows():
    found = validate()
    strong = [row for row in found.rows if row.kind == "kernel" and not row.weak]
    assert found.totals["kernels"].rows == len(strong)
    assert found.totals["kernels"].mape == pytest.approx(sum(row.error for row in strong) / len(strong))
    parts = [found.totals[f"kernels, {which} GPUs"].rows for which in ("fitted", "held-out")]
    assert sum(parts) == len(strong) and min(parts) > 0
    by_gpu = [each.rows for name, each in found.totals.items() if name.startswith("kernel, ")]
    assert sum(by_gpu) == len(strong)
    assert {row.sku for row in strong if row.fitted} == set(FITTED)


def test_every_outlier_has_its_reason():
    for row in validate().outliers:
        assert row.outlier or row.weak, (row.name, row.size, row.gpu, row.ratio)


def test_facts_alone_are_kept_and_every_source_is_named():
    assert {source.title for source in sources()} and all(source.url.startswith("https://") for source in sources())
    for kernel in KERNELS:
        sheet = datasheet.datasheet(kernel.sku)
        assert kernel.does and kernel.version and sheet.tensor_flops_per_s(kernel.dtype)
        sizes = [row.n for row in kernel.rows]
        assert sizes == sorted(set(sizes)), kernel.name
        for row in kernel.rows:
            # no faster than the memory's peak: then a tensor is counted that is not moved
            assert row.bytes / (row.us * 1e-6) < sheet.dram_bytes_per_s, (kernel.name, row.n)
            assert (row.again_bytes > 0) == (row.together_bytes > 0)
            assert (row.spilled_bytes > 0) == (row.spill_bytes > 0)
            assert (row.steps > 0) == (kernel.instructions_per_step > 0)
    for each in PASSES:
        assert (each.ms is None) != (each.tokens_per_s is None), each.name


def test_shapes_are_those_of_the_models():
    sizes = {each.name: each.config.parameters() for each in PASSES}
    # an output matrix that is the embedding too counts once, a gated MLP stands for two matrices
    expected = {"Llama-2-7B": 6.61e9, "Llama-3-8B": 7.51e9, "gpt2_large": 0.77e9, "gpt3_27": 2.65e9, "opt_13": 1.3e9}
    for name, count in expected.items():
        assert sizes[name] == pytest.approx(count, rel=0.04), name


def test_the_set_is_in_the_wheel():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    assert "published/*.toml" in known["roofline"]
    assert len(list(published_set.FOLDER.glob("*.toml"))) == len(sources()) >= 6


def kernel(**facts: object) -> PublishedKernel:
    rows = (TimedSize(n=1, us=1.0, bytes=1e9),)
    given = {"name": "k", "sku": "nvidia-h100-sxm", "dtype": "bfloat16", "does": "d", "size": "N", "version": "1"}
    return PublishedKernel(**({"rows": rows} | given | facts))


def test_limits_of_a_published_kernel():
    h100 = datasheet.datasheet("nvidia-h100-sxm")
    plain = validation.limits_s(kernel(), TimedSize(n=1, us=1.0, bytes=1e9))
    assert plain["dram"] == pytest.approx(1e9 / 3.04e12) and plain["cache"] < plain["dram"]
    assert set(plain) == {"dram", "cache"}
    spilled = TimedSize(n=1, us=1.0, bytes=1e9, spilled_bytes=1e9, spill_bytes=1e9)
    assert validation.limits_s(kernel(), spilled)["dram"] == pytest.approx(2 * plain["dram"])
    kept = TimedSize(n=1, us=1.0, bytes=1e9, again_bytes=1e9, together_bytes=1e6)
    twice = validation.limits_s(kernel(), kept)
    assert twice["dram"] == plain["dram"] and twice["cache"] == pytest.approx(2 * plain["cache"])
    serial = TimedSize(n=1, us=1.0, bytes=1.0, steps=1000)
    chain = validation.limits_s(kernel(instructions_per_step=10), serial)["latency"]
    assert chain == pytest.approx(1000 * (348e-9 + 10 * kernel_time.ASSUMED.dependent_cycles / 1.98e9))
    product = validation.limits_s(kernel(), TimedSize(n=1, us=1.0, bytes=1.0, flops=1e12))
    assert product["tensor"] == pytest.approx(1e12 / (795e12 * kernel_time.constants_of(h100).matrix_share))


def judged(**facts: object) -> Judged:
    given = {"kind": "kernel", "name": "k", "size": "", "sku": "nvidia-h100-sxm", "gpu": "g", "dtype": "float32"}
    return Judged(**(given | {"published_s": 1.0, "predicted_s": 1.0, "bound": "dram", "fitted": True} | facts))


def test_a_total_of_rows():
    rows = [judged(published_s=p, predicted_s=q) for p, q in ((1.0, 1.05), (2.0, 1.0), (4.0, 4.0))]
    found = total(rows)
    assert found.mape == pytest.approx(0.55 / 3) and found.median == pytest.approx(0.05)
    assert (found.within_10_percent, found.lowest_ratio, found.highest_ratio) == (2, 0.5, 1.05)
    assert found.spearman == pytest.approx(0.5)
    assert total(rows[:2]).spearman is None
    backwards = [judged(published_s=p, predicted_s=q) for p, q in ((1.0, 3.0), (2.0, 2.0), (3.0, 1.0))]
    assert total(backwards).spearman == pytest.approx(-1.0)


def test_uncertainty_is_what_nine_of_ten_rows_stayed_below():
    found = of_kernel("nvidia-h100-pcie", "dram", 1e-3)
    rows = [row.error for row in validate("nvidia-h100-pcie").rows if row.kind == "kernel"]
    assert found.rows == len(rows) == 6 and found.share == max(rows)
    assert "on this GPU" in found.why
    long, short = (of_kernel("nvidia-l40s", "dram", seconds) for seconds in (1e-3, 1e-5))
    assert short.share > long.share > 0.05, "short kernels are known less well"
    assert "nothing was fitted to" in long.why
    # rows that a SKU's constants were read off say nothing of how good they are
    assert of_kernel("nvidia-h100-sxm", "dram", 1e-3) == of_kernel("nvidia-a100-80gb-sxm", "dram", 1e-3) == long


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (of_kernel("amd-mi300x", "dram", 1e-3), "GPUs of AMD"),
        (of_kernel("nvidia-h100-sxm", "tensor", 1e-3), "bound by tensor"),
        (of_kernel("nvidia-h100-sxm", "dram", 1e-3, flawed=True), "spill"),
        (of_kernel("nvidia-l4", "dram", 1e-3), "power limit"),
        (of_pass("google-tpu-v5e", "prefill", "bfloat16"), "Google"),
        (of_pass("nvidia-h100-sxm", "train", "bfloat16"), "train"),
    ],
)
def test_none_is_known_where_nothing_comparable_was_published(found, why):
    assert found.share is None and why in found.text and found.text.startswith("none known (")


def test_uncertainty_of_passes():
    assert of_pass("nvidia-a100-80gb-sxm", "decode", "float16").share < 0.1
    assert (
        of_pass("nvidia-t4", "prefill", "float32").share > of_pass("nvidia-a100-40gb-pcie", "prefill", "float32").share
    )


def test_no_constant_is_tuned_to_a_row():
    # a prediction follows from the SKU's figures and the row's facts: other published times, same prediction
    row = TimedSize(n=1, us=1.0, bytes=1e9)
    other = msgspec.structs.replace(row, us=2.0, outlier="why")
    assert validation.limits_s(kernel(), row) == validation.limits_s(kernel(), other)
    # and what a held-out GPU's own rows would give is not in its datasheet
    assert not any(
        reached.event_overhead_s(datasheet.datasheet(f"nvidia-{sku}")).published for sku in ("b200", "h100-pcie")
    )


def test_the_command_prints_rows_totals_and_reasons():
    shown = run()
    for words in ("kernels, held-out GPUs", "rank correlation", "NVIDIA B200", "hgrn_fused", "off by"):
        assert words in shown
    told = json.loads(run("--json"))
    assert len(told["rows"]) == len(validate().rows) and told["totals"]["kernels"]["rows"] > 100
    one = json.loads(run("--json", "--gpu", "nvidia-rtx-3090"))
    assert {row["sku"] for row in one["rows"]} == {"nvidia-rtx-3090"} and len(one["rows"]) == 13


def test_a_gpu_without_rows_is_one_sentence():
    with pytest.raises(errors.ArgumentError, match="nothing is published for amd-mi300x; there are"):
        validate("amd-mi300x")
    assert "near ones are" in run("--gpu", "nvidia-h100", code=2)


def test_a_forecast_for_a_sku_says_its_uncertainty():
    words = ["roofline", "forward", "--model", "griffin-1b3", "--phase", "decode", "--device"]
    shown = CliRunner().invoke(app, [*words, "nvidia-h100-sxm"]).output
    assert f"uncertainty of predictions: {of_pass('nvidia-h100-sxm', 'decode', 'bfloat16').text}" in shown
    told = json.loads(CliRunner().invoke(app, [*words, "amd-mi300x", "--json"]).output)["uncertainty"]
    assert told["share"] is None and "AMD" in told["why"]
    quantised = CliRunner().invoke(app, [*words, "nvidia-h100-sxm", "--weights", "int8"]).output
    assert "none known (no published passes with quantised weights)" in quantised


@pytest.mark.process
def test_validation_needs_neither_torch_nor_pandas():
    code = (
        "import sys; from roofline.validation import validate; import roofline.validation_cli; validate()\n"
        "print([m for m in ('torch', 'triton', 'numba', 'numpy', 'pandas', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
