"""Compiles candidates of many cases within a time limit, the most promising first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Console

from roofline.console import StatusLine, line
from roofline.units import clock_text
from tuning.predict.estimated_code import EstimatedCode
from tuning.predict.target_space import Reports, TargetSpace
from tuning.static.recorded import CompileRequest, StaticReport
from tuning.workers import compile_farm


@dataclass(frozen=True)
class Effort:
    """How much is compiled. per_case: candidates of a case, 0 for all. more: further ones where others spill or fail.

    until, more_until: seconds of the run after which no candidate of per_case, and none of more, is begun.
    """

    per_case: int
    until: float | None
    more: int = 0
    more_until: float = 0.0


EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {"quick": Effort(2, 150.0, 4, 200.0), "default": Effort(6, 440.0, 8, 520.0), "thorough": Effort(0, None)}
)
"""Efforts by the name of the budget. The default ends within ten minutes on two cores, whatever they are."""

NOTE_EVERY_S = 15.0
"""Seconds between lines about progress where there is no terminal."""


def compile_rounds(
    spaces: Sequence[TargetSpace], estimates: EstimatedCode, effort: Effort, began: float, console: Console, jobs: int
) -> tuple[Reports, bool]:
    """(reports by key, whether all that was meant to be compiled was); every candidate that can be is predicted.

    Every case's best guess goes before the second best of any. Half way the estimates learn from what was compiled.
    """
    reports: dict[str, StaticReport | str] = {}

    def compile_next(chosen: Sequence[TargetSpace], size: int, until: float | None) -> Sequence[str]:
        """Compile the next candidates of some cases and predict them; the keys of what was wanted."""
        wanted = _next(chosen, size, reports)
        left = None if until is None else max(0.0, until - (time.monotonic() - began))
        reports.update(compile_told(wanted, console, jobs, left))
        for space in spaces:
            space.take_reports(reports)
        return list(wanted)

    most = effort.per_case or max((len(space.candidates) for space in spaces), default=0)
    complete = True
    for size in (most - most // 2, most // 2):
        wanted = compile_next(spaces, size, effort.until)
        estimates.learn(found for key in wanted if isinstance(found := reports.get(key), StaticReport))
        for space in spaces:
            space.guess_again(estimates)
        complete = all(key in reports for key in wanted)
        if not complete:
            break  # time is up
    for _ in range(effort.more):
        spilling = [space for space in spaces if not (best := space.ranked()[:1]) or best[0].predicted.spill_bytes]
        if time.monotonic() - began >= effort.more_until or not compile_next(spilling, 1, effort.more_until):
            break
    return reports, complete


def _next(spaces: Sequence[TargetSpace], size: int, reports: Reports) -> dict[str, CompileRequest]:
    """The next ``size`` candidates of every case, the first of each before the second of any."""
    ordered = [(space, space.order()) for space in spaces]
    found: dict[str, CompileRequest] = {}
    for rank in range(size):
        for space, candidates in ordered:
            for key, order in space.requests(candidates[rank : rank + 1]):
                if key not in reports:
                    found.setdefault(key, order)
    return found


def compile_told(
    wanted: Mapping[str, CompileRequest], console: Console, jobs: int = 0, seconds: float | None = None
) -> dict[str, StaticReport | str]:
    """Compile within ``seconds``, and say how far it is. jobs: processes, one per usable core for 0."""
    reports: dict[str, StaticReport | str] = {}
    if not wanted:
        return reports
    status, told, first = StatusLine(console), time.monotonic(), time.monotonic()
    for key, report in compile_farm.compile_all(list(wanted.items()), jobs, seconds):
        reports[key] = report
        now = time.monotonic()
        left = (now - first) / len(reports) * (len(wanted) - len(reports))
        if seconds is not None:
            left = min(left, max(0.0, seconds - (now - first)))
        text = f"compiled {len(reports)} of {len(wanted)} kernels, about {clock_text(left)} left"
        if console.is_terminal:
            status(text)
        elif now - told > NOTE_EVERY_S:
            told = now
            line(console, text)
    status.clear()
    if len(reports) < len(wanted):
        done = f"{len(reports)} of {len(wanted)} kernels compiled"
        line(console, f"time is up: {done}, the best guesses of each case first")
    return reports
