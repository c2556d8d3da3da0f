"""Figures 1b and 4, predicted: throughput and latency of sampling. Needs no PyTorch.

Figure 1b: tokens per second at the best batch that fits in memory, against tokens sampled after an empty prompt.
Figure 4: seconds of the whole sample at batch 16, after an empty prompt (a) and after 4,096 tokens (b).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.figures_clock import CAUSAL, Times, added, bound, pass_times
from roofline.figures_records import FigureAssumption, FigurePanel, FigurePoint, FigureSeries
from roofline.forward import analyse
from roofline.target import AnalysisTarget

FAMILIES = {"hawk": "Hawk", "griffin": "Griffin", "mqa": "MQA"}
"""Presets' names -> what the paper calls the models."""

GROWING, WHOLE = "cache grows", "whole cache"

CACHES = (
    FigureAssumption(
        name=GROWING, words="a step reads the keys and values that there are, as kernels of serving libraries do"
    ),
    FigureAssumption(
        name=WHOLE,
        words="a step reads a cache that was allocated for the last token, masked, as a program with fixed shapes does",
    ),
)
"""How the cache is read decides how much the baseline gains from short samples, and the paper does not say."""

THROUGHPUT_LENGTHS = (512, 1024, 2048, 4196)
"""Tokens sampled in figure 1b; 4196 is the paper's number."""

LATENCY_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
"""Tokens sampled in figure 4. The axis of the paper is an image; these are round numbers along it."""

LATENCY_BATCH, LONG_PROMPT = 16, 4096
"""Of figure 4."""

EMPTY_PROMPT = 1
"""Tokens in the cache before the first step: the one that begins every text."""

THROUGHPUT_PANEL = FigurePanel(name="1b", title="Largest throughput", y="tokens per second", quantity="tokens/s")

LATENCY_PANELS = (
    FigurePanel(name="4a", title="(a) After an empty prompt", y="seconds of the whole sample", quantity="s"),
    FigurePanel(name="4b", title="(b) After 4,096 tokens", y="seconds of the whole sample", quantity="s"),
)

SAMPLING_NOTES = (
    "the prompt's own pass is not counted, nor is choosing a token on the host",
    f"an empty prompt is {EMPTY_PROMPT} token, the one that begins every text",
)


def stretches(start: int, tokens: int, kinks: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Steps ``start`` to ``start + tokens - 1`` cut into ranges [first, last], at ``kinks`` and at powers of four."""
    end = start + tokens
    cuts = {start, end, *(kink for kink in kinks if start < kink < end)}
    cuts |= {start + 4**power for power in range(3, tokens.bit_length()) if start + 4**power < end}
    places = sorted(cuts)
    return [(first, after - 1) for first, after in itertools.pairwise(places)]


def sample_times(step: Callable[[int], Times], start: int, tokens: int, kinks: Sequence[int] = ()) -> Times:
    """Times of ``tokens`` steps, the first after ``start`` tokens: straight between the ends of each stretch.

    step: times of one step after so many tokens. A step's time is a sum of straight lines in the cache's length but for
    a few kinks, so that this is exact but for those.
    """
    ends = ((end, (last - first + 1) / 2) for first, last in stretches(start, tokens, kinks) for end in (first, last))
    return added((step(place), weight) for place, weight in ends)


@dataclass(frozen=True)
class Decoder:
    """Predicted decoding of a model on a target. cache: GROWING or WHOLE."""

    config: GriffinConfig
    target: AnalysisTarget
    dtype: str
    cache: str

    def sample(self, batch: int, start: int, tokens: int) -> Times:
        """Times of ``tokens`` steps after ``start`` tokens."""

        @functools.cache
        def after(seq: int) -> Times:
            return pass_times(self.config, self.target, "decode", batch, seq, self.dtype, CAUSAL)

        # no step reads more of a window, or of a state, when more tokens lie behind it
        grows = "global_attention" in self.config.block_types
        most = start + tokens if grows else self.config.window if "local_attention" in self.config.block_types else 1

        def step(seq: int) -> Times:
            return after(min(seq, most))

        if self.cache == WHOLE:
            return added([(step(start + tokens - 1), tokens)])
        return sample_times(step, start, tokens, [self.config.window])

    def largest_batch(self, seq: int) -> int:
        """Sequences of ``seq`` tokens that fit in the memory of the target; DeviceError where that is not known."""
        if not self.target.memory_bytes:
            raise errors.DeviceError(
                f"figure 1b takes the largest batch that fits, and no figure is known for the memory of "
                f"{self.target.name}; name a device of `griffin roofline list`"
            )
        one = analyse(self.config, self.target, phase="decode", batch=1, seq=seq, dtype=self.dtype)
        return one.memory.largest_batch or 0

    def best(self, start: int, tokens: int, most: int) -> tuple[int, Times] | None:
        """The batch up to ``most`` with most tokens a second, and its times; None where none fits.

        Tried: powers of four, and ``most``: throughput grows with the batch until something else than weights binds.
        """
        batches = sorted({4**power for power in range(most.bit_length()) if 4**power < most} | {most}) if most else []
        found = [(batch, self.sample(batch, start, tokens)) for batch in batches]
        return max(found, key=lambda item: item[0] / sum(item[1].values()), default=None)


def throughput(
    target: AnalysisTarget, dtype: str, size: str, lengths: Sequence[int] = THROUGHPUT_LENGTHS
) -> Iterator[FigureSeries]:
    """Figure 1b of the three models of a size. Raises DeviceError where the target's memory is not known."""
    for decoder, name, label in _decoders(target, dtype, size):
        points = []
        for tokens in lengths:
            last = EMPTY_PROMPT + tokens - 1
            best = decoder.best(EMPTY_PROMPT, tokens, decoder.largest_batch(last))
            points.append(_sampled(tokens, *best, last, rate=True) if best else _nothing(tokens, last))
        yield _series(decoder, name, label, "1b", points)


def latency(
    target: AnalysisTarget, dtype: str, size: str, lengths: Sequence[int] = LATENCY_LENGTHS
) -> Iterator[FigureSeries]:
    """Figure 4 of the three models of a size, both panels."""
    for decoder, name, label in _decoders(target, dtype, size):
        for panel, start in (("4a", EMPTY_PROMPT), ("4b", LONG_PROMPT)):
            points = [
                _sampled(tokens, LATENCY_BATCH, decoder.sample(LATENCY_BATCH, start, tokens), start + tokens - 1)
                for tokens in lengths
            ]
            yield _series(decoder, name, label, panel, points)


def _decoders(target: AnalysisTarget, dtype: str, size: str) -> Iterator[tuple[Decoder, str, str]]:
    """Each model under each assumption: on the machine at hand there is none to make."""
    for family, label in FAMILIES.items():
        name = f"{family}-{size}"
        for cache in ("",) if target.measured else (GROWING, WHOLE):
            yield Decoder(preset(name), target, dtype, cache), name, label


def _sampled(tokens: int, batch: int, times: Times, seq: int, rate: bool = False) -> FigurePoint:
    seconds = sum(times.values())
    y = batch * tokens / seconds if rate else seconds
    return FigurePoint(x=tokens, y=y, batch=batch, seq=seq, seconds=seconds, bound=bound(times))


def _nothing(tokens: int, seq: int) -> FigurePoint:
    """Where not even one sequence fits."""
    return FigurePoint(x=tokens, y=None, batch=0, seq=seq, seconds=None, bound="")


def _series(decoder: Decoder, name: str, label: str, panel: str, points: list[FigurePoint]) -> FigureSeries:
    return FigureSeries(
        label=label, model=name, panel=panel, device=decoder.target.name, origin="predicted", assumption=decoder.cache,
        points=points, parameters=decoder.config.parameters(), dtype=decoder.dtype,
    )  # fmt: skip
