"""What a training step does, kernel by kernel: forward, backward, recomputation, optimizer. Needs no PyTorch.

It is the step of ``Griffin.loss``: logits of all tokens in chunks of the vocabulary, computed again in the backward
pass (models/loss.py); gradients clipped to a norm; AdamW. Recomputation is ``training.checkpoint_blocks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES, Cost, Pass
from griffin_kernels.models.config import GriffinConfig
from roofline.training_backward import StepSizes, gradient_kernels
from roofline.work import Kernel, PartKind, check, glue, is_operation, part_kernels, part_places

Recompute = Literal["none", "blocks", "selective"]
RECOMPUTE: dict[Recompute, str] = {
    "none": "nothing is computed again but the logits",
    "blocks": "every block is computed again, from its input",
    "selective": "every block is computed again, but for what mixes time",
}
"""What the backward pass computes again, in words. ``training.checkpoint_blocks(model, ())`` is blocks,
``checkpoint_blocks(model)`` selective."""

OptimizerName = Literal["adamw", "adamw-master"]
OPTIMIZERS: dict[OptimizerName, str] = {
    "adamw": "AdamW whose two moments have the weights' dtype",
    "adamw-master": "AdamW on float32 weights and moments, beside weights and gradients of 16 bits",
}

Stage = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained. recompute: a key of RECOMPUTE. optimizer: a key of OPTIMIZERS, or None: by the dtype."""

    recompute: Recompute = "none"
    optimizer: OptimizerName | None = None

    @classmethod
    def of(cls, phase: str, recompute: str | None, optimizer: str | None) -> TrainingPlan | None:
        """From what a user said, None where nothing was: a plan for phase train, None for any other.

        ArgumentError where another phase is given one.
        """
        if phase == "train":
            return cls(cast(Recompute, recompute or "none"), cast("OptimizerName | None", optimizer))
        for name, value in (("recompute", recompute), ("optimizer", optimizer)):
            if value is not None:
                raise errors.ArgumentError(f"{name} is {value!r}, but {phase} has none: it goes with phase train")
        return None

    def optimizer_in(self, dtype: str) -> OptimizerName:
        """float32 has nothing to gain from master weights; with 16 bits, updates below a rounding are lost."""
        return self.optimizer or ("adamw" if dtype == "float32" else "adamw-master")

    def check(self, dtype: str) -> None:
        """Raise ArgumentError for what a training step in ``dtype`` cannot be."""
        if self.recompute not in RECOMPUTE:
            raise errors.ArgumentError(f"recompute is {self.recompute!r}, expected {', '.join(RECOMPUTE)}")
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise errors.ArgumentError(f"optimizer is {self.optimizer!r}, expected {' or '.join(OPTIMIZERS)}")
        if self.optimizer == "adamw-master" and dtype == "float32":
            raise errors.ArgumentError("optimizer is 'adamw-master', but float32 weights need no masters: use 'adamw'")


KEPT_OPS = frozenset({"recurrent_block", "attention"})
"""Kernels whose results selective checkpointing keeps: those that ``training.save_ops`` names."""

LOGITS_AT_ONCE, LEAST_WORDS = 2**25, 256
"""Logits that the loss holds at once, and words of a chunk at the least: models/loss.py, which a test compares."""

ADAMW_FLOPS, ADAMW_SPECIALS = 13, 2
"""Of an element: decay 1, moments 3 and 4, denominator 2, update 3; a square root and a division."""


@dataclass(frozen=True)
class TrainPart:
    """A stretch of a step that is timed as one. recomputed: of ``kernels``, the first so many are computed again."""

    stage: Stage
    kind: PartKind
    layer: int | None
    kernels: tuple[Kernel, ...]
    recomputed: int = 0


def train_parts(
    config: GriffinConfig,
    batch: int,
    seq: int,
    dtype: str,
    recompute: Recompute = "none",
    optimizer: OptimizerName | None = None,
    *,
    gpu: bool = False,
) -> tuple[TrainPart, ...]:
    """The parts of one training step, in order: forward from embedding to loss, backward to the embedding, optimizer.

    ``batch`` sequences of ``seq`` tokens, each one document, in ``dtype`` throughout. recompute: a key of RECOMPUTE;
    what is computed again belongs to the backward part of the block's MLP, which needs it first. optimizer: a key of
    OPTIMIZERS; by the dtype if None. gpu: as ``work.part_kernels``.

    Raises ArgumentError or DtypeError as ``work.part_kernels``, and for an unknown recompute or optimizer.
    """
    plan = TrainingPlan(recompute, optimizer)
    plan.check(dtype)
    check("train", batch, seq, dtype)
    sizes = StepSizes(config, batch, seq, dtype, gpu)
    forward = forward_kernels(sizes)
    backward = {
        kind: tuple(k for kernel in reversed(kernels) for k in gradient_kernels(sizes, kernel))
        for kind, kernels in forward.items()
    }
    loss, loss_gradient = tuple(_loss(sizes)), tuple(_loss_gradient(sizes))
    forward["head"] += loss
    backward["head"] = loss_gradient + backward["head"]
    places = part_places(config)
    parts = [TrainPart("forward", kind, layer, forward[kind]) for kind, layer in places]
    mixing = dict(enumerate(config.block_types))
    for kind, layer in reversed(places):
        again: tuple[Kernel, ...] = ()
        if kind == "mlp" and layer is not None:
            again = tuple(_again(forward[mixing[layer]], forward["mlp"], recompute))
        parts.append(TrainPart("backward", kind, layer, again + backward[kind], len(again)))
    update = tuple(_update(sizes, plan.optimizer_in(dtype)))
    return (*parts, TrainPart("optimizer", "optimizer", None, update))


def forward_kernels(sizes: StepSizes) -> dict[PartKind, tuple[Kernel, ...]]:
    """Those of a prefill, without a cache, with what the gradients want; the head ends with its norm."""
    config = sizes.config
    found = part_kernels(config, "prefill", sizes.batch, sizes.seq, sizes.dtype, gpu=sizes.gpu)
    kernels: dict[PartKind, tuple[Kernel, ...]] = {
        kind: tuple(_recorded(sizes, kernel) for kernel in some if kernel.name != "cache")
        for kind, some in found.items()
    }
    norm = next(kernel for kernel in found[config.block_types[0]] if kernel.name == "norm")  # of all tokens
    return kernels | {"head": (norm,)}


def _recorded(sizes: StepSizes, kernel: Kernel) -> Kernel:
    """With the states h, or lse, that the gradient reads."""
    if kernel.name == "recurrent_block":
        written = kernel.cost.bytes_written + sizes.tokens * sizes.config.lru_width * sizes.size
    elif kernel.name == "attention":
        assert kernel.case is not None
        dims = kernel.case.dims
        written = kernel.cost.bytes_written + 4 * dims["B"] * dims["T"] * dims["Hq"]
    else:
        return kernel
    return replace(kernel, cost=replace(kernel.cost, bytes_written=written), cache_bytes=0)


def _again(mixing: Sequence[Kernel], mlp: Sequence[Kernel], recompute: Recompute) -> Iterable[Kernel]:
    """A block's kernels up to the last tensor that its gradient reads, which is the input of the MLP's last product:
    PyTorch stops there."""
    if recompute == "none":
        return
    for kernel in (*mixing, *mlp):
        if kernel.name == "down":
            return
        if recompute == "blocks" or kernel.name not in KEPT_OPS:
            yield kernel


def words_at_once(tokens: int, vocab_size: int) -> int:
    """Rows of the output matrix that the loss multiplies with at a time."""
    return min(vocab_size, max(LEAST_WORDS, LOGITS_AT_ONCE // tokens))


def _logits(sizes: StepSizes) -> Kernel:
    """Logits of all tokens, which a fused kernel would not write."""
    config, tokens, size = sizes.config, sizes.tokens, sizes.size
    matrix = config.embedding_parameters() * size
    cost = Cost(sizes.stream * size + matrix, 0, tensor_flops=2 * sizes.stream * config.vocab_size)
    return Kernel("logits", cost, parameter_bytes=matrix, rows=tokens)


def _chunked(sizes: StepSizes, *run: Pass) -> tuple[Pass, ...]:
    """Passes over all logits as passes over those of a chunk."""
    vocab = sizes.config.vocab_size
    chunks = -(-vocab // words_at_once(sizes.tokens, vocab))

    def cut(cost: Cost) -> Cost:
        read, written, vector, special = (
            -(-amount // chunks)
            for amount in (cost.bytes_read, cost.bytes_written, cost.vector_flops, cost.special_ops)
        )
        return Cost(read, written, vector_flops=vector, special_ops=special)

    return tuple(Pass(cut(step.cost), step.count * chunks) for step in run)


def _widened(sizes: StepSizes, logits: int) -> list[Pass]:
    """Logits as the loss takes them: in float32, with the softcap."""
    cast = [Pass.elementwise(logits, sizes.size, 4)] if sizes.size < 4 else []
    if sizes.config.logits_softcap is None:
        return cast
    return [*cast, Pass.elementwise(logits, 4, 4, vector=1, count=2), Pass.elementwise(logits, 4, 4, special=1)]


def _loss(sizes: StepSizes) -> Iterable[Kernel]:
    """Products with chunks of the output matrix, and the logarithm of the sum of their exponentials."""
    logits = sizes.tokens * sizes.config.vocab_size
    yield _logits(sizes)
    steps = [
        *_widened(sizes, logits),
        Pass.elementwise(logits, 4, 0, vector=1, count=2),  # maximum, sum
        Pass.elementwise(logits, 4, 4, vector=1),
        Pass.elementwise(logits, 4, 4, special=1),
    ]
    yield glue("logsumexp", *_chunked(sizes, *steps))


def _loss_gradient(sizes: StepSizes) -> Iterable[Kernel]:
    """Logits again, what is wrong with them, and its products with the output matrix and the hidden states."""
    config, size, stream = sizes.config, sizes.size, sizes.stream
    logits, matrix = sizes.tokens * config.vocab_size, config.embedding_parameters() * size
    yield _logits(sizes)
    steps = [
        *_widened(sizes, logits),
        Pass.elementwise(logits, 4, 4, vector=1, count=2),  # less lse, times what reaches the loss
        Pass.elementwise(logits, 4, 4, special=1),
    ]
    if config.logits_softcap is not None:
        steps += [Pass.elementwise(logits, 4, 4, vector=1, count=4), Pass.elementwise(logits, 8, 4, vector=1)]
    if size < 4:
        steps.append(Pass.elementwise(logits, 4, size))
    yield glue("softmax", *_chunked(sizes, *steps))
    flops = 2 * stream * config.vocab_size
    yield Kernel("logits dX", Cost(matrix, stream * size, flops), parameter_bytes=matrix, rows=sizes.tokens)
    yield Kernel("logits dW", Cost(stream * size, matrix, flops), rows=sizes.tokens)
    chunks = -(-config.vocab_size // words_at_once(sizes.tokens, config.vocab_size))
    yield glue(
        "sums",
        Pass.elementwise(stream, 4 + size, 4, vector=1, count=chunks),
        *_chunked(sizes, Pass.elementwise(config.embedding_parameters(), size, size)),
    )


def parameter_tensors(config: GriffinConfig) -> int:
    """Parameters as tensors: an optimizer that goes through them one by one calls so many kernels."""
    own = {"recurrent": 6 + 2 + 5, "local_attention": 3, "global_attention": 3}  # linear layers, convolution, RG-LRU
    return 2 + sum(own[kind] + 4 + 2 for kind in config.block_types)


def _update(sizes: StepSizes, optimizer: OptimizerName) -> Iterable[Kernel]:
    """The norm of all gradients, which reads them once more, their scaling, and AdamW in one kernel a tensor."""
    count, size = sizes.config.parameters(), sizes.size
    tensors = 1 if sizes.gpu else parameter_tensors(sizes.config)
    each = count // tensors

    def step(read: int, written: int, vector: int = 0, special: int = 0) -> Pass:
        return Pass.elementwise(each, read, written, vector, special, count=tensors)

    norm = Cost(count * size, 0, vector_flops=3 * count)
    yield Kernel("clip", norm, (step(size, 0, vector=2), step(size, size, vector=1)))
    work = {"vector": ADAMW_FLOPS, "special": ADAMW_SPECIALS}
    if optimizer == "adamw":
        least, run = Cost(4 * size * count, 3 * size * count), [step(4 * size, 3 * size, **work)]
    else:
        least = Cost((12 + size) * count, (12 + size) * count)
        run = [step(size, 4), step(16, 12, **work), step(4, size)]
    least = replace(least, vector_flops=ADAMW_FLOPS * count, special_ops=ADAMW_SPECIALS * count)
    yield Kernel("adamw", least, tuple(run))


def counted_flops(kernels: Iterable[Kernel]) -> int:
    """FLOPs as ``torch.utils.flop_counter`` counts them: matrix products, and the operations of this package whole."""
    return sum(
        kernel.cost.tensor_flops + (0 if kernel.rows else kernel.cost.vector_flops)
        for kernel in kernels
        if kernel.rows or kernel.case is not None or is_operation(kernel)
    )


def model_flops(parts: Iterable[TrainPart]) -> int:
    """Three forward passes (arXiv 2204.02311, appendix B): ``training.flops_per_step``, the numerator of MFU."""
    return 3 * counted_flops(k for part in parts if part.stage == "forward" for k in part.kernels)


def hardware_flops(parts: Iterable[TrainPart]) -> int:
    """All that is computed, blocks and logits that are computed again included: the numerator of HFU."""
    return counted_flops(k for part in parts for k in part.kernels)


def optimizer_bytes(config: GriffinConfig, dtype: str, optimizer: OptimizerName) -> int:
    """What the optimizer keeps between steps, master weights included."""
    each = 2 * DTYPE_BYTES[dtype] if optimizer == "adamw" else 12
    return each * config.parameters()
