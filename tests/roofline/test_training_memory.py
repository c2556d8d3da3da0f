"""What a training step keeps: the table against what PyTorch holds after the forward pass; the peak by its moments."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from griffin_kernels import errors
from griffin_kernels.models import Griffin, GriffinConfig, preset
from griffin_kernels.training import recomputation
from roofline.training_memory import kept_tensors, largest_batch, memory_of_training
from roofline.training_timing import recompute_blocks
from roofline.training_work import RECOMPUTE, TrainingPlan, words_at_once
from roofline.work import part_parameters, part_places

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BATCH, SEQ = 2, 192
GROUPED = dataclasses.replace(
    preset("griffin-tiny"), num_kv_heads=2, scale_embeddings=True, logits_softcap=30.0, lru_width=128, mlp_width=160,
    block_types=("recurrent", "local_attention", "global_attention", "recurrent"),
)  # fmt: skip
CONFIGS = {"hawk": preset("hawk-tiny"), "mqa": preset("mqa-tiny"), "grouped": GROUPED}


class Storages:
    """Distinct storages that are held, in bytes, without those of parameters."""

    def __init__(self, model: torch.nn.Module):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.held: dict[int, torch.Tensor] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self.own:
            self.held[pointer] = tensor  # held, so that no address is given away twice
        return tensor

    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.held.values())


def held_after_forward(config: GriffinConfig, dtype: str, recompute: str, monkeypatch) -> int:
    """Bytes that autograd, selective checkpointing's stores and the places of a call hold for the backward pass."""
    made = []
    contexts = recomputation.create_selective_checkpoint_contexts

    def recorded(*args, **kwargs):
        made.append(contexts(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(recomputation, "create_selective_checkpoint_contexts", recorded)
    model = Griffin(config, dtype=getattr(torch, dtype))
    recompute_blocks(model, recompute)
    found = Storages(model)
    place_of = model._place

    def placed(*args, **kwargs):
        place, bound = place_of(*args, **kwargs)
        for tensor in (place.segment_pos, place.cos, place.sin):
            if tensor is not None:
                found.add(tensor)
        return place, bound

    monkeypatch.setattr(model, "_place", placed)
    tokens, targets = (torch.randint(config.vocab_size, (BATCH, SEQ)) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(found.add, lambda tensor: tensor):
        loss = model.loss(tokens, targets)
    for keeping, _ in made:
        for results in keeping.storage.values():
            for kept in results.values():
                for wrapped in torch.utils._pytree.tree_leaves(kept):
                    if hasattr(wrapped, "val") and isinstance(wrapped.val, torch.Tensor):
                        found.add(wrapped.val)
    assert loss.isfinite()
    return found.bytes()


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_kept_bytes_are_those_that_torch_holds(name, dtype, recompute, monkeypatch):
    config = CONFIGS[name]
    predicted = memory_of_training(config, BATCH, SEQ, dtype, recompute).activations
    assert predicted == pytest.approx(held_after_forward(config, dtype, recompute, monkeypatch), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["recurrent", "local_attention", "global_attention"])
def test_kept_bytes_of_one_block(kind, dtype):
    config = dataclasses.replace(GROUPED, block_types=(kind,))
    model = Griffin(config, dtype=getattr(torch, dtype))
    tokens = torch.zeros(BATCH, SEQ, dtype=torch.int64)
    place, _ = model._place(tokens, None, None, False, None)
    x = torch.randn(BATCH, SEQ, config.width, dtype=getattr(torch, dtype), requires_grad=True)
    found = Storages(model)
    with torch.autograd.graph.saved_tensors_hooks(found.add, lambda tensor: tensor):
        model.blocks[0](x, place, None)
    for shared in (place.segment_pos, place.cos, place.sin):
        if shared is not None:
            found.held.pop(shared.untyped_storage().data_ptr(), None)
    told = [tensor.bytes(BATCH, SEQ) for part in (kind, "mlp") for tensor in kept_tensors(config, part, SEQ, dtype)]
    assert sum(told) == pytest.approx(found.bytes(), rel=0.002)


def test_kept_bytes_of_a_published_size():
    # counted on the modules of griffin-400m and mqa-400m in bfloat16
    for model, kind, bytes_of_a_width in (("griffin-400m", "recurrent", 36.7), ("mqa-400m", "global_attention", 32.7)):
        config = preset(model)
        rows = [t for part in (kind, "mlp") for t in kept_tensors(config, part, 2048, "bfloat16")]
        tables = 2 * config.head_dim if kind != "recurrent" else 0  # cos and sin were counted with the block
        assert (sum(row.token for row in rows) + tables) / config.width == pytest.approx(bytes_of_a_width, abs=0.1)


@pytest.mark.unit
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_the_peak_holds_what_its_moment_says(recompute):
    config, tokens = preset("griffin-1b3"), 4 * 2048
    found = memory_of_training(config, 4, 2048, "bfloat16", recompute)
    parameters = config.parameters()
    assert (found.weights, found.gradients, found.optimizer) == (2 * parameters, 2 * parameters, 12 * parameters)
    assert found.peak == 14 * parameters + max(found.moments.values())
    table = 2 * config.embedding_parameters()
    chunk = words_at_once(tokens, config.vocab_size) * (10 * tokens + 2 * config.width)
    loss = found.activations + chunk + table + tokens * config.width * 4
    assert found.moments["in the loss' backward pass"] == loss
    assert found.moments["in the optimizer's step"] == 6 * parameters
    # gradients of all parameters, and the embedding's a second time
    last = found.moments["in the embedding's backward pass"]
    assert last == 2 * parameters + table + tokens * (config.width * 2 + 8 + 2 * config.head_dim) + 8 * 2048
    blocks = found.moments["in a block's backward pass"]
    mlp = sum(row.bytes(4, 2048) for row in kept_tensors(config, "mlp", 2048, "bfloat16"))
    assert blocks > found.activations - found.kept["head"] + table + (0 if recompute == "none" else mlp)


@pytest.mark.unit
def test_recomputation_keeps_less_and_less():
    config = preset("griffin-1b3")
    kept = [memory_of_training(config, 1, 2048, "bfloat16", how).activations for how in ("none", "selective", "blocks")]
    assert kept[0] > 5 * kept[1] > 5 * kept[2]
    inputs = config.num_layers * 2048 * config.width * 2
    assert inputs < kept[2] < 1.25 * inputs  # and the head's


@pytest.mark.unit
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_the_largest_batch_is_the_last_that_fits(recompute):
    config, plan = preset("griffin-100m"), TrainingPlan(recompute)
    most = largest_batch(config, 2048, "float32", plan, 24 * 10**9)
    assert most and most > 1
    at, above = (memory_of_training(config, b, 2048, "float32", recompute).peak for b in (most, most + 1))
    assert at <= 24 * 10**9 < above
    assert largest_batch(config, 2048, "float32", plan, 10**9) == 0
    assert largest_batch(config, 2048, "float32", plan, 0) is None


@pytest.mark.unit
def test_parts_keep_what_is_summed_up():
    config = preset("griffin-100m")
    found = memory_of_training(config, 2, 128, "float32")
    each = {kind: sum(t.bytes(2, 128) for t in kept_tensors(config, kind, 128, "float32")) for kind in found.kept}
    assert found.activations == sum(each[kind] for kind, _ in part_places(config))
    assert set(each) | {"optimizer"} >= set(part_parameters(config))
    assert kept_tensors(config, "optimizer", 128, "float32") == ()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"batch": 0}, errors.ArgumentError, "batch is 0"),
        ({"seq": 2**41}, errors.ArgumentError, "at most"),
        ({"dtype": "int8"}, errors.DtypeError, "dtype is 'int8'"),
        ({"recompute": "all"}, errors.ArgumentError, "recompute is 'all', expected none, blocks, selective"),
        ({"optimizer": "sgd"}, errors.ArgumentError, "optimizer is 'sgd', expected adamw or adamw-master"),
        ({"optimizer": "adamw-master"}, errors.ArgumentError, "float32 weights need no masters"),
    ],
)
def test_bad_input_is_one_sentence(changed, error, words):
    usual = {"batch": 1, "seq": 64, "dtype": "float32"}
    with pytest.raises(error) as caught:
        memory_of_training(preset("griffin-tiny"), **usual | changed)
    assert words in str(caught.value) and "\n" not in str(caught.value)
