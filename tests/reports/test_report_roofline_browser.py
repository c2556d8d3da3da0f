"""The report's tabs in a browser, and the tab *Roofline*: silent, offline, by mouse, keyboard, link and on paper."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from reports.build import write_report
from roofline.study_records import Study
from tests import journals, studies
from tests.browsing import opened, wait_until


@pytest.fixture(scope="module")
def study() -> Study:
    return studies.study()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, study: Study) -> Path:
    """A report whose study lies beside the journal."""
    folder = tmp_path_factory.mktemp("roofline")
    studies.write(folder / "roofline.json", study)
    return write_report(journals.write(folder / "journal.jsonl", studies.journal()), folder / "report.html")


def draw_all(page: Page, panel: str) -> None:
    for chart in page.locator(f"#{panel} .chart:visible").all():
        chart.scroll_into_view_if_needed()
    wait_until(
        page,
        f"[...document.querySelectorAll('#{panel} .chart')].every(c => c.dataset.drawn || !c.getClientRects().length)",
    )


def visible(page: Page) -> list[str]:
    return [panel.get_attribute("id") or "" for panel in page.locator(".tab").all() if panel.is_visible()]


def choose(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_silent_offline_and_no_wider_than_the_window(browser: Browser, report: Path, width: int, scheme: str) -> None:
    watched = opened(browser, report, width, scheme)
    choose(watched.page, "Roofline")
    draw_all(watched.page, "roofline")
    assert watched.page.locator("#roofline .chart[data-drawn]").count() == 3
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    chart = watched.page.locator("#roofline .chart").first.bounding_box()
    assert chart and width * 0.85 < chart["width"] <= width
    assert watched.silent(report)
    watched.page.close()


def test_tabs_by_click_keyboard_link_and_history(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    page = watched.page
    assert visible(page) == ["tuning"]
    choose(page, "Roofline")
    wait_until(page, "!document.getElementById('roofline').hidden")
    assert visible(page) == ["roofline"]
    assert page.get_by_role("tab", name="Roofline").get_attribute("aria-selected") == "true"
    for key, expected in (
        ("ArrowRight", "forward"),
        ("ArrowRight", "gpu-code"),
        ("ArrowRight", "tuning"),
        ("ArrowLeft", "gpu-code"),
        ("Home", "tuning"),
        ("End", "gpu-code"),
    ):
        page.keyboard.press(key)
        assert visible(page) == [expected]
        assert page.evaluate("document.activeElement.hash") == f"#{expected}"
    assert page.locator('[role="tab"][tabindex="0"]').count() == 1
    page.evaluate("location.hash = '#roofline-fusion'")
    wait_until(page, "!document.getElementById('roofline').hidden")
    assert visible(page) == ["roofline"]
    page.evaluate("location.hash = '#roofline-definitions'")
    wait_until(page, "document.getElementById('roofline-definitions').open")
    choose(page, "Tuning")
    wait_until(page, "!document.getElementById('tuning').hidden")
    page.go_back()
    wait_until(page, "!document.getElementById('roofline').hidden")
    assert visible(page) == ["roofline"]
    assert watched.silent(report)
    page.close()


def test_a_click_on_a_kernel_leads_to_its_case(browser: Browser, report: Path, study: Study) -> None:
    watched = opened(browser, report)
    page = watched.page
    worst = studies.by_loss(study)[0]
    choose(page, "Roofline")
    draw_all(page, "roofline")
    mark = page.locator("#roofline .chart").first.locator('[role="link"][aria-label^="1 "]')
    assert (mark.get_attribute("aria-label") or "").startswith(f"1 {worst.op} ")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(100)
    wait_until(page, "document.querySelectorAll('#roofline .judging').length === 1")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wait_until(page, "!document.getElementById('tuning').hidden")
    anchor = f"{worst.op}/{worst.case}"
    assert page.evaluate("decodeURIComponent(location.hash.slice(1))") == anchor
    wait_until(page, f"document.getElementById({json.dumps(anchor)}).open")
    assert watched.silent(report)
    page.close()


def test_the_keyboard_leads_to_a_case_too(browser: Browser, report: Path, study: Study) -> None:
    watched = opened(browser, report)
    page = watched.page
    choose(page, "Roofline")
    draw_all(page, "roofline")
    chart = page.locator("#roofline .chart").first
    assert chart.locator('[role="link"]').count() == len(study.kernels)
    stop = chart.locator('[role="link"][tabindex="0"]')
    assert stop.count() == 1
    stop.focus()
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first and second and first != second and chart.locator('[role="link"][tabindex="0"]').count() == 1
    assert page.locator("#roofline .hovertext").count() == 1
    page.keyboard.press("Enter")
    wait_until(page, "!document.getElementById('tuning').hidden")
    assert second.split()[1] == page.evaluate("location.hash.slice(1).split('/')[0]")
    assert watched.silent(report)
    page.close()


def test_a_kernel_that_was_not_tuned_in_this_run_leads_to_its_row(browser: Browser, report: Path, study: Study) -> None:
    watched = opened(browser, report)
    page = watched.page
    choose(page, "Roofline")
    draw_all(page, "roofline")
    rank = 1 + next(i for i, kernel in enumerate(studies.by_loss(study)) if kernel.op == "local_attention")
    page.locator("#roofline .chart").first.locator(f'[role="link"][aria-label^="{rank} "]').focus()
    page.keyboard.press("Enter")
    wait_until(page, f"location.hash === '#roofline-kernel-{rank}'")
    assert visible(page) == ["roofline"]
    assert watched.silent(report)
    page.close()


def test_print_shows_every_tab(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    page = watched.page
    page.emulate_media(media="print")
    wait_until(page, "document.querySelectorAll('#roofline .chart[data-drawn]').length === 3")
    assert visible(page) == ["tuning", "roofline", "forward", "gpu-code"]
    assert not page.locator(".tabs").is_visible() and not page.locator("#roofline .table-tools").first.is_visible()
    page.emulate_media(media="screen")
    wait_until(page, "!document.querySelector('#roofline').getClientRects().length")
    assert visible(page) == ["tuning"]
    assert watched.silent(report)
    page.close()


def test_a_hidden_tab_is_drawn_anew_when_colours_have_changed(browser: Browser, report: Path) -> None:
    watched = opened(browser, report)
    page = watched.page
    choose(page, "Roofline")
    draw_all(page, "roofline")
    ink = "getComputedStyle(document.querySelector('#roofline .chart .xtick text')).fill"
    light = page.evaluate(ink)
    choose(page, "Tuning")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 900, "height": 900})
    page.wait_for_timeout(200)
    choose(page, "Roofline")
    wait_until(page, f"{ink} !== '{light}'")
    wait_until(page, "document.querySelector('#roofline .main-svg').getBoundingClientRect().width > 600")
    assert page.evaluate("document.documentElement.scrollWidth") <= 900
    assert watched.silent(report)
    page.close()


def test_a_table_is_saved_as_csv(browser: Browser, report: Path, study: Study, tmp_path: Path) -> None:
    watched = opened(browser, report)
    page = watched.page
    choose(page, "Roofline")

    def saved(table: str) -> Sequence[dict[str, str]]:
        with page.expect_download() as waiting:
            page.locator(f'button[data-csv="{table}"]').click()
        waiting.value.save_as(tmp_path / "table.csv")
        return list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8", newline="")))

    found = saved("roofline-times-table")
    for row, kernel in zip(found, studies.by_loss(study), strict=True):
        assert float(row["measured (s)"]) == kernel.measured_s and float(row["lost (s)"]) == kernel.lost_s
        assert row["Case"] == kernel.case and float(row["floor over measured"]) == kernel.share
        assert kernel.interval_s and float(row["95% high (s)"]) == kernel.interval_s[1]
    ceilings = saved("roofline-ceilings-table")
    assert [float(row["95% high"]) for row in ceilings] == [
        c.high for c in study.ceilings if not c.name.startswith("matmul_rows_")
    ]
    assert watched.silent(report)
    page.close()


def test_hostile_strings_do_nothing(browser: Browser, study: Study, tmp_path: Path) -> None:
    studies.write(tmp_path / "roofline.json", studies.hostile(study))
    path = write_report(journals.write(tmp_path / "journal.jsonl", journals.records()), tmp_path / "report.html")
    watched = opened(browser, path, width=800)
    watched.page.on("dialog", lambda dialog: watched.said.append(f"dialog: {dialog.message}"))
    choose(watched.page, "Roofline")
    draw_all(watched.page, "roofline")
    mark = watched.page.locator('#roofline .chart [role="link"]').first
    mark.focus()
    assert watched.page.locator("#roofline .hovertext").count() == 1
    assert watched.page.locator("img, a[href^=http], .chart a").count() == 0
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 800
    assert watched.silent(path)
    watched.page.close()
