"""Training steps of whole models: predicted against measured time and memory, on the CPU.

Ceilings are measured and the operations of these models tuned first, as ``griffin tune`` does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from griffin_kernels import device as devices
from griffin_kernels import dispatch
from griffin_kernels.models import preset
from roofline import training_timing
from roofline.ceilings import Ceilings
from roofline.forward import Forward, analyse
from roofline.measure import Sampler
from roofline.target import at_hand
from roofline.training_memory import memory_of_training
from roofline.training_work import TrainingPlan
from tuning.plan.planner import Options
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.ui.progress import Display

MODELS = ("hawk-100m", "griffin-100m", "mqa-100m")
SEQS = (128, 256, 512)
OPS = ("recurrent_block", "recurrent_block_bwd", "local_attention", "local_attention_bwd")
CASES = ("D1024", "T1024-Hq6", "D2560-K4-H10", "Hq10-Hkv1-d256-W512")
ROUNDS = 3

PEAK = """
import json, re, sys, torch
from griffin_kernels.models import Griffin, preset
from roofline.training_timing import TrainingStep, recompute_blocks

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

name, seq, recompute = sys.argv[1], int(sys.argv[2]), sys.argv[3]
TrainingStep(Griffin(preset("griffin-tiny")), 1, 32, False)()  # loads what it needs
before = resident("VmRSS")
model = Griffin(preset(name))
recompute_blocks(model, recompute)
step = TrainingStep(model, 1, seq, False)
whole, step.tokens, step.targets = (step.tokens, step.targets), step.tokens[:, :8], step.targets[:, :8]
step()  # makes the optimizer's moments
step.tokens, step.targets = whole
step()
print(json.dumps(resident("VmHWM") - before))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Iterator[None]:
    paths = Paths.choose(tmp_path_factory.mktemp("tune"), devices.cpu())
    options = Options(ops=OPS, cases=CASES, dtypes=("float32",), device="cpu")
    with Display(Console(quiet=True)) as display:
        tune(options, paths, display, "benchmark", False)
    with dispatch.use(registry=paths.registry):
        yield


def test_predicted_against_measured_time(registry):
    device, errors = devices.cpu(), {}
    sampler = Sampler(device)
    sampler.sample(20.0)

    def predicted(name: str, seq: int) -> Forward:
        here = at_hand(device, Ceilings(device.name, tuple(sampler.ceilings()), device.last_level_cache_bytes))
        plan = TrainingPlan()
        return analyse(name, here, phase="train", batch=1, seq=seq, dtype="float32", training=plan)

    print()
    for name in MODELS:  # one after the other: a model with its optimizer is 4.5 GB
        model = training_timing.build(predicted(name, SEQS[0]), device)
        timers = [training_timing.StepTimer(model, predicted(name, seq).record, device) for seq in SEQS]
        for _ in range(ROUNDS):
            for timer in timers:
                timer.sample()
            sampler.sample(3.0)
        for seq, timer in zip(SEQS, timers, strict=True):
            taken, told = timer.measured().median_s, predicted(name, seq).latency_s
            errors[name, seq] = told / taken - 1
            print(f"{name:14} T{seq:<5} predicted {told:6.2f} s, measured {taken:6.2f} s, {told / taken - 1:+.0%}")
        del model, timers
    assert max(map(abs, errors.values())) < 0.25


@pytest.mark.parametrize("recompute", ["none", "blocks"])
@pytest.mark.parametrize("name", MODELS)
def test_predicted_against_measured_memory(name, recompute):
    for seq in SEQS:
        command = [sys.executable, "-c", PEAK, name, str(seq), recompute]
        peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        told = memory_of_training(preset(name), 1, seq, "float32", recompute).peak
        print(f"\n{name} T{seq} {recompute}: predicted {told / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB", end="")
        assert told == pytest.approx(peak, rel=0.25)
