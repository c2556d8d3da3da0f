"""`tune` from plan to registry: what it decides, how it stops, how it goes on."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, registry
from griffin_kernels.contract import NoConfig, Variant
from reports.cli import app
from roofline import stats
from tests import small_tune
from tests.small_tune import Quiet, records, run
from tuning.measure import correctness
from tuning.plan import planner
from tuning.plan.budget import BUDGETS
from tuning.plan.planner import Options
from tuning.record import journal
from tuning.record.journal_records import Candidate, End, Race, Result, Run
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.ui import terminal

HERE = device.cpu()


small = pytest.fixture(autouse=True)(small_tune.small)


def test_run_leaves_a_journal_a_registry_and_a_winner_that_dispatch_uses(tmp_path, monkeypatch):
    outcome = run(tmp_path)
    assert isinstance(journal.read(outcome.paths.journal)[-1], End)
    assert len(outcome.entries) == 6
    stored = registry.load_for(outcome.paths.registry, HERE).entries
    assert sorted(e.samples_digest for e in stored) == sorted(e.samples_digest for e in outcome.entries)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path))
    dispatch.refresh()
    for entry in stored:
        choice = griffin_kernels.select(entry.op, entry.case, HERE)
        assert (choice.origin, choice.variant.name) == ("registry", entry.variant)


def test_journal_has_what_search_chose_and_what_it_never_leaves_out_once_each(tmp_path):
    run(tmp_path)
    jobs = planner.make(small_tune.OPTIONS, HERE)
    planned = {p.key(job.case, HERE): (p, job) for job in jobs for p in job.candidates}
    found = [c.key for c in records(tmp_path, Candidate)]
    assert len(found) == len(set(found))
    tried = [c for c in records(tmp_path, Candidate) if c.status != "skipped"]
    assert len(tried) <= records(tmp_path, Run)[0].planned
    assert set(found) <= set(planned)
    never_left_out = {k for k, (p, job) in planned.items() if p.reason or p.variant.baseline or p is job.default}
    assert never_left_out <= set(found)


def test_winner_is_never_a_baseline_and_baseline_never_a_candidate_of_ours(tmp_path):
    for entry in run(tmp_path).entries:
        assert not catalog.variant(f"{entry.op}/{entry.variant}").baseline
        assert catalog.variant(f"{entry.op}/{entry.baseline}").baseline


def planted(name, behave, **facts):
    """linear_scan's eager.sequential with something done to its outputs."""
    real = catalog.variant("linear_scan/eager.sequential")

    def run(call, config):
        return behave(real.run(call, NoConfig()))

    run.__module__ = real.run.__module__
    return Variant("linear_scan", name, "planted", run, NoConfig, **facts)


def with_planted(monkeypatch, *variants):
    """linear_scan has these, one right candidate and a baseline: so few that every budget tries them all."""
    everything = catalog.variants
    kept = {n: v for n, v in everything("linear_scan").items() if n in ("eager.sequential", "eager.loop")}

    def more(op_name):
        return kept | {v.name: v for v in variants} if op_name == "linear_scan" else everything(op_name)

    monkeypatch.setattr(catalog, "variants", more)


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("behave", "status", "problem"),
    [
        (lambda out: (out[0] * 1.001, *out[1:]), "wrong", "h is wrong"),
        (lambda out: (out[0], out[1] + 1e-2, *out[2:]), "wrong", "h_last is wrong"),
        (lambda out: (torch.full_like(out[0], float("nan")), *out[1:]), "wrong", "relative norm inf"),
        (lambda out: (torch.empty_like(out[0]), *out[1:]), "wrong", "h is wrong"),
        (lambda out: (out[0][:, :-1], *out[1:]), "wrong", "shape"),
        (lambda out: (out[0].double(), *out[1:]), "wrong", "float64"),
        (lambda out: (out[0],), "wrong", "1 outputs"),
        (lambda out: raise_(RuntimeError("boom")), "failed", "RuntimeError: boom"),
        (lambda out: raise_(MemoryError()), "memory", "MemoryError"),
    ],
    ids=["off by a permille", "h_last off", "NaN", "unwritten", "short", "dtype", "output missing", "raises", "memory"],
)
def test_bad_candidate_is_named_never_timed_and_never_wins(tmp_path, monkeypatch, behave, status, problem):
    with_planted(monkeypatch, planted("eager.planted", behave))
    case = catalog.op("linear_scan").cases_tagged("smoke")[0]
    outcome = run(
        tmp_path, Options(ops=("linear_scan",), cases=(case.key,), budget="quick", device="cpu", in_process=True)
    )
    record = next(c for c in records(tmp_path, Candidate) if c.variant == "eager.planted" and c.case.dtype == "float32")
    assert record.status == status
    assert problem in (record.problem or "")
    assert record.samples_s == []
    assert all(entry.variant != "eager.planted" for entry in outcome.entries)


def test_input_that_a_candidate_changes_makes_it_wrong(tmp_path, monkeypatch):
    def scribble(call, config):
        out = catalog.variant("linear_scan/eager.sequential").run(call, NoConfig())
        call.x.zero_()
        return out

    scribble.__module__ = catalog.variant("linear_scan/eager.sequential").run.__module__
    with_planted(monkeypatch, Variant("linear_scan", "eager.planted", "", scribble, NoConfig))
    run(tmp_path, Options(ops=("linear_scan",), cases=("float32",), budget="quick", device="cpu", in_process=True))
    found = [c for c in records(tmp_path, Candidate) if c.variant == "eager.planted"]
    assert [c.problem.split(": ")[-1] for c in found] == ["changed its input x"] * len(found)


def leaking(call, config):
    """Right, but for a factor of zero: what is NaN in one batch row is NaN in all."""
    h, *others = catalog.variant("linear_scan/eager.sequential").run(call, NoConfig())
    return h + 0.0 * call.x.sum().to(h.dtype), *others


def multiplying(call, config):
    """Right while gates are within [-1, 1]: a product of gates overflows where the state does not."""
    h, h_last, a_prod = catalog.variant("linear_scan/eager.sequential").run(call, NoConfig())
    return h, h_last + 0.0 * call.a.double().prod(1).to(h_last.dtype), a_prod


@pytest.mark.parametrize(
    ("behave", "words"), [(leaking, "which does not depend on it"), (multiplying, "~wild: h_last is wrong")]
)
def test_candidate_that_leaks_or_overflows_is_wrong(tmp_path, monkeypatch, behave, words):
    behave.__module__ = catalog.variant("linear_scan/eager.sequential").run.__module__
    with_planted(monkeypatch, Variant("linear_scan", "eager.planted", "", behave, NoConfig))
    monkeypatch.setattr(correctness, "SHORT_STEPS", 19)  # the small case has a short form
    case = catalog.op("linear_scan").cases_tagged("smoke")[0]
    run(tmp_path, Options(ops=("linear_scan",), cases=(case.key,), budget="quick", device="cpu", in_process=True))
    (found,) = [c for c in records(tmp_path, Candidate) if c.variant == "eager.planted"]
    assert found.status == "wrong" and words in found.problem


@dataclass(frozen=True)
class Three:
    n: int = 1


def test_hopeless_variant_is_not_tried_again_with_other_configurations_or_at_later_cases(tmp_path, monkeypatch):
    real = catalog.variant("linear_scan/eager.sequential")

    def dawdle(call, config):
        time.sleep(0.1)
        return real.run(call, NoConfig())

    dawdle.__module__ = real.run.__module__
    with_planted(monkeypatch, Variant("linear_scan", "eager.planted", "", dawdle, Three, axes={"n": (1, 2, 3)}))
    options = Options(ops=("linear_scan",), budget="quick", device="cpu", in_process=True)
    run(tmp_path, options)
    found = [c for c in records(tmp_path, Candidate) if c.variant == "eager.planted"]
    assert [c.status for c in found] == ["slow", *["skipped"] * (len(found) - 1)]
    assert "times slower with another configuration" in found[1].problem
    assert f"times slower than the best at {found[0].case.key}" in found[-1].problem
    run(tmp_path, Options(ops=("linear_scan",), cases=("float32",), budget="thorough", device="cpu", in_process=True))
    assert all(c.status == "slow" for c in records(tmp_path, Candidate) if c.variant == "eager.planted")


def test_resume_goes_on_where_it_stopped_and_repeats_nothing(tmp_path):
    class Stop(Quiet):
        count = 0

        def candidate(self, record, lane=""):
            self.count += 1
            if self.count == 17:
                raise KeyboardInterrupt

    paths = Paths.choose(tmp_path, HERE)
    stopped = tune(small_tune.OPTIONS, paths, Stop(), "griffin tune", False)
    assert stopped.interrupted and stopped.cases == 6
    assert len(records(tmp_path, Candidate)) == 17
    published = registry.load_for(paths.registry, HERE).entries if paths.registry.exists() else []
    decided = [r.entry for r in records(tmp_path, Result)]
    assert sorted(e.date for e in published) == sorted(e.date for e in stopped.entries)
    assert list(stopped.entries) == decided and len(published) == len(decided) == 6 - len(stopped.left)
    outcome = run(tmp_path, resume=True)
    assert outcome.entries[: len(decided)] == stopped.entries
    assert len(outcome.entries) == 6
    assert max(Counter(c.key for c in records(tmp_path, Candidate)).values()) == 1
    assert [r.resumed for r in records(tmp_path, Run)] == [False, True]
    assert len({r.run_id for r in records(tmp_path, Run)}) == 1


def test_candidates_of_changed_source_are_tried_again_on_resume(tmp_path):
    run(tmp_path)
    path = tmp_path / journal.FILE_NAME
    lines = path.read_text().splitlines(keepends=True)
    old = catalog.variant("linear_scan/eager.chunked").source_hash
    path.write_text("".join(lines[:-1]).replace(old, "0" * 16))
    run(tmp_path, resume=True)
    again = {k for k, n in Counter(c.key for c in records(tmp_path, Candidate)).items() if n == 2}
    assert again
    assert all(key.startswith("linear_scan/eager.chunked/") for key in again)


def test_resume_with_other_options_or_device_is_refused(tmp_path):
    run(tmp_path)
    path = tmp_path / journal.FILE_NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(errors.JournalError, match="options the run was started with"):
        run(tmp_path, Options(ops=("linear_scan",), device="cpu"), resume=True)
    path.write_text(path.read_text().replace(HERE.name, "Some other CPU"))
    with pytest.raises(errors.JournalError, match="another device"):
        run(tmp_path, resume=True)


def test_new_run_sets_the_old_journal_aside_and_resume_of_nothing_starts_one(tmp_path):
    run(tmp_path, resume=True)
    first = records(tmp_path, Run)[0].run_id
    run(tmp_path)
    assert (tmp_path / f"journal-{first}.jsonl").exists()
    assert records(tmp_path, Run)[0].run_id != first


class Clock(Quiet):
    """Time that goes by 100 seconds with every case that is decided."""

    now = 0.0

    def result(self, result, lane=""):
        self.now += 100.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(("minutes", "decided"), [(3.0, 2), (4.0, 3), (100.0, 6)])
def test_time_that_is_up_leaves_what_was_decided_and_a_resume_goes_on(tmp_path, minutes, decided):
    clock = Clock()
    paths, options = Paths.choose(tmp_path, HERE), dataclasses.replace(small_tune.OPTIONS, minutes=minutes)
    outcome = tune(options, paths, clock, clock=clock.monotonic)
    assert (len(outcome.entries), len(outcome.left)) == (decided, 6 - decided)
    assert len(registry.load_for(paths.registry, HERE).entries) == decided
    assert journal.unfinished(journal.read(paths.journal)) == (decided < 6)
    if decided < 6:
        again = tune(dataclasses.replace(options, minutes=0.0), paths, clock, resume=True, clock=clock.monotonic)
        assert (len(again.entries), again.left) == (6, ())
        assert outcome.left[0].startswith("linear_scan") and again.entries[:decided] == outcome.entries
        assert len(registry.load_for(paths.registry, HERE).entries) == 6
        assert max(Counter(r.key for r in records(tmp_path, Candidate)).values()) == 1


def test_time_that_is_up_before_anything_is_decided_publishes_nothing_and_says_so(tmp_path):
    words = (
        "tune",
        "--device",
        "cpu",
        "--ops",
        "linear_scan",
        "--in-process",
        "--budget",
        "quick",
        "--out",
        str(tmp_path),
    )
    code, text = invoke(*words, "--minutes", "0.00001")
    assert code == 0, text
    assert "time is up: none of 3 cases is decided or published" in text
    assert "3 are left, from linear_scan B2-T37-D24-float32 on" in text
    assert f"go on with: griffin tune --resume --out {tmp_path}" in text
    assert "registry " not in text and not Paths.choose(tmp_path, HERE).registry.exists()
    code, text = invoke("tune", "--resume", "--out", str(tmp_path), "--device", "cpu", "--minutes", "60")
    assert (code, "time is up" in text) == (0, False)
    assert "study " not in text, "a resumed run leaves out what the run that it goes on with did"
    assert len(registry.load_for(Paths.choose(tmp_path, HERE).registry, HERE).entries) == 3


def invoke(*words):
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def test_dry_run_writes_nothing(tmp_path):
    code, text = invoke("tune", "--device", "cpu", "--dry-run", "--out", str(tmp_path / "new"))
    assert code == 0, text
    assert "nothing was measured" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ops", "linear_scam"], "no op 'linear_scam'; there are block_diagonal_scan"),
        (["--cases", "T99999"], "no case matches"),
        (["--dtypes", "float8"], "no dtype 'float8'; there are float32"),
        (["--budget", "huge"], "no budget 'huge'; there are quick, default, thorough"),
        (["--strategy", "genius"], "no strategy 'genius'; there are seeded"),
        (["--timeout", "0"], "timeout is 0, expected a number of seconds"),
        (["--minutes", "-1"], "minutes is -1, expected a number from 0 up"),
        (["--memory", "-1"], "--memory is -1, expected a size from 0 B up"),
        (["--memory", "lots"], "--memory is 'lots', expected a size such as 8GiB"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "mps"], "device type 'mps' has no kernels"),
    ],
)
def test_wrong_option_is_answered_in_one_sentence(tmp_path, words, message):
    code, text = invoke("tune", "--out", str(tmp_path / "new"), *words)
    assert code == 2
    assert text.startswith("error: ")
    assert message in text
    assert not (tmp_path / "new" / journal.FILE_NAME).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_where_there_is_none(tmp_path):
    code, text = invoke("tune", "--device", "cuda", "--out", str(tmp_path))
    assert (code, "has no GPU that torch can use; device 'cpu' works" in text) == (2, True)


def test_unwritable_folder_is_reported_before_anything_is_tuned(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    code, text = invoke("tune", "--device", "cpu", "--out", str(blocker / "folder"))
    assert code == 2
    assert "results cannot be written to" in text
    assert "--out" in text


def test_broken_registry_in_the_way_is_reported_before_anything_is_tuned(tmp_path):
    target = Paths.choose(tmp_path, HERE).registry
    target.write_text("half a fi")
    code, text = invoke("tune", "--device", "cpu", "--out", str(tmp_path))
    assert code == 2
    assert "is not a valid registry" in text
    assert not (tmp_path / journal.FILE_NAME).exists()
    assert target.read_text() == "half a fi"


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    with journal.Journal(tmp_path / journal.FILE_NAME), pytest.raises(errors.JournalError, match="another tune run"):
        run(tmp_path)


@pytest.fixture
def two_lanes(monkeypatch):
    """As on a machine with two GPUs of a kind."""
    monkeypatch.setattr("tuning.run.lane_names", lambda device, options: ["cpu", "cpu:0"])


def test_several_devices_share_the_cases_of_an_op(tmp_path, two_lanes):
    busy = []

    class Lanes(Quiet):
        def job(self, op, case, lane=""):
            busy.append((lane, op))

    options = dataclasses.replace(small_tune.OPTIONS, in_process=False)
    outcome = tune(options, Paths.choose(tmp_path, HERE), Lanes(), prepare="tests.small_tune:shrink")
    assert [(e.op, e.case.dtype) for e in outcome.entries] == [
        (op, dtype) for op in options.ops for dtype in ("float32", "bfloat16", "float16")
    ]
    assert {lane for lane, _ in busy} == {"cpu", "cpu:0"}
    assert [op for _, op in busy] == sorted(op for _, op in busy)  # an op begins when the one before it is decided
    keys = [r.key for r in records(tmp_path, Candidate)]
    assert len(keys) == len(set(keys))


def test_interrupt_stops_all_devices(tmp_path, two_lanes):
    class Stop(Quiet):
        def candidate(self, record, lane=""):
            if lane == "cpu:0":
                raise KeyboardInterrupt

    options = dataclasses.replace(small_tune.OPTIONS, in_process=False)
    paths = Paths.choose(tmp_path, HERE)
    stopped = tune(options, paths, Stop(), prepare="tests.small_tune:shrink")
    assert stopped.interrupted and stopped.cases == 6 and stopped.left
    assert [r.entry for r in records(tmp_path, Result)] == list(stopped.entries)
    statuses = {r.status for r in records(tmp_path, Candidate)}
    assert statuses <= {"ok", "slow", "rejected", "skipped"}, "a candidate was blamed for the interrupt"


def test_display_prints_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    output = terminal.RunOutput(Console(force_terminal=False, width=200))
    outcome = terminal.run(output, small_tune.OPTIONS, tmp_path, False, "griffin tune")
    text = capsys.readouterr().out
    assert outcome is not None
    assert "\x1b[" not in text
    assert re.search(r"linear_scan B2-T37-D24-float32: eager\.\w+ .*\[\d+/\d+, left", text)
    assert f"registry  {outcome.paths.registry}" in text


def test_race_is_over_rounds_and_has_an_a_a_pair(tmp_path):
    run(tmp_path)
    for heat in records(tmp_path, Race):
        assert BUDGETS["quick"].rounds >= len(heat.rounds_s) == len(heat.again_s)
        low, high = stats.paired_ratio_interval(heat.times(0), heat.again_s)
        assert heat.noise_floor == pytest.approx(max(abs(1 - low), abs(high - 1)))
    assert len(records(tmp_path, Result)) == 6


def test_states_that_a_candidate_changes_are_not_what_the_next_is_checked_on(tmp_path):
    """Of an op that works in place no variant may look wrong because another was timed before it."""
    options = Options(ops=("rg_lru_step",), cases=("float32",), budget="quick", device="cpu", in_process=True)
    paths = Paths.choose(tmp_path, HERE)
    tune(options, paths, Quiet())
    found = [r for r in journal.read(paths.journal) if isinstance(r, Candidate)]
    assert {r.variant for r in found if r.status == "ok"} >= {"eager.folded", "eager.unfused"}
    assert [(r.variant, r.problem) for r in found if r.status == "wrong"] == []
