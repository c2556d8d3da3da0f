"""The report's tab *Roofline*: its numbers are the study's, hostile texts are texts, broken studies are refused."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from griffin_kernels import catalog
from griffin_kernels.errors import ReportError
from reports import format as fmt
from reports.build import write_report
from reports.charts import roofline
from reports.roofline_model import CaseName, RooflineView
from roofline.ceilings import Ceiling
from roofline.study_records import KernelFloor, Study, encode
from tests import journals, studies
from tuning.measure import machine_ceilings
from tuning.record.journal_records import Result

HOSTILE = journals.HOSTILE


@pytest.fixture(scope="module")
def study() -> Study:
    return studies.study()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, study: Study) -> Path:
    """A report whose study lies beside the journal."""
    folder = tmp_path_factory.mktemp("roofline")
    studies.write(folder / "roofline.json", study)
    return write_report(journals.write(folder / "journal.jsonl", studies.journal()), folder / "report.html")


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Study], str]:
    """The text of the tab for a study, without scripts."""

    def of(found: Study) -> str:
        path = studies.write(tmp_path / "elsewhere.json", found)
        journal = journals.write(tmp_path / "journal.jsonl", studies.journal())
        return tab(write_report(journal, tmp_path / "report.html", study=path))

    return of


def tab(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    body = text[text.index('<div id="roofline"') : text.index('<div id="forward"')]
    return re.sub(r"<script\b[^>]*>.*?</script>", "", body, flags=re.DOTALL)


def rows(text: str, table: str) -> list[list[str]]:
    """Texts of a table's cells, with a space for each tag."""
    found = re.search(rf'<table[^>]*id="{table}".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert found, table
    plain = lambda cell: " ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).replace("\u202f", "_").split())  # noqa: E731
    return [
        [plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", found[1], re.DOTALL)
    ]


def test_every_tab_says_why_a_share_is_above_100_percent_and_judges_by_the_same_ceiling(report, study):
    body = re.sub(r"<script\b[^>]*>.*?</script>", "", report.read_text(encoding="utf-8"), flags=re.DOTALL)
    cells = re.findall(r'<td[^>]*class="[^"]*roof[^"]*"[^>]*>(.*?)</td>', body, re.DOTALL)
    words = [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells]
    above = [word for word in words if (share := re.match(r"(\d+)%", word)) and int(share[1]) > 100]
    assert len(above) >= 2, "the verdict and the roofline tab have one"
    assert all("nearer cache" in word for word in above), above
    assert "121% of its ceiling" in re.sub(r"</?strong>", "", body) and "memory roof" not in body
    by_case = {(k.op, k.case): (k.bound, k.share, k.above) for k in study.kernels}
    for e in (line.entry for line in studies.journal() if isinstance(line, Result)):
        assert by_case[e.op, e.case.key] == (e.bound, pytest.approx(e.share_of_bound), e.above_bound)
    assert "was not made with the tuning run" not in body


def test_a_study_with_other_ceilings_than_the_tuning_run_says_so(tmp_path, study):
    """One that was made later; the run's journal has its own."""
    judging = [machine_ceilings.record(c) for c in study.ceilings if c.name.startswith("dram")]
    assert RooflineView(study).others(judging) == []
    other = msgspec.structs.replace(judging[0], value=judging[0].value * 1.5, high=judging[0].high * 1.5)
    assert RooflineView(study).others([other, *judging[1:]]) == ["DRAM copy"]
    assert RooflineView(study).others([msgspec.structs.replace(other, source="")]) == [], "an earlier version's"
    path = journals.write(tmp_path / "journal.jsonl", [*studies.journal(), other])
    text = tab(write_report(path, tmp_path / "report.html", study=studies.write(tmp_path / "s.json", study)))
    assert "was not made with the tuning run beside it: it has its own DRAM copy" in " ".join(text.split())


def shown(text: str) -> str:
    return text.replace("\u202f", "_")


def operations(kernel: KernelFloor) -> int:
    return kernel.tensor_flops + kernel.vector_flops + kernel.special_ops


def test_the_roofline_table_is_the_study(report: Path, study: Study) -> None:
    found = rows(tab(report), "roofline-table")
    assert len(found) == len(study.kernels) == 11
    for cells, kernel in zip(found, studies.by_loss(study), strict=True):
        work = operations(kernel)
        assert cells[1] == kernel.op
        assert cells[3] == shown(fmt.significant(work / kernel.bytes))
        assert cells[4] == fmt.rate(work / kernel.measured_s, "ops_per_s")
        assert cells[5] == fmt.rate(work / max(kernel.floors_s.values()), "ops_per_s")
        assert cells[7] == shown(fmt.decimal(work, "op")) and cells[8] == shown(fmt.decimal(kernel.bytes))


def test_the_time_table_is_the_study_and_nothing_is_clamped(report: Path, study: Study) -> None:
    text = tab(report)
    for cells, kernel in zip(rows(text, "roofline-times-table"), studies.by_loss(study), strict=True):
        assert cells[3] == (shown(fmt.time(kernel.lost_s)) if kernel.lost_s else "none")
        assert cells[4].startswith(shown(fmt.time(kernel.measured_s)))
        assert cells[6].startswith(fmt.share(kernel.share))
        floors = [kernel.floors_s.get(name) for name in ("dram", "cache", "tensor", "vector", "special")]
        assert cells[7:] == [shown(fmt.time(seconds)) for seconds in floors]
    beating = [kernel for kernel in study.kernels if kernel.share > 1]
    assert len(beating) == 1 and fmt.share(beating[0].share) == "121%"
    assert text.count("part of the data probably stayed in a nearer cache") == 2


def test_the_headline_is_derived(build: Callable[[Study], str], report: Path, study: Study) -> None:
    def headline(text: str) -> str:
        found = re.search(r'<p class="headline">(.*?)</p>', text, re.DOTALL)
        assert found
        return " ".join(html.unescape(re.sub(r"<[^>]*>", "", found[1])).split())

    worst = max(study.kernels, key=lambda kernel: kernel.lost_s)
    text = headline(tab(report))
    assert text.startswith("6 of 11 kernels are bound by moving data to and from main memory (DRAM). ")
    assert f"{worst.op} {CaseName.of(worst.case)}".replace("\u00a0", " ") in text.replace("\u00a0", " ")
    assert f"it reaches {fmt.share(worst.share)} of what the ceiling for matrix products allows" in text
    pair = [next(k for k in study.kernels if k.bound == bound) for bound in ("special", "dram")]
    text = headline(build(msgspec.structs.replace(study, kernels=pair)))
    assert "1 of 2 kernels is bound by moving data" in text and " and 1 of 2 kernels is bound by special" in text
    fast = msgspec.structs.replace(pair[0], lost_s=0.0, share=1.0)
    assert "No kernel loses time" in headline(build(msgspec.structs.replace(study, kernels=[fast])))


def test_ceilings_without_a_datasheet(report: Path, study: Study) -> None:
    text = tab(report)
    measured = [c for c in study.ceilings if not c.name.startswith("matmul_rows_")]
    found = rows(text, "roofline-ceilings-table")
    assert [cells[1] for cells in found if "results" not in cells[1]] == [
        shown(fmt.rate(c.value, c.unit)) for c in measured if c.unit != "ops_per_s"
    ]
    assert [cells[3] for cells in found] == [c.source for c in measured]
    assert text.count("No peak is known for this CPU") == 1 and "Measured / datasheet" not in text
    by_rows = rows(text, "roofline-rows-table")
    assert [cells[1] for cells in by_rows] == ["1", "4", "16", "64", "256", "1024"]


def test_ceilings_beside_a_datasheet(build: Callable[[Study], str], study: Study) -> None:
    sheet = [
        Ceiling.stated("dram", "bytes_per_s", 4.8e10, "datasheet", "datasheet x"),
        Ceiling.stated("matmul_float32", "flops_per_s", 2.0e11, "datasheet", "datasheet x"),
        Ceiling.stated("launch", "s", 4e-6, "assumed", "assumed"),
    ]
    text = build(msgspec.structs.replace(study, datasheet=sheet))
    found = {cells[0]: cells[3:5] for cells in rows(text, "roofline-ceilings-table")}
    assert found["DRAM triad"] == ["48.0 GB/s", fmt.share(4.02e10 / 4.8e10)]
    assert found["matrix product float32"] == ["200 GFLOP/s", fmt.share(1.49e11 / 2e11)]
    assert found["cache triad"] == found["launch"] == ["not known", fmt.MISSING]
    assert "No peak is known" not in text


def test_the_fusion_table_is_the_study(report: Path, study: Study) -> None:
    found = rows(tab(report), "roofline-fusion-table")
    expected = sorted(study.fusion, key=lambda row: -row.unfused_bytes / row.fused_bytes)
    assert len(found) == len(expected) > 3
    for cells, row in zip(found, expected, strict=True):
        assert cells[2:6] == [
            shown(fmt.decimal(row.fused_bytes)),
            shown(fmt.decimal(row.unfused_bytes)),
            fmt.ratio(row.unfused_bytes / row.fused_bytes),
            str(row.unfused_launches),
        ]
        assert cells[8] == fmt.ratio(row.unfused_s / row.fused_s)


def traces(spec: str | None) -> list[dict[str, Any]]:
    assert spec is not None
    return list(json.loads(spec)["data"])


def values(found: Any) -> list[float]:
    """A figure's numbers, which plotly may pack."""
    if isinstance(found, dict):
        import base64

        import numpy as np

        return [float(v) for v in np.frombuffer(base64.b64decode(found["bdata"]), dtype=found["dtype"])]
    return list(found)


def test_the_chart_holds_every_kernel_below_its_own_limit(study: Study) -> None:
    view = RooflineView(study)
    data = traces(roofline.roofline(view))
    marks = {
        text: (x, y)
        for trace in data
        if "text" in trace
        for text, x, y in zip(trace["text"], values(trace["x"]), values(trace["y"]), strict=True)
    }
    for rank, kernel in enumerate(studies.by_loss(study), 1):
        x, y = marks[str(rank)]
        assert math.isclose(x, operations(kernel) / kernel.bytes)
        assert math.isclose(y, operations(kernel) / kernel.measured_s)
    limits = [y for trace in data if trace.get("marker", {}).get("symbol") == "line-ew" for y in values(trace["y"])]
    expected = [operations(kernel) / max(kernel.floors_s.values()) for kernel in study.kernels]
    assert sorted(limits) == pytest.approx(sorted(expected))


def test_scans_are_never_judged_by_the_matrix_peak(study: Study) -> None:
    data = traces(roofline.roofline(RooflineView(study)))
    roofs = {trace["name"] for trace in data if trace.get("name", "").startswith("roof ")}
    judged = {
        (trace["name"], goal[1])
        for trace in data
        if "text" in trace
        for goal in trace["customdata"]
        if goal is not None
    }
    assert {goal for _, goal in judged} <= roofs
    assert {goal for op, goal in judged if "scan" in op or "conv" in op} == {"roof dram"}
    assert ("local_attention", "roof tensor-float32") in judged and ("rg_lru", "roof special") in judged


def test_the_time_chart_holds_floors_and_losses(study: Study) -> None:
    data = {trace.get("name"): trace for trace in traces(roofline.times(RooflineView(study)))}
    bars = [trace for trace in traces(roofline.times(RooflineView(study))) if trace["type"] == "bar"]
    assert values(bars[0]["x"]) == pytest.approx([kernel.lost_s for kernel in studies.by_loss(study)])
    assert values(data["measured"]["x"]) == pytest.approx([kernel.measured_s for kernel in studies.by_loss(study)])
    special = [k.floors_s["special"] for k in studies.by_loss(study) if "special" in k.floors_s]
    assert values(data["floor: special functions"]["x"]) == pytest.approx(special)


def test_more_kernels_than_lanes(build: Callable[[Study], str], study: Study) -> None:
    many = [
        msgspec.structs.replace(kernel, variant=f"{kernel.variant}{copy}")
        for copy in range(4)
        for kernel in study.kernels
    ]
    found = msgspec.structs.replace(study, kernels=many)
    measured = next(t for t in traces(roofline.times(RooflineView(found))) if t.get("name") == "measured")
    assert len(values(measured["x"])) == roofline.MOST == 30
    text = build(found)
    assert "The 30 kernels that lose most" in text and len(rows(text, "roofline-times-table")) == 44


def test_no_kernels_and_an_empty_study(build: Callable[[Study], str], study: Study) -> None:
    text = build(msgspec.structs.replace(study, kernels=[], fusion=[]))
    assert "No tuned kernel of this device has been measured" in text and 'class="chart"' in text
    assert 'id="roofline-ceilings-table"' in text and 'id="roofline-table"' not in text
    text = build(msgspec.structs.replace(study, kernels=[], fusion=[], ceilings=[], pages=[]))
    assert "No ceiling was measured" in text and 'class="chart"' not in text


@pytest.mark.parametrize("kept", [("dram",), ("matmul_float32",), ("special",), ("cache", "vector")])
def test_a_few_ceilings_are_enough_to_draw(study: Study, kept: tuple[str, ...]) -> None:
    some = [c for c in study.ceilings if c.name.startswith(kept) and not c.name.startswith("matmul_rows")]
    for kernels in (study.kernels, []):
        view = RooflineView(msgspec.structs.replace(study, ceilings=some, kernels=kernels))
        lines = [t for t in traces(roofline.roofline(view)) if t.get("name", "").startswith("roof ")]
        assert len(lines) == len(kept)
        assert all(0 < v < math.inf for line in lines for v in (*values(line["x"]), *values(line["y"])))


def test_a_kernel_without_operations_has_no_place_on_the_roofline(study: Study) -> None:
    still = msgspec.structs.replace(study.kernels[-2], tensor_flops=0, vector_flops=0, special_ops=0)
    view = RooflineView(msgspec.structs.replace(study, kernels=[still]))
    assert not [trace for trace in traces(roofline.roofline(view)) if "text" in trace]
    assert roofline.times(view) is not None


def test_another_device_is_told(build: Callable[[Study], str], study: Study) -> None:
    assert "of another device" not in build(study)
    device = msgspec.structs.replace(study.device, validity={**study.device.validity, "name": "other"})
    assert "of another device" in build(msgspec.structs.replace(study, device=device))


def test_without_a_study_its_tabs_are_not_there(tmp_path: Path) -> None:
    path = journals.write(tmp_path / "journal.jsonl", journals.records())
    text = write_report(path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="roofline"' not in text and 'id="forward"' not in text and '"study":null,' in text


def test_the_study_is_embedded_and_named(report: Path, study: Study) -> None:
    text = report.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found and json.loads(found[1])["study"] == json.loads(encode(study))
    assert "made from the journal and the roofline study alone" in text


def test_equal_inputs_give_equal_bytes(report: Path, tmp_path: Path) -> None:
    again = write_report(report.with_name("journal.jsonl"), tmp_path / "again.html")
    assert again.read_bytes() == report.read_bytes()


def broken(study: Study, **changes: Any) -> bytes:
    kernel = msgspec.structs.replace(study.kernels[0], **changes)
    return encode(msgspec.structs.replace(study, kernels=[kernel]))


def test_broken_studies_are_refused_in_one_sentence(tmp_path: Path, study: Study) -> None:
    journal = journals.write(tmp_path / "journal.jsonl", journals.records()[:1])
    path = tmp_path / "roofline.json"
    for content, problem in (
        (b"{", "is not a roofline study"),
        (b'{"schema_version": 99}', "version 99"),
        (b'{"schema_version": 1}', "missing required field"),
        (broken(study, bound="luck"), "bound by 'luck'"),
        (broken(study, measured_s=0.0), "time that is not above 0"),
        (broken(study, floors_s={"dram": 0.0}, bound="dram"), "time that is not above 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(ReportError, match=problem) as caught:
            write_report(journal, tmp_path / "report.html")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ReportError, match=r"nowhere\.json"):
        write_report(journal, tmp_path / "report.html", study=tmp_path / "nowhere.json")
    assert not (tmp_path / "report.html").exists()


def test_hostile_strings_are_text(build: Callable[[Study], str], study: Study) -> None:
    text = build(studies.hostile(study))
    assert "<img" not in text and "alert(1)</script>" not in text
    assert html.unescape(text).count(HOSTILE) > 20


def test_every_op_has_a_shape_of_its_own():
    shapes = roofline.OP_SYMBOLS
    assert len(set(shapes)) == len(shapes) >= len(catalog.ops())
