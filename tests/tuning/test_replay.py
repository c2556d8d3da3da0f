"""Replay: packed journals, searches played on them, the recorder, and the command line."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from griffin_kernels import catalog, errors
from griffin_kernels import device as devices
from griffin_kernels.case import Case
from griffin_kernels.contract import config_dict
from griffin_kernels.records import DeviceRecord
from reports.cli import app
from tests.small_tune import shrink
from tuning.plan import planner
from tuning.record.journal import Journal
from tuning.record.journal_records import JOURNAL_VERSION, Candidate, Run
from tuning.replay import packed, record, simulate
from tuning.replay.packed import PACK_VERSION, MeasuredPoint, Packed
from tuning.search.strategies import DEFAULT, STRATEGIES

pytestmark = pytest.mark.unit

RUNNER = CliRunner()
CASE = Case({"B": 1, "T": 64, "D": 8, "N": 1}, "float32")


def made_up(sizes: int = 8, interleaved: bool = False, samples: int = 7) -> Packed:
    """A packed journal of 2 x ``sizes`` points that nobody measured, the last but one the fastest, one failed."""
    rng = np.random.default_rng(0)
    points = []
    for variant, factor in (("eager.a", 1.0), ("eager.b", 2.5)):
        for size in range(sizes):
            seconds = factor * 1e-3 * (1 + 0.1 * abs(size - (sizes - 2)))
            drawn = [float(s) for s in seconds * np.exp(rng.normal(0, 0.01, samples))]
            points.append(MeasuredPoint(variant=variant, config={"size": size}, samples_s=drawn, seconds_spent=0.5))
    points[1] = MeasuredPoint(
        variant="eager.a", config={"size": 1}, status="crashed", problem="gone", seconds_spent=2.0
    )
    return Packed(
        schema_version=PACK_VERSION,
        op="linear_scan",
        case=CASE,
        device=DeviceRecord({"name": "made up"}, {}),
        date="2026-01-01T00:00:00+00:00",
        source="a test",
        source_hashes={"eager.a": "0" * 16, "eager.b": "0" * 16},
        default=0,
        interleaved=interleaved,
        points=points,
    )


SHIPPED = packed.shipped()


@pytest.mark.parametrize("journal", SHIPPED, ids=lambda journal: journal.name)
def test_the_default_strategy_reaches_98_percent_with_a_quarter_of_the_evaluations(journal):
    play = simulate.play(journal, STRATEGIES[DEFAULT], math.ceil(len(journal.points) / 4))
    assert len(play.tried) <= math.ceil(len(journal.points) / 4)
    assert play.reached >= 0.98, f"{play.reached:.1%} of the optimum of {journal.name} after {len(play.tried)}"


@pytest.mark.parametrize("journal", SHIPPED, ids=lambda journal: journal.name)
def test_shipped_journals_are_measurements_of_whole_spaces(journal):
    """Made by the recorder, of cases of the catalogue; the best was sampled often and every point that ran enough."""
    assert journal.source.startswith(("tuning.replay.record", "journal of run"))
    assert journal.device.validity["name"] and journal.device.provenance["date"]
    assert journal.case.key in {case.key for case in catalog.op(journal.op).cases}
    assert len(journal.points) >= 30 and journal.default is not None
    assert len(set(journal.space.points)) == len(journal.points)
    assert len(journal.points[journal.best].samples_s) >= 21
    limit = 3 * journal.optimum_s
    for point, seconds in zip(journal.points, journal.seconds, strict=True):
        assert seconds is None or len(point.samples_s) >= (7 if seconds < limit / 2 else 3)
        assert all(sample > 0 for sample in point.samples_s)


def test_play_counts_only_finalists_and_what_was_paid():
    journal = made_up()
    play = simulate.play(journal, STRATEGIES["exhaustive"], 3)
    assert play.tried == (0, 1, 2) and play.cost_s == 3.0
    assert play.reached == pytest.approx(journal.optimum_s / journal.seconds[2])
    assert simulate.play(journal, STRATEGIES["exhaustive"], 99).reached == 1.0
    assert simulate.play(journal, STRATEGIES["exhaustive"], 99).cost_s == pytest.approx(15 * 0.5 + 2.0)


def test_play_is_deterministic_and_seeds_differ():
    journal = made_up(sizes=12)
    plays = [simulate.play(journal, STRATEGIES["random"], 6, seed) for seed in (None, 0, 1, 0)]
    assert plays[1] == plays[3]
    assert len({play.tried for play in plays[:3]}) == 3


def test_seeded_plays_see_noise_and_are_judged_without():
    """A lucky sample does not make a slow point a good one."""
    journal = made_up()
    lucky = msgspec.structs.replace(journal.points[7], samples_s=[1e-5, 1e-5, 1e-5, 4e-3, 4e-3, 4e-3, 4e-3])
    points = [*journal.points[:7], lucky, *journal.points[8:]]
    journal = msgspec.structs.replace(journal, points=points)
    assert journal.seconds[7] == pytest.approx(4e-3) and journal.best == 6
    seen = {simulate._observed(journal, 7, seed) for seed in range(20)}
    assert min(seen) < 1e-4, "some seed sees the lucky samples"
    assert all(simulate.play(journal, STRATEGIES["exhaustive"], 99, seed).reached <= 1 for seed in range(20))


def test_a_strategy_that_repeats_itself_is_named():
    class Stuck:
        name = "stuck"

        def next(self, space, seen, left):
            return 2

    with pytest.raises(errors.ArgumentError, match="'stuck' chose point 2, which it had tried"):
        simulate.play(made_up(), Stuck(), 5)


def test_slow_rounds_are_told_from_slow_points():
    """Rounds 3 to 7 of 11 ran at half speed, and a point that dropped out after 5 saw most of them."""
    journal = made_up(interleaved=True, samples=11)
    slow = np.where((np.arange(11) >= 3) & (np.arange(11) < 8), 2.0, 1.0)
    points = [
        msgspec.structs.replace(p, samples_s=[float(s) for s in np.array(p.samples_s) * slow[: len(p.samples_s)]])
        for p in journal.points
    ]
    points[3] = msgspec.structs.replace(points[3], samples_s=points[3].samples_s[2:8][:5])
    points[3] = msgspec.structs.replace(points[3], samples_s=[float(2e-3 * f) for f in slow[:5]])
    uneven = msgspec.structs.replace(journal, points=points)
    ratio = uneven.drift[3:8].mean() / uneven.drift[:3].mean()
    assert ratio == pytest.approx(2, rel=0.02)
    middle = float(np.median(uneven.drift))
    assert uneven.seconds[3] * middle / middle == pytest.approx(2e-3 / uneven.drift[:3].mean(), rel=0.02)
    apart = msgspec.structs.replace(uneven, interleaved=False)
    assert (apart.drift == 1).all()


def test_write_and_read(tmp_path):
    journal = made_up()
    path = packed.write(tmp_path, journal)
    assert path.name == "linear_scan--B1-T64-D8-float32.json" and list(tmp_path.iterdir()) == [path]
    again = packed.read(path)
    assert again.points[1] == journal.points[1]
    assert again.best == journal.best and again.optimum_s == pytest.approx(journal.optimum_s, rel=1e-3)
    assert path.read_text().count("\n") > len(journal.points), "a line for each point"
    assert packed.read_all([tmp_path]) == [again]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a packed journal: .*; `griffin tune replay --pack"),
        ('{"schema_version": 1, "op": 3}', "is not a packed journal"),
        ('{"schema_version": 99}', "has schema version 99, this package reads up to 1; update"),
    ],
)
def test_broken_files_are_named(tmp_path, text, says):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(errors.JournalError, match=f"x.json {says}"):
        packed.read(path)


def test_files_with_nothing_in_them_are_named(tmp_path):
    failed = [msgspec.structs.replace(p, status="failed") for p in made_up().points]
    for changed, says in (
        ({"points": failed}, "no point that was timed"),
        ({"default": 99}, "its default is point 99"),
    ):
        path = packed.write(tmp_path, msgspec.structs.replace(made_up(), **changed))
        with pytest.raises(errors.JournalError, match=says):
            packed.read(path)
    with pytest.raises(errors.JournalError, match="cannot be read: No such file"):
        packed.read(tmp_path / "missing.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.JournalError, match="no packed journal"):
        packed.read_all([tmp_path / "empty"])
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputFolderError, match="cannot be written"):
        packed.write(tmp_path / "file" / "folder", made_up())


@pytest.fixture
def small(monkeypatch):
    """Plans of eager variants on tiny cases."""
    shrink(monkeypatch.setattr)


def journal_of(path, job, left_out=()):
    """A thorough run's journal of one job as the tuner writes it."""
    here = devices.cpu()
    start = {"journal_version": JOURNAL_VERSION, "run_id": "r", "date": "2026-01-01", "command": "griffin tune"}
    with Journal(path) as log:
        log.append(Run(**start, device=DeviceRecord(here.validity(), {}), options={}, planned=9))
        for number, p in enumerate(reversed(job.candidates)):
            if number in left_out:
                continue
            log.append(
                Candidate(
                    key=p.key(job.case, here),
                    op=job.op.name,
                    variant=p.variant.name,
                    case=job.case.plain(),
                    config=config_dict(p.config),
                    baseline=p.variant.baseline,
                    is_default=p is job.default,
                    status="rejected" if p.reason else "ok",
                    samples_s=[] if p.reason else [1e-3 * (number + 1)] * 3,
                    source_hash=p.variant.source_hash,
                    seconds_spent=0.25,
                )
            )
    return path


def test_pack_of_a_journal(tmp_path, small):
    job = planner.make(planner.Options(("linear_scan",), budget="thorough"), devices.cpu())[0]
    found = packed.pack(journal_of(tmp_path / "journal.jsonl", job))
    assert [p.name for p in found] == [f"linear_scan {job.case.key}"]
    able = [p for p in job.candidates if p.reason is None and not p.variant.baseline]
    whole = found[0]
    assert [(m.variant, m.config) for m in whole.points] == [(p.variant.name, config_dict(p.config)) for p in able]
    assert able[whole.default] is job.default
    assert whole.optimum_s == pytest.approx(min(m.samples_s[0] for m in whole.points))
    assert all(m.seconds_spent == 0.25 for m in whole.points) and not whole.interleaved


def test_a_journal_that_is_not_whole_is_not_packed(tmp_path, small):
    job = planner.make(planner.Options(("linear_scan",), budget="thorough"), devices.cpu())[0]
    own = next(n for n, p in enumerate(reversed(job.candidates)) if not p.variant.baseline and p.reason is None)
    with pytest.raises(errors.JournalError, match="no case of which every candidate was tried"):
        packed.pack(journal_of(tmp_path / "journal.jsonl", job, left_out=(own,)))


def test_recorder_measures_every_point_and_goes_on_where_it_was(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(record, "MOST", 12)
    command = ["--out", str(tmp_path), "--ops", "linear_scan", "--seconds", "1"]
    jobs = record.jobs_for(["linear_scan"], [], devices.cpu())
    assert record.main(command) == 0
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == len(jobs) == 3
    first = packed.read(tmp_path / packed.file_name("linear_scan", jobs[0].case.key))
    assert len(first.points) > 5 and all(point.timed for point in first.points)
    assert min(len(point.samples_s) for point in first.points) >= record.SLOW_SAMPLES
    assert len(first.points[first.best].samples_s) >= record.LEAST
    stamps = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    assert record.main(command) == 0
    assert capsys.readouterr().out.count(": there\n") == 2
    assert [f.stat().st_mtime_ns for f in files][1:] == stamps[1:] and files[0].exists()


def test_recorder_answers_a_wrong_option_in_one_line(tmp_path, capsys):
    assert record.main(["--out", str(tmp_path), "--ops", "linear_skan"]) == 2
    assert "error: no op 'linear_skan'" in capsys.readouterr().err


def test_table_has_a_row_for_each_strategy_and_budget():
    rows = simulate.rows([made_up(sizes=16)], [STRATEGIES[n] for n in ("seeded", "random")], seeds=2)
    assert [(row.strategy, list(row.after)) for row in rows] == [
        ("seeded", ["10", "25", "quarter"]),
        ("random", ["10", "25", "quarter"]),
    ]
    for row in rows:
        assert row.after["quarter"].evaluations == 8 and row.points == 32
        for found in row.after.values():
            assert 0 < found.worst <= found.mean <= 1 and found.cost_s > 0


def test_command_prints_a_table_or_json(tmp_path):
    path = packed.write(tmp_path, made_up())
    shown = RUNNER.invoke(app, ["tune", "replay", str(path), "--strategies", "seeded,lhs", "--seeds", "1"])
    assert shown.exit_code == 0, shown.output
    assert "linear_scan B1-T64-D8-float32: 16 points" in shown.output and "after 25%" in shown.output
    said = RUNNER.invoke(app, ["tune", "replay", str(path), "--strategies", "seeded", "--seeds", "1", "--json"])
    rows = json.loads(said.stdout)
    assert [row["strategy"] for row in rows] == ["seeded"] and rows[0]["after"]["quarter"]["evaluations"] == 4


def test_command_packs(tmp_path, small):
    job = planner.make(planner.Options(("linear_scan",), budget="thorough"), devices.cpu())[0]
    journal = journal_of(tmp_path / "journal.jsonl", job)
    done = RUNNER.invoke(app, ["tune", "replay", "--pack", str(journal), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert len(packed.read_all([tmp_path / "out"])) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.json"], "packed journal nowhere.json cannot be read"),
        (["--strategies", "genetic"], "no strategy 'genetic'; there are seeded"),
        (["--pack", "only-one"], "--pack takes a journal and a folder, it was given 1 paths"),
        (["--pack", "nowhere.jsonl", "out"], "journal nowhere.jsonl cannot be read"),
    ],
)
def test_command_answers_wrong_words_in_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(app, ["tune", "replay", *words])
    assert done.exit_code == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
