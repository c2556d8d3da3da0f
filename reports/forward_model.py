"""What the tab of forward passes shows, derived from a study alone: who is fastest, what binds, how far predictions go.

A model is compared by what was measured where every model of that size of pass was, else by what is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import median

from roofline.study_records import REGIMES, GridPoint, Page, PassRecord
from roofline.work import PHASES, Phase

Size = tuple[Phase, int, int]
"""(phase, batch, seq)."""


@dataclass(frozen=True)
class Contest:
    """The models at one size of pass. ranked: those that fit, fastest first; misfits: those that do not.

    measured: ranked by measured times. tied: besides the fastest, those whose 95 % intervals touch its own.
    """

    size: Size
    ranked: list[PassRecord]
    misfits: list[PassRecord]
    measured: bool
    tied: list[PassRecord]

    @property
    def ratio(self) -> float:
        """Time of the slowest over time of the fastest."""
        return self.taken(self.ranked[-1]) / self.taken(self.ranked[0])

    def taken(self, record: PassRecord) -> float:
        return record.seconds if self.measured else record.predicted_s

    @property
    def bound(self) -> list[tuple[str, list[PassRecord]]]:
        """(regime, the models that it binds)."""
        regimes = dict.fromkeys(record.regime for record in self.ranked)
        return [(name, [record for record in self.ranked if record.regime == name]) for name in regimes]


def contest(size: Size, records: Sequence[PassRecord]) -> Contest:
    fitting = [record for record in records if record.fits is not False]
    measured = bool(fitting) and all(record.measured for record in fitting)
    ranked = sorted(fitting, key=lambda record: record.seconds if measured else record.predicted_s)
    tied = []
    if measured and ranked[0].measured:
        end = ranked[0].measured.interval_s[1]
        tied = [record for record in ranked[1:] if record.measured and record.measured.interval_s[0] <= end]
    return Contest(size, ranked, [record for record in records if record.fits is False], measured, tied)


@dataclass(frozen=True)
class Accuracy:
    """How far predictions are off. typical: median of the errors' sizes. worst: the pass with the largest."""

    passes: int
    typical: float
    worst: PassRecord


@dataclass(frozen=True)
class RegimeRun:
    """Neighbouring points of the grid with one regime, as it goes along batch or length."""

    regime: str
    first: int
    last: int
    fits: bool


@dataclass(frozen=True)
class Crossing:
    """How the regime of models changes along ``axis`` while the other size stays ``fixed``."""

    models: list[str]
    phase: Phase
    axis: str
    fixed: int
    runs: list[RegimeRun]


class PageView:
    """One device. index: of the page in the study, from which ids are made."""

    def __init__(self, page: Page, index: int) -> None:
        self.page = page
        self.index = index
        self.id = f"forward-{index}"
        self.models = list(dict.fromkeys([*page.models, *(p.model for p in [*page.passes, *page.grid])]))
        order = self.models.index
        self.passes = sorted(page.passes, key=lambda p: (PHASES.index(p.phase), p.seq, p.batch, order(p.model)))
        self.points = {(p.model, p.phase, p.batch, p.seq): p for p in page.grid}
        self.values = {axis: sorted({getattr(point, axis) for point in page.grid}) for axis in ("batch", "seq")}
        self.batches, self.seqs = self.values.values()
        self.phases = [phase for phase in PHASES if any(point.phase == phase for point in page.grid)]

    def place(self, found: PassRecord) -> int:
        """Index of a pass on the page, from which its ids are made."""
        return next(place for place, known in enumerate(self.passes) if known is found)

    @property
    def was_run(self) -> bool:
        return any(record.measured for record in self.passes)

    @property
    def device_bytes(self) -> int:
        """0 if unknown."""
        return max((record.device_bytes for record in self.passes), default=0)

    @cached_property
    def contests(self) -> list[Contest]:
        return [contest(size, list(records)) for size, records in groupby(self.passes, key=lambda p: p.size)]

    @property
    def accuracy(self) -> Accuracy | None:
        """None where nothing was run."""
        errors = [(abs(error), record) for record in self.passes if (error := record.error) is not None]
        worst = max(errors, key=lambda item: item[0], default=None)
        return worst and Accuracy(len(errors), median(error for error, _ in errors), worst[1])

    @property
    def winners(self) -> list[tuple[Phase, list[str], float]]:
        """(phase, models that are fastest at one of its sizes, largest lead over the slowest)."""
        found: list[tuple[Phase, list[str], float]] = []
        for phase, contests in groupby(self.contests, key=lambda c: c.size[0]):
            held = [c for c in contests if c.ranked]
            fastest = list(dict.fromkeys(c.ranked[0].model for c in held))
            found.append((phase, fastest, max((c.ratio for c in held), default=1.0)))
        return found

    @property
    def fastest(self) -> set[int]:
        """Places of passes that are fastest at their size, where there is more than one model."""
        return {self.place(contest.ranked[0]) for contest in self.contests if len(contest.ranked) > 1}

    @property
    def smaller(self) -> tuple[str, str, float] | None:
        """(smallest model, largest model, share of parameters that the first has less)."""
        known = {record.model: record.parameters for record in self.passes}
        if not known:
            return None
        small, large = (end(known, key=lambda name: known[name]) for end in (min, max))
        fewer = 1 - known[small] / known[large]
        return (small, large, fewer) if fewer > 0.01 else None

    @property
    def one_depth(self) -> bool:
        """Every model has as many layers as the others."""
        return len({max((p.layer or 0 for p in record.parts), default=0) for record in self.passes}) == 1

    @property
    def misfits(self) -> list[PassRecord]:
        return [record for record in self.passes if record.fits is False]

    def point(self, model: str, phase: Phase, batch: int, seq: int) -> GridPoint | None:
        return self.points.get((model, phase, batch, seq))

    def regimes(self, phase: Phase) -> list[str]:
        """Regimes that a phase has somewhere in the grid, known ones first."""
        found = {point.regime for point in self.page.grid if point.phase == phase}
        return [name for name in REGIMES if name in found] + sorted(found - set(REGIMES))

    def line(self, model: str, phase: Phase, axis: str, fixed: int) -> list[GridPoint]:
        """Points along ``batch`` or ``seq`` while the other stays ``fixed``."""
        places = [(value, fixed) if axis == "batch" else (fixed, value) for value in self.values[axis]]
        return [point for place in places if (point := self.point(model, phase, *place)) is not None]

    def measured(self, model: str, phase: Phase, axis: str, fixed: int) -> list[PassRecord]:
        """Passes that were run on such a line."""
        other = "seq" if axis == "batch" else "batch"
        wanted = [r for r in self.passes if (r.model, r.phase, getattr(r, other)) == (model, phase, fixed)]
        return [record for record in wanted if record.measured]

    def common(self, axis: str) -> int:
        """The batch or length of the grid that most passes in detail have, the larger of equals; for first choices."""
        taken = [getattr(record, axis) for record in self.passes]
        return max(
            self.values[axis], key=lambda value: (taken.count(value), value if value in taken else -value), default=0
        )

    def largest_batch(self, model: str, seq: int) -> int | None:
        """The largest batch that fits at a length: weights once, the rest for each sequence. None if not known."""
        points = [p for phase in self.memory_phases for p in self.line(model, phase, "batch", seq)][:1]
        return points[0].memory_on(self.device_bytes).largest_batch if points else None

    @property
    def memory_phases(self) -> list[Phase]:
        """The phase that memory is shown for: decode, where it is in the grid."""
        return self.phases[-1:]

    @cached_property
    def crossings(self) -> list[Crossing]:
        """How regimes change with batch at the length of most passes, and with length at the smallest batch."""
        if not self.page.grid:
            return []
        wanted = [(phase, "batch", self.common("seq")) for phase in reversed(self.phases)]
        wanted += [(phase, "seq", self.batches[0]) for phase in self.phases if phase == "prefill"]
        found = []
        for phase, axis, fixed in wanted:
            alike: dict[tuple[RegimeRun, ...], list[str]] = {}
            for model in self.models:
                alike.setdefault(tuple(runs(self.line(model, phase, axis, fixed), axis)), []).append(model)
            found += [Crossing(models, phase, axis, fixed, list(way)) for way, models in alike.items() if way]
        return found


def runs(points: Iterable[GridPoint], axis: str) -> list[RegimeRun]:
    """Stretches of one regime along a line."""
    stretches = [list(found) for _, found in groupby(points, key=lambda point: point.regime)]
    return [
        RegimeRun(s[0].regime, getattr(s[0], axis), getattr(s[-1], axis), s[0].fits is not False) for s in stretches
    ]
