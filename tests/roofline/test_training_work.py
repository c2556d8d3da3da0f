"""What a training step does: FLOPs against closed forms and torch's counter, bytes against traces of the modules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from griffin_kernels import catalog, training
from griffin_kernels.models import PRESETS, Griffin, loss, preset
from griffin_kernels.training import flops_per_step
from roofline.training_backward import StepSizes, gradient_kernels
from roofline.training_timing import TrainingStep, recompute_blocks
from roofline.training_work import (
    KEPT_OPS,
    LEAST_WORDS,
    LOGITS_AT_ONCE,
    RECOMPUTE,
    forward_kernels,
    hardware_flops,
    model_flops,
    parameter_tensors,
    train_parts,
    words_at_once,
)
from roofline.work import is_operation, part_places
from tests.roofline.test_work import Trace

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

FAMILIES = ("hawk", "griffin", "mqa")
CAPPED = dataclasses.replace(preset("griffin-tiny"), logits_softcap=30.0, scale_embeddings=True, num_kv_heads=2)
PAPER = [name for name in PRESETS if not name.startswith("recurrentgemma")]


def products(parts, stage=None):
    return sum(k.cost.tensor_flops for p in parts if stage in (None, p.stage) for k in p.kernels if k.rows)


@pytest.mark.unit
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("name", PAPER)
def test_products_are_two_four_and_two_per_parameter_and_token(name, recompute):
    # forward 2, backward 4 per parameter and token; again 2 of a block but for its last product; logits once more
    config, tokens = preset(name), 3 * 40
    d, r, f = config.width, config.lru_width, config.mlp_width
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    mixing = {"recurrent": 3 * d * r, "local_attention": d * heads, "global_attention": d * heads}
    blocks = sum(mixing[kind] + 3 * d * f for kind in config.block_types)
    last = config.num_layers * d * f
    table = config.vocab_size * d
    parts = train_parts(config, 3, 40, "bfloat16", recompute)
    assert products(parts, "forward") == 2 * tokens * (blocks + table)
    again = 0 if recompute == "none" else blocks - last
    assert products(parts, "backward") == 2 * tokens * (2 * blocks + again + 3 * table)
    assert products(parts, "optimizer") == 0


@pytest.mark.parametrize("name", [*(f"{family}-tiny" for family in FAMILIES), "griffin-1b3", "recurrentgemma-2b"])
def test_model_flops_are_those_of_the_library(name):
    parts = train_parts(preset(name), 2, 48, "float32")
    assert model_flops(parts) == flops_per_step(preset(name), 2, 48)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize(
    "config", [*(preset(f"{family}-tiny") for family in FAMILIES), CAPPED], ids=[*FAMILIES, "capped"]
)
def test_hardware_flops_are_those_that_torch_counts_in_a_step(config, recompute):
    model = Griffin(config, dtype=torch.float32)
    recompute_blocks(model, recompute)
    step = TrainingStep(model, 2, 40, masters=False)
    with FlopCounterMode(display=False) as counter:
        step()
    assert hardware_flops(train_parts(config, 2, 40, "float32", recompute)) == counter.get_total_flops()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["recurrent", "local_attention"])
def test_backward_passes_of_a_block_move_what_torch_moves(kind, dtype):
    config = dataclasses.replace(preset("griffin-tiny"), block_types=(kind,), num_kv_heads=2)
    model = Griffin(config, dtype=getattr(torch, dtype))
    place, _ = model._place(torch.zeros(2, 256, dtype=torch.int64), None, None, False, None)
    x = torch.randn(2, 256, config.width, dtype=getattr(torch, dtype), requires_grad=True)
    out = model.blocks[0](x, place, None)
    trace = Trace()
    with trace:
        out.backward(torch.ones_like(out))
    moved = sum(row[2] for row in trace.rows if not row[1].startswith("griffin_kernels."))
    parts = train_parts(config, 2, 256, dtype)
    told = [k for part in parts if part.stage == "backward" and part.layer == 0 for k in part.kernels]
    own = [k for k in told if k.case is not None or is_operation(k)]
    assert sum(k.run_bytes for k in told if k not in own) == pytest.approx(moved, rel=0.1)


@pytest.mark.unit
@pytest.mark.parametrize("name", PRESETS)
def test_every_kernel_of_the_forward_pass_has_a_gradient(name):
    sizes = StepSizes(preset(name), 1, 64, "bfloat16", gpu=True)
    for kernels in forward_kernels(sizes).values():
        for kernel in kernels:
            assert gradient_kernels(sizes, kernel) or kernel.name == "rope_tables"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["hawk-tiny", "griffin-tiny", "mqa-tiny"])
def test_parts_are_a_pass_there_and_back(name):
    config = preset(name)
    parts = train_parts(config, 1, 64, "float32", "blocks")
    there = [(p.kind, p.layer) for p in parts if p.stage == "forward"]
    back = [(p.kind, p.layer) for p in parts if p.stage == "backward"]
    assert there == part_places(config) == back[::-1]
    assert [p.kind for p in parts if p.stage == "optimizer"] == ["optimizer"]
    again = [p.recomputed for p in parts]
    assert all(
        bool(count) == (p.kind == "mlp" and p.stage == "backward") for p, count in zip(parts, again, strict=True)
    )


def test_costs_of_gradients_are_those_of_the_operations():
    parts = train_parts(preset("griffin-tiny"), 2, 64, "float32")
    cases = {k.case.op: k for part in parts for k in part.kernels if k.case is not None}
    assert set(cases) == {"recurrent_block", "recurrent_block_bwd", "local_attention", "local_attention_bwd"}
    for op in ("recurrent_block_bwd", "local_attention_bwd"):
        assert cases[op].cost == catalog.op(op).cost(cases[op].case)
        assert set(cases[op].case.dims) == set(catalog.op(op).cases[0].dims)


def test_the_loss_goes_in_chunks_as_the_library_does():
    assert (LOGITS_AT_ONCE, LEAST_WORDS) == (loss._AT_ONCE, 256)
    assert words_at_once(2**12, 256_000) == 2**13 and words_at_once(2**20, 256_000) == 256
    assert words_at_once(1, 1000) == 1000


def test_what_selective_checkpointing_keeps_is_what_the_library_saves():
    saved = {str(op).split(".")[1] for op in training.save_ops()}
    kernels = forward_kernels(StepSizes(preset("griffin-tiny"), 1, 64, "float32", gpu=False))
    kept = {k.case.op for some in kernels.values() for k in some if k.case is not None and k.name in KEPT_OPS}
    assert kept == {"recurrent_block", "local_attention"} <= saved


@pytest.mark.parametrize("name", PAPER[:6])
def test_parameters_as_tensors(name):
    assert parameter_tensors(preset(name)) == len(list(Griffin(preset(name), device="meta").parameters()))


@pytest.mark.unit
def test_traffic_of_the_optimizer():
    # float32: w, m, v and g are read, w, m, v written; 16 bits: the same in float32, beside a gradient and a weight
    count = preset("griffin-tiny").parameters()
    for dtype, optimizer, each in (("float32", "adamw", 28), ("bfloat16", "adamw", 14), ("bfloat16", None, 28)):
        clip, adamw = train_parts(preset("griffin-tiny"), 1, 64, dtype, optimizer=optimizer)[-1].kernels
        assert adamw.cost.bytes_total == each * count
        assert clip.cost.bytes_total == count * (4 if dtype == "float32" else 2)  # gradients are read once more
