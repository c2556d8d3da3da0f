"""The recorded table of compiled kernels is that of the sources, and the report shows it."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser

from griffin_kernels import catalog
from griffin_kernels.contract import config_key
from griffin_kernels.errors import ReportError
from reports import build, static_tab
from reports.build import write_report
from tests import journals
from tests.browsing import opened
from tuning.static import again, recorded
from tuning.static.requests import compilable, representative, requests_for
from tuning.static.targets import CHECKED, target

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
    recorded.save(found, path)
    assert recorded.load(path) == found
    assert path.read_bytes() == recorded.FILE.read_bytes()


def test_estimates_of_shared_memory_are_upper_bounds(monkeypatch):
    """What a variant says it needs, where it says so, against what its kernels got from the compiler."""
    needed: list[int] = []
    for op in catalog.ops():
        catalog.variants(op)  # imports them
    for name, module in list(sys.modules.items()):
        if name.startswith("griffin_kernels.ops.") and hasattr(module, "over_shared"):
            monkeypatch.setattr(module, "over_shared", lambda least, arch: needed.append(least))
    most: dict[tuple[str, ...], int] = {}
    for r in recorded.load().reports:
        key = (r.op, f"{r.op}/{r.variant}", r.case, r.target)
        most[key] = max(most.get(key, 0), r.shared_bytes)
    checked, under = 0, []
    for (op, variant, case_key, arch), got in most.items():
        needed.clear()
        case = next(case for case in catalog.op(op).cases if case.key == case_key)
        found = catalog.variant(variant)
        assert found.reject(case, target(arch).device, found.config()) is None
        checked += bool(needed)
        if needed and needed[-1] < got:
            under.append((variant, case_key, arch, needed[-1], got))
    assert checked > 50 and not under, under


def test_only_what_has_changed_is_compiled_again(tmp_path):
    path = tmp_path / "recorded.json"
    variants = list(compilable("linear_scan"))
    asked = [r for v in variants for r in requests_for(v, representative(catalog.op(v.op).cases), ["sm_90", "gfx942"])]
    like = recorded.load().reports[0]
    reports = [
        msgspec.structs.replace(
            like, op="linear_scan", variant=r.variant.partition("/")[2], case=r.case, target=r.target,
            config=config_key(catalog.variant(r.variant).parse_config(r.config)),
        )
        for r in asked
    ]  # fmt: skip
    assert again.divide(asked, path) == (asked, [])  # no table
    fresh = again.with_origins(reports)
    recorded.save(fresh, path)
    assert again.divide(asked, path) == ([], reports)
    recorded.save(msgspec.structs.replace(fresh, reports=[r for r in reports if r.target == "sm_90"]), path)
    assert {r.target for r in again.divide(asked, path)[0]} == {"gfx942"}
    changed = variants[0].key
    recorded.save(msgspec.structs.replace(fresh, origins=fresh.origins | {changed: "another"}), path)
    assert {r.variant for r in again.divide(asked, path)[0]} == {changed}
    recorded.save(msgspec.structs.replace(fresh, triton="0.0"), path)
    assert again.divide(asked, path) == (asked, [])


def test_gpu_code_tab_says_what_is_serialised():
    one = msgspec.structs.replace(
        recorded.load().reports[0], waits=48, warnings=("C7515: wgmma.mma_async instructions are serialized due to X",)
    )
    found = msgspec.structs.replace(recorded.load(), reports=[one])
    body = static_tab.static_tab(found).body
    assert "1 serialises its products" in body and "C7515: wgmma.mma_async" in body and ">48<" in body
    assert "None serialises its products" in static_tab.static_tab(recorded.load()).body


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
    for arch in ("sm_90", "gfx942"):
        page.get_by_label("Architecture").select_option(f"gpu-code-{arch}")
        rows = page.locator(f"#gpu-code-{arch}-table tbody tr:visible")
        assert rows.count() == sum(r.target == arch for r in found.reports)
    assert page.locator("#gpu-code-sm_90-table").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert watched.silent(report)
    page.close()
