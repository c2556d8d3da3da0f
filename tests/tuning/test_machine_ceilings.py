"""One set of ceilings: measured before the first race, raised beside races, and every share is one of it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from griffin_kernels import catalog, datasheet, device, registry
from griffin_kernels.ops.linear_scan import cost as linear_scan
from griffin_kernels.ops.local_attention import cost as local_attention
from griffin_kernels.ops.rg_lru import cost as rg_lru
from griffin_kernels.records import Entry
from reports.cli import app
from roofline import floors, store, tables
from roofline.ceilings import DISTURBED, Ceiling, Ceilings, held
from roofline.measure import pooled
from roofline.shares import TOO_LOW, share_text, why_above
from tests import journals, small_tune, studies
from tuning.measure import machine_ceilings
from tuning.measure.conditions import slowed
from tuning.measure.machine_ceilings import MachineCeilings
from tuning.record.journal_records import CeilingRecord, Race, Result
from tuning.ui.progress import Summary, above_lines, summary_table

small = pytest.fixture(small_tune.small)
HERE = device.cpu()
CPU = studies.here()
H100 = Ceilings.from_datasheet(datasheet.datasheet("nvidia-h100-sxm"))

# rates of the CPU: DRAM 40.2 GB/s, float32 products 149 GFLOP/s, exp 1.4 G/s; of the H100: 3.35 TB/s, float32 products
# 66.9 TFLOP/s, bfloat16 989 TFLOP/s; per element rg_lru has 4 n = 1024 FLOPs in products, 5 special functions
BOUNDS = [
    (rg_lru.make_case(1, 2048, 2560, 10), CPU, "tensor"),  # 6.9 ns of products, 3.6 ns of exp, 0.2 ns of DRAM
    (rg_lru.make_case(1, 2048, 2560, 16, "bfloat16"), CPU, "special"),  # 640 FLOPs take 2.8 ns
    (rg_lru.make_case(8, 2048, 2560, 10), H100, "tensor"),  # 15 ps against 2.4 ps of DRAM
    (rg_lru.make_case(8, 2048, 2560, 10, "bfloat16"), H100, "dram"),  # 1.04 ps against 1.19 ps of DRAM
    (rg_lru.make_case(1, 2048, 2560, 10, op="rg_lru_bwd"), CPU, "tensor"),
    (local_attention.make_case(1, 2048, 10, 1, 256, 2048), CPU, "tensor"),
    (local_attention.make_case(1, 2048, 10, 1, 256, 2048, "bfloat16"), CPU, "tensor"),
    (local_attention.make_case(1, 2048, 10, 1, 256, 2048, "float16"), CPU, "tensor"),  # multiplied after conversion
    (local_attention.make_case(8, 8192, 10, 1, 256, 2048, "bfloat16"), H100, "tensor"),
    (local_attention.make_case(1, 2048, 10, 1, 256, 2048, op="local_attention_bwd"), CPU, "tensor"),
    (linear_scan.make_case(1, 2048, 2560), CPU, "dram"),
    (linear_scan.make_case(8, 2048, 2560, "bfloat16"), H100, "dram"),
]


@pytest.mark.parametrize(("case", "known", "bound"), BOUNDS)
def test_a_kernel_is_judged_by_the_ceiling_that_binds_it(case, known, bound):
    found = floors.judge(case.op, case, 1.0, known)
    assert (found.bound, found.above) == (bound, None)
    cost, dtype = catalog.op(case.op).cost(case), case.dtype
    rate = {"dram": known.value("dram"), "special": known.value("special")} | {
        "tensor": known.tensor_flops_per_s.get(dtype) or known.tensor_flops_per_s["float32"]
    }
    work = {"dram": cost.bytes_total, "tensor": cost.tensor_flops, "special": cost.special_ops}
    assert found.share == pytest.approx(work[bound] / rate[bound])
    assert found.share == max(found.floors_s.values())


def test_products_bind_rg_lru_and_attention_in_most_bench_cases_of_a_cpu():
    for op in ("rg_lru", "rg_lru_bwd", "local_attention", "local_attention_bwd"):
        cases = [case for case in catalog.op(op).cases_tagged("bench") if case.where == "cpu" and case["T"] >= 256]
        bounds = [floors.judge(op, case, 1.0, CPU).bound for case in cases]
        assert cases and "dram" not in bounds, (op, bounds)


BIG = linear_scan.make_case(8, 8192, 2560)  # 2 GB
MEDIUM = linear_scan.make_case(1, 512, 2560)  # 16 MB, half the cache
TINY = rg_lru.make_case(1, 1, 2560, 10, data=("h0",))
PRODUCTS = local_attention.make_case(1, 2048, 10, 1, 256, 2048)
BUSY = Ceilings(
    CPU.device,
    tuple(msgspec.structs.replace(c, source=c.source + DISTURBED) for c in CPU.table),
    CPU.cache_bytes,
)


def entry(case, share, known=CPU) -> Entry:
    """A measured entry that reaches a share of its floor."""
    seconds = max(floors.op_floors(case.op, case, known).values()) / share
    plain = Entry(
        op=case.op, case=case.plain(), variant="eager.unfused", config={}, status="measured", source_hash="00",
        date="2026-11-28T00:00:00+00:00", reason="made up", candidates=3, median_s=seconds,
        interval_s=(seconds, seconds),
    )  # fmt: skip
    return floors.judged(plain, known)


@pytest.mark.parametrize(
    ("case", "known", "why"),
    [
        (BIG, CPU, TOO_LOW),
        (BIG, BUSY, "other processes took the cores"),
        (MEDIUM, CPU, r"part of its 15\.7 MB probably stayed in the last-level cache of 33\.6 MB"),
        (TINY, CPU, "nearer cache"),
        (PRODUCTS, CPU, TOO_LOW),
    ],
)
def test_a_share_above_100_percent_says_why_and_no_other_does(case, known, why):
    assert re.search(why, entry(case, 1.3, known).above_bound)
    for share in (0.2, 0.999):
        assert entry(case, share, known).above_bound is None


def planted() -> list[Entry]:
    return [entry(case, share) for case, share in ((BIG, 1.3), (MEDIUM, 0.8), (TINY, 2.5), (PRODUCTS, 0.94))]


def test_terminal_says_which_ceiling_and_why_a_share_is_above_100_percent():
    for width in (80, 160):
        console = Console(width=width)
        with console.capture() as got:
            console.print(summary_table(planted(), width))
            for text in above_lines(planted()):
                console.print(text)
        text = got.get()
        assert all(len(line) <= width for line in text.splitlines())
        flat = " ".join(text.split())
        assert f"{TOO_LOW}" in flat and "nearer cache" in flat
        above = [int(share) for share in re.findall(r"(\d+)%", flat) if int(share) > 100]
        assert sorted(above) == [130, 130, 250, 250], "in the table, and again with its sentence"
        assert flat.count("!") == 4
    assert "94% matrix products" in flat and "80% DRAM" in flat


def test_registry_and_show_say_why_a_share_is_above_100_percent(tmp_path):
    path = tmp_path / "registry.json"
    registry.publish(path, HERE, planted(), {})
    for row in json.loads(path.read_text())["entries"]:
        assert (row["share_of_bound"] > 1) == bool(row["above_bound"])
    done = CliRunner().invoke(app, ["tune", "show", str(path), "--device", "cpu"], env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.output
    assert "of its ceiling" in done.stdout and "94% matrix products" in done.stdout
    flat = " ".join(done.stdout.split())
    for found in planted():
        assert (found.share_of_bound > 1) == (f"{found.case.key}: {share_text(found.share_of_bound, found.bound)}: "
                                              f"{found.above_bound}" in flat)  # fmt: skip


def test_terminal_of_a_study_says_so_too():
    console = Console(width=200)
    with console.capture() as got:
        tables.show_kernels(console, studies.study())
    text = " ".join(got.get().split())
    assert text.count("121%") == 2 and "121% cache: part of the data probably stayed in a nearer cache" in text


def test_an_older_file_without_the_sentence_gets_the_usual_one():
    assert why_above(1.2, "dram") and why_above(1.2, "tensor") == TOO_LOW and why_above(1.2, "dram", "so") == "so"
    assert why_above(1.0, "dram") is None and why_above(None, None) is None


def copy(value, **facts):
    samples = [0.9 * value] * 50 + [value] * 50
    given = {"low": 0.99 * value, "high": 1.01 * value, "source": "a copy", "samples": samples} | facts
    return Ceiling(name="dram_copy", unit="bytes_per_s", value=value, origin="measured", **given)


def test_samples_beside_races_raise_a_ceiling_beyond_its_interval_and_never_lower_it():
    old = copy(100.0)
    assert pooled(old, [20.0] * 50).value == pooled(old, [100.9] * 50).value == 100.0
    higher = pooled(old, [150.0] * 16)
    assert higher.value == 150.0 and higher.source == "a copy" and len(higher.samples) == 116
    machine = MachineCeilings(HERE, [old])
    assert machine.raised({"dram_copy": [20.0]}) == [] and machine.raised({}) == []
    (raised,) = machine.raised({"dram_copy": [150.0] * 16})
    assert machine.known.value("dram") == raised.value == 150.0


def test_a_study_keeps_what_kernels_were_judged_by_and_says_what_was_reached_later():
    exp = Ceiling.stated("special_exp", "ops_per_s", 7.0, "measured", "exp")
    same = held([copy(100.0)], [copy(100.5), exp])
    assert [(c.name, c.value, c.source) for c in same] == [("dram_copy", 100.0, "a copy"), ("special_exp", 7.0, "exp")]
    assert same[0].samples == copy(100.5).samples and same[0].usual <= same[0].value
    (faster,) = held([copy(100.0)], [copy(200.0)])
    assert faster.value == 100.0 == faster.usual and faster.source == "a copy; 2.00 times this was reached afterwards"


def test_a_device_that_was_slower_beside_a_race_is_named(tmp_path):
    record = machine_ceilings.record(copy(100.0))  # usually 95
    race = next(line for line in journals.records() if isinstance(line, Race))
    for reached, slower in (([80.0] * 4, False), ([70.0] * 4, True), ([], False)):
        heat = msgspec.structs.replace(race, ceilings={"dram_copy": reached})
        told = slowed(heat, {"dram_copy": record})
        assert (told is not None) == slower
        lines = Summary.of([*journals.records()[:1], record, heat]).lines()
        assert any("slower than usual in 1 of 1 races" in line for line in lines) == slower
    assert told is None and slowed(race, {}) is None
    assert "dram_copy reached 70% of its ceiling beside the race, and usually 95%" in slowed(
        msgspec.structs.replace(race, ceilings={"dram_copy": [70.0]}), {"dram_copy": record}
    )


def whole(**facts) -> list[Ceiling]:
    names = ("dram_copy", "matmul_float32", "matmul_rows_float32_1", "vector_float32", "special_exp", "launch")
    return [msgspec.structs.replace(copy(100.0), name=name, **facts) for name in names]


@pytest.mark.parametrize(
    ("table", "hours", "software", "used"),
    [
        (whole(), 1, {}, True),
        (whole(), 25, {}, False),
        (whole(), -1, {}, False),
        (whole(), 1, {"torch": "1.0"}, False),
        (whole(source="a copy" + DISTURBED), 1, {}, False),
        (whole()[:1], 1, {}, False),
    ],
)
def test_stored_ceilings_are_taken_while_fresh_whole_undisturbed_and_of_this_software(
    tmp_path, table, hours, software, used
):
    now = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
    facts = device.provenance(HERE) | software | {"date": (now - datetime.timedelta(hours=hours)).isoformat()}
    path = tmp_path / "c.json"
    assert machine_ceilings.stored(path, HERE, now) == []
    store.save(path, HERE, table, facts)
    names = {c.name for c in machine_ceilings.stored(path, HERE, now)}
    assert names == ({"dram_copy", "matmul_float32", "vector_float32", "special_exp"} if used else set())
    path.write_text("{")
    assert machine_ceilings.stored(path, HERE, now) == []


def test_ceilings_go_to_the_journal_and_back():
    table = CPU.table
    records = {c.name: machine_ceilings.record(c) for c in table}
    assert machine_ceilings.recorded(records) == list(table)
    old = CeilingRecord(name="dram_copy", value=1.0, low=1.0, high=1.0, unit="bytes_per_s")
    assert machine_ceilings.recorded({"dram_copy": old}) == machine_ceilings.recorded({}) == []


def test_buffers_beside_races_stay_small(monkeypatch):
    """Outside of a large cache they would hold gigabytes through a run."""
    made = []
    monkeypatch.setattr(machine_ceilings.probes, "of_roof", lambda name, where: made.append(name) or [])
    machine = MachineCeilings(HERE, [copy(100.0)])
    for megabytes, count in ((32, 1), (480, 1)):
        there = dataclasses.replace(HERE, last_level_cache_bytes=megabytes * 2**20)
        assert machine.beside("linear_scan", BIG.plain(), there) == {} and len(made) == count


def test_a_run_judges_all_by_the_set_as_it_stands_at_the_end(small, tmp_path, monkeypatch):
    """A late race finds the machine three times as fast: entries decided before are judged by that too."""
    reached = []

    def beside(self, op, case, where):
        reached.append(op)
        return {"dram_copy": [3 * self.known.ceiling("dram_copy").value] * 20} if len(reached) == 4 else {}

    monkeypatch.setattr(MachineCeilings, "beside", beside)
    outcome = small_tune.run(tmp_path, dataclasses.replace(small_tune.OPTIONS, ops=("linear_scan",)))
    told = {record.name: record for record in small_tune.records(tmp_path, CeilingRecord)}
    known = Ceilings(HERE.name, tuple(machine_ceilings.recorded(told)), HERE.last_level_cache_bytes)
    assert len(small_tune.records(tmp_path, CeilingRecord)) == len(told) + 1, "one was raised"
    stored = registry.load(outcome.paths.registry).entries
    last = {(r.entry.op, r.entry.case.key): r.entry for r in small_tune.records(tmp_path, Result)}
    assert stored and len(reached) >= 6
    for found in stored:
        assert found == floors.judged(found, known) == last[found.op, found.case.key]
