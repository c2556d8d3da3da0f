"""Models cut over ranks: plans, refusals, and on gloo what ``ranks`` checks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from griffin_kernels import errors
from griffin_kernels.models import Griffin, preset
from griffin_kernels.models.parallel import logical_state_dict, tensor_parallel
from griffin_kernels.models.presets import PRESETS
from griffin_kernels.models.shard_plan import divisors, local_config, shard_plan
from tests import ROOT
from tests.griffin_kernels.parallel.ranks import CHECKS, CONFIG, SEVERAL_KEYS

WHOLE_S = 300
"""Seconds for all checks of one number of ranks."""


@pytest.fixture(scope="module")
def passed():
    """ranks -> what they printed; each is run once."""
    told: dict[int, str] = {}

    def run(ranks: int) -> str:
        if ranks not in told:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            done = subprocess.run(
                [*launch, "-m", "tests.griffin_kernels.parallel.ranks"], cwd=ROOT, text=True, timeout=WHOLE_S,
                capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
            )  # fmt: skip
            told[ranks] = done.stdout + done.stderr[-8000:]
        return told[ranks]

    return run


@pytest.mark.parametrize(("ranks", "check"), [(n, c.__name__) for n, checks in CHECKS.items() for c in checks])
def test_on_ranks(passed, ranks, check):
    assert f"passed {check}\n" in passed(ranks), passed(ranks)


@pytest.mark.parametrize("config", [CONFIG, SEVERAL_KEYS, *map(preset, ("hawk-100m", "griffin-100m", "mqa-100m"))])
def test_a_plan_names_every_parameter_by_its_shape(config):
    model = Griffin(config, device="meta")
    plan = shard_plan(config, 2)
    assert {name: tuple(value.shape) for name, value in logical_state_dict(model).items()} == {
        name: cut.shape for name, cut in plan.items()
    }
    assert sum(cut.elements for cut in plan.values()) == config.parameters()
    parts = sum(cut.local_elements(2) for cut in plan.values())
    whole = sum(cut.elements for cut in plan.values() if cut.dim is None)
    assert 2 * parts == config.parameters() + whole


def test_possible_sizes():
    """Those that divide heads and gate blocks: 10 of both in RecurrentGemma-2B, 16 gate blocks in the paper's."""
    assert divisors(preset("recurrentgemma-2b")) == (1, 2, 5, 10)
    assert divisors(preset("recurrentgemma-9b")) == (1, 2, 4, 8, 16)
    assert 8 in divisors(preset("griffin-7b")) and divisors(preset("griffin-100m")) == (1, 2)
    for name in PRESETS:
        config = preset(name)
        for tp in divisors(config):
            assert local_config(config, tp).lru_width * tp == config.lru_width or "recurrent" not in config.block_types


def test_a_size_that_cuts_a_head_is_refused():
    with pytest.raises(errors.ArgumentError, match=r"tp is 4, expected one of 1, 2, 5, 10: .*gate_blocks 10"):
        shard_plan(preset("recurrentgemma-2b"), 4)


def test_what_is_not_a_mesh_is_refused():
    model = Griffin(CONFIG)
    with pytest.raises(errors.ArgumentError, match="mesh is a int, expected a DeviceMesh of one dimension"):
        tensor_parallel(model, 2)
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
