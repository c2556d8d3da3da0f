"""The tab *Your model*: transformers' RecurrentGemma against the same one accelerated, from ``griffin bench model``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels.errors import ReportError
from reports import format as fmt
from reports.page import Tab, render
from reports.sources import SourceFile, source
from roofline.model_bench_records import PARTS, PHASES, ModelBench, PhaseRecord, Side, read


def load_model_bench(path: Path) -> tuple[SourceFile, ModelBench, str]:
    """The record at ``path`` and its JSON on one line. Raises ReportError where it cannot be used."""
    found = read(path)
    for phase in found.phases:
        times = [phase.ratio, *phase.interval, *(side.median_s for side in (phase.original, phase.accelerated))]
        if not all(0 < value < math.inf for value in times):
            raise ReportError(f"{path} cannot be shown: {phase.phase} has a time that is not above 0; make it again")
        if any(side.parts_s and set(side.parts_s) != set(PARTS) for side in (phase.original, phase.accelerated)):
            raise ReportError(f"{path} cannot be shown: {phase.phase} lacks parts; make it again")
    return source(path, path.read_bytes()), found, msgspec.json.encode(found).decode()


def model_bench_tab(found: ModelBench, found_in: SourceFile, facts: Mapping[str, Any]) -> Tab:
    """The tab of a record. facts: of the device of the report that it is shown in."""
    validity = found.device.validity
    body = render(
        "model_bench.html.j2", bench=found, source=found_in, device=validity.get("name"),
        elsewhere=validity != facts, date=found.device.provenance.get("date"), phases=PHASES, parts=PARTS,
        tokens=found.tokens_told, verdict=_verdict, share=_share,
        length=_length, parted=[p for p in found.phases if p.original.parts_s and p.accelerated.parts_s],
        disturbed=any(side.disturbed for p in found.phases for side in (p.original, p.accelerated)),
    )  # fmt: skip
    return Tab("model", "Your model", body)


def _verdict(phase: PhaseRecord) -> str:
    """``1.52x as fast``, or that the two are level."""
    low, high = phase.interval
    return "as fast as before" if low <= 1 <= high else f"{fmt.ratio(phase.ratio)} as fast"


def _share(side: Side, part: str) -> float:
    """A part's share of its run."""
    return side.parts_s[part] / sum(side.parts_s.values())


def _length(phase: PhaseRecord, side: Side) -> float:
    """A run's time over the longer of the two."""
    return sum(side.parts_s.values()) / max(sum(s.parts_s.values()) for s in (phase.original, phase.accelerated))
