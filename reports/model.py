"""What a report shows, worked out from the journal: verdicts, cases, candidates, overviews. No HTML, no figures."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from griffin_kernels.case import Case
from griffin_kernels.records import Entry, RegistryFile
from reports import format as fmt
from reports.sources import JournalFile
from roofline import stats
from tuning.measure.conditions import disturbed, slowed
from tuning.plan.budget import INDIFFERENCE
from tuning.record.journal_records import BAD, Candidate, Conditions, Noise, OutputError, Race, Result, Undecided
from tuning.ui.progress import STATUSES as STATUSES


def compare(interval: tuple[float, float] | None, noise: float = 0.0) -> str | None:
    """SAME, FASTER, SLOWER or UNSURE, from the interval of a speedup; None without one.

    SAME: certainly within the tuner's indifference zone. FASTER, SLOWER: certainly on that side of 1, by more than the
    noise floor. UNSURE: neither can be said.
    """
    if interval is None:
        return None
    low, high = interval
    if low >= 1 - INDIFFERENCE and high <= 1 + INDIFFERENCE:
        return "SAME"
    if low > 1 + noise:
        return "FASTER"
    return "SLOWER" if high < 1 - noise else "UNSURE"


@dataclass(frozen=True)
class CandidateView:
    """A candidate with its statistics. roles: of ``winner``, ``baseline``, ``default``, those that it has."""

    record: Candidate
    roles: tuple[str, ...]
    median: float | None
    interval: tuple[float, float] | None
    ratio: float | None = None

    @property
    def role(self) -> str:
        """The one role that decides its mark."""
        return self.roles[0] if self.roles else "other"

    @property
    def label(self) -> str:
        return fmt.kernel(self.record.variant, self.record.config)

    @property
    def spread(self) -> float | None:
        """Half the width of the interval over the median."""
        return (self.interval[1] - self.interval[0]) / 2 / self.median if self.median and self.interval else None

    @property
    def rel_norm(self) -> float | None:
        return worst_of(e.rel_norm for e in self.record.errors)

    @property
    def worst(self) -> float | None:
        return worst_of(e.worst for e in self.record.errors)


def by_status(views: Iterable[CandidateView]) -> dict[str, int]:
    """How many candidates have each status."""
    found: Counter[str] = Counter(view.record.status for view in views)
    return {status: found[status] for status in STATUSES}


def worst_of(figures: Iterable[float | None]) -> float | None:
    """The largest error figure; an infinite one counts as such; None where there are none."""
    values = [math.inf if figure is None else figure for figure in figures]
    return max(values) if values else None


@dataclass(frozen=True)
class FinalistView:
    """One finalist of a race. ratios: its time over the winner's, in rounds that it ran in. word: how it compares."""

    variant: str
    config: dict[str, Any]
    key: str
    is_winner: bool
    is_baseline: bool
    median: float
    ratios: tuple[float, ...]
    interval: tuple[float, float]
    word: str

    @property
    def label(self) -> str:
        return fmt.kernel(self.variant, self.config)

    @property
    def ratio(self) -> float:
        return stats.median(self.ratios)


@dataclass(frozen=True)
class CaseView:
    """One case: its candidates (best first), decision and race. slowed: the device was slower beside it, in words."""

    op: str
    case: Case
    candidates: tuple[CandidateView, ...]
    result: Result | None
    finalists: tuple[FinalistView, ...]
    race: Race | None = None
    registry_note: str | None = None
    undecided: Undecided | None = None
    slowed: str | None = None

    @property
    def anchor(self) -> str:
        return f"{self.op}/{self.case.key}"

    @property
    def label(self) -> str:
        return fmt.case_label(self.case)

    @property
    def entry(self) -> Entry | None:
        return self.result.entry if self.result else None

    @property
    def word(self) -> str | None:
        return compare(self.entry.speedup_interval, self.noise) if self.entry else None

    @property
    def rounds(self) -> int:
        return len(self.race.rounds_s) if self.race else 0

    @property
    def noise(self) -> float:
        """Noise floor of the race."""
        return self.race.noise_floor if self.race else 0.0

    @property
    def warm_share(self) -> float | None:
        """The winner's time with warm caches over that with cold ones."""
        cold, warm = (self.entry.median_s, self.entry.warm_median_s) if self.entry else (None, None)
        return warm / cold if warm and cold else None

    @property
    def disturbed(self) -> str | None:
        """What disturbed the race, in words."""
        return disturbed(self.race.before, self.race.after) if self.race else None

    @property
    def conditions(self) -> list[str]:
        """The state of the device before and after the race, as far as it is known."""
        return conditions(self.race.before, self.race.after) if self.race else []

    @property
    def counts(self) -> dict[str, int]:
        """Candidates by status, those that occur."""
        return {status: count for status, count in by_status(self.candidates).items() if count}

    @property
    def roof_seconds(self) -> float | None:
        """Time at the ceiling that binds."""
        median, share = (self.entry.median_s, self.entry.share_of_bound) if self.entry else (None, None)
        return None if median is None or share is None else median * share

    @property
    def unit(self) -> tuple[float, str]:
        """One unit for all times of the case."""
        fastest = min((c.median for c in self.candidates if c.median), default=None)
        return fmt.time_unit((self.entry and self.entry.median_s) or fastest)


@dataclass(frozen=True)
class ErrorRow:
    """Numerical error of the candidates of one op, variant, dtype and output that were held against float64."""

    op: str
    variant: str
    dtype: str
    output: str
    rel_norm: float | None
    worst: float | None
    right: int
    wrong: int


@dataclass(frozen=True)
class Reason:
    """A distinct problem. Texts that differ only in numbers are one reason; ``text`` is the first of them."""

    status: str
    text: str
    count: int
    alike: int
    variants: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Headline:
    """The facts of the first screen. words: how many cases compare how with their best baseline."""

    cases: int
    compared: int
    words: dict[str, int]
    geometric_mean: float | None
    worst: CaseView | None


@dataclass(frozen=True)
class Report:
    """Everything that a tuning report shows. ops: the cases of each."""

    journal: JournalFile
    ops: Mapping[str, Sequence[CaseView]]
    registry_only: tuple[Entry, ...] = ()
    registry_notes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The device as the driver or the operating system reports it."""
        return str(self.journal.run.device.validity.get("name") or "unnamed device")

    @property
    def cases(self) -> list[CaseView]:
        return [case for cases in self.ops.values() for case in cases]

    @property
    def planned(self) -> int:
        """How many candidates the run was to try, never fewer than it did: plans change as a run goes."""
        done = len(self.candidates)
        return done if self.journal.end else max(done, self.journal.run.planned)

    @property
    def races(self) -> int:
        """How many cases had a race."""
        return sum(case.race is not None for case in self.cases)

    @property
    def candidates(self) -> list[CandidateView]:
        return [candidate for case in self.cases for candidate in case.candidates]

    @cached_property
    def headline(self) -> Headline:
        decided = [case for case in self.cases if case.entry]
        compared = [case for case in decided if case.entry and case.entry.speedup]
        speedups = {case.anchor: case.entry.speedup for case in compared if case.entry and case.entry.speedup}
        words = Counter(case.word for case in decided if case.word)
        mean = math.exp(sum(map(math.log, speedups.values())) / len(speedups)) if speedups else None
        return Headline(
            cases=len(decided),
            compared=len(compared),
            words={word: words[word] for word in ("FASTER", "SAME", "UNSURE", "SLOWER") if words[word]},
            geometric_mean=mean,
            worst=min(compared, key=lambda case: speedups[case.anchor], default=None),
        )

    @cached_property
    def error_rows(self) -> list[ErrorRow]:
        groups: defaultdict[tuple[str, str, str, str], list[tuple[Candidate, OutputError]]] = defaultdict(list)
        for view in self.candidates:
            record = view.record
            for figure in record.errors:
                groups[record.op, record.variant, record.case.dtype, figure.output].append((record, figure))
        rows = []
        for key, found in groups.items():
            right = [figure for record, figure in found if record.status != "wrong"]
            worst = (worst_of(f.rel_norm for f in right), worst_of(f.worst for f in right))
            rows.append(ErrorRow(*key, *worst, right=len(right), wrong=len(found) - len(right)))
        return rows

    @cached_property
    def status_counts(self) -> list[tuple[str, dict[str, int]]]:
        """Candidates by status for each op."""
        return [(op, by_status(c for case in cases for c in case.candidates)) for op, cases in self.ops.items()]

    @property
    def failures(self) -> list[CandidateView]:
        """Candidates that ended as none should, in the order of cases."""
        return [view for view in self.candidates if view.record.status in BAD]

    @property
    def noise(self) -> Noise | None:
        """The A/A test of the run, the last."""
        return next(reversed(self.journal.of(Noise)), None)

    @property
    def disturbed(self) -> list[CaseView]:
        """Cases whose race something disturbed."""
        return [case for case in self.cases if case.disturbed]

    @cached_property
    def reasons(self) -> list[Reason]:
        """Distinct problems, the most serious status and then the most frequent first."""
        groups: defaultdict[tuple[str, str], list[Candidate]] = defaultdict(list)
        for view in self.candidates:
            if view.record.status != "ok":
                text = view.record.problem or "no reason was recorded"
                groups[view.record.status, re.sub(r"\d[\d.]*(?:e[+-]?\d+)?", "#", text)].append(view.record)
        order = {status: place for place, status in enumerate((*BAD, "rejected", "skipped", "slow"))}
        rows = [
            Reason(
                status=status, text=found[0].problem or "no reason was recorded", example=found[0].key,
                count=len(found), alike=len({record.problem for record in found}),
                variants=tuple(dict.fromkeys(f"{record.op}/{record.variant}" for record in found)),
            )
            for (status, _), found in groups.items()
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (order[row.status], -row.count))


MEASURES = (
    ("clock", "clock_mhz", "MHz", 1.0),
    ("temperature", "temperature_c", "\u00b0C", 1.0),
    ("power", "power_w", "W", 1.0),
    ("processes per core", "load", "", 1.0),
    ("stolen CPU time", "steal", "%", 100.0),
)
"""What is told of Conditions: name, field, unit, factor."""


def conditions(before: Conditions, after: Conditions) -> list[str]:
    """``clock 1980 to 1965 MHz`` and so on, of what is known; why clocks are held down."""
    found = []
    for name, where, unit, factor in MEASURES:
        known = [value * factor for moment in (before, after) if (value := getattr(moment, where)) is not None]
        figures = [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in known]
        if figures:
            found.append(f"{name} {' to '.join(dict.fromkeys(figures))} {unit}".strip())
    if held := list(dict.fromkeys([*before.throttle, *after.throttle])):
        found.append(f"clocks held by {', '.join(held)}")
    return found


def _candidate_views(found: Sequence[Candidate], result: Result | None) -> tuple[CandidateView, ...]:
    winner_key = result.winner_key if result else None
    medians = {c.key: stats.median(c.samples_s) for c in found if c.samples_s}
    best = medians.get(winner_key) if winner_key else min(medians.values(), default=None)
    views = []
    for record in found:
        held = {"winner": record.key == winner_key, "baseline": record.baseline, "default": record.is_default}
        roles = tuple(role for role, holds in held.items() if holds)
        median = medians.get(record.key)
        interval = stats.bootstrap_interval(record.samples_s) if record.samples_s else None
        views.append(CandidateView(record, roles, median, interval, median / best if median and best else None))
    return tuple(
        sorted(views, key=lambda v: (v.median is None, v.median or 0.0, STATUSES.index(v.record.status), v.record.key))
    )


def _finalists(race: Race, result: Result | None, found: dict[str, Candidate]) -> tuple[FinalistView, ...]:
    if any(value is not None and value <= 0 for row in race.rounds_s for value in row):
        return ()
    winner = race.keys.index(result.winner_key) if result and result.winner_key in race.keys else 0
    finalists = []
    for place, key in enumerate(race.keys):
        record = found.get(key)
        times, best = race.pairs(place, winner)
        if not times:
            return ()
        low, high = stats.paired_ratio_interval(times, best)
        finalist = FinalistView(
            key=key, variant=record.variant if record else key, config=record.config if record else {},
            is_winner=place == winner, is_baseline=bool(record and record.baseline), median=stats.median(times),
            ratios=tuple(mine / its for mine, its in zip(times, best, strict=True)), interval=(low, high),
            word=compare((1 / high, 1 / low), race.noise_floor) or "",
        )  # fmt: skip
        finalists.append(finalist)
    return tuple(sorted(finalists, key=lambda finalist: (not finalist.is_winner, finalist.ratio, finalist.key)))


def build(journal: JournalFile, registry: RegistryFile | None = None) -> Report:
    """The view of a journal; with the registry, what it holds beyond this run or against it."""
    results, races = journal.results, journal.races
    groups: defaultdict[tuple[str, str], list[Candidate]] = defaultdict(list)
    cases: dict[tuple[str, str], Case] = {}
    for candidate in journal.candidates:
        key = (candidate.op, candidate.case.key)
        groups[key].append(candidate)
        cases.setdefault(key, candidate.case)
    for key, result in results.items():
        cases.setdefault(key, result.entry.case)
    entries = {(e.op, e.case.key): e for e in registry.entries} if registry else {}
    by_op: defaultdict[str, list[CaseView]] = defaultdict(list)
    left = journal.undecided
    ceilings = {ceiling.name: ceiling for ceiling in journal.ceilings}
    for key, case in cases.items():
        race, decided = races.get(key), results.get(key)
        view = CaseView(
            op=key[0], case=case, candidates=_candidate_views(groups[key], decided), result=decided, race=race,
            finalists=_finalists(race, decided, {c.key: c for c in groups[key]}) if race else (),
            registry_note=_registry_note(decided, entries.get(key)) if registry else None, undecided=left.get(key),
            slowed=slowed(race, ceilings) if race else None,
        )  # fmt: skip
        by_op[key[0]].append(view)
    other = registry is not None and registry.device.validity != journal.run.device.validity
    return Report(
        journal=journal,
        ops=by_op,
        registry_only=tuple(entry for key, entry in entries.items() if key not in cases),
        registry_notes=("The registry was made for another device than this journal.",) if other else (),
    )


def _registry_note(decided: Result | None, entry: Entry | None) -> str | None:
    """Where the registry disagrees with this run."""
    if decided is None:
        return None
    if entry is None:
        return "The registry has no entry for this case."
    if (entry.variant, entry.config) != (decided.entry.variant, decided.entry.config):
        return f"The registry holds another choice: {fmt.kernel(entry.variant, entry.config)}."
    return None
