"""Packs a journal of ``griffin tune --budget thorough``: one packed journal for each case that was tried to the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from griffin_kernels import catalog, errors
from griffin_kernels import device as devices
from griffin_kernels.device import Device
from tuning.plan import planner
from tuning.plan.planner import Job
from tuning.record import journal
from tuning.record.journal_records import Candidate, Run
from tuning.replay.packed import PACK_VERSION, MeasuredPoint, Packed


def pack(path: Path) -> list[Packed]:
    """Every op and case of a journal of which this package's every candidate was tried, with its source as it is.

    JournalError where there is none.
    """
    records = journal.read(path)
    run = next((record for record in records if isinstance(record, Run)), None)
    if run is None:
        raise errors.JournalError(f"journal {path} does not begin with a run; it cannot be packed")
    tried = {record.key: record for record in records if isinstance(record, Candidate) and record.status != "skipped"}
    device = _device(run.device.validity)
    ops = tuple(name for name in catalog.ops() if any(c.op == name for c in tried.values()))
    jobs = planner.make(planner.Options(ops, budget="thorough"), device) if ops else []
    packs = [_packed(run, job, device, tried) for job in jobs]
    found = [packed for packed in packs if packed is not None and any(point.timed for point in packed.points)]
    if not found:
        raise errors.JournalError(
            f"journal {path} has no case of which every candidate was tried with the source as it is now; "
            "`griffin tune --budget thorough --strategy exhaustive` makes such a journal"
        )
    return found


def _device(validity: Mapping[str, Any]) -> Device:
    """The device of a journal: this one, or one with the same facts."""
    here = devices.detect()
    for candidate in (here, devices.detect("cpu")):
        if candidate.validity() == validity:
            return candidate
    kept = {k: v for k, v in validity.items() if k not in ("memory_gib", "mig")}
    memory = validity.get("memory_gib", 0) * 2**30
    try:
        return Device(**kept, memory_bytes=memory, details=(("mig", validity.get("mig", False)),))
    except TypeError as error:
        raise errors.JournalError(f"the journal's device is not described as this package does: {error}") from None


def _packed(run: Run, job: Job, device: Device, tried: Mapping[str, Candidate]) -> Packed | None:
    """One case, its points in the order of the plan; None where a candidate is missing."""
    planned = job.competitors
    found = [tried.get(p.key(job.case, device)) for p in planned]
    whole = [c for c, p in zip(found, planned, strict=True) if c is not None and c.source_hash == p.variant.source_hash]
    if not planned or len(whole) < len(planned):
        return None
    return Packed(
        schema_version=PACK_VERSION,
        op=job.op.name,
        case=job.case,
        device=run.device,
        date=run.date,
        source=f"journal of run {run.run_id}: {run.command}",
        source_hashes={c.variant: c.source_hash for c in whole},
        default=next((i for i, p in enumerate(planned) if p is job.default), None),
        interleaved=False,
        points=[
            MeasuredPoint(
                variant=c.variant,
                config=c.config,
                status=c.status,
                problem=c.problem,
                samples_s=c.samples_s,
                seconds_spent=c.seconds_spent,
            )
            for c in whole
        ],
    )
