"""The static table: compiled in worker processes, printed, and recorded anew by compiling only what has changed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from griffin_kernels import architectures, catalog
from griffin_kernels.contract import config_key
from tuning.static import amd, code, compiling, nvidia, recorded, report, targets
from tuning.static.kernel_digest import digest
from tuning.static.recorded import CompileRequest, Recorded, StaticReport
from tuning.static.requests import launches_of
from tuning.static.targets import target
from tuning.workers import compile_farm

READERS = (amd, architectures, code, compiling, nvidia, report, targets)
"""Modules that make a report out of a launch."""


@functools.cache
def readers() -> str:
    """Digest (16 hex digits) of what reads the machine code."""
    found = hashlib.sha256()
    for module in READERS:
        found.update(Path(str(module.__file__)).read_bytes() + b"\0")
    return found.hexdigest()[:16]


def record(reports: Sequence[StaticReport]) -> None:
    """Save reports that were made now, or are equal to what would be."""
    variants = [catalog.variant(key) for key in sorted({f"{r.op}/{r.variant}" for r in reports})]
    sources = {variant.key: variant.source_hash for variant in variants}
    recorded.save(Recorded(metadata.version("triton"), sources, list(reports), readers()))


def divide(
    asked: Sequence[CompileRequest], path: Path = recorded.FILE
) -> tuple[list[CompileRequest], list[StaticReport]]:
    """(requests to compile, reports on the others as recorded). All are to be compiled where no table can be read."""
    known: dict[str, StaticReport] = {}
    with contextlib.suppress(OSError, msgspec.DecodeError):
        had = recorded.load(path)
        if (had.triton, had.readers) == (metadata.version("triton"), readers()):
            known = {found.code: found for found in had.reports}
    compile_these: list[CompileRequest] = []
    kept: list[StaticReport] = []
    for request in asked:
        where, variant = target(request.target), catalog.variant(request.variant)
        config = variant.parse_config(request.config)
        launches = launches_of(variant, request.case, config, request.target) if known else []
        wanted = [digest(launch, where) for _, launch in launches]
        if not wanted or not known.keys() >= set(wanted):
            compile_these.append(request)
            continue
        facts = {"op": variant.op, "variant": variant.name, "case": request.case.key, "config": config_key(config)}
        kept += [msgspec.structs.replace(known[each], **facts) for each in wanted]
    return compile_these, kept


class Failure(msgspec.Struct, frozen=True):
    """A request that could not be compiled, with the compiler's words."""

    request: CompileRequest
    reason: str


class Answers(msgspec.Struct):
    """Reports in the order of the requests, one per launch, and what could not be compiled."""

    reports: list[StaticReport]
    failures: list[Failure]


def compile_all(requests: Sequence[CompileRequest], jobs: int = 0) -> Answers:
    """Compile every request in processes without TRITON_INTERPRET, as one that has it cannot compile.

    jobs: processes, one per usable core for 0. One request may take half an hour, however many launches it has.
    """
    found = list(compile_farm.compile_all(list(enumerate(requests)), jobs, timeout=1800.0))
    found.sort(key=lambda pair: pair[0])
    failures = [Failure(requests[index], why) for index, why in found if isinstance(why, str)]
    return Answers([report for _, report in found if isinstance(report, StaticReport)], failures)


def show(reports: Iterable[StaticReport]) -> None:
    """Print one row per kernel and target; red where a claim is broken."""
    shown = Table()
    for each in reports:
        per_element, special = each.instructions_per_element, each.specials_per_element
        cells = {
            **{name: getattr(each, name) for name in ("op", "variant", "case", "kernel", "target")},
            "registers": str(each.registers),
            "spills B": str(each.spill_bytes),
            "shared B": str(each.shared_bytes),
            "instr/elt": "-" if per_element is None else f"{per_element:.1f}",
            "special/elt": "-" if special is None else f"{special:.1f}",
            "loop": str(each.loop_instructions),
            "loads by bits": " ".join(f"{count}x{bits}" for bits, count in each.load_bits.items()),
            "matrix": str(each.mix["matrix"]),
            "waits": str(each.waits),
            "async": str(each.mix["async_copies"]),
            "shuffles": str(each.mix["shuffles"]),
            "warnings of ptxas": "; ".join(each.warnings),
            "broken claims": "; ".join(each.broken),
        }
        if not shown.columns:
            for name in cells:
                shown.add_column(name)
        shown.add_row(*cells.values(), style="red" if each.broken else None)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)
