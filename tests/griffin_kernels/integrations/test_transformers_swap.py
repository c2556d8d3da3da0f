"""``accelerate`` and ``restore``: what they change, what they leave, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from griffin_kernels import errors
from griffin_kernels.integrations.transformers import _hf_swap, accelerate, restore
from griffin_kernels.integrations.transformers._hf_cache import CACHE, modeling
from tests.griffin_kernels.integrations.recurrent_gemmas import (
    CONFIGS,
    FLOAT32,
    alone,
    document,
    dynamic,
    error,
    in_pieces,
    made,
    told,
)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

TEXT = document(20)


@pytest.fixture
def model():
    return copy.deepcopy(made("mix"))


def classes(model):
    return [type(module) for module in model.modules()]


def test_importing_the_package_imports_no_transformers():
    code = "import sys, griffin_kernels, griffin_kernels.integrations; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_changes_and_what_does_not(model):
    before, states = classes(model), model.state_dict()
    assert accelerate(model) is model
    swapped = classes(model)
    assert swapped != before
    for new, old in zip(swapped, before, strict=True):
        assert issubclass(new, old) and new.__name__ == old.__name__
        if old is not modeling.RecurrentGemmaRglru:  # which only its block calls
            assert inspect.signature(new.forward) == inspect.signature(old.forward)
    assert list(model.state_dict()) == list(states)
    assert all(value.data_ptr() == states[name].data_ptr() for name, value in model.state_dict().items())
    accelerate(model)
    assert classes(model) == swapped
    assert restore(model) is model
    assert classes(model) == before
    restore(model)
    assert classes(model) == before
    assert not [name for module in model.modules() for name in vars(module) if name.startswith("griffin")]


def test_what_is_saved_is_plain(model, tmp_path):
    accelerate(model).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is modeling.RecurrentGemmaForCausalLM
    assert loaded.config.architectures == ["RecurrentGemmaForCausalLM"]
    want = alone(restore(model), TEXT)
    torch.testing.assert_close(alone(loaded.eval(), TEXT), want, rtol=0, atol=0)
    assert error(alone(accelerate(loaded), TEXT), want) <= FLOAT32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_accelerated_too(copied):
    model = made.__wrapped__("mix")  # hooks of transformers that record outputs cannot be pickled
    other = copied(accelerate(model))
    assert classes(other) == classes(model)
    cache = dynamic(other)
    with torch.no_grad():
        states = other(TEXT, output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert error(in_pieces(other, TEXT, [13, 1, 6], cache), alone(restore(model), TEXT)) <= FLOAT32
    restore(other)
    assert classes(other) == classes(model)


@pytest.mark.parametrize("inside", ["base", "container", "compiled"])
def test_wherever_the_model_is(model, inside):
    want = alone(model, TEXT)
    whole = {"base": model.model, "container": nn.ModuleDict({"student": model}), "compiled": torch.compile(model)}[
        inside
    ]
    assert accelerate(whole) is whole
    if inside == "base":
        with torch.no_grad():
            hidden = whole(TEXT).last_hidden_state
            logits = model.lm_head(hidden)
            assert error(torch.tanh(logits / 30) * 30, want) <= FLOAT32
    else:
        assert error(alone(model, TEXT), want) <= FLOAT32
    restore(whole)
    assert not any(cls.__module__.startswith("griffin") for cls in classes(model))


def test_one_block_by_itself(model):
    block = model.model.layers[0].temporal_block
    x, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, -1)
    with torch.no_grad():
        want, _ = block(x, positions, None, use_cache=False)
        got, _ = accelerate(block)(x, positions, None, use_cache=False)
        assert error(got, want) <= FLOAT32
        lru = block.rg_lru
        torch.testing.assert_close(lru(x, positions), restore(lru)(x, positions), rtol=0, atol=0)
        restore(block)
    assert not hasattr(block, "layer_idx")


class Wrapper:
    """What fully_shard and parametrize add to a class."""

    def unshard(self):
        return "unsharded"


def wrapped(module):
    """As fully_shard wraps it."""
    cls = type(module)
    module.__class__ = type(f"FSDP{cls.__name__}", (Wrapper, cls), {})
    return module.__class__


@pytest.mark.parametrize("first", ["accelerated", "wrapped"])
def test_wrapped_classes_stay_wrapped(model, first):
    want = alone(model, TEXT)
    parts = [model, model.model, *(layer.temporal_block for layer in model.model.layers)]
    if first == "accelerated":
        accelerate(model)
    before = [wrapped(part) for part in parts]
    if first == "wrapped":
        accelerate(model)
    assert all(part.unshard() == "unsharded" for part in parts)
    assert error(in_pieces(model, TEXT, [13, 1, 6], dynamic(model)), want) <= FLOAT32
    if first == "wrapped":  # transformers itself records nothing of a class that was wrapped since
        with torch.no_grad():
            assert len(model(TEXT, output_hidden_states=True).hidden_states) == 4
    restore(model)
    for part, cls in zip(parts, before, strict=True):
        assert part.unshard() == "unsharded" and type(part).__name__ == cls.__name__
        assert not any(base.__module__.startswith("griffin") for base in type(part).__mro__)
        if first == "wrapped":
            assert type(part) is cls
    torch.testing.assert_close(alone(model, TEXT), want, rtol=0, atol=0)


class OtherBlock(modeling.RecurrentGemmaRecurrentBlock):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_what_cannot_be_accelerated_is_refused(model, monkeypatch):
    with pytest.raises(errors.ArgumentError, match=r"a Linear without a RecurrentGemma .* transformers 5\."):
        accelerate(nn.Linear(2, 2))
    before = classes(model)
    block = model.model.layers[0].temporal_block
    block.forward = OtherBlock.forward.__get__(block)
    with pytest.raises(
        errors.ArgumentError, match=r"forward of a RecurrentGemmaRecurrentBlock was replaced by OtherBlock"
    ):
        accelerate(model)
    del block.forward
    block.__class__ = OtherBlock
    with pytest.raises(errors.ArgumentError, match=r"OtherBlock has a forward of its own .* 5\.23 and 5\.24"):
        accelerate(model)
    block.__class__ = modeling.RecurrentGemmaRecurrentBlock
    assert classes(model) == before  # all or nothing
    monkeypatch.setattr(modeling.RecurrentGemmaAttention, "forward", lambda self, hidden_states, cache_params: None)
    text = rf"transformers {transformers.__version__}: RecurrentGemmaAttention.forward takes .* 5\.23 and 5\.24"
    with pytest.raises(errors.ArgumentError, match=text):
        accelerate(model)
    assert classes(model) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_compatible_keeps_the_plain_models_numbers(name):
    """Those of its forward without a cache, wrong as they are; with a cache they are the same."""
    model = copy.deepcopy(made(name))
    tokens, mask = TEXT.expand(2, 20).clone(), torch.ones(2, 20, dtype=torch.int64)
    tokens[1, :6], mask[1, :6] = 0, 0
    packed = torch.cat([torch.arange(8), torch.arange(12)])[None].expand(2, -1)
    asked = [{}, {"attention_mask": mask}, {"position_ids": packed}]
    asked.append({"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)})
    with torch.no_grad():
        want = [model(tokens, use_cache=False, **given).logits for given in asked]
        accelerate(model, compatible=True)
        for given, logits in zip(asked, want, strict=True):
            assert error(model(tokens, use_cache=False, **given).logits, logits) <= FLOAT32
        cache, found, at = dynamic(model), [], 0
        for piece in tokens.split([7, 1, 5, 7], 1):
            at += piece.shape[1]
            found.append(told(model, piece, cache, attention_mask=mask[:, :at]))
        assert error(torch.cat(found, 1)[0], want[1][0]) <= FLOAT32
        assert error(torch.cat(found, 1)[1, 6:], want[1][1, 6:]) <= FLOAT32
        text = model.generate(tokens[:1, :5], max_new_tokens=9, do_sample=False)
        plainly = model.generate(tokens[:1, :5], max_new_tokens=9, do_sample=False, use_cache=False)
        assert torch.equal(text, plainly)
        # the other mode, and back
        accelerate(model)
        assert error(model(tokens, attention_mask=mask).logits[1:, 6:], alone(model, tokens[1:, 6:])) <= FLOAT32
        accelerate(model, compatible=True)
        assert error(model(tokens, attention_mask=mask, use_cache=False).logits, want[1]) <= FLOAT32


def test_both_names_of_the_cache(model):
    accelerate(model)
    for name in ("cache", "past_key_values"):
        cache = dynamic(model)
        with torch.no_grad():
            if name == "past_key_values" and name != CACHE:
                with pytest.warns(FutureWarning, match="is now called cache"):
                    model(TEXT, **{name: cache})
            else:
                model(TEXT, **{name: cache})
        assert cache.get_seq_length() == 20


def test_the_supported_versions_are_named_once():
    assert transformers.__version__.rpartition(".")[0] in _hf_swap.SUPPORTED


def test_a_norm_with_a_forward_of_its_own_keeps_it(model):
    norm = model.model.final_norm
    norm.forward = lambda x: x * 2
    try:
        accelerate(model)
        assert type(norm) is modeling.RecurrentGemmaRMSNorm and type(
            model.model.layers[0].temporal_pre_norm
        ) is not type(norm)
        assert torch.equal(norm(torch.ones(3)), torch.full((3,), 2.0))
        restore(model)
    finally:
        del norm.forward
