"""`griffin tune --baselines`: what a run has published against baselines that it did not have."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import pytest
from typer.testing import CliRunner

from griffin_kernels import catalog, device, errors, registry
from griffin_kernels.contract import Adapter, NoConfig, Variant
from reports.cli import app
from reports.model import build
from reports.sources import load
from tests import small_tune
from tests.small_tune import Quiet, records, run
from tuning.record import journal
from tuning.record.journal_records import Candidate, End, Race, Result, Run
from tuning.record.paths import Paths

HERE = device.cpu()
OPTIONS = dataclasses.replace(small_tune.OPTIONS, ops=("linear_scan",))
BASELINES = dataclasses.replace(OPTIONS, baselines=True)


small = pytest.fixture(autouse=True)(small_tune.small)


@pytest.fixture
def peer(monkeypatch):
    """A package that is installed now: a baseline whose call does nothing, and which is right all the same."""
    real = catalog.variant("linear_scan/eager.sequential")

    def whole(call, config):
        return real.run(call, NoConfig())

    whole.__module__ = real.run.__module__
    adapter = Adapter(lambda call: {}, lambda: None, lambda result, call: whole(call, None))
    added = Variant(
        "linear_scan", "peer.idle", "a peer", whole, NoConfig, baseline=True, adapter=adapter, package="idle"
    )
    everything, one = catalog.variants, catalog.variant

    def install():
        def variants(op_name):
            found = dict(everything(op_name))
            return MappingProxyType(found | {added.name: added} if op_name == "linear_scan" else found)

        monkeypatch.setattr(catalog, "variants", variants)
        monkeypatch.setattr(catalog, "variant", lambda key: added if key == added.key else one(key))

    return install


def test_new_baselines_are_tried_in_the_same_journal_and_nothing_else(tmp_path, peer):
    before = run(tmp_path, OPTIONS)
    kept = (tmp_path / journal.FILE_NAME).read_bytes()
    peer()
    after = run(tmp_path, BASELINES)
    assert (tmp_path / journal.FILE_NAME).read_bytes().startswith(kept)
    assert not list(tmp_path.glob("journal-*"))
    runs = records(tmp_path, Run)
    new = records(tmp_path, Candidate)[len({c.key for c in _candidates(kept, tmp_path)}) :]
    assert {(c.variant, c.status, c.baseline) for c in new} == {("peer.idle", "ok", True)}
    assert len(new) == len(before.entries) == len(after.entries)
    assert [run.resumed for run in runs] == [False, True]
    # the same winners, and the fastest baseline is the new one
    names = {(e.op, e.case.key): (e.variant, e.config) for e in before.entries}
    finals = records(tmp_path, Race)[-len(new) :]
    for entry, race in zip(after.entries, finals, strict=True):
        assert entry.baseline == "peer.idle" and entry.speedup < 1
        winner, _ = names[entry.op, entry.case.key]
        assert any(winner in key for key in race.keys)
    stored = registry.load_for(after.paths.registry, HERE).entries
    assert {e.baseline for e in stored} == {"peer.idle"}
    assert isinstance(journal.read(after.paths.journal)[-1], End)


def _candidates(raw, folder):
    return [r for r in journal.parse(raw, folder).records if isinstance(r, Candidate)]


def test_where_every_baseline_is_known_nothing_is_measured(tmp_path):
    run(tmp_path, OPTIONS)
    counted = [len(records(tmp_path, kind)) for kind in (Candidate, Race, Result)]
    run(tmp_path, BASELINES)
    assert [len(records(tmp_path, kind)) for kind in (Candidate, Race, Result)] == counted


def test_resuming_with_a_new_baseline_decides_anew(tmp_path, peer):
    run(tmp_path, OPTIONS)
    path = tmp_path / journal.FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"end"' not in line[:20]))
    peer()
    assert {e.baseline for e in run(tmp_path, OPTIONS, resume=True).entries} == {"peer.idle"}


def test_a_search_that_was_interrupted_stays_unfinished(tmp_path, monkeypatch, peer):
    class Stops(Quiet):
        decided = 0

        def result(self, result, lane=""):
            self.decided += 1
            if self.decided == 2:
                raise KeyboardInterrupt

    paths = Paths.choose(tmp_path, HERE)
    stopped = run(tmp_path, OPTIONS, listener=Stops())
    assert stopped.interrupted and len(stopped.entries) == 2
    peer()
    assert len(run(tmp_path, BASELINES).entries) == 2  # of the third case nothing is published
    assert journal.unfinished(journal.read(paths.journal))
    whole = run(tmp_path, OPTIONS, resume=True)
    assert len(whole.entries) == 3 and not journal.unfinished(journal.read(paths.journal))


def test_without_anything_published_it_says_what_comes_first(tmp_path):
    with pytest.raises(errors.ArgumentError, match="has nothing of these cases to hold baselines against; tune them"):
        run(tmp_path, BASELINES)
    done = CliRunner().invoke(app, ["tune", "--baselines", "--device", "cpu", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "tune them first" in " ".join(done.output.split())


def test_the_report_counts_a_case_once(tmp_path, peer):
    run(tmp_path, OPTIONS)
    peer()
    run(tmp_path, BASELINES)
    view = build(load(tmp_path / journal.FILE_NAME))
    (cases,) = view.ops.values()
    assert len(cases) == 3
    for case in cases:
        assert sum("winner" in c.roles for c in case.candidates) == 1
        assert case.entry.baseline == "peer.idle"


def test_a_wrong_place_or_nothing_to_hold_against_is_all_that_is_said(tmp_path):
    for out, said in ((tmp_path, "tune them first"), ("/proc/nowhere", "choose another folder with --out")):
        done = CliRunner().invoke(app, ["tune", "--baselines", "--device", "cpu", "--out", str(out)])
        assert done.exit_code == 2 and done.stdout == "" and said in " ".join(done.stderr.split())
