"""What the tests of models over several ranks run on each: ``torchrun -m tests.griffin_kernels.parallel.ranks``.

Every check is a function of this module that asserts on its own rank; the first rank prints its name once all passed.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional

from griffin_kernels.models import Griffin, GriffinConfig
from griffin_kernels.models.parallel import logical_state_dict, tensor_parallel
from griffin_kernels.models.shard_plan import shard_plan
from griffin_kernels.training import checkpoint_blocks

WORLD_S = 120
"""Seconds after which a rank that waits for another gives up."""

CONFIG = GriffinConfig(
    vocab_size=64, width=32, mlp_width=48, block_types=("recurrent", "local_attention", "global_attention"),
    num_heads=4, head_dim=8, lru_width=32, gate_blocks=4, window=8, logits_softcap=30.0,
)  # fmt: skip
SEVERAL_KEYS = GriffinConfig(
    vocab_size=64, width=32, mlp_width=48, block_types=("local_attention",), num_heads=4, head_dim=8, num_kv_heads=2,
    lru_width=32, gate_blocks=4, window=8,
)  # fmt: skip

EXACT = 1e-12
"""Relative error of float64 gradients: sums of a few thousand terms in another order, 2^-53 each."""


def drawn(config: GriffinConfig) -> Griffin:
    """A model that every rank draws alike."""
    torch.manual_seed(0)
    return Griffin(config, dtype=torch.float64)


@functools.cache
def batch(rows: int = 4, time: int = 25) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] and segment_pos of documents that begin inside the rows."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(64, (rows, time), generator=generator)
    positions = torch.arange(time).expand(rows, time).clone()
    positions[0, 7:] -= 7
    return tokens, positions


def loss_of(model: Griffin, tokens: Tensor, positions: Tensor) -> Tensor:
    return model.loss(tokens[:, :-1], tokens[:, 1:], positions[:, :-1])


def gradients(config: GriffinConfig) -> dict[str, Tensor]:
    """Of one process, by the names of the plan."""
    model = drawn(config)
    loss_of(model, *batch()).backward()
    holder = drawn(config)
    holder.load_state_dict({name: parameter.grad for name, parameter in model.named_parameters()})
    return logical_state_dict(holder)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_gradients(model: Griffin, wanted: dict[str, Tensor]) -> None:
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(wanted)
    for name, parameter in model.named_parameters():
        got, want = whole(parameter.grad), wanted[name]
        assert float((got - want).norm() / want.norm()) <= EXACT, name


def mesh_of(tp: int) -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size() // tp, tp), mesh_dim_names=("dp", "tp"))


# two ranks


def gradients_are_those_of_one_process() -> None:
    for config in (CONFIG, SEVERAL_KEYS):
        model = tensor_parallel(drawn(config), mesh_of(2)["tp"])
        loss_of(model, *batch()).backward()
        same_gradients(model, gradients(config))


def the_first_rank_decides_parameters() -> None:
    torch.manual_seed(dist.get_rank())
    model = tensor_parallel(Griffin(CONFIG, dtype=torch.float64), mesh_of(2)["tp"])
    for name, value in logical_state_dict(Griffin(CONFIG, dtype=torch.float64)).items():
        assert model.state_dict()[name].shape == value.shape
    torch.manual_seed(0)
    want = logical_state_dict(Griffin(CONFIG, dtype=torch.float64))
    for name, value in model.state_dict().items():
        assert torch.equal(whole(value), want[name]), name


def parameters_are_cut_as_planned() -> None:
    model, plan = tensor_parallel(drawn(CONFIG), mesh_of(2)["tp"]), shard_plan(CONFIG, 2)
    found = dict(model.named_parameters())
    assert list(sorted(found)) == sorted(plan)
    for name, parameter in found.items():
        assert isinstance(parameter, DTensor)
        assert parameter.to_local().numel() == plan[name].local_elements(2), name


def all_reduces_are_counted() -> None:
    """Two of each block forward; backward as many, and one for the one key head of each attention block."""
    model = tensor_parallel(drawn(CONFIG), mesh_of(2)["tp"])
    tokens, positions = batch()
    with CommDebugMode() as counts:
        logits, _ = model(tokens[:, :-1], positions[:, :-1], return_cache=False)
        forward = counts.get_total_counts()
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    blocks, attention = CONFIG.num_layers, 2
    assert (forward, counts.get_total_counts()) == (2 * blocks, 4 * blocks + attention)


def decoding_gives_the_same_tokens() -> None:
    single, model = drawn(CONFIG), tensor_parallel(drawn(CONFIG), mesh_of(2)["tp"])
    tokens, _ = batch()
    cache = model.init_cache(4)
    assert cache.layers[0].state.shape == (4, CONFIG.lru_width // 2)
    for lengths in (None, torch.tensor([25, 3, 9, 1])):
        assert torch.equal(model.generate(tokens, 12, lengths=lengths), single.generate(tokens, 12, lengths=lengths))
    logits, cache = model(tokens[:, :20])
    more, _ = model(tokens[:, 20:], cache=cache)
    want, _ = single(tokens)
    torch.testing.assert_close(torch.cat([logits, more], 1), want, rtol=1e-12, atol=1e-12)


def compiled(backend: str) -> None:
    model = tensor_parallel(drawn(CONFIG), mesh_of(2)["tp"])
    loss = torch.compile(lambda tokens, positions: loss_of(model, tokens, positions), fullgraph=True, backend=backend)
    loss(*batch()).backward()
    same_gradients(model, gradients(CONFIG))


def compiled_by_aot_eager() -> None:
    compiled("aot_eager")


def compiled_by_inductor() -> None:
    compiled("inductor")


def checkpoints_do_not_know_the_layout() -> None:
    """Saved cut, loaded whole; changed, saved whole, loaded cut."""
    with shared_folder() as folder:
        model = tensor_parallel(drawn(CONFIG), mesh_of(2)["tp"])
        checkpoints.save({"model": logical_state_dict(model)}, checkpoint_id=f"{folder}/cut")
        torch.manual_seed(5)
        single = Griffin(CONFIG, dtype=torch.float64)
        checkpoints.load({"model": logical_state_dict(single)}, checkpoint_id=f"{folder}/cut")
        for name, value in drawn(CONFIG).state_dict().items():
            assert torch.equal(single.state_dict()[name], value), name
        with torch.no_grad():
            for parameter in single.parameters():
                parameter.mul_(1.5)
        checkpoints.save({"model": logical_state_dict(single)}, checkpoint_id=f"{folder}/whole")
        checkpoints.load({"model": logical_state_dict(model)}, checkpoint_id=f"{folder}/whole")
        for name, value in logical_state_dict(single).items():
            assert torch.equal(whole(model.state_dict()[name]), value), name


# four ranks


def two_by_two(recompute: bool) -> tuple[Griffin, torch.optim.Optimizer]:
    mesh = mesh_of(2)
    model = tensor_parallel(drawn(CONFIG), mesh["tp"])
    if recompute:
        checkpoint_blocks(model)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    register_fsdp_forward_method(model, "loss")
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def stepped(model: Griffin, optimizer: torch.optim.Optimizer) -> None:
    rows = [part.chunk(2)[mesh_of(2)["dp"].get_local_rank()] for part in batch()]
    optimizer.zero_grad()
    loss_of(model, *rows).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()


def fsdp_over_it_and_recomputation() -> None:
    """The mean over ranks of the rows of each is the mean of all rows."""
    wanted = gradients(CONFIG)
    for recompute in (False, True):
        model, _ = two_by_two(recompute)
        rows = [part.chunk(2)[mesh_of(2)["dp"].get_local_rank()] for part in batch()]
        loss_of(model, *rows).backward()
        found = {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}
        for name, want in wanted.items():
            got = whole(found[name].grad)
            assert float((got - want).norm() / want.norm()) <= EXACT, (recompute, name)


def a_step_saved_on_four_ranks_goes_on_in_one_process() -> None:
    with shared_folder() as folder:
        model, optimizer = two_by_two(False)
        stepped(model, optimizer)
        checkpoints.save({"model": logical_state_dict(model)}, checkpoint_id=folder)
        torch.manual_seed(5)
        single = Griffin(CONFIG, dtype=torch.float64)
        checkpoints.load({"model": logical_state_dict(single)}, checkpoint_id=folder)
        changed = 0
        for name, value in logical_state_dict(single).items():
            assert torch.equal(whole(model.state_dict()[name]), value), name
            changed += not torch.equal(value, logical_state_dict(drawn(CONFIG))[name])
        assert changed == len(shard_plan(CONFIG, 2))


@contextmanager
def shared_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as own:
        names = [own]
        dist.broadcast_object_list(names)
        yield names[0]
        dist.barrier()


CHECKS = {
    2: [
        gradients_are_those_of_one_process, the_first_rank_decides_parameters, parameters_are_cut_as_planned,
        all_reduces_are_counted, decoding_gives_the_same_tokens, compiled_by_aot_eager, compiled_by_inductor,
        checkpoints_do_not_know_the_layout,
    ],
    4: [fsdp_over_it_and_recomputation, a_step_saved_on_four_ranks_goes_on_in_one_process],
}  # fmt: skip
"""By the number of ranks."""


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=WORLD_S))
    wanted = sys.argv[1:]
    for check in CHECKS[dist.get_world_size()]:
        if wanted and check.__name__ not in wanted:
            continue
        check()
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"passed {check.__name__}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
