"""A journal in formats that other tools read: CSV, and the results format that auto-tuners share, T4.

T4 is Kernel Tuner's output format (github.com/KernelTuner/kernel_tuner, kernel_tuner/schema/T4/1.0.0): one file for
one kernel on one problem, so here one file for each op and case. Its times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from roofline import stats, tables
from tuning.record.journal import first_run
from tuning.record.journal_records import Candidate, Race, Record, Result, place_of

T4_VERSION = "1.0.0"
"""Version of the T4 schemas that are followed."""

_INVALIDITY = {
    "ok": "correct",
    "slow": "correct",
    "wrong": "correctness",
    "timeout": "timeout",
    "rejected": "constraints",
}
"""T4's word for a status; what is not here died in compiling or in running."""


def _latest(records: Sequence[Record]) -> list[Candidate]:
    """The candidates of a journal in order; of one that was tried again, the last record."""
    return list({record.key: record for record in records if isinstance(record, Candidate)}.values())


def _raced(records: Sequence[Record]) -> dict[str, list[float]]:
    """Samples of the final race by candidate; a later race of a case counts."""
    found: dict[str, list[float]] = {}
    for race in (record for record in records if isinstance(record, Race)):
        found |= {key: race.times(i) for i, key in enumerate(race.keys)}
    return found


def to_csv(records: Sequence[Record]) -> str:
    """One line for each candidate. Times in seconds; low_s and high_s are the 95% interval of the median."""
    raced = _raced(records)
    # of two decisions on a case the last counts
    winners = set({place_of(r.entry): r.winner_key for r in records if isinstance(r, Result)}.values())
    candidates = _latest(records)
    dims = list(dict.fromkeys(name for c in candidates for name in c.case.dims))
    rows = []
    for c in candidates:
        low, high = stats.bootstrap_interval(c.samples_s) if c.samples_s else (None, None)
        rows.append(
            {
                "op": c.op,
                "case": c.case.key,
                "variant": c.variant,
                "config": json.dumps(c.config),
                "dtype": c.case.dtype,
                "flags": " ".join(c.case.flags),
                **{f"size_{name}": c.case.dims.get(name) for name in dims},
                "baseline": c.baseline,
                "default": c.is_default,
                "winner": c.key in winners,
                "status": c.status,
                "stage": c.stage,
                "problem": c.problem,
                "samples": len(c.samples_s),
                "median_s": stats.median(c.samples_s) if c.samples_s else None,
                "low_s": low,
                "high_s": high,
                "race_median_s": stats.median(raced[c.key]) if raced.get(c.key) else None,
                "error_rel_norm": max((e.rel_norm for e in c.errors if e.rel_norm is not None), default=None),
                "seconds_spent": c.seconds_spent,
                "source_hash": c.source_hash,
            }
        )
    return tables.to_csv(rows)


def t4(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """T4 documents by file name: ``metadata.json``, and ``<op>--<case>.json`` with the results of one op and case.

    Candidates that were skipped never ran and have no result.
    """
    run, raced = first_run(records), _raced(records)
    metadata: dict[str, Any] = {}
    if run is not None:
        facts = run.device.provenance
        packages = [f"{name}=={facts[name]}" for name in ("torch", "triton", "numba") if name in facts]
        system = str(facts.get("system", "unknown"))
        metadata = {
            "hardware": {"hardware_description": [run.device.validity], "operating_system": system},
            "environment": {"device_query": facts, "requirements": packages},
        }
    documents: dict[str, dict[str, Any]] = {"metadata.json": {"schema_version": T4_VERSION, "metadata": metadata}}
    for c in _latest(records):
        if c.status == "skipped":
            continue
        name = f"{c.op}--{c.case.key}.json"
        document = documents.setdefault(name, {"schema_version": T4_VERSION, "results": []})
        died = "compile" if c.stage == "compile" else "runtime"
        # the journal has no finer account of the rest: compiling, checking and waiting together
        rest = max(0.0, c.seconds_spent - sum(c.samples_s))
        document["results"].append(
            {
                "timestamp": run.date if run else "",
                "configuration": {"variant": c.variant, **c.config},
                "objectives": ["time"],
                "times": {"runtimes": [1e3 * sample for sample in c.samples_s], "framework": 1e3 * rest},
                "invalidity": _INVALIDITY.get(c.status, died),
                "correctness": 1.0 if c.status in ("ok", "slow") else 0.0,
                "measurements": [
                    {"name": name, "value": 1e3 * stats.median(samples), "unit": "ms"}
                    for name, samples in (("time", c.samples_s), ("race_time", raced.get(c.key)))
                    if samples
                ],
            }
        )
    return documents
