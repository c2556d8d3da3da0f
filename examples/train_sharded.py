"""Tensor parallelism under FSDP2, saved on four processes and gone on with on two, another layout.

torchrun --nproc-per-node 4 examples/train_sharded.py     four processes on a CPU, over gloo; on GPUs over nccl
python examples/train_sharded.py                          starts four, then two that go on
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from griffin_kernels import training
from griffin_kernels.models import Griffin, preset
from griffin_kernels.models.parallel import logical_state_dict, tensor_parallel

TENSOR_PARALLEL = 2
VOCABULARY = 256


def documents(seed: int) -> list[list[int]]:
    """Each repeats a few numbers of its own."""
    draw = torch.Generator("cpu").manual_seed(seed)
    motifs = (torch.randint(VOCABULARY, (2 + seed % 4,), generator=draw) for _ in range(100))
    return [motif.repeat(8).tolist() for motif in motifs]


def sharded(device: str) -> tuple[Griffin, int, int]:
    """A model cut for TENSOR_PARALLEL processes, FSDP2 over the others; which of these this one is, of how many."""
    torch.manual_seed(0)
    mesh = init_device_mesh(
        device, (dist.get_world_size() // TENSOR_PARALLEL, TENSOR_PARALLEL), mesh_dim_names=("dp", "tp")
    )
    model = tensor_parallel(Griffin(preset("griffin-tiny"), device=device), mesh["tp"])
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh["dp"])
    register_fsdp_forward_method(model, "loss")
    return model, mesh["dp"].get_local_rank(), mesh["dp"].size()


def train(steps: int, folder: str, device: str) -> None:
    model, shard, shards = sharded(device)
    state = {"model": logical_state_dict(model)}
    resumed = os.path.exists(os.path.join(folder, ".metadata"))
    if resumed:
        checkpoints.load(state, checkpoint_id=folder)
    optimizer = torch.optim.AdamW(training.parameter_groups(model, weight_decay=0.1), lr=1e-2)
    batches = [batch for seed in range(8) for batch in training.pack(documents(seed), length=64, batch=8)]
    losses = []
    for step in range(steps):
        # ranks of one tensor parallel group read the same rows, each group others
        loss = model.loss(*batches[(step * shards + shard) % len(batches)].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if dist.get_rank() == 0 and (step % 10 == 0 or step == steps - 1):
            began = "goes on" if resumed else "begins"
            print(f"{dist.get_world_size()} processes, run {began}, step {step:3}: loss {losses[-1]:.3f}")
    checkpoints.save(state, checkpoint_id=folder)
    if resumed and losses[0] >= math.log(VOCABULARY):
        raise SystemExit(f"a run that goes on knows nothing: loss {losses[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="10 steps")
    parser.add_argument("--folder", help="of the checkpoint; a new one by default")
    options = parser.parse_args()
    steps = 10 if options.quick else options.steps

    if "RANK" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            for ranks in (4, 2):
                print(f"{ranks} processes on this machine's CPU, by torchrun")
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                command = [*launch, __file__, "--steps", str(steps), "--folder", options.folder or folder]
                quiet = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
                if subprocess.run(command, env=os.environ | quiet, check=False).returncode:
                    raise SystemExit("a process failed")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        train(steps, options.folder or tempfile.mkdtemp(), device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
