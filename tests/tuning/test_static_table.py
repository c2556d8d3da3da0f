"""The recorded table of compiled kernels is that of the sources, and the report shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser

from griffin_kernels import catalog
from griffin_kernels.errors import ReportError
from reports import build, tabs
from reports.build import write_report
from tests import ROOT, journals
from tests.browsing import opened
from tuning.static import recorded
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
        case = tabs.case_named(report)
        assert case is not None and case.key == report.case


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


@pytest.fixture
def compiling():
    """Runs code with kernels as they are compiled and not interpreted, in a process of its own; gives its JSON."""

    def ask(code, **given):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        program = f"import json, sys\ngiven = json.load(sys.stdin)\n{textwrap.dedent(code)}"
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(given), capture_output=True, text=True, env=environment,
            cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def test_every_kernel_is_recorded_with_the_digest_that_it_has_now(compiling):
    """So that a table whose kernels have all been compiled is never compiled again."""
    found = compiling("""
        from griffin_kernels import catalog
        from tuning.static import table
        from tuning.static.requests import compilable, representative, requests_for
        targets = ["sm_75", "sm_90", "gfx942"]
        asked = [r for v in compilable() for r in requests_for(v, representative(catalog.op(v.op).cases), targets)]
        missing, kept = table.divide(asked)
        print(json.dumps([len(asked), len(missing), len(kept)]))
    """)
    held = [r for r in recorded.load().reports if r.target in ("sm_75", "sm_90", "gfx942")]
    assert found[0] > 150 and found[1:] == [0, len(held)], HOW


def test_only_what_has_changed_is_compiled_again(compiling, tmp_path):
    replace, table = msgspec.structs.replace, recorded.load()
    changed = next(r for r in table.reports if r.op == "recurrent_block" and r.kernel == "rg_lru_gates")
    others = [replace(r, code="0" * 16) if r.code == changed.code else r for r in table.reports]
    tables = {
        "as it is": table,
        "another code": replace(table, reports=others),
        "other readers": replace(table, readers="another"),
        "other Triton": replace(table, triton="0.0"),
    }
    paths = {name: str(tmp_path / f"{name}.json") for name in ("none", *tables)}
    for name, content in tables.items():
        recorded.save(content, Path(paths[name]))
    asked, missing = compiling(
        """
        from pathlib import Path
        from griffin_kernels import catalog
        from tuning.static import table
        from tuning.static.requests import compilable, representative, requests_for
        ops, target = ("rg_lru", "recurrent_block"), given["target"]
        variants = [v for v in compilable() if v.op in ops]
        asked = [r for v in variants for r in requests_for(v, representative(catalog.op(v.op).cases), [target])]
        words = lambda requests: [[r.variant, r.case.key] for r in requests]
        missing = {name: words(table.divide(asked, Path(path))[0]) for name, path in given["paths"].items()}
        print(json.dumps([words(asked), missing]))
        """,
        target=changed.target,
        paths=paths,
    )
    assert missing["none"] == missing["other readers"] == missing["other Triton"] == asked
    assert missing["as it is"] == []
    # exactly those that launch that kernel, of whatever op
    users = {(f"{r.op}/{r.variant}", r.case) for r in table.reports if r.code == changed.code}
    assert {tuple(each) for each in missing["another code"]} == users


KERNELS = '''
import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import CompiledInPlace

SCALE = tl.constexpr(2)


@triton.jit
def helper(x):
    """Says something."""
    return x * SCALE


@triton.jit
def kernel(x, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x + at, helper(tl.load(x + at)))
'''

CHANGES = [
    ('"""Says something."""', '"""Says another thing."""  # and more', True),
    ("@triton.jit\ndef helper", "\n\n\n@triton.jit\ndef helper", True),
    ("constexpr(2)", "constexpr(3)", False),
    ("return x * SCALE", "return x + SCALE", False),
    ("tl.arange(0, N)", "tl.arange(0, N) + 0", False),
    ("@triton.jit\ndef helper", "@triton.jit(noinline=True)\ndef helper", False),
]


@pytest.mark.parametrize("decorator", ["triton.jit", "CompiledInPlace"])
def test_a_digest_is_of_the_code_and_not_of_words_or_places(compiling, tmp_path, decorator):
    """CompiledInPlace is what decorates a function that returns a bundle where Triton is 3.6."""
    helper = f"@{decorator}\ndef helper"
    kernels = KERNELS.replace("@triton.jit\ndef helper", helper)
    changes = [
        (old.replace("@triton.jit\ndef helper", helper), new.replace("@triton.jit\ndef helper", helper), same)
        for old, new, same in CHANGES
        if decorator == "triton.jit" or "noinline" not in new
    ]
    paths = []
    for number, (old, new, _) in enumerate([("", "", True), *changes]):
        assert old in kernels
        paths.append(str(tmp_path / f"kernels{number}.py"))
        Path(paths[-1]).write_text(kernels.replace(old, new, 1))
    first, *others = compiling(
        """
        import importlib.util
        from tuning.static.kernel_digest import syntax
        digests = []
        for path in given["paths"]:
            spec = importlib.util.spec_from_file_location("kernels", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            digests.append(syntax(module.kernel))
        print(json.dumps(digests))
        """,
        paths=paths,
    )
    assert [other == first for other in others] == [same for _, _, same in changes]


def test_gpu_code_tab_says_what_is_serialised():
    one = msgspec.structs.replace(
        recorded.load().reports[0], waits=48, warnings=("C7515: wgmma.mma_async instructions are serialized due to X",)
    )
    found = msgspec.structs.replace(recorded.load(), reports=[one])
    body = tabs.static_tab(found).body
    assert "1 serialises its products" in body and "C7515: wgmma.mma_async" in body and ">48<" in body
    assert "None serialises its products" in tabs.static_tab(recorded.load()).body


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
