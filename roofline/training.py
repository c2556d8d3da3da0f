"""A whole training step on a device: predicted time, memory, MFU and HFU. Needs no PyTorch.

>>> from roofline.forward import analyse
>>> from roofline.target import of_sku
>>> from roofline.training_work import TrainingPlan
>>> plan = TrainingPlan(recompute="selective")
>>> step = analyse("griffin-1b3", of_sku("nvidia-h100-sxm"), phase="train", batch=4, seq=2048, dtype="bfloat16",
...                training=plan)
>>> step.latency_s, step.record.training.mfu(step.latency_s)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

from msgspec import structs

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.forward import Forward, HostWaits, KernelTime, Timer, tuned_words
from roofline.study_records import REGIMES, Part, PassRecord
from roofline.target import AnalysisTarget
from roofline.training_memory import largest_batch, memory_of_training
from roofline.training_records import StepStage, TrainingFacts
from roofline.training_work import (
    OPTIMIZERS,
    RECOMPUTE,
    TrainingPlan,
    TrainPart,
    hardware_flops,
    model_flops,
    train_parts,
)
from roofline.work import Kernel, part_parameters


def analyse_step(
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    batch: int,
    seq: int,
    dtype: str,
    training: TrainingPlan,
    name: str = "custom",
) -> Forward:
    """Analyse one training step; ``forward.analyse`` with phase train, whose arguments and errors these are."""
    config = preset(model) if isinstance(model, str) else model
    gpu = target.asynchronous
    steps = train_parts(config, batch, seq, dtype, training.recompute, training.optimizer, gpu=gpu)
    peaks = {known: rate for known, rate in target.ceilings.tensor_flops_per_s.items() if known in DTYPE_BYTES}
    if dtype not in peaks:
        had = ", ".join(peaks) or "none"
        raise errors.DtypeError(f"{target.name} has no known matrix peak in {dtype}; it has {had}")
    memory = memory_of_training(config, batch, seq, dtype, training.recompute, training.optimizer)
    device = target.memory_bytes
    fits = None if not device else memory.peak <= device

    timer = Timer(target, dtype, memory.weights)
    known: dict[tuple[Kernel, ...], tuple[KernelTime, ...]] = {}
    for step in steps:  # layers of a kind are alike
        if step.kernels not in known:
            known[step.kernels] = tuple(timer.time(kernel, step.kind) for kernel in step.kernels)
    waits = HostWaits.on(target, [time for step in steps for time in known[step.kernels]])
    known = {kernels: tuple(map(waits.waited, found)) for kernels, found in known.items()}
    times = [known[step.kernels] for step in steps]
    parts = [_part(step, timed, config) for step, timed in zip(steps, times, strict=True)]
    predicted = dict.fromkeys(REGIMES, 0.0)
    stages: Counter[StepStage] = Counter()
    for step, timed in zip(steps, times, strict=True):
        for index, time in enumerate(timed):
            stage: StepStage = "recomputation" if index < step.recomputed else step.stage
            stages[stage] += time.predicted_s  # type: ignore[assignment]
            for regime, seconds in time.predicted.items():
                predicted[regime] += seconds
    predicted_s = sum(part.predicted_s for part in parts)
    optimizer = training.optimizer_in(dtype)
    facts = TrainingFacts(
        recompute=training.recompute, optimizer=optimizer, predicted_by_stage_s=dict(stages),
        gradient_bytes=memory.gradients, optimizer_bytes=memory.optimizer,
        kept_bytes={str(kind): kept for kind, kept in memory.kept.items()}, worst=memory.worst,
        model_flops=model_flops(steps), hardware_flops=hardware_flops(steps),
        peak_flops_per_s=peaks[dtype], peak_is=_peak_is(target, dtype),
    )  # fmt: skip
    record = PassRecord(
        model=model if isinstance(model, str) else name, parameters=config.parameters(), parts=parts,
        phase="train", batch=batch, seq=seq, dtype=dtype,
        floor_s=sum(part.floor_s for part in parts), predicted_s=predicted_s, predicted_by_regime_s=predicted,
        graphed_s=waits.graphed_s, tokens_per_s=batch * seq / predicted_s,
        regime=max(predicted, key=lambda name: predicted[name]),
        weight_bytes=memory.weights, cache_bytes=0, activation_bytes=memory.peak - memory.weights,
        needed_bytes=memory.peak, device_bytes=device, fits=fits,
        largest_batch=largest_batch(config, seq, dtype, training, device), training=facts,
        mode=target.mode, eager_s=waits.eager_s, tuned=tuned_words(itertools.chain.from_iterable(times)),
    )  # fmt: skip
    told = (
        f"{OPTIMIZERS[optimizer]}, after gradients are clipped to a norm",
        f"{RECOMPUTE[training.recompute]}; each row is one document",
    )
    return Forward(record, config, dataclasses.replace(target, assumptions=(*target.assumptions, *told)), tuple(times))


def _part(step: TrainPart, times: tuple[KernelTime, ...], config: GriffinConfig) -> Part:
    whole = Part.of([time.part(step.kind) for time in times])
    parameters = part_parameters(config)[step.kind] if step.stage == "forward" else 0  # counted once in a step
    return structs.replace(whole, layer=step.layer, count=1, parameters=parameters, stage=step.stage)


def _peak_is(target: AnalysisTarget, dtype: str) -> str:
    """The denominator of MFU and HFU in words."""
    if target.measured:
        return f"the fastest large {dtype} product that was measured on this machine"
    return f"the datasheet's dense {dtype} peak"
