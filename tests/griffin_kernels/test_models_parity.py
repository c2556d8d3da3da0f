"""Whole models with the same weights in transformers' RecurrentGemmaForCausalLM and here; checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from griffin_kernels import errors, models
from griffin_kernels.models import Griffin

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

R, A = "recurrent", "attention"

CONFIGS = {
    "published_pattern": {"hidden_size": 64, "num_attention_heads": 4, "attention_window_size": 16},
    "wider_recurrence": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "lru_width": 96,
        "num_hidden_layers": 5,
        "attention_window_size": 8,
    },
    "attention_first": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "block_types": [A, R],
        "num_hidden_layers": 4,
        "attention_window_size": 23,
        "rope_theta": 500.0,
    },
    # sqrt(48) = 6.928 is 6.9375 in bfloat16
    "scale_rounds": {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "attention_window_size": 5,
        "logits_soft_cap": 5.0,
    },
    "narrow": {
        "hidden_size": 40,
        "num_attention_heads": 1,
        "lru_width": 24,
        "num_hidden_layers": 4,
        "block_types": [R, A, A],
        "conv1d_width": 3,
        "attention_window_size": 4,
        "intermediate_size": 202,
    },
}

# transformers takes norms and the recurrence in float32 whatever the model's dtype, so float64 would compare no better.
# float32 on both sides, a dozen roundings a layer over at most 5 layers, each of a sum of up to 100 products:
# 60 sqrt(100) 2^-24 = 4e-5 of the largest logit if all had one sign, a few 1e-6 as they have not.
LOGITS = 1e-5
# transformers takes 1 - a^2 by subtraction: up to 2^-24 / (1 - a^2), some 3e-5 where a^2 is 0.998, enters its gradients
GRADIENTS = 5e-5

PREFILL, DECODE = 13, 40


def settings(name):
    sizes = {"num_hidden_layers": 3, "vocab_size": 97, "intermediate_size": 192, "num_key_value_heads": 1}
    return transformers.RecurrentGemmaConfig(**sizes | CONFIGS[name], attn_implementation="eager")


def theirs(name):
    """Weights that let every parameter count: transformers draws most of them tiny, and biases zero."""
    torch.manual_seed(len(name))
    model = transformers.RecurrentGemmaForCausalLM(settings(name)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("recurrent_param"):
                continue
            fan_in = parameter.shape[1] if parameter.dim() > 1 else 25
            parameter.normal_(0.0, fan_in**-0.5)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    model = theirs(request.param)
    return model, models.load_transformers(model)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 97, (2, PREFILL + DECODE), generator=torch.Generator().manual_seed(3))


def assert_same(got, want, tolerance):
    assert got.shape == want.shape
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= tolerance, f"{error:.1e}"


@torch.no_grad()
def test_prefill(pair, tokens):
    model, ours = pair
    got, _ = ours(tokens)
    assert_same(got, model(tokens, use_cache=False).logits, LOGITS)


@torch.no_grad()
def test_decode_past_the_window(pair, tokens):
    model, ours = pair
    past = transformers.DynamicCache(config=model.config)
    model.model._setup_cache(model.config, 2, tokens.device, torch.float32)
    want = [model(tokens[:, :PREFILL], use_cache=True, past_key_values=past).logits]
    logits, cache = ours(tokens[:, :PREFILL])
    got = [logits]
    for step in range(PREFILL, PREFILL + DECODE):
        token = tokens[:, step : step + 1]
        position = torch.full((2, 1), step)
        want.append(model(token, position_ids=position, use_cache=True, past_key_values=past).logits)
        logits, cache = ours(token, cache=cache)
        got.append(logits)
    assert_same(torch.cat(got, dim=1), torch.cat(want, dim=1), LOGITS)


def test_every_gradient(pair, tokens):
    model, ours = pair
    model.zero_grad(set_to_none=True)
    ours.zero_grad(set_to_none=True)
    for logits in (model(tokens, use_cache=False).logits, ours(tokens, return_cache=False)[0]):
        cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    want = {name: parameter.grad for name, parameter in model.named_parameters()}
    got = models.to_transformers({name: parameter.grad for name, parameter in ours.named_parameters()}, ours.config)
    assert got.keys() == want.keys()
    for name in want:
        assert_same(got[name], want[name], GRADIENTS)


def test_state_dicts_come_back_as_they_were(pair):
    model, ours = pair
    want = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    got = models.to_transformers(ours.state_dict(), ours.config)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    through = models.from_deepmind(models.to_deepmind(ours.state_dict(), ours.config), ours.config)
    assert all(torch.equal(through[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("sharded", [False, True])
def test_from_pretrained(tmp_path, tokens, sharded):
    model = theirs("published_pattern")
    model.save_pretrained(tmp_path, **({"max_shard_size": "100KB"} if sharded else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    ours = Griffin.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_same(ours(tokens)[0], model(tokens, use_cache=False).logits, LOGITS)
    assert Griffin.from_pretrained(tmp_path, dtype=torch.bfloat16).embedding.weight.dtype == torch.bfloat16


def test_the_released_configurations():
    """The settings of google/recurrentgemma-2b and -9b as their config.json have them."""
    for name, width, layers, heads in (("2b", 2560, 26, 10), ("9b", 4096, 38, 16)):
        given = {
            "model_type": "recurrent_gemma",
            "attention_bias": False,
            "attention_window_size": 2048,
            "block_types": [R, R, A],
            "conv1d_width": 4,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": width,
            "intermediate_size": 6 * width,
            "logits_soft_cap": 30.0,
            "lru_width": width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "vocab_size": 256_000,
        }
        config = models.config_from_transformers(given)
        assert config == models.preset(f"recurrentgemma-{name}")
        with torch.device("meta"):
            model = transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**given))
        assert config.parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_faulty_state_dicts_are_described():
    model = theirs("published_pattern")
    config, good = models.config_from_transformers(model.config), model.state_dict()
    lacking = {name: value for name, value in good.items() if "layers.2.temporal_block.k_proj" not in name}
    with pytest.raises(errors.ArgumentError, match=r"lacks model.layers.2.temporal_block.k_proj.weight$"):
        models.from_transformers(lacking, config)
    with pytest.raises(errors.ArgumentError, match=r"has model.layers.9.x, which this model has no place for"):
        models.from_transformers(good | {"model.layers.9.x": torch.ones(1)}, config)
    with pytest.raises(errors.ShapeError, match=r"model.final_norm.weight is \[3\], expected \[64\]"):
        models.from_transformers(good | {"model.final_norm.weight": torch.ones(3)}, config)
    with pytest.raises(errors.ArgumentError, match=r"lm_head.weight differs"):
        models.from_transformers(good | {"lm_head.weight": good["lm_head.weight"] + 1}, config)
    with pytest.raises(errors.ArgumentError, match=r"lacks embedder.input_embedding, .* and \d+ more and has"):
        models.from_deepmind(good, config)
    with pytest.raises(errors.ArgumentError, match="no global attention"):
        models.from_transformers(good, models.preset("mqa-tiny"))
    with pytest.raises(errors.ArgumentError, match="config is None"):
        models.load_transformers(good)
    with pytest.raises(errors.ArgumentError, match=r"lacks embedding.weight"):
        models.to_transformers({}, config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu', expected 'gelu_pytorch_tanh'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"block_types": ["mamba"]}, "no block type 'mamba'"),
    ],
)
def test_settings_without_a_counterpart_are_refused(change, words):
    given = settings("published_pattern").to_dict() | change
    with pytest.raises(errors.ArgumentError, match=words):
        models.config_from_transformers(given)


def test_settings_that_are_missing_are_named():
    given = settings("published_pattern").to_dict()
    del given["hidden_size"]
    with pytest.raises(errors.ArgumentError, match="no entry 'hidden_size'"):
        models.config_from_transformers(given)
    with pytest.raises(errors.ArgumentError, match="no entry or block type 'vocab_size'"):
        models.config_from_deepmind({})


def test_faulty_folders_are_described(tmp_path):
    def refused(words):
        with pytest.raises(errors.ArgumentError, match=words):
            Griffin.from_pretrained(tmp_path)

    refused("has no config.json")
    (tmp_path / "config.json").write_text("{")
    refused("config.json cannot be read as JSON")
    (tmp_path / "config.json").write_text("[]")
    refused("config.json holds a list")
    (tmp_path / "config.json").write_text(json.dumps(settings("narrow").to_dict()))
    refused("lacks model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"not this")
    refused("model.safetensors cannot be read as safetensors")
