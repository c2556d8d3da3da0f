"""The same weights and inputs through transformers' RecurrentGemma modules and through this package."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import RGLRUWeights

transformers = pytest.importorskip("transformers")
from transformers.masking_utils import create_sliding_window_causal_mask  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as theirs  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

OURS = "griffin_kernels_test"


def config(width, heads, **changes):
    sizes = {"hidden_size": width, "lru_width": width, "num_attention_heads": heads, "head_dim": width // heads}
    return transformers.RecurrentGemmaConfig(num_hidden_layers=3, vocab_size=10, intermediate_size=8, **sizes | changes)


def positions(layout, batch, time):
    """fresh: one document; continued: rows go on at position 5; documents: three in the first row."""
    if layout == "fresh":
        return torch.arange(time).repeat(batch, 1)
    if layout == "continued":
        return torch.arange(5, 5 + time).repeat(batch, 1)
    cut = time // 3
    rows = torch.arange(time).repeat(batch, 1)
    rows[0] = torch.cat([torch.arange(cut), torch.arange(1), torch.arange(time - cut - 1)])
    return rows


def assert_same(got, want, tolerance):
    scale = want.abs().max().clamp_min(1e-30)
    assert ((got - want).abs().max() / scale) <= tolerance


@pytest.mark.parametrize("state", [False, True], ids=["fresh_state", "state"])
@pytest.mark.parametrize("layout", ["fresh", "continued", "documents"])
@pytest.mark.parametrize(("width", "heads"), [(24, 3), (64, 1), (40, 10)])
def test_rg_lru(width, heads, layout, state):
    torch.manual_seed(width)
    module = theirs.RecurrentGemmaRglru(config(width, heads))
    for name, parameter in module.named_parameters():
        std = 0.5 if parameter.dim() < 3 else (width // heads) ** -0.5
        parameter.data.normal_(-3.0 if name == "recurrent_param" else 0.0, std)
    batch, time = 2, 23
    x, segment_pos = torch.randn(batch, time, width), positions(layout, batch, time)
    h0 = torch.randn(batch, width) if state else None
    upstream = torch.randn(batch, time, width)

    left = x.clone().requires_grad_()
    module.recurrent_states = h0
    want = module(left, segment_pos)
    want_last = module.recurrent_states
    want_gradients = torch.autograd.grad(want, [left, *module.parameters()], upstream)

    weights = RGLRUWeights(
        module.recurrent_param,
        module.input_gate_weight,
        module.recurrent_gate_weight,
        module.input_gate_bias,
        module.recurrent_gate_bias,
    )
    # a fresh sequence needs no positions
    for given in [segment_pos, None] if layout == "fresh" and h0 is None else [segment_pos]:
        right = x.clone().requires_grad_()
        got, got_last = griffin_kernels.rg_lru(right, weights, h0=h0, segment_pos=given)
        got_gradients = torch.autograd.grad(got, [right, *module.parameters()], upstream)

        assert_same(got, want, 1e-5)
        assert_same(got_last, want_last, 1e-5)
        # transformers computes 1 - a^2 by subtraction: up to 2^-24 / (1 - a^2), some 1e-5 here, enters its gradients
        for mine, other in zip(got_gradients, want_gradients, strict=True):
            assert_same(mine, other, 5e-5)


def test_one_token_after_a_prefix_through_the_state():
    torch.manual_seed(0)
    module = theirs.RecurrentGemmaRglru(config(24, 3))
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.3)
    weights = RGLRUWeights(
        module.recurrent_param,
        module.input_gate_weight,
        module.recurrent_gate_weight,
        module.input_gate_bias,
        module.recurrent_gate_bias,
    )
    x = torch.randn(2, 8, 24)
    with torch.no_grad():
        module(x[:, :7], torch.arange(7).repeat(2, 1))
        want = module(x[:, 7:], torch.full((2, 1), 7))
        _, h0 = griffin_kernels.rg_lru(x[:, :7], weights)
        got, _ = griffin_kernels.rg_lru(x[:, 7:], weights, h0=h0)
    assert_same(got, want, 1e-5)


def ours(module, query, key, value, attention_mask, *, scaling, sliding_window, segment_pos, **_):
    """transformers' attention interface: heads before time in, time before heads out."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = griffin_kernels.local_attention(
        q, k, v, window=sliding_window, scale=scaling, segment_pos=segment_pos.expand(q.shape[0], -1)
    )
    return out, None


@pytest.mark.parametrize("layout", ["fresh", "continued", "documents"])
@pytest.mark.parametrize("window", [1, 6, 64])
@pytest.mark.parametrize(("width", "heads", "shared"), [(32, 4, 1), (32, 4, 2), (48, 3, 3)])
def test_attention(width, heads, shared, window, layout):
    torch.manual_seed(width + heads)
    batch = 1 if layout == "documents" else 2  # transformers tells documents by positions in a batch of one only
    settings = config(width, heads, num_key_value_heads=shared, attention_window_size=window)
    settings._attn_implementation = "eager"
    module = theirs.RecurrentGemmaAttention(settings, layer_idx=2)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, width**-0.5)
    x, segment_pos = torch.randn(batch, 29, width, requires_grad=True), positions(layout, batch, 29)
    mask = create_sliding_window_causal_mask(
        config=settings, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=segment_pos
    )
    upstream = torch.randn(batch, 29, width)
    want, _ = module(x, segment_pos, mask)
    want_gradients = torch.autograd.grad(want, [x, *module.parameters()], upstream)

    ALL_ATTENTION_FUNCTIONS.register(OURS, ours)
    settings._attn_implementation = OURS
    got, _ = module(x, segment_pos, None, segment_pos=segment_pos)
    got_gradients = torch.autograd.grad(got, [x, *module.parameters()], upstream)
    assert_same(got, want, 1e-5)
    for mine, other in zip(got_gradients, want_gradients, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())


def test_recurrent_block_prefill_then_decode():
    torch.manual_seed(3)
    width, heads, prefill, steps = 40, 4, 13, 9
    module = theirs.RecurrentGemmaRecurrentBlock(config(width, heads), layer_idx=0)
    for name, parameter in module.named_parameters():
        parameter.data.normal_(-3.0 if name.endswith("recurrent_param") else 0.0, 0.5 if parameter.dim() < 2 else 0.3)
    lru = module.rg_lru
    weights = RGLRUWeights(
        lru.recurrent_param,
        lru.input_gate_weight,
        lru.recurrent_gate_weight,
        lru.input_gate_bias,
        lru.recurrent_gate_bias,
    )
    convolution = (module.conv_1d.weight[:, 0].T, module.conv_1d.bias)
    tokens, order = torch.randn(2, prefill + steps, width), torch.arange(prefill + steps).repeat(2, 1)
    first = tokens[:, :prefill].clone().requires_grad_()
    upstream = torch.randn(2, prefill, width)
    want, _ = module(first, order[:, :prefill], None)
    want_gradients = torch.autograd.grad(want, [first, *module.parameters()], upstream)
    branches = (module.linear_x(first), module.linear_y(first))
    out, kept, h = griffin_kernels.recurrent_block(*branches, *convolution, weights)
    got = module.linear_out(out)
    got_gradients = torch.autograd.grad(got, [first, *module.parameters()], upstream)
    assert_same(got, want, 1e-5)
    for mine, other in zip(got_gradients, want_gradients, strict=True):
        assert_same(mine, other, 5e-5)  # as in test_rg_lru

    kept, h = kept.detach().clone(), h.detach().clone()
    with torch.no_grad():
        module.conv1d_state = None  # once more, without a graph
        module(tokens[:, :prefill], order[:, :prefill], None)
        for step in range(prefill, prefill + steps):
            token, position = tokens[:, step : step + 1], order[:, step : step + 1]
            want, _ = module(token, position, None)
            branches = (module.linear_x(token)[:, 0], module.linear_y(token)[:, 0])
            out = griffin_kernels.recurrent_block_step(
                *branches, *convolution, weights, kept, h, positions=position[:, 0]
            )
            assert_same(module.linear_out(out), want[:, 0], 1e-5)
        assert_same(h, lru.recurrent_states, 1e-5)
        assert_same(kept, module.conv1d_state.transpose(1, 2), 1e-6)


@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (4, 2)])
def test_attention_decode(heads, shared):
    """Step after step over the ring against one pass of theirs over the whole sequence, well past the window."""
    torch.manual_seed(heads + shared)
    width, window, time = 32, 6, 21
    settings = config(width, heads, num_key_value_heads=shared, attention_window_size=window)
    settings._attn_implementation = "eager"
    module = theirs.RecurrentGemmaAttention(settings, layer_idx=2)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, width**-0.5)
    x, order = torch.randn(2, time, width), torch.arange(time).repeat(2, 1)
    mask = create_sliding_window_causal_mask(
        config=settings, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=order
    )
    with torch.no_grad():
        want, _ = module(x, order, mask)
        projected = [
            proj(x).view(2, time, -1, module.head_dim) for proj in (module.q_proj, module.k_proj, module.v_proj)
        ]
        turned = theirs.apply_rotary_pos_emb(
            *[p.transpose(1, 2) for p in projected[:2]], *module.rotary_emb(projected[2], order)
        )
        q, k, v = *[t.transpose(1, 2) for t in turned], projected[2]
        rings = [torch.zeros(2, window, shared, module.head_dim) for _ in range(2)]
        for step in range(time):
            token = (q[:, step], k[:, step], v[:, step])
            out = griffin_kernels.local_attention_step(*token, *rings, order[:, step], scale=module.scaling)
            assert_same(module.o_proj(out.flatten(1)), want[:, step], 1e-5)
