"""The tab of forward passes: its numbers are the study's, its sentences follow from them, and it escapes everything."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from statistics import median
from typing import Any

import msgspec
import pytest

from reports import format as fmt
from reports import forward_text as words
from reports.charts import forward_lines, forward_passes
from reports.forward_model import PageView
from reports.tabs import forward_tab
from roofline.forward import analyse
from roofline.study_records import Measured, Page, PassRecord, Study
from tests import journals, studies


@pytest.fixture(scope="module")
def cpu() -> Page:
    """A CPU on which every pass was run."""
    return studies.pages()[0]


@pytest.fixture(scope="module")
def gpu() -> Page:
    """A GPU on which nothing was run."""
    return studies.pages()[1]


def study(*pages: Page) -> Study:
    return msgspec.structs.replace(studies.study(), pages=list(pages))


def shown(*pages: Page) -> str:
    """The tab without its charts, in one line."""
    body = re.sub(r"<script\b[^>]*>.*?</script>", "", str(forward_tab(study(*pages)).body), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(body))


def sentences(text: str) -> str:
    """What is read, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))


def rows(text: str, table: str) -> list[str]:
    found = re.search(rf'<table[^>]*id="{table}">.*?<tbody>(.*?)</tbody>', text)
    assert found
    return re.findall(r"<tr.*?</tr>", found[1])


def plain(text: str) -> str:
    """With spaces of one kind, as ``shown`` has them."""
    return re.sub(r"\s", " ", text)


def values(row: str) -> list[float]:
    """Numbers that a row sorts by, empty ones left out."""
    return [float(v) for v in re.findall(r'class="num" data-value="([^"]+)"', row)]


def figure(spec: str | None) -> Any:
    assert spec is not None
    assert "<" not in spec
    return json.loads(spec)


def edited(page: Page, **changes: Any) -> Page:
    """The page with fields of every pass replaced; a function is given the pass."""
    passes = [
        msgspec.structs.replace(p, **{name: v(p) if callable(v) else v for name, v in changes.items()})
        for p in page.passes
    ]
    return msgspec.structs.replace(page, passes=passes)


def took(found: PassRecord, seconds: float, spread: float = 0.0) -> Measured:
    """A measurement of so many seconds, its parts in proportion to what was predicted of them."""
    parts = [part.predicted_s * seconds / found.predicted_s for part in found.parts]
    ends = (seconds * (1 - spread), seconds * (1 + spread))
    return Measured(samples_s=[seconds], median_s=seconds, interval_s=ends, parts_s=parts)


def test_every_pass_is_there_with_its_numbers(cpu: Page) -> None:
    found = rows(shown(cpu), "forward-0-table")
    assert len(found) == len(cpu.passes) == 12
    for record in cpu.passes:
        assert record.measured is not None and record.error is not None
        (row,) = [r for r in found if f'data-value="{record.predicted_s!r}"' in r]
        tokens = record.batch * (record.seq if record.phase == "prefill" else 1)
        assert values(row) == [
            record.parameters, record.predicted_s, record.measured.median_s, record.error,
            tokens / record.measured.median_s, record.floor_s, record.graphed_s, record.needed_bytes,
        ]  # fmt: skip
        assert record.model in row and record.phase in row and f"batch {record.batch}" in row
        assert words.signed(record.error) in row and plain(fmt.time(record.measured.median_s)) in row
        assert plain(words.interval(*record.measured.interval_s)) in row
        assert fmt.share(record.predicted_by_regime_s[record.regime] / record.predicted_s) in row


def test_a_pass_on_busy_cores_says_so(cpu: Page) -> None:
    first = cpu.passes[0]
    assert first.measured is not None
    busy = msgspec.structs.replace(first, measured=msgspec.structs.replace(first.measured, disturbed=True))
    page = msgspec.structs.replace(cpu, passes=[busy, *cpu.passes[1:]])
    found = rows(shown(page), "forward-0-table")
    assert ["cores were busy" in row for row in found].count(True) == 1
    assert not any("cores were busy" in row for row in rows(shown(cpu), "forward-0-table"))


def test_headline_says_how_far_predictions_are_off(cpu: Page) -> None:
    errors = {(p.model, p.phase, p.batch, p.seq): p.error or 0.0 for p in cpu.passes}
    worst = max(errors, key=lambda key: abs(errors[key]))
    text = sentences(shown(cpu))
    typical = fmt.share(median(abs(error) for error in errors.values()))
    assert f"Predictions are off by {typical} at the median of 12 measured passes" in text
    assert f"worst {words.signed(errors[worst])}: {worst[0]}, {plain(words.size(*worst[1:]))}." in text


def test_a_page_without_measurements_says_so(cpu: Page, gpu: Page) -> None:
    text = sentences(shown(gpu))
    assert f"Predicted for {gpu.device} " in text and "Measured on" not in text and "measured and predicted" not in text
    assert "predicted only: nothing was run on this device" in text and "so no error can be stated" in text
    assert "Predictions are off by" not in text and "would be fastest" in text
    for sentence in gpu.assumptions:
        assert sentence in text
    both = sentences(shown(cpu, gpu))
    assert f"Measured on {cpu.device}" in both and f"Predicted for {gpu.device}" in both
    record = gpu.passes[0]
    row = next(r for r in rows(shown(gpu), "forward-0-table") if repr(record.predicted_s) in r)
    assert row.count(fmt.MISSING) == 2 and repr(record.tokens_per_s) in row


def test_who_is_fastest(cpu: Page) -> None:
    seconds = {"hawk-100m": 1.0, "griffin-100m": 1.1, "mqa-100m": 2.5}
    page = edited(cpu, measured=lambda p: took(p, seconds[p.model]))
    text = sentences(shown(page))
    assert f"Prefill: hawk-100m is fastest; the slowest takes up to {fmt.ratio(2.5)} as long." in text
    assert (
        f"hawk-100m {plain(fmt.time(1.0))}; mqa-100m takes {fmt.ratio(2.5)} as long." in text
        and "level with" not in text
    )
    assert text.count("★ fastest") == 4
    noisy = sentences(shown(edited(cpu, measured=lambda p: took(p, seconds[p.model], 0.06))))
    assert (
        f"hawk-100m {plain(fmt.time(1.0))}, level with griffin-100m within the 95% intervals; mqa-100m takes" in noisy
    )


def test_predictions_decide_where_a_model_was_not_run(cpu: Page) -> None:
    page = edited(cpu, measured=lambda p: took(p, 1e-9) if p.model == "hawk-100m" else None)
    contests = PageView(page, 0).contests
    assert len(contests) == 4 and not any(contest.measured for contest in contests)
    for contest in contests:
        assert contest.ranked[0].predicted_s == min(v.predicted_s for v in contest.ranked)
    assert "(predicted)" in shown(page)


def test_a_floor_that_was_beaten_is_said(cpu: Page) -> None:
    told = "faster than its floor of"
    slow = edited(cpu, measured=lambda p: took(p, p.floor_s * 1.01))
    fast = edited(cpu, measured=lambda p: took(p, p.floor_s * 0.99))
    assert told not in shown(slow) and shown(fast).count(told) == 12


def test_one_model(cpu: Page) -> None:
    name = "hawk-100m"
    page = msgspec.structs.replace(
        cpu,
        models=[name],
        passes=[p for p in cpu.passes if p.model == name],
        grid=[p for p in cpu.grid if p.model == name],
    )
    text = sentences(shown(page))
    assert "Prefill: hawk-100m alone, nothing to compare with." in text
    assert "★" not in text and "as long" not in text and "not matched" not in text and "mqa" not in text
    drawn = figure(forward_passes.regimes(PageView(page, 0), "decode"))
    assert {trace.get("xaxis", "x") for trace in drawn["data"]} == {"x"}


def test_nothing_fits(cpu: Page) -> None:
    grid = [msgspec.structs.replace(point, fits=False) for point in cpu.grid]
    page = msgspec.structs.replace(edited(cpu, fits=False, measured=None, largest_batch=0), grid=grid, measured=True)
    text = sentences(shown(page))
    assert "Prefill: nothing fits in the device's memory." in text and "12 of 12 passes do not fit in" in text
    assert "Does not fit: hawk-100m, griffin-100m and mqa-100m." in text and "★" not in text
    assert shown(page).count("does not fit</span>") == 12
    view = PageView(page, 0)
    for trace in figure(forward_passes.regimes(view, "prefill"))["data"]:
        assert set(trace["marker"]["pattern"]["shape"]) == {"/"}
    lines = [t for t in figure(forward_lines.speed(view, "seq", 1))["data"] if t["mode"] == "lines"]
    assert len(lines) == 12 and all(trace["line"]["dash"] == "dot" for trace in lines)


def test_memory_that_is_not_known(cpu: Page) -> None:
    page = edited(cpu, device_bytes=0, fits=None, largest_batch=None)
    view = PageView(page, 0)
    assert "The device's memory is not known." in sentences(shown(page))
    assert view.largest_batch("mqa-100m", 1024) is None
    assert "shapes" not in figure(forward_lines.memory(view, 1))["layout"]


def test_largest_batch_is_that_of_the_analysis(cpu: Page) -> None:
    view = PageView(cpu, 0)
    for model in cpu.models:
        for seq in (128, 1024, 16384):
            known = analyse(model, studies.target(), phase="decode", batch=1, seq=seq, dtype=cpu.dtype).memory
            assert view.largest_batch(model, seq) == known.largest_batch


@pytest.mark.parametrize("factor", [0.93, 1.7])
def test_waterfall_adds_up(cpu: Page, factor: float) -> None:
    page = edited(cpu, measured=lambda p: took(p, p.predicted_s * factor))
    record = PageView(page, 0).passes[0]
    bars = {t["meta"]: t for t in figure(forward_passes.kinds(record))["data"] if t["type"] == "bar"}
    difference = "unexplained" if factor > 1 else "overestimate"
    assert set(bars) == {"floor", "above", difference}
    scale, _ = fmt.time_unit(max(record.predicted_s, record.predicted_s * factor))
    kinds = list(dict.fromkeys(part.kind for part in record.parts))
    for row, kind in enumerate(kinds):
        predicted = sum(part.predicted_s for part in record.parts if part.kind == kind)
        solid = bars["floor"]["x"][row] + bars["above"]["x"][row]
        assert solid * scale == pytest.approx(predicted * min(1, factor), rel=1e-3)
        assert bars[difference]["x"][row] * scale == pytest.approx(predicted * abs(factor - 1), rel=1e-3)
        end = bars["floor"]["base"][row] + min(1, factor) * predicted / scale
        assert bars[difference]["base"][row] == pytest.approx(end, rel=1e-3)
    assert bars[difference]["x"][len(kinds)] * scale == pytest.approx(record.predicted_s * abs(factor - 1), rel=1e-3)


def test_sums_by_kind(cpu: Page) -> None:
    found = PageView(cpu, 0).passes[-1]
    counts = Counter(part.kind for part in found.parts)
    assert [part.count for part in found.kinds] == list(counts.values())
    for name in ("parameters", "bytes", "run_bytes", "launches", "floor_s", "predicted_s"):
        total = sum(getattr(part, name) for part in found.parts)
        assert sum(getattr(part, name) for part in found.kinds) == pytest.approx(total)
        assert getattr(found.whole, name) == pytest.approx(total)
    measured = found.measured
    assert measured is not None and found.whole.measured_s == measured.median_s
    assert sum(part.measured_s or 0 for part in found.kinds) == pytest.approx(sum(measured.parts_s))
    assert measured.timers_s == pytest.approx(measured.median_s - sum(measured.parts_s))
    text = shown(cpu)
    for part in found.kinds:
        assert repr(part.predicted_s) in text and repr(part.unexplained_s) in text


def test_lines_are_the_grid_and_marks_the_measurements(cpu: Page) -> None:
    drawn = figure(forward_lines.speed(PageView(cpu, 0), "batch", 1024))
    for trace in drawn["data"]:
        axis = trace.get("yaxis", "y")
        name = html.unescape(trace["name"])
        phase = "prefill" if axis in ("y", "y2") else "decode"
        field = "predicted_s" if axis in ("y", "y3") else "tokens_per_s"
        if name in cpu.models and trace["mode"] == "lines+markers":
            points = [p for p in cpu.grid if (p.model, p.phase, p.seq) == (name, phase, 1024) and p.fits]
            assert trace["x"] == [p.batch for p in points]
            assert trace["y"] == pytest.approx([getattr(p, field) for p in points], rel=1e-4)
    marks = [t for t in drawn["data"] if t["name"] == "measured" and t.get("yaxis", "y") == "y3"]
    times = sorted(value for mark in marks for value in mark["y"])
    known = sorted(p.measured.median_s for p in cpu.passes if p.measured and p.phase == "decode" and p.seq == 1024)
    assert times == pytest.approx(known, rel=1e-4) and len(times) == 6


def test_regime_map_is_the_grid(gpu: Page) -> None:
    view = PageView(gpu, 0)
    for phase in ("prefill", "decode"):
        drawn = figure(forward_passes.regimes(view, phase))["data"]
        letters = {
            (trace.get("xaxis", "x"), x, base): trace["text"][0]
            for trace in drawn
            for x, base in zip(trace["x"], trace["base"], strict=True)
        }
        assert len(letters) == sum(p.phase == phase for p in gpu.grid)
        hatched = sum(shape == "/" for trace in drawn for shape in trace["marker"]["pattern"]["shape"])
        assert hatched == sum(p.fits is False for p in gpu.grid if p.phase == phase) > 0
        for point in (p for p in gpu.grid if p.phase == phase):
            place = gpu.models.index(point.model)
            key = ("x" if place == 0 else f"x{place + 1}", view.seqs.index(point.seq))
            assert letters[(*key, view.batches.index(point.batch) - 0.5)] == words.letter(point.regime)


def test_crossings(cpu: Page) -> None:
    regimes = {1: "launch", 2: "launch", 4: "parameters"}
    grid = [
        msgspec.structs.replace(p, regime=regimes.get(p.batch, "cache"), fits=p.batch < 16)
        for p in cpu.grid
        if p.phase == "decode"
    ]
    text = sentences(shown(msgspec.structs.replace(cpu, grid=grid)))
    assert (
        "hawk-100m, griffin-100m and mqa-100m, decode after 1 024 tokens: launching kernels up to batch 2, "
        "then reading the weights up to batch 4, then reading and writing keys, values and states from batch 8." in text
    )
    odd = msgspec.structs.replace(cpu, grid=[msgspec.structs.replace(p, regime="gravity") for p in grid])
    assert "gravity at every batch" in sentences(shown(odd))


def test_hostile_texts_are_only_shown(cpu: Page) -> None:
    text = journals.HOSTILE
    page = msgspec.structs.replace(
        edited(cpu, model=lambda p: text + p.model, regime=text),
        device=text,
        dtype=text,
        models=[text + name for name in cpu.models],
        assumptions=[text],
        grid=[msgspec.structs.replace(p, model=text + p.model, regime=text) for p in cpu.grid],
        ceilings=[msgspec.structs.replace(c, name=text, source=text) for c in cpu.ceilings],
    )
    body = str(forward_tab(study(page)).body)
    assert "<img" not in body and "<script>alert" not in body and "<a href=http" not in body and "{{ 7*7 }}" in body
    for spec in re.findall(r'<script type="application/json">(.*?)</script>', body, re.DOTALL):
        for text_of in re.findall(r'"(?:hovertext|text|name|ticktext)":\s*(\[[^\]]*\]|"[^"]*")', spec):
            assert "\\u003cimg" not in text_of


def test_pages_that_hold_little(cpu: Page) -> None:
    assert "The study holds no forward pass." in sentences(shown())
    bare = sentences(shown(msgspec.structs.replace(cpu, passes=[], grid=[])))
    assert "No pass was studied in detail." in bare and "regime map" not in bare
    only_grid = sentences(shown(msgspec.structs.replace(cpu, passes=[])))
    assert "No pass was studied in detail." in only_grid and "regime map" in only_grid
    no_grid = shown(msgspec.structs.replace(cpu, grid=[]))
    assert len(rows(no_grid, "forward-0-table")) == 12 and "Memory over length" not in no_grid
    no_parts = edited(cpu, parts=[], measured=None)
    assert "The study holds no parts of this pass." in sentences(shown(no_parts))


def test_equal_studies_give_equal_tabs(cpu: Page, gpu: Page) -> None:
    assert forward_tab(study(cpu, gpu)) == forward_tab(study(cpu, gpu))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.031, 0.055, ["40 ms", "50 ms"]),
        (0.2, 30.0, ["200 ms", "500 ms", "1 s", "2 s", "5 s", "10 s", "20 s"]),
        (1e-6, 900.0, None),
    ],
)
def test_ticks(low: float, high: float, labels: list[str] | None) -> None:
    found, written = forward_lines.time_ticks(low, high)
    assert all(low <= value <= high for value in found) and len(found) == len(written) >= 2
    if labels is not None:
        assert [plain(label) for label in written] == labels


def test_words() -> None:
    assert words.signed(0.042) == "+4.2%" and words.signed(-0.31) == f"{fmt.MINUS}31%" and words.signed(0.0) == "0%"
    assert words.signed_time(-8.73e-5) == f"{fmt.MINUS}{fmt.time(8.73e-5)}" and words.signed_time(None) == fmt.MISSING
    assert words.listed(["a"]) == "a" and words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.short_count(16384) == "16K" and words.short_count(300) == "300"
    assert plain(words.interval(0.451, 0.46)) == "451 to 460 ms"
    assert plain(words.parameters(1_828_513_792)) == "1.83 B"
