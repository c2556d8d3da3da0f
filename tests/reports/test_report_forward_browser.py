"""The tab of forward passes in a browser: silent, offline, no wider than the window, its select boxes usable."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from markupsafe import Markup
from playwright.sync_api import Browser, Locator

from reports.charts.forward_passes import regimes
from reports.forward_model import PageView
from reports.page import Tab, page
from reports.tabs import forward_tab
from roofline.study_records import Study, encode
from tests import journals, studies
from tests.browsing import Watched, opened, wait_until


def write(folder: Path, study: Study) -> Path:
    """A page of this tab behind one that holds what every report has: a chart and a button for the data."""
    chart = regimes(PageView(studies.pages()[0], 0), "decode")
    first = Markup(
        f'<div class="chart"><script type="application/json">{chart}</script></div>'
        '<button type="button" id="save-json">Save the raw data</button>'
    )
    path = folder / "report.html"
    data = f'{{"study":{encode(study).decode()}}}'
    path.write_text(page("Report", [Tab("first", "First", first), forward_tab(study)], data), encoding="utf-8")
    return path


def chosen(browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> Watched:
    """The report in a browser, with this tab in front."""
    watched = opened(browser, report, width, scheme)
    watched.page.get_by_role("tab", name="Forward passes").click()
    watched.page.locator("#forward .chart:visible").first.scroll_into_view_if_needed()
    watched.page.locator("#forward .chart:visible[data-drawn]").first.wait_for()
    return watched


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("forward"), studies.study())


def show_everything(watched: Watched) -> None:
    """Open every section and every panel, and scroll to every chart."""
    watched.page.evaluate("document.querySelectorAll('#forward details').forEach((d) => { d.open = true; })")
    for chart in watched.page.locator("#forward .panel:not([hidden]) .chart, #forward .chart:visible").all():
        chart.scroll_into_view_if_needed()
    wait_until(
        watched.page,
        "[...document.querySelectorAll('.chart:not([data-drawn])')].every((c) => !c.getClientRects().length)",
    )


def panel_of(watched: Watched, select: Locator) -> Locator:
    return watched.page.locator(f"[id='{select.input_value()}']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_silent_offline_and_no_wider_than_the_window(browser: Browser, report: Path, width: int, scheme: str) -> None:
    watched = chosen(browser, report, width, scheme)
    show_everything(watched)
    assert watched.page.locator("#forward .chart:visible .main-svg").count() >= 14
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.silent(report)
    watched.page.close()


def test_every_option_shows_its_panel_alone(browser: Browser, report: Path) -> None:
    watched = chosen(browser, report)
    selects = watched.page.locator("select[data-panels]")
    assert selects.count() == 8
    for select in selects.all():
        options = [option.get_attribute("value") or "" for option in select.locator("option").all()]
        for value in (options[-1], options[0]):
            select.select_option(value)
            visible = [other for other in options if watched.page.locator(f"[id='{other}']").is_visible()]
            assert visible == [value]
            chart = panel_of(watched, select).locator(".chart").first
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for()
    assert watched.silent(report)
    watched.page.close()


def test_a_select_box_by_keyboard(browser: Browser, report: Path) -> None:
    watched = chosen(browser, report)
    select = watched.page.get_by_label("Length", exact=True).first
    before = select.input_value()
    select.focus()
    watched.page.keyboard.press("ArrowDown")
    wait_until(watched.page, f"document.activeElement.value !== '{before}'")
    assert not watched.page.locator(f"[id='{before}']").is_visible()
    chart = panel_of(watched, select).locator(".chart")
    chart.scroll_into_view_if_needed()
    chart.locator(".main-svg").first.wait_for()
    assert "Prefill: latency, 2" in (chart.locator(".annotation-text").first.text_content() or "")
    assert watched.silent(report)
    watched.page.close()


def test_a_row_of_the_table_shows_the_layers_of_its_pass(browser: Browser, report: Path) -> None:
    watched = chosen(browser, report)
    row = watched.page.locator("#forward-0-table tbody tr").nth(2)
    row.locator("td").nth(3).click()
    wait_until(watched.page, "!document.getElementById('forward-0-pass-2').hidden")
    select = watched.page.get_by_label("Pass", exact=True).first
    assert select.input_value() == "forward-0-pass-2"
    panel = watched.page.locator("#forward-0-pass-2")
    assert "mqa-100m, prefill of 256 tokens" in (panel.locator(".lede").text_content() or "")
    panel.locator(".chart .barlayer path").first.wait_for()
    wait_until(watched.page, "document.getElementById('forward-0-pass-2').getBoundingClientRect().top < 300")
    assert watched.silent(report)
    watched.page.close()


def test_print_and_colour_scheme(browser: Browser, report: Path) -> None:
    watched = chosen(browser, report, scheme="dark")
    ink = "getComputedStyle(document.querySelector('#forward .chart[data-drawn] .xtick text')).fill"
    dark = watched.page.evaluate(ink)
    watched.page.emulate_media(color_scheme="dark", media="print")
    wait_until(watched.page, f"{ink} !== '{dark}'")
    assert not watched.page.locator("select[data-panels]").first.is_visible()
    assert watched.page.locator("#forward-0-table").is_visible()
    assert watched.silent(report)
    watched.page.close()


def test_the_grid_as_csv(browser: Browser, report: Path, tmp_path: Path) -> None:
    watched = chosen(browser, report)
    watched.page.locator("#forward-1 details.details summary").click()
    with watched.page.expect_download() as waiting:
        watched.page.locator("#forward-1").get_by_role("button", name="Save the grid as CSV").click()
    waiting.value.save_as(tmp_path / "grid.csv")
    with (tmp_path / "grid.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    grid = studies.pages()[1].grid
    assert len(rows) == len(grid)
    for row, point in zip(rows, grid, strict=True):
        assert (row["model"], row["phase"], int(row["batch"]), int(row["seq"])) == (
            point.model, point.phase, point.batch, point.seq,
        )  # fmt: skip
        assert float(row["predicted_s"]) == point.predicted_s and row["regime"] == point.regime
        assert row["fits"] == str(point.fits).lower()
    assert watched.silent(report)
    watched.page.close()


def test_hostile_strings_do_nothing(browser: Browser, tmp_path: Path) -> None:
    text = journals.HOSTILE
    found = studies.pages()[0]
    hostile = msgspec.structs.replace(
        found,
        device=text,
        models=[text + name for name in found.models],
        assumptions=[text],
        passes=[msgspec.structs.replace(p, model=text + p.model, regime=text) for p in found.passes],
        grid=[msgspec.structs.replace(p, model=text + p.model, regime=text) for p in found.grid],
    )
    path = write(tmp_path, msgspec.structs.replace(studies.study(), pages=[hostile]))
    watched = chosen(browser, path, width=800)
    watched.page.on("dialog", lambda dialog: watched.said.append(f"dialog: {dialog.message}"))
    show_everything(watched)
    watched.page.locator(".chart:visible .nsewdrag").first.hover()
    assert watched.page.locator("img, a[href^=http], .chart a").count() == 0
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 800
    assert watched.silent(path)
    watched.page.close()
