"""Static model of a GPU that is not there: occupancy, work, times."""

from __future__ import annotations

import dataclasses

import pytest

from griffin_kernels import catalog, datasheet, errors
from griffin_kernels.architectures import SHARED_KIB
from roofline import reached
from tests.launches import H100, MI300X, launch, report, seconds, steps_of, tensors
from tuning.predict import time_model
from tuning.predict.launch_work import CallWork, LaunchWork
from tuning.predict.target_space import described
from tuning.predict.time_model import LIMITS, machine, occupancy
from tuning.static import recorded

pytestmark = pytest.mark.unit

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


def test_every_architecture_of_which_shared_memory_is_known_has_limits():
    assert set(LIMITS) == set(SHARED_KIB)
    # the programming guide's table: shared memory of a multiprocessor, KiB
    known = {"sm_75": 64, "sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228, "sm_100": 228, "sm_120": 100}
    assert {arch: LIMITS[arch].shared_bytes // 1024 for arch in known} == known


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
    flash, again = steps_of("local_attention/triton.flash_window", "B1-T8192-Hq16-Hkv1-d128")
    op = catalog.op("local_attention")
    case = next(c for c in op.cases_tagged("bench") if "B1-T8192-Hq16" in c.key and "d128" in c.key)
    assert 1 < flash.flops / op.cost(case).tensor_flops < 1.5
    assert (again.programs, again.iterations, again.bytes_moved, again.flops) == (1, 0.0, 0.0, 0.0)


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
        assert 0.9e9 < where.clock_hz / reached.clock_share(where.sheet).value < 2.8e9, sku
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
        assert not any(time_model.does_not_fit(s, code[s.key], where) for s in steps if isinstance(s, LaunchWork))
        found = time_model.predict(steps, lambda work, code=code: code[work.key], where, case.dtype)
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
    found = time_model.predict([alone], lambda _: report(), machine(H100), "bfloat16")
    assert found.bound == "latency"
    assert found.seconds > 1000 * machine(H100).constants.latency_s
    # as many programs as there are units cost no more, and asynchronous copies hide most of it
    assert seconds(dataclasses.replace(alone, programs=132), report()) == pytest.approx(found.seconds, rel=0.02)
    ahead = report(mix=report().mix | {"async_copies": 8, "global_loads": 0}, loop_instructions=40)
    assert seconds(dataclasses.replace(alone, num_stages=5), ahead) < 0.5 * found.seconds


def test_one_program_more_than_units_takes_twice_where_issue_binds():
    busy = report(loop_instructions=40_000, instructions=41_000, num_warps=32, mix=report().mix | {"global_loads": 0})
    units = machine(H100).units
    even = seconds(launch(programs=units, num_warps=32, iterations=100.0), busy)
    odd = seconds(launch(programs=units + 1, num_warps=32, iterations=100.0), busy)
    assert odd == pytest.approx(2 * even, rel=0.1)


def test_scalar_instructions_of_amd_start_beside_vector_ones():
    units = machine(MI300X).units
    work = launch(programs=units * 8, num_warps=4, iterations=100.0, bytes_moved=1e6)

    def issue(scalar):
        code = report(loop_instructions=4000, instructions=4100, mix=report().mix | {"scalar": scalar})
        found = time_model.predict([work], lambda _: code, machine(MI300X), "bfloat16")
        return found.main.limits_s["issue"]

    assert issue(1000) == pytest.approx(0.75 * issue(0), rel=0.02)
    assert issue(3000) == pytest.approx(issue(1000)), "the more numerous of both count"


def test_registers_that_keep_programs_away_cost_time():
    work = launch(programs=132 * 24, iterations=64.0, bytes_moved=1e8)
    assert seconds(work, report(registers=250)) > 1.5 * seconds(work, report(registers=40))


def test_spills_cost_time():
    work = launch(programs=132 * 24, bytes_moved=1e7)
    spilling = report(spill_bytes=400, mix=report().mix | {"local_memory": 200})
    assert seconds(work, spilling) > 1.5 * seconds(work, report())


def test_spills_that_outgrow_the_cache_go_to_memory():
    spilling = report(spill_bytes=4000, registers=255, mix=report().mix | {"local_memory": 2000})
    few, many = launch(programs=64, bytes_moved=1e7), launch(programs=132 * 24, num_warps=8, bytes_moved=1e7)
    found = [time_model.predict([w], lambda _: spilling, machine(H100), "float32").main.limits_s for w in (few, many)]
    assert found[0]["dram"] == pytest.approx(1e7 / (machine(H100).sheet.achieved_dram_gb_per_s * 1e9))
    assert found[1]["dram"] > 1000 * found[0]["dram"]


def test_a_program_without_a_loop_waits_once():
    where = machine(H100)
    straight = report(loop_instructions=500, instructions=500)
    found = time_model.predict([launch(programs=1, bytes_moved=1.0)], lambda _: straight, where, "float32")
    constants = where.constants
    waits = constants.latency_s + 500 * constants.dependent_cycles / where.clock_hz
    assert found.main.limits_s["latency"] == pytest.approx(waits)


def test_a_board_held_back_by_its_power_limit_runs_slower():
    l4, l40s = machine("nvidia-l4"), machine("nvidia-l40s")
    assert l4.clock_hz < 0.5 * l4.sheet.boost_clock_mhz * 1e6
    assert l40s.clock_hz == l40s.sheet.boost_clock_mhz * 1e6
    special = report(mix=report().mix | {"special": 300})
    work = launch(programs=142 * 64, bytes_moved=1e6)
    slow, fast = (time_model.predict([work], lambda _: special, where, "bfloat16").seconds for where in (l4, l40s))
    assert slow > 4 * fast


def test_special_functions_and_products_bind_where_there_are_many():
    work = launch(programs=132 * 64, bytes_moved=1e6)
    special = report(mix=report().mix | {"special": 300})
    assert time_model.predict([work], lambda _: special, machine(H100), "bfloat16").bound == "special"
    products = dataclasses.replace(work, flops=1e13)
    found = time_model.predict([products], lambda _: report(), machine(H100), "bfloat16")
    assert found.bound == "tensor"
    assert found.seconds > 1e13 / 989e12


def test_what_does_not_fit_is_named():
    where = machine(MI300X)
    assert time_model.does_not_fit(launch(), report(), where) is None
    assert "65537 bytes of shared memory, gfx942 has 65536" in str(
        time_model.does_not_fit(launch(), report(shared_bytes=65537), where)
    )
    assert "512 registers for 16 warps" in str(
        time_model.does_not_fit(launch(num_warps=16), report(registers=512), where)
    )


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
        time_model.load_constants(path)
