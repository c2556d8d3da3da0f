"""The journal survives torn writes and tells broken files apart."""

from __future__ import annotations

import filelock
import pytest

from griffin_kernels import device, errors
from griffin_kernels.case import BenchCase, Case
from tuning.plan import planner
from tuning.record import journal
from tuning.record.journal_records import CeilingRecord, End, Undecided

pytestmark = pytest.mark.unit


def ceiling(value: float = 1.0) -> CeilingRecord:
    return CeilingRecord(name="dram_copy", value=value, low=value, high=value, unit="bytes_per_s")


@pytest.fixture
def path(tmp_path):
    return tmp_path / journal.FILE_NAME


def test_what_is_appended_is_read_back(path):
    with journal.Journal(path) as log:
        log.append(ceiling(1.0))
        log.append(End(date="2026-01-01", registry="r.json", seconds=2.0))
    assert journal.read(path) == [ceiling(1.0), End(date="2026-01-01", registry="r.json", seconds=2.0)]
    assert not journal.unfinished(journal.read(path))


def test_rows_of_an_ops_table_are_never_recorded(path):
    """A case of a plan, which is what records hold, is an identity. Readers refuse a row of the table."""
    jobs = planner.make(planner.Options(budget="thorough"), device.cpu())
    assert {type(job.case) for job in jobs} == {Case}
    row = jobs[0].op.cases[0]
    assert type(row) is BenchCase
    with journal.Journal(path) as log:
        log.append(Undecided(op=row.op, case=row, why="", command=""))
    with pytest.raises(errors.JournalError, match="unknown field"):
        journal.read(path)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_torn_last_line_is_left_out_and_cut_off_on_reopening(path, cut):
    with journal.Journal(path) as log:
        log.append(ceiling(1.0))
        whole = path.read_bytes()
        log.append(ceiling(2.0))
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert journal.read(path) == [ceiling(1.0)]
    with journal.Journal(path) as log:
        log.append(ceiling(3.0))
    assert journal.read(path) == [ceiling(1.0), ceiling(3.0)]


def test_broken_line_in_the_middle_names_file_and_line(path):
    path.write_bytes(b'{"kind":"end","date":"","registry":"","seconds":1}\n{broken}\n{"kind":"end"}\n')
    with pytest.raises(errors.JournalError, match=r"journal\.jsonl, line 2 is broken"):
        journal.read(path)


def test_journal_of_a_later_version_is_refused(path):
    line = (
        '{"kind":"run","journal_version":99,"run_id":"x","date":"","device":{"validity":{},"provenance":{}},'
        '"command":"","options":{},"planned":1}\n'
    )
    path.write_text(line)
    with pytest.raises(errors.JournalError, match="version 99"):
        journal.read(path)


def test_second_writer_is_refused(path):
    with journal.Journal(path), pytest.raises(errors.JournalError, match="another tune run"):
        journal.Journal(path)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError(37, "No locks available"), "cannot be written: No locks available"),
        (NotImplementedError(), "cannot be locked: its file system has no locks"),
    ],
    ids=["NFS without locks", "no flock"],
)
def test_journal_that_cannot_be_locked_is_not_begun_and_the_sentence_says_what_to_do(path, monkeypatch, problem, said):
    def refuse(*_, **__):
        raise problem

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(errors.OutputFolderError, match=f"{said}.*--out"):
        journal.Journal(path)
    assert not path.exists()


def test_setting_aside_keeps_the_old_journal(path):
    with journal.Journal(path) as log:
        log.append(ceiling())
    moved = journal.set_aside(path, journal.read(path))
    assert not path.exists()
    assert journal.read(moved) == [ceiling()]
