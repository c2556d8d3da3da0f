"""Runs training steps of real models, whole and part by part, and counts what they hold in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors, training
from griffin_kernels.device import Device
from griffin_kernels.models import Griffin
from roofline import pass_timing
from roofline.forward import Forward
from roofline.pass_timing import PassTimer, Stopwatch, norms, sampled, synchronise
from roofline.study_records import Measured, PassRecord
from roofline.training_records import TrainingFacts
from roofline.training_work import Recompute

WEIGHT_DECAY, LEARNING_RATE, LARGEST_NORM = 0.1, 1e-5, 1.0
"""Of the steps that are timed: any would do, as long as the weights stay finite."""


def build(result: Forward, device: Device) -> Griffin:
    """The model of an analysis of a training step on a device, ready to be trained; DeviceError if it does not fit."""
    recompute = _facts(result.record).recompute
    model = pass_timing.build(result, device).train().requires_grad_(True)
    recompute_blocks(model, recompute)
    return model


def _facts(record: PassRecord) -> TrainingFacts:
    """Of a record of a training step; ArgumentError for any other."""
    if not isinstance(record.training, TrainingFacts):
        raise errors.ArgumentError(f"the record is of phase {record.phase}, expected train")
    return record.training


def recompute_blocks(model: Griffin, recompute: Recompute) -> None:
    """Checkpoint a model's blocks, in place, as a key of ``training_work.RECOMPUTE`` says."""
    if recompute != "none":
        training.checkpoint_blocks(model, () if recompute == "blocks" else None)


def measure(model: Griffin, record: PassRecord, device: Device, seconds: float = 4.0) -> Measured:
    """Time the step that ``record`` predicts, for about ``seconds``; longer while too few were undisturbed."""
    return sampled(StepTimer(model, record, device), seconds)


class StepTimer(PassTimer):
    """One training step of a model on random tokens, ready to be timed again and again. It changes the weights."""

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        return torch.enable_grad()

    def prepare(self) -> Callable[[], Any]:
        masters = _facts(self.record).optimizer == "adamw-master"
        self.step_of = TrainingStep(self.model, self.record.batch, self.record.seq, masters)
        return self.step_of

    def timed_parts(self) -> list[float]:
        return self.step_of.timed_parts(self.device)


class TrainingStep:
    """Forward, backward, clipping and AdamW, as ``training_work.train_parts`` counts them. A call runs one step.

    masters: float32 copies of the weights are what AdamW changes.
    """

    def __init__(self, model: Griffin, batch: int, seq: int, masters: bool) -> None:
        self.model, self.masters = model, masters
        where = model.embedding.weight.device
        sizes = (batch, seq)
        self.tokens, self.targets = (
            torch.randint(model.config.vocab_size, sizes, device=where, dtype=torch.int64) for _ in range(2)
        )
        groups = training.parameter_groups(model, weight_decay=WEIGHT_DECAY)
        self.weights: list[Tensor] = [weight for group in groups for weight in group["params"]]
        if masters:
            for group in groups:
                group["params"] = [weight.detach().float() for weight in group["params"]]
        self.updated: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)

    def __call__(self) -> None:
        self.forward().backward()  # type: ignore[no-untyped-call]
        self.update()

    def forward(self) -> Tensor:
        """The loss."""
        return self.model.loss(self.tokens, self.targets)

    def update(self) -> None:
        """Clip, change the weights, and free the gradients."""
        torch.nn.utils.clip_grad_norm_(self.weights, LARGEST_NORM)
        if self.masters:
            for master, weight in zip(self.updated, self.weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        self.optimizer.step()
        if self.masters:
            with torch.no_grad():
                for master, weight in zip(self.updated, self.weights, strict=True):
                    weight.copy_(master)
        for tensor in (*self.updated, *self.weights):
            tensor.grad = None

    def timed_parts(self, device: Device) -> list[float]:
        """Seconds of each part of a step: forward as of a pass, then from the loss back to the embedding, then AdamW.

        A part's backward pass ends when the gradient of what its norm was given is there.
        """
        marks, going_back = Stopwatch(device), False

        def enter(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not going_back:  # what is computed again passes here too
                marks()
                inputs[0].register_hook(marks)  # type: ignore[no-untyped-call]

        with contextlib.ExitStack() as hooks:
            for norm in norms(self.model):
                hooks.callback(norm.register_forward_pre_hook(enter).remove)
            synchronise(device)
            marks()
            loss = self.forward()
            marks()
            going_back = True
            loss.backward()  # type: ignore[no-untyped-call]
            marks()
            self.update()
            synchronise(device)
            marks()
        return marks.seconds()
