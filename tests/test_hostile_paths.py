"""Every command that takes a path, with paths and contents that no command expects: a sentence, never a traceback."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import typing

import msgspec
import pytest
from typer.testing import CliRunner

from griffin_kernels import datasheet, device, registry
from griffin_kernels.misses import Miss
from reports.cli import app
from tests import ROOT, journals, predictions
from tests.tuning.test_registry_cli import BENCH, entry, file
from tuning.plan import from_misses
from tuning.record import journal
from tuning.record.journal_records import End, Run

HERE = device.cpu()

COMMANDS = {
    "show": lambda p, good: ["tune", "show", p],
    "diff": lambda p, good: ["tune", "diff", good / "registry.json", p],
    "merge": lambda p, good: ["tune", "merge", p, good / "registry.json", "--out", good / "merged.json"],
    "merge --out": lambda p, good: ["tune", "merge", *[good / "registry.json"] * 2, "--out", p],
    "export": lambda p, good: ["tune", "export", p, "--csv"],
    "export --out": lambda p, good: ["tune", "export", good / "journal.jsonl", "--csv", "--out", p],
    "export --t4": lambda p, good: ["tune", "export", good / "journal.jsonl", "--t4", "--out", p],
    "report": lambda p, good: ["report", p],
    "report --out": lambda p, good: ["report", good / "journal.jsonl", "--out", p],
    "replay": lambda p, good: ["tune", "replay", p, "--seeds", "0"],
    "replay --pack": lambda p, good: ["tune", "replay", "--pack", p, good / "packed"],
    "calibrate": lambda p, good: ["tune", "calibrate", p],
    "tune --out": lambda p, good: ["tune", "--device", "cpu", "--dry-run", "--ops", "linear_scan", "--out", p],
    "tune --from-misses": lambda p, good: ["tune", "--device", "cpu", "--dry-run", "--from-misses", p],
    "tune --constants": lambda p, good: [
        "tune", "--target", "nvidia-h100-sxm", "--dry-run", "--ops", "temporal_conv1d_bwd", "--constants", p,
    ],
}  # fmt: skip

NAMES = {
    "missing": "missing",
    "in a folder that is not there": "not/there/file.json",
    "not UTF-8": os.fsdecode(b"caf\xe9 \xff.json"),
    "space, newline, percent": "a b\n%20%s#?&<i>[bold].json",
    "too long": "x" * 300,
    "no name": "",
}

CONTENTS = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe\x00\xd8{}",
    "UTF-16": '{"schema_version": 2}'.encode("utf-16"),
    "brackets": b"[" * 100_000,
    "zeros": b"\x00" * 64,
    "a mark alone": codecs.BOM_UTF8,
    "a number": b"7\r\n",
    "other JSON": b'{"kind":"run"}\r\n{"schema_version":1}\r\n',
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a journal and a registry that are as they should be."""
    folder = tmp_path_factory.mktemp("good")
    journals.write(folder / "journal.jsonl", journals.records())
    registry.write(folder / "registry.json", file(entry()))
    return folder


def ended_in_words(words):
    """The result of a command that must not end in a traceback."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 1, 2), done.output
    if done.exit_code == 2:
        assert done.stderr.startswith("error: ") or "Usage: " in done.stderr, done.output
    return done


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_every_name(name, good, tmp_path):
    for what, text in NAMES.items():
        ended_in_words(COMMANDS[name](tmp_path / text, good))
        blocker = tmp_path / f"file {what}"
        blocker.write_bytes(b"in the way")
        ended_in_words(COMMANDS[name](blocker / "child", good))
        folder = tmp_path / "folders" / text
        if what != "too long":
            folder.mkdir(parents=True, exist_ok=True)
            ended_in_words(COMMANDS[name](folder, good))


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.endswith(("--out", "--t4")) or "tune" in name])
def test_every_command_that_reads_with_every_content(name, good, tmp_path):
    for number, raw in enumerate(CONTENTS.values()):
        for place in (f"{number}.json", f"{number}.jsonl"):
            path = tmp_path / place
            path.write_bytes(raw)
            ended_in_words(COMMANDS[name](path, good))
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        for place in (journal.FILE_NAME, f"{HERE.slug}.json", "study.json"):
            (folder / place).write_bytes(raw)
        ended_in_words(COMMANDS[name](folder, good))


def edited(path, marked=True):
    """The file as an editor of another system saves it."""
    raw = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes((codecs.BOM_UTF8 if marked else b"") + raw)
    return path


@pytest.mark.parametrize("name", ["show", "diff", "merge", "export", "report"])
def test_byte_order_marks_and_line_ends_of_another_system_change_nothing(name, good, tmp_path):
    path = tmp_path / ("journal.jsonl" if name in ("export", "report") else "registry.json")
    path.write_bytes((good / path.name).read_bytes())
    before = ended_in_words(COMMANDS[name](path, good))
    (good / "merged.json").unlink(missing_ok=True)
    edited(path)
    after = ended_in_words(COMMANDS[name](path, good))
    assert before.exit_code == after.exit_code == 0, after.output
    if name != "diff":
        assert before.stdout == after.stdout


def test_marks_and_line_ends_in_the_other_files(tmp_path):
    misses = tmp_path / "misses.jsonl"
    misses.write_bytes(msgspec.json.encode(Miss(op="linear_scan", case=BENCH.plain(), device=HERE.slug)) + b"\n")
    notes = []
    assert len(list(from_misses._lines(edited(misses), notes))) == 1 and notes == []
    sheet = tmp_path / "nvidia-h100-sxm.toml"
    sheet.write_bytes((datasheet.FOLDER / sheet.name).read_bytes())
    assert datasheet.load(edited(sheet)) == datasheet.load(datasheet.FOLDER / sheet.name)
    predicted = predictions.write(tmp_path, beside=predictions.candidates())
    edited(predicted)
    edited(predicted.with_name("nvidia-h100-80gb-hbm3.predictions.json"))
    assert ended_in_words(["report", predicted]).exit_code == 0


def test_journal_with_a_mark_is_gone_on_with(tmp_path, good):
    path = tmp_path / "journal.jsonl"
    path.write_bytes((good / "journal.jsonl").read_bytes() + b'{"kind":"torn')
    count = len(journal.read(edited(path)))
    with journal.Journal(path) as log:
        log.append(End(date="", registry=os.fsdecode(b"/tmp/\xff"), seconds=1.0))
    found = journal.read(path)
    assert len(found) == count + 1 and found[-1].registry == "/tmp/\\udcff"
    assert isinstance(found[0], Run)


def test_report_goes_into_a_folder_that_is_not_there_or_is(good, tmp_path):
    for out in (tmp_path / "new" / "deep" / "r.html", tmp_path / NAMES["not UTF-8"], tmp_path / "a b\n%20.html"):
        assert ended_in_words(["report", good / "journal.jsonl", "--out", out]).exit_code == 0
        assert out.read_bytes().decode("utf-8").startswith("<!")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert ended_in_words(["report", good / "journal.jsonl", "--out", folder]).exit_code == 0
    assert (folder / "report.html").exists()


def test_in_a_c_locale_with_output_that_encodes_nothing_but_ascii(good, tmp_path):
    """One process for all commands: its locale is not UTF-8, nor is its output."""
    folder = tmp_path / NAMES["not UTF-8"]
    folder.mkdir()
    for name in ("journal.jsonl", "registry.json"):
        (folder / name).write_bytes((good / name).read_bytes())
    words = [
        ["tune", "show", folder / "registry.json"], ["tune", "diff", folder / "registry.json", good / "registry.json"],
        ["tune", "export", folder, "--csv"], ["report", folder, "--out", folder / "r.html"],
        ["tune", "--device", "cpu", "--dry-run", "--out", folder], ["tune", "show", folder / "caf\u00e9"],
    ]  # fmt: skip
    code = (
        "import sys\nfrom reports.cli import app\n"
        "for words in eval(sys.argv[1]):\n"
        "    try:\n        app(words)\n"
        "    except SystemExit as end:\n        print('ended', end.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ascii([[str(word) for word in line] for line in words])],
        cwd=ROOT, capture_output=True, timeout=300, check=False,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    text = done.stdout.decode("ascii")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert [line.split()[1] for line in text.splitlines() if line.startswith("ended")] == ["0"] * 5 + ["2"]


MEASURES_FIRST = {("roofline", "measure", "out"), ("roofline", "study", "out"), ("bench", "model", "out")}
"""Options whose commands measure for a minute: what they write to is prepared, or is tested, elsewhere."""

SAME_READER = {("tune", "predict", "constants"), ("tune", "calibrate", "constants"), ("tune", "calibrate", "out")}
"""Options that are read, or written, as others in the table are, after minutes of compiling."""


def path_parameters(app, words=()):
    """(command words..., parameter) of every parameter of the command line that is a path."""
    called = [((*words, c.name or c.callback.__name__), c.callback) for c in app.registered_commands]
    if app.registered_callback is not None:
        called.append((words, app.registered_callback.callback))
    for place, callback in called:
        for name, kind in typing.get_type_hints(callback).items():
            if "Path" in str(kind):
                yield (*place, name)
    for group in app.registered_groups:
        yield from path_parameters(group.typer_instance, (*words, group.typer_instance.info.name))


def test_no_path_of_the_command_line_is_left_out():
    """A new command or option with a path belongs into COMMANDS."""
    tested = {
        ("tune", "show", "path"), ("tune", "diff", "a"), ("tune", "diff", "b"), ("tune", "merge", "registries"),
        ("tune", "merge", "out"), ("tune", "export", "journal"), ("tune", "export", "out"), ("report", "folder"),
        ("report", "out"), ("tune", "replay", "journals"), ("tune", "calibrate", "journals"), ("tune", "out"),
        ("tune", "from_misses"), ("tune", "constants"),
    }  # fmt: skip
    assert set(path_parameters(app)) == tested | MEASURES_FIRST | SAME_READER
