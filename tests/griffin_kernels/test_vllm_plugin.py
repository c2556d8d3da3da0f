"""RecurrentGemma for vLLM, on stubs that follow the interfaces of vLLM 0.33 (tests/vllm_stubs.py).

vLLM itself needs CUDA's PyTorch, which a machine for tests has not. What is ours is run: layers, states on vLLM's
pages, names of weights, sharing out over GPUs. Attention, loading and the engine are stand-ins.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from types import SimpleNamespace

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from griffin_kernels import errors
from griffin_kernels.integrations import vllm as plugin
from griffin_kernels.models import config_from_transformers, load_transformers
from tests import ROOT
from tests import vllm_stubs as stubs

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

SETTINGS = {
    "vocab_size": 96,
    "hidden_size": 48,  # whose square root bfloat16 rounds
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "lru_width": 64,
    "attention_window_size": 8,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
}
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def served():
    with stubs.installed() as module:
        yield module


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    for name, value in {"ranks": 1, "rank": 0, "first": True, "last": True}.items():
        monkeypatch.setattr(stubs.PARALLEL, name, value)
    monkeypatch.setattr(stubs.LAYOUT, "dim_first", False)


@pytest.fixture(scope="module")
def theirs():
    """transformers' model, its weights large enough that every part counts."""
    torch.manual_seed(3)
    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SETTINGS)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("recurrent_param"):
                weight.normal_(0, 0.3 if weight.dim() > 1 else 0.2)
        model.model.embed_tokens.weight.mul_(0.3)
    return model


def made(served, hf_config, weights=None, **options):
    """(model, vLLM's configuration)."""
    config = stubs.made_config(hf_config, **options)
    stubs.CURRENT.config = config
    model = served.RecurrentGemmaForCausalLM(vllm_config=config)
    if weights is not None:
        loaded = model.load_weights((name, tensor.clone()) for name, tensor in weights.items())
        assert loaded == {name for name, _ in model.named_parameters()}
    return model, config


def recurrent_layers(config):
    context = config.compilation_config.static_forward_context
    return {name: layer for name, layer in context.items() if hasattr(layer, "mix")}


def on_pages(config, pages=9):
    """Give every recurrent layer pages that are longer than its states."""
    for layer in recurrent_layers(config).values():
        layer.bind_kv_cache(torch.full((pages, 1, 1, PAGE_BYTES), -1, dtype=torch.int8))


class Engine:
    """Steps of a served model: a request's first tokens are a prompt, single ones after it are decodes."""

    def __init__(self, model, config, texts, slots):
        self.model, self.config, self.texts, self.slots = model, config, texts, slots
        self.done, self.logits = dict.fromkeys(texts, 0), {name: [] for name in texts}

    def step(self, counts, run=None, padding=3):
        """counts: request -> tokens. Decodes come first, in the order of counts."""
        decodes = [name for name, count in counts.items() if count == 1 and self.done[name]]
        order = [*decodes, *[name for name in counts if name not in decodes]]
        tokens, positions, spans, past, starts = [], [], {}, {}, [0]
        for name in order:
            begin = past[name] = self.done[name]
            spans[name] = len(tokens), len(tokens) + counts[name]
            tokens += self.texts[name][begin : begin + counts[name]]
            positions += range(begin, begin + counts[name])
            starts.append(len(tokens))
            self.done[name] += counts[name]
        prompts = order[len(decodes) :]
        slots = torch.tensor([[self.slots[name]] for name in order], dtype=torch.int32)
        batch = SimpleNamespace(
            num_decode_tokens=len(decodes),
            num_prefill_tokens=len(tokens) - len(decodes),
            state_indices_tensor_d=slots[: len(decodes)],
            num_accepted_tokens=None,
            query_start_loc_d=None,
            state_indices_tensor_p=slots[len(decodes) :, 0],
            has_initial_states_p=torch.tensor([past[name] > 0 for name in prompts], dtype=torch.bool),
            query_start_loc_p=torch.tensor(starts[len(decodes) :], dtype=torch.int32) - len(decodes),
        )
        context = self.config.compilation_config.static_forward_context
        metadata = {name: batch if hasattr(layer, "mix") else stubs.Requests(spans, past)
                    for name, layer in context.items()}  # fmt: skip
        ids, places = (torch.tensor(values + [0] * padding) for values in (tokens, positions))
        with torch.inference_mode(), stubs.forward_context(self.config, metadata):
            hidden = (run or self.model)(ids, places)
            logits = self.model.compute_logits(hidden) if isinstance(hidden, torch.Tensor) else hidden
        if isinstance(logits, torch.Tensor):
            for name, (begin, end) in spans.items():
                self.logits[name].append(logits[begin:end])
        return logits


def texts():
    generator = torch.Generator().manual_seed(1)
    lengths = {"a": 20, "b": 13, "c": 1, "d": 30}
    return {name: torch.randint(1, 96, (n,), generator=generator).tolist() for name, n in lengths.items()}


STEPS = [
    {"a": 9, "b": 4},
    {"a": 1, "b": 5, "c": 1, "d": 12},  # decodes, prompts that go on, prompts of one token
    {"a": 1, "b": 1, "d": 1},
    {"a": 7, "b": 3, "d": 17},
    {"a": 2},
]
SLOTS = {"a": 3, "b": 7, "c": 1, "d": 8}


@pytest.mark.parametrize("dim_first", [False, True], ids=["SD", "DS"])
def test_mixed_batches_give_the_logits_of_each_request_by_itself(served, theirs, dim_first):
    stubs.LAYOUT.dim_first = dim_first
    model, config = made(served, theirs.config, theirs.state_dict())
    on_pages(config)
    engine = Engine(model, config, texts(), SLOTS)
    for counts in STEPS:
        engine.step(counts)
    ours = load_transformers(theirs).double()
    for name, tokens in engine.texts.items():
        with torch.no_grad():
            wanted, _ = ours(torch.tensor([tokens[: engine.done[name]]]), return_cache=False)
        found = torch.cat(engine.logits[name])
        # four layers of float32, logits up to 3: some hundred roundings of 6e-8
        torch.testing.assert_close(found.double(), wanted[0], atol=3e-5, rtol=0.0)


def test_every_parameter_is_loaded_and_none_twice(served, theirs):
    weights = theirs.state_dict()
    assert "lm_head.weight" in weights  # tied, as some checkpoints have it
    model, _ = made(served, theirs.config, weights)
    assert not [name for name, weight in model.named_parameters() if bool(weight.isnan().any())]
    rows = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(rows.values()) == sum(weight.numel() for weight in theirs.parameters())
    del weights["lm_head.weight"]
    made(served, theirs.config, weights)
    with pytest.raises(ValueError, match="extra"):
        made(served, theirs.config, weights | {"model.layers.0.temporal_block.extra": torch.zeros(1)})


def test_decays_stay_float32_in_a_model_of_bfloat16(served, theirs):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model, _ = made(served, theirs.config, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(default)
    block = model.model.layers[0].temporal_block
    assert block.rg_lru.recurrent_param.dtype == torch.float32
    assert block.rg_lru.input_gate_weight.dtype == torch.bfloat16


@pytest.mark.parametrize("ranks", [2, 4])
def test_summands_of_several_gpus_are_the_layer(served, theirs, ranks):
    """Recurrent, attention and MLP layers: what each GPU gives, summed up, is what one gives alone."""
    text = texts()
    counts = [{"a": 9, "d": 3}, {"a": 1, "d": 5}, {"a": 1, "d": 1}]

    def outputs(ranks, rank):
        stubs.PARALLEL.ranks, stubs.PARALLEL.rank = ranks, rank
        model, config = made(served, theirs.config, theirs.state_dict())
        on_pages(config)
        engine, found = Engine(model, config, text, SLOTS), []
        generator = torch.Generator().manual_seed(5)
        for step in counts:
            x = torch.randn(sum(step.values()) + 3, 48, generator=generator)

            def layers(ids, positions, x=x):
                first, third = model.model.layers[0], model.model.layers[2]
                mixed = first.temporal_block(x), third.temporal_block(positions, x), first.mlp_block(x)
                return [part[:-3] for part in mixed]

            found.append(engine.step(step, run=layers))
        return found

    alone = outputs(1, 0)
    shared = [outputs(ranks, rank) for rank in range(ranks)]
    for step, parts in enumerate(alone):
        for index, part in enumerate(parts):
            total = sum(each[step][index] for each in shared)
            torch.testing.assert_close(total, part, atol=1e-5, rtol=1e-5)


def test_two_pieces_of_a_model_are_the_model(served, theirs):
    stages = []
    for first, last in ((True, False), (False, True)):
        stubs.PARALLEL.first, stubs.PARALLEL.last = first, last
        config = stubs.made_config(theirs.config)
        stubs.CURRENT.config = config
        model = served.RecurrentGemmaForCausalLM(vllm_config=config)
        loaded = model.load_weights((name, tensor.clone()) for name, tensor in theirs.state_dict().items())
        # the second piece's head is the embedding, which it has too
        assert {name for name, _ in model.named_parameters()} == loaded
        on_pages(config)
        stages.append((model, config))
    text = {"a": texts()["a"]}
    engines = [Engine(model, config, text, SLOTS) for model, config in stages]
    for count in (9, 1, 1):
        stubs.PARALLEL.first, stubs.PARALLEL.last = True, False
        sent = engines[0].step({"a": count})
        assert set(sent) == {"hidden_states", "residual"}
        stubs.PARALLEL.first, stubs.PARALLEL.last = False, True
        second = stages[1][0]
        engines[1].step(
            {"a": count}, run=lambda ids, positions, sent=sent, second=second: second(None, positions, sent)
        )
    ours = load_transformers(theirs).double()
    with torch.no_grad():
        wanted, _ = ours(torch.tensor([text["a"][:11]]), return_cache=False)
    torch.testing.assert_close(torch.cat(engines[1].logits["a"]).double(), wanted[0], atol=3e-5, rtol=0.0)


def test_embeddings_in_place_of_tokens_are_scaled_already(served, theirs):
    model, config = made(served, theirs.config, theirs.state_dict())
    on_pages(config)
    text = {"a": texts()["a"][:6], "b": texts()["a"][:6]}
    engine = Engine(model, config, text, SLOTS)
    plain = engine.step({"a": 6})
    given = engine.step({"b": 6}, run=lambda ids, at: model(None, at, inputs_embeds=model.embed_input_ids(ids)))
    assert torch.equal(plain[:6], given[:6])


def test_while_memory_is_measured_nothing_needs_states(served, theirs):
    model, config = made(served, theirs.config, theirs.state_dict())
    layer = next(iter(recurrent_layers(config).values()))
    with torch.inference_mode(), stubs.forward_context(config, None):
        out = layer(torch.randn(5, 48))
    assert torch.equal(out, model.model.layers[0].temporal_block.linear_out.bias.expand(5, -1))


@pytest.mark.parametrize(
    ("ranks", "dim_first", "shape"), [(1, False, (3, 64)), (2, False, (3, 32)), (4, True, (16, 3))]
)
def test_shapes_and_dtypes_of_states(served, theirs, monkeypatch, ranks, dim_first, shape):
    stubs.PARALLEL.ranks, stubs.LAYOUT.dim_first = ranks, dim_first
    model, config = made(served, theirs.config)
    cls = type(model)
    assert cls.get_mamba_state_shape_from_config(config) == (shape, (64 // ranks,))
    layer = next(iter(recurrent_layers(config).values()))
    assert layer.get_state_shape() == cls.get_mamba_state_shape_from_config(config)
    assert layer.get_state_dtype() == cls.get_mamba_state_dtype_from_config(config) == (torch.float32, torch.float32)
    narrow = stubs.made_config(theirs.config, dtype=torch.bfloat16, mamba_ssm_cache_dtype="float32")
    assert cls.get_mamba_state_dtype_from_config(narrow) == (torch.bfloat16, torch.float32)
    assert layer.mamba_type == "SHORT_CONV"
    # a guess's block has the convolution's inputs after it, not room for those of all guesses
    assert len(set(cls.get_mamba_state_copy_func())) == 1


@pytest.mark.parametrize(("name", "value"), [("mamba_cache_dtype", "float16"), ("mamba_ssm_cache_dtype", "bfloat16")])
def test_states_are_not_rounded(served, theirs, name, value):
    config = stubs.made_config(theirs.config, **{name: value})
    with pytest.raises(errors.ArgumentError, match=f"{name} is {value}, expected auto"):
        served.RecurrentGemmaForCausalLM.get_mamba_state_dtype_from_config(config)


@pytest.mark.parametrize("block_types", [["recurrent"], ["attention"]])
def test_gpus_that_do_not_divide_the_heads_are_refused(served, block_types):
    stubs.PARALLEL.ranks = 3
    with pytest.raises(errors.ArgumentError, match="tensor_parallel_size is 3, expected a divisor of the 4 heads"):
        made(served, RecurrentGemmaConfig(**SETTINGS, block_types=block_types))


def test_settings_that_no_published_model_has_are_refused(served):
    with pytest.raises(errors.ArgumentError, match="attention_bias"):
        made(served, RecurrentGemmaConfig(**SETTINGS, attention_bias=True))


@pytest.mark.parametrize(
    ("given", "after"),
    [
        (None, None),
        ([], []),
        (["vllm::attention"], ["vllm::attention", "vllm::griffin_recurrent_block"]),
    ],
)
def test_piecewise_graphs_are_split_at_the_operator(served, theirs, given, after):
    _, config = made(served, theirs.config, splitting_ops=given)
    assert config.compilation_config.splitting_ops == after


def test_layers_of_one_name_are_refused(served, theirs):
    _, config = made(served, theirs.config)
    ours, mixing = config_from_transformers(theirs.config), type(next(iter(recurrent_layers(config).values())))
    with pytest.raises(errors.ArgumentError, match=r"prefix is 'model.layers.0.temporal_block'"):
        mixing(ours, config.model_config, config.cache_config, prefix="model.layers.0.temporal_block")


def test_vllm_finds_the_plugin_by_its_entry_point(served):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, place),) = project["entry-points"]["vllm.general_plugins"].items()
    register = importlib.metadata.EntryPoint(name, place, "vllm.general_plugins").load()
    register()
    register()
    module, _, name = stubs.REGISTERED[plugin.ARCHITECTURE].partition(":")
    assert module == served.__name__ and hasattr(served, name)
