"""The work of a candidate's launches, from their description alone: programs, iterations, bytes, products.

Bytes. A launch moves each tensor among its arguments once (twice where it is updated in place); dimensions of stride 0
count once. Where the variant states its traffic, or the op is one launch and the ideal cost is its traffic, the steps
are scaled to add up to that. A ``TorchStep`` runs on tensors without memory: its bytes and products are PyTorch's own.

Iterations. A launch handles ``tile`` elements per iteration. The elements are those of its largest tensor; a kernel
that streams keys past queries (or the reverse) handles scores, of which there are as many as visible pairs, and more at
the edges of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from griffin_kernels import catalog
from griffin_kernels.contract import Case, Op, Variant
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops.local_attention.cost import visible_pairs
from tuning.static.describe import compile_key

DOTS: Mapping[str, int] = {"local_attention_bwd_keys": 4, "local_attention_bwd_queries": 3}
"""Products per tile of scores by kernel (scores and dP again, then one for each gradient); 2 where it is not listed."""

PRODUCT_TILE = 128
"""Rows and columns that one block of a library's matrix product computes: what is not filled idles."""


@dataclass(frozen=True)
class LaunchWork:
    """One launch. key: equal for launches that compile to the same code. iterations: of a program's main loop.

    A rare launch counts as one program that does nothing: what remains of it is that it is launched.
    flops: of matrix products on matrix units. index: which step of the candidate this is.
    """

    name: str
    index: int
    key: str
    programs: int
    num_warps: int
    num_stages: int
    tile: int
    iterations: float
    bytes_moved: float
    flops: float


@dataclass(frozen=True)
class CallWork:
    """Operations of PyTorch's between launches. kernels: how many it starts. blocks: that compute at once."""

    name: str
    index: int
    bytes_moved: float
    flops: float
    kernels: int
    blocks: int


Work = LaunchWork | CallWork


def of_steps(variant: Variant, op: Op, case: Case, config: Any, call: Any, steps: Sequence[Step]) -> list[Work]:
    """What every step of a candidate has to do; tensors on torch's meta device are enough."""
    again = {_place(value) for name in op.in_place if isinstance(value := getattr(call, name), Tensor)}
    found: list[Work] = []
    for index, step in enumerate(steps):
        if isinstance(step, Launch):
            found.append(_launch(step, index, op, case, again))
            continue
        with _Counted() as counted:  # on tensors without memory
            step.function()
        moved, flops, kernels = float(counted.bytes), float(counted.flops), max(1, counted.kernels)
        found.append(CallWork(step.name, index, moved, flops, kernels, counted.blocks))
    total = variant.traffic(case, config) if variant.traffic is not None else None
    if total is None and len(found) == 1:
        total = op.cost(case).bytes_total
    counted = sum(work.bytes_moved for work in found)
    if total is None or not counted:
        return found
    return [replace(work, bytes_moved=work.bytes_moved * total / counted) for work in found]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for views of the same elements."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _bytes(tensor: Tensor) -> int:
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def _launch(launch: Launch, index: int, op: Op, case: Case, in_place: set[tuple[Any, ...]]) -> LaunchWork:
    tensors = {_place(tensor): tensor for tensor in launch.tensors}
    moved = float(sum(_bytes(tensor) * (2 if place in in_place else 1) for place, tensor in tensors.items()))
    programs = math.prod(launch.grid)
    flops = 0.0
    if "AGAIN" in launch.constexprs:  # it streams, as the windowed flash kernels alone do
        # visible pairs, and what else lies in the tiles that hold any
        pairs, sizes = visible_pairs(case), launch.constexprs["SIZES"]
        edges = 1.0 + (sizes.BLOCK_M / sizes.G + sizes.BLOCK_N) / max(1.0, pairs / case["T"])
        elements = float(case["B"] * case["Hq"] * pairs * edges)
        if launch.claims.matrix:
            flops = 2.0 * case["d"] * DOTS.get(launch.name, 2) * elements
    else:
        elements = float(max((tensor.numel() for tensor in tensors.values()), default=0))
        if {"B", "T", "D"} <= case.dims.keys():
            # a tile is of steps and channels, also where tensors hold matrices or pairs of these
            elements = min(elements, case["B"] * case["T"] * case["D"])
        if launch.claims.matrix:
            flops = float((catalog.op(op.forward) if op.forward else op).cost(case).tensor_flops)
    iterations = max(1.0, elements / (programs * launch.tile)) if launch.tile and programs else 1.0
    if launch.rare:
        programs, iterations, moved = 1, 0.0, 0.0
    key, warps, stages = compile_key(launch), launch.num_warps, launch.num_stages
    return LaunchWork(launch.name, index, key, programs, warps, stages, launch.tile, iterations, moved, flops)


PRODUCTS: Mapping[str, int] = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addmm_": 1, "baddbmm_": 1}
"""PyTorch's matrix products: which argument is the left matrix."""


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the tensors that go into and out of PyTorch operations, and their products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.flops, self.kernels, self.blocks = 0, 0, 0, 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if func.is_view or not outputs:
            return result
        values = tree_leaves((args, kwargs, result))
        self.kernels += 1
        self.bytes += sum(map(_bytes, {_place(v): v for v in values if isinstance(v, Tensor)}.values()))
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS:
            *batch, rows, columns = outputs[0].shape
            blocks = math.prod(batch) * -(-rows // PRODUCT_TILE) * -(-columns // PRODUCT_TILE)
            self.flops += 2 * outputs[0].numel() * args[PRODUCTS[name]].shape[-1]
            self.blocks = max(self.blocks, blocks)
        return result
