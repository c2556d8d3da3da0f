"""A synthetic registry of predictions, and the file of candidates beside it, for tests that compile nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.records import SCHEMA_VERSION, Entry, RegistryFile
from tests import journals
from tuning.predict.predictor import PREDICTIONS_VERSION, Predicted, PredictionsFile
from tuning.predict.target_space import CandidateRecord
from tuning.predict.time_model import Constants, Prediction, StepPrediction

CASES = [case for op, case in journals.CASES if op == "linear_scan"]
CONFIG = {"block_t": 64, "num_warps": 4}


def entry(case: Case = CASES[0], **facts: object) -> Entry:
    """A predicted winner."""
    made = Entry(
        op="linear_scan",
        case=case,
        variant="triton.chunked",
        config=CONFIG,
        status="predicted",
        source_hash="3f2a9c0d1e4b5867",
        date="2026-11-20T08:14:00+00:00",
        reason="predicted for nvidia-h100-sxm, not measured: 42 us, bound by dram; 95 registers, no spills",
        candidates=3,
        bound="dram",
        predicted_s=4.2e-5,
    )
    return msgspec.structs.replace(made, **facts)


def told(
    seconds: float | None, config: dict[str, object], reason: str = "", is_default: bool = False
) -> CandidateRecord:
    """A candidate: predicted, or dropped for a reason."""
    step = StepPrediction("scan", seconds or 0.0, {"dram": seconds or 0.0}, 95, 0, 1024, 0.31, "registers", 0.6)
    return CandidateRecord(
        variant="triton.chunked",
        config=config,
        status="dropped" if seconds is None else "predicted",
        is_default=is_default,
        prediction=None if seconds is None else Prediction(seconds, "dram", (step,)),
        reason=reason,
    )


def candidates() -> PredictionsFile:
    """Two cases: one with a winner, one that nothing fits."""
    found = [
        told(5.1e-5, {"block_t": 32, "num_warps": 4}, is_default=True),
        told(4.2e-5, CONFIG),
        told(None, {"block_t": 512, "num_warps": 4}, "scan needs 300000 bytes of shared memory"),
        CandidateRecord(variant="triton.chunked", config={"block_t": 128}, status="guessed", guessed_s=6e-5),
    ]
    return PredictionsFile(
        version=PREDICTIONS_VERSION,
        sku="nvidia-h100-sxm",
        arch="sm_90",
        date="2026-11-20T08:14:00+00:00",
        triton="3.7.1",
        budget="default",
        constants=Constants(),
        seconds=301.0,
        compiled=12,
        complete=True,
        cases=[
            Predicted(op="linear_scan", case=CASES[0], candidates=found, chosen=1),
            Predicted(
                op="linear_scan", case=CASES[1], candidates=[], chosen=None, unfit={"triton.chunked": "too wide"}
            ),
        ],
    )


def write(folder: Path, entries: list[Entry] | None = None, beside: PredictionsFile | None = None) -> Path:
    """The registry's path; ``beside`` is written where its reader looks."""
    file = RegistryFile(schema_version=SCHEMA_VERSION, device=journals.DEVICE, entries=entries or [entry()])
    path = folder / "nvidia-h100-80gb-hbm3.json"
    path.write_bytes(msgspec.json.encode(file))
    if beside is not None:
        path.with_name("nvidia-h100-80gb-hbm3.predictions.json").write_bytes(msgspec.json.encode(beside))
    return path
