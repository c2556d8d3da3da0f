"""torch.compile's caches are told which version of the operators their code calls."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from griffin_kernels.functional import _bridge, _compile_caches


def test_the_digest_is_of_every_argument_of_every_operator():
    schemas = [f"{name}{schema}" for name, schema in _bridge.SCHEMAS.items()]
    assert {"linear_scan", "linear_scan_bwd", "local_attention_step"} <= set(_bridge.SCHEMAS)
    found = _compile_caches.digest(schemas)
    assert found == _compile_caches.digest(reversed(schemas))
    assert f"griffin_kernels-{found}" in torch.compiler.config.cache_key_tag
    for at, schema in enumerate(schemas):
        other = schema.replace(")", ", int more)", 1)
        assert _compile_caches.digest([*schemas[:at], other, *schemas[at + 1 :]]) != found


def test_marking_twice_adds_nothing():
    before = torch.compiler.config.cache_key_tag
    _compile_caches.mark(f"{name}{schema}" for name, schema in _bridge.SCHEMAS.items())
    assert torch.compiler.config.cache_key_tag == before


def test_a_users_own_tag_stays():
    code = "import griffin_kernels.functional, torch; print(torch.compiler.config.cache_key_tag)"
    environment = os.environ | {"TORCH_COMPILE_CACHE_KEY_TAG": "mine"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine", torch.compiler.config.cache_key_tag.split()[-1]]


def test_a_graph_of_other_schemas_is_not_found(tmp_path):
    """Compiled, found where everything is as it was, and compiled anew under another digest."""
    code = """
import torch
import griffin_kernels
from griffin_kernels.functional import _compile_caches
from torch._dynamo.utils import counters

for version in ("old", "old", "new"):
    _compile_caches.mark([version])
    torch._dynamo.reset()
    counters.clear()
    x = torch.randn(1, 5, 3, requires_grad=True)
    model = torch.compile(lambda x: griffin_kernels.linear_scan(x, x)[0], fullgraph=True)
    model(x).sum().backward()
    print(counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"])
"""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["0 1", "1 0", "0 1", ""], done.stderr
