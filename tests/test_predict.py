"""Static model of a GPU that is not there: occupancy, work, times, choices, the registry that results, calibration."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from griffin_kernels import catalog, datasheet, errors, registry
from griffin_kernels.contract import Case, config_dict
from griffin_kernels.records import CaseRecord, DeviceRecord
from tuning import calibrate, plan, predict, records
from tuning.plan import Options
from tuning.static import farm, model, recorded
from tuning.static.candidates import Contest, described
from tuning.static.describe import meta_inputs
from tuning.static.farm import Order
from tuning.static.model import ASSUMED, Constants, machine
from tuning.static.occupancy import LIMITS, occupancy
from tuning.static.recorded import StaticReport
from tuning.static.targets import _SHARED_KIB
from tuning.static.work import CallWork, LaunchWork

H100, MI300X = "nvidia-h100-sxm", "amd-mi300x"
ROOT = Path(__file__).parent.parent


def report(**facts: object) -> StaticReport:
    """Machine code of a scan: a loop of 400 instructions that loads 4 KB a warp, and whatever ``facts`` say."""
    mix = dict.fromkeys(recorded.load().reports[0].mix, 0) | {"global_loads": 8, "multiply_adds": 64}
    usual = recorded.load().reports[0]
    plain = msgspec.structs.replace(
        usual, registers=64, spill_bytes=0, shared_bytes=0, num_warps=1, instructions=500, loop_instructions=400,
        mix=mix, load_bits={128: 8}, broken=(),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **facts)


def launch(**facts: object) -> LaunchWork:
    usual = LaunchWork("kernel", 0, "key", 1320, 1, 1, 2048, 16.0, 1e8, 0.0)
    return dataclasses.replace(usual, **facts)


def seconds(work: LaunchWork, code: StaticReport, sku: str = H100, constants: Constants = ASSUMED) -> float:
    return model.predict([work], lambda _: code, machine(sku), "bfloat16", constants).seconds


@functools.cache
def tensors(op: str, case: Case) -> dict[str, object]:
    return meta_inputs(catalog.op(op), case)


def steps_of(key: str, case_part: str, arch: str = "sm_90", **values: object) -> list[LaunchWork | CallWork]:
    variant = catalog.variant(key)
    op = catalog.op(variant.op)
    case = next(c for c in op.cases_tagged("bench") if case_part in c.key and c.where != "cpu")
    return described(variant, op, case, variant.config(**values), arch)


# --- occupancy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks", "limit"),
    [
        ("sm_90", 32, 0, 4, 16, "registers"),  # 64 warps of 32 registers fill both at once
        ("sm_90", 255, 0, 8, 1, "registers"),  # 2 warps for each of four schedulers
        ("sm_90", 40, 0, 1, 32, "blocks"),
        ("sm_90", 64, 100 * 1024, 4, 2, "shared memory"),  # 2 x (100 + 1) KiB of 228
        ("sm_90", 64, 228 * 1024, 4, 0, "shared memory"),  # one block may have 227
        ("sm_75", 32, 0, 4, 8, "warps"),
        ("sm_86", 32, 0, 4, 12, "warps"),
        ("gfx942", 128, 0, 4, 4, "registers"),  # 4 waves of 128 on each SIMD of 512
        ("gfx942", 32, 0, 4, 8, "warps"),
        ("gfx942", 32, 40 * 1024, 4, 1, "shared memory"),
        ("gfx950", 32, 40 * 1024, 4, 4, "shared memory"),
        ("sm_90", 16, 0, 64, 0, "threads of a block"),
    ],
)
def test_occupancy(arch, registers, shared, warps, blocks, limit):
    found = occupancy(arch, registers, shared, warps)
    assert found.blocks == blocks
    assert found.limit == limit or found.blocks * warps == LIMITS[arch].warps
    assert found.share == blocks * warps / LIMITS[arch].warps


def test_limits_agree_with_the_targets_that_are_compiled_for():
    assert {name: kib * 1024 for name, kib in _SHARED_KIB.items()} == {
        name: limits.block_shared_bytes for name, limits in LIMITS.items()
    }


# --- what steps have to do -------------------------------------------------------------------------------------------


def test_a_scan_moves_the_ideal_bytes_in_as_many_iterations_as_tiles():
    (scan,) = steps_of("linear_scan/triton.sequential", "B8-T2048-D2560-bf", block_t=32, block_d=64, num_warps=1)
    op = catalog.op("linear_scan")
    case = next(c for c in op.cases_tagged("bench") if c.key == "B8-T2048-D2560-bfloat16")
    assert isinstance(scan, LaunchWork)
    assert (scan.programs, scan.iterations) == (8 * 2560 // 64, 2048 / 32)
    assert scan.bytes_moved == op.cost(case).bytes_total


def test_steps_add_up_to_the_stated_traffic():
    for variant in (v for op in catalog.ops() for v in catalog.variants(op).values() if v.launches is not None):
        op = catalog.op(variant.op)
        case = next(c for c in op.cases_tagged("bench") if c.where != "cpu")
        if variant.traffic is None or variant.reject(case, machine(H100).device, variant.config()) is not None:
            continue
        steps = described(variant, op, case, variant.config(), "sm_90", tensors(op.name, case))
        moved = sum(step.bytes_moved for step in steps)
        assert moved == pytest.approx(variant.traffic(case, variant.config())), variant.key


@pytest.mark.parametrize("key", ["rg_lru/triton.fused_scan", "rg_lru_bwd/triton.fused_scan"])
def test_products_between_launches_are_those_of_the_cost(key):
    steps = steps_of(key, "B8-T2048-D2560-H10")
    op = catalog.op(key.partition("/")[0])
    case = next(c for c in op.cases_tagged("bench") if "B8-T2048-D2560-H10" in c.key)
    calls = [step for step in steps if isinstance(step, CallWork)]
    assert sum(call.flops for call in calls) == pytest.approx(op.cost(case).tensor_flops)


def test_attention_computes_the_visible_scores_and_the_edges_of_tiles():
    (flash,) = steps_of("local_attention/triton.flash_window", "B1-T8192-Hq16-Hkv1-d128")
    op = catalog.op("local_attention")
    case = next(c for c in op.cases_tagged("bench") if "B1-T8192-Hq16" in c.key and "d128" in c.key)
    assert 1 < flash.flops / op.cost(case).tensor_flops < 1.5


def test_launches_share_code_across_lengths_and_not_across_configurations():
    def keys(case: str, **values: object) -> list[str]:
        return [step.key for step in steps_of("linear_scan/triton.sequential", case, **values)]

    assert keys("B8-T2048-D2560-bf") == keys("B8-T8192-D2560-bf")
    assert keys("B8-T2048-D2560-bf") != keys("B8-T2048-D2560-fl")
    assert keys("B8-T2048-D2560-bf") != keys("B8-T2048-D2560-bf", num_warps=2, block_d=128)


# --- times -----------------------------------------------------------------------------------------------------------


def test_machines_of_all_skus_or_one_sentence():
    able = []
    for sku in datasheet.skus():
        try:
            where = machine(sku)
        except errors.DeviceError as error:
            assert str(error).count("\n") == 0 and (sku in str(error)), sku
            continue
        able.append(sku)
        assert 0.9e9 < where.clock_hz < 2.8e9, sku
        facts = where.device.validity()
        assert (facts["name"], facts["arch"], facts["units"]) == (
            where.sheet.driver_names[0], where.sheet.arch, where.sheet.units
        )  # fmt: skip
    assert {H100, MI300X, "nvidia-t4", "nvidia-b200", "amd-mi355x", "nvidia-rtx-5090"} <= set(able)


@pytest.mark.parametrize(
    ("sku", "words"),
    [
        ("google-tpu-v5e", "is no GPU"),
        ("nvidia-v100-16gb-sxm2", "is sm_70, which Triton does not compile for"),
        ("nvidia-h100-smx", "near ones are"),
    ],
)
def test_no_machine_is_one_sentence(sku, words):
    with pytest.raises(errors.DeviceError, match=words):
        machine(sku)


@pytest.mark.parametrize(("sku", "arch"), [(H100, "sm_90"), (MI300X, "gfx942")])
def test_recorded_defaults_are_never_below_their_floor(sku, arch):
    where = machine(sku)
    table = {(r.op, r.variant, r.case, r.kernel): r for r in recorded.load().reports if r.target == arch}
    checked = 0
    for op, name, key in {k[:3] for k in table}:
        variant, contract = catalog.variant(f"{op}/{name}"), catalog.op(op)
        case = next(c for c in contract.cases_tagged("bench") if c.key == key and c.where != "cpu")
        steps = described(variant, contract, case, variant.config(), arch, tensors(op, case))
        code = {s.key: table[op, name, key, s.name] for s in steps if isinstance(s, LaunchWork)}
        assert not any(model.does_not_fit(s, code[s.key], where) for s in steps if isinstance(s, LaunchWork))
        found = model.predict(steps, lambda work, code=code: code[work.key], where, case.dtype)
        ideal = contract.cost(case).bytes_total / where.sheet.dram_bytes_per_s
        assert ideal < found.seconds < 1.0, (op, name, key)
        assert found.bound in {b for step in found.steps for b in step.limits_s}
        checked += 1
    assert checked > 40


def test_time_follows_bytes_where_memory_binds():
    many = launch(programs=132 * 64)
    assert seconds(dataclasses.replace(many, bytes_moved=4e9), report()) == pytest.approx(
        2 * seconds(dataclasses.replace(many, bytes_moved=2e9), report()), rel=0.05
    )


def test_a_lone_program_pays_latency_for_every_iteration():
    alone = launch(programs=1, iterations=1000.0, bytes_moved=1e6)
    found = model.predict([alone], lambda _: report(), machine(H100), "bfloat16")
    assert found.bound == "latency"
    assert found.seconds > 1000 * ASSUMED.latency_s
    # as many programs as there are units cost no more, and asynchronous copies hide most of it
    assert seconds(dataclasses.replace(alone, programs=132), report()) == pytest.approx(found.seconds, rel=0.02)
    ahead = report(mix=report().mix | {"async_copies": 8, "global_loads": 0}, loop_instructions=40)
    assert seconds(dataclasses.replace(alone, num_stages=5), ahead) < 0.5 * found.seconds


def test_one_program_more_than_units_takes_twice_where_issue_binds():
    busy = report(loop_instructions=40_000, instructions=41_000, num_warps=8, mix=report().mix | {"global_loads": 0})
    units = machine(H100).units
    even = seconds(launch(programs=units, num_warps=8, iterations=100.0), busy)
    odd = seconds(launch(programs=units + 1, num_warps=8, iterations=100.0), busy)
    assert odd == pytest.approx(2 * even, rel=0.1)


def test_registers_that_keep_programs_away_cost_time():
    work = launch(programs=132 * 24, iterations=64.0, bytes_moved=1e8)
    assert seconds(work, report(registers=250)) > 1.5 * seconds(work, report(registers=40))


def test_spills_cost_time():
    work = launch(programs=132 * 24, bytes_moved=1e7)
    spilling = report(spill_bytes=400, mix=report().mix | {"local_memory": 200})
    assert seconds(work, spilling) > 1.5 * seconds(work, report())


def test_special_functions_and_products_bind_where_there_are_many():
    work = launch(programs=132 * 64, bytes_moved=1e6)
    special = report(mix=report().mix | {"special": 300})
    assert model.predict([work], lambda _: special, machine(H100), "bfloat16").bound == "special"
    products = dataclasses.replace(work, flops=1e13)
    found = model.predict([products], lambda _: report(), machine(H100), "bfloat16")
    assert found.bound == "tensor"
    assert found.seconds > 1e13 / 989e12


def test_what_does_not_fit_is_named():
    where = machine(MI300X)
    assert model.does_not_fit(launch(), report(), where) is None
    assert "65537 bytes of shared memory, gfx942 has 65536" in str(
        model.does_not_fit(launch(), report(shared_bytes=65537), where)
    )
    assert "512 registers for 16 warps" in str(model.does_not_fit(launch(num_warps=16), report(registers=512), where))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be used"),
        ('{"launch_s": -1}', "launch_s"),
        ('{"lanch_s": 1}', "lanch_s"),
        (None, "cannot be read"),
    ],
)
def test_broken_constants_are_one_sentence(tmp_path, text, words):
    path = tmp_path / "constants.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.ArgumentError, match=words):
        model.load_constants(path)


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans() -> list[Contest]:
    """Contests of linear_scan on an H100, nothing compiled."""
    where = machine(H100)
    jobs = plan.make(Options(ops=("linear_scan",), cases=("B8-T2048-D2560-bfloat16",)), where.device)
    return [Contest.of(job, where, ASSUMED, predict.guesses_for(where)) for job in jobs]


def settled(contest: Contest, **code: StaticReport | str) -> Contest:
    """A copy whose candidates of the variants named (dots as underscores) are compiled to ``code``."""
    again = dataclasses.replace(contest, candidates=[dataclasses.replace(c) for c in contest.candidates])
    if contest.default is not None:
        again.default = again.candidates[contest.candidates.index(contest.default)]
    reports = {}
    for candidate in again.candidates:
        found = code.get(candidate.planned.variant.name.replace(".", "_"))
        if found is not None:
            for work in candidate.launches:
                fits = found if isinstance(found, str) else msgspec.structs.replace(found, num_warps=work.num_warps)
                reports[work.key] = fits
    again.settle(reports)
    return again


def test_the_default_goes_first_and_every_variant_is_tried(scans):
    contest = scans[0]
    order = contest.order()
    assert order[0] is contest.default
    assert {c.planned.variant.name for c in order[:5]} == {c.planned.variant.name for c in contest.candidates}
    assert len(order) == len(contest.candidates) == len({id(c) for c in order})


def test_guesses_learn_from_what_was_compiled():
    where = machine(H100)
    guesses = predict.guesses_for(where)
    (work,) = steps_of("linear_scan/triton.sequential", "B8-T2048-D2560-bf", block_t=64, block_d=32, num_warps=1)
    before = guesses(work)
    compiled = report(kernel=work.name, target="sm_90", registers=99, loop_instructions=640, instructions=700)
    guesses.learn([msgspec.structs.replace(compiled, instructions_per_element=640 * 32 / work.tile)])
    after = guesses(work)
    assert (after.registers, after.loop_instructions, after.instructions) == (99, 640, 700) != before.registers


def test_what_spills_is_chosen_only_where_all_does(scans):
    spilling = report(spill_bytes=64)
    slow = report(loop_instructions=40_000, instructions=41_000)
    mixed = settled(scans[0], triton_sequential=spilling, triton_chunked=slow)
    assert mixed.choose().planned.variant.name == "triton.chunked"
    assert mixed.choose().prediction.seconds > min(c.prediction.seconds for c in mixed.ranked())
    assert settled(scans[0], triton_sequential=spilling).choose().prediction.spill_bytes == 64


def test_the_default_stays_where_nothing_is_clearly_faster(scans):
    same = settled(scans[0], triton_sequential=report())
    best = same.ranked()[0].prediction.seconds
    default = same.default.prediction.seconds
    assert (same.choose() is same.default) == (default <= 1.03 * best)
    slower = settled(scans[0], triton_sequential=report())
    slower.default.prediction = msgspec.structs.replace(slower.default.prediction, seconds=1.0)
    assert slower.choose() is not slower.default


def test_what_fails_is_dropped_with_the_reason(scans):
    failed = settled(scans[0], triton_sequential="PTXASError: no", triton_chunked=report(shared_bytes=300_000))
    assert failed.choose() is None
    reasons = {c.reason for c in failed.candidates if c.status == "dropped"}
    assert "PTXASError: no" in reasons
    assert any("shared memory" in reason for reason in reasons)
    assert {c.status for c in failed.candidates} == {"dropped", "guessed"}


def test_predictions_for_a_search_need_no_compiler():
    variant, op = catalog.variant("linear_scan/triton.chunked"), catalog.op("linear_scan")
    case = next(c for c in op.cases_tagged("bench") if c.key == "B1-T2048-D2560-bfloat16")
    began = time.monotonic()
    by_sku = predict.predicted(variant, case, variant.config(), H100)
    real = dataclasses.replace(machine(H100).device, memory_bytes=85_029_158_912)
    assert by_sku is not None and predict.predicted(variant, case, variant.config(), real) == by_sku
    assert time.monotonic() - began < 30  # a compiler would be started
    assert predict.predicted(variant, case, variant.config(), dataclasses.replace(real, name="no GPU")) is None
    assert predict.predicted(catalog.variant("linear_scan/eager.loop"), case, None, H100) is None
    assert predict.predicted(variant, case, variant.config(chunk=32, block_t=64), H100) is None


# --- the whole of it -------------------------------------------------------------------------------------------------


def test_target_writes_a_registry_that_such_a_machine_uses(tmp_path):
    told = io.StringIO()
    options = Options(ops=("temporal_conv1d_step", "temporal_conv1d"), cases=("B16-D2560", "B1-T2048"), budget="quick")
    outcome = predict.tune_target(H100, options, tmp_path, Console(file=told, width=100), jobs=2)
    assert outcome.missing == () and len(outcome.entries) == 2
    for entry in outcome.entries:
        assert (entry.status, entry.median_s) == ("predicted", None)
        assert entry.predicted_s > 0 and "no spills" in entry.reason and H100 in entry.reason
    # a machine of the SKU reports other memory and cache sizes than the datasheet prints
    real = dataclasses.replace(
        machine(H100).device, memory_bytes=85_029_158_912, last_level_cache_bytes=52_428_800, details=(("index", 0),)
    )
    path = tmp_path / f"{real.slug}.json"
    assert outcome.registry == path
    assert registry.load_for(path, real).entries == sorted(outcome.entries, key=lambda e: e.op)
    with pytest.raises(errors.RegistryError, match="another device"):
        registry.load_for(path, machine("nvidia-h100-pcie").device)
    found = msgspec.json.decode(outcome.predictions.read_bytes(), type=predict.PredictionsFile)
    assert found.complete and found.compiled >= 3
    for case, entry in zip(found.cases, outcome.entries, strict=True):
        assert case.candidates[case.chosen].config == entry.config
        assert {c.status for c in case.candidates} >= {"predicted", "guessed"}


def test_target_that_cannot_be_is_refused_before_any_work(tmp_path):
    console = Console(file=io.StringIO())
    with pytest.raises(errors.UnknownDevice, match="no datasheet"):
        predict.tune_target("h100x", Options(), tmp_path, console)
    with pytest.raises(errors.ArgumentError, match="no budget 'huge'"):
        predict.tune_target(H100, Options(budget="huge"), tmp_path, console)
    with pytest.raises(errors.ArgumentError, match="exclude each other"):
        predict.tune_target(H100, Options(device="cpu"), tmp_path, console)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputFolderError, match="choose another folder"):
        predict.tune_target(H100, Options(), tmp_path / "file" / "below", console)


def test_without_time_nothing_is_published_and_every_case_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "EFFORTS", {"quick": predict.Effort(1, 0.0)})
    told = io.StringIO()
    options = Options(ops=("temporal_conv1d_step",), budget="quick")
    outcome = predict.tune_target(H100, options, tmp_path, Console(file=told, width=200))
    assert outcome.entries == () and not outcome.registry.exists()
    assert len(outcome.missing) == 3 and all("time was up" in line for line in outcome.missing)
    assert "time is up: 0 of" in told.getvalue()


# --- compilers that misbehave ----------------------------------------------------------------------------------------

BAD = """
import json, os, sys, time
for line in sys.stdin:
    order = json.loads(line)
    what = order["config"]["what"]
    if what == "hang": time.sleep(600)
    if what == "abort": os.abort()
    if what == "leave": sys.exit(3)
    print(json.dumps({"reason": what}), flush=True)
"""


@pytest.fixture
def bad_compiler(tmp_path, monkeypatch):
    (tmp_path / "bad_compiler.py").write_text(BAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(farm, "SERVER", "bad_compiler")


def order(what: str) -> Order:
    return Order("op/variant", CaseRecord({}, "float32"), {"what": what}, 0, "sm_90")


def test_compilers_that_crash_hang_or_leave_cost_their_launch_only(bad_compiler):
    asked = ["one", "abort", "two", "hang", "three", "leave", "four"]
    found = dict(farm.compile_all([(what, order(what)) for what in asked], jobs=1, timeout=3.0))
    assert found == {
        "one": "one",
        "abort": "the compiler's process died (SIGABRT)",
        "two": "two",
        "hang": "the compiler took more than 3 s",
        "three": "three",
        "leave": "the compiler's process died (3)",
        "four": "four",
    }


def test_what_is_compiled_when_time_is_up_counts_as_not_begun(bad_compiler, monkeypatch):
    monkeypatch.setattr(farm, "GRACE_S", 0.5)
    asked = [(what, order(what)) for what in ("one", "hang", "two")]
    began = time.monotonic()
    assert dict(farm.compile_all(asked, jobs=1, seconds=2.0)) == {"one": "one"}
    assert time.monotonic() - began < 60


def test_closing_leaves_no_compiler_behind(bad_compiler, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(farm.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    results = farm.compile_all([("one", order("one")), ("hang", order("hang"))], jobs=2, timeout=60.0)
    assert next(results) == ("one", "one")
    results.close()
    assert started and all(process.poll() is not None for process in started)


# --- calibration -----------------------------------------------------------------------------------------------------


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
def synthetic() -> tuple[list[records.Record], calibrate.Compile]:
    """A journal of an H100 on which the model with the constants TRUE holds exactly, and the code of its kernels."""
    where = machine(H100)
    jobs = plan.make(Options(ops=KNOWN_OPS, cases=KNOWN_CASES, budget="thorough"), where.device)
    guesses = predict.guesses_for(where)
    facts = DeviceRecord(where.device.validity(), {})
    lines: list[records.Record] = [
        records.Run(
            journal_version=2, run_id="r", date="", device=facts, command="", options={}, planned=0
        )
    ]  # fmt: skip
    code: dict[str, StaticReport] = {}
    for job in jobs:
        contest = Contest.of(job, where, TRUE, guesses)
        for candidate in contest.candidates[::20]:
            if not math.isfinite(candidate.guessed_s):
                continue
            code |= {work.key: guesses(work) for work in candidate.launches}
            truth = model.predict(candidate.steps, lambda work, code=code: code[work.key], where, job.case.dtype, TRUE)
            planned = candidate.planned
            lines.append(
                records.Candidate(
                    key=planned.key(job.case, where.device), op=job.op.name, variant=planned.variant.name,
                    case=CaseRecord.of(job.case), config=config_dict(planned.config), baseline=False,
                    is_default=False, status="ok", samples_s=[truth.seconds] * 3,
                    source_hash=planned.variant.source_hash,
                )
            )  # fmt: skip
    return lines, lambda orders: {key: code[key] for key in orders}


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


# --- command line ----------------------------------------------------------------------------------------------------


def griffin(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"XDG_DATA_HOME": str(home), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from reports.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300)


def test_predict_prints_a_table_and_json(tmp_path):
    words = ["tune", "predict", "temporal_conv1d_step", "B16-D2560", "--target", MI300X, "--most", "2", "--json"]
    done = griffin(*words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    predicted = [c for c in found if c["status"] == "predicted"]
    assert 2 <= len(predicted) < len(found)
    assert all(c["prediction"]["seconds"] > 0 for c in predicted)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tune", "predict", "linear_scan", "T2048", "--target", H100], "several cases match 'T2048'"),
        (["tune", "--target", "google-tpu-v3"], "google-tpu-v3 is no GPU"),
        (["tune", "calibrate", "none.jsonl"], "none.jsonl"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path, words, sentence):
    done = griffin(*words, home=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def compilers_of(home: Path) -> list[int]:
    """Compiling processes that were started with this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"tuning.static.server" in (process / "cmdline").read_bytes():
                found += [int(process.name)] * (str(home).encode() in (process / "environ").read_bytes())
        except OSError:
            continue  # it has ended, or is not ours
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_an_interrupt_leaves_no_process_and_no_registry(tmp_path):
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "home"), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a background shell ignores it
        "from reports.cli import main; main()"
    )
    words = ["tune", "--target", H100, "--ops", "linear_scan", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while not compilers_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert compilers_of(tmp_path)
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 130 and b"Traceback" not in told, told
    assert compilers_of(tmp_path) == []
    assert list((tmp_path / "out").glob("*.json")) == []
