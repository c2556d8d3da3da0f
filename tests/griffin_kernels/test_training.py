"""The training kit: weight decay, initialisation, packing, recomputation, counting; resuming to the bit."""

from __future__ import annotations

import copy
import io
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from griffin_kernels import catalog, errors, nn, training
from griffin_kernels.models import Griffin, preset
from griffin_kernels.ops.gated_gelu import cost as gate_cost
from griffin_kernels.ops.recurrent_block import cost as block_cost
from griffin_kernels.ops.rms_norm import cost as norm_cost
from griffin_kernels.training import recomputation

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NEVER = {
    "griffin": ("a_param", "bias", "norm.weight", "conv.weight"),
    "transformers": ("recurrent_param", "bias", "norm.weight", "conv_1d.weight"),
}


def griffin(name="griffin-tiny", dtype=torch.float64, **sizes):
    torch.manual_seed(0)
    return Griffin(replace(preset(name), **sizes), dtype=dtype)


def recurrent_gemma():
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=96,
        attention_window_size=16,
    )
    return RecurrentGemmaForCausalLM(config)


def accelerated():
    from griffin_kernels.integrations.transformers import accelerate

    return accelerate(recurrent_gemma())


MODELS = {"griffin": griffin, "transformers": recurrent_gemma, "accelerated": accelerated}
NEVER["accelerated"] = NEVER["transformers"]


def decays(model, **options):
    """Names of the parameters that decay, and of those that do not."""
    groups = training.parameter_groups(model, weight_decay=0.1, **options)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    ids = [{id(parameter) for parameter in group["params"]} for group in groups]
    names = [{name for name, p in model.named_parameters() if id(p) in group} for group in ids]
    assert sum(len(group["params"]) for group in groups) == len(names[0]) + len(names[1])  # each once
    return names


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("embeddings", "gates"), [*itertools.product([False, True], repeat=2)])
def test_what_decays(kind, embeddings, gates):
    model = MODELS[kind]()
    yes, no = decays(model, decay_embeddings=embeddings, decay_gates=gates)
    assert yes | no == {name for name, _ in model.named_parameters()}
    for name in yes | no:
        expected = not name.endswith(NEVER[kind])
        expected &= embeddings or "embed" not in name
        expected &= gates or "gate_weight" not in name
        assert (name in yes) == expected, name
    assert any("gate_bias" in name for name in no) and any("linear_out.weight" in name for name in yes)
    torch.optim.AdamW(training.parameter_groups(model, weight_decay=0.1), lr=1e-3)


def test_frozen_parameters_and_wrappers_change_nothing_else():
    model = griffin()
    model.embedding.requires_grad_(False)
    model.blocks[0].mixing.linear_x.weight.requires_grad_(False)
    yes, no = decays(model)
    assert "embedding.weight" not in yes | no and "blocks.0.mixing.linear_x.weight" not in yes
    training.checkpoint_blocks(model)
    for part in model.modules():
        part.__class__ = type(f"FSDP{type(part).__name__}", (type(part),), {})  # as fully_shard does
    after = [{name.replace("_checkpoint_wrapped_module.", "") for name in names} for names in decays(model)]
    assert after == [yes, no]


def test_other_modules_by_their_types():
    linear = torch.nn.Linear
    model = torch.nn.ModuleDict(
        {
            "lru": nn.RGLRU(8, 2),
            "norm": torch.nn.LayerNorm(8),
            "depthwise": torch.nn.Conv1d(8, 8, 4, groups=8),
            "full": torch.nn.Conv1d(8, 8, 4),
            "up": linear(8, 9),
            "tied": linear(8, 9, bias=False),
        }
    )
    model["tied"].weight = model["up"].weight
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(8)))
    assert decays(model)[0] == {"full.weight", "up.weight"}
    assert decays(model, decay_gates=True)[0] - decays(model)[0] == {
        "lru.input_gate_weight",
        "lru.recurrence_gate_weight",
    }


def test_refusals_of_groups():
    for wrong in (-0.1, float("nan")):
        with pytest.raises(errors.ArgumentError, match="weight_decay is"):
            training.parameter_groups(griffin(), weight_decay=wrong)
    with pytest.raises(errors.ArgumentError, match="no parameter requires a gradient"):
        training.parameter_groups(griffin().requires_grad_(False), weight_decay=0.1)


def test_float32_modules():
    model = griffin(dtype=torch.bfloat16)
    found = training.float32_modules(model)
    assert found == [model.blocks[index].mixing.rg_lru for index in (0, 1)]


def variance_is(weight, variance):
    """Within five standard errors."""
    assert abs(weight.float().var().item() / variance - 1) < 5 * (2 / weight.numel()) ** 0.5


@pytest.mark.parametrize("kind", ["transformers", "accelerated"])
def test_initialise_draws_transformers_model_as_deepmind_does(kind):
    model = MODELS[kind]()
    block, attention = model.model.layers[0], model.model.layers[2].temporal_block
    recurrent = block.temporal_block

    def drawn():
        return {
            block.mlp_block.up_proj.weight: 1 / 64,
            block.mlp_block.down_proj.weight: 2 / 3 / 192,
            recurrent.linear_x.weight: 1 / 64,
            recurrent.linear_out.weight: 2 / 3 / 96,
            recurrent.rg_lru.input_gate_weight: 1 / 24,
            recurrent.rg_lru.recurrent_gate_weight: 1 / 24,
            recurrent.conv_1d.weight: 0.01 / 4,
            attention.q_proj.weight: 1 / 64,
            attention.o_proj.weight: 2 / 3 / 64,
            model.lm_head.weight: 1 / 64,
        }

    off = [weight for weight, variance in drawn().items() if abs(weight.var() / variance - 1) > 0.3]
    assert len(off) >= 4  # theirs differs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    training.initialise(model)
    for weight, variance in drawn().items():
        variance_is(weight, variance)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            assert not parameter.any(), name
    square = torch.exp(-2 * torch.nn.functional.softplus(recurrent.rg_lru.recurrent_param))
    assert 0.81 - 1e-6 <= square.min() and square.max() <= 0.999**2 + 1e-6 and square.std() > 0.03


def test_initialise_draws_ours_as_its_constructor_does():
    model, other = griffin(), griffin()
    torch.manual_seed(5)
    model.reset_parameters()
    torch.manual_seed(5)
    training.initialise(other)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_initialise_of_networks_of_ones_own():
    network = torch.nn.Sequential(nn.RecurrentBlock(64, heads=2), torch.nn.LayerNorm(64), nn.GatedMLP(64, 64))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    training.initialise(network, layers=8)
    variance_is(network[0].linear_out.weight, 2 / 8 / 64)
    variance_is(network[2].up.weight, 1 / 64)
    assert bool((network[1].weight == 1).all()) and not network[1].bias.any()
    with pytest.raises(errors.ArgumentError, match="layers is None"):
        training.initialise(network)
    with pytest.raises(errors.ArgumentError, match="no RG-LRU"):
        training.initialise(torch.nn.Linear(3, 3), layers=1)
    network.append(torch.nn.Bilinear(2, 2, 2))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(errors.ArgumentError, match="nothing is known of how 3, a Bilinear, begins"):
        training.initialise(network, layers=8)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def random_documents(seed, count=40):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 30, (count,), generator=generator).tolist()
    return [torch.randint(1, 256, (length,), generator=generator).tolist() for length in lengths]


def pieces(batches):
    """(tokens, targets) of every run of positions from 0 on, paddings left out."""
    for batch in batches:
        for tokens, targets, positions in zip(*batch, strict=True):
            begins = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
            for begin, end in itertools.pairwise(begins):
                assert positions[begin:end].tolist() == list(range(end - begin))
                if tokens[begin:end].any():  # tokens of these documents are above 0
                    yield tokens[begin:end].tolist(), targets[begin:end].tolist()


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(("length", "batch"), [(1, 1), (7, 2), (32, 3), (1000, 1)])
def test_packing_keeps_all_tokens_and_leaks_no_target(split, length, batch):
    documents = random_documents(0)
    batches = list(training.pack(documents, length, batch, split=split))
    assert {tuple(tensor.shape) for found in batches for tensor in found} == {(batch, length)}
    assert {tensor.dtype for found in batches for tensor in found} == {torch.int64}
    parts = pieces(batches)
    for document in filter(None, documents):
        tokens, targets, count = [], [], 0
        while len(tokens) < len(document):
            mine, theirs = next(parts)
            tokens, targets, count = tokens + mine, targets + theirs, count + 1
        assert tokens == document and targets == [*document[1:], -100]
        if not split:
            assert count == -(-len(document) // length)  # no more cuts than it takes
    assert next(parts, None) is None
    if split:  # nothing is wasted but for the end
        tokens = sum(map(len, documents))
        assert len(batches) == -(-tokens // (length * batch))


def test_packing_marks_padding_and_drops_the_last():
    batches = list(training.pack([[5, 6, 7], [8]], 3, 2, pad=9, ignore_index=-1))
    (batch,) = batches
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.targets.tolist() == [[6, 7, -1], [-1, -1, -1]]
    assert batch.segment_pos.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6] and batch.cu_seqlens.dtype == torch.int32
    assert not list(training.pack([[5, 6, 7]], 3, 2, drop_last=True))
    assert len(list(training.pack([[5, 6, 7]] * 2, 3, 2, drop_last=True))) == 1
    assert not list(training.pack([[], []], 3, 2))
    assert batch.to("meta").tokens.device.type == "meta"


def test_packing_is_lazy_and_takes_arrays():
    import numpy

    def endless():
        yield torch.tensor([1, 2, 3], dtype=torch.int32)
        yield numpy.array([4, 5], dtype=numpy.uint16)
        yield from itertools.repeat((6, 7))

    batches = training.pack(endless(), 4, 1)
    assert next(batches).tokens.tolist() == [[1, 2, 3, 4]] and next(batches).tokens.tolist() == [[5, 6, 7, 6]]


def test_refusals_of_packing():
    with pytest.raises(errors.ArgumentError, match="length is 0"):
        training.pack([], 0, 1)  # when it is called, not when it is first asked
    with pytest.raises(errors.ArgumentError, match="batch is 0"):
        training.pack([], 1, 0)
    with pytest.raises(errors.ShapeError, match=r"number 1 has shape \[1, 2\]"):
        list(training.pack([[1], [[1, 2]]], 4, 1))
    with pytest.raises(errors.DtypeError, match=r"number 0 holds float64"):
        list(training.pack([[0.5]], 4, 1))
    with pytest.raises(errors.DtypeError, match="number 0 holds bool"):
        list(training.pack([torch.ones(3, dtype=torch.bool)], 4, 1))


@pytest.mark.parametrize("name", ["hawk-tiny", "griffin-tiny", "mqa-tiny"])
def test_packed_documents_train_as_separate_ones(name):
    """The loss and every gradient, in float64."""
    model = griffin(name)
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(1, 256, (n,), generator=generator).tolist() for n in (23, 9, 2, 23, 9, 23, 2, 9)]
    (batch,) = training.pack(documents, 40, 3, split=False)
    loss = model.loss(*batch, reduction="sum")
    packed = torch.autograd.grad(loss, list(model.parameters()))
    separate = torch.zeros((), dtype=torch.float64)
    for document in documents:
        tokens = torch.tensor([document])
        separate = separate + model.loss(tokens[:, :-1], tokens[:, 1:], reduction="sum")
    torch.testing.assert_close(loss, separate, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(separate, list(model.parameters()))
    for (label, _), mine, theirs in zip(model.named_parameters(), packed, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-11 * theirs.norm(), label


def ran(model, tokens, targets, ops):
    """Gradients, and how often each op ran in forward and backward."""
    counts = dict.fromkeys(ops, 0)

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in counts:
                counts[func] += 1
            return func(*args, **kwargs or {})

    with Counting():
        model.loss(tokens, targets).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return gradients, list(counts.values())


@pytest.mark.parametrize(("save", "times"), [(None, 1), ((), 2)])
def test_checkpointed_blocks(save, times):
    """Kept operators run once, linear layers twice; gradients are the same to the bit."""
    model, (tokens, targets) = griffin(), torch.randint(256, (2, 2, 25))
    ops = torch.ops.griffin_kernels.recurrent_block.default, torch.ops.griffin_kernels.local_attention.default
    addmm = torch.ops.aten.addmm.default
    want, (recurrent, attention, products) = ran(model, tokens, targets, (*ops, addmm))
    assert (recurrent, attention) == (2, 1)
    names = list(model.state_dict())
    training.checkpoint_blocks(model, save)
    assert list(model.state_dict()) == names
    got, counts = ran(model, tokens, targets, (*ops, addmm))
    assert counts[:2] == [2 * times, times] and counts[2] > products
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))
    model.load_state_dict(griffin().state_dict())
    with pytest.raises(errors.ArgumentError, match="no residual block of a Griffin that is not checkpointed yet"):
        training.checkpoint_blocks(model)


def test_what_is_kept_is_named_by_overloads():
    ops = training.save_ops()
    assert all(isinstance(op, torch._ops.OpOverload) for op in ops)
    mixing = {name for name in catalog.ops() if f"{name}_bwd" in catalog.ops()}
    assert {op.name().partition("::")[2] for op in ops} == mixing - {
        "temporal_conv1d",
        "rms_norm",
        "gated_gelu",
        "geglu",
    }
    for wrong in ("griffin_kernels.rg_lru", torch.ops.griffin_kernels.rg_lru):
        with pytest.raises(errors.ArgumentError, match="expected an OpOverload"):
            training.checkpoint_contexts([wrong])


def test_contexts_serve_layers_of_ones_own():
    torch.manual_seed(0)
    layer = nn.RecurrentBlock(16, heads=2, dtype=torch.float64)
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    out = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False, context_fn=training.checkpoint_contexts())
    for got, wanted in zip(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]), want, strict=True):
        assert torch.equal(got, wanted)
    assert recomputation._policy(training.save_ops(), None, torch.ops.aten.mm.default).name == "PREFER_RECOMPUTE"


@pytest.mark.parametrize("name", ["hawk-tiny", "griffin-tiny", "mqa-tiny"])
def test_flops_are_those_of_all_products_and_operations(name):
    config, batch, time = preset(name), 3, 40
    tokens, total = batch * time, 2 * batch * time * config.vocab_size * config.width
    plain, added = (norm_cost.make_case(1, tokens, config.width, flags=flags) for flags in ((), ("residual",)))
    gate = gate_cost.make_case(1, tokens, config.mlp_width)
    total += norm_cost.cost(plain).vector_flops  # the last norm
    for kind in config.block_types:
        total += sum(norm_cost.cost(case).vector_flops for case in (plain, added)) + gate_cost.cost(gate).vector_flops
        for part in ("mlp", kind):
            total += sum(2 * tokens * inputs * outputs for inputs, outputs, _ in config.linears(part).values())
        if kind == "recurrent":
            case = block_cost.make_case(batch, time, config.lru_width, config.gate_blocks, config.conv_width)
            cost = catalog.op("recurrent_block").cost(case)
            total += int(cost.tensor_flops + cost.vector_flops)
    got = training.flops_per_step(config, batch, time)
    if name == "hawk-tiny":
        assert got == 3 * total
    else:  # scores and their product with the values, of the keys in the window
        window = config.window if name == "griffin-tiny" else time
        keys = sum(min(step + 1, window) for step in range(time))
        attention = batch * 4 * keys * config.num_heads * config.head_dim
        layers = sum(kind != "recurrent" for kind in config.block_types)
        assert 3 * (total + layers * attention) <= got <= 3 * (total + layers * 3 * attention)
    assert got == training.flops_per_step(Griffin(config, device="meta"), batch, time)


def test_flops_are_what_a_forward_pass_is_counted_as():
    model = griffin(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(256, (2, 60)), return_cache=False)
    assert 3 * counter.get_total_flops() == training.flops_per_step(model, 2, 60)


def test_mfu():
    assert training.mfu(3e12, 0.5, peak_flops_per_s=24e12) == pytest.approx(0.25)
    assert training.mfu(3e12, 0.5, peak_flops_per_s=3e12, devices=4) == pytest.approx(0.5)
    for wrong in ({"flops": 0}, {"seconds": -1.0}, {"devices": 0}, {"peak_flops_per_s": float("inf")}):
        with pytest.raises(errors.ArgumentError, match=f"{next(iter(wrong))} is"):
            training.mfu(**{"flops": 1e12, "seconds": 1.0, "peak_flops_per_s": 1e12} | wrong)
    with pytest.raises(errors.DeviceError, match="no peak is known of cpu on this machine: pass peak_flops_per_s"):
        training.mfu(1e12, 1.0, device="cpu")


def test_mfu_reads_the_datasheet_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA H100 80GB HBM3")
    assert training.mfu(989.4e12 / 2, 1.0) == pytest.approx(0.5, rel=1e-2)
    with pytest.raises(errors.DeviceError, match="no peak of float64 is known of NVIDIA H100 80GB HBM3"):
        training.mfu(1e12, 1.0, dtype=torch.float64)


def test_resuming_from_a_checkpoint_is_exact_to_the_bit():
    def begin():
        model = griffin(dtype=torch.float32)
        return model, torch.optim.AdamW(training.parameter_groups(model, weight_decay=0.1), lr=1e-2)

    def train(model, optimizer, batches):
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = model.loss(*batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    batches = list(training.pack(random_documents(2, 40), 20, 3))[:6]
    model, optimizer = begin()
    losses = train(model, optimizer, batches[:3])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    losses += train(model, optimizer, batches[3:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, second = begin()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert train(again, second, batches[3:]) == losses[3:]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
