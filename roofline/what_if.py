"""Questions that more than one pass answers: the largest batch within limits, one model on several devices.

Needs no PyTorch. A device stands for one accelerator; several of them together are not modelled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace as replaced

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import PRESETS
from griffin_kernels.texts import shortened
from roofline.forward import Forward, analyse
from roofline.request_time import RequestTime, ends, heaviest, request_time, served_s
from roofline.study_records import Memory
from roofline.target import AnalysisTarget
from roofline.training_work import TrainingPlan
from roofline.units import gib, seconds_text
from roofline.work import LARGEST, Phase

Limit = Literal["memory", "latency", "size"]
"""What bounds a batch: what fits, the time that a pass may take, or the largest batch that is analysed at all."""

AUTO = "auto"
"""The batch that stands for the largest one within the limits."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model on each device.

    model, name: its configuration, and what it is called. phase, seq: the pass that is priced, and that ``latency_s``
    bounds. batch: None for the largest one within the limits. weights: see ``analyse``.
    request: tokens of prompt and answer; then the whole request is priced, and the last token's step is bounded.
    training: of phase ``train``; see ``analyse``.
    """

    model: GriffinConfig
    name: str
    phase: Phase = "decode"
    seq: int = 2048
    batch: int | None = 1
    weights: str = ""
    latency_s: float | None = None
    request: tuple[int, int] | None = None
    training: TrainingPlan | None = None

    def __post_init__(self) -> None:
        if self.latency_s is not None and self.batch is not None:
            raise errors.ArgumentError(f"latency_s bounds the batch, which is given as {self.batch}; leave one out")

    def forward(self, target: AnalysisTarget, dtype: str, batch: int, phase: Phase) -> Forward:
        """One pass at a batch."""
        sizes: dict[str, Any] = {"phase": phase, "batch": batch, "seq": self.seq, "dtype": dtype}
        sizes["training"] = self.training if phase == "train" else None
        return analyse(self.model, target, **sizes, name=self.name, weights=self.weights)

    def requests(self, target: AnalysisTarget, dtype: str, batch: int) -> RequestTime:
        """The whole request at a batch; only where ``request`` is given."""
        assert self.request is not None
        prompt, new = self.request
        sizes: dict[str, Any] = {"prompt": prompt, "new": new, "batch": batch, "dtype": dtype}
        return request_time(self.model, target, **sizes, weights=self.weights)

    def bounded(self, target: AnalysisTarget, dtype: str, batch: int) -> tuple[Memory, float]:
        """Memory at a batch, and the seconds that ``latency_s`` bounds."""
        if self.request is not None:
            ask = functools.partial(
                analyse, self.model, target, batch=batch, dtype=dtype, name=self.name, weights=self.weights
            )
            first, last = ends(ask, *self.request)
            return heaviest(first, last), served_s(last or first)
        one = self.forward(target, dtype, batch, self.phase)
        return one.memory, served_s(one)


@dataclass(frozen=True)
class LargestBatch:
    """batch: the largest that keeps within the limits, 0 if none does. bound: what one sequence more would break.

    seconds: of the bounded time at that batch, at batch 1 where it is 0. needed: bytes, alike.
    """

    batch: int
    bound: Limit
    seconds: float
    needed: int

    def sentence(self, device_bytes: int, latency_s: float | None) -> str:
        """Which batch, and which limit bounds it, in words."""
        took = seconds_text(self.seconds)
        limits = {
            "memory": f"the memory of {gib(device_bytes)}, of which it needs {gib(self.needed)}",
            "latency": f"the latency of {seconds_text(latency_s or 0.0)}, of which it takes {took}",
            "size": "nothing but the largest batch that is analysed",
        }
        if not self.batch:
            return f"not even one sequence keeps within {limits[self.bound]}"
        return f"the largest batch is {self.batch}, bound by {limits[self.bound]}"


def largest_batch(question: Question, target: AnalysisTarget, dtype: str) -> LargestBatch:
    """The largest batch that fits the target's memory and keeps within ``question.latency_s``.

    Memory and times are taken to grow with the batch. Raises as ``analyse``, and ArgumentError where neither limit is
    known.
    """
    if not target.memory_bytes and question.latency_s is None:
        raise errors.ArgumentError(f"the memory of {target.name} is not known, so nothing bounds the batch")

    def broken(batch: int) -> Limit | None:
        memory, seconds = question.bounded(target, dtype, batch)
        if memory.fits is False:
            return "memory"
        return "latency" if question.latency_s is not None and seconds > question.latency_s else None

    below, bound = _last(lambda batch: broken(batch) is None)
    memory, seconds = question.bounded(target, dtype, max(below, 1))
    limit = "size" if bound is None else broken(bound)
    assert limit is not None
    return LargestBatch(below, limit, seconds, memory.needed)


def _last(holds: Callable[[int], bool]) -> tuple[int, int | None]:
    """(the last number up to LARGEST that it holds for, 0 if not even 1; the next one, None if there is none)."""
    below, above = 0, 1
    while holds(above):
        if above == LARGEST:
            return above, None
        below, above = above, min(2 * above, LARGEST)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below, above


class DeviceAnswer(Struct, frozen=True, kw_only=True):
    """What a model does on a device, as one row.

    why: what is the matter where it does not run there; then times are None. batch: as given, or the largest within
    the limits, of which ``bound`` is the one that bounds it. needed_bytes, fits: of all that is asked.
    seconds, tokens_per_s: of the pass that is asked for; of requests, the whole and the tokens written.
    first_token_s: of a pass over one prompt of ``seq`` tokens alone, None where that does not fit and of training; of
    requests, over all prompts of the batch.
    Of requests besides: token_s, one token after the first, on average; prefill_per_s and decode_per_s, tokens per
    second before and after the first token; all_per_s, tokens read and written per second of the whole.
    cost_per_million: of the tokens that tokens_per_s counts, in the money of the price.
    """

    model: str
    device: str
    dtype: str
    batch: int | None = None
    bound: Limit | None = None
    needed_bytes: int | None = None
    device_bytes: int | None = None
    fits: bool | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    prefill_per_s: float | None = None
    decode_per_s: float | None = None
    all_per_s: float | None = None
    cost_per_million: float | None = None
    why: str = ""


def answer(question: Question, target: AnalysisTarget, dtype: str, price: float | None = None) -> DeviceAnswer:
    """One device's row. price: of an hour of it. What a device cannot do is said in ``why`` and is no error."""
    row = DeviceAnswer(model=question.name, device=target.name, dtype=dtype, device_bytes=target.memory_bytes or None)
    batch = question.batch
    try:
        if batch is None:
            found = largest_batch(question, target, dtype)
            batch = found.batch
            row = replaced(row, batch=batch, bound=found.bound, needed_bytes=found.needed)
            if not batch:
                why = found.sentence(target.memory_bytes, question.latency_s)
                return replaced(row, fits=found.bound != "memory", why=why)
        memory, times = _times(question, target, dtype, batch)
    except errors.DtypeError as error:
        return replaced(row, why=str(error))
    row = replaced(row, batch=batch, needed_bytes=memory.needed, fits=memory.fits)
    if memory.fits is False:
        return replaced(row, why=memory.sentence())
    if price is not None:
        times["cost_per_million"] = price / 3600 / times["tokens_per_s"] * 1e6
    return replaced(row, **times)


def _times(question: Question, target: AnalysisTarget, dtype: str, batch: int) -> tuple[Memory, dict[str, Any]]:
    """Memory, and the fields of a row that need a device where it fits."""
    if question.request is not None:
        asked = question.requests(target, dtype, batch)
        return asked.memory, {
            "seconds": asked.whole_s, "tokens_per_s": asked.output_per_s, "first_token_s": asked.first_s,
            "token_s": asked.each_s, "prefill_per_s": asked.prefill_per_s, "decode_per_s": asked.decode_per_s,
            "all_per_s": asked.tokens_per_s,
        }  # fmt: skip
    found = question.forward(target, dtype, batch, question.phase)
    seconds = served_s(found)
    times: dict[str, Any] = {"seconds": seconds, "tokens_per_s": found.record.tokens / seconds}
    if question.phase != "train":
        alone = question.forward(target, dtype, 1, "prefill")
        times["first_token_s"] = None if alone.memory.fits is False else served_s(alone)
    return found.memory, times


class Comparison(Struct, frozen=True, kw_only=True):
    """A model on a device, and another one beside it. Ratios: the model's over the other's."""

    answer: DeviceAnswer
    versus: DeviceAnswer

    def ratio(self, name: str) -> float | None:
        """Of a field of both; None where one is not known."""
        mine, other = getattr(self.answer, name), getattr(self.versus, name)
        return mine / other if mine is not None and other else None


def transformer_of(name: str) -> str:
    """The preset of the MQA Transformer of a preset's size; ArgumentError for a model of another size."""
    found = f"mqa-{name.partition('-')[2]}"
    if name not in PRESETS or found not in PRESETS:
        sizes = ", ".join(preset for preset in PRESETS if preset.startswith("mqa-"))
        raise errors.ArgumentError(f"no Transformer preset has the size of {shortened(name)}; name one of {sizes}")
    return found


def compare(
    question: Question,
    targets: Sequence[tuple[AnalysisTarget, str]],
    prices: Sequence[float | None],
    other: tuple[str, GriffinConfig],
) -> list[Comparison]:
    """Two models on each (device, dtype), in order. prices: as many. other: name and configuration beside the model."""
    name, config = other
    beside = replace(question, model=config, name=name)
    return [
        Comparison(answer=answer(question, target, dtype, price), versus=answer(beside, target, dtype, price))
        for (target, dtype), price in zip(targets, prices, strict=True)
    ]
