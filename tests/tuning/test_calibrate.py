"""Calibration of the static model by measured journals."""

from __future__ import annotations

import math

import msgspec
import pytest

from griffin_kernels import errors
from griffin_kernels.contract import config_dict
from griffin_kernels.records import DeviceRecord
from tests.launches import H100
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import calibrate, predictor, time_model
from tuning.predict.target_space import TargetSpace, launches_of
from tuning.predict.time_model import Constants, machine
from tuning.record import journal_records
from tuning.static.recorded import StaticReport


def test_spearman_and_regret():
    assert calibrate.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert calibrate.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert calibrate.spearman([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0.0)
    assert calibrate.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert calibrate.spearman([1, 1, 1], [1, 2, 3]) == 0.0
    expected, measured = [1.0, 2.0, 3.0], [1.5, 1.2, 1.0]
    assert calibrate.regret(expected, measured, 1) == pytest.approx(0.5)
    assert calibrate.regret(expected, measured, 2) == pytest.approx(0.2)
    assert calibrate.regret(expected, measured, 10) == 0.0


TRUE = Constants(
    launch_s=4e-6,
    latency_s=1.1e-6,
    dram_reach=0.9,
    cache_reach=0.25,
    matrix_share=0.45,
    issue_reach=0.5,
    dependent_cycles=3.5,
)
KNOWN_CASES = (
    "B1-T2048-D2560-bf",
    "B8-T8192-D2560-bf",
    "B1-T8192-Hq16-Hkv1-d128",
    "B1-W1024-Hq16",
    "B8-T2048-D2560-H1",
)
KNOWN_OPS = ("linear_scan", "rg_lru", "local_attention", "local_attention_step")


@pytest.fixture(scope="module")
def synthetic() -> tuple[list[journal_records.Record], calibrate.Compile]:
    """A journal of an H100 on which the model with the constants TRUE holds exactly, and the code of its kernels."""
    where = machine(H100)
    jobs = planner.make(Options(ops=KNOWN_OPS, cases=KNOWN_CASES, budget="thorough"), where.device)
    estimates = predictor.EstimatedCode(where)
    facts = DeviceRecord(where.device.validity(), {})
    lines: list[journal_records.Record] = [
        journal_records.Run(
            journal_version=2, run_id="r", date="", device=facts, command="", options={}, planned=0
        )
    ]  # fmt: skip
    code: dict[str, StaticReport] = {}
    for job in jobs:
        space = TargetSpace(job, where, TRUE, estimates)
        for candidate in space.candidates[::20]:
            if not math.isfinite(candidate.guessed_s):
                continue
            code |= {work.key: estimates(work) for work in launches_of(candidate.steps)}
            truth = time_model.predict(
                candidate.steps, lambda work, code=code: code[work.key], where, job.case.dtype, TRUE
            )
            planned = candidate.planned
            lines.append(
                journal_records.Candidate(
                    key=planned.key(job.case, where.device), op=job.op.name, variant=planned.variant.name,
                    case=job.case.plain(), config=config_dict(planned.config), baseline=False,
                    is_default=False, status="ok", samples_s=[truth.seconds] * 3,
                    source_hash=planned.variant.source_hash,
                )
            )  # fmt: skip
    return lines, lambda requests: {key: code[key] for key in requests}


def test_calibration_finds_the_constants_that_a_journal_was_made_with(synthetic):
    lines, compiled = synthetic
    found = calibrate.calibrate(lines, compiled)
    assert found.sku == H100 and found.samples > 60
    assert found.error_before > 0.1 and found.error_after < 0.01
    for name in Constants.__struct_fields__:
        assert getattr(found.constants, name) == pytest.approx(getattr(TRUE, name), rel=0.1), name
    assert all(row.spearman is None or row.spearman > 0.99 for row in found.after)
    assert all(row.regret[1] < 0.01 for row in found.after)
    assert min(row.spearman for row in found.before if row.spearman is not None) < 0.99
    assert msgspec.json.decode(msgspec.json.encode(found.constants), type=Constants) == found.constants


def test_calibration_says_what_it_cannot_use(synthetic):
    lines, compiled = synthetic
    with pytest.raises(errors.JournalError, match="first line is missing"):
        calibrate.calibrate(lines[1:], compiled)
    changed = [lines[0], *(msgspec.structs.replace(line, source_hash="0" * 16) for line in lines[1:5])]
    with pytest.raises(
        errors.JournalError, match="0 measured Triton candidates, 3 are needed: 4 are of kernels that have"
    ):
        calibrate.calibrate(changed, compiled)
    facts = DeviceRecord(lines[0].device.validity | {"name": "GPU of tomorrow"}, {})
    with pytest.raises(errors.JournalError, match="GPU of tomorrow has no datasheet"):
        calibrate.calibrate([msgspec.structs.replace(lines[0], device=facts)], compiled)
