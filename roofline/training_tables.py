"""What tables and texts say of a training step beside what they say of any pass. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from roofline.study_records import PassRecord
from roofline.training_records import TrainingFacts
from roofline.units import gib, seconds_text, si


def utilisation(facts: TrainingFacts, seconds: float) -> str:
    """MFU and HFU of a step that takes ``seconds``."""
    return f"MFU {facts.mfu(seconds):.1%}, HFU {facts.hfu(seconds):.1%}"


def lines(record: PassRecord, facts: TrainingFacts) -> Iterator[str]:
    """Utilisation with its denominator, stages, and what memory is needed for."""
    taken = "" if record.measured is None else f"; measured {utilisation(facts, record.seconds)}"
    yield f"predicted {utilisation(facts, record.predicted_s)}{taken}"
    yield (
        f"of {si(facts.peak_flops_per_s, 'FLOP/s')}, {facts.peak_is}; MFU counts {si(facts.model_flops)}FLOPs, three "
        f"forward passes, HFU {si(facts.hardware_flops)}FLOPs, what is computed again included"
    )
    stages = (f"{name} {seconds_text(seconds)}" for name, seconds in facts.predicted_by_stage_s.items())
    yield f"stages: {', '.join(stages)}"
    kept = (f"{name.replace('_', ' ')} {gib(size)}" for name, size in facts.kept_bytes.items() if size)
    yield f"kept for the backward pass: {gib(sum(facts.kept_bytes.values()))} ({', '.join(kept)})"


def held(record: PassRecord, facts: TrainingFacts) -> str:
    """What is in memory."""
    return (
        f"weights {gib(record.weight_bytes)}, gradients {gib(facts.gradient_bytes)}, "
        f"optimizer {gib(facts.optimizer_bytes)}, kept {gib(sum(facts.kept_bytes.values()))}; "
        f"most is held {facts.worst}"
    )
