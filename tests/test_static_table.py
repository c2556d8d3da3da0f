"""The recorded table of compiled kernels is that of the sources, and the report shows it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from griffin_kernels import catalog
from griffin_kernels.errors import ReportError
from reports import build, static_tab
from reports.build import write_report
from tests import journals
from tests.browsing import opened
from tuning.static import recorded
from tuning.static.requests import compilable, representative, requests_for
from tuning.static.targets import CHECKED

HOW = "a kernel has changed: `make static` records the table anew"


def test_recorded_table_is_of_these_sources():
    found = recorded.load()
    assert found.sources == {variant.key: variant.source_hash for variant in compilable()}, HOW
    assert found.triton == metadata.version("triton"), HOW


def test_recorded_table_has_every_default_for_every_target():
    asked = {
        (variant.op, variant.name, case.key, request.target)
        for variant in compilable()
        for case in representative(catalog.op(variant.op).cases)
        for request in requests_for(variant, [case], CHECKED)
    }
    assert {(r.op, r.variant, r.case, r.target) for r in recorded.load().reports} == asked, HOW


def test_nothing_recorded_breaks_a_claim():
    assert [r for r in recorded.load().reports if r.broken] == []


def test_every_case_is_read_back_from_its_key():
    for report in recorded.load().reports:
        case = static_tab._case(report)
        assert case is not None and case.case(report.op).key == report.case


def test_the_file_comes_back_as_it_was_written(tmp_path):
    found = recorded.load()
    path = tmp_path / "recorded.json"
    recorded.save(found.triton, found.sources, found.reports, path)
    assert recorded.load(path) == found
    assert path.read_bytes() == recorded.FILE.read_bytes()


def test_a_broken_table_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "recorded.json"
    load = recorded.load
    monkeypatch.setattr(build.recorded, "load", lambda: load(path))
    for content in (None, b"{"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ReportError, match="cannot read the table of compiled kernels"):
            build.static_table()


def test_tab_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    report = write_report(journals.write(tmp_path / "journal.jsonl", journals.records()), tmp_path / "report.html")
    watched = opened(browser, report)
    page = watched.page
    page.get_by_role("tab", name="GPU code").click()
    found = recorded.load()
    for target in ("sm_90", "gfx942"):
        page.get_by_label("Architecture").select_option(f"gpu-code-{target}")
        rows = page.locator(f"#gpu-code-{target}-table tbody tr:visible")
        assert rows.count() == sum(r.target == target for r in found.reports)
    assert page.locator("#gpu-code-sm_90-table").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert watched.silent(report)
    page.close()
