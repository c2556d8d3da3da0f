"""Hawk, Griffin and the MQA Transformer: counts, caches, decoding, training."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from griffin_kernels import models
from griffin_kernels.models import PRESETS, Griffin, preset
from griffin_kernels.models.cache import AttentionCache, RecurrentCache

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

TINY = [f"{family}-tiny" for family in ("hawk", "griffin", "mqa")]

# Pieces add the same products in another order: of float64, some hundred roundings of 1e-16 of the largest element.
EXACT = 1e-13


@pytest.fixture(params=TINY)
def model(request):
    return make(request.param)


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = Griffin(preset(name), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms begin at 0, where they would hide mistakes
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of(model, batch, time, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, time), generator=generator)


def random_positions(batch, time, generator):
    """Each row begins at 0 and begins anew with probability 1/12 a step."""
    rows = torch.zeros(batch, time, dtype=torch.int64)
    restart = torch.rand(batch, time, generator=generator) < 1 / 12
    for step in range(1, time):
        rows[:, step] = torch.where(restart[:, step], 0, rows[:, step - 1] + 1)
    return rows


def in_pieces(model, tokens, lengths, segment_pos=None, cache=None):
    logits, start = [], 0
    for length in lengths:
        piece = slice(start, start + length)
        positions = None if segment_pos is None else segment_pos[:, piece]
        part, cache = model(tokens[:, piece], positions, cache)
        logits.append(part)
        start += length
    assert start == tokens.shape[1]
    return torch.cat(logits, dim=1), cache


def random_lengths(time, generator):
    """Pieces of 1 token, of a few, of more than a window."""
    lengths = []
    while (left := time - sum(lengths)) > 0:
        most = (1, 5, 40)[int(torch.randint(0, 3, (), generator=generator))]
        lengths.append(min(left, int(torch.randint(1, most + 1, (), generator=generator))))
    return lengths


def assert_same(got, want, tolerance=EXACT):
    assert got.shape == want.shape and got.dtype == want.dtype
    error = (got - want).abs().max() / want.abs().max()
    assert error <= tolerance, f"{error:.1e}"


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_as_many_as_the_configuration_counts(name):
    config = PRESETS[name]
    model = Griffin(config, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters()
    assert model.embedding.weight.numel() == config.embedding_parameters()
    for block, kind in zip(model.blocks, config.block_types, strict=True):
        parts = {"mixing": [block.mixing], "mlp": [block.mlp], "norms": [block.temporal_norm, block.channel_norm]}
        counted = {part: sum(p.numel() for m in found for p in m.parameters()) for part, found in parts.items()}
        assert counted == config.block_parameters(kind)


@pytest.mark.parametrize(
    ("name", "billions"), [("recurrentgemma-2b", 2.03), ("recurrentgemma-9b", 7.53), ("mqa-7b", 5.94)]
)
def test_parameters_besides_the_embedding_are_as_published(name, billions):
    config = preset(name)
    assert round((config.parameters() - config.embedding_parameters()) / 1e9, 2) == billions


def test_decays_are_drawn_as_published():
    lru = Griffin(replace(preset("hawk-100m"), vocab_size=1)).blocks[0].mixing.rg_lru
    square = torch.exp(-2 * torch.nn.functional.softplus(lru.a_param))
    # uniform: 1024 draws reach within 1% of both ends, their mean within five standard errors
    assert 0.9**2 - 1e-6 <= square.min() < 0.9**2 + 0.01 and 0.999**2 - 0.01 < square.max() <= 0.999**2 + 1e-6
    assert (square.mean() - (0.81 + 0.998) / 2).abs() < 5 * 0.188 / (12 * 1024) ** 0.5


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_one_document_equal_one_prefill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens_of(model, 3, 70, seed)
    want, _ = model(tokens, return_cache=False)
    got, cache = in_pieces(model, tokens, random_lengths(70, generator))
    assert_same(got, want)
    assert cache.tokens == 70 and cache.positions.tolist() == [70] * 3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_packed_documents_equal_one_prefill(model, seed):
    """Rows stand at different positions, and documents begin inside pieces, at their ends, and in decode."""
    generator = torch.Generator().manual_seed(100 + seed)
    tokens, positions = tokens_of(model, 3, 90, seed), random_positions(3, 90, generator)
    want, _ = model(tokens, positions, return_cache=False)
    got, cache = in_pieces(model, tokens, random_lengths(90, generator), positions)
    assert_same(got, want)
    assert torch.equal(cache.positions, positions[:, -1] + 1)


@torch.no_grad()
def test_decode_equals_prefill_beyond_the_window(model):
    tokens = tokens_of(model, 2, 60)
    want, _ = model(tokens, return_cache=False)
    assert_same(in_pieces(model, tokens, [1] * 60)[0], want)
    assert_same(in_pieces(model, tokens, [7, *[1] * 53])[0], want)


@torch.no_grad()
def test_rows_at_different_positions_go_on_without_being_told_where(model):
    generator = torch.Generator().manual_seed(5)
    tokens, positions = tokens_of(model, 4, 75), random_positions(4, 75, generator)
    positions[:, 40:] = positions[:, 39:40] + torch.arange(1, 36)
    want, _ = model(tokens, positions, return_cache=False)
    _, cache = model(tokens[:, :40], positions[:, :40])
    assert len(set(cache.positions.tolist())) > 1
    got, _ = in_pieces(model, tokens[:, 40:], [1, 1, 6, 1, 20, 6], cache=cache)
    assert_same(got, want[:, 40:])


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 100])
def test_windows_of_one_and_longer_than_everything(window):
    torch.manual_seed(0)
    model = Griffin(replace(preset("griffin-tiny"), window=window), dtype=torch.float64)
    tokens = tokens_of(model, 2, 30)
    want, _ = model(tokens)
    assert_same(in_pieces(model, tokens, [1, 1, 8, 1, 1, 18])[0], want)


class NothingRead(TorchDispatchMode):
    """Fails where a tensor's value is wanted on the host, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **kwargs or {})


@torch.no_grad()
def test_no_value_is_read_but_for_the_sizes_of_global_attention(model):
    tokens, positions = tokens_of(model, 2, 40), torch.arange(40).repeat(2, 1)
    want, _ = model(tokens)
    with NothingRead():
        got, _ = in_pieces(model, tokens, [9, 1, 1, 20, 9])
    assert_same(got, want)
    if model.config.family != "mqa":
        with NothingRead():
            got, _ = in_pieces(model, tokens, [9, 1, 1, 20, 9], positions)
        assert_same(got, want)


@pytest.mark.gpu
@torch.no_grad()
def test_decode_in_a_cuda_graph(model):
    model = model.float().cuda()
    tokens = tokens_of(model, 2, 40).cuda()
    want, _ = model(tokens)
    _, cache = model(tokens[:, :20], cache=model.init_cache(2, tokens=64))
    token = tokens[:, 20:21].clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(token, cache=cache)  # chooses and compiles the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits, _ = model(token, cache=cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in range(21, 40):
        token.copy_(tokens[:, step : step + 1])
        graph.replay()
        assert_same(logits[:, 0], want[:, step], 1e-4)


@torch.no_grad()
def test_an_empty_cache_is_no_cache(model):
    tokens = tokens_of(model, 2, 20)
    want, _ = model(tokens)
    cache = model.init_cache(2, tokens=100)
    before = cache.nbytes()
    got, returned = model(tokens, cache=cache)
    assert returned is cache and cache.nbytes() == before
    assert_same(got, want)


@torch.no_grad()
def test_float32_and_bfloat16_decode_as_they_prefill(model):
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.bfloat16, 0.05)):  # a few dozen roundings, 2^-24 and 2^-8
        model = model.to(dtype)
        tokens = tokens_of(model, 2, 40)
        want, _ = model(tokens)
        got, cache = in_pieces(model, tokens, [9, *[1] * 20, 11])
        assert got.dtype == dtype
        assert_same(got, want, tolerance)
        assert all(layer.state.dtype == torch.float32 for layer in cache.layers if isinstance(layer, RecurrentCache))


@torch.no_grad()
def test_a_cache_can_be_read_without_being_updated(model):
    tokens = tokens_of(model, 2, 50)
    want, _ = model(tokens)
    _, cache = model(tokens[:, :30])
    for length in (20, 1, 20):
        got, none = model(tokens[:, 30 : 30 + length], cache=cache, return_cache=False)
        assert none is None and cache.tokens == 30
        assert_same(got, want[:, 30 : 30 + length])


def test_a_cache_carries_no_gradient_and_decode_has_one(model):
    tokens = tokens_of(model, 2, 24)
    with torch.no_grad():
        want, _ = model(tokens)
    got, cache = in_pieces(model, tokens, [8, 1, 1, 14])
    assert_same(got.detach(), want)
    assert not cache.positions.requires_grad
    for layer in cache.layers:
        assert not any(tensor.requires_grad for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor))
    got[:, 9].sum().backward()  # the token decoded last
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_last_only(model):
    tokens = tokens_of(model, 2, 30)
    want, _ = model(tokens)
    got, _ = model(tokens, last_only=True)
    assert_same(got, want[:, -1:])


def test_inference_mode_and_int32(model):
    tokens = tokens_of(model, 2, 20)
    with torch.inference_mode():
        want, _ = model(tokens)
        got, _ = in_pieces(model, tokens.int(), [15, 1, 4], torch.arange(20, dtype=torch.int32).repeat(2, 1))
        assert_same(got, want)


@torch.no_grad()
def test_nothing_in_gives_nothing_out(model):
    _, cache = model(tokens_of(model, 2, 5))
    vocabulary = model.config.vocab_size
    for last_only in (False, True):
        logits, same = model(tokens_of(model, 2, 0), cache=cache, last_only=last_only)
        assert logits.shape == (2, 0, vocabulary) and same is cache and cache.tokens == 5
    logits, cache = model(tokens_of(model, 0, 7))
    assert logits.shape == (0, 7, vocabulary) and cache.tokens == 0
    assert model(tokens_of(model, 0, 7), last_only=True, return_cache=False)[0].shape == (0, 1, vocabulary)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 9, 16, 40])
def test_cache_bytes_are_as_the_configuration_counts(model, tokens):
    model = model.float()
    _, cache = model(tokens_of(model, 3, tokens))
    assert cache.nbytes(used=True) == 3 * model.config.cache_bytes(tokens, 4)
    held = sum(t.nbytes for layer in cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor))
    assert cache.nbytes() == held
    if model.config.family != "mqa":  # rings of local attention are allocated whole
        assert cache.nbytes() == 3 * model.config.cache_bytes(max(tokens, model.config.window), 4)


@torch.no_grad()
def test_rings_of_global_attention_double():
    model = make("mqa-tiny", torch.float32)
    sizes, cache = [], None
    for token in tokens_of(model, 1, 300)[0]:
        _, cache = model(token[None, None], cache=cache)
        sizes.append(cache.layers[0].slots)
    assert sorted(set(sizes)) == [64, 128, 256, 512]
    assert isinstance(cache.layers[0], AttentionCache) and not cache.layers[0].wraps


def test_every_parameter_has_a_gradient_and_a_step_lowers_the_loss(model):
    tokens = tokens_of(model, 4, 33)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        logits, cache = model(tokens, return_cache=False)
        assert cache is None
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_generate_takes_the_likeliest_token(model):
    prompt = tokens_of(model, 2, 5)
    text = model.generate(prompt, 30)
    assert text.shape == (2, 35) and torch.equal(text[:, :5], prompt)
    with torch.no_grad():
        logits, _ = model(text, return_cache=False)
    assert torch.equal(logits[:, 4:-1].argmax(dim=2), text[:, 5:])
    assert torch.equal(model.generate(prompt, 0), prompt)


def test_generate_draws_from_the_distribution():
    model = make("hawk-tiny", torch.float32)
    prompt = tokens_of(model, 1, 5).repeat(4000, 1)
    drawn = model.generate(prompt, 1, temperature=0.7, generator=torch.Generator().manual_seed(0))[:, 5]
    again = model.generate(prompt, 1, temperature=0.7, generator=torch.Generator().manual_seed(0))[:, 5]
    assert torch.equal(drawn, again)
    with torch.no_grad():
        likely = torch.softmax(model(prompt[:1], last_only=True)[0][0, 0] / 0.7, dim=0)
    seen = torch.bincount(drawn, minlength=256) / 4000
    # five standard deviations of a count of 4000 draws
    assert ((seen - likely).abs() <= 5 * (likely / 4000).sqrt() + 5 / 4000).all()


def test_compiles_as_one_graph(model):
    model = model.float()
    tokens = tokens_of(model, 2, 12)
    want, _ = model(tokens, return_cache=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, _ = compiled(tokens, return_cache=False)
    assert_same(got.detach(), want.detach(), 1e-5)
    got.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_softcap_bounds_logits():
    model = Griffin(replace(preset("griffin-tiny"), logits_softcap=0.5))
    tokens = tokens_of(model, 1, 9)
    with torch.no_grad():
        capped, _ = model(tokens)
    assert capped.abs().max() < 0.5
    assert_same(model(tokens)[0].detach(), capped, 1e-6)  # with gradients it is computed out of place


def test_configurations_and_presets_need_no_torch():
    code = "import sys, griffin_kernels.models.presets, griffin_kernels.models as m; m.preset('hawk-7b').parameters()"
    check = f"{code}; assert 'torch' not in sys.modules; m.Griffin; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
    assert set(models.__all__) <= set(dir(models))
    with pytest.raises(AttributeError, match="no attribute 'Gryphon'"):
        models.Gryphon  # noqa: B018
