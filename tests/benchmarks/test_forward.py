"""Whole models: predicted against measured, on the CPU; and how long an answer about another device takes.

Ceilings are measured and the ops of these models tuned first, as ``griffin tune`` does; it takes some four minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest
from rich.console import Console

from griffin_kernels import datasheet, dispatch
from griffin_kernels import device as devices
from griffin_kernels.models import PRESETS
from roofline import study
from roofline.study_records import PassRecord
from tuning.plan.planner import Options
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.ui.progress import Display

OPS = ("rg_lru", "temporal_conv1d", "local_attention", "local_attention_step")
CASES = ("D1024", "W1024", "B1-T2048-D2560-K4-float32")


@pytest.fixture(scope="module")
def passes(tmp_path_factory) -> list[PassRecord]:
    device = devices.cpu()
    paths = Paths.choose(tmp_path_factory.mktemp("tune"), device)
    options = Options(ops=OPS, cases=CASES, dtypes=("float32",), device="cpu")
    with Display(Console(quiet=True)) as display:
        tune(options, paths, display, "benchmark", False)
    with dispatch.use(registry=paths.registry):
        return study.study(device, [], tell=lambda what: None).pages[0].passes


def test_predicted_against_measured(passes):
    print()
    for row in passes:
        busy = " (other processes took the cores)" if row.measured.disturbed else ""
        print(
            f"{row.model:14} {row.phase:8} B{row.batch:<3} T{row.seq:<5} predicted {row.predicted_s * 1e3:8.1f} ms, "
            f"measured {row.measured.median_s * 1e3:8.1f} ms, {row.error:+.0%}{busy}"
        )
    assert {(row.model, row.phase, row.batch, row.seq) for row in passes} == {
        (model, *what) for model in study.CPU_PLAN.models for what in study.CPU_PLAN.runs
    }
    assert max(abs(row.error) for row in passes) < 0.30


def test_an_answer_about_any_device_takes_less_than_two_seconds():
    took = {}
    words = "-m reports roofline forward --phase decode --batch 1 --seq 2048".split()
    for sku in datasheet.skus():
        for model in ("griffin-14b", "hawk-100m") if sku != "nvidia-h100-sxm" else PRESETS:
            begin = time.perf_counter()
            dtype = "fp16" if "t4" in sku or "v100" in sku else "bf16"
            command = [sys.executable, *words, "--model", model, "--device", sku, "--dtype", dtype]
            subprocess.run(command, check=True, capture_output=True)
            took[sku, model] = time.perf_counter() - begin
    median, worst = statistics.median(took.values()), max(took, key=lambda what: took[what])
    print(f"\n{len(took)} answers: median {median:.2f} s, longest {took[worst]:.2f} s ({' '.join(worst)})")
    assert took[worst] < 2.0
