"""What the paper's text says about its figures, held against series: pass, fail or cannot tell. Needs no PyTorch.

A statement is in our words. Where the text gives no number (*significantly*, *similar*), ``criterion`` says what counts
here. A ratio that is within a margin of what it must exceed decides nothing: predictions and measurements are not
better than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.presets import preset
from roofline.figures_records import FigureClaim, FigurePoint, FigureSeries, Judgement, Origin, Outcome
from roofline.figures_scan import LOOP

MARGINS: Mapping[Origin, float] = {"predicted": 0.02, "measured": 0.05}
"""Relative distance from a threshold within which nothing is decided. Both sides of a predicted ratio rest on the same
rates, whose errors mostly cancel; measured ones are medians of a few runs on a machine that others may use."""

MUCH, SIMILAR, STEADY = 1.2, 1.15, 1.05
"""Ratios that count as *significantly* more, and up to which times are *similar* and *the same*."""

Found = tuple[Outcome, str]

NOTHING: Found = ("cannot tell", "the series lack the points")


@dataclass(frozen=True)
class SeriesView:
    """The series of one device, origin and assumption."""

    series: Sequence[FigureSeries]

    @property
    def margin(self) -> float:
        return MARGINS[self.series[0].origin]

    def panels(self) -> list[str]:
        return list(dict.fromkeys(series.panel for series in self.series))

    def found(self, label: str, panel: str) -> FigureSeries | None:
        return next((s for s in self.series if (s.label, s.panel) == (label, panel)), None)

    def points(self, label: str, panel: str) -> dict[float, FigurePoint]:
        """Points with a value by x."""
        series = self.found(label, panel)
        return {point.x: point for point in series.points if point.y is not None} if series else {}

    def ratios(self, over: str, under: str, panel: str) -> dict[float, float]:
        """y of one label over y of another where both have one, by x in order."""
        upper, lower = self.points(over, panel), self.points(under, panel)
        both = sorted(set(upper) & set(lower))
        return {x: cast(float, upper[x].y) / cast(float, lower[x].y) for x in both}

    def decide(self, ratios: Iterable[float], least: float = 1.0) -> Outcome:
        """Whether all ratios are at least ``least``: fail where one is clearly not, pass where all clearly are."""
        known = list(ratios)
        if any(ratio * (1 + self.margin) < least for ratio in known):
            return "fail"
        clear = bool(known) and all(ratio >= least * (1 + self.margin) for ratio in known)
        return "pass" if clear else "cannot tell"

    def within(self, ratios: Iterable[float], most: float) -> Outcome:
        """Whether all ratios lie in [1 / most, most]."""
        known = list(ratios)
        if not known:
            return "cannot tell"
        return "pass" if all(1 / most <= ratio <= most for ratio in known) else "fail"


def both(*outcomes: Outcome) -> Outcome:
    """All of several: fail where one fails, pass where all pass."""
    if "fail" in outcomes:
        return "fail"
    return "pass" if outcomes and set(outcomes) == {"pass"} else "cannot tell"


def listed(what: str, ratios: Mapping[float, float]) -> str:
    """``Hawk / MQA 1.02 at 512, 1.08 at 1024``."""
    return f"{what} " + ", ".join(f"{ratio:.3g} at {x:g}" for x, ratio in ratios.items())


@dataclass(frozen=True)
class Statement:
    """A statement of the text. where: its section."""

    words: str
    where: str
    criterion: str
    judge: Callable[[SeriesView], Found]


def _more_throughput(view: SeriesView) -> Found:
    outcomes: list[Outcome] = []
    told = []
    for label in ("Hawk", "Griffin"):
        ratios = view.ratios(label, "MQA", "1b")
        if not ratios:
            return NOTHING
        outcomes += [view.decide(ratios.values()), view.decide([ratios[max(ratios)]], MUCH)]
        told.append(listed(f"{label} / MQA", ratios))
    return both(*outcomes), "; ".join(told)


def _hawk_above_griffin(view: SeriesView) -> Found:
    ratios = view.ratios("Hawk", "Griffin", "1b")
    return (view.decide(ratios.values()), listed("Hawk / Griffin", ratios)) if ratios else NOTHING


def _larger_batches(view: SeriesView) -> Found:
    batches = {label: view.points(label, "1b") for label in ("Hawk", "Griffin", "MQA")}
    xs = sorted(set.intersection(*(set(points) for points in batches.values())))
    if not xs:
        return NOTHING
    told = "; ".join(f"{label} {', '.join(str(points[x].batch) for x in xs)}" for label, points in batches.items())
    larger = all(batches[label][x].batch > batches["MQA"][x].batch for label in ("Hawk", "Griffin") for x in xs)
    return ("pass" if larger else "fail"), f"best batches at {', '.join(f'{x:g}' for x in xs)}: {told}"


def _local_cache(view: SeriesView) -> Found:
    series, points = view.found("Griffin", "1b"), view.points("Griffin", "1b")
    if series is None or not points:
        return NOTHING
    last, config = points[max(points)], preset(series.model)
    size = DTYPE_BYTES[series.dtype]
    share = last.batch * config.cache_bytes(last.seq, size) / (config.parameters() * size)
    told = f"batch {last.batch}: cache over weights {share:.3g}"
    return view.decide([share], 0.5), told


def _lower_latency(view: SeriesView) -> Found:
    outcomes, told = [], []
    for panel in ("4a", "4b"):
        for label in ("Hawk", "Griffin"):
            ratios = view.ratios("MQA", label, panel)
            if not ratios:
                return NOTHING
            last = max(ratios)
            outcomes.append(view.decide([ratios[last]]))
            told.append(f"({panel[-1]}) MQA / {label} {ratios[last]:.3g} at {last:g}")
    return both(*outcomes), "; ".join(told)


def _lead_grows(view: SeriesView) -> Found:
    outcomes, told = [], []
    for panel in ("4a", "4b"):
        for label in ("Hawk", "Griffin"):
            ratios = view.ratios("MQA", label, panel)
            if len(ratios) < 2:
                return NOTHING
            first, last = min(ratios), max(ratios)
            outcomes.append(view.decide([ratios[last] / ratios[first]]))
            told.append(listed(f"({panel[-1]}) MQA / {label}", {x: ratios[x] for x in (first, last)}))
    return both(*outcomes), "; ".join(told)


def _lead_grows_with_prompt(view: SeriesView) -> Found:
    outcomes, told = [], []
    for label in ("Hawk", "Griffin"):
        empty, long = (view.ratios("MQA", label, panel) for panel in ("4a", "4b"))
        shared = sorted(set(empty) & set(long))
        if not shared:
            return NOTHING
        grown = {x: long[x] / empty[x] for x in shared}
        outcomes.append(view.decide(grown.values()))
        told.append(listed(f"MQA / {label}, (b) over (a):", grown))
    return both(*outcomes), "; ".join(told)


def _griffin_like_hawk(view: SeriesView) -> Found:
    outcomes, told = [], []
    for panel in ("4a", "4b"):
        ratios = view.ratios("Griffin", "Hawk", panel)
        if not ratios:
            return NOTHING
        outcomes.append(view.within(ratios.values(), SIMILAR))
        told.append(listed(f"({panel[-1]}) Griffin / Hawk", ratios))
    return both(*outcomes), "; ".join(told)


def _sizes(view: SeriesView) -> list[tuple[str, dict[float, float], dict[float, float]]]:
    """(panel, MQA's step times, Griffin's) of figure 3, both relative to MQA's first, by length; smallest first."""
    found = []
    for panel in view.panels():
        mqa, griffin = (
            {x: cast(float, point.y) for x, point in view.points(label, panel).items()} for label in ("MQA", "Griffin")
        )
        if panel.startswith("3-") and mqa and set(mqa) == set(griffin):
            found.append((panel.removeprefix("3-"), mqa, griffin))
    return found


def _alike_when_short(view: SeriesView) -> Found:
    first = {size: griffin[min(griffin)] for size, _, griffin in _sizes(view)}
    if not first:
        return NOTHING
    told = ", ".join(f"{ratio:.3g} ({size})" for size, ratio in first.items())
    return view.within(first.values(), SIMILAR), f"Griffin / MQA at the shortest: {told}"


def _mqa_slows(view: SeriesView) -> Found:
    sizes = _sizes(view)
    if not sizes:
        return NOTHING
    steps = [
        mqa[later] / mqa[earlier]
        for _, mqa, _ in sizes
        for earlier, later in zip(sorted(mqa), sorted(mqa)[1:], strict=False)
    ]
    return view.decide(steps), "; ".join(listed(f"MQA {size}", mqa) for size, mqa, _ in sizes)


def _griffin_stays(view: SeriesView) -> Found:
    sizes = _sizes(view)
    if not sizes:
        return NOTHING
    spans = [max(griffin.values()) / min(griffin.values()) for _, _, griffin in sizes]
    told = "; ".join(listed(f"Griffin {size}", griffin) for size, _, griffin in sizes)
    if view.series[0].origin == "measured":  # a run of a few steps moves by more than a prediction does
        return ("pass" if max(spans) <= STEADY * (1 + view.margin) else "fail"), told
    return view.within(spans, STEADY), told


def _less_in_large_models(view: SeriesView) -> Found:
    slowed = {size: mqa[max(mqa)] / mqa[min(mqa)] for size, mqa, _ in _sizes(view)}
    if len(slowed) < 2:
        return "cannot tell", "one size alone was looked at"
    told = ", ".join(f"{ratio:.3g} ({size})" for size, ratio in slowed.items())
    small, *_, large = slowed.values()
    return view.decide([small / large]), f"MQA at the longest over the shortest: {told}"


def _large_griffin_slower(view: SeriesView) -> Found:
    found = next(((size, griffin) for size, _, griffin in _sizes(view) if size == "7b"), None)
    if found is None:
        return "cannot tell", "7B was not looked at"
    ratio = found[1][min(found[1])]
    return both(view.decide([ratio]), view.within([ratio], SIMILAR)), f"Griffin / MQA at the shortest {ratio:.3g}"


def _mqa_smaller(view: SeriesView) -> Found:
    told, smaller = [], []
    for panel in (panel for panel in view.panels() if panel.startswith("3-")):
        mqa, griffin = view.found("MQA", panel), view.found("Griffin", panel)
        if mqa and griffin:
            smaller.append(mqa.parameters < griffin.parameters)
            told.append(f"{mqa.model} {mqa.parameters / 1e9:.3g}, {griffin.model} {griffin.parameters / 1e9:.3g}")
    if not told:
        return NOTHING
    return ("pass" if all(smaller) else "fail"), f"billions of parameters: {'; '.join(told)}"


def _scan_ratios(view: SeriesView, label: str) -> dict[str, dict[float, float]]:
    """Time over the native scan's by dtype and length."""
    panels = [panel for panel in view.panels() if panel.startswith("8a-")]
    return {panel.removeprefix("8a-"): found for panel in panels if (found := view.ratios(label, "Native scan", panel))}


def _unless_bound(view: SeriesView, outcome: Outcome, undecided: Outcome) -> Outcome:
    """Of a comparison with the least time of the native scan, one of the outcomes decides nothing."""
    return "cannot tell" if view.series[0].assumption == LOOP and outcome == undecided else outcome


def _kernel_faster(view: SeriesView) -> Found:
    found = _scan_ratios(view, "Linear scan kernel")
    faster = {dtype: {x: 1 / ratio for x, ratio in ratios.items()} for dtype, ratios in found.items()}
    if not faster:
        return NOTHING
    told = "; ".join(listed(f"native / kernel, {dtype},", ratios) for dtype, ratios in faster.items())
    outcome = view.decide([ratio for ratios in faster.values() for ratio in ratios.values()], 2.5)
    return _unless_bound(view, outcome, "fail"), told


def _tree_slower(view: SeriesView) -> Found:
    found = _scan_ratios(view, "Associative scan")
    if not found:
        return NOTHING
    told = "; ".join(listed(f"associative / native, {dtype},", ratios) for dtype, ratios in found.items())
    outcome = view.decide([ratio for ratios in found.values() for ratio in ratios.values()])
    return _unless_bound(view, outcome, "pass"), told


NO_STEP: Found = ("cannot tell", "no training step was looked at")


def _step_shorter(view: SeriesView) -> Found:
    ratios = view.ratios("Linear scan kernel", "Native scan", "8b")
    if not ratios:
        return NO_STEP
    outcome = view.decide([1 / ratio for ratio in ratios.values()], 1 / 0.9)
    return _unless_bound(view, outcome, "fail"), listed("Hawk's step, kernel / native", ratios)


def _tree_step_longer(view: SeriesView) -> Found:
    ratios = view.ratios("Associative scan", "Native scan", "8b")
    if not ratios:
        return NO_STEP
    longer = _unless_bound(view, view.decide(ratios.values()), "pass")
    most: Outcome = "pass" if max(ratios.values()) <= 1.5 * (1 + view.margin) else "fail"
    return both(longer, _unless_bound(view, most, "fail")), listed("Hawk's step, associative / native", ratios)


STATEMENTS: Mapping[str, tuple[Statement, ...]] = {
    "1b": (
        Statement(
            "Hawk and Griffin reach a significantly higher throughput than the MQA Transformer",
            "5.2", f"above MQA at every length, {MUCH} times at the longest", _more_throughput,
        ),
        Statement("Hawk's throughput is above Griffin's", "5.2", "at every length", _hawk_above_griffin),
        Statement(
            "mainly because larger batches of them fit on the device",
            "5.2", "their best batch is larger than MQA's at every length", _larger_batches,
        ),
        Statement(
            "at a large batch Griffin's cache of local attention becomes comparable with the parameters",
            "5.2", "at the longest sample its cache is half of the weights or more", _local_cache,
        ),
    ),
    "3": (
        Statement("at the shortest length both train alike", "4.3", f"within {SIMILAR} times", _alike_when_short),
        Statement("the Transformer slows down as sequences grow", "4.3", "from each length to the next", _mqa_slows),
        Statement("Griffin's time remains the same", "4.3", f"longest over shortest at most {STEADY}", _griffin_stays),
        Statement(
            "the slow-down is larger in small models than in large ones",
            "4.3", "that of the smallest size above that of the largest", _less_in_large_models,
        ),
        Statement(
            "Griffin-7B trains slightly slower than the baseline on short sequences",
            "4.3", f"above it, by at most {SIMILAR} times", _large_griffin_slower,
        ),
        Statement("the MQA baseline has slightly fewer parameters", "4.3", "at every size", _mqa_smaller),
    ),
    "4": (
        Statement(
            "for long samples Hawk and Griffin have a lower latency than MQA", "5.2", "at the longest", _lower_latency
        ),
        Statement("their lead grows with the sample", "5.2", "from the shortest to the longest", _lead_grows),
        Statement("and with the prompt", "5.2", "(b) over (a), at every length", _lead_grows_with_prompt),
        Statement("Griffin's latency is like Hawk's", "5.2", f"within {SIMILAR} times", _griffin_like_hawk),
    ),
    "8": (
        Statement(
            "the kernel is nearly 3 times as fast as the native scan", "4.2", "2.5 times or more", _kernel_faster
        ),
        Statement("with it a training step of Hawk is 10 to 20% shorter", "4.2", "10% or more", _step_shorter),
        Statement("an associative scan is slower than the native one", "D.2", "at every length", _tree_slower),
        Statement(
            "with it a training step of Hawk is up to 50% longer", "D.2", "longer, by at most half", _tree_step_longer
        ),
    ),
}  # fmt: skip
"""What the text says about each figure, in our words (arXiv 2402.19427; sections 4.2, 4.3, 5.2 and D.2)."""


def claims(figure: str, series: Sequence[FigureSeries]) -> list[FigureClaim]:
    """The statements about a figure, each judged for every device, origin and assumption that there are series of."""
    groups: dict[tuple[str, Origin, str], list[FigureSeries]] = {}
    for one in series:
        groups.setdefault((one.device, one.origin, one.assumption), []).append(one)
    found = []
    for statement in STATEMENTS.get(figure, ()):
        judgements = []
        for (device, origin, assumption), members in groups.items():
            outcome, why = statement.judge(SeriesView(members))
            judgements.append(Judgement(device=device, origin=origin, assumption=assumption, outcome=outcome, why=why))
        found.append(
            FigureClaim(
                statement=statement.words, where=statement.where, criterion=statement.criterion, judgements=judgements
            )
        )
    return found
