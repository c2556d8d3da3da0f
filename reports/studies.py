"""Reads a roofline study for a report, and refuses one whose numbers cannot be drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from griffin_kernels.errors import ReportError
from reports.sources import SourceFile, source
from roofline.study_records import FILE_NAME, Study, read


def beside(journal: Path) -> Path | None:
    """The study that lies in the journal's folder, if there is one."""
    path = journal.with_name(FILE_NAME)
    return path if path.exists() else None


def load_study(path: Path) -> tuple[SourceFile, Study, str]:
    """The study at ``path`` and its JSON on one line. Raises ReportError where it cannot be used."""
    study = read(path)
    problem = next(_problems(study), None)
    if problem is not None:
        raise ReportError(f"{path} cannot be shown: {problem}; make it again")
    return source(path, path.read_bytes()), study, msgspec.json.encode(study).decode()


def _problems(study: Study) -> Iterator[str]:
    """What no study that was measured holds."""
    for kernel in study.kernels:
        if kernel.bound not in kernel.floors_s:
            yield f"kernel {kernel.op} {kernel.case} is bound by {kernel.bound!r}, which is none of its floors"
        if not all(map(_positive, (kernel.measured_s, kernel.share, *kernel.floors_s.values()))):
            yield f"kernel {kernel.op} {kernel.case} has a time that is not above 0"
    for row in study.fusion:
        if not all(map(_positive, (row.fused_bytes, row.unfused_bytes, row.fused_s, row.unfused_s))):
            yield f"fusion of {row.what} {row.case} has a size or time that is not above 0"
    for page in study.pages:
        for found in page.passes:
            name = f"{found.model}, {found.phase} at batch {found.batch} and {found.seq} tokens, on {page.device}"
            if not all(map(_positive, (found.floor_s, found.predicted_s, found.tokens_per_s))):
                yield f"{name} has a time or rate that is not above 0"
            if found.measured is not None:
                if len(found.measured.parts_s) != len(found.parts):
                    yield f"{name} has {len(found.parts)} parts, {len(found.measured.parts_s)} of them timed"
                if not _positive(found.measured.median_s):
                    yield f"{name} has a measured time that is not above 0"
        if not all(_positive(point.predicted_s) and _positive(point.floor_s) for point in page.grid):
            yield f"the grid of {page.device} has a time that is not above 0"


def _positive(value: float) -> bool:
    return 0 < value < math.inf
