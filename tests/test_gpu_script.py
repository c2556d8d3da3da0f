"""scripts/gpu.sh without a GPU: an interpreter that passes for one that sees it, and notes what it is asked to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

STAND_IN = """#!/bin/sh
if [ "$1" = -c ]; then echo "$GPU"; exit; fi
if [ "$1" = - ]; then [ -n "$OPS" ] && echo "$OPS" && exit; exec {real} -; fi
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
        given = {"GPU": "Some GPU", "OPS": "", "SLOW": "nothing is", "FAILS": "nothing does"} | facts
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
    assert what[0] == "pytest" and what[-4:] == ["roofline", "tune", "roofline", "report"]
    (tune,) = (line for line in asked if " tune " in line)
    assert "--ops linear_scan,linear_scan_bwd,rg_lru," in tune and "--resume" in tune
    assert tune.endswith("--budget quick")


def test_steps_are_chosen_and_failures_are_named(script):
    status, text, asked = script(STEPS="ceilings report", FAILS="measure")
    assert status == 1 and "failed: ceilings (see " in text
    assert [line.split()[2] for line in asked] == ["roofline", "report"]


def test_time_that_is_up_interrupts_what_runs_and_still_makes_the_report(script):
    status, text, asked = script(STEPS="tune forward report", OPS="rg_lru", SLOW="reports tune", LIMIT="4")
    assert status == 1 and "forward: not begun, 4 s are over" in text and "failed: tune forward" in text
    assert len(asked) == 2 and "--ops rg_lru --minutes 1 --resume" in asked[0]
    assert asked[1].startswith("-m reports report")
