"""transformers' generate and caches on an accelerated RecurrentGemma, against plain forwards without a cache."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

from griffin_kernels import errors
from griffin_kernels.integrations.transformers import accelerate, restore
from griffin_kernels.integrations.transformers._hf_cache import CACHE
from tests.griffin_kernels.integrations.recurrent_gemmas import (
    CONFIGS,
    FLOAT32,
    VOCABULARY,
    alone,
    document,
    dynamic,
    error,
    in_pieces,
    made,
    told,
)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@pytest.fixture(params=CONFIGS)
def model(request):
    plain = made(request.param)
    yield accelerate(plain)
    restore(plain)


def assert_greedy(model, text, prompt):
    """Each token after the prompt of a text [1, T] is the likeliest by a plain forward of the text before it."""
    restore(model)
    likeliest = alone(model, text)[0, prompt - 1 : -1].argmax(-1)
    assert torch.equal(text[0, prompt:], likeliest)


def test_greedy_past_the_window(model):
    prompt = document(7)
    text = model.generate(prompt, max_new_tokens=64, do_sample=False)
    assert text.shape == (1, 71)
    assert_greedy(model, text, 7)


def test_a_ragged_batch(model):
    lengths = [12, 1, 7]
    tokens, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, 12 - length :], mask[row, 12 - length :] = document(length), 1
    for chunk in (None, 5):
        options = {"prefill_chunk_size": chunk, "do_sample": False, "max_new_tokens": 20}
        texts = accelerate(model).generate(tokens, attention_mask=mask, **options)
        for row, length in enumerate(lengths):
            assert_greedy(model, texts[row : row + 1, 12 - length :], length)


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"do_sample": True}, {"do_sample": True, "num_beams": 2}])
def test_a_cache_changes_nothing(model, options):
    prompt = torch.cat([document(9), document(9, seed=1)])
    options = {
        "max_new_tokens": 16,
        "return_dict_in_generate": True,
        "output_scores": True,
        "do_sample": False,
    } | options
    torch.manual_seed(0)
    got = model.generate(prompt, **options)
    restore(model)
    torch.manual_seed(0)
    want = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(got.sequences, want.sequences)
    if "num_beams" in options:
        assert error(got.sequences_scores, want.sequences_scores) <= FLOAT32


@pytest.mark.parametrize("pieces", [[30], [1] * 30, [3, 1, 12, 7, 1, 6], [8, 8, 14]])
def test_pieces_of_a_text(model, pieces):
    text = document(30)
    cache = dynamic(model)
    got = in_pieces(model, text, pieces, cache)
    assert cache.get_seq_length() == 30
    cache.reset()
    again = in_pieces(model, text, pieces, cache)
    restore(model)
    assert error(got, alone(model, text)) <= FLOAT32
    torch.testing.assert_close(again, got, rtol=0, atol=0)


def test_states_stay_where_they_are(model):
    cache, text = dynamic(model), document(9)
    told(model, text, cache)
    index = model.config.layer_types.index("linear_attention")
    layer = cache.layers[index]
    where = layer.conv_states[0].data_ptr(), layer.recurrent_states[0].data_ptr()
    taps = model.model.layers[index].temporal_block.conv1d_width
    assert layer.conv_states[0].shape == (1, model.config.lru_width, taps)
    assert layer.recurrent_states[0].dtype == torch.float32
    for piece in ([1, 1], [2, 3]):
        for part in document(sum(piece), seed=1).split(piece, 1):
            told(model, part, cache)
    assert (layer.conv_states[0].data_ptr(), layer.recurrent_states[0].data_ptr()) == where


def test_padding_between_the_tokens_of_a_row(model):
    """Rows of turns of different lengths, in one call, in pieces and token by token."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(3, 40, generator=generator) < 0.6).long()
    mask[2, 8:] = 0  # and a row that is padded on the right
    tokens = torch.zeros(3, 40, dtype=torch.int64)
    texts = [document(int(row.sum())) for row in mask]
    for row, text in enumerate(texts):
        tokens[row, mask[row] == 1] = text[0]
    found = []
    for pieces in ([40], [13, 1, 1, 1, 14, 10], [1] * 40):
        cache, logits, at = dynamic(model), [], 0
        for piece in tokens.split(pieces, 1):
            at += piece.shape[1]
            logits.append(told(model, piece, cache, attention_mask=mask[:, :at]))
        found.append(torch.cat(logits, 1))
    # and the caches hold only what was real
    more = document(3, seed=5).expand(3, 3)
    longer = torch.cat([mask, torch.ones(3, 3, dtype=torch.int64)], 1)
    after = told(model, more, cache, attention_mask=longer)
    with torch.no_grad():
        found.append(model(tokens, attention_mask=mask, use_cache=False).logits)
    restore(model)
    for row, text in enumerate(texts):
        want = alone(model, torch.cat([text, more[:1]], 1))[0]
        for logits in found:
            assert error(logits[row, mask[row] == 1], want[:-3]) <= FLOAT32
        assert error(after[row], want[-3:]) <= FLOAT32


def test_a_new_document_within_a_continued_call(model):
    first, second = document(9), document(6, seed=1)
    cache = dynamic(model)
    a = told(model, first[:, :5], cache)
    positions = torch.cat([torch.arange(5, 9), torch.arange(4)])[None]
    b = told(model, torch.cat([first[:, 5:], second[:, :4]], 1), cache, position_ids=positions)
    c = told(model, second[:, 4:], cache, position_ids=torch.tensor([[4, 5]]))
    restore(model)
    got = torch.cat([a, b, c], 1)
    assert error(got[:, :9], alone(model, first)) <= FLOAT32
    assert error(got[:, 9:], alone(model, second)) <= FLOAT32


def test_a_static_cache(model):
    text = document(30)
    if model.config.layer_types == ["linear_attention"] * 2:
        cache = transformers.StaticCache(config=model.config, max_cache_len=40)
        assert error(in_pieces(model, text, [3, 1, 26], cache), alone(restore(model), text)) <= FLOAT32
        return
    for pieces in ([3, 1, 1, 12, 1, 12], [30], [1] * 30):
        cache = transformers.StaticCache(config=model.config, max_cache_len=40)
        got = in_pieces(accelerate(model), text, pieces, cache)
        assert error(got, alone(restore(model), text)) <= FLOAT32
    accelerate(model)
    generated = model.generate(text[:, :4], max_new_tokens=12, do_sample=False, cache_implementation="static")
    assert_greedy(model, generated, 4)


def test_generate_goes_on_from_a_cache(model):
    """A second turn, given as the whole text and given as new tokens."""
    prompt, turn = document(6), document(4, seed=1)
    options = {"max_new_tokens": 5, "do_sample": False}
    for whole in (True, False):
        accelerate(model)
        cache = dynamic(model)
        first = model.generate(prompt, **{CACHE: cache}, **options)
        seen = cache.get_seq_length()
        assert seen == 10  # the last token was not told
        asked = torch.cat([first, turn], 1)
        new = asked if whole else asked[:, seen:]
        second = model.generate(new, attention_mask=torch.ones_like(asked), **{CACHE: cache}, **options)
        text = torch.cat([asked, second[:, new.shape[1] :]], 1)
        assert text.shape == (1, 20)
        assert_greedy(model, text, asked.shape[1])


def test_assisted_decoding_is_refused_as_before(model):
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(document(5), max_new_tokens=4, prompt_lookup_num_tokens=2)


def test_embeddings_for_tokens(model):
    text = document(8)
    with torch.no_grad():
        got = model(inputs_embeds=model.get_input_embeddings()(text)).logits
    assert error(got, alone(restore(model), text)) <= FLOAT32


def test_what_modules_record(model):
    text = torch.cat([document(12), document(12, seed=1)])
    mask = torch.ones_like(text)
    mask[1, :4] = 0
    model.set_attn_implementation("eager")
    try:
        asked = {"output_hidden_states": True, "output_attentions": True, "attention_mask": mask}
        with torch.no_grad():
            got, without = model(text, **asked), model(text, attention_mask=mask, output_hidden_states=True)
            restore(model)
            want = model(text, use_cache=False, **asked)
    finally:
        model.set_attn_implementation("sdpa")
    assert error(got.logits, without.logits) <= FLOAT32
    assert len(got.hidden_states) == len(want.hidden_states) == model.config.num_hidden_layers + 1
    assert len(got.attentions) == len(want.attentions) == model.config.layer_types.count("sliding_attention")
    for one, other in zip(got.hidden_states, want.hidden_states, strict=True):
        assert error(one[0], other[0]) <= FLOAT32  # the other row is padded
    for one, other in zip(got.attentions, want.attentions, strict=True):
        assert error(one[0], other[0]) <= FLOAT32
        assert not one[1, :, 4:, :4].any()


def test_a_mask_of_the_user(model):
    text = document(12)
    seen = torch.ones(12, 12, dtype=torch.bool).tril() & torch.ones(12, 12, dtype=torch.bool).triu(-1)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        with pytest.warns(errors.FallbackWarning, match="attention_mask: not"):
            got = model(text, attention_mask=mask, use_cache=False).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once
            model(text, attention_mask=mask, use_cache=False)
        want = restore(model)(text, attention_mask=mask, use_cache=False).logits
    assert error(got, want) <= FLOAT32


def test_attention_in_both_directions(model):
    """As encoders are made of such models: transformers' own attention, which sees what comes after."""
    found = []
    for text in (document(6), document(20)):  # shorter and longer than the window
        with torch.no_grad():
            got = accelerate(model)(text, use_cache=False, is_causal=False).logits
            found.append(error(got, restore(model)(text, use_cache=False, is_causal=False).logits))
            assert "sliding_attention" not in model.config.layer_types or error(got, alone(model, text)) > 100 * FLOAT32
    assert max(found) <= FLOAT32


WRONG = {
    "a short mask": lambda model, cache: {"attention_mask": torch.ones(1, 2, dtype=torch.int64)},
    "positions of too many": lambda model, cache: {"position_ids": torch.arange(4)[None]},
    "offsets of two rows": lambda model, cache: {
        "input_ids": document(3).expand(2, 3), "cu_seq_lens_q": torch.tensor([0, 3]), CACHE: None
    },
    "another batch": lambda model, cache: {"input_ids": document(3).expand(2, 3)},
    "another model's cache": lambda model, cache: {
        CACHE: transformers.DynamicCache(config=transformers.RecurrentGemmaConfig(num_hidden_layers=7))
    },
    "no cache": lambda model, cache: {CACHE: [cache]},
}  # fmt: skip
SAYS = {
    "a short mask": "attention_mask: shape .1, 2., expected .1, 8., the 5 tokens in the cache counted",
    "positions of too many": "position_ids: shape .1, 4., expected .1, 3.",
    "offsets of two rows": "cu_seq_lens_q: shape .2. with 2 rows, expected offsets",
    "another batch": "holds 1 rows, but tokens have 2",
    "another model's cache": "has 7 layers, the model",
    "no cache": "is a list, expected a Cache",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(model, wrong):
    cache = filled(model)
    arguments = {"input_ids": document(3), "use_cache": True, CACHE: cache} | WRONG[wrong](model, cache)
    with pytest.raises(errors.ArgumentError, match=SAYS[wrong]), torch.no_grad():
        model(**arguments)


def filled(model):
    cache = dynamic(model)
    told(model, document(5), cache)
    return cache


def test_a_cache_without_layers_gets_them(model):
    cache, text = transformers.DynamicCache(), document(9)
    got = in_pieces(model, text, [4, 1, 4], cache) if "sliding_attention" in model.config.layer_types else None
    if got is not None:
        assert error(got, alone(restore(model), text)) <= FLOAT32
    else:
        told(model, text, cache)
        assert cache.get_seq_length() == 9


def test_a_cache_of_the_plain_model_is_refused():
    model = made("mix")
    cache, text = dynamic(model), document(9)
    told(model, text, cache)
    try:
        with pytest.raises(errors.ArgumentError, match="no recurrent states"):
            told(accelerate(model), text, cache)
    finally:
        restore(model)


def test_inference_mode_and_out_of_it(model):
    cache, text = dynamic(model), document(12)
    with torch.inference_mode():
        first = model(text[:, :5], **{CACHE: cache}).logits.clone()
    later = in_later(model, text, cache)
    want = alone(restore(model), text)
    assert error(first, want[:, :5]) <= FLOAT32 and error(later, want[:, 5:]) <= FLOAT32


def in_later(model, text, cache):
    return torch.cat([told(model, piece, cache) for piece in text[:, 5:].split([1, 3, 3], 1)], 1)


def test_the_vocabulary_is_what_documents_are_of():
    assert int(document(500).max()) < VOCABULARY
