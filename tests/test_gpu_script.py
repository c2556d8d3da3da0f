"""scripts/gpu.sh without a GPU: an interpreter that passes for one that sees it, and notes what it is asked to run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

STAND_IN = """#!/bin/sh
if [ "$1" = -c ]; then echo "$GPU"; exit; fi
case "$*" in
    "scripts/dependencies.py dev") exit;;
    scripts/dependencies.py) [ -e "$PYTHONSITE/$LACKS" ] || echo "$LACKS"; exit;;
    "-m pip install"*) case "$*" in
        *--find-links*) touch "$PYTHONSITE/$LACKS";;
        *) echo "$@" >> "$INSTALLED";;
    esac; exit;;
esac
echo "$@" >> "$ASKED"
case "$*" in *"$SLOW"*) exec sleep 60;; *"$FAILS"*) exit 1;; esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script; gives (exit status, output, commands that were asked for)."""
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(STAND_IN.format(real=sys.executable))
    python.chmod(0o755)
    asked.touch()

    def run(*words, **facts):
        given = {
            "GPU": "Some GPU",
            "LACKS": "",
            "PYTHONSITE": str(tmp_path),
            "SLOW": "nothing is",
            "FAILS": "nothing does",
        } | facts
        done = subprocess.run(
            ["bash", "scripts/gpu.sh", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "ASKED": str(asked)} | given,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, asked.read_text().splitlines()

    return run


def test_where_there_is_no_gpu_it_says_what_works(script):
    status, text, asked = script(GPU="")
    assert (status, asked) == (2, [])
    assert "torch sees no GPU here" in text and "make tune" in text


def test_every_step_runs_and_tune_takes_the_options(script):
    status, text, asked = script("--budget", "quick")
    assert status == 0, text
    what = [line.split()[2 if line.startswith("-m reports") else 1] for line in asked]
    assert what == ["pytest", "roofline", "tune", "tune", "roofline", "pytest", "report"]
    assert "tests/griffin_kernels/test_gpu_subset.py" in asked[0] and not any(
        "test_triton_compile" in line for line in asked
    )
    tune, peers = (line for line in asked if " tune " in line)
    assert "--resume" in tune
    assert tune.endswith("--budget quick")
    assert "--baselines" in peers and peers.split("--out")[1] == tune.split("--out")[1].removesuffix(" --budget quick")


def test_steps_are_chosen_and_failures_are_named(script):
    status, text, asked = script(STEPS="ceilings report", FAILS="measure")
    assert status == 1 and "failed: ceilings (their output is in " in text
    assert [line.split()[2] for line in asked] == ["roofline", "report"]


def test_time_that_is_up_interrupts_what_runs_and_still_makes_the_report(script):
    status, text, asked = script(STEPS="tune forward report", SLOW="reports tune", LIMIT="4")
    assert status == 1 and "forward: not begun, 4 s are over" in text and "failed: tune forward" in text
    assert len(asked) == 2 and "--minutes 1 --resume" in asked[0]
    assert asked[1].startswith("-m reports report")


def test_results_are_a_handful_of_files_and_no_locks(script, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl.lock").touch()
    status, text, _ = script(STEPS="subset ceilings tune forward report")
    assert status == 0, text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs.tar.gz"]


def test_missing_packages_are_named_and_taken_from_a_folder_of_wheels(script, tmp_path):
    status, text, asked = script(LACKS="msgspec")
    assert (status, asked) == (2, [])
    assert "these packages are missing: msgspec" in text and "WHEELS=folder" in text
    status, text, asked = script(LACKS="msgspec", WHEELS=str(tmp_path), STEPS="report")
    assert status == 0, text


def test_all_wheels_of_peers_are_installed(script, tmp_path):
    (tmp_path / "wheels" / "peers").mkdir(parents=True)
    for name in ("einops", "flash_linear_attention"):
        (tmp_path / "wheels" / "peers" / f"{name}-1-py3-none-any.whl").touch()
    status, text, _ = script(WHEELS=str(tmp_path / "wheels"), STEPS="peers", INSTALLED=str(tmp_path / "installed"))
    assert status == 0, text
    installed = (tmp_path / "installed").read_text()
    assert "einops-1" in installed and "flash_linear_attention-1" in installed


def test_an_earlier_journal_is_gone_on_with(script, tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "journal.jsonl").write_text("kept")
    status, text, _ = script(STEPS="tune", RESUME_FROM=str(tmp_path / "earlier"))
    assert status == 0, text
    assert (tmp_path / "out" / "journal.jsonl").read_text() == "kept"
    status, text, _ = script(STEPS="tune", RESUME_FROM=str(tmp_path / "nowhere"))
    assert status == 2 and "is no journal and no folder with one" in text


def test_dependencies_are_those_of_the_project():
    done = subprocess.run(
        [sys.executable, "scripts/dependencies.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    bare = [sys.executable, "-S", "scripts/dependencies.py"]  # no packages of this environment
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert {"torch", "msgspec", "plotly"} <= set(done.stdout.split())
