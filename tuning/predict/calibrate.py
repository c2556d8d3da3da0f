"""Calibrates the time model: compares it with measured journals and fits its constants.

Ranks count most, as predictions choose between candidates: Spearman's correlation within each case, and the *regret*
of the model's best N: how much slower the fastest of these was measured to be than the fastest of all. Constants are
fitted by least squares on log time, one constant after the other over a grid that narrows; a constant that no
measurement depends on keeps its value.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pandas as pd

from griffin_kernels import catalog, errors
from griffin_kernels.case import Case
from griffin_kernels.datasheet import find
from tuning.predict import time_model
from tuning.predict.launch_work import Work
from tuning.predict.target_space import Reports, compiled, described, requests
from tuning.predict.time_model import ASSUMED, Constants, Machine
from tuning.record import journal_records
from tuning.static.recorded import CompileRequest, StaticReport

Compile = Callable[[Mapping[str, CompileRequest]], Reports]
"""Reports by key of what to compile."""

TOPS = (1, 5, 10)
"""Sizes of the model's best for which regret is told."""

BOUNDS: Mapping[str, tuple[float, float]] = {
    "launch_s": (2e-7, 5e-5),
    "latency_s": (1e-7, 5e-6),
    "dram_reach": (0.3, 1.0),
    "cache_reach": (0.05, 2.0),
    "matrix_share": (0.1, 1.5),
    "issue_reach": (0.1, 1.0),
    "dependent_cycles": (0.25, 16.0),
}
"""Where a fit looks: beyond these a constant would no longer mean what its name says."""

STEPS = (2.0, 1.4, 1.15, 1.05, 1.02, 1.005)
"""Factors that a constant is multiplied and divided by, the coarse ones first."""

MOST_ROUNDS = 60
"""Of one step size over all constants; each round improves the fit, or is the last."""


@dataclass(frozen=True)
class Sample:
    """A measured candidate: what its steps do, their machine code by key, and the median of its times."""

    op: str
    case: Case
    steps: tuple[Work, ...]
    code: Mapping[str, StaticReport]
    measured_s: float

    def predict(self, where: Machine, constants: Constants) -> float:
        """Seconds that the model expects."""
        return time_model.predict(
            self.steps, lambda work: self.code[work.key], where, self.case.dtype, constants
        ).seconds


class CaseFit(msgspec.Struct, frozen=True):
    """The model at one op and case. spearman: None for fewer than three candidates.

    regret: by size of the model's best. off: median of predicted over measured time.
    """

    op: str
    case: str
    candidates: int
    spearman: float | None
    regret: dict[int, float]
    off: float


class Calibration(msgspec.Struct, frozen=True):
    """What a calibration found. before, after: with the constants that it began with, and with the fitted ones.

    error_before, error_after: root mean square of log(predicted / measured). unused: what was measured and says
    nothing here, with the reason and how often.
    """

    sku: str
    samples: int
    constants: Constants
    error_before: float
    error_after: float
    before: list[CaseFit]
    after: list[CaseFit]
    unused: dict[str, int]


def calibrate(
    journal: Iterable[journal_records.Record],
    compiler: Compile,
    sku: str | None = None,
    constants: Constants | None = None,
) -> Calibration:
    """Fit the constants to the Triton candidates that journals measured on one GPU.

    sku: of the GPU, where its driver's name does not tell. constants: to begin with, the SKU's without any.
    Raises JournalError where nothing can be learnt from them.
    """
    lines = list(journal)
    where = time_model.machine(sku or _sku(lines))
    constants = constants or where.constants
    found, unused = samples(lines, where, compiler)
    if len(found) < 3:
        why = "; ".join(f"{count} {reason}" for reason, count in unused.items()) or "they hold no candidates"
        raise errors.JournalError(f"the journals have {len(found)} measured Triton candidates, 3 are needed: {why}")
    fitted = fit(found, where, constants)
    old, new = ((error(found, where, each), fit_of_cases(found, where, each)) for each in (constants, fitted))
    return Calibration(where.sheet.sku, len(found), fitted, old[0], new[0], old[1], new[1], unused)


def _sku(lines: Iterable[journal_records.Record]) -> str:
    """The SKU that the journals are of."""
    facts = [line.device.validity for line in lines if isinstance(line, journal_records.Run)]
    names = sorted({str(fact.get("name")) for fact in facts})
    if not names:
        raise errors.JournalError("the journals do not say which device they are of: their first line is missing")
    sheets = {sheet.sku for name in names if (sheet := find(name)) is not None}
    if len(sheets) == 1:
        return sheets.pop()
    if len(names) > 1:
        raise errors.JournalError(f"journals of several devices cannot be fitted together: {', '.join(names)}")
    raise errors.JournalError(
        f"{names[0]} has no datasheet, which the model needs; journals of a GPU that has one work, or name its SKU"
    )


def samples(
    lines: Iterable[journal_records.Record], where: Machine, compiler: Compile
) -> tuple[list[Sample], dict[str, int]]:
    """(measured Triton candidates of the sources here, what could not be used: reason -> how often)."""
    unused: Counter[str] = Counter()
    measured: list[tuple[journal_records.Candidate, list[Work]]] = []
    wanted: dict[str, CompileRequest] = {}
    newest = {line.key: line for line in lines if isinstance(line, journal_records.Candidate)}
    for line in newest.values():
        if not line.variant.startswith("triton.") or line.status not in ("ok", "slow") or not line.samples_s:
            continue
        try:
            variant = catalog.variant(f"{line.op}/{line.variant}")
            config = variant.parse_config(line.config)
        except (errors.UnknownOpError, errors.UnknownVariantError, errors.ConfigError):
            unused["are of kernels that are not here"] += 1
            continue
        if line.source_hash and line.source_hash != variant.source_hash:
            unused["are of kernels that have changed since"] += 1
            continue
        steps = described(variant, catalog.op(line.op), line.case, config, where.arch)
        measured.append((line, steps))
        wanted |= requests(variant, line.case, line.config, steps, where.arch)
    reports = compiler(wanted)
    found = []
    for line, steps in measured:
        code = compiled(steps, reports, where)
        if not isinstance(code, dict):
            unused["do not compile here, or do not fit the device by the model's account"] += 1
            continue
        found.append(Sample(line.op, line.case, tuple(steps), code, statistics.median(line.samples_s)))
    return found, dict(unused)


def error(found: Sequence[Sample], where: Machine, constants: Constants) -> float:
    """Root mean square of log(predicted / measured)."""
    squares = [math.log(sample.predict(where, constants) / sample.measured_s) ** 2 for sample in found]
    return math.sqrt(statistics.fmean(squares))


def fit(found: Sequence[Sample], where: Machine, constants: Constants = ASSUMED) -> Constants:
    """Constants that come closest in log time, each within BOUNDS; a coordinate search, coarse to fine."""
    best, least = constants, error(found, where, constants)
    for step in STEPS:
        for _ in range(MOST_ROUNDS):
            before = least
            for name, (low, high) in BOUNDS.items():
                for factor in (step, 1 / step):
                    value = min(high, max(low, getattr(best, name) * factor))
                    tried = msgspec.structs.replace(best, **{name: value})
                    off = error(found, where, tried)
                    if off < least * (1 - 1e-9):
                        best, least = tried, off
                        break
            if least >= before * (1 - 1e-6):
                break
    return best


def fit_of_cases(found: Sequence[Sample], where: Machine, constants: Constants) -> list[CaseFit]:
    """Rank correlation and regret of the model at every op and case."""
    groups: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.op, sample.case.key].append(sample)
    rows = []
    for (op, case), group in groups.items():
        expected = [sample.predict(where, constants) for sample in group]
        measured = [sample.measured_s for sample in group]
        ranks = spearman(expected, measured) if len(group) >= 3 else None
        regrets = {top: regret(expected, measured, top) for top in TOPS}
        off = statistics.median(e / m for e, m in zip(expected, measured, strict=True))
        rows.append(CaseFit(op, case, len(group), ranks, regrets, off))
    return rows


def regret(expected: Sequence[float], measured: Sequence[float], top: int) -> float:
    """How much slower than the fastest of all the fastest of the ``top`` best predicted ones is: 0.1 is 10%."""
    order = sorted(range(len(expected)), key=lambda index: expected[index])
    return min(measured[index] for index in order[:top]) / min(measured) - 1


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 where one side has no order at all."""
    found = float(pd.DataFrame({"left": left, "right": right}).corr("spearman").iloc[0, 1])
    return 0.0 if math.isnan(found) else found
