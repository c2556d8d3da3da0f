"""Bundles that device functions return keep None and constants, in the way of Triton 3.6 too."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.process]


def test_none_and_constants_survive_where_functions_are_compiled_in_place():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.bundled"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tt.func") == 1  # nothing is called
    assert re.findall(r"tt.make_range \{end = (\d+)", done.stdout) == ["32", "16"]
    assert set(re.findall(r"arith.constant (\d+) : i32", done.stdout)) >= {"7", "3"}
