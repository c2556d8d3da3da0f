"""Training steps on devices: how times, utilisation and memory follow, what users read, and a step that is run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from griffin_kernels import datasheet, errors, training
from griffin_kernels import device as devices
from griffin_kernels.models import Griffin, preset
from roofline.forward import analyse, sweep
from roofline.study_records import REGIMES
from roofline.target import of_sku
from roofline.training_records import TrainingFacts
from roofline.training_timing import TrainingStep, build, measure, recompute_blocks
from roofline.training_work import RECOMPUTE, TrainingPlan, train_parts
from tests.roofline.test_forward import target
from tests.roofline.test_roofline_cli import h100, measured_here, run

__all__ = ["measured_here"]  # a fixture

H100 = of_sku("nvidia-h100-sxm")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def step(where=H100, model="griffin-1b3", batch=2, seq=2048, dtype="bfloat16", **plan):
    return analyse(model, where, phase="train", batch=batch, seq=seq, dtype=dtype, training=TrainingPlan(**plan))


@pytest.mark.unit
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_times_add_up_by_part_stage_and_regime(recompute):
    found = step(recompute=recompute)
    record, facts = found.record, found.record.training
    assert isinstance(facts, TrainingFacts)
    assert sum(part.predicted_s for part in record.parts) == pytest.approx(record.predicted_s)
    assert sum(facts.predicted_by_stage_s.values()) == pytest.approx(record.predicted_s)
    assert sum(record.predicted_by_regime_s.values()) == pytest.approx(record.predicted_s)
    assert set(record.predicted_by_regime_s) == set(REGIMES)
    assert ("recomputation" in facts.predicted_by_stage_s) == (recompute != "none")
    assert len(record.parts) == len(found.kernels) == 4 * preset("griffin-1b3").num_layers + 5
    stages = [(part.stage, part.kind) for part in record.kinds]
    assert len(stages) == len(set(stages)) == 2 * 5 + 1
    assert sum(part.parameters for part in record.parts) == record.parameters
    assert record.tokens_per_s == pytest.approx(2 * 2048 / record.predicted_s)


@pytest.mark.unit
def test_recomputation_costs_time_and_hfu_tells():
    found = {how: step(recompute=how).record for how in ("none", "selective", "blocks")}
    seconds = [record.predicted_s for record in found.values()]
    needed = [record.needed_bytes for record in found.values()]
    assert seconds == sorted(seconds) and needed == sorted(needed, reverse=True)
    facts = {how: record.training for how, record in found.items()}
    assert len({fact.model_flops for fact in facts.values()}) == 1
    for fact in facts.values():
        assert 0 < fact.mfu(1.0) < fact.hfu(1.0) == fact.hardware_flops / fact.peak_flops_per_s
    # all of each block but its last product once more, beside three times that and four of the logits
    whole, again = facts["none"], facts["blocks"]
    assert 1.1 < again.hardware_flops / whole.hardware_flops < 4 / 3


@pytest.mark.unit
def test_the_optimizer_takes_the_share_that_its_traffic_does():
    # 7B on an H100: 28 bytes a parameter and clipping at 3.35 TB/s, beside the products of 4,096 tokens
    found = step(model="griffin-7b", batch=1, seq=4096, recompute="blocks")
    seconds = found.record.training.predicted_by_stage_s["optimizer"]
    count = found.record.parameters
    least = 30 * count / 3.35e12
    assert least < seconds < 2.5 * least
    assert 0.05 < seconds / found.record.predicted_s < 0.3


@pytest.mark.unit
def test_memory_is_what_the_record_says():
    found = step(model="griffin-7b", batch=1)
    record = found.record
    facts = record.training
    assert record.fits is False and record.needed_bytes == record.weight_bytes + record.activation_bytes
    assert record.needed_bytes > record.weight_bytes + facts.optimizer_bytes + sum(facts.kept_bytes.values())
    small = step(model="griffin-1b3", batch=1, recompute="selective").record
    assert small.fits and small.largest_batch >= 1
    assert step(model="griffin-1b3", batch=small.largest_batch, recompute="selective").record.fits
    assert not step(model="griffin-1b3", batch=small.largest_batch + 1, recompute="selective").record.fits
    assert step(target(memory_bytes=0), "griffin-tiny", dtype="float32").record.fits is None


@pytest.mark.unit
@pytest.mark.parametrize("sku", datasheet.skus())
def test_a_step_on_every_device(sku):
    where = of_sku(sku)
    dtype = "bfloat16" if "bfloat16" in where.ceilings.tensor_flops_per_s else "float16"
    for name in ("hawk-1b3", "griffin-1b3", "mqa-1b3", "recurrentgemma-2b"):
        found = step(where, name, 1, 2048, dtype)
        assert 0 < found.record.floor_s <= found.latency_s
        assert 0 < found.record.training.mfu(found.latency_s) < 1


@pytest.mark.unit
def test_longer_sequences_cost_the_transformer_alone():
    # arXiv 2402.19427, figure 3: tokens fixed, the time of a step grows with the length for the MQA Transformer
    def growth(family):
        short, long = (
            step(model=f"{family}-1b3", batch=2**15 // seq, seq=seq, recompute="selective").latency_s
            for seq in (2048, 16384)
        )
        return long / short

    assert growth("hawk") == pytest.approx(1, abs=0.05) and growth("griffin") < 1.15 < growth("mqa")


@pytest.mark.unit
def test_what_other_phases_refuse():
    with pytest.raises(errors.ArgumentError, match="of phase train, not of decode"):
        analyse("griffin-tiny", H100, phase="decode", batch=1, seq=64, dtype="bfloat16", training=TrainingPlan())
    with pytest.raises(errors.DtypeError, match="no known matrix peak in bfloat16"):
        step(of_sku("nvidia-t4"))
    prefill = analyse("griffin-tiny", H100, phase="prefill", batch=1, seq=64, dtype="bfloat16")
    with pytest.raises(errors.ArgumentError, match="the record is of phase prefill, expected train"):
        build(prefill, devices.cpu())


@pytest.mark.unit
def test_a_sweep_of_steps():
    plan = TrainingPlan("blocks")
    points = sweep(
        "griffin-1b3", H100, phase="train", dtype="bfloat16", batches=(1, 4), seqs=(512, 2048), training=plan
    )
    assert points[-1] == step(batch=4, recompute="blocks").record.point


def test_a_step_in_a_table():
    text = " ".join(h100("--phase", "train", "--batch", 2, "--recompute", "selective").output.split())
    for words in (
        "griffin-1b3, train on 2048 tokens", "forward recurrent", "backward mlp", "optimizer", "predicted MFU",
        "the datasheet's dense bfloat16 peak", "stages: forward", "recomputation", "kept for the backward pass",
        "gradients", "most is held in", "every block is computed again, but for what mixes time",
    ):  # fmt: skip
        assert words in text
    record = json.loads(h100("--phase", "train", "--json").stdout)
    assert record["training"]["recompute"] == "none" and record["training"]["optimizer"] == "adamw-master"
    assert any("float32 weights and moments" in sentence for sentence in record["assumptions"])
    swept = h100("--phase", "train", "--sweep", "batch", "--batches", "1,64", "--recompute", "blocks").output
    assert "griffin-1b3, train: predicted latency" in " ".join(swept.split())


def test_a_measured_step_says_its_utilisation(measured_here):
    words = ("forward", "--model", "griffin-tiny", "--phase", "train", "--batch", 2, "--seq", 40)
    text = " ".join(run(*words, "--recompute", "blocks", "--measure", "--seconds", 0).output.split())
    assert "measured MFU" in text and "that was measured on this machine" in text


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_run_part_by_part(dtype, recompute):
    where = target()
    if dtype == "bfloat16":
        where = of_sku("nvidia-h100-sxm")
    found = step(where, "griffin-tiny", 2, 40, dtype, recompute=recompute)
    device = devices.cpu()
    measured = measure(build(found, device), found.record, device, 0.0)
    assert len(measured.parts_s) == len(found.record.parts)
    assert all(seconds > 0 for seconds in measured.parts_s)
    # parts of a step add up to it, and of three samples or more the median is at most half of their sum
    assert len(measured.samples_s) >= 3 and sum(measured.parts_s) <= sum(measured.samples_s) / 2


@pytest.mark.parametrize("masters", [False, True])
def test_a_step_trains(masters):
    torch.manual_seed(0)
    model = Griffin(preset("griffin-tiny"), dtype=torch.bfloat16 if masters else torch.float32)
    running = TrainingStep(model, 2, 40, masters)
    for group in running.optimizer.param_groups:
        group["lr"] = 1e-2
    first = float(running.forward().detach())
    for _ in range(5):
        running()
    assert float(running.forward().detach()) < 0.8 * first
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recomputation_is_the_librarys():
    for recompute in RECOMPUTE:
        model = Griffin(preset("griffin-tiny"))
        recompute_blocks(model, recompute)
        if recompute == "none":
            training.checkpoint_blocks(model)  # nothing was checkpointed yet
        else:
            with pytest.raises(errors.ArgumentError, match="not checkpointed yet"):
                training.checkpoint_blocks(model)


@pytest.mark.process
def test_an_answer_needs_neither_torch_nor_time():
    code = (
        "import sys, time\n"
        "import roofline.forward as f, roofline.target as t, roofline.tables\n"
        "f.analyse('griffin-14b', t.of_sku('nvidia-h100-sxm'), phase='train', batch=1, seq=10**12, dtype='bfloat16')\n"
        "print([m for m in ('torch', 'triton', 'numba', 'numpy', 'pandas', 'plotly') if m in sys.modules])\n"
        "assert time.process_time() < 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.unit
def test_parts_of_a_layer_share_their_kernels():
    # forward and backward of five kinds, the optimizer; an MLP's backward pass computes one of two kinds of block again
    for recompute, kinds in (("none", 2 * 5 + 1), ("selective", 2 * 5 + 2)):
        parts = train_parts(preset("griffin-14b"), 1, 2048, "bfloat16", recompute)
        assert len({part.kernels for part in parts}) == kinds
