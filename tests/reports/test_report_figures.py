"""The report's tab *Paper's figures*: its numbers are the record's, broken ones are refused, it draws in a browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser

from griffin_kernels.errors import ReportError
from reports.build import write_report
from reports.charts import paper_figures
from roofline.figures_records import FILE_NAME, PaperFigures, encode
from tests import drawn_figures, journals, studies
from tests.browsing import opened, wait_until


def write(folder: Path, found: PaperFigures) -> Path:
    journals.write(folder / "journal.jsonl", studies.journal())
    (folder / FILE_NAME).write_bytes(encode(found))
    return write_report(folder / "journal.jsonl", folder / "report.html")


def tab(report: Path) -> str:
    """The text of the tab."""
    found = re.search(r'<div id="paper" class="tab">(.*?)<div id="gpu-code"', report.read_text(encoding="utf-8"), re.S)
    assert found
    without = re.sub(r"<script.*?</script>", "", found[1], flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without)))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("figures"), drawn_figures.record("3", "context"))


def test_statements_and_numbers_are_the_records(tmp_path: Path) -> None:
    text, record = tab(write(tmp_path, drawn_figures.record())), drawn_figures.record()
    for one in record.figures:
        for claim in one.claims:
            assert claim.statement in text and claim.criterion in text
            assert all(found.why in text for found in claim.judgements)
        for panel in one.panels:
            values = [p.y for s in one.of_panel(panel.name) for p in s.points]
            told = [re.sub(r"\s+", " ", paper_figures.value(y, panel.quantity)) for y in values]
            assert [value for value in told if value not in text] == []
    assert "6 of 6 statements hold: google-tpu-v3, predicted, causal pairs." in text
    assert "measured on AMD EPYC" in text and "the smallest presets, at a few lengths" in text
    assert "nothing was measured on it" in text


def test_predicted_alone_says_so(tmp_path: Path) -> None:
    found = msgspec.structs.replace(drawn_figures.record("3"), device=None)
    text = tab(write(tmp_path, found))
    assert "predicted, nothing was measured" in text and "Figure 1b" not in text


def test_a_report_without_a_record_has_no_tab(tmp_path: Path) -> None:
    journals.write(tmp_path / "journal.jsonl", studies.journal())
    text = write_report(tmp_path / "journal.jsonl", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "axes and statements of arXiv" not in text


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("y", -1.0, "figure 3 has a value that is not above 0"),
        ("interval", [0.0, 1.0], "figure 3 has a value that is not above 0"),
        ("panel", "9", "figure 3 lacks panel '9'"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, name: str, change: object, why: str) -> None:
    raw = msgspec.to_builtins(drawn_figures.record("3"))
    series = raw["figures"][0]["series"][0]
    (series if name == "panel" else series["points"][0])[name] = change
    journals.write(tmp_path / "journal.jsonl", studies.journal())
    (tmp_path / FILE_NAME).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ReportError, match=why):
        write_report(tmp_path / "journal.jsonl", tmp_path / "report.html")


def test_a_band_is_drawn_where_assumptions_differ() -> None:
    one = drawn_figures.figure("3")
    chart = json.loads(paper_figures.panel(one, one.panels[0]) or "")
    bands = [trace for trace in chart["data"] if trace.get("fill") == "toself"]
    assert len(bands) == 4  # MQA and Griffin, on two devices
    names = [trace.get("name") for trace in chart["data"]]
    assert names.count("MQA (mqa-400m), google-tpu-v3, predicted") == 2
    scaled = json.loads(paper_figures.panel(one, one.panels[-1]) or "")
    assert any("measured" in (trace.get("name") or "") and trace.get("error_y") for trace in scaled["data"])


def test_no_line_where_nothing_has_a_value() -> None:
    one = drawn_figures.figure("context")
    keys = next(panel for panel in one.panels if panel.name == "context-keys")
    chart = json.loads(paper_figures.panel(one, keys) or "")
    assert not any("Hawk" in (trace.get("name") or "") for trace in chart["data"])
    hawk = msgspec.structs.replace(one, series=[s for s in one.series if s.label == "Hawk"])
    assert paper_figures.panel(hawk, keys) is None


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_silent_offline_and_no_wider_than_the_window(browser: Browser, report: Path, width: int, scheme: str) -> None:
    watched = opened(browser, report, width, scheme)
    watched.page.get_by_role("tab", name="Paper's figures").click()
    for chart in watched.page.locator("#paper .chart").all():
        chart.scroll_into_view_if_needed()
    wait_until(watched.page, "!document.querySelector('#paper .chart:not([data-drawn])')")
    figures = drawn_figures.record("3", "context").figures
    assert watched.page.locator("#paper .chart[data-drawn]").count() == sum(len(one.panels) for one in figures) == 8
    watched.page.evaluate("document.querySelectorAll('#paper details').forEach((d) => { d.open = true; })")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.silent(report)
    watched.page.close()


def test_hostile_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path, drawn_figures.hostile(drawn_figures.record("4")))
    assert journals.HOSTILE not in path.read_text(encoding="utf-8")
    watched = opened(browser, path)
    watched.page.on("dialog", lambda dialog: watched.said.append(f"dialog: {dialog.message}"))
    watched.page.get_by_role("tab", name="Paper's figures").click()
    watched.page.locator("#paper .chart[data-drawn]").first.wait_for()
    assert watched.page.locator("#paper img, #paper a[href^=http], #paper .chart a").count() == 0
    assert watched.silent(path)
    watched.page.close()
