"""The paper's figures, measured on this machine: what is compared runs in turn, round after round.

On a CPU the models are the smallest presets, on a GPU the paper's. Each series says in ``note`` what was run.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from msgspec import structs

from griffin_kernels import catalog, errors, functional, use
from griffin_kernels.device import Device
from griffin_kernels.models import Griffin
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.figures import PLANS, usual_dtype, usual_size
from roofline.figures_decode import EMPTY_PROMPT, FAMILIES, LATENCY_BATCH, LONG_PROMPT, sample_times
from roofline.figures_records import FigurePoint, FigureSeries
from roofline.figures_scan import NATIVE, PANEL_OF, SCAN_BATCH, SCAN_KINDS, SCAN_WIDTH
from roofline.figures_training import SCALED_NOTE, SCALED_SIZE, TRAINING_SIZES, scaled
from roofline.forward import analyse
from roofline.pass_timing import LEAST_CALM, PassTimer, build, timed
from roofline.stats import bootstrap_interval
from roofline.target import AnalysisTarget, at_hand

Tell = Callable[[str], None]
Rounds = Mapping[Any, list[float]]
"""Seconds of every round by what was run."""

BATCHES_TRIED = (1, 4, 16)
"""Batches of figure 1b: a CPU's throughput hardly grows beyond, and memory is shared with others."""

POSITIONS = (EMPTY_PROMPT, 256, 1024, 4096)
"""Tokens behind the steps that are run, besides the last of a sample; between them times are straight lines."""

LONGEST_CONTEXT = 32768
"""The longest cache that is filled for a step of the figure of long contexts."""

SCAN_VARIANTS = {NATIVE: "eager.loop", "associative": "eager.associative"}
"""Kinds of scan -> this package's baselines. The kernel is the tuned one."""

PIECES = ("recurrent_block/eager.composed", "rg_lru/eager.unfused")
"""Variants that leave the scan to linear_scan, so that another can take its place."""


def measured(
    name: str, device: Device, lengths: Sequence[int] | None, seconds: float, tell: Tell
) -> list[FigureSeries]:
    """The measured series of a figure, each item for about ``seconds`` in all, three rounds at the least."""
    target = at_hand(device)
    plan = PLANS[name]
    usual = plan.cpu_lengths if device.kind == "cpu" else plan.lengths
    bench = FigureBench(target, device, sorted(lengths or usual), seconds, tell)
    runs = {"1b": bench.throughput, "3": bench.training, "4": bench.latency, "8": bench.scans, "context": bench.context}
    return list(runs[name]())


@dataclass(frozen=True)
class FigureBench:
    """Measures figures on a machine. lengths: of the x axis. tell: told what is being done."""

    target: AnalysisTarget
    device: Device
    lengths: Sequence[int]
    seconds: float
    tell: Tell

    @property
    def dtype(self) -> str:
        return usual_dtype(self.target)

    def throughput(self) -> Iterator[FigureSeries]:
        """Figure 1b: the best of the batches that are tried."""
        places = self._places([EMPTY_PROMPT + tokens - 1 for tokens in self.lengths])
        rounds = self._steps(BATCHES_TRIED, places)
        note = f"best of batches {', '.join(map(str, BATCHES_TRIED))}; {self._decode_note(places)}"
        for family, label in FAMILIES.items():
            points = []
            for tokens in self.lengths:
                rates = {
                    batch: [
                        batch * tokens / taken for taken in self._samples(rounds, family, batch, EMPTY_PROMPT, tokens)
                    ]
                    for batch in BATCHES_TRIED
                    if (family, batch, places[0]) in rounds
                }
                batch = max(rates, key=lambda size: median(rates[size]))
                rate = median(rates[batch])
                points.append(
                    FigurePoint(
                        x=tokens, y=rate, batch=batch, seq=tokens, seconds=batch * tokens / rate, bound="",
                        interval=bootstrap_interval(rates[batch]),
                    )
                )  # fmt: skip
            yield self._series(family, label, "1b", points, note)

    def latency(self) -> Iterator[FigureSeries]:
        """Figure 4, both panels."""
        ends = [start + tokens - 1 for start in (EMPTY_PROMPT, LONG_PROMPT) for tokens in self.lengths]
        places = self._places([max(ends)])
        rounds = self._steps((LATENCY_BATCH,), places)
        for family, label in FAMILIES.items():
            for panel, start in (("4a", EMPTY_PROMPT), ("4b", LONG_PROMPT)):
                points = [
                    _timed_point(
                        tokens, LATENCY_BATCH, start + tokens - 1,
                        self._samples(rounds, family, LATENCY_BATCH, start, tokens),
                    )
                    for tokens in self.lengths
                ]  # fmt: skip
                yield self._series(family, label, panel, points, self._decode_note(places))

    def context(self) -> Iterator[FigureSeries]:
        """Steps after long contexts; prompts of such lengths would take hours on a CPU."""
        places = [length for length in self.lengths if length <= LONGEST_CONTEXT]
        if not places:
            raise errors.ArgumentError(
                f"--measure fills caches of {LONGEST_CONTEXT} tokens at most; a length of --seqs must be no longer"
            )
        rounds = self._steps((1,), places)
        for family, label in FAMILIES.items():
            points = [_timed_point(place, 1, place, rounds[family, 1, place]) for place in places]
            yield self._series(family, label, "context-step", points, f"caches of at most {LONGEST_CONTEXT} tokens")

    def training(self) -> Iterator[FigureSeries]:
        """Figure 3."""
        small = not self.target.asynchronous
        tokens = max(self.lengths)
        for size in (SCALED_SIZE,) if small else TRAINING_SIZES:
            configs = {family: scaled(family) if small else preset(f"{family}-{size}") for family in ("mqa", "griffin")}
            works: dict[Any, Callable[[], Any]] = {}
            for family, config in configs.items():
                self.tell(f"building {family}-{size}")
                model = self._trained(config)
                works |= {(family, seq): _training_step(model, max(1, tokens // seq), seq) for seq in self.lengths}
            rounds = self._rounds(works)
            first = rounds["mqa", self.lengths[0]]
            for family, config in configs.items():
                points = [_ratio_point(seq, max(1, tokens // seq), rounds[family, seq], first) for seq in self.lengths]
                series = self._series(family, FAMILIES[family], f"3-{size}", points, SCALED_NOTE if small else "", size)
                yield _with_parameters(series, config)

    def scans(self) -> Iterator[FigureSeries]:
        """Figure 8: the tuned kernel, and this package's baselines for the two others; then Hawk's step with each."""
        for dtype in ("bfloat16", "float32"):
            works: dict[Any, Callable[[], Any]] = {}
            for length, kind in itertools.product(self.lengths, SCAN_KINDS):
                works[kind, length] = self._scan(kind, length, getattr(torch, dtype))
            rounds = self._rounds(works)
            for kind, label in SCAN_KINDS.items():
                points = [
                    _ratio_point(length, SCAN_BATCH, rounds[kind, length], rounds[NATIVE, length])
                    for length in self.lengths
                ]
                yield FigureSeries(
                    label=label, model=SCAN_VARIANTS.get(kind, "as tuned"), panel=PANEL_OF[dtype],
                    device=self.target.name, origin="measured", assumption="", points=points, dtype=dtype,
                )  # fmt: skip
        yield from self._hawk_steps()

    def _hawk_steps(self) -> Iterator[FigureSeries]:
        small = not self.target.asynchronous
        config = scaled("hawk") if small else preset("hawk-1b3")
        model, tokens = self._trained(config), max(self.lengths)
        works: dict[Any, Callable[[], Any]] = {}
        for length, kind in itertools.product(self.lengths, SCAN_KINDS):
            works[kind, length] = _with_scan(kind, _training_step(model, max(1, tokens // length), length))
        rounds = self._rounds(works)
        note = "the block of convolution, RG-LRU and gate in pieces, so that its scan can be another"
        note = f"{SCALED_NOTE}; {note}" if small else note
        for kind, label in SCAN_KINDS.items():
            points = [
                _ratio_point(length, max(1, tokens // length), rounds[kind, length], rounds[NATIVE, length])
                for length in self.lengths
            ]
            series = self._series("hawk", label, "8b", points, note, SCALED_SIZE if small else "1b3")
            yield _with_parameters(series, config)

    def _scan(self, kind: str, length: int, dtype: torch.dtype) -> Callable[[], Any]:
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (SCAN_BATCH, length, SCAN_WIDTH)
        where = self.device.torch_device
        x, a = (
            torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(where, dtype) for _ in "xa"
        )
        if kind not in SCAN_VARIANTS:
            return lambda: functional.linear_scan(x, a)
        variant = catalog.variant(f"linear_scan/{SCAN_VARIANTS[kind]}")
        call = catalog.op("linear_scan").call(x, a)
        return lambda: variant.run(call, variant.config())

    def _steps(self, batches: Sequence[int], places: Sequence[int]) -> Rounds:
        """Decoding steps by family, batch and tokens behind them; those that do not fit are left out."""
        works: dict[Any, Callable[[], Any]] = {}
        embedding: torch.nn.Parameter | None = None
        size = usual_size(self.target)
        for family in FAMILIES:
            name = f"{family}-{size}"
            self.tell(f"building {name}")
            model: Griffin | None = None
            for batch, place in itertools.product(batches, places):
                found = analyse(name, self.target, phase="decode", batch=batch, seq=place, dtype=self.dtype)
                if found.memory.fits is False:
                    continue
                model = model or build(found, self.device, embedding)
                embedding = cast(torch.nn.Parameter, model.embedding.weight)
                works[family, batch, place] = PassTimer(model, found.record, self.device).step
        with torch.inference_mode():
            return self._rounds(works)

    def _samples(self, rounds: Rounds, family: str, batch: int, start: int, tokens: int) -> list[float]:
        """Seconds of a sample by round, from steps at a few places."""
        steps = {place: taken for (kind, size, place), taken in rounds.items() if (kind, size) == (family, batch)}
        places = sorted(steps)
        found = []
        for values in zip(*(steps[place] for place in places), strict=True):

            def step(seq: int, values: tuple[float, ...] = values) -> dict[str, float]:
                return {"": float(np.interp(seq, places, values))}

            found.append(sum(sample_times(step, start, tokens, places).values()))
        return found

    def _places(self, ends: Sequence[int]) -> list[int]:
        return sorted({*(place for place in POSITIONS if place < max(ends)), *ends})

    def _decode_note(self, places: Sequence[int]) -> str:
        note = f"steps were run after {', '.join(map(str, places))} tokens, with straight lines between them"
        return note if self.target.asynchronous else f"{usual_size(self.target)} presets; {note}"

    def _trained(self, config: GriffinConfig) -> Griffin:
        """A model with random weights, whose gradients are wanted."""
        return Griffin(config, device=self.device.torch_device, dtype=getattr(torch, self.dtype))

    def _rounds(self, works: Mapping[Any, Callable[[], Any]]) -> Rounds:
        """Seconds of each round: everything once in turn, for about ``seconds``, LEAST_CALM rounds at the least."""
        for key, work in works.items():
            self.tell(f"first run: {' '.join(map(str, key))}")
            work()
        taken: dict[Any, list[float]] = {key: [] for key in works}
        begin, done = time.perf_counter(), 0
        while done < LEAST_CALM or time.perf_counter() - begin < self.seconds:
            for key, work in works.items():
                self.tell(f"round {done + 1}: {' '.join(map(str, key))}")
                taken[key].append(timed(work, self.device))
            done += 1
        return taken

    def _series(
        self, family: str, label: str, panel: str, points: list[FigurePoint], note: str, size: str = ""
    ) -> FigureSeries:
        name = f"{family}-{size or usual_size(self.target)}"
        return FigureSeries(
            label=label, model=name, panel=panel, device=self.target.name, origin="measured", assumption="",
            points=points, dtype=self.dtype, parameters=preset(name).parameters(), note=note,
        )  # fmt: skip


def _timed_point(x: int, batch: int, seq: int, seconds: Sequence[float]) -> FigurePoint:
    return FigurePoint(
        x=x, y=median(seconds), batch=batch, seq=seq, seconds=median(seconds), bound="",
        interval=bootstrap_interval(seconds),
    )  # fmt: skip


def _ratio_point(x: int, batch: int, seconds: Sequence[float], base: Sequence[float]) -> FigurePoint:
    """The median over rounds of a time over the base's of the same round."""
    ratios = [one / other for one, other in zip(seconds, base, strict=True)]
    return FigurePoint(
        x=x,
        y=median(ratios),
        batch=batch,
        seq=x,
        seconds=median(seconds),
        bound="",
        interval=bootstrap_interval(ratios),
    )


def _with_parameters(series: FigureSeries, config: GriffinConfig) -> FigureSeries:
    return structs.replace(series, parameters=config.parameters())


def _training_step(model: Griffin, batch: int, seq: int) -> Callable[[], Any]:
    """Forward and backward of the loss of every token; gradients are forgotten after it."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(
        model.config.vocab_size, (batch, seq + 1), generator=generator, dtype=torch.int64, device="cpu"
    )
    tokens = drawn.to(model.embedding.weight.device)

    def step() -> None:
        with torch.enable_grad():
            loss: Any = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def _with_scan(kind: str, step: Callable[[], Any]) -> Callable[[], Any]:
    """A step whose recurrent blocks run in pieces, their scan of a kind."""
    scan = [f"linear_scan/{SCAN_VARIANTS[kind]}"] if kind in SCAN_VARIANTS else []
    forward = [*PIECES, *scan]

    def run() -> None:
        with contextlib.ExitStack() as stack:
            for name in [*forward, *(key.replace("/", "_bwd/") for key in forward)]:
                stack.enter_context(use(name))
            step()

    return run
