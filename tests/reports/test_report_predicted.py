"""The report of a registry of predictions: it never pretends that anything was measured."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser
from typer.testing import CliRunner

from griffin_kernels.errors import RegistryError, ReportError
from reports import format as fmt
from reports.build import write_predicted_report
from reports.cli import app
from reports.predicted import load_prediction, registry_in
from tests import journals, predictions
from tests.browsing import Watched, wait_until


def body(path: Path) -> str:
    text = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text))


def test_entries_alone_make_a_report_that_says_first_that_nothing_was_measured(tmp_path: Path) -> None:
    shown = body(write_predicted_report(predictions.write(tmp_path), tmp_path / "r.html"))
    assert shown.index("Nothing here was measured") < shown.index("Predicted winner")
    assert "1 of 1 case</strong> has a predicted winner." in shown
    assert "triton.chunked" in shown and fmt.time(4.2e-5).replace("\u202f", " ") in shown and "DRAM" in shown
    assert ">95 registers, no spills<" in shown
    assert "Candidates that were compiled" not in shown
    assert "beats" not in shown and "FASTER" not in shown


def test_candidates_beside_the_registry_are_shown_by_case(tmp_path: Path) -> None:
    path = predictions.write(tmp_path, beside=predictions.candidates())
    shown = body(write_predicted_report(path, tmp_path / "r.html"))
    assert "1 of 2 cases</strong> has a predicted winner; <strong>1</strong> is not the default" in shown
    assert "triton.chunked: too wide" in shown
    assert "dropped: scan needs 300000 bytes" in shown and "1 further candidate was not compiled" in shown
    rows = re.findall(r"<tr( class=\"is-winner\")?> <td data-value=\"triton.chunked\">", shown)
    assert rows == [' class="is-winner"', "", ""]
    assert "griffin tune --target nvidia-h100-sxm" in shown and "12 kernels compiled in 5 min 1 s" in shown
    assert "Time was up" not in shown


def test_measured_entries_are_not_among_the_predictions(tmp_path: Path) -> None:
    measured = predictions.entry(predictions.CASES[1], status="measured", median_s=1.0, predicted_s=None)
    found = load_prediction(predictions.write(tmp_path, [predictions.entry(), measured]))
    assert [choice.case for choice in found.decided] == [predictions.CASES[0]] and found.measured == 1
    shown = body(write_predicted_report(tmp_path / "nvidia-h100-80gb-hbm3.json", tmp_path / "r.html"))
    assert "1 entry of this registry is measured and not shown here" in shown


def test_command_reports_a_folder_or_a_registry(tmp_path: Path) -> None:
    path = predictions.write(tmp_path, beside=predictions.candidates())
    for given in (tmp_path, path):
        done = CliRunner().invoke(app, ["report", str(given)])
        assert done.exit_code == 0, done.output
        out = path.with_suffix(".html")
        assert done.output.strip() == str(out) and "Nothing here was measured" in out.read_text(encoding="utf-8")
        out.unlink()
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "mine.html")])
    assert done.exit_code == 0 and (tmp_path / "mine.html").exists()


def test_journal_in_the_folder_comes_first(tmp_path: Path) -> None:
    predictions.write(tmp_path)
    journals.write(tmp_path / "journal.jsonl", journals.records())
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path / "report.html")


def test_what_cannot_be_reported_is_answered_in_one_sentence(tmp_path: Path) -> None:
    assert registry_in(tmp_path) is None
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2 and "there is no journal at" in re.sub(r"\s+", " ", done.output)
    path = predictions.write(tmp_path)
    (tmp_path / "other.json").write_bytes(path.read_bytes())
    with pytest.raises(ReportError, match=r"nvidia-h100-80gb-hbm3\.json, other\.json; name one"):
        registry_in(tmp_path)
    beside = path.with_name(path.stem + ".predictions.json")
    for text, message in [
        ('{"version": 99}', "has version 99"),
        ('{"version": 1}', "is no file of predictions"),
        ("{", "no file"),
    ]:
        beside.write_text(text)
        with pytest.raises(ReportError, match=message):
            load_prediction(path)
    path.write_text("{")
    with pytest.raises(RegistryError, match="is not a valid registry"):
        load_prediction(path)


@pytest.mark.parametrize("width", [1280, 800])
def test_page_is_silent_offline_usable_and_no_wider_than_the_window(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    bad = predictions.entry(
        predictions.CASES[1], reason=journals.HOSTILE, variant=journals.HOSTILE, bound=journals.HOSTILE
    )
    path = predictions.write(tmp_path, [predictions.entry(), bad], predictions.candidates())
    out = write_predicted_report(path, tmp_path / "r.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    watched = Watched(page)
    page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.said.append(f"error: {error}"))
    page.on("request", lambda request: watched.asked.append(request.url.split("#")[0]))
    page.goto(out.as_uri())
    assert page.get_by_text("Nothing here was measured.").is_visible()
    page.locator("#predicted-table tbody tr").first.locator("td").nth(3).click()
    wait_until(page, "document.querySelectorAll('details.case[open]').length === 1")
    page.get_by_role("button", name="Open all").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save the registry").click()
    waiting.value.save_as(tmp_path / "data.json")
    saved = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert saved["registry"] == json.loads(path.read_bytes())
    assert watched.silent(out)
    page.close()


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    path = predictions.write(tmp_path, beside=predictions.candidates())
    first = write_predicted_report(path, tmp_path / "a.html").read_bytes()
    assert first == write_predicted_report(path, tmp_path / "b.html").read_bytes()


def test_predicted_entry_in_a_tuning_report_is_called_predicted(tmp_path: Path) -> None:
    """One that the registry holds besides this run's."""
    from reports.build import write_report

    other = predictions.entry(CASE)
    file = msgspec.structs.replace(journals.registry(journals.records()), schema_version=2)
    path = tmp_path / "registry.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(file, entries=[*file.entries, other])))
    journal = journals.write(tmp_path / "journal.jsonl", journals.records())
    shown = body(write_report(journal, tmp_path / "r.html", path))
    row = next(r for r in re.findall(r"<tr>.*?</tr>", shown) if "T\u00a077" in r or "T 77" in r)
    assert "predicted</span>" in row and fmt.time(4.2e-5).replace("\u202f", " ") in row and "measured" not in row


CASE = predictions.Case({"B": 1, "T": 77, "D": 64, "N": 1}, "float32")
