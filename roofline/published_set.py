"""Published timings of kernels and whole models on named GPUs: facts, one TOML file per source in ``published/``.

A kernel is described by what it moves and how far it is serial, never by its code. Needs no PyTorch.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from griffin_kernels.models.config import BlockType, GriffinConfig

FOLDER = Path(__file__).parent / "published"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class TimedSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One size of a published kernel.

    n: the size that varies, as ``PublishedKernel.size`` says. us: published microseconds. bytes: each tensor once.
    again_bytes: what programs read once more of their own rows; together_bytes: of the rows that are worked on at once.
    steps: one after the other in a program, each of which waits for a load. spilled_bytes: loads and stores of spilled
    registers; spill_bytes: what all threads at once spill to. flops: of products on matrix units.
    outlier: why the prediction is off, where that is known.
    """

    n: Count
    us: Positive
    bytes: Positive
    again_bytes: Amount = 0.0
    together_bytes: Amount = 0.0
    steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    spilled_bytes: Amount = 0.0
    spill_bytes: Amount = 0.0
    flops: Amount = 0.0
    outlier: str = ""


class PublishedKernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel on a GPU. sku: the datasheet that it is predicted from; gpu: the board's name where that is another.

    does: what it moves, in words. size: how ``n`` enters. version: of the software. instructions_per_step: that depend
    on each other. weak: why this measurement counts for little; in no total then.
    """

    name: str
    sku: str
    dtype: str
    does: str
    size: str
    version: str
    rows: Annotated[tuple[TimedSize, ...], msgspec.Meta(min_length=1)]
    gpu: str = ""
    instructions_per_step: Amount = 0.0
    weak: str = ""


class TransformerShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a published Transformer."""

    layers: Count
    width: Count
    mlp_width: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab: Count


class PublishedPass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole model's pass. Of tokens_per_s and ms one is given.

    seq: tokens of the prompt, or the mean length of the cache. logits: of which tokens. mlp_matrices: 3 with a gate.
    """

    name: str
    sku: str
    dtype: str
    phase: Literal["prefill", "decode"]
    batch: Count
    seq: Count
    software: str
    shape: TransformerShape
    tokens_per_s: Positive | None = None
    ms: Positive | None = None
    logits: Literal["last", "all"] = "last"
    mlp_matrices: Literal[2, 3] = 3
    url: str = ""
    weak: str = ""
    outlier: str = ""

    @property
    def seconds(self) -> float:
        """Published seconds of the pass."""
        if self.ms is not None:
            return self.ms * 1e-3
        assert self.tokens_per_s is not None, f"{self.name} has neither ms nor tokens_per_s"
        return self.batch / self.tokens_per_s

    @property
    def config(self) -> GriffinConfig:
        """The nearest shape that this package has: a gated MLP of as many weights in place of two matrices."""
        shape = self.shape
        block: BlockType = "global_attention"
        return GriffinConfig(
            vocab_size=shape.vocab, width=shape.width, mlp_width=shape.mlp_width * self.mlp_matrices // 3,
            block_types=(block,) * shape.layers, num_heads=shape.heads, num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim, lru_width=shape.width, gate_blocks=1,
        )  # fmt: skip


class PublishedSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file. note: how the source measured."""

    title: str
    url: str
    date: str
    note: str
    kernels: tuple[PublishedKernel, ...] = ()
    passes: tuple[PublishedPass, ...] = ()


@functools.cache
def sources() -> tuple[PublishedSource, ...]:
    """All that ships, by file name."""
    return tuple(
        msgspec.convert(tomllib.loads(path.read_text("utf-8")), PublishedSource)
        for path in sorted(FOLDER.glob("*.toml"))
    )
