"""What a forward pass does, kernel by kernel: operations, bytes, and how eager PyTorch runs it. Needs no PyTorch.

Two costs per kernel. ``cost`` is the least it can take: a matrix product or tuned operation reads its inputs once and
writes its outputs once, and *glue* (norms, activations, residual sums, rotary embedding) moves nothing, because a fused
kernel would keep it in registers. ``passes`` are the kernels that run today, each through memory.

Counted: 2 operations per multiply-add; float32 elementwise operations as vector work; exp, tanh, rsqrt and the like as
special operations. tests/roofline/test_work.py holds these counts against traces of the modules themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES, BenchCase, Cost, Pass
from griffin_kernels.models.config import STATE_BYTES, BlockType, GriffinConfig
from griffin_kernels.ops.gated_gelu import cost as gate
from griffin_kernels.ops.gated_gelu import unfused as gate_unfused
from griffin_kernels.ops.geglu import cost as geglu
from griffin_kernels.ops.local_attention import cost as attention
from griffin_kernels.ops.local_attention import unfused as attention_unfused
from griffin_kernels.ops.local_attention_step import cost as attention_step
from griffin_kernels.ops.local_attention_step import unfused as step_unfused
from griffin_kernels.ops.recurrent_block import cost as block
from griffin_kernels.ops.recurrent_block import unfused as block_unfused
from griffin_kernels.ops.recurrent_block_step import cost as block_step
from griffin_kernels.ops.recurrent_block_step import unfused as block_step_unfused
from griffin_kernels.ops.rms_norm import cost as norm
from griffin_kernels.ops.rms_norm import unfused as norm_unfused

Phase = Literal["prefill", "decode", "train"]
INFERENCE: tuple[Phase, ...] = ("prefill", "decode")
PHASES: tuple[Phase, ...] = (*INFERENCE, "train")
"""train: one step, forward, backward and optimizer; see ``training_work``."""

LENGTH_IS: dict[Phase, str] = {"prefill": "of", "decode": "after", "train": "on"}
"""What the length of a pass counts: the tokens that it is of, or those that it comes after."""


def new_tokens(phase: Phase, seq: int) -> int:
    """Tokens that a pass computes for each sequence."""
    return 1 if phase == "decode" else seq


def tokens_after(phase: Phase, seq: int) -> int:
    """Tokens that each sequence has in the cache after the pass."""
    return seq + 1 if phase == "decode" else seq


PartKind = Literal["embedding", "recurrent", "local_attention", "global_attention", "mlp", "head", "optimizer"]


@dataclass(frozen=True)
class Kernel:
    """One step of a pass.

    cost: the least it can take. passes: what runs where nothing better is known; empty: one launch of ``cost``.
    parameter_bytes, cache_bytes: the shares of cost's bytes that are weights, and states or keys and values.
    rows: of a matrix product; 0 for anything else. case: of a tuned operation.
    products: dtype of a matrix product that is not done in the pass's; empty: in that.
    """

    name: str
    cost: Cost
    passes: tuple[Pass, ...] = ()
    parameter_bytes: int = 0
    cache_bytes: int = 0
    rows: int = 0
    case: BenchCase | None = None
    products: str = ""

    @property
    def launches(self) -> int:
        return sum(p.count for p in self.passes) or 1

    @property
    def run_bytes(self) -> int:
        """Bytes that the composition moves."""
        return sum(p.count * p.cost.bytes_total for p in self.passes) or self.cost.bytes_total


def part_places(config: GriffinConfig) -> list[tuple[PartKind, int | None]]:
    """Parts of a pass in order, stretches that are timed as one: kind, and index of the block; None outside blocks.

    Norm and residual sum belong to the part that they lead into and follow.
    """
    blocks = [(kind, layer) for layer, mixing in enumerate(config.block_types) for kind in (mixing, "mlp")]
    return [("embedding", None), *blocks, ("head", None)]  # type: ignore[list-item]


def part_parameters(config: GriffinConfig) -> dict[PartKind, int]:
    """Parameters of one part of each kind."""
    counts = {kind: config.block_parameters(kind) for kind in dict.fromkeys(config.block_types)}
    mixing: dict[PartKind, int] = {kind: count["mixing"] + config.width for kind, count in counts.items()}
    mlp = next(iter(counts.values()))["mlp"] + config.width
    return {"embedding": config.embedding_parameters(), **mixing, "mlp": mlp, "head": config.width}


def part_kernels(
    config: GriffinConfig,
    phase: Phase,
    batch: int,
    seq: int,
    dtype: str,
    *,
    gpu: bool = False,
    composed: bool = False,
) -> dict[PartKind, tuple[Kernel, ...]]:
    """The kernels of each kind of part in one forward pass. gpu: PyTorch composes a few steps differently there.

    composed: norms, sums and the gate of the MLP are PyTorch's own kernels, as in other software.

    prefill: ``batch`` sequences of ``seq`` tokens into an empty cache, logits of the last token only, as serving needs.
    decode: one token for each of ``batch`` sequences that have ``seq`` tokens in the cache already.
    Raises ArgumentError for a batch or length below 1 or above LARGEST, an unknown phase or dtype.
    """
    check(phase, batch, seq, dtype)
    if phase not in INFERENCE:
        raise errors.ArgumentError(f"phase is {phase!r}, expected {' or '.join(INFERENCE)}: its parts are train_parts'")
    shape = _Shape(config, phase, batch, seq, dtype, gpu, composed)
    mixing: dict[PartKind, tuple[Kernel, ...]] = {
        kind: tuple(_recurrent(shape) if kind == "recurrent" else _attention(shape, kind))
        for kind in dict.fromkeys(config.block_types)
    }
    return {"embedding": tuple(_embedding(shape)), **mixing, "mlp": tuple(_mlp(shape)), "head": tuple(_head(shape))}


LARGEST = 2**40
"""The largest batch and length that are analysed; times of larger ones would overflow what they are kept in."""


def check(phase: str, batch: int, seq: int, dtype: str) -> None:
    """Raise ArgumentError or DtypeError for what cannot be a forward pass."""
    if phase not in PHASES:
        raise errors.ArgumentError(f"phase is {phase!r}, expected {', '.join(PHASES[:-1])} or {PHASES[-1]}")
    for name, value in (("batch", batch), ("seq", seq)):
        if value < 1:
            raise errors.ArgumentError(f"{name} is {value}, expected at least 1")
        if value > LARGEST:
            raise errors.ArgumentError(f"{name} is {value}, expected at most {LARGEST} (2^40)")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise errors.DtypeError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")


@dataclass(frozen=True)
class _Shape:
    config: GriffinConfig
    phase: Phase
    batch: int
    seq: int
    dtype: str
    gpu: bool
    composed: bool

    @property
    def time(self) -> int:
        return new_tokens(self.phase, self.seq)

    @property
    def tokens(self) -> int:
        return self.batch * self.time

    @property
    def size(self) -> int:
        return DTYPE_BYTES[self.dtype]


def _matmul(shape: _Shape, name: str, rows: int, inner: int, columns: int, bias: bool) -> Kernel:
    """[rows, inner] @ [inner, columns] + bias."""
    weights = (inner * columns + (columns if bias else 0)) * shape.size
    read, written = rows * inner * shape.size + weights, rows * columns * shape.size
    cost = Cost(read, written, tensor_flops=2 * rows * inner * columns)
    return Kernel(name, cost, parameter_bytes=weights, rows=rows)


def glue(name: str, *run: Pass, parameter_bytes: int = 0) -> Kernel:
    """Elementwise steps: their arithmetic is needed, their traffic is not."""
    flops, specials = (sum(p.count * getattr(p.cost, kind) for p in run) for kind in ("vector_flops", "special_ops"))
    least = Cost(parameter_bytes, 0, vector_flops=flops, special_ops=specials)
    return Kernel(name, least, run, parameter_bytes=parameter_bytes)


OPERATIONS = frozenset({"norm", "add_norm", "gelu_gate"})
"""Glue that runs as operations of this package, in one kernel each."""


def is_operation(kernel: Kernel) -> bool:
    """Whether glue is an operation of this package; of few numbers on a CPU, the gate of an MLP is not."""
    return kernel.name in OPERATIONS and kernel.launches == 1


def _norm(shape: _Shape, tokens: int, *, added: bool = False) -> Kernel:
    """RMSNorm. added: of a sum with the residual stream, which it makes as well."""
    width = shape.config.width
    passes: Sequence[Pass]
    if shape.composed:
        passes = _composed_norm(shape, tokens)
    else:
        passes = [Pass(norm.cost(norm.make_case(1, tokens, width, shape.dtype, ("residual",) if added else ())))]
    return glue("add_norm" if added else "norm", *passes, parameter_bytes=width * shape.size)


def _composed_norm(shape: _Shape, tokens: int) -> Sequence[Pass]:
    """As PyTorch's kernels: one between the casts on a GPU, six on a CPU."""
    elements, size, width = tokens * shape.config.width, shape.size, shape.config.width
    if not shape.gpu:
        return norm_unfused.passes(norm.make_case(1, tokens, width, shape.dtype))

    def cast(count: int, read: int, written: int) -> list[Pass]:
        return [Pass.elementwise(count, read, written)] if read != written else []

    # square, mean and two products an element; eps and rsqrt a token
    whole = Pass(Cost(4 * elements, 4 * elements, vector_flops=4 * elements + tokens, special_ops=tokens))
    weight = [*cast(width, size, 4), Pass.elementwise(width, 4, 4, vector=1)]
    return [*weight, *cast(elements, size, 4), whole, *cast(elements, 4, size)]


def _two_to_one(shape: _Shape, elements: int) -> Pass:
    """A sum or product."""
    return Pass.elementwise(elements, 2 * shape.size, shape.size, vector=1)


def _residual(shape: _Shape) -> Kernel:
    return glue("residual", _two_to_one(shape, shape.tokens * shape.config.width))


def _embedding(shape: _Shape) -> Iterable[Kernel]:
    elements = shape.tokens * shape.config.width
    gathered = elements * shape.size
    cost = Cost(gathered + 8 * shape.tokens, gathered)
    yield Kernel("embedding", cost, parameter_bytes=gathered)
    if shape.config.scale_embeddings:
        yield glue("scale", Pass.elementwise(elements, shape.size, shape.size, vector=1))
    if set(shape.config.block_types) != {"recurrent"}:
        # angles, cosines and sines of a quarter of a head, once for all layers
        quarter = shape.config.head_dim // 4
        angles = shape.tokens * quarter
        passes = [
            Pass.elementwise(shape.time, 0, 8),
            Pass.elementwise(quarter, 4, 4, count=4),
            Pass.elementwise(angles, 4, 4, vector=1),
            Pass.elementwise(angles, 4, 4, special=1, count=2),
        ]
        yield glue("rope_tables", *passes)


def _head(shape: _Shape) -> Iterable[Kernel]:
    """The last token of each sequence: the norm, then logits."""
    config, rows = shape.config, shape.batch
    yield _norm(shape, rows)
    yield _matmul(shape, "logits", rows, config.width, config.vocab_size, bias=False)
    if config.logits_softcap is not None:
        elements, size = rows * config.vocab_size, shape.size
        scale, tanh = (Pass.elementwise(elements, size, size, **work) for work in ({"vector": 1}, {"special": 1}))
        yield glue("softcap", scale, tanh, scale)


def _mlp(shape: _Shape) -> Iterable[Kernel]:
    config, tokens = shape.config, shape.tokens
    hidden, linears = tokens * config.mlp_width, config.linears("mlp")
    if shape.composed:
        yield _residual(shape)
    yield _norm(shape, tokens, added=not shape.composed)
    yield _matmul(shape, "up", tokens, *linears["up"])
    yield _gelu_gate(shape, hidden)
    yield _matmul(shape, "down", tokens, *linears["down"])
    yield _residual(shape)


def _gelu_gate(shape: _Shape, hidden: int) -> Kernel:
    """One operation; of few numbers on a CPU, gelu and a product by PyTorch."""
    case = gate.make_case(1, 1, hidden, shape.dtype)
    if not shape.composed and (shape.gpu or 2 * hidden >= geglu.LEAST_GATED):
        return glue("gelu_gate", Pass(geglu.cost(case)))
    return glue("gelu_gate", *gate_unfused.passes(case))


def _recurrent(shape: _Shape) -> Iterable[Kernel]:
    config, tokens = shape.config, shape.tokens
    r, linears = config.lru_width, config.linears("recurrent")
    yield _norm(shape, tokens)
    yield _matmul(shape, "linear_y", tokens, *linears["linear_y"])
    yield _matmul(shape, "linear_x", tokens, *linears["linear_x"])
    state, taps = shape.batch * r * STATE_BYTES, (config.conv_width - 1) * shape.batch * r * shape.size
    if shape.phase == "decode":
        case = block_step.make_case(
            shape.batch, r, config.gate_blocks, config.conv_width, shape.dtype, data=("positions",)
        )
        cost, passes, cached = block_step.cost(case), block_step_unfused.passes(case), 2 * (state + taps)
    else:
        sizes = (shape.batch, shape.time, r, config.gate_blocks, config.conv_width)
        case = block.make_case(*sizes, shape.dtype, flags=("segmented",))
        cost, passes, cached = block.cost(case), block_unfused.passes(case), state + taps
        # the contract's cost leaves out the states, which are written for the tokens that follow
        cost = replace(cost, bytes_written=cost.bytes_written + cached)
    weights = block.weight_elements(case) * shape.size
    yield Kernel("recurrent_block", cost, passes, parameter_bytes=weights, cache_bytes=cached, case=case)
    if shape.phase == "prefill":
        yield glue("cache", Pass(Cost(state, state)), Pass(Cost(taps, taps)))
    yield _matmul(shape, "linear_out", tokens, *linears["linear_out"])


def _attention(shape: _Shape, kind: BlockType) -> Iterable[Kernel]:
    config, tokens, size = shape.config, shape.tokens, shape.size
    shared, linears = config.num_kv_heads * config.head_dim, config.linears(kind)
    yield _norm(shape, tokens)
    yield _matmul(shape, "qkv", tokens, *linears["qkv"])
    yield _rope(shape)
    kept = config.cached_keys(kind, tokens_after(shape.phase, shape.seq))
    written = 2 * shape.batch * min(kept, shape.time) * shared * size
    if shape.phase == "prefill":
        window = config.window if kind == "local_attention" else shape.seq
        case = attention.make_case(
            shape.batch, shape.seq, config.num_heads, config.num_kv_heads, config.head_dim,
            min(window, shape.seq), shape.dtype,
        )  # fmt: skip
        yield Kernel("attention", attention.cost(case), attention_unfused.passes(case), case=case)
        # indices of the slots that new keys of each row go to, then keys and values
        count = min(kept, shape.time)
        keys, rows = Pass.elementwise(count, 0, 8), Pass.elementwise(shape.batch, 0, 8)
        slots = Pass.elementwise(shape.batch * count, 8, 8, count=2)
        passes = (keys, rows, slots, Pass(Cost(written // 2, written // 2), 2))
        yield Kernel("cache", Cost(written, written), passes, cache_bytes=written)
    else:
        case = attention_step.make_case(
            shape.batch, kept, config.num_heads, config.num_kv_heads, config.head_dim, shape.dtype
        )
        cost = attention_step.cost(case)
        cached = 2 * shape.batch * kept * shared * size
        yield Kernel("attention", cost, step_unfused.passes(case), cache_bytes=cached + written, case=case)
    yield _matmul(shape, "output", tokens, *linears["out"])


def _rope(shape: _Shape) -> Kernel:
    """Half of each head of q and k turned in pairs: four products, two sums, two concatenations."""
    config, size = shape.config, shape.size
    turned = shape.tokens * (config.num_heads + config.num_kv_heads) * config.head_dim // 2
    passes = [
        Pass.elementwise(turned // 2, size, 4, vector=1, count=4),
        Pass.elementwise(turned // 2, 8, 4, vector=1, count=2),
        Pass.elementwise(turned, 4, 4),
        *([Pass.elementwise(turned, 4, size)] if size < 4 else []),
        Pass.elementwise(2 * turned, size, size),
    ]
    return glue("rope", *passes)
