"""Tensor parallelism: one model cut over the ranks of a mesh, as ``shard_plan`` says. Built on torch's DTensor.

    >>> mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (2, 4), mesh_dim_names=("dp", "tp"))
    >>> model = tensor_parallel(Griffin(config, device="cuda"), mesh["tp"])
    >>> for block in model.blocks: fully_shard(block, mesh=mesh["dp"])
    >>> fully_shard(model, mesh=mesh["dp"])

FSDP2, distributed checkpoints, activation checkpointing, ``torch.compile``, optimizers and gradient clipping are
torch's own over it. Every parameter is a DTensor. What is between linear layers is a plain tensor of this rank's
channels or heads, so kernels see no DTensor. Of each part of a block, one all-reduce goes forward and one backward; one
more goes backward where all ranks compute the one key head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.models.layers import CachedAttention, CachedRecurrence
from griffin_kernels.models.shard_plan import ShardCut, local_config, shard_plan
from griffin_kernels.nn import GatedMLP, sharded
from griffin_kernels.nn.linear_layers import Linear, linear
from griffin_kernels.nn.sharded import local

if TYPE_CHECKING:
    from griffin_kernels.models.griffin import Griffin

sharded.CUT = (DTensor,)


def tensor_parallel(model: Griffin, mesh: DeviceMesh) -> Griffin:
    """Cut a model over a mesh, in place, and return it. Every rank of the mesh calls this, and then the model, alike.

    model: a ``Griffin`` on the mesh's kind of device; parameters of the mesh's first rank are what all ranks get.
    mesh: of one dimension, with a size that ``shard_plan`` takes. Tokens, logits and losses are whole on every rank.
    A cache has this rank's channels of recurrent states; ``model.init_cache`` makes such a one.

    Raises ArgumentError for another model or mesh, naming the sizes that are possible.
    """
    if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
        what = f"of {mesh.ndim} dimensions" if isinstance(mesh, DeviceMesh) else f"a {type(mesh).__name__}"
        raise errors.ArgumentError(f'mesh is {what}, expected a DeviceMesh of one dimension, such as mesh["tp"]')
    _check_plain(model)
    tp = mesh.size()
    plan = shard_plan(model.config, tp)
    group: str = mesh.get_group().group_name
    for block in cast(Iterable[Any], model.blocks):
        block.mlp.__class__, block.mlp.group = TensorParallelMLP, group
        block.mlp.up = StackedLinear(block.mlp.up)
        _row_parallel(block.mlp.down, group)
        mixing = block.mixing
        if isinstance(mixing, CachedRecurrence):
            mixing.__class__, mixing.group = TensorParallelRecurrence, group  # type: ignore[assignment]
            _row_parallel(mixing.linear_out, group)
        else:
            shares = mixing.kv_heads > 1
            mixing.qkv = CutQKV(mixing.qkv, mixing.heads * mixing.head_dim, group, shares)
            mixing.heads //= tp
            mixing.kv_heads //= tp if shares else 1
            _row_parallel(mixing.out, group)
    model.embedding.__class__ = LocalEmbedding
    model.cache_config = local_config(model.config, tp)
    for name, cut in plan.items():
        _distribute(model, name, cut, mesh)
    return model


def logical_state_dict(model: Griffin) -> dict[str, Tensor]:
    """``state_dict`` by the names and shapes of ``shard_plan``, of a plain model or one cut for any number of ranks.

    For ``torch.distributed.checkpoint``: what one layout saves, any other loads. The tensors are views of the model's
    parameters, so that loading into them loads the model.
    """
    state = model.state_dict()
    if model.cache_config is not model.config:
        return state
    logical: dict[str, Tensor] = {}
    queries = model.config.num_heads * model.config.head_dim
    for name, value in state.items():
        if ".mlp.up." in name:
            logical[name] = halves(value)
        elif name.endswith(".qkv.weight"):
            stem = name.removesuffix("weight")
            logical[f"{stem}q.weight"], keys = value[:queries], value[queries:]
            logical[f"{stem}kv.weight"] = halves(keys)
        else:
            logical[name] = value
    return logical


class SumGradient(torch.autograd.Function):
    """Megatron's f: a tensor that all ranks have; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


class SumParts(torch.autograd.Function):
    """Megatron's g: the sum of what the ranks have, whose gradient all of them have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _summed(x: Tensor, group: str) -> Tensor:
    total = collectives.all_reduce(x.contiguous(), "sum", cast(Any, group))
    return cast(Tensor, collectives.wait_tensor(total))  # type: ignore[no-untyped-call]


_sum_gradient = cast(Callable[[Tensor, str], Tensor], SumGradient.apply)
_sum_parts = cast(Callable[[Tensor, str], Tensor], SumParts.apply)


class RowParallelLinear(Linear):
    """A linear layer of which each rank has some inputs. The bias is added once."""

    group: str

    def forward(self, input: Tensor) -> Tensor:
        out = _sum_parts(linear(input, local(self.weight)), self.group)
        return out if self.bias is None else out + local(self.bias).to(out.dtype)


def halves(rows: Tensor) -> Tensor:
    """[2, N, ...] of [2 N, ...]."""
    return rows.view(2, -1, *rows.shape[1:])


class StackedLinear(nn.Module):
    """Two linear layers of one input, each cut by outputs: weight [2, N, K] for one of [2 N, K].

    Returns this rank's outputs of the first, then those of the second, [..., 2 N / ranks].
    """

    def __init__(self, both: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(halves(both.weight.detach()), both.weight.requires_grad)
        self.bias = None if both.bias is None else nn.Parameter(halves(both.bias.detach()), both.bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else local(self.bias).flatten()
        return linear(x, local(self.weight).flatten(0, 1), bias)


class CutQKV(nn.Module):
    """q by heads. kv by heads where there are several, else whole on every rank and the gradient of its output summed.

    Returns [..., (Hq + 2 Hkv) d] of this rank's heads.
    """

    def __init__(self, qkv: nn.Linear, queries: int, group: str, shares: bool) -> None:
        """queries: rows of q. shares: whether key heads are cut."""
        super().__init__()
        q, kv = qkv.weight.detach()[:queries], qkv.weight.detach()[queries:]
        self.q, self.kv = (
            nn.ParameterDict({"weight": nn.Parameter(part.clone(), qkv.weight.requires_grad)})
            for part in (q, halves(kv))
        )
        self.group, self.shares = group, shares

    def forward(self, x: Tensor) -> Tensor:
        summed = _sum_gradient(x, self.group)
        q = linear(summed, local(self.q["weight"]))
        kv = linear(summed if self.shares else x, local(self.kv["weight"]).flatten(0, 1))
        return torch.cat([q, kv if self.shares else _sum_gradient(kv, self.group)], dim=-1)


class TensorParallelMLP(GatedMLP):
    """A gated MLP of which each rank has some hidden channels."""

    group: str

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_sum_gradient(x, self.group))


class TensorParallelRecurrence(CachedRecurrence):
    """The channels of this rank."""

    group: str

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return super().branches(_sum_gradient(x, self.group))


class LocalEmbedding(nn.Embedding):
    """An embedding whose weight all ranks have."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.embedding(input, local(self.weight))


def _row_parallel(layer: nn.Linear, group: str) -> None:
    layer.__class__, layer.group = RowParallelLinear, group  # type: ignore[assignment]


def _distribute(model: nn.Module, name: str, cut: ShardCut, mesh: DeviceMesh) -> None:
    """Replace a parameter by a DTensor of it."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    whole = getattr(module, leaf)
    assert tuple(whole.shape) == cut.shape, f"{name}: shape {tuple(whole.shape)}, planned {cut.shape}"
    placement = Replicate() if cut.dim is None else Shard(cut.dim)
    made = nn.Parameter(distribute_tensor(whole.detach(), mesh, [placement]), whole.requires_grad)
    module.register_parameter(leaf, made)


def _check_plain(model: Any) -> None:
    """Raise ArgumentError for what is no Griffin as it was made: cut already, wrapped, quantised, adapted."""
    from griffin_kernels.models.griffin import Griffin

    if type(model) is not Griffin:
        raise errors.ArgumentError(
            f"model is a {type(model).__name__}, expected a Griffin; cut it before FSDP wraps it"
        )
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise errors.ArgumentError("model: is cut or sharded already, expected one with plain parameters")
    for name, layer in _linears(model):
        if type(layer) is not Linear or type(layer.weight) is not nn.Parameter:
            text = f"model: {name} is a {type(layer).__name__} of {type(layer.weight).__name__}, expected plain weights"
            raise errors.ArgumentError(f"{text}; cut the model before it is adapted or quantised")


def _linears(model: Griffin) -> Iterator[tuple[str, Any]]:
    for index, block in enumerate(cast(Iterable[Any], model.blocks)):
        recurrent = isinstance(block.mixing, CachedRecurrence)
        assert recurrent or isinstance(block.mixing, CachedAttention)
        names = ("linear_x", "linear_y", "linear_out") if recurrent else ("qkv", "out")
        for name in (*(f"mixing.{name}" for name in names), "mlp.up", "mlp.down"):
            yield f"blocks.{index}.{name}", block.get_submodule(name)
