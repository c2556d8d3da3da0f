"""Native kernels on disk: every file that a kernel is made from counts, not only the one that numba watches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from griffin_kernels import kernel_sources
from griffin_kernels.ops import _blas, _native
from griffin_kernels.ops.gated_gelu import _gelu_numba as gated_gelu
from griffin_kernels.ops.linear_scan import _scan_numba as linear_scan
from griffin_kernels.ops.linear_scan_step import _scan_step_numba as linear_scan_step
from griffin_kernels.ops.local_attention import _numba_blas as local_attention
from griffin_kernels.ops.local_attention import _numba_matrix_gradient as local_attention_amx_bwd
from griffin_kernels.ops.local_attention import _numba_matrix_unit as local_attention_amx
from griffin_kernels.ops.local_attention import _numba_register_tiles as local_attention_tiles
from griffin_kernels.ops.local_attention_extend import _numba_ring_tokens as local_attention_extend
from griffin_kernels.ops.local_attention_step import _numba_ring as local_attention_step
from griffin_kernels.ops.rg_lru import _lru_numba as rg_lru
from griffin_kernels.ops.rg_lru import _lru_numba_gradient as rg_lru_bwd
from griffin_kernels.ops.rg_lru_extend import _lru_extend_numba as rg_lru_extend
from griffin_kernels.ops.rg_lru_gated import _gated_numba as rg_lru_gated
from griffin_kernels.ops.rg_lru_step import _lru_step_numba as rg_lru_step
from griffin_kernels.ops.rms_norm import _norm_numba as rms_norm
from griffin_kernels.ops.temporal_conv1d import _conv_numba as temporal_conv1d
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba as temporal_conv1d_step

MODULES = [
    gated_gelu,
    linear_scan,
    linear_scan_step,
    local_attention,
    local_attention_amx,
    local_attention_amx_bwd,
    local_attention_extend,
    local_attention_step,
    local_attention_tiles,
    rg_lru,
    rg_lru_bwd,
    rg_lru_extend,
    rg_lru_gated,
    rg_lru_step,
    rms_norm,
    temporal_conv1d,
    temporal_conv1d_step,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_files_of_a_kernel_are_all_that_it_imports(module):
    imported = {str(sys.modules[name].__file__) for name in kernel_sources.kernel_modules(module.__name__)}
    packages = {file for file in imported if Path(file).name == "__init__.py"}
    assert imported - packages == {*module.FILES, str(_native.__file__)}


SCAN = """
import torch
from griffin_kernels import catalog
op, v = catalog.op("linear_scan"), catalog.variant("linear_scan/numba.sequential")
x = torch.ones(1, 1, 3)
print(v.run(op.call(x, x), v.config())[0].tolist())
"""
ATTENTION = """
import torch
from griffin_kernels import catalog
from griffin_kernels.ops.local_attention.cost import make_case
op, v = catalog.op("local_attention"), catalog.variant("local_attention/numba.blocked")
inputs = op.make_inputs(make_case(1, 1, 1, 1, 4, 5), torch.device("cpu"), 0)
inputs["v"] = torch.ones_like(inputs["v"])
print(v.on(inputs, v.config())[0].tolist())
"""


@pytest.mark.parametrize(
    ("code", "file", "old", "new", "want", "changed"),
    [
        pytest.param(
            SCAN,
            "_native_rows.py",
            "v.write(v.zero(), target)",
            "v.write(v.constant(2.0), target)",
            "[[[1.0, 1.0, 1.0]]]",
            "[[[3.0, 3.0, 3.0]]]",
            id="linear_scan",
        ),
        pytest.param(
            ATTENTION,
            "local_attention/_numba_rows.py",
            "row[j] = factor * source[j]",
            "row[j] = _f32(7)",
            "[[[[1.0, 1.0, 1.0, 1.0]]]]",
            "[[[[7.0, 7.0, 7.0, 7.0]]]]",
            marks=pytest.mark.skipif(_blas.found() is None, reason="local_attention/numba.blocked needs a BLAS"),
            id="local_attention",
        ),
    ],
)
def test_a_changed_helper_is_compiled_again(tmp_path, code, file, old, new, want, changed):
    package = Path(_native.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def printed():
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert printed() == want
    kept = sorted((tmp_path / "cache").rglob("*.nbc"))
    assert printed() == want
    assert kept
    assert sorted((tmp_path / "cache").rglob("*.nbc")) == kept
    helper = tmp_path / package.name / "ops" / file
    source = helper.read_text()
    assert source.count(old) == 1
    helper.write_text(source.replace(old, new))
    assert printed() == changed
