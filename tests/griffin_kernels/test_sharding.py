"""Two processes over gloo: the ops on DTensors, forward and backward, and a model under FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from griffin_kernels import catalog
from griffin_kernels.contract import ROWS, Case
from griffin_kernels.models import Griffin, preset
from griffin_kernels.training import checkpoint_blocks, float32_modules
from tests import ROOT
from tests.calls import CPU, DIFFERENTIABLE, leaves, operator

RANKS = 2

CASES = {
    "linear_scan": "B2-T9-D6-float64~h0",
    "block_diagonal_scan": "B2-T9-D8-H2-n4-float64~h0",
    "complex_scan": "B2-T9-D6-float64~h0",
    "rg_lru": "B2-T9-D8-H2-n4-float64+segmented~h0",
    "rg_lru_gated": "B2-T9-D8-float64+segmented~h0",
    "temporal_conv1d": "B2-T9-D8-K4-float64~state",
    "recurrent_block": "B2-T9-D8-K4-H2-n4-float64+segmented~state~h0",
    "rms_norm": "B2-T10-D6-float64+residual~offset",
    "gated_gelu": "B2-T9-D8-float64",
    "geglu": "B2-T9-D8-float64",
    "local_attention": "B2-T9-Hq4-Hkv2-d8-W5-float64+softcap",
}


def place(spec, split):
    """Where a test cuts a tensor; along ``T`` hardly any rule does."""
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


def ops(rank, mesh):
    """Every op, cut along each of its splits, and along time."""
    for name in DIFFERENTIABLE:
        op = catalog.op(name)
        for split in (*op.splits, ("T",)):
            for used in ((0,), (0, 1))[: len(op.outputs)]:
                try:
                    check(name, split, used, mesh)
                except Exception as error:
                    raise AssertionError(f"{name} cut along {split}, outputs {used} used") from error
                if rank == 0:
                    print(name, "rows" if split == ROWS else split, used, flush=True)


def training(rank, mesh):
    """A model under FSDP2 with bfloat16 parameters: its gradients, then decoding from a cache."""
    torch.manual_seed(0)
    model, whole = Griffin(preset("griffin-tiny")), Griffin(preset("griffin-tiny"))
    whole.load_state_dict(model.state_dict())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    tokens = torch.randint(0, 200, (2, 41), generator=torch.Generator().manual_seed(0))
    for each in (whole, model):
        logits = each(tokens[:, :-1])[0].float().flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
    # in each of three blocks some ten tensors are rounded on the way there and as many back, and all weights before
    bound = (3 * 10 * len(model.blocks)) ** 0.5 * torch.finfo(torch.bfloat16).eps / 2
    wanted = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        off = (parameter.grad.full_tensor() - wanted[name].grad).norm() / wanted[name].grad.norm()
        assert off <= bound, (name, off)
    with torch.no_grad():
        logits = model(tokens)[0]
        pieces, cache = [], None
        for begin, end in ((0, 30), *((at, at + 1) for at in range(30, 41))):
            piece, cache = model(tokens[:, begin:end], cache=cache)
            pieces.append(piece)
        assert cache.layers[0].state.dtype == torch.float32
        assert (torch.cat(pieces, 1) - logits).norm() <= bound * logits.norm()
    if rank == 0:
        print("trained and decoded", flush=True)
    assert seen(model) == {torch.bfloat16}
    kept(rank, mesh, whole, tokens, bound)


def seen(model):
    """Dtypes of a_param when it is used."""
    found = set()
    for part in float32_modules(model):
        part.register_forward_hook(lambda part, *_: found.add(part.a_param.dtype), prepend=True)  # while it is gathered
    with torch.no_grad():
        model(torch.zeros(2, 3, dtype=torch.int64))
    return found


def kept(rank, mesh, whole, tokens, bound):
    """The same with RG-LRUs wrapped by themselves, checkpointed blocks, and the loss in chunks."""
    model = Griffin(preset("griffin-tiny"))
    model.load_state_dict(whole.state_dict())
    checkpoint_blocks(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in float32_modules(model):
        fully_shard(part, mesh=mesh)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    wanted = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = wanted[name.replace("_checkpoint_wrapped_module.", "")].grad
        off = (parameter.grad.full_tensor() - gradient).norm() / gradient.norm()
        assert off <= bound, (name, off)
    assert seen(model) == {torch.float32}
    if rank == 0:
        print("kept in float32", flush=True)


def work(what, rank, folder):
    """What each process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=RANKS)
    {"ops": ops, "training": training}[what](int(rank), init_device_mesh("cpu", (RANKS,)))
    dist.destroy_process_group()


def on_two_processes(what, folder):
    """What the first one said."""
    command = "import sys; from tests.griffin_kernels.test_sharding import work; work(*sys.argv[1:])"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", command, what, str(rank), str(folder)],
            cwd=ROOT,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},  # a host's name may not be known where tests run
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * RANKS, "\n".join(said)
    return said[0].splitlines()


def test_sharded_calls(tmp_path):
    lines = on_two_processes("ops", tmp_path)
    ops = [catalog.op(name) for name in DIFFERENTIABLE]
    assert len(lines) == sum(min(2, len(op.outputs)) * (len(op.splits) + 1) for op in ops)


def test_fully_sharded_training_in_bfloat16(tmp_path):
    assert on_two_processes("training", tmp_path) == ["trained and decoded", "kept in float32"]
