"""How tensor parallelism cuts a model: which parameter along which dimension. Needs no PyTorch.

The cuts of the paper (arXiv 2402.19427, section 4.1) and of Megatron (arXiv 1909.08053): the first linear layers of a
block by outputs and the last by inputs, attention by heads, the RG-LRU by gate blocks, its convolution by channels.
Between the linear layers nothing is communicated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig


@dataclass(frozen=True)
class ShardCut:
    """One parameter. shape: of the whole. dim: the dimension that is cut in equal pieces; None: every rank has all."""

    shape: tuple[int, ...]
    dim: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def local_elements(self, tp: int) -> int:
        """Of one rank of ``tp``."""
        return self.elements if self.dim is None else self.elements // tp


def widths(config: GriffinConfig) -> dict[str, int]:
    """What ``tp`` must divide, by name. One key head is computed by every rank, several are cut."""
    kinds, cut = set(config.block_types), {"mlp_width": config.mlp_width}
    if "recurrent" in kinds:
        cut["gate_blocks"] = config.gate_blocks  # and with it lru_width
    if kinds - {"recurrent"}:
        cut["num_heads"] = config.num_heads
        if config.num_kv_heads > 1:
            cut["num_kv_heads"] = config.num_kv_heads
    return cut


def divisors(config: GriffinConfig) -> tuple[int, ...]:
    """The numbers of ranks that a model can be cut for, ascending."""
    common = math.gcd(*widths(config).values())
    return tuple(size for size in range(1, common + 1) if common % size == 0)


def check_tp(config: GriffinConfig, tp: int) -> None:
    """Raise ArgumentError naming the possible sizes if ``tp`` is none of them."""
    if tp in (possible := divisors(config)):
        return
    sizes = ", ".join(f"{name} {size}" for name, size in widths(config).items())
    raise errors.ArgumentError(f"tp is {tp}, expected one of {', '.join(map(str, possible))}: it has to divide {sizes}")


def shard_plan(config: GriffinConfig, tp: int) -> Mapping[str, ShardCut]:
    """Every parameter of ``tensor_parallel(Griffin(config), mesh)`` by name, for ``tp`` ranks; those of one too.

    Names and shapes do not depend on ``tp``, so that neither do checkpoints. The MLP's ``up`` is gate and value,
    [2, mlp_width, width]; ``qkv`` is two layers, ``q`` [Hq d, width] and ``kv`` [2, Hkv d, width].
    Raises ArgumentError naming the possible sizes for a ``tp`` that cuts a head or a gate block.
    """
    check_tp(config, tp)
    d, r, h, heads = config.width, config.lru_width, config.mlp_width, config.gate_blocks
    n, queries, keys = (
        config.gate_block_width,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    gates = {f"rg_lru.{gate}_gate_{part}" for gate in ("input", "recurrence") for part in ("weight", "bias")}
    recurrent = {
        "linear_x.weight": ShardCut((r, d), 0), "linear_x.bias": ShardCut((r,), 0),
        "linear_y.weight": ShardCut((r, d), 0), "linear_y.bias": ShardCut((r,), 0),
        "conv.weight": ShardCut((config.conv_width, r), 1), "conv.bias": ShardCut((r,), 0),
        "rg_lru.a_param": ShardCut((r,), 0),
        **{name: ShardCut((heads, n, n) if name.endswith("weight") else (heads, n), 0) for name in sorted(gates)},
        "linear_out.weight": ShardCut((d, r), 1), "linear_out.bias": ShardCut((d,)),
    }  # fmt: skip
    attention = {
        "qkv.q.weight": ShardCut((queries, d), 0),
        "qkv.kv.weight": ShardCut((2, keys, d), 1 if config.num_kv_heads > 1 else None),
        "out.weight": ShardCut((d, queries), 1), "out.bias": ShardCut((d,)),
    }  # fmt: skip
    rest = {
        "temporal_norm.weight": ShardCut((d,)), "channel_norm.weight": ShardCut((d,)),
        "mlp.up.weight": ShardCut((2, h, d), 1), "mlp.up.bias": ShardCut((2, h), 1),
        "mlp.down.weight": ShardCut((d, h), 1), "mlp.down.bias": ShardCut((d,)),
    }  # fmt: skip
    plan = {"embedding.weight": ShardCut((config.vocab_size, d)), "final_norm.weight": ShardCut((d,))}
    for index, kind in enumerate(config.block_types):
        mixing = recurrent if kind == "recurrent" else attention
        plan |= {f"blocks.{index}.mixing.{name}": cut for name, cut in mixing.items()}
        plan |= {f"blocks.{index}.{name}": cut for name, cut in rest.items()}
    return plan


def local_config(config: GriffinConfig, tp: int) -> GriffinConfig:
    """The sizes of what one rank keeps of a sequence: channels and gate blocks of the recurrence, key heads."""
    check_tp(config, tp)
    if set(config.block_types) != {"recurrent"}:
        keys = config.num_kv_heads // tp if config.num_kv_heads > 1 else 1
        config = replace(config, num_heads=config.num_heads // tp, num_kv_heads=keys)
    if "recurrent" in config.block_types:
        config = replace(config, lru_width=config.lru_width // tp, gate_blocks=config.gate_blocks // tp)
    return config
