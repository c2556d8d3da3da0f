"""What the tab of forward passes shows, derived from a study alone: who is fastest, what binds, how far predictions go.

A model is compared by what was measured where every model of that size of pass was, else by what is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from reports import forward_text as words
from roofline.study_records import Page, PartRow, PassRecord
from roofline.sweep import GridPoint
from roofline.times import REGIMES
from roofline.work import PHASES, Phase

Size = tuple[Phase, int, int]
"""(phase, batch, seq)."""


@dataclass(frozen=True)
class PartView:
    """A part of a pass, or the sum of several. unexplained_s: measured time that is not predicted, of either sign."""

    name: str
    row: PartRow
    count: int
    measured_s: float | None

    @property
    def flops(self) -> int:
        return self.row.tensor_flops + self.row.vector_flops

    @property
    def unexplained_s(self) -> float | None:
        return None if self.measured_s is None else self.measured_s - self.row.predicted_s


@dataclass(frozen=True)
class PassView:
    """One pass. place: its index on the page, from which its ids are made."""

    record: PassRecord
    place: int

    @property
    def size(self) -> Size:
        return self.record.phase, self.record.batch, self.record.seq

    @property
    def label(self) -> str:
        return f"{self.record.model}, {words.size(*self.size)}"

    @property
    def seconds(self) -> float:
        """Measured, or predicted where it was not run."""
        return self.record.measured.median_s if self.record.measured else self.record.predicted_s

    @property
    def tokens(self) -> int:
        """That the pass computes."""
        return self.record.batch * (self.record.seq if self.record.phase == "prefill" else 1)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def regime_share(self) -> float:
        """Of the predicted time that goes to what binds."""
        return self.record.predicted_by_regime_s.get(self.record.regime, 0.0) / self.record.predicted_s

    @cached_property
    def regimes(self) -> list[tuple[str, float]]:
        """(regime, share of the predicted time), the largest first."""
        shares = [(name, s / self.record.predicted_s) for name, s in self.record.predicted_by_regime_s.items() if s > 0]
        return sorted(shares, key=lambda item: -item[1])

    @cached_property
    def parts(self) -> list[PartView]:
        """Every part in order."""
        timed: Sequence[float | None] = (
            self.record.measured.parts_s if self.record.measured else [None] * len(self.record.parts)
        )
        return [
            PartView(words.part(row), row, 1, seconds) for row, seconds in zip(self.record.parts, timed, strict=False)
        ]

    @cached_property
    def kinds(self) -> list[PartView]:
        """Parts summed by kind, in the order of their first."""
        groups: dict[str, list[PartView]] = {}
        for part in self.parts:
            groups.setdefault(part.row.kind, []).append(part)
        return [_sum(words.kind(kind), parts) for kind, parts in groups.items()]

    @cached_property
    def total(self) -> PartView:
        """All parts; measured as a whole pass, without the timers between parts."""
        whole = _sum("whole pass", self.parts)
        taken = self.record.measured.median_s if self.record.measured else None
        return PartView(whole.name, whole.row, whole.count, taken)

    @property
    def timers_s(self) -> float | None:
        """The whole pass less the sum of its parts: what timers between parts cost, with its sign."""
        measured = self.record.measured
        return None if measured is None else measured.median_s - sum(part.measured_s or 0.0 for part in self.parts)


def _sum(name: str, parts: Sequence[PartView]) -> PartView:
    rows = [part.row for part in parts]
    summed = (
        "parameters", "tensor_flops", "vector_flops", "special_ops", "bytes", "parameter_bytes", "cache_bytes",
        "run_bytes", "launches", "floor_s", "predicted_s",
    )  # fmt: skip
    floors: dict[str, float] = {}
    for row in rows:
        floors[row.bound] = floors.get(row.bound, 0.0) + row.floor_s
    total = PartRow(
        kind=rows[0].kind,
        layer=None,
        bound=max(floors, key=lambda bound: floors[bound]),
        **{field: sum(getattr(row, field) for row in rows) for field in summed},
    )
    timed = [part.measured_s for part in parts if part.measured_s is not None]
    return PartView(name, total, len(parts), sum(timed) if timed else None)


@dataclass(frozen=True)
class Contest:
    """The models at one size of pass. ranked: those that fit, fastest first; misfits: those that do not.

    measured: ranked by measured times. tied: besides the fastest, those whose 95 % intervals touch its own.
    """

    size: Size
    ranked: list[PassView]
    misfits: list[PassView]
    measured: bool
    tied: list[PassView]

    @property
    def ratio(self) -> float:
        """Time of the slowest over time of the fastest."""
        return self.taken(self.ranked[-1]) / self.taken(self.ranked[0])

    def taken(self, view: PassView) -> float:
        return view.seconds if self.measured else view.record.predicted_s

    @property
    def bound(self) -> list[tuple[str, list[PassView]]]:
        """(regime, the models that it binds)."""
        found: dict[str, list[PassView]] = {}
        for view in self.ranked:
            found.setdefault(view.record.regime, []).append(view)
        return list(found.items())


def contest(size: Size, views: Sequence[PassView]) -> Contest:
    fitting = [view for view in views if view.record.fits is not False]
    measured = bool(fitting) and all(view.record.measured for view in fitting)
    ranked = sorted(fitting, key=lambda view: view.seconds if measured else view.record.predicted_s)
    tied = []
    if measured and ranked[0].record.measured:
        end = ranked[0].record.measured.interval_s[1]
        tied = [view for view in ranked[1:] if view.record.measured and view.record.measured.interval_s[0] <= end]
    return Contest(size, ranked, [view for view in views if view.record.fits is False], measured, tied)


@dataclass(frozen=True)
class Accuracy:
    """How far predictions are off. typical: median of the errors' sizes. worst: the pass with the largest."""

    passes: int
    typical: float
    worst: PassView


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
        self.models = list(
            dict.fromkeys([*page.models, *(p.model for p in page.passes), *(p.model for p in page.grid)])
        )
        order = {name: place for place, name in enumerate(self.models)}
        records = sorted(page.passes, key=lambda p: (PHASES.index(p.phase), p.seq, p.batch, order[p.model]))
        self.passes = [PassView(record, place) for place, record in enumerate(records)]
        self.points = {(p.model, p.phase, p.batch, p.seq): p for p in page.grid}
        self.batches = sorted({point.batch for point in page.grid})
        self.seqs = sorted({point.seq for point in page.grid})
        self.phases = [phase for phase in PHASES if any(point.phase == phase for point in page.grid)]

    @property
    def was_run(self) -> bool:
        return any(view.record.measured for view in self.passes)

    @property
    def device_bytes(self) -> int:
        """0 if unknown."""
        return max((view.record.device_bytes for view in self.passes), default=0)

    @cached_property
    def contests(self) -> list[Contest]:
        groups: dict[Size, list[PassView]] = {}
        for view in self.passes:
            groups.setdefault(view.size, []).append(view)
        return [contest(size, views) for size, views in groups.items()]

    @property
    def accuracy(self) -> Accuracy | None:
        """None where nothing was run."""
        errors = [(abs(error), view) for view in self.passes if (error := view.record.error) is not None]
        if not errors:
            return None
        worst = max(errors, key=lambda item: item[0])[1]
        return Accuracy(len(errors), median(error for error, _ in errors), worst)

    @property
    def winners(self) -> list[tuple[Phase, list[str], float]]:
        """(phase, models that are fastest at one of its sizes, largest lead over the slowest)."""
        found: dict[Phase, list[Contest]] = {}
        for contest in self.contests:
            found.setdefault(contest.size[0], []).append(contest)
        return [
            (
                phase,
                list(dict.fromkeys(c.ranked[0].record.model for c in contests if c.ranked)),
                max((c.ratio for c in contests if c.ranked), default=1.0),
            )
            for phase, contests in found.items()
        ]

    @property
    def fastest(self) -> set[int]:
        """Places of passes that are fastest at their size, where there is more than one model."""
        return {contest.ranked[0].place for contest in self.contests if len(contest.ranked) > 1}

    @property
    def smaller(self) -> tuple[str, str, float] | None:
        """(smallest model, largest model, share of parameters that the first has less)."""
        known = {view.record.model: view.record.parameters for view in self.passes}
        if not known:
            return None
        small, large = (end(known, key=lambda name: known[name]) for end in (min, max))
        fewer = 1 - known[small] / known[large]
        return (small, large, fewer) if fewer > 0.01 else None

    @property
    def one_depth(self) -> bool:
        """Every model has as many layers as the others."""
        return len({max((p.layer or 0 for p in view.record.parts), default=0) for view in self.passes}) == 1

    @property
    def misfits(self) -> list[PassView]:
        return [view for view in self.passes if view.record.fits is False]

    def point(self, model: str, phase: Phase, batch: int, seq: int) -> GridPoint | None:
        return self.points.get((model, phase, batch, seq))

    def regimes(self, phase: Phase) -> list[str]:
        """Regimes that a phase has somewhere in the grid, known ones first."""
        found = {point.regime for point in self.page.grid if point.phase == phase}
        return [name for name in REGIMES if name in found] + sorted(found - set(REGIMES))

    def line(self, model: str, phase: Phase, axis: str, fixed: int) -> list[GridPoint]:
        """Points along ``batch`` or ``seq`` while the other stays ``fixed``."""
        found = (
            self.point(model, phase, value, fixed) if axis == "batch" else self.point(model, phase, fixed, value)
            for value in (self.batches if axis == "batch" else self.seqs)
        )
        return [point for point in found if point is not None]

    def measured(self, model: str, phase: Phase, axis: str, fixed: int) -> list[PassView]:
        """Passes that were run on such a line."""
        return [
            view
            for view in self.passes
            if view.record.model == model
            and view.record.phase == phase
            and view.record.measured
            and fixed == (view.record.seq if axis == "batch" else view.record.batch)
        ]

    def common(self, axis: str) -> int:
        """The batch or length of the grid that most passes in detail have, the larger of equals; for first choices."""
        known = self.batches if axis == "batch" else self.seqs
        taken = [view.size[1 if axis == "batch" else 2] for view in self.passes]
        return max(known, key=lambda value: (taken.count(value), value if value in taken else -value), default=0)

    @property
    def largest_studied(self) -> int:
        """The largest batch of the grid that a pass in detail has, else 0."""
        return max({view.record.batch for view in self.passes} & set(self.batches), default=0)

    def largest_batch(self, model: str, seq: int) -> int | None:
        """The largest batch that fits at a length: weights once, the rest for each sequence. None if not known."""
        points = [p for phase in self.memory_phases for p in self.line(model, phase, "batch", seq)][:1]
        if not points or not self.device_bytes:
            return None
        each = -(-(points[0].needed_bytes - points[0].weight_bytes) // points[0].batch)
        return max(0, (self.device_bytes - points[0].weight_bytes) // max(each, 1))

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
    found: list[RegimeRun] = []
    for point in points:
        value = point.batch if axis == "batch" else point.seq
        fits = point.fits is not False
        if found and found[-1].regime == point.regime:
            found[-1] = RegimeRun(point.regime, found[-1].first, value, found[-1].fits)
        else:
            found.append(RegimeRun(point.regime, value, value, fits))
    return found
