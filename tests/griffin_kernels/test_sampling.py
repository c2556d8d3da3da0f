"""How tokens are drawn: by hand, token by token, and against the chance of every text, drafted or not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from griffin_kernels import models
from griffin_kernels.models.sampling import Sampling
from griffin_kernels.models.speculation import Drafts, accept
from tests.small_models import FAMILIES, draw, small

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(params=FAMILIES)
def model(request):
    return small(request.param)


def by_hand(logits, temperature, top_k, top_p):
    """The distribution token by token."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or len(logits)]
    weights = {token: math.exp((logits[token] - logits[order[0]]) / temperature) for token in order}
    total, kept, mass = sum(weights.values()), {}, 0.0
    for token in order:
        if kept and top_p is not None and mass >= top_p:
            break
        kept[token] = weights[token] / total
        mass += kept[token]
    return [kept.get(token, 0.0) / mass for token in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.4, 0.9, 1.0])
def test_probabilities_are_those_of_the_likeliest_tokens(temperature, top_k, top_p):
    logits = torch.randn(3, 2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[0, 0] = logits[0, 0].round()  # some are equally likely
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    rows = [[by_hand(row.tolist(), temperature, top_k, top_p) for row in pair] for pair in logits]
    want = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=0)  # some ten roundings of 1e-16


def test_bfloat16_logits_are_normalised_in_float32():
    found = Sampling(1.0, top_p=0.9).probabilities(torch.randn(4, 50).bfloat16())
    assert found.dtype == torch.float32 and torch.allclose(found.sum(1), torch.ones(4))


def test_top_k_of_one_is_greedy_and_a_generator_repeats(model):
    prompt = draw(3, 5)
    assert torch.equal(model.generate(prompt, 9, temperature=1.5, top_k=1), model.generate(prompt, 9))
    for options in ({}, {"prompt_lookup": 2}, {"assistant": small("hawk", seed=9)}):
        runs = [
            model.generate(
                prompt, 9, temperature=1.0, top_k=20, top_p=0.9, generator=torch.Generator().manual_seed(5), **options
            )
            for _ in range(2)
        ]
        assert torch.equal(*runs) and not torch.equal(runs[0], model.generate(prompt, 9))


def within(counts, chances):
    """Whether counts are within five standard deviations of what chances make likely; none where there is no chance."""
    total = counts.sum()
    spread = 5 * (total * chances * (1 - chances)).sqrt() + 5
    return bool(((counts - total * chances).abs() <= spread).all()) and not counts[chances == 0].any()


@pytest.mark.parametrize("certain", [True, False])
def test_the_first_token_of_a_round_is_distributed_as_the_model_says(certain):
    """Of drafts that the model likes and drafts that it does not, for one distribution and another."""
    rows, vocabulary = 20000, 6
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, vocabulary, generator=generator).repeat(rows, 1, 1)
    sampling = Sampling(1.0, generator=generator)
    p = torch.softmax(logits[0], dim=-1)
    q = torch.softmax(torch.randn(vocabulary, generator=generator), dim=0)
    if certain:
        tokens, chances = torch.full((rows, 1), 3), None
    else:
        tokens = torch.multinomial(q.repeat(rows, 1), 1, generator=generator)
        chances = q.repeat(rows, 1, 1)
    kept, after = accept(logits, Drafts(tokens, [1] * rows, chances), sampling)
    first = torch.where(kept == 1, tokens[:, 0], after)
    assert within(torch.bincount(first, minlength=vocabulary), p[0])
    assert within(torch.bincount(after[kept == 1], minlength=vocabulary), p[1])
    likely = p[0, 3] if certain else torch.minimum(p[0], q).sum()  # the rate that the paper's theorem 3.5 gives
    assert within(torch.bincount(kept, minlength=2), torch.stack([1 - likely, likely]))


@torch.no_grad()
def joint(model, prompt, sampling, count):
    """The chance of each text of ``count`` tokens, [V ** count]."""
    vocabulary = model.config.vocab_size
    texts = torch.tensor(list(itertools.product(range(vocabulary), repeat=count)))
    rows = torch.cat([torch.tensor(prompt).repeat(len(texts), 1), texts], dim=1)
    logits, _ = model(rows[:, :-1], return_cache=False)
    chances = sampling.probabilities(logits[:, -count:]).gather(2, texts[:, :, None])
    return chances.prod(dim=1)[:, 0]


@pytest.mark.parametrize(
    "options",
    [{}, {"prompt_lookup": 2, "draft_tokens": 3}, {"assistant": "other"}],
    ids=["plain", "lookup", "assistant"],
)
@pytest.mark.parametrize(
    "choice", [{"temperature": 0.8}, {"temperature": 1.2, "top_k": 3, "top_p": 0.95}], ids=["all", "top"]
)
def test_texts_are_distributed_as_the_model_says(options, choice):
    """Of four tokens from a vocabulary of four: 256 texts, each as often as its chance says."""
    model, rows, count = small("griffin", torch.float32, vocab_size=4, width=16, mlp_width=16), 6000, 4
    if "assistant" in options:
        options = {"assistant": small("hawk", torch.float32, seed=8, vocab_size=4, width=16, mlp_width=16)}
    prompt = [1, 3, 0, 1, 3, 2, 1, 3]
    made = models.generate(
        model,
        torch.tensor([prompt]).repeat(rows, 1),
        count,
        generator=torch.Generator().manual_seed(4),
        **choice,
        **options,
    )
    new = made.tokens[:, len(prompt) :]
    counts = torch.bincount((new * torch.tensor([64, 16, 4, 1])).sum(dim=1), minlength=256)
    assert within(counts, joint(model, prompt, Sampling(**choice), count))
    if options:
        assert 0 < made.acceptance.rate < 1
