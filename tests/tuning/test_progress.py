"""How a run is told: lines, a live picture, events, and an estimate of what is left."""

from __future__ import annotations

import functools
import io
import json
import operator
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from griffin_kernels.case import Case
from griffin_kernels.records import Tie
from reports.cli import app
from tests import ROOT, journals, small_tune
from tuning.plan.schedule import Estimate
from tuning.record.journal_records import BAD, Candidate, Conditions, End, Noise, Race, Result
from tuning.ui import events, terminal
from tuning.ui.progress import STATUSES, Display, Summary, result_text, summary_table

NOISE = Noise(what="torch.add", seconds=1e-3, rounds=41, low=0.99, high=1.018, floor=0.018)

CASE = Case({"B": 1, "T": 64, "D": 8, "N": 1}, "float32")
SMALL = Case({"B": 1, "T": 8, "D": 8, "N": 1}, "float32")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def candidate(op="linear_scan", variant="eager.chunked", status="ok", took=1e-3, spent=1.0, case=CASE, **facts):
    problem = None if status == "ok" else f"{status} for a test"
    return Candidate(
        key=f"{op}/{variant}/{case.key}/default/cpu", op=op, variant=variant, case=case, config={},
        baseline=variant == "eager.loop", is_default=False, status=status, problem=problem,
        samples_s=[took] if status == "ok" else [], seconds_spent=spent, **facts,
    )  # fmt: skip


def result():
    return next(r for r in journals.records() if isinstance(r, Result))


def tell(listener, case=CASE):
    """A short run of one case, two candidates of which end badly."""
    listener.noise(NOISE)
    place = ("linear_scan", case.key)
    listener.expect({place: 5, ("rg_lru", "B1"): 2})
    listener.begin(1)
    listener.job("linear_scan", case.key, lane="cpu")
    for variant, status in [("eager.loop", "ok"), ("eager.chunked", "ok"), ("eager.a", "crashed"), ("eager.b", "slow")]:
        listener.trying(variant, "default", lane="cpu")
        listener.candidate(candidate(variant=variant, status=status, took=4e-3 if variant == "eager.loop" else 1e-3),
                           lane="cpu")  # fmt: skip
    listener.worker("the worker is replaced:\n segmentation fault")
    listener.closed("rg_lru", "B1")
    listener.note("rg_lru: no candidate passed")
    listener.result(result(), lane="cpu")


def silent(*args, **facts):
    """A display whose words nobody reads."""
    return Display(Console(file=io.StringIO()), *args, **facts)


def lines(**facts):
    out = io.StringIO()
    with Display(Console(file=out, width=100), **facts) as display:
        tell(display)
    return out.getvalue().splitlines()


def test_lines_where_there_is_no_terminal():
    found = lines()
    assert found[0] == "noise floor 1.8% (A/A of torch.add, 41 rounds)"
    assert found[1] == "1 of 8 candidates are in the journal already"
    assert found[2].startswith("  crashed: linear_scan/eager.a/") and found[2].endswith("crashed for a test")
    assert found[3] == "  the worker is replaced: segmentation fault"
    assert re.fullmatch(r"linear_scan B8-\S+: triton.chunked .*\[5/6, left \S+, 1 failed\]", found[5])
    assert len(found) == 6


def test_quiet_says_what_went_wrong_and_nothing_else():
    assert [line.split(":")[0].strip() for line in lines(quiet=True)] == ["crashed", "the worker is replaced", "rg_lru"]


def test_picture_of_a_terminal_shows_what_every_device_is_at():
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    clock = Clock()
    display = Display(console, clock=clock)
    display.expect({("linear_scan", case.key): 20 for case in (CASE, SMALL)})
    display.begin(0)
    for lane, case in [("cuda:1", CASE), ("cuda:0", SMALL)]:
        display.job("linear_scan", case.key, lane=lane)
        display.trying("eager.chunked", "chunk=8", lane=lane)
        clock.now += 5
        display.candidate(candidate(variant="eager.loop", took=3e-3, spent=5, case=case), lane=lane)
        display.candidate(candidate(took=1e-3, spent=0, case=case), lane=lane)
        display.candidate(candidate(status="timeout", spent=0, case=case), lane=lane)
    with console.capture() as got:
        console.print(display.picture())
    head, *rows = [line.strip() for line in got.get().splitlines()]
    assert head.endswith("6/40 · 2 failed · 0:10 · left 0:56")
    assert rows[0] == "cuda:0  linear_scan B1-T8-D8-float32 · eager.chunked chunk=8 · best 1 ms, 3.00x eager.loop"
    assert rows[1].startswith("cuda:1  linear_scan B1-T64-D8-float32 ")


def test_live_display_leaves_no_picture_behind():
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=100)) as display:
        tell(display)
    assert "left" in out.getvalue()
    # what is drawn is wiped in the end: the last line that stays is the case's
    assert out.getvalue().rstrip().endswith("\x1b[2K")


def test_every_bad_status_is_said():
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        display.begin(0)
        for status in STATUSES:
            display.candidate(candidate(status=status))
    assert [line.split(":")[0].strip() for line in out.getvalue().splitlines()] == list(BAD)
    assert display.failed == len(BAD)


def earlier(seconds):
    """The journal of a run of two ops, one of which takes seconds for a candidate."""
    made = [candidate("cheap", spent=0.1, case=SMALL) for _ in range(20)]
    made += [candidate("dear", spent=seconds, case=CASE) for _ in range(20)]
    return [*made, End(date="", registry="", seconds=1.5 * sum(c.seconds_spent for c in made))]


PLANNED = {("cheap", SMALL.key): 20, ("dear", CASE.key): 20}


@pytest.mark.parametrize("pace", [1.0, 2.0])
def test_estimate_knows_from_the_run_before_that_later_ops_take_longer(pace):
    """Cheap candidates come first: their mean says 2 s where 90 or 180 are left."""
    clock = Clock()
    tally = silent(Estimate(earlier(3.0)), clock=clock)
    tally.expect(PLANNED)
    tally.begin(0)
    tally.job("cheap", SMALL.key)
    for _ in range(20):
        clock.now += 0.15 * pace
        tally.candidate(candidate("cheap", spent=0.1 * pace, case=SMALL))
    assert tally.left == pytest.approx(20 * 3.0 * 1.5 * pace, rel=0.05)
    clock.now += 10
    assert tally.left == pytest.approx(20 * 3.0 * 1.5 * pace - 10, rel=0.06)


def test_estimate_without_an_earlier_run_prices_each_op():
    clock = Clock()
    tally = silent(clock=clock)
    tally.expect(PLANNED)
    tally.begin(0)
    assert tally.left is None and tally.left_text == "?"
    for op, case, spent, count in [("cheap", SMALL, 0.1, 20), ("dear", CASE, 3.0, 5)]:
        tally.job(op, case.key)
        for _ in range(count):
            clock.now += spent * 1.2
            tally.candidate(candidate(op, spent=spent, case=case))
    assert tally.left == pytest.approx(15 * 3.0 * 1.2, rel=0.02)
    tally.expect({("dear", CASE.key): 3})
    assert tally.left == pytest.approx(3 * 3.0 * 1.2, rel=0.02)


def test_estimate_of_a_case_of_which_nothing_is_known_is_the_mean():
    clock = Clock()
    tally = silent(clock=clock)
    tally.expect({("linear_scan", CASE.key): 4, ("rg_lru", "B1"): 4})
    tally.begin(2)
    for _ in range(4):
        clock.now += 2
        tally.candidate(candidate(spent=1.0))
    assert (tally.done, tally.total, tally.left) == (6, 10, pytest.approx(8.0))
    tally.closed("rg_lru", "B1")
    assert (tally.done, tally.total, tally.left) == (6, 6, 0.0)


@given(
    already=st.integers(0, 30),
    coming=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    told=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*STATUSES, "closed", "expect"]), st.integers(0, 9))),
)
def test_never_are_more_candidates_done_than_in_all(already, coming, told):
    """Whatever a run tells: more than was planned, skipped ones, cases that end early, plans that change."""
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    display.expect({("linear_scan", f"B1-T{i}-D8-N1-float32"): count for i, count in enumerate(coming)})
    display.begin(already)
    for index, what, count in told:
        case = Case({"B": 1, "T": index, "D": 8, "N": 1}, "float32")
        if what == "closed":
            display.closed("linear_scan", case.key)
        elif what == "expect":
            display.expect({("linear_scan", case.key): count})
        else:
            display.candidate(candidate(status=what, case=case))
        assert 0 <= display.done <= display.total
        assert display.total == display.done + display.estimate.coming
    display.result(result())
    pairs = [tuple(map(int, found)) for found in re.findall(r"(\d+)(?: of |/)(\d+)", out.getvalue())]
    assert pairs and all(done <= total for done, total in pairs)


def read(stream: bytes):
    decoder = msgspec.json.Decoder(functools.reduce(operator.or_, events.Event.__subclasses__()))
    return [decoder.decode(line) for line in stream.splitlines()]


def test_events_hold_what_happened_and_how_far_it_is():
    stream = io.BytesIO()
    tell(silent(to=events.Events(stream, "cpu", "journal.jsonl")))
    found = read(stream.getvalue())
    kinds = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert kinds == ["noise", "begin", "job", *["candidate"] * 4, "worker", "note", "result"]
    begin, last = found[1], found[6]
    assert (begin.total, begin.already, begin.journal) == (8, 1, "journal.jsonl")
    assert (last.status, last.done, last.total, last.failed, last.speedup) == ("slow", 5, 8, 1, 4.0)
    assert found[-1].entry == result().entry


def test_run_goes_on_when_nobody_reads_its_events(capsys):
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError(32, "Broken pipe")

    tell(silent(to=events.Events(Closed(), "cpu", "journal.jsonl")))
    assert capsys.readouterr().err == "note: events cannot be written any more: Broken pipe; the run goes on\n"


def test_nothing_but_events_reaches_standard_output():
    code = (
        "import os, sys\nfrom tuning.ui import events\n"
        "with events.own_output() as stream:\n"
        "    print('python'); os.system('echo child'); os.write(1, b'native\\n')\n"
        "    events.Events(stream).write(events.NoteEvent('said'))\n"
        "print('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == '{"event":"note","text":"said"}\nafter\n'
    assert sorted(done.stderr.split()) == ["child", "native", "python"]


def test_terminal_tells_a_run_in_events_and_a_table(tmp_path, monkeypatch):
    outcome_entries = [r.entry for r in journals.records() if isinstance(r, Result)]

    def tuned(options, paths, listener, *more):
        tell(listener)
        journals.write(paths.journal, journals.records())
        return terminal.Outcome(tuple(outcome_entries), paths, 125.0, options)

    monkeypatch.setattr(terminal, "tune", tuned)
    words, stream = io.StringIO(), io.BytesIO()
    output = terminal.RunOutput(Console(file=words, width=160), quiet=True, events=stream)
    outcome = terminal.run(output, small_tune.OPTIONS, tmp_path, False, "griffin tune")
    assert outcome is not None
    terminal.finish(output, outcome, tmp_path / "report.html", None)
    text = words.getvalue()
    assert "tuning" not in text and "noise floor" not in text.splitlines()[0]
    assert "triton.chunked block_t=64" in text and "crashed: linear_scan/eager.a" in text
    assert re.search(r"78 candidates: .*ok, .* wrong, .* failed", text) and "done in 2:05" in text
    paths = [line.split() for line in text.splitlines() if line.startswith(("journal", "registry", "report"))]
    assert [name for name, _ in paths] == ["journal", "registry", "report"]
    end = read(stream.getvalue())[-1]
    assert [end.journal, end.registry, end.report] == [path for _, path in paths]
    assert (end.entries, end.study, sum(end.statuses.values())) == (3, None, 78)


def test_interrupt_is_an_event_with_the_command_that_goes_on(tmp_path, monkeypatch):
    def interrupted(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "tune", interrupted)
    monkeypatch.setattr(terminal.signal, "signal", lambda *words: None)
    stream, words = io.BytesIO(), io.StringIO()
    output = terminal.RunOutput(Console(file=words, width=300), True, stream)
    assert terminal.run(output, small_tune.OPTIONS, tmp_path, False, "griffin tune") is None
    command = f"griffin tune --resume --out {tmp_path}"
    assert read(stream.getvalue())[-1] == events.InterruptedEvent(command)
    assert words.getvalue().strip().endswith(command)


def test_summary_counts_a_candidate_once_and_names_disturbed_races():
    found = [r for r in journals.records() if not isinstance(r, Race)]
    race = next(r for r in journals.records() if isinstance(r, Race))
    hot = msgspec.structs.replace(race, after=Conditions(throttle=["HW thermal slowdown"]))
    again = candidate(status="crashed")
    summary = Summary.of([*found, NOISE, hot, candidate(), again])
    text = summary.lines()
    assert summary.statuses["crashed"] == Summary.of(found).statuses["crashed"] + 1
    assert text[0].startswith("79 candidates: ") and "4 crashed" in text[0]
    assert text[1].startswith("noise floor 1.8%")
    assert text[2].startswith("1 of 1 races were disturbed; ") and "HW thermal slowdown" in text[2]
    assert Summary.of([*found, hot, race]).disturbed == {}


@pytest.mark.parametrize("width", [80, 160])
def test_table_fits_and_says_ties_and_predictions(width):
    entry = msgspec.structs.replace(result().entry, ties=[Tie("eager.chunked", {}), Tie("eager.loop", {})])
    guess = msgspec.structs.replace(entry, status="predicted", predicted_s=4.2e-5, median_s=None, share_of_bound=None)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as got:
        console.print(summary_table([entry, guess], width))
    text = got.get()
    assert max(map(len, text.splitlines())) <= width
    assert "predicted only" in text and "42 us" in text
    assert re.search(r"4\.\d\dx", text) and text.count("triton.chunked") == 2
    assert "tied with 2" in result_text(entry) and "predicted, not measured" in result_text(guess)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    small_tune.shrink(monkeypatch.setattr)


TUNE = ["tune", "--device", "cpu", "--budget", "quick", "--in-process", "--ops", "linear_scan", "--cases", "bfloat16"]


def test_command_prints_events_alone_with_json(small, tmp_path):
    done = CliRunner().invoke(app, [*TUNE, "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = read(done.stdout_bytes)
    assert [type(e).__name__ for e in found if not isinstance(e, events.CandidateEvent)][-3:] == [
        "JobEvent",
        "ResultEvent",
        "EndEvent",
    ]
    end = found[-1]
    assert all(Path(path).exists() for path in (end.journal, end.registry, end.report))
    assert sum(end.statuses.values()) == sum(isinstance(e, events.CandidateEvent) for e in found)
    assert "report    " in done.stderr and "linear_scan" in done.stderr


def test_command_is_quiet_when_asked(small, tmp_path):
    done = CliRunner().invoke(app, [*TUNE, "--quiet", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[0] == "op"
    assert "measuring" not in done.stdout and "[1/" not in done.stdout
    assert re.search(r"^report    .*report\.html$", done.stdout, re.MULTILINE)


def test_plan_is_no_json(tmp_path):
    done = CliRunner().invoke(app, ["tune", "--dry-run", "--json", "--device", "cpu"])
    assert done.exit_code == 2 and "--dry-run has no --json" in done.stderr
