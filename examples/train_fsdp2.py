"""FSDP2 with bfloat16 parameters, decays in float32, and blocks computed again: as torchtitan shards a model.

torchrun --nproc-per-node 2 examples/train_fsdp2.py       two processes on a CPU, over gloo
python examples/train_fsdp2.py                            one, to see that it runs
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from griffin_kernels import training
from griffin_kernels.models import Griffin, preset

VOCABULARY = 256


def documents(seed: int) -> list[list[int]]:
    """Each repeats a few numbers of its own."""
    draw = torch.Generator("cpu").manual_seed(seed)
    found = []
    for _ in range(400):
        motif = torch.randint(VOCABULARY, (int(torch.randint(2, 6, (), generator=draw)),), generator=draw)
        found.append(motif.repeat(8).tolist())
    return found


def sharded(device: str) -> Griffin:
    """A model whose parameters are spread over all processes."""
    torch.manual_seed(0)  # the same draws in each
    model = Griffin(preset("griffin-tiny"), device=device)
    training.checkpoint_blocks(model)  # before it is sharded
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in training.float32_modules(model):  # without the policy: bfloat16 would round the decays
        fully_shard(part, mesh=mesh)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")  # parameters are gathered for it too
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="30 steps")
    options = parser.parse_args()
    steps, share = (30, 0.95) if options.quick else (options.steps, 0.7)

    if "RANK" not in os.environ:
        print("two processes on this machine's CPU, by torchrun")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        quiet = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if subprocess.run([*command, *sys.argv[1:]], env=os.environ | quiet, check=False).returncode:
            raise SystemExit("a process failed")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        losses = train(sharded(device), steps, device)
    finally:
        dist.destroy_process_group()
    if losses[-1] >= share * losses[0]:
        raise SystemExit(f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f} only")


def train(model: Griffin, steps: int, device: str) -> list[float]:
    """Losses of this process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizer = torch.optim.AdamW(training.parameter_groups(model, weight_decay=0.1), lr=1e-2)
    losses = []
    # each process takes documents of its own
    batches = itertools.chain.from_iterable(
        training.pack(documents(seed=rank + ranks * epoch), length=64, batch=8) for epoch in itertools.count()
    )
    for step, batch in zip(range(steps), batches, strict=False):
        loss = model.loss(*batch.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if rank == 0 and step % 10 == 0:
            print(f"step {step:3}: loss {losses[-1]:.3f}")
    if rank == 0:
        kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
        print(f"{ranks} processes; parameters are held in {', '.join(kinds)}; last loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
