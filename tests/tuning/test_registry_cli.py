"""``griffin tune show``, ``diff``, ``merge`` and ``export``."""

from __future__ import annotations

import csv
import io
import json

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from griffin_kernels import catalog, device, dispatch, registry, validity
from griffin_kernels.case import Case
from griffin_kernels.records import DeviceRecord, Entry, RegistryFile, Tie
from reports.cli import app
from tests import journals
from tuning.plan.budget import UNQUIET
from tuning.publish import diff, show
from tuning.record import export, journal
from tuning.record.journal_records import Candidate, Result

pytestmark = pytest.mark.unit

HERE = device.cpu()
BENCH = next(c for c in catalog.op("linear_scan").cases_tagged("bench") if c.where == "cpu")


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    dispatch.refresh()
    yield
    dispatch.refresh()


def entry(median=1e-3, spread=0.01, variant="eager.sequential", **facts):
    found = catalog.variant(f"linear_scan/{variant}")
    given = {
        "op": "linear_scan", "case": BENCH.plain(), "variant": variant, "config": {}, "status": "measured",
        "source_hash": found.source_hash, "date": "2026-01-01T00:00:00+00:00", "reason": "", "candidates": 1,
        "median_s": median, "interval_s": None if median is None else (median * (1 - spread), median * (1 + spread)),
    }  # fmt: skip
    return Entry(**(given | facts))


def sized(time):
    return Case(BENCH.dims | {"T": time}, BENCH.dtype)


def file(*entries, validity_facts=None, **provenance):
    facts = HERE.validity() | (validity_facts or {})
    return RegistryFile(schema_version=2, device=DeviceRecord(facts, provenance), entries=list(entries))


def write(path, *entries, **facts):
    registry.write(path, file(*entries, **facts))
    return path


def griffin(*words):
    return CliRunner().invoke(app, ["tune", *map(str, words)])


def refused(*words):
    """The one sentence with which a command is refused."""
    done = griffin(*words)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# show


def test_show_lists_entries_with_their_states(tmp_path, monkeypatch):
    monkeypatch.setattr(validity, "_here", lambda device: {"torch": "2.13.0"})
    path = write(
        tmp_path / "r.json",
        entry(), entry(case=sized(64), provenance={"torch": "2.12.0"}), entry(case=sized(65), source_hash="0"),
        entry(None, case=sized(66), status="predicted", predicted_s=2e-3), torch="2.13.0",
    )  # fmt: skip
    done = griffin("show", path)
    assert done.exit_code == 0, done.output
    assert "4 entries: 1 used, 1 stale, 1 predicted, 1 unused" in done.stdout
    assert "torch 2.12.0 (now 2.13.0)" in " ".join(done.stdout.split())
    assert "griffin tune --ops linear_scan` races them again" in done.stdout
    answer = json.loads(griffin("show", path, "--json").stdout)
    states = {e["key"].split("-")[1]: e["state"] for e in answer["entries"]}
    assert states == {f"T{BENCH['T']}": "used", "T64": "stale", "T65": "unused", "T66": "predicted"}


def test_show_without_a_path_shows_what_dispatch_asks_first(monkeypatch, tmp_path):
    assert "there is no registry for" in refused("show", "--device", "cpu")
    registry.publish(registry.default_path(HERE), HERE, [entry()], {})
    assert str(registry.default_path(HERE)) in griffin("show", "--device", "cpu").stdout
    path = write(tmp_path / "named.json", entry())
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(path))
    assert str(path) in griffin("show", "--device", "cpu").stdout


def test_show_takes_a_folder_and_a_file_of_another_device(tmp_path):
    other = write(tmp_path / "other.json", entry(), validity_facts={"name": "[bold]Some other CPU"})
    (tmp_path / "notes.json").write_text("{}")
    done = griffin("show", tmp_path)
    assert "[bold]Some other CPU" in done.stdout and "1 entries: 1 unused" in done.stdout
    write(tmp_path / "third.json", entry())
    assert "name one: other.json, third.json" in refused("show", tmp_path)
    assert show.locate(other, HERE) == other
    write(tmp_path / f"{HERE.slug}.json", entry())
    assert show.locate(tmp_path, HERE).stem == HERE.slug
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no registry in folder" in refused("show", empty)


# diff


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (entry(1.0, diff.BETWEEN_RUNS / 9), entry(1 + diff.BETWEEN_RUNS / 3, diff.BETWEEN_RUNS / 9), "SAME"),
        (entry(1.0), entry(0.9), "FASTER"),
        (entry(1.0), entry(1.1), "SLOWER"),
        (entry(1.0, 0.2), entry(1.1, 0.2), "UNSURE"),
        (entry(1.0, diff.BETWEEN_RUNS / 9), entry(1 - 0.9 * diff.BETWEEN_RUNS, diff.BETWEEN_RUNS / 9), "UNSURE"),
        (entry(1.0), entry(1.1, noise_floor=0.2), "SAME"),
        (entry(1.0), entry(1.3, noise_floor=0.2), "SLOWER"),
        (entry(1.0, 0.3), entry(1.0, 0.3), "SAME"),
        (entry(1.0), entry(None), "UNSURE"),
        (entry(1.0), entry(1.0, interval_s=None), "UNSURE"),
        (entry(1.0), entry(None, status="predicted", predicted_s=1.0), "UNSURE"),
        (entry(1e-300), entry(1e300), "SLOWER"),
        (entry(-1.0), entry(1.0), "UNSURE"),
        (entry(0.0), entry(1.0), "UNSURE"),
    ],
)  # fmt: skip
def test_verdict_needs_the_interval_and_more_than_the_noise(a, b, verdict):
    (row,) = diff.diff(file(a), file(b)).rows
    assert row.verdict == verdict


OPPOSITE = {"SAME": "SAME", "FASTER": "SLOWER", "SLOWER": "FASTER", "UNSURE": "UNSURE"}
TIMES = st.one_of(st.floats(1e-6, 1e-2), st.floats(min_value=5e-324, max_value=1.7e308))
FLOORS = st.one_of(st.none(), st.floats(0.0, 3.0), st.floats(min_value=0.0, max_value=1.7e308))

HASHED = {name: entry(variant=name).source_hash for name in ("eager.sequential", "eager.associative")}
"""Variants of entries. Hashing a source takes long the first time, which Hypothesis would call slow generation."""


@st.composite
def entries(draw):
    """Any entry that a file may hold: its interval need not even hold its median."""
    median = draw(TIMES)
    low, high = draw(st.sampled_from([(1.0, 1.0), (0.99, 1.02), (0.5, 3.0)])) if draw(st.booleans()) else (1.0, 1.0)
    interval = (median * low, min(median * high, 1.7e308)) if draw(st.booleans()) else (draw(TIMES), draw(TIMES))
    variant = draw(st.sampled_from(sorted(HASHED)))
    return entry(median, variant=variant, interval_s=interval, noise_floor=draw(FLOORS))


@given(a=entries(), b=entries(), steady=st.one_of(st.none(), st.floats(1e-3, 10.0)))
@example(a=entry(1.0, noise_floor=1.0), b=entry(0.146), steady=None)
@example(a=entry(1.0, noise_floor=1.5), b=entry(1.0), steady=None)
def test_verdicts_are_opposite_when_the_registries_change_places(a, b, steady):
    """With and without kernels that tell what the machine did, whose times differ by ``steady``."""
    sizes = [] if steady is None else [sized(64 + i) for i in range(diff.UNCHANGED + 1)]
    left = file(a, *(entry(1.0, case=case) for case in sizes), torch="2.13.0")
    right = file(b, *(entry(1.0 + steady, case=case) for case in sizes), torch="2.13.0")
    there, back = diff.diff(left, right), diff.diff(right, left)
    for one, other in zip(there.rows, back.rows, strict=True):
        assert OPPOSITE[one.verdict] == other.verdict, (one, other)
        assert one.ratio is None or one.ratio * other.ratio == pytest.approx(1)
    assert there.machine == back.machine
    (row,) = (row for row in there.rows if row.a.case["T"] == BENCH["T"])
    loud = max(a.noise_floor or 0.0, b.noise_floor or 0.0)
    if loud > UNQUIET and a != b:
        assert row.verdict != "SAME"
    if loud >= 1 and a != b:
        assert row.verdict == "UNSURE", "such noise allows no verdict"


@pytest.mark.parametrize("floor", [0.03, 0.19, 0.5, 0.9, 1.0, 2.0])
def test_a_difference_is_a_verdict_from_the_same_factor_on_either_way(floor):
    told = {
        factor: diff.diff(file(entry(1.0, 1e-6, noise_floor=floor)), file(entry(factor, 1e-6))).rows[0].verdict
        for factor in (0.146, 1 / 0.146, 1.001, 1 / 1.001, 1.02, 1 / 1.02, 30.0, 1 / 30.0)
    }
    assert all(OPPOSITE[verdict] == told[1 / factor] for factor, verdict in told.items())
    assert told[1.001] == ("SAME" if floor <= UNQUIET else "UNSURE")
    assert told[30.0] == ("SLOWER" if floor < 1 else "UNSURE")


def shaken(sizes, new=0.8, **facts):
    """Two files of kernels that did not change, whose times differ by ``sizes``, and of one that has a new winner."""
    cases = [sized(64 + i) for i in range(len(sizes))]
    before = [entry(1.0, 0.001, case=case) for case in cases]
    after = [entry(1.0 + size, 0.001, case=case, **facts) for size, case in zip(sizes, cases, strict=True)]
    winners = entry(1.0, 0.001), entry(new, 0.001, variant="eager.associative")
    return file(*before, winners[0], torch="2.13.0"), file(*after, winners[1], torch="2.13.0")


@pytest.mark.parametrize(("new", "verdict"), [(0.8, "FASTER"), (1.2, "SLOWER"), (0.96, "UNSURE"), (0.999, "SAME")])
def test_what_the_machine_did_between_two_runs_is_told_by_kernels_that_did_not_change(new, verdict):
    found = diff.diff(*shaken([0.05, -0.05] * 10 + [0.3], new))
    assert found.machine == pytest.approx(1 / 0.95 - 1)
    verdicts = {row.a.case["T"]: row.verdict for row in found.rows}
    assert verdicts.pop(BENCH["T"]) == verdict
    assert list(verdicts.values()) == ["SAME"] * 20 + ["SLOWER"], "19 in 20 are what they were"
    assert "21 kernels did not change" in found.notes[0] and "differ by up to 5%" in found.notes[0]


def test_times_as_far_apart_as_floats_go_are_compared():
    cases = [sized(64 + i) for i in range(diff.UNCHANGED)]
    before, after = ([entry(seconds, case=case) for case in cases] for seconds in (1e-300, 1e300))
    assert diff.diff(file(*before), file(*after)).machine > 1e100


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [([0.05] * 4, {}), ([0.05] * 9, {"source_hash": "0"}), ([0.05] * 9, {"provenance": {"torch": "2.12.0"}})],
    ids=["too few", "other source", "other torch"],
)
def test_kernels_that_changed_tell_nothing_of_the_machine(sizes, facts):
    found = diff.diff(*shaken(sizes, **facts))
    assert found.machine is None and found.notes == ()
    assert found.count("SLOWER") == len(sizes)


def test_interval_of_the_ratio_covers_what_two_medians_do():
    # medians of 200 log-normal samples, many times: the 95% interval holds the true ratio about that often
    from roofline import stats

    dice, held, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        samples = [scale * np.exp(0.1 * dice.standard_normal(41)) for scale in (1.0, 1.2)]
        a, b = (
            entry(stats.median(s), interval_s=stats.bootstrap_interval(s, seed=int(dice.integers(2**31))))
            for s in samples
        )
        ratio, low, high = np.exp(diff.log_interval(a, b))
        assert low <= ratio <= high
        held += low <= 1.2 <= high
    assert 0.88 <= held / trials <= 1.0


def test_other_winner_that_is_tied_agrees():
    tied = entry(variant="eager.associative", ties=[Tie("eager.sequential", {})])
    other = entry(variant="eager.associative")
    found = diff.diff(file(entry(), entry(case=sized(64)), entry(case=sized(65))),
                      file(tied, entry(case=sized(64)), msgspec.structs.replace(other, case=sized(65))))  # fmt: skip
    assert {row.a.case["T"]: row.winner for row in found.rows} == {BENCH["T"]: "tie", 64: "same", 65: "other"}
    assert found.agreement == pytest.approx(2 / 3)


def test_diff_command_lists_counts_and_leaves_with_1_if_asked(tmp_path):
    a = write(tmp_path / "a.json", entry(1.0), entry(case=sized(64)))
    b = write(tmp_path / "b.json", entry(1.5), entry(case=sized(65)), validity_facts={"name": "Another"})
    done = griffin("diff", a, b)
    assert done.exit_code == 0, done.output
    assert "0 SAME, 0 FASTER, 1 SLOWER, 0 UNSURE" in done.stdout
    assert "1 of 1 agree on the winner or tie (100%)" in done.stdout
    assert "only in A: linear_scan B1-T64" in done.stdout and "only in B: linear_scan B1-T65" in done.stdout
    assert "different devices" in done.stdout
    assert griffin("diff", a, b, "--exit-code").exit_code == 1
    assert griffin("diff", b, a, "--exit-code").exit_code == 0
    answer = json.loads(griffin("diff", a, b, "--json").stdout)
    assert (answer["rows"][0]["verdict"], answer["agreement"], len(answer["only_a"])) == ("SLOWER", 1.0, 1)
    assert "cannot be read: No such file" in refused("diff", a, tmp_path / "none.json")


# merge


def test_newest_measurement_is_kept_and_every_disagreement_reported(tmp_path):
    old = entry(0.5, date="2026-01-01T00:00:00+00:00")
    new = entry(1.0, variant="eager.associative", date="2026-02-01T00:00:00+00:00")
    paths = [write(tmp_path / "new.json", new, torch="2"), write(tmp_path / "old.json", old, torch="1")]
    done = griffin("merge", *paths, "--out", tmp_path / "out.json", "--rerace")
    assert done.exit_code == 0, done.output
    assert "eager.associative of" in done.stdout and "1 entries, 1 disagreement" in done.stdout
    assert f"griffin tune --ops linear_scan --cases {BENCH.key}" in done.stdout
    (kept,) = registry.load(tmp_path / "out.json").entries
    assert kept.variant == "eager.associative"


def test_measurement_goes_before_a_newer_prediction_and_agreement_is_no_conflict():
    path = registry.Path("x")
    measured, foreseen = entry(date="2026-01-01"), entry(variant="eager.loop", status="predicted", date="2027-01-01")
    merged, conflicts = diff.merge([(path, file(measured)), (path, file(foreseen))])
    assert merged.entries == [measured] and len(conflicts) == 1
    again = entry(2.0, date="2026-03-01")
    merged, conflicts = diff.merge([(path, file(again)), (path, file(measured)), (path, file(entry(date="no date")))])
    assert merged.entries == [again] and conflicts == []


def test_entries_keep_their_provenance_in_a_merged_file(monkeypatch):
    monkeypatch.setattr(validity, "_here", lambda device: {"torch": "2"})
    path = registry.Path("x")
    old = file(entry(case=sized(64)), torch="1", date="2026-01-01")
    merged = diff.merge([(path, file(entry(), torch="2", date="2026-02-01")), (path, old)])[0]
    told = {e.case.dims["T"]: validity.stale(e, merged, HERE) for e in merged.entries}
    assert told == {BENCH["T"]: (), 64: ("torch 1 (now 2)",)}


def test_conflict_that_is_no_bench_case_is_named_for_what_it_is():
    path = registry.Path("x")
    pair = [entry(case=sized(777)), entry(case=sized(777), variant="eager.associative")]
    commands, others = diff.rerace(diff.merge([(path, file(one)) for one in pair])[1])
    assert commands == [] and others[0].startswith("linear_scan B1-T777")


def test_merge_refuses_what_does_not_belong_together(tmp_path):
    a, b = write(tmp_path / "a.json", entry()), write(tmp_path / "b.json", entry(), validity_facts={"units": 99})
    out = tmp_path / "out.json"
    assert "99 cores" in refused("merge", a, b, "--out", out)
    assert "at least two" in refused("merge", a, "--out", out)
    assert "is a folder" in refused("merge", a, a, "--out", tmp_path)
    out.write_text("something else")
    assert "exists and is not merged" in refused("merge", a, a, "--out", out)
    assert out.read_text() == "something else"
    out.write_text("half a fi")
    assert "is not a valid registry" in refused("merge", a, out, "--out", out)
    assert griffin("merge", a, a, "--out", a).exit_code == 0


# export

# Kernel Tuner's results schema in its version 1.0.0, in what it demands
T4_SCHEMA = {
    "type": "object",
    "required": ["schema_version", "results"],
    "properties": {
        "schema_version": {"type": "string", "pattern": "^[0-9]+.[0-9]+.[0-9]+$"},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["configuration", "times", "invalidity", "correctness"],
                "properties": {
                    "timestamp": {"type": "string"},
                    "configuration": {"type": "object"},
                    "objectives": {"type": "array"},
                    "times": {
                        "type": "object",
                        "properties": {"runtimes": {"type": "array"}, "framework": {"type": "number"}},
                    },
                    "invalidity": {
                        "enum": ["timeout", "compile", "runtime", "correctness", "constraints", "correct"]
                    },
                    "correctness": {"type": "number"},
                    "measurements": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "name": {"type": "string"},
                                "value": {"type": ["number", "string", "array"]},
                                "unit": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


def test_t4_is_what_kernel_tuner_reads(tmp_path):
    records = journals.records()
    path = journals.write(tmp_path / journal.FILE_NAME, records)
    done = griffin("export", path, "--t4", "--out", tmp_path / "t4")
    assert done.exit_code == 0, done.output
    documents = {p.name: json.loads(p.read_text()) for p in (tmp_path / "t4").iterdir()}
    metadata = documents.pop("metadata.json")["metadata"]
    assert "torch==2.13.0+cu130" in metadata["environment"]["requirements"]
    candidates = [r for r in records if isinstance(r, Candidate)]
    assert sorted(documents) == sorted({f"{c.op}--{c.case.key}.json" for c in candidates})
    for document in documents.values():
        jsonschema.validate(document, T4_SCHEMA)
    results = [result for document in documents.values() for result in document["results"]]
    assert len(results) == len({c.key for c in candidates if c.status != "skipped"})
    right = [r for r in results if r["invalidity"] == "correct"]
    assert right and all(r["correctness"] == 1.0 for r in right)
    timed = next(c for c in candidates if c.status == "ok")
    (found,) = [r for r in documents[f"{timed.op}--{timed.case.key}.json"]["results"]
                if r["configuration"] == {"variant": timed.variant, **timed.config}]  # fmt: skip
    assert found["times"]["runtimes"] == [1e3 * sample for sample in timed.samples_s]


@pytest.mark.parametrize(
    ("status", "stage", "said"),
    [
        ("ok", "", "correct"), ("slow", "time", "correct"), ("wrong", "check", "correctness"),
        ("failed", "compile", "compile"), ("failed", "check", "runtime"), ("crashed", "time", "runtime"),
        ("crashed", "compile", "compile"), ("timeout", "compile", "timeout"), ("memory", "check", "runtime"),
        ("rejected", "", "constraints"),
    ],
)  # fmt: skip
def test_t4_has_a_word_for_every_status(status, stage, said):
    one = next(r for r in journals.records() if isinstance(r, Candidate))
    changed = msgspec.structs.replace(one, status=status, stage=stage)
    (name,) = set(export.t4([changed])) - {"metadata.json"}
    (result,) = export.t4([changed])[name]["results"]
    assert result["invalidity"] == said


def test_csv_has_a_line_for_each_candidate(tmp_path):
    records = journals.records()
    path = journals.write(tmp_path / journal.FILE_NAME, records)
    done = griffin("export", tmp_path, "--csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == len({r.key for r in records if isinstance(r, Candidate)})
    assert sum(row["winner"] == "True" for row in rows) == sum(isinstance(r, Result) for r in records)
    for row in rows:
        assert bool(row["median_s"]) == (int(row["samples"]) > 0)
        assert not row["median_s"] or float(row["low_s"]) <= float(row["median_s"]) <= float(row["high_s"])
    assert griffin("export", path, "--csv", "--out", tmp_path / "out.csv").exit_code == 0
    assert (tmp_path / "out.csv").read_text() == done.stdout


def test_export_needs_one_format_a_folder_for_t4_and_a_journal(tmp_path):
    assert "one of --csv and --t4" in refused("export", tmp_path)
    assert "one of --csv and --t4" in refused("export", tmp_path, "--csv", "--t4")
    assert "name a folder with --out" in refused("export", tmp_path, "--t4")
    assert "cannot be read" in refused("export", tmp_path, "--csv")
    path = journals.write(tmp_path / journal.FILE_NAME, journals.records())
    (tmp_path / "file").write_text("")
    assert "results cannot be written to" in refused("export", path, "--t4", "--out", tmp_path / "file")
    assert "cannot be written" in refused("export", path, "--csv", "--out", tmp_path / "no" / "x.csv")


# broken registries, whatever is asked of them


@pytest.mark.parametrize("words", [("show",), ("diff", "X"), ("merge", "X", "--out", "O")], ids=lambda words: words[0])
def test_broken_registry_is_one_sentence(tmp_path, words):
    path = tmp_path / "r.json"
    path.write_text("half a fi")
    given = [path if word == "X" else tmp_path / "o.json" if word == "O" else word for word in words[1:]]
    assert "is not a valid registry" in refused(words[0], path, *given)


def test_entries_that_mean_nothing_are_shown_and_not_obeyed(tmp_path):
    odd = entry(case=Case({"[red]": 10**300}, "x" * 5000), date="", reason="")
    odd = msgspec.structs.replace(
        odd, op="[bold]no op", variant="a\nb\x1b[31m", config={"x": [[1]]}, interval_s=(0.0, -1.0)
    )
    path = write(tmp_path / "r.json", odd, entry(op="linear_scan", case=sized(-5)), entry(config={"a": None}))
    done = griffin("show", path)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout and "3 entries" in done.stdout
    assert griffin("diff", path, path).exit_code == 0
    assert griffin("merge", path, path, "--out", tmp_path / "o.json").exit_code == 0
    assert griffin("show", path, "--json").exit_code == 0
