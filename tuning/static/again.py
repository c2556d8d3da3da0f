"""Which recorded reports still hold, so that the table is recorded anew by compiling only what has changed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from griffin_kernels import architectures, catalog
from griffin_kernels.contract import config_key
from tuning.static import amd, code, compiling, nvidia, recorded, report, targets
from tuning.static.compile_request import CompileRequest
from tuning.static.kernel_digest import digest
from tuning.static.recorded import Recorded, StaticReport
from tuning.static.requests import launches_of
from tuning.static.targets import target

READERS = (amd, architectures, code, compiling, nvidia, report, targets)
"""Modules that make a report out of a launch."""


@functools.cache
def readers() -> str:
    """Digest (16 hex digits) of what reads the machine code."""
    found = hashlib.sha256()
    for module in READERS:
        found.update(Path(str(module.__file__)).read_bytes() + b"\0")
    return found.hexdigest()[:16]


def digests(request: CompileRequest) -> list[str]:
    """One for each launch of a request; see kernel_digest."""
    where, variant = target(request.target), catalog.variant(request.variant)
    launches = launches_of(variant, request.case, variant.parse_config(request.config), request.target)
    return [digest(launch, where) for _, launch in launches]


def table_of(reports: Iterable[StaticReport]) -> Recorded:
    """The table of reports that were made now, or are equal to what would be."""
    found = list(reports)
    variants = [catalog.variant(key) for key in sorted({f"{r.op}/{r.variant}" for r in found})]
    return Recorded(metadata.version("triton"), {v.key: v.source_hash for v in variants}, found, readers())


def divide(
    asked: Sequence[CompileRequest], path: Path = recorded.FILE
) -> tuple[list[CompileRequest], list[StaticReport]]:
    """(requests to compile, reports on the others as recorded). All are to be compiled where no table can be read."""
    known: dict[str, StaticReport] = {}
    with contextlib.suppress(OSError, msgspec.DecodeError):
        table = recorded.load(path)
        if (table.triton, table.readers) == (metadata.version("triton"), readers()):
            known = {found.code: found for found in table.reports}
    compile_these: list[CompileRequest] = []
    kept: list[StaticReport] = []
    for request in asked:
        wanted = digests(request) if known else []
        if not wanted or not known.keys() >= set(wanted):
            compile_these.append(request)
            continue
        op, _, variant = request.variant.partition("/")
        config = config_key(catalog.variant(request.variant).parse_config(request.config))
        facts = {"op": op, "variant": variant, "case": request.case.key, "config": config}
        kept += [msgspec.structs.replace(known[each], **facts) for each in wanted]
    return compile_these, kept
