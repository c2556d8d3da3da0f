"""How often kernels are compiled: for kinds of layouts, not for every batch or length."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests import ROOT
from tests.cache_keys import LAYOUTS
from tuning.static.requests import compilable

MOST = 7
"""Keys of a kernel over all sizes of one layout.

Triton tells multiples of 16 and 1 from other numbers, so that a stride that follows from one size, as that of positions
does, makes three; one that is a constant where batch or length is 1 makes a fourth. Strides of one call mostly vary
together. The size of a pool is one more number, which here varies with the batch.
"""

MOST_CHUNKED = 2 * MOST
"""A call of one chunk has no states to read: another kernel."""


def test_kernels_are_compiled_for_a_handful_of_kinds_of_calls():
    """36 sizes in each layout: one key for each would be 36, one for each batch or length 6 and more."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_keys", "sm_90", "layouts"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {key.rpartition("/")[0] for key in found} == {variant.key for variant in compilable()}
    assert {key.rpartition("/")[2] for key in found} == set(LAYOUTS)
    many = {
        f"{key}: {kernel}": keys
        for key, kernels in found.items()
        for kernel, keys in kernels.items()
        if keys > (MOST_CHUNKED if kernel.endswith("_chunks") else MOST)
    }
    assert many == {}
