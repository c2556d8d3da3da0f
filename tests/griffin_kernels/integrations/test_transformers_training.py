"""Training an accelerated RecurrentGemma: gradients of the plain model, and everything that surrounds a step."""

from __future__ import annotations

import copy
import warnings

import accelerate as hooks
import peft
import pytest
import torch
import transformers
from torch.distributed.fsdp import FSDPModule, fully_shard

from griffin_kernels import errors
from griffin_kernels.integrations.transformers import accelerate, restore
from griffin_kernels.integrations.transformers._hf_cache import CACHE
from tests.griffin_kernels.integrations.recurrent_gemmas import (
    CONFIGS,
    FLOAT32,
    alone,
    document,
    dynamic,
    error,
    made,
    told,
)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

# transformers takes 1 - a^2 by subtraction: up to 2^-24 / (1 - a^2), some 3e-5 where a^2 is 0.998, enters its gradients
GRADIENTS = 5e-5

TEXT = torch.cat([document(20), document(20, seed=1)])


@pytest.fixture(params=CONFIGS)
def model(request):
    """A model of its own, plain, in training mode."""
    return copy.deepcopy(made(request.param)).train()


def gradients(model, **arguments):
    model.zero_grad(set_to_none=True)
    loss = model(**arguments).loss
    loss.backward()
    return loss.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}


def assert_same_gradients(got, want):
    (loss, ours), (other, theirs) = got, want
    torch.testing.assert_close(loss, other, rtol=FLOAT32, atol=0)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert error(gradient, theirs[name]) <= GRADIENTS, name


def test_every_gradient(model):
    asked = {"input_ids": TEXT, "labels": TEXT, "use_cache": False}
    want = gradients(model, **asked)
    accelerate(model)
    assert_same_gradients(gradients(model, **asked), want)
    # a cache that nobody asked for is not made, one that was asked for keeps no graph
    asked.pop("use_cache")
    assert not hasattr(model(**asked), CACHE)
    cache = dynamic(model)
    assert_same_gradients(gradients(model, **asked, use_cache=True, **{CACHE: cache}), want)
    copy.deepcopy(cache)
    for value in vars(cache.layers[0]).values():
        assert not (isinstance(value, torch.Tensor) and value.requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model, reentrant):
    asked = {"input_ids": TEXT, "labels": TEXT}
    mask = torch.ones_like(TEXT)
    mask[1, :6] = 0
    accelerate(model)
    want = gradients(model, **asked, attention_mask=mask)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same_gradients(gradients(model, **asked, attention_mask=mask), want)
    cache = dynamic(model)
    assert_same_gradients(gradients(model, **asked, attention_mask=mask, use_cache=True, **{CACHE: cache}), want)
    assert cache.get_seq_length() == 0
    told(model, TEXT[:, :4], cache)
    with pytest.raises(errors.ArgumentError, match="gradient checkpointing"):
        model(TEXT[:, 4:], **{CACHE: cache})


def test_packed_documents_have_their_own_gradients(model):
    documents = [document(9), document(13, seed=1), document(1, seed=2)]
    losses, want = 0.0, {}
    for text in documents[:2]:  # one token has no target
        model.zero_grad(set_to_none=True)
        loss = model(text, labels=text, use_cache=False).loss * (text.shape[1] - 1) / 20
        loss.backward()
        losses += loss.detach()
        for name, value in model.named_parameters():
            want[name] = want.get(name, 0) + value.grad
    accelerate(model)
    packed = torch.cat(documents, 1)
    labels = packed.clone()
    labels[0, [0, 9, 22]] = -100
    positions = torch.cat([torch.arange(text.shape[1]) for text in documents])[None]
    assert_same_gradients(gradients(model, input_ids=packed, labels=labels, position_ids=positions), (losses, want))


def test_one_token_with_a_gradient(model):
    """A step has none: the sequence form runs, and states go on."""
    text = document(6)
    accelerate(model)
    cache, logits = dynamic(model), []
    for step in range(6):
        logits.append(model(text[:, step : step + 1], use_cache=True, **{CACHE: cache}).logits)
    logits[-1].sum().backward()
    weights = dict(model.named_parameters())
    name = next(name for name in weights if "recurrent_gate_weight" in name)
    assert weights[name].grad.abs().sum() > 0
    assert error(torch.cat(logits, 1).detach(), alone(restore(model), text)) <= FLOAT32


def test_padding_in_a_turn_with_a_gradient(model):
    text = document(8)
    accelerate(model)
    padded = torch.cat([text[:, :5], torch.zeros(1, 2, dtype=torch.int64)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 1, 1, 1]])
    cache = dynamic(model)
    first = model(padded, attention_mask=mask[:, :7], use_cache=True, **{CACHE: cache}).logits[:, :5]
    later = model(text[:, 5:], attention_mask=mask, use_cache=True, **{CACHE: cache}).logits
    (first.sum() + later.sum()).backward()
    assert error(torch.cat([first, later], 1).detach(), alone(restore(model), text)) <= FLOAT32


def test_dropout_is_the_plain_models(model):
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    found = []
    for accelerated in (False, True):
        (accelerate if accelerated else restore)(model)
        torch.manual_seed(0)
        found.append(model(TEXT, use_cache=False).logits.detach())
    assert error(found[1], found[0]) <= FLOAT32
    if "sliding_attention" in model.config.layer_types:
        assert error(found[1], alone(restore(model).eval(), TEXT)) > 100 * FLOAT32


def test_autocast(model):
    asked = {"input_ids": TEXT, "labels": TEXT, "use_cache": False}
    exact, _ = gradients(model, **asked)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = gradients(accelerate(model), **asked)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    torch.testing.assert_close(loss, exact, rtol=2**-6, atol=0)  # of a mean of logits, each within a few 2^-8
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cache = dynamic(model)
        logits = torch.cat([told(model, piece, cache) for piece in TEXT.split([7, 1, 12], 1)], 1)
        assert error(logits, model(TEXT, use_cache=False).logits.float()) <= 2**-4


@pytest.mark.parametrize("name", ["short", "two_taps"])
def test_compiled(name):
    """One graph, forward and backward, with the plain model's gradients."""
    model = copy.deepcopy(made(name)).train()
    asked = {"input_ids": TEXT, "labels": TEXT, "use_cache": False}
    want = gradients(model, **asked)
    accelerate(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = compiled(**asked).loss
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    assert_same_gradients((loss.detach(), found), want)
    restore(compiled)
    assert not any(type(module).__module__.startswith("griffin") for module in model.modules())


def test_compiled_with_padding_and_with_a_cache():
    model = accelerate(copy.deepcopy(made("short")))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    text, mask = TEXT[:, :9], torch.ones(2, 9, dtype=torch.int64)
    mask[1, 3:5] = 0
    with torch.no_grad():
        padded = compiled(text, attention_mask=mask, use_cache=False).logits
        cache = dynamic(model)
        pieces = [compiled(part, use_cache=True, **{CACHE: cache}).logits for part in text.split([8, 1], 1)]
    restore(model)
    real = mask[1] == 1
    assert error(padded[1:, real], alone(model, text[1:, real])) <= FLOAT32
    assert error(torch.cat(pieces, 1), alone(model, text)) <= FLOAT32


def lora(model, **options):
    torch.manual_seed(5)
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config)


@pytest.mark.parametrize("first", ["accelerated", "adapted"])
def test_lora(first):
    """Twenty steps have the plain model's losses, whichever comes first; and what is saved is plain."""
    targets = {"target_modules": ["linear_x", "linear_y", "linear_out", "q_proj", "v_proj", "o_proj", "up_proj"]}
    losses = []
    for accelerated in (False, True):
        model = copy.deepcopy(made("mix")).train()
        if accelerated and first == "accelerated":
            accelerate(model)
        adapted = lora(model, **targets, modules_to_save=["lm_head"])
        if accelerated and first == "adapted":
            accelerate(adapted)
        optimizer = torch.optim.AdamW([value for value in adapted.parameters() if value.requires_grad], lr=1e-2)
        of_model = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = adapted(input_ids=TEXT, labels=TEXT).loss
            loss.backward()
            optimizer.step()
            of_model.append(loss.detach())
        losses.append(torch.stack(of_model))
        with torch.no_grad():
            text = adapted.eval().generate(input_ids=TEXT[:, :5], max_new_tokens=8, do_sample=False)
            assert text.shape == (2, 13)
    assert losses[0][-1] < 0.9 * losses[0][0]
    # Adam divides by the root of a mean of squares, so errors of gradients are errors of steps, twenty of them
    torch.testing.assert_close(losses[1], losses[0], rtol=20 * GRADIENTS, atol=0)


def test_lora_of_the_gates_counts():
    """peft reparametrises 3-D parameters while their own module is called."""
    name = "rg_lru.input_gate_weight"
    model = copy.deepcopy(made("mix"))
    plain = alone(model, TEXT)
    adapted = lora(model, target_modules=[], target_parameters=[name])
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_B" in key:
                value.normal_()
    want = alone(adapted, TEXT)
    accelerate(adapted)
    got = alone(adapted, TEXT)
    cache = dynamic(model)
    pieces = torch.cat([told(adapted, part, cache) for part in TEXT.split([12, 1, 7], 1)], 1)
    restore(adapted)
    assert error(want, plain) > 100 * FLOAT32
    assert error(got, want) <= FLOAT32 and error(pieces, want) <= FLOAT32


def test_lora_of_the_convolution_is_refused():
    adapted = lora(accelerate(copy.deepcopy(made("mix"))), target_modules=["conv_1d"], r=32)
    with pytest.raises(errors.ArgumentError, match=r"conv_1d is a peft\.tuners\.lora\.layer\.Conv1d"):
        adapted(input_ids=TEXT)


@pytest.mark.parametrize("first", ["accelerated", "hooked"])
def test_offloaded_parameters(model, first):
    """accelerate's hooks bring the parameters of a module when it is called, those of the convolution too."""
    model.eval()
    want = alone(model, TEXT)
    if first == "accelerated":
        accelerate(model)
    hooks.cpu_offload(model, execution_device=torch.device("cpu"))
    if first == "hooked":
        accelerate(model)
    assert any(parameter.is_meta for parameter in model.parameters())
    cache = dynamic(model)
    pieces = [told(model, part, cache) for part in TEXT.split([12, 1, 7], 1)]
    assert not keeps_states(model)  # it is ours that runs
    restore(model)
    alone(model, TEXT)
    assert keeps_states(model)
    assert error(torch.cat(pieces, 1), want) <= FLOAT32


def keeps_states(model):
    return any(getattr(module, "recurrent_states", None) is not None for module in model.modules())


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first", ["accelerated", "sharded"])
def test_fully_sharded(one_process, first):
    """Whichever comes first, and with the RG-LRU, whose parameters one may want in float32, sharded apart."""
    model, asked = copy.deepcopy(made("mix")).train(), {"input_ids": TEXT, "labels": TEXT, "use_cache": False}
    want = gradients(model, **asked)
    model = made.__wrapped__("mix").train()  # no graph of the plain step within
    if first == "accelerated":
        accelerate(model)
    for layer in model.model.layers:
        if hasattr(layer.temporal_block, "rg_lru"):
            fully_shard(layer.temporal_block.rg_lru)
        fully_shard(layer.temporal_block)
        fully_shard(layer)
    fully_shard(model)
    if first == "sharded":
        accelerate(model)
    loss = model(**asked).loss
    loss.backward()
    assert not keeps_states(model)
    found = {name: value.grad.full_tensor() for name, value in model.named_parameters()}
    assert_same_gradients((loss.detach(), found), want)
    restore(model)
    assert isinstance(model, FSDPModule)
    torch.testing.assert_close(model(**asked).loss.detach(), want[0])
    assert keeps_states(model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_linear_layers():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(made("mix"))
    plain = alone(model, TEXT)
    quantize_(model, Int8WeightOnlyConfig())
    want = alone(model, TEXT)
    accelerate(model)
    cache = dynamic(model)
    got = torch.cat([told(model, part, cache) for part in TEXT.split([12, 1, 7], 1)], 1)
    assert error(got, want) <= FLOAT32 < error(want, plain)


def test_a_trainer(tmp_path):
    """Steps and evaluation of transformers' Trainer, with a padding collator."""
    rows = [{"input_ids": document(length)[0].tolist()} for length in (9, 14, 5, 12)]
    tokenizer = Pads()
    losses = []
    for accelerated in (False, True):
        model = copy.deepcopy(made("mix"))
        if accelerated:
            accelerate(model)
        options = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 2, "max_steps": 3, "report_to": []}
        arguments = transformers.TrainingArguments(
            str(tmp_path), **options, use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=tokenizer,
            compute_metrics=lambda found: {"rows": len(found.predictions)},
        )  # fmt: skip
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.evaluate()["eval_rows"] == 4
    assert len(losses[0]) == 3
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-3)


class Pads:
    """A collator that pads on the left."""

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        tokens, mask = torch.zeros(2, len(rows), longest, dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens[index, longest - len(row["input_ids"]) :] = torch.tensor(row["input_ids"])
            mask[index, longest - len(row["input_ids"]) :] = 1
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}
