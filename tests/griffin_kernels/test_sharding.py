"""The ops on DTensors give what they give on whole tensors, forward and backward: two processes over gloo."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from griffin_kernels import catalog
from griffin_kernels.contract import ROWS, Case
from tests import ROOT
from tests.calls import CPU, DIFFERENTIABLE, leaves, operator

RANKS = 2

CASES = {
    "linear_scan": "B2-T9-D6-float64~h0",
    "block_diagonal_scan": "B2-T9-D8-H2-n4-float64~h0",
    "rg_lru": "B2-T9-D8-H2-n4-float64+segmented~h0",
    "temporal_conv1d": "B2-T9-D8-K4-float64~state",
    "recurrent_block": "B2-T9-D8-K4-H2-n4-float64+segmented~state~h0",
    "local_attention": "B2-T9-Hq4-Hkv2-d8-W5-float64+softcap",
}


def place(spec, split):
    """Where a test cuts a tensor; ``T`` is what no rule cuts."""
    return next((Shard(spec.names.index(dim)) for dim in split if dim in spec.names), Replicate())


def check(name, split, used, mesh):
    """One op with inputs cut along ``split``, ``used`` outputs of which reach the loss; raises where it is off."""
    op = catalog.op(name)
    given = op.make_inputs(Case.parse(name, CASES[name], tuple(op.cases[0].dims)), CPU, 0)
    given |= {option: True for option in op.options if option.startswith("with_")}
    whole = leaves(given)
    cut = {
        k: distribute_tensor(v.detach(), mesh, [place(op.inputs[k], split)]).requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor)
        else v
        for k, v in whole.items()
    }
    sums, places = [], []
    for inputs in (whole, cut):
        outputs = operator(name)(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        places = [getattr(out, "placements", None) for out in outputs]
        sum(outputs[at].square().sum() for at in used).backward()
        sums.append([getattr(out, "full_tensor", lambda out=out: out)() for out in outputs])
    for mine, want in zip(*reversed(sums), strict=True):
        torch.testing.assert_close(mine, want)
    if "T" not in split:
        assert places[0] == (place(next(iter(op.outputs.values())), split),), places
    for key, value in whole.items():
        if isinstance(value, torch.Tensor) and value.grad is not None:
            torch.testing.assert_close(cut[key].grad.full_tensor(), value.grad, msg=lambda m, key=key: f"{key}: {m}")


def work(rank, folder):
    """What each process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for name in DIFFERENTIABLE:
        op = catalog.op(name)
        for split in (*op.splits, ("T",)):
            for used in ((0,), (0, 1)):
                try:
                    check(name, split, used, mesh)
                except Exception as error:
                    raise AssertionError(f"{name} cut along {split}, outputs {used} used") from error
                if rank == 0:
                    print(name, "rows" if split == ROWS else split, used, flush=True)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_sharded_calls(tmp_path):
    command = "import sys; from tests.griffin_kernels.test_sharding import work; work(int(sys.argv[1]), sys.argv[2])"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", command, str(rank), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * RANKS, "\n".join(said)
    assert said[0].count("\n") == sum(2 * (len(catalog.op(name).splits) + 1) for name in DIFFERENTIABLE)
