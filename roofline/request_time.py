"""Whole requests: a prompt read, then tokens written one by one while caches grow. Needs no PyTorch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.texts import shortened
from roofline.forward import Forward, analyse
from roofline.study_records import Memory
from roofline.target import AnalysisTarget
from roofline.units import count
from roofline.work import LARGEST

LINEAR = 1e-6
"""Steps count as lying on a straight line where three between the ends are within this share of it."""


def parse_request(text: str, name: str) -> tuple[int, int]:
    """``2048+256`` or ``2k+256`` -> (tokens of the prompt, tokens to write); ArgumentError naming the argument."""
    if not (found := re.fullmatch(r"([^+]+)\+([^+]+)", text)):
        raise errors.ArgumentError(
            f"{name} is {shortened(text)}, expected tokens of prompt and answer such as 2048+256"
        )
    prompt, new = (count(part, name, LARGEST // 2) for part in found.groups())
    return prompt, new


def served_s(found: Forward) -> float:
    """Seconds of a pass as it is served: from a captured CUDA graph on a GPU, operator by operator on a CPU."""
    return found.record.graphed_s if found.target.asynchronous else found.record.predicted_s


@dataclass(frozen=True)
class RequestTime:
    """``batch`` requests of one size at once.

    prompt, new: tokens read and written for each. first_s: seconds to the first token, which the pass over the prompt
    gives. steps_s: of all steps after it together. last_s: of the last of them, the longest; 0 where there is none.
    memory: at the end, or over the prompt where that takes more.
    """

    batch: int
    prompt: int
    new: int
    first_s: float
    steps_s: float
    last_s: float
    memory: Memory

    @property
    def whole_s(self) -> float:
        return self.first_s + self.steps_s

    @property
    def each_s(self) -> float | None:
        """Seconds of one output token after the first, on average; None where there is none."""
        return self.steps_s / (self.new - 1) if self.new > 1 else None

    @property
    def prefill_per_s(self) -> float:
        """Tokens of prompts read per second, until the first token."""
        return self.batch * self.prompt / self.first_s

    @property
    def decode_per_s(self) -> float | None:
        """Tokens written per second after the first; None where there are none."""
        return self.batch * (self.new - 1) / self.steps_s if self.new > 1 else None

    @property
    def output_per_s(self) -> float:
        """Tokens written per second of the whole request."""
        return self.batch * self.new / self.whole_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens read and written per second of the whole request."""
        return self.batch * (self.prompt + self.new) / self.whole_s


def request_time(
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    prompt: int,
    new: int,
    batch: int,
    dtype: str,
    weights: str = "",
) -> RequestTime:
    """Time ``batch`` requests that run side by side from their beginning.

    The first token comes from the pass over the prompt; each of the ``new - 1`` others takes a step after all tokens
    before it. Raises as ``analyse``; ArgumentError for sizes below 1.
    """
    ask = functools.partial(analyse, model, target, batch=batch, dtype=dtype, weights=weights)

    @functools.cache
    def step(seq: int) -> float:
        return served_s(ask(phase="decode", seq=seq))

    first, last = ends(ask, prompt, new)
    last_s = 0.0 if last is None else served_s(last)
    steps_s = 0.0 if last is None else total(step, prompt, last.record.seq)
    return RequestTime(batch, prompt, new, served_s(first), steps_s, last_s, heaviest(first, last))


def ends(ask: Callable[..., Forward], prompt: int, new: int) -> tuple[Forward, Forward | None]:
    """The pass over a prompt, and the step of the last token, None where there is but one. ask: for a pass."""
    if new < 1:
        raise errors.ArgumentError(f"new is {new}, expected at least 1")
    # tokens in the cache before the last step: the prompt's, and all that were written but the last two
    return ask(phase="prefill", seq=prompt), ask(phase="decode", seq=prompt + new - 2) if new > 1 else None


def heaviest(first: Forward, last: Forward | None) -> Memory:
    """Memory of the one of a request's ends that needs more."""
    return max((found.memory for found in (first, last) if found is not None), key=lambda memory: memory.needed)


def total(value: Callable[[int], float], first: int, last: int) -> float:
    """Sum of ``value(n)`` over n = first .. last, with few calls where it is made of straight lines.

    A stretch on which three values between the ends lie on a line counts as that line, else it is halved.
    """
    if last - first < 8:
        return sum(map(value, range(first, last + 1)))
    low, high, length = value(first), value(last), last - first
    for quarter in (1, 2, 3):
        at = first + length * quarter // 4
        line = low + (high - low) * (at - first) / length
        if abs(value(at) - line) > LINEAR * line:
            middle = first + length // 2
            return total(value, first, middle) + total(value, middle + 1, last)
    return (low + high) / 2 * (length + 1)
