"""Settings of torch that belong to the user change nothing: default dtype and device, autocast, determinism."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from griffin_kernels import errors
from griffin_kernels.models import Griffin, preset
from griffin_kernels.ops import _buffers
from tests.griffin_kernels.ops.test_allocations import ROOT, calls_of

DEFAULTS = ("default dtype float64", "default device meta")
ALL = (
    "default dtype bfloat16",
    "default dtype float16",
    "default dtype float64",
    "default device meta",
    "with torch.device(meta)",
    "deterministic algorithms",
    "no gradients",
)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("eager", (*DEFAULTS, "autocast")), ("triton", DEFAULTS), ("public", (*ALL, "autocast")), ("models", ALL)],
    ids=["eager", "triton", "public", "models"],
)
def test_nothing_depends_on_settings_of_torch(kind, settings):
    command = [sys.executable, "-m", "tests.ambient", kind, ",".join(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"ended with {done.returncode} in {done.stderr.strip().splitlines()[-1:]}"
    assert done.stdout == ""
    assert done.stderr.count("\n") > 10


def test_modules_are_made_where_and_as_torch_makes_its_own():
    config = preset("hawk-tiny")
    with torch.device("meta"):
        assert {p.device.type for p in Griffin(config).parameters()} == {"meta"}
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert {p.dtype for p in Griffin(config).parameters()} == {torch.bfloat16}
        assert {p.dtype for p in Griffin(config, dtype=torch.float32).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_native_code_gets_addresses_only_of_buffers_that_were_checked():
    found = []
    for path in sorted((ROOT / "griffin_kernels" / "ops").rglob("*.py")):
        if path == Path(_buffers.__file__):
            continue
        text = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{line}"
            for line in calls_of("data_ptr", "\n".join(text))
            if "data_ptr() %" not in text[line - 1]  # alignment
        ]
    assert not found


@pytest.mark.parametrize(
    ("tensor", "error", "words"),
    [
        (torch.empty(6, dtype=torch.float32, device="meta"), errors.DeviceMismatchError, "carries is on meta"),
        (torch.empty(5, dtype=torch.float32), errors.ShapeError, "which is 20 bytes; native code expects 24"),
        (torch.empty(6, dtype=torch.bfloat16), errors.ShapeError, "carries is torch.bfloat16 [6]"),
    ],
)
def test_a_wrong_buffer_is_an_error_and_never_a_write_outside(tensor, error, words):
    for check in (_buffers.address, _buffers.strided):
        with pytest.raises(error, match=words.replace("[", r"\[")):
            check("carries", tensor, 24)
