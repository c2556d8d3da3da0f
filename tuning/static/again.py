"""Which recorded reports still hold, so that the table is recorded anew by compiling only what has changed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from griffin_kernels import architectures, catalog, launch
from griffin_kernels.contract import Variant, config_key
from tuning.static import amd, code, compiling, describe, nvidia, recorded, report, targets
from tuning.static.recorded import Recorded, StaticReport
from tuning.static.requests import Request

READERS = (amd, architectures, code, compiling, describe, launch, nvidia, report, targets)
"""Modules that make a report out of a variant, besides the variant's own."""


@functools.cache
def _readers() -> bytes:
    digest = hashlib.sha256()
    for module in READERS:
        digest.update(Path(str(module.__file__)).read_bytes() + b"\0")
    return digest.digest()


def origin(variant: Variant) -> str:
    """Digest (16 hex digits) of a variant's sources, of its op's contract and of what reads its machine code."""
    contract = sys.modules[f"griffin_kernels.ops.{variant.op}.op"]
    digest = hashlib.sha256(variant.source_hash.encode() + _readers())
    digest.update(Path(str(contract.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def with_origins(reports: Iterable[StaticReport]) -> Recorded:
    """The table of reports that were made now."""
    found = list(reports)
    variants = [catalog.variant(key) for key in sorted({f"{r.op}/{r.variant}" for r in found})]
    return Recorded(
        metadata.version("triton"),
        {variant.key: variant.source_hash for variant in variants},
        found,
        {variant.key: origin(variant) for variant in variants},
    )


def divide(asked: Sequence[Request], path: Path = recorded.FILE) -> tuple[list[Request], list[StaticReport]]:
    """(requests to compile, reports on the others as recorded). All are to be compiled where no table can be read."""
    origins = {key: origin(catalog.variant(key)) for key in {request.variant for request in asked}}
    known: dict[tuple[str, ...], list[StaticReport]] = {}
    with contextlib.suppress(OSError, msgspec.DecodeError):
        table = recorded.load(path)
        if table.triton == metadata.version("triton"):
            for found in table.reports:
                key = f"{found.op}/{found.variant}"
                if key in origins and table.origins.get(key) == origins[key]:
                    known.setdefault((key, found.case, found.config, found.target), []).append(found)
    compile_these: list[Request] = []
    kept: list[StaticReport] = []
    for request in asked:
        config = config_key(catalog.variant(request.variant).parse_config(request.config))
        reports = known.get((request.variant, request.case, config, request.target))
        kept += reports or []
        compile_these += [] if reports else [request]
    return compile_these, kept
