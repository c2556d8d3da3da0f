"""The shape of a Griffin, Hawk or MQA Transformer, and what follows from it by counting. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, get_args

from griffin_kernels import errors
from griffin_kernels.ops.recurrent_block import cost as block
from griffin_kernels.ops.rg_lru_step.cost import STATE_BYTES as STATE_BYTES

BlockType = Literal["recurrent", "local_attention", "global_attention"]
"""What mixes time in a residual block: convolution and RG-LRU; attention to a window; attention to everything."""

PATTERNS: Mapping[str, tuple[BlockType, ...]] = {
    "hawk": ("recurrent",),
    "griffin": ("recurrent", "recurrent", "local_attention"),
    "mqa": ("global_attention",),
}
"""Model family -> the blocks that it repeats (arXiv 2402.19427, section 2.3)."""


@dataclass(frozen=True)
class GriffinConfig:
    """Sizes of a model.

    vocab_size: rows of the embedding, which is also the output matrix. width: D of the residual stream.
    mlp_width: the MLP's hidden width. block_types: the time mixing of each layer, in order.
    num_heads, head_dim, num_kv_heads: of attention blocks; their product with head_dim need not be the width.
    lru_width: D_RNN of recurrent blocks. gate_blocks: blocks of the RG-LRU's block-diagonal gates; divides lru_width.
    window: keys that a query of local attention sees, itself included. conv_width: taps of the temporal convolution.
    rope_base: RoPE turns the first half of each head by position * rope_base^(-2i / (head_dim / 2)).
    norm_eps: added to the mean square in RMSNorm. scale_embeddings: multiply embeddings by sqrt(width), rounded to
    bfloat16 as in the published codes. logits_softcap: c in c tanh(logits / c), or None.
    """

    vocab_size: int
    width: int
    mlp_width: int
    block_types: tuple[BlockType, ...]
    num_heads: int
    head_dim: int
    lru_width: int
    gate_blocks: int
    num_kv_heads: int = 1
    window: int = 1024
    conv_width: int = 4
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    scale_embeddings: bool = False
    logits_softcap: float | None = None

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "mlp_width", "num_heads", "head_dim", "num_kv_heads", "lru_width")
        for name in (*sizes, "gate_blocks", "window", "conv_width"):
            if getattr(self, name) < 1:
                raise errors.ArgumentError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.block_types:
            raise errors.ArgumentError("block_types is empty, expected one block type for each layer")
        if unknown := sorted(set(self.block_types) - set(get_args(BlockType))):
            raise errors.ArgumentError(f"no block type {unknown[0]!r}; there are {', '.join(get_args(BlockType))}")
        if self.lru_width % self.gate_blocks:
            raise errors.ArgumentError(f"gate_blocks is {self.gate_blocks}, which does not divide {self.lru_width=}")
        if self.num_heads % self.num_kv_heads:
            raise errors.ArgumentError(f"num_kv_heads is {self.num_kv_heads}, which does not divide {self.num_heads=}")
        if self.head_dim % 4:
            expected = "expected a multiple of 4: RoPE turns half in pairs"
            raise errors.ArgumentError(f"head_dim is {self.head_dim}, {expected}")

    @property
    def num_layers(self) -> int:
        return len(self.block_types)

    @property
    def family(self) -> str:
        """``hawk``, ``griffin`` or ``mqa``, by which block types there are."""
        kinds = set(self.block_types)
        if kinds == {"recurrent"}:
            return "hawk"
        return "mqa" if kinds == {"global_attention"} else "griffin"

    @property
    def gate_block_width(self) -> int:
        """n: channels of one gate block."""
        return self.lru_width // self.gate_blocks

    def linears(self, part: BlockType | Literal["mlp"]) -> dict[str, tuple[int, int, bool]]:
        """(inputs, outputs, whether it has a bias) of the linear layers of a kind of time mixing, or of the MLP."""
        d, r, h = self.width, self.lru_width, self.mlp_width
        if part == "mlp":
            return {"up": (d, 2 * h, True), "down": (h, d, True)}
        if part == "recurrent":
            return {"linear_x": (d, r, True), "linear_y": (d, r, True), "linear_out": (r, d, True)}
        heads, shared = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {"qkv": (d, heads + 2 * shared, False), "out": (heads, d, True)}

    def block_parameters(self, block_type: BlockType) -> dict[str, int]:
        """Parameters of one residual block by part: time mixing, MLP, the two norms."""
        mixing, mlp = (
            sum(inputs * outputs + bias * outputs for inputs, outputs, bias in self.linears(part).values())
            for part in (block_type, "mlp")
        )
        if block_type == "recurrent":
            mixing += block.weight_elements(block.make_case(1, 1, self.lru_width, self.gate_blocks, self.conv_width))
        return {"mixing": mixing, "mlp": mlp, "norms": 2 * self.width}

    def parameters(self) -> int:
        """All parameters; the embedding, which is the output matrix too, counts once."""
        blocks = sum(sum(self.block_parameters(kind).values()) for kind in self.block_types)
        return self.embedding_parameters() + blocks + self.width

    def embedding_parameters(self) -> int:
        return self.vocab_size * self.width

    def cached_keys(self, block_type: BlockType, tokens: int) -> int:
        """Keys that a block holds for one sequence after ``tokens``; 0 for a recurrent block."""
        if block_type == "recurrent":
            return 0
        return tokens if block_type == "global_attention" else min(tokens, self.window)

    def block_cache_bytes(self, block_type: BlockType, tokens: int, bytes_per_element: int) -> dict[str, int]:
        """Bytes that one block keeps for one sequence of ``tokens``: state and convolution, or keys and values."""
        if block_type == "recurrent":
            taps = (self.conv_width - 1) * self.lru_width
            return {"state": STATE_BYTES * self.lru_width, "conv": bytes_per_element * taps}
        keys = self.cached_keys(block_type, tokens)
        return {"kv": 2 * keys * self.num_kv_heads * self.head_dim * bytes_per_element}

    def cache_bytes(self, tokens: int, bytes_per_element: int) -> int:
        """Bytes of the cache of one sequence of ``tokens``: what decoding its next token reads."""
        return sum(sum(self.block_cache_bytes(kind, tokens, bytes_per_element).values()) for kind in self.block_types)


def repeat(pattern: tuple[BlockType, ...], layers: int) -> tuple[BlockType, ...]:
    """The first ``layers`` of a repeated pattern."""
    return tuple(islice(cycle(pattern), layers))
