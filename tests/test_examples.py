"""Every program in examples/ runs in its short form, which checks what it says; each is short enough to be read."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch

from tests import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

ELSEWHERE = {"speculative_decoding": "tests/griffin_kernels/test_generation.py"}
"""Examples that another test runs, which asks more of them."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_there_are_examples():
    assert {"own_layer", "train_characters", *ELSEWHERE} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_test_does_run_it(name):
    source = (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert f'"{name}.py"), run_name="__main__")' in source


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem not in ELSEWHERE], ids=lambda path: path.stem)
def test_example_runs(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert capsys.readouterr().out.strip(), "an example says what it found"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120
