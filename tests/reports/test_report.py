"""The HTML report: what it holds, that it escapes, that it repeats, and what it refuses."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from markupsafe import Markup

from griffin_kernels.case import Case
from griffin_kernels.errors import GriffinKernelsError, JournalError, RegistryError, ReportError
from reports import format as fmt
from reports import model
from reports.build import write_report
from reports.page import Tab, page
from reports.sources import load
from tests import journals
from tuning.plan.budget import INDIFFERENCE
from tuning.record.journal_records import BAD, Candidate, Conditions, Race, Record, Result, Run, Undecided

pytestmark = pytest.mark.unit

HOSTILE = journals.HOSTILE


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., str]:
    """The text of a report of the given records."""

    def of(lines: list[Record], torn: bool = False, registry: Path | None = None) -> str:
        path = journals.write(tmp_path / "journal.jsonl", lines, torn=torn)
        return write_report(path, tmp_path / "report.html", registry).read_text(encoding="utf-8")

    return of


def body(text: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", text, flags=re.DOTALL)


def data(text: str) -> dict[str, object]:
    """The embedded raw data."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_every_candidate_and_reason_is_there(build: Callable[..., str]) -> None:
    lines = journals.records()
    shown = body(build(lines, torn=True))
    candidates = [line for line in lines if isinstance(line, Candidate)]
    assert len(candidates) == 78
    for candidate in candidates:
        assert f'id="{html.escape(candidate.key)}"' in shown
        assert html.escape(candidate.problem or "") in shown
    for status in model.STATUSES:
        assert f"status-{status}" in shown


def test_verdict(build: Callable[..., str]) -> None:
    lines = journals.records()
    shown = body(build(lines))
    assert "finished" in shown and "This run is unfinished" not in shown
    for result in (line for line in lines if isinstance(line, Result)):
        row = re.search(rf'<tr id="{re.escape(html.escape(result.winner_key))}"(.*?)</tr>', shown, re.DOTALL)
        assert row and "is-winner" in row[1] and "role-winner" in row[1]
        assert result.entry.speedup is not None and fmt.ratio(result.entry.speedup) in shown
        assert html.escape(fmt.brief(result.entry.reason)) in shown
    assert shown.count('class="is-winner"') == 3
    assert re.search(r"3 of 3 winners</strong>\s*beat every baseline", shown)


def test_raw_data_is_the_journal(build: Callable[..., str]) -> None:
    lines = journals.records()
    records = data(build(lines, torn=True))["records"]
    assert records == [json.loads(msgspec.json.encode(line)) for line in lines]


def test_nothing_is_loaded_from_elsewhere(build: Callable[..., str]) -> None:
    text = build(journals.records())
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", body(text))
    assert text.count("plotly.js v") == 1


def test_hostile_strings_are_text(build: Callable[..., str]) -> None:
    lines = journals.records()
    text = build(journals.hostile())
    tags = re.findall(r"<script\b[^>]*>", text)
    plain = re.findall(r"<script\b[^>]*>", build(lines))
    assert "alert(1)</script>" not in text
    assert len([tag for tag in tags if tag == "<script>"]) == len([tag for tag in plain if tag == "<script>"])
    assert "<img" not in body(text)
    assert HOSTILE in html.unescape(body(text))
    assert json.dumps(data(text)["records"]).count("alert(2)") > 100


def test_journal_of_version_1_is_reported_as_ever(tmp_path: Path) -> None:
    """Its lines have none of the later fields."""
    new = {"stage", "warm_s", "before", "after", "confirms", "warm_median_s", "noise_floor", "ties", "predicted_s"}
    lines = []
    for record in journals.records():
        line = json.loads(msgspec.json.encode(record))
        if isinstance(record, Run):
            line["journal_version"] = 1
        if isinstance(record, Result):
            line["entry"] = {name: value for name, value in line["entry"].items() if name not in new}
        kept = {"noise_floor"} if isinstance(record, Race) else set()
        lines.append(json.dumps({name: value for name, value in line.items() if name not in new - kept}) + "\n")
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(lines))
    shown = body(write_report(path, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"3 of 3 winners</strong>\s*beat every baseline", shown)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    path = journals.write(tmp_path / "journal.jsonl", journals.records())
    first = write_report(path, tmp_path / "a.html").read_bytes()
    assert first == write_report(path, tmp_path / "b.html").read_bytes()


def test_unfinished_run_says_so_first(build: Callable[..., str]) -> None:
    shown = body(build(journals.records(finished=False), torn=True))
    assert shown.index("This run is unfinished") < shown.index('id="verdict"')
    assert "69 of 78 candidates" in shown and "2 of 3 cases are" in re.sub(r"\s+", " ", shown)
    assert "last line is incomplete" in shown
    assert "not decided: 17 candidates so far" in shown


def test_without_results(build: Callable[..., str]) -> None:
    shown = body(build(journals.records(finished=False, results=False)))
    assert "No case is decided yet" in shown and 'class="chart"' in shown
    nothing = body(build(journals.records()[:1]))
    assert "The journal holds no candidate" in nothing and "No ceiling was measured" in nothing


@pytest.mark.parametrize("planned", [20, 78, 90])
@pytest.mark.parametrize("finished", [False, True])
def test_never_are_more_candidates_measured_than_planned(
    build: Callable[..., str], planned: int, finished: bool
) -> None:
    lines = [
        msgspec.structs.replace(line, planned=planned) if isinstance(line, Run) else line
        for line in journals.records(finished=finished)
    ]
    pairs = [
        (int(done), int(total)) for done, total in re.findall(r"(\d+) of (\d+) candidates", plain(body(build(lines))))
    ]
    assert pairs and all(done <= total for done, total in pairs), pairs


def test_case_whose_race_was_too_noisy_is_named_with_what_repeats_it(build: Callable[..., str]) -> None:
    lines = journals.records()
    result = next(line for line in lines if isinstance(line, Result))
    case = result.entry.case
    why, command = "its races had a noise floor of 35%", "griffin tune --ops linear_scan --cases <this>"
    noisy = Undecided(op=result.entry.op, case=case, why=why, command=command, noise_floor=0.35)
    shown = plain(body(build([*lines[:-1], noisy, lines[-1]])))
    assert f"not decided: {why}; repeat with {command}" in shown
    assert f"Nothing is published: {why}. Repeat with {command} ." in shown
    assert "1 case not decided" in shown
    assert "not decided: " not in plain(body(build([*lines[:-1], noisy, result, lines[-1]]))), "a later result counts"


def test_resumed_journal_counts_a_candidate_once(tmp_path: Path) -> None:
    lines = journals.records()
    again = msgspec.structs.replace(lines[0], resumed=True) if isinstance(lines[0], Run) else lines[0]
    first = next(line for line in lines if isinstance(line, Candidate))
    changed = msgspec.structs.replace(first, status="failed", samples_s=[], problem="broke at last")
    found = load(journals.write(tmp_path / "j.jsonl", [*lines[:-1], again, changed]))
    assert len(found.candidates) == 78 and len(found.starts) == 2 and found.end is None
    assert next(c for c in found.candidates if c.key == first.key).problem == "broke at last"


def test_registry(build: Callable[..., str], tmp_path: Path) -> None:
    lines = journals.records()
    file = journals.registry(lines)
    other = msgspec.structs.replace(file.entries[0], case=Case({"B": 3, "T": 5, "D": 7}, "float32"), status="predicted")
    changed = msgspec.structs.replace(file.entries[0], variant="triton.sequential", config={"block_d": 64})
    path = tmp_path / "registry.json"
    path.write_bytes(msgspec.json.encode(journals.registry([], [changed, *file.entries[1:], other])))
    shown = body(build(lines, registry=path))
    assert "1 further entry in the registry" in shown and "B\u00a03" in shown and "predicted" in shown
    assert "The registry holds another choice: triton.sequential block_d=64." in shown
    assert shown.count("The registry holds another choice") == 2
    path.write_text('{"schema_version": 99}')
    with pytest.raises(RegistryError, match="version 99"):
        build(lines, registry=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"kind":"run","journal_ver', "no complete record"),
        (b'{"kind":"run","journal_version":99,"surprise":true}\n', "has version 99"),
        (b'{"kind":"what"}\n', "line 1 is broken"),
        (b'{"kind":"ceiling","name":"a","value":1,"low":1,"high":1,"unit":"s"}\n', "does not begin with a run"),
        (b"\xff\xfe\n{}\n", "line 1 is broken"),
        (b'{"kind":\n{}\n', "line 1 is broken"),
    ],
)
def test_bad_journals(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "report.html"
    with pytest.raises(GriffinKernelsError, match=message):
        write_report(path, out)
    assert not out.exists()


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    path = journals.write(tmp_path / "journal.jsonl", journals.records()[:1])
    (tmp_path / "taken").mkdir()
    with pytest.raises(ReportError, match="cannot write the report"):
        write_report(path, tmp_path / "taken")
    with pytest.raises(JournalError, match="cannot be read: Is a directory"):
        write_report(tmp_path / "taken", tmp_path / "out.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.jsonl", "taken"]


def test_a_second_tab_brings_a_tab_bar() -> None:
    tabs = [Tab("tuning", "Tuning", Markup("<p>one</p>")), Tab("roofline", "Roofline", Markup("<p>two</p>"))]
    assert '<a href="#roofline">Roofline</a>' in page("title", tabs, "{}")
    assert '<nav class="tabs"' not in page("title", tabs[:1], "{}")


@pytest.mark.parametrize(
    ("interval", "noise", "word"),
    [
        (None, 0.0, None),
        ((1.2, 1.3), 0.0, "FASTER"),
        ((1.001, 1 + 0.9 * INDIFFERENCE), 0.0, "SAME"),
        ((1.01, 1.05), 0.0, "FASTER"),
        ((1.01, 1.05), 0.06, "UNSURE"),
        ((0.08, 0.99), 0.87, "UNSURE"),
        ((0.98, 1.2), 0.0, "UNSURE"),
        ((0.7, 0.9), 0.0, "SLOWER"),
        ((1 - 0.9 * INDIFFERENCE, 1 + 0.9 * INDIFFERENCE), 0.0, "SAME"),
    ],
)
def test_words(interval: tuple[float, float] | None, noise: float, word: str | None) -> None:
    assert model.compare(interval, noise) == word


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (0.012345, "0.0123"), (99.96, "100"), (12345.0, "12\u202f300"), (-2.5, "\u22122.50")],
)
def test_three_digits(value: float, text: str) -> None:
    assert fmt.significant(value) == text


def test_units() -> None:
    assert fmt.time(87.31e-6) == "87.3\u202fµs"
    assert fmt.time(0.0012345) == "1.23\u202fms"
    assert fmt.time(None) == fmt.MISSING
    assert fmt.rate(2.93e12, "bytes_per_s") == "2.93 TB/s"
    assert fmt.rate(3.2, "widgets") == "3.20 widgets"
    assert fmt.error(1.6e-3) == "1.6e\u22123"
    assert fmt.error(None) == "not finite"
    assert fmt.share(0.6765) == "68%" and fmt.share(0.03) == "3%" and fmt.share(0.0123) == "1.2%"
    assert fmt.duration(1297) == "21 min 37 s"
    assert fmt.fact("power_limit_watts", 700.0) == "700 W"


def test_model(tmp_path: Path) -> None:
    report = model.build(load(journals.write(tmp_path / "j.jsonl", journals.records())))
    assert report.headline.compared == 3 and report.headline.words == {"FASTER": 3}
    assert {reason.status for reason in report.reasons} == set(model.STATUSES) - {"ok"}
    assert all(case.finalists[0].is_winner and case.noise == 0.008 for case in report.cases)


def plain(text: str) -> str:
    """A page's words without tags and with single spaces."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_what_can_be_believed_is_said(build: Callable[..., str]) -> None:
    shown = body(build(journals.records()))
    words = plain(shown)
    assert "noise floor 0.6% (A/A of torch.add of float32 tensors of 128 MiB, 41 rounds)" in words
    assert "is 0.9960 to 1.006. No difference below 0.6% means anything" in words
    assert words.count("The race cannot tell it from") == 2 and "tied with 2 others" in words
    assert words.count("With warm caches it takes") == 3 and "82% of the cold time" in words
    assert (
        "clock 1980 to 1965 MHz; temperature 41 to 52 \u00b0C; power 320 to 655 W; processes per core 0.9 to 1;"
        in words
    )
    assert "clocks held by SW thermal slowdown" in words
    assert "1 of 3 races disturbed" in words and "the clock fell from 1980 to 1410 MHz" in words
    assert words.count(f"Measured twice , the second time in a fresh process: {journals.SURPRISE}") == 1


def test_failures_are_listed_by_name_with_stage_and_problem(build: Callable[..., str]) -> None:
    lines = journals.records()
    shown = body(build(lines))
    table = re.search(r'<table class="sortable" id="failed-table">.*?</table>', shown, re.DOTALL)
    assert table
    rows = re.findall(r"<tr><td data-value.*?</tr>", table[0], re.DOTALL)
    failed = [line for line in lines if isinstance(line, Candidate) and line.status in BAD]
    assert len(rows) == len(failed) == 18
    for candidate in failed:
        mine = [row for row in rows if f'href="#{fmt.fragment(candidate.key)}"' in html.unescape(row)]
        assert len(mine) == 1 and f"<td>{candidate.stage}</td>" in mine[0]
        assert html.escape(candidate.problem or "") in mine[0] and f"status-{candidate.status}" in mine[0]


def test_conditions_that_are_not_known_are_not_told() -> None:
    assert model.conditions(Conditions(), Conditions()) == []
    assert model.conditions(Conditions(load=1.0), Conditions(load=1.0)) == ["processes per core 1"]
    assert model.conditions(Conditions(), Conditions(steal=0.031)) == ["stolen CPU time 3.1 %"]
