"""Runs forward passes of real models and times them whole and part by part, to hold predictions against."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from griffin_kernels import errors
from griffin_kernels.device import Device
from griffin_kernels.models import Griffin
from roofline.forward import Forward
from roofline.measure import Value, watched
from roofline.stats import bootstrap_interval
from roofline.study_records import Measured, PassRecord
from roofline.work import new_tokens

LEAST_CALM = 3
"""Passes timed at the least, of each kind; so many undisturbed ones are enough to leave the others out."""

LONGEST = 2.0
"""Time at most, in units of what was asked for, while too few passes were undisturbed."""

SHORT_S = 0.2
"""A pass that takes longer is not run for the sake of warming up again."""


def build(result: Forward, device: Device, embedding: torch.nn.Parameter | None = None) -> Griffin:
    """The model of an analysis with random weights on a device; DeviceError where it does not fit.

    embedding: another model's table [vocab, width], to share where it is alike: most of a small model is its table.
    """
    record = result.record
    if record.fits is False:
        raise errors.DeviceError(
            f"{record.model} at batch {record.batch} and {record.seq} tokens in {record.dtype} "
            f"{record.memory.sentence()}; the largest batch that does is {record.largest_batch}"
        )
    dtype = getattr(torch, record.dtype)
    model = Griffin(result.config, device="meta", dtype=dtype)
    table = model.embedding.weight
    if embedding is not None and (embedding.shape, embedding.dtype) == (table.shape, table.dtype):
        model.embedding.weight = embedding
    for part in model.children():
        if any(tensor.is_meta for tensor in part.parameters()):
            part.to_empty(device=device.torch_device)
    model.reset_parameters()
    return model.eval().requires_grad_(False)


def measure(model: Griffin, record: PassRecord, device: Device, seconds: float = 4.0) -> Measured:
    """Time the pass that ``record`` predicts, for about ``seconds``; longer while too few passes were undisturbed."""
    return sampled(PassTimer(model, record, device), seconds)


def sampled(timer: PassTimer, seconds: float) -> Measured:
    """What a timer comes to in about ``seconds``; longer while too few passes were undisturbed."""
    begin = time.perf_counter()
    while True:
        timer.sample()
        spent, calm = time.perf_counter() - begin, sum(calm for _, calm in timer.whole)
        # a busy machine gets more time to be calm for a moment
        if len(timer.whole) >= LEAST_CALM and spent >= seconds and (calm >= LEAST_CALM or spent >= LONGEST * seconds):
            return timer.measured()


class PassTimer:
    """One pass of a model, ready to be timed again and again: whole, and with timers between its parts, in turn. On a
    CPU, where reading the clock is nothing beside a part, one pass gives both.

    Decode starts from a cache that holds ``record.seq`` tokens of random content, and adds none: each pass decodes the
    same position. Passes in which a thread of ours waited for a core are left out where LEAST_CALM others are; if not,
    the record says so.
    """

    def __init__(self, model: Griffin, record: PassRecord, device: Device) -> None:
        self.model, self.record, self.device = model, record, device
        self.whole: list[tuple[float, bool]] = []
        self.by_part: list[tuple[list[float], bool]] = []
        with self.mode():
            self.step = self.prepare()
            self.latest_s = timed(self.step, device)  # warms up

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """What passes run under."""
        return torch.inference_mode()

    def prepare(self) -> Callable[[], Any]:
        """A function that runs the pass once."""
        return _step(self.model, self.record, self.device)

    def timed_parts(self) -> list[float]:
        """Seconds of each part of one pass."""
        return _timed_parts(self.model, self.step, self.device)

    def sample(self) -> None:
        """Time the pass, whole and by its parts; a short one after one that is not timed, as other passes may have run
        since the last sample, and decoding goes on and on."""
        with self.mode():
            if self.latest_s < SHORT_S:
                self.step()
            parts, calm = watched(self.timed_parts, self.device)
            self.by_part.append((parts, calm))
            if self.device.kind == "cpu":
                self.whole.append((sum(parts), calm))
            else:
                self.whole.append(watched(lambda: timed(self.step, self.device), self.device))
        self.latest_s = self.whole[-1][0]

    def measured(self) -> Measured:
        """What the samples so far come to."""
        samples, disturbed = undisturbed(self.whole)
        low, high = bootstrap_interval(samples)
        parts = [median(column) for column in zip(*undisturbed(self.by_part)[0], strict=True)]
        if len(parts) != len(self.record.parts):
            raise RuntimeError(f"timed {len(parts)} parts of a pass that has {len(self.record.parts)}")
        return Measured(
            samples_s=samples, median_s=median(samples), interval_s=(low, high), parts_s=parts, disturbed=disturbed
        )


def undisturbed(samples: Sequence[tuple[Value, bool]]) -> tuple[list[Value], bool]:
    """The calm samples, or all of them and True where fewer than three are."""
    calm = [value for value, calm in samples if calm]
    return (calm, False) if len(calm) >= LEAST_CALM else ([value for value, _ in samples], True)


def _step(model: Griffin, record: PassRecord, device: Device) -> Callable[[], Any]:
    """A function that runs the pass once."""
    phase, batch, seq = record.size
    sizes = (batch, new_tokens(phase, seq))
    tokens = torch.randint(model.config.vocab_size, sizes, device=device.torch_device, dtype=torch.int64)
    if phase == "prefill":
        return lambda: model(tokens, last_only=True)
    cache = model.init_cache(batch, tokens=seq + 1)
    for layer in cache.layers:
        for tensor in vars(layer).values():
            if isinstance(tensor, torch.Tensor):
                tensor.normal_()

    def decode() -> Any:
        cache.tokens = cache.bound = seq
        cache.positions.fill_(seq)
        return model(tokens, cache=cache, last_only=True)

    return decode


def synchronise(device: Device) -> None:
    """Wait for what a GPU was given to do."""
    if device.kind != "cpu":
        torch.cuda.synchronize(device.torch_device)


def timed(step: Callable[[], Any], device: Device) -> float:
    """Seconds that one call takes, until the device has done all of it."""
    synchronise(device)  # what was launched before is not this pass
    begin = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - begin


def _timed_parts(model: Griffin, step: Callable[[], Any], device: Device) -> list[float]:
    """Seconds of each part: a block's mixing begins at its first norm, its MLP at its second, the head at the last."""
    marks = Stopwatch(device)
    with contextlib.ExitStack() as hooks:
        for norm in norms(model):
            hooks.callback(norm.register_forward_pre_hook(marks).remove)
        marks()
        step()
        synchronise(device)
        marks()
    return marks.seconds()


def norms(model: Griffin) -> list[torch.nn.Module]:
    """The norms that parts begin with, in the order of a forward pass: two of each block, and the last."""
    blocks: Any = model.blocks
    return [norm for block in blocks for norm in (block.temporal_norm, block.channel_norm)] + [model.final_norm]


class Stopwatch:
    """Moments between parts, each taken by a call with any arguments: host times on a CPU, events on a GPU."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.taken: list[Any] = []

    def __call__(self, *_: Any) -> None:
        if self.device.kind == "cpu":
            self.taken.append(time.perf_counter())
        else:
            make: Any = torch.cuda.Event
            self.taken.append(make(enable_timing=True))
            self.taken[-1].record()

    def seconds(self) -> list[float]:
        """Between one moment and the next."""
        synchronise(self.device)
        pairs = itertools.pairwise(self.taken)
        if self.device.kind == "cpu":
            return [after - before for before, after in pairs]
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]
