"""The report's tab *Your model*: its numbers are the record's, broken records are refused, hostile texts are texts."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from griffin_kernels.errors import ReportError
from reports import format as fmt
from reports.build import write_report
from roofline.model_bench_records import (
    FILE_NAME,
    MODEL_BENCH_VERSION,
    PARTS,
    ModelBench,
    PhaseRecord,
    Side,
    encode,
    read,
)
from tests import journals, studies


def side(seconds: float, parts: bool = True, **changes: Any) -> Side:
    shares = dict(zip(PARTS, (0.5, 0.3, 0.15, 0.05), strict=True))
    told = {name: share * seconds for name, share in shares.items()} if parts else {}
    return Side(
        **{
            "samples_s": [0.9 * seconds, seconds, 1.1 * seconds], "median_s": seconds, "parts_s": told,
            "peak_bytes": 3 * 10**8, "disturbed": False,
        }
        | changes
    )  # fmt: skip


def record(**changes: Any) -> ModelBench:
    phases = [
        PhaseRecord(
            phase="prefill", tokens=2048, original=side(3.0), accelerated=side(2.0), ratio=1.5, interval=(1.4, 1.6)
        ),
        PhaseRecord(
            phase="train", tokens=2048, original=side(9.0, False), accelerated=side(9.1, False, peak_bytes=None),
            ratio=0.99, interval=(0.97, 1.02),
        ),
    ]  # fmt: skip
    told: dict[str, Any] = {
        "schema_version": MODEL_BENCH_VERSION, "device": studies.DEVICE, "transformers": "5.24.0",
        "command": "griffin bench model", "model": "recurrentgemma-2b", "layers": 3, "width": 2560, "vocab_size": 8192,
        "parameters": 258_000_000, "dtype": "bfloat16", "batch": 1, "prompt": 2048, "new_tokens": 64,
        "same_tokens": 17, "phases": phases,
    }  # fmt: skip
    return ModelBench(**told | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journals.write(tmp_path / "journal.jsonl", studies.journal())
    return tmp_path


def tab(folder: Path, found: ModelBench) -> str:
    (folder / FILE_NAME).write_bytes(encode(found))
    text = write_report(folder / "journal.jsonl", folder / "report.html").read_text(encoding="utf-8")
    body = re.search(
        r'<header class="masthead">\s*<p class="kicker">griffin-kernels model bench.*?</section>\s*</', text, re.S
    )
    assert body
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body[0])))


def test_numbers_are_the_records(folder: Path) -> None:
    text = tab(folder, record())
    for told in (
        f"prefill is 1.50{fmt.TIMES} as fast , train is as fast as before .",
        f"1.40{fmt.TIMES} to 1.60{fmt.TIMES}",
        "3.00 s",
        "2.00 s",
        "286 MiB",
    ):
        assert told in text, told
    assert "same up to number 17 of 64" in text and "not told" in text
    assert "in prefill they are 50% of the accelerated run" in text


def test_all_tokens_alike(folder: Path) -> None:
    assert "The same 64 greedy tokens from both." in tab(folder, record(same_tokens=64))


def test_a_report_without_a_record_has_no_tab(folder: Path) -> None:
    text = write_report(folder / "journal.jsonl", folder / "report.html").read_text(encoding="utf-8")
    assert "griffin-kernels model bench" not in text


def test_hostile_names_are_texts(folder: Path) -> None:
    (folder / FILE_NAME).write_bytes(encode(record(model=journals.HOSTILE, command=journals.HOSTILE)))
    text = write_report(folder / "journal.jsonl", folder / "report.html").read_text(encoding="utf-8")
    assert journals.HOSTILE not in text and html.escape(journals.HOSTILE, quote=False)[:20] in text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ratio": 0.0}, "prefill has a time that is not above 0"),
        ({"interval": (1.0, 0.0)}, "prefill has a time that is not above 0"),
        ({"original": side(1.0, parts_s={"linears": 1.0})}, "prefill lacks parts"),
    ],
    ids=["no_ratio", "no_end", "no_parts"],
)
def test_what_cannot_be_shown_is_refused(folder: Path, change: dict[str, Any], why: str) -> None:
    broken = record()
    raw = msgspec.to_builtins(broken)
    raw["phases"][0] |= msgspec.to_builtins(change)
    (folder / FILE_NAME).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ReportError, match=why):
        write_report(folder / "journal.jsonl", folder / "report.html")


def test_a_file_of_a_later_version_or_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(encode(record(schema_version=MODEL_BENCH_VERSION + 1)))
    with pytest.raises(ReportError, match="upgrade"):
        read(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ReportError, match="make it again"):
        read(path)
    with pytest.raises(ReportError, match="cannot be read"):
        read(tmp_path / "none.json")
