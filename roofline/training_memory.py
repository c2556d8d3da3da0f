"""Memory of a training step: what autograd keeps of every layer, and when most is held. Needs no PyTorch.

``kept_tensors`` is the one table of what a layer keeps. tests/roofline/test_training_memory.py counts, for every kind
of layer, dtype and recomputation, the bytes that PyTorch holds after the forward pass. When a layer of the models
changes what it keeps, that test says by how much: change the layer's rows here until it passes, and the shapes of its
gradients in ``working_bytes`` with them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import STATE_BYTES, GriffinConfig
from roofline.training_work import OptimizerName, Recompute, TrainingPlan, optimizer_bytes, words_at_once
from roofline.units import gib
from roofline.work import PartKind, check, part_parameters, part_places

MOST_SEQUENCES = 2**40
"""The largest batch that is looked for."""


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that is held from the forward to the backward pass, in bytes.

    Of a token, of a sequence besides, and of the whole batch besides.
    """

    name: str
    token: int
    sequence: int = 0
    batch: int = 0

    def bytes(self, batch: int, seq: int) -> int:
        return self.token * batch * seq + self.sequence * batch + self.batch


def kept_tensors(
    config: GriffinConfig, kind: PartKind, seq: int, dtype: str, recompute: Recompute = "none"
) -> tuple[KeptTensor, ...]:
    """What one part of a kind keeps for its backward pass.

    A norm belongs to the part that it leads into, as everywhere. Tensors that several layers keep are in the embedding.
    """
    size, d = DTYPE_BYTES[dtype], config.width
    if kind == "embedding":
        attention = set(config.block_types) != {"recurrent"}
        tables = [KeptTensor("cos and sin", 2 * config.head_dim)] if attention else []
        return (KeptTensor("tokens", 8), KeptTensor("positions", 0, batch=8 * seq), *tables)
    if kind == "optimizer":
        return ()
    norm = (KeptTensor("input of the norm", size * d),)
    if kind == "head":
        return (*norm, KeptTensor("hidden states", size * d), KeptTensor("logsumexp", 4), KeptTensor("targets", 8))
    if recompute != "none":
        if kind == "mlp":
            return ()
        results = _results(config, kind, size) if recompute == "selective" else ()
        return (KeptTensor("input of the block", size * d), *results)
    normed = KeptTensor("normed input", size * d)
    if kind == "mlp":
        m = size * config.mlp_width
        return (*norm, normed, KeptTensor("gate and value", 2 * m), KeptTensor("their product", m))
    if kind == "recurrent":
        r = size * config.lru_width
        return (*norm, normed, *(KeptTensor(name, r) for name in ("x", "y", "h", "out")))
    heads, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return (
        *norm,
        normed,
        KeptTensor("q, k and v before RoPE", size * (heads + 2 * shared)),
        KeptTensor("q and k", size * (heads + shared)),
        KeptTensor("out", size * heads),
        KeptTensor("lse", 4 * config.num_heads),
    )


def _results(config: GriffinConfig, kind: PartKind, size: int) -> tuple[KeptTensor, ...]:
    """What selective checkpointing keeps: all results of the operation that mixes time."""
    if kind == "recurrent":
        r = config.lru_width
        states = KeptTensor("states", 0, sequence=(STATE_BYTES + (config.conv_width - 1) * size) * r)
        return (KeptTensor("out", size * r), KeptTensor("h", size * r), states)
    return (KeptTensor("out", size * config.num_heads * config.head_dim), KeptTensor("lse", 4 * config.num_heads))


def working_bytes(config: GriffinConfig, kind: PartKind, dtype: str) -> int:
    """Bytes of a token that a block's backward pass holds at its most beside what is kept: gradients of results."""
    shared = config.num_kv_heads * config.head_dim
    own = {"mlp": 2 * config.mlp_width, "recurrent": 2 * config.lru_width}
    attention = 2 * config.num_heads * config.head_dim + 4 * shared
    return DTYPE_BYTES[dtype] * (own.get(kind, attention) + 2 * config.width)


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step keeps in device memory, in bytes.

    weights, optimizer: always. gradients: of all parameters. kept: activations by kind of part, all layers together.
    moments: gradients, activations and working memory that are held in each moment that may be the worst.
    """

    weights: int
    gradients: int
    optimizer: int
    kept: dict[PartKind, int]
    moments: dict[str, int]

    @property
    def activations(self) -> int:
        """All that is kept from the forward pass."""
        return sum(self.kept.values())

    @property
    def worst(self) -> str:
        """When most is held."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def peak(self) -> int:
        return self.weights + self.optimizer + self.moments[self.worst]

    def sentence(self) -> str:
        """What the peak is made of, in words."""
        held = f"weights {gib(self.weights)}, gradients {gib(self.gradients)}, optimizer {gib(self.optimizer)}"
        return f"{held}, kept activations {gib(self.activations)}; most is held {self.worst}"


def memory_of_training(
    config: GriffinConfig,
    batch: int,
    seq: int,
    dtype: str,
    recompute: Recompute = "none",
    optimizer: OptimizerName | None = None,
) -> TrainingMemory:
    """What a training step holds at its peak, gradients freed between steps; arguments and errors as ``train_parts``.

    The peak is the worst of four moments: the loss' backward pass (all activations, a chunk of logits); a block's
    (activations up to it, the block computed again, gradients of what comes after); the embedding's; the optimizer's.
    """
    check("train", batch, seq, dtype)
    plan = TrainingPlan(recompute, optimizer)
    plan.check(dtype)
    size, tokens, name = DTYPE_BYTES[dtype], batch * seq, plan.optimizer_in(dtype)
    places, parameters = part_places(config), part_parameters(config)
    table = config.embedding_parameters() * size
    stream = tokens * config.width * size

    def sums(how: Recompute) -> dict[PartKind, int]:
        kinds = dict.fromkeys(kind for kind, _ in places)
        return {kind: sum(t.bytes(batch, seq) for t in kept_tensors(config, kind, seq, dtype, how)) for kind in kinds}

    each, whole = sums(recompute), sums("none")
    kept: Counter[PartKind] = Counter()
    for kind, _ in places:
        kept[kind] += each[kind]
    so_far = list(accumulate(each[kind] for kind, _ in places))
    gradients_before = list(accumulate((parameters[kind] * size for kind, _ in places), initial=0))
    after = [gradients_before[-1] - done for done in gradients_before[1:]]
    # logits and their gradient in float32, and in the narrower dtype where there is one; its product with the states
    words = words_at_once(tokens, config.vocab_size)
    chunk = words * (tokens * (8 + (size if size < 4 else 0)) + config.width * size)
    moments = {"in the loss' backward pass": so_far[-1] + chunk + table + tokens * config.width * 4}
    blocks = []
    for index, (kind, layer) in enumerate(places):
        if layer is not None:
            again = 0
            if recompute != "none":
                mixing = config.block_types[layer]
                again = whole[mixing] + (whole["mlp"] if kind == "mlp" else 0)
            working = tokens * working_bytes(config, kind, dtype)
            blocks.append(so_far[index] + again + working + after[index] + table)
    moments["in a block's backward pass"] = max(blocks)
    gradients = config.parameters() * size
    moments["in the embedding's backward pass"] = so_far[0] + stream + gradients + table
    masters = 4 * config.parameters() if name == "adamw-master" else 0
    moments["in the optimizer's step"] = gradients + masters
    return TrainingMemory(
        weights=config.parameters() * size, gradients=gradients,
        optimizer=optimizer_bytes(config, dtype, name), kept=dict(kept), moments=moments,
    )  # fmt: skip


def largest_batch(config: GriffinConfig, seq: int, dtype: str, plan: TrainingPlan, device_bytes: int) -> int | None:
    """The largest batch whose step fits at this length, 0 if not even one sequence does. None if not known."""
    if not device_bytes:
        return None

    def fits(batch: int) -> bool:
        found = memory_of_training(config, batch, seq, dtype, plan.recompute, plan.optimizer)
        return found.peak <= device_bytes

    low, high = 0, 1
    while high < MOST_SEQUENCES and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
