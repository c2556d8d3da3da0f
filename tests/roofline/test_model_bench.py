"""``griffin bench model``: a tiny RecurrentGemma raced for a moment, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reports.cli import app
from roofline.model_bench_records import PARTS, read

TINY = {
    "model_type": "recurrent_gemma",
    "hidden_size": 64,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "attention_window_size": 16,
}


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(TINY | changes), encoding="utf-8")
    return path


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["bench", "model", *map(str, words)])


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_a_tiny_model(tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    words = ("--seq", "40", "--tokens", "24", "--seconds", "0", "--phases", "generate", "--device", "cpu")
    found = run(folder(tmp_path / "tiny"), *words, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    bench = read(out / "model_bench.json")
    assert json.loads(found.stdout)["model"] == bench.model == "tiny"
    assert (bench.layers, bench.width, bench.vocab_size, bench.batch, bench.prompt) == (3, 64, 96, 1, 40)
    (phase,) = bench.phases
    assert (phase.phase, phase.tokens) == ("generate", 24)
    # float32, and the prompt and its continuation go past the window of 16
    assert bench.same_tokens == bench.new_tokens == 24
    for side in (phase.original, phase.accelerated):
        assert len(side.samples_s) >= 3 and min(side.samples_s) <= side.median_s <= max(side.samples_s)
        assert set(side.parts_s) == set(PARTS) and min(side.parts_s.values()) > 0
        assert side.peak_bytes is None or 0 <= side.peak_bytes < 2**30
    assert phase.interval[0] <= phase.ratio <= phase.interval[1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--phases", "prefill,sleep"], "sleep"),
        (["--phases", ","], "expected some of prefill, generate, train"),
        (["--dtype", "fp64"], "expected fp32 or bf16"),
        (["--seconds", "inf"], "expected a finite number"),
        (["--layers", "-1"], "expected at least 0"),
        (["recurrentgemma-3b"], "did you mean"),
        (["mqa-tiny"], "block_types have global_attention"),
        (["--out", "/proc/none/there.json"], "choose another file with --out"),
    ],
    ids=["phase", "no_phase", "dtype", "seconds", "layers", "model", "attention", "out"],
)
def test_what_is_refused(words: list[str], why: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert why in " ".join(found.output.split())
    assert "Traceback" not in found.output


def test_another_kind_of_model(tmp_path: Path) -> None:
    found = run(folder(tmp_path / "llama", model_type="llama"))
    assert found.exit_code == 2 and "expected a recurrent_gemma" in " ".join(found.output.split())


def test_a_broken_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    found = run(tmp_path)
    assert found.exit_code == 2 and "cannot be used" in " ".join(found.output.split())
