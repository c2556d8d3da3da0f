"""The HTML report in a browser: opened from a file, silent, offline, usable, and no wider than the window."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from reports.build import write_report
from tests import journals
from tests.browsing import opened, wait_until


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(journals.write(folder / "journal.jsonl", journals.records(), torn=True), folder / "report.html")


def show_everything(page: Page) -> None:
    """Open every section and scroll to the end, so that every chart and the table of all candidates are made."""
    page.get_by_role("button", name="Open all").click()
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
    page.locator("#raw").scroll_into_view_if_needed()
    wait_until(page, "document.querySelectorAll('.chart:not([data-drawn])').length === 0")
    page.wait_for_selector("#raw-table tbody tr")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_silent_offline_and_no_wider_than_the_window(browser: Browser, report: Path, width: int, scheme: str) -> None:
    watched = opened(browser, report, width, scheme)
    show_everything(watched.page)
    assert watched.page.locator(".chart .main-svg").count() >= 8
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    buttons = {button.get_attribute("data-title") for button in watched.page.locator(".modebar-btn").all()}
    assert buttons == {"Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    assert watched.page.locator(".modebar a[href]").count() == 0
    assert watched.silent(report)
    watched.page.close()


def test_colour_scheme_and_print_redraw_the_charts(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    light = watched.page.evaluate(ink)
    watched.page.emulate_media(color_scheme="dark")
    wait_until(watched.page, f"{ink} !== '{light}'")
    watched.page.emulate_media(color_scheme="dark", media="print")
    wait_until(watched.page, f"{ink} === '{light}'")
    assert not watched.page.locator(".sections").is_visible()
    assert watched.silent(report)
    watched.page.close()


def test_sorting(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    head = watched.page.locator("table.verdict th").nth(4)
    cells = watched.page.locator("table.verdict tbody td.v-speedup")

    def speedups() -> list[float]:
        return [float(cell.get_attribute("data-value") or "nan") for cell in cells.all()]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert speedups() == sorted(speedups())
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert speedups() == sorted(speedups(), reverse=True) and len(set(speedups())) == 3
    times = watched.page.locator("details.case[open] table.candidates").first
    for _ in range(2):
        times.locator("th").nth(2).get_by_role("button").click()
    values = [row.get_attribute("data-value") for row in times.locator("tbody td:nth-child(3)").all()]
    timed = [float(value) for value in values if value]
    assert timed == sorted(timed, reverse=True)
    assert all(not value for value in values[len(timed) :]), "rows without a time come last"
    assert watched.silent(report)
    watched.page.close()


def test_a_verdict_row_leads_to_its_section(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    sections = watched.page.locator("details.case")
    assert [section.get_attribute("open") is not None for section in sections.all()] == [True, False, False]
    watched.page.locator("table.verdict tbody tr").nth(2).locator("td.v-winner").click()
    wait_until(watched.page, "document.querySelectorAll('details.case')[2].open")
    wait_until(watched.page, "document.querySelectorAll('details.case')[2].getBoundingClientRect().top < 120")
    sections.nth(2).locator("summary").click()
    assert sections.nth(2).get_attribute("open") is None
    watched.page.get_by_role("button", name="Close all").click()
    assert watched.page.locator("details.case[open]").count() == 0
    assert watched.silent(report)
    watched.page.close()


def test_a_link_to_a_candidate_opens_its_section(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    watched.page.locator("#failures .problem a").first.click()
    wait_until(
        watched.page, "document.getElementById(decodeURIComponent(location.hash.slice(1))).closest('details').open"
    )
    assert watched.silent(report)
    watched.page.close()


def test_hostile_strings_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = write_report(journals.write(tmp_path / "journal.jsonl", journals.hostile()), tmp_path / "report.html")
    watched = opened(browser, path, width=800)
    watched.page.on("dialog", lambda dialog: watched.said.append(f"dialog: {dialog.message}"))
    show_everything(watched.page)
    watched.page.locator(".chart .nsewdrag").first.hover()
    assert watched.page.locator("img, a[href^=http], .chart a").count() == 0
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 800
    assert watched.silent(path)
    watched.page.close()


def test_filter_and_saved_files(browser: Browser, report: Path, tmp_path: Path) -> None:
    watched = opened(browser, report)
    show_everything(watched.page)
    watched.page.get_by_label("Filter").fill("rg_lru chunked failed")
    assert watched.page.locator("#raw-count").text_content() == "1 of 78 shown"
    assert watched.page.locator("#raw-table tbody tr:visible").count() == 1
    with watched.page.expect_download() as waiting:
        watched.page.get_by_role("button", name="Save as CSV").click()
    waiting.value.save_as(tmp_path / "candidates.csv")
    rows = list(csv.DictReader((tmp_path / "candidates.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 1 and rows[0]["status"] == "failed" and rows[0]["op"] == "rg_lru"
    assert rows[0]["key"].startswith("rg_lru/triton.chunked/") and "OutOfResources" in rows[0]["problem"]
    watched.page.get_by_label("Filter").fill("")
    assert watched.page.locator("#raw-table tbody tr:visible").count() == 78
    with watched.page.expect_download() as waiting:
        watched.page.get_by_role("button", name="Save the raw data").click()
    waiting.value.save_as(tmp_path / "data.json")
    saved = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert saved["journal"] == "journal.jsonl" and len(saved["records"]) == len(journals.records())
    assert watched.silent(report)
    watched.page.close()
