"""generate: each row has the tokens that it would have alone, however prompts are padded and tokens are drafted."""

from __future__ import annotations

import contextlib
import math
import re
import runpy
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from griffin_kernels import errors, models
from griffin_kernels.models.decode_graph import DecodeGraph
from griffin_kernels.models.sampling import Transcript
from griffin_kernels.models.speculation import LookupDrafter
from tests import ROOT
from tests.small_models import FAMILIES, VOCABULARY, WINDOW, draw, small

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.usefixtures("one_thread"),
]

NEW = 3 * WINDOW
LENGTHS = (3, 11, 1, 8)
"""Prompts shorter and longer than the window."""


@pytest.fixture(params=FAMILIES)
def model(request):
    return small(request.param)


KNOWN = {}
"""Of models as ``small`` makes them: (configuration, prompt) -> the likeliest tokens so far."""


@torch.no_grad()
def alone(model, prompt, count):
    """The likeliest tokens after one prompt, everything computed anew for each."""
    new = KNOWN.setdefault((model.config, tuple(prompt)), [])
    while len(new) < count:
        logits, _ = model(torch.tensor([[*prompt, *new]]), return_cache=False)
        new.append(int(logits[0, -1].argmax()))
    return new[:count]


def prompts():
    return [draw(1, length, seed=60 + length)[0].tolist() for length in LENGTHS]


def padded(rows, side, width=12, padding=0):
    """tokens and mask [B, width] of rows, padded on the left, on the right, or in between."""
    tokens, mask = torch.full((len(rows), width), padding), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, ids in enumerate(rows):
        places = {"left": range(width - len(ids), width), "right": range(len(ids))}.get(side)
        if places is None:
            places = sorted(torch.randperm(width, generator=torch.Generator().manual_seed(row))[: len(ids)].tolist())
        tokens[row, list(places)], mask[row, list(places)] = torch.tensor(ids), 1
    return tokens, mask


# --- prompts


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_rows_of_several_lengths_have_the_tokens_of_their_own_runs(model, side):
    rows = prompts()
    tokens, mask = padded(rows, side, padding=-100)
    text = model.generate(tokens, NEW, attention_mask=mask.bool() if side == "left" else mask)
    assert text.shape == (4, 12 + NEW) and text.dtype == tokens.dtype
    assert torch.equal(text[:, :12], tokens)
    assert text[:, 12:].tolist() == [alone(model, row, NEW) for row in rows]


def test_lengths_in_place_of_a_mask(model):
    rows = prompts()
    tokens, mask = padded(rows, "right", padding=10**6)
    text = model.generate(tokens.int(), NEW, lengths=torch.tensor(LENGTHS, dtype=torch.int32))
    assert text.dtype == torch.int32
    assert torch.equal(text[:, 12:].long(), model.generate(tokens, NEW, attention_mask=mask)[:, 12:])


def test_a_mask_of_ones_is_none(model):
    tokens = draw(2, 9)
    want = model.generate(tokens, 5)
    assert torch.equal(model.generate(tokens, 5, attention_mask=torch.ones(2, 9, dtype=torch.bool)), want)
    assert torch.equal(model.generate(tokens, 5, lengths=torch.tensor([9, 9])), want)


def test_nothing_asked_for_and_no_rows(model):
    tokens = draw(2, 4)
    assert torch.equal(model.generate(tokens, 0, eos_token_id=3), tokens)
    for options in (
        {},
        {"temperature": 1.0},
        {"prompt_lookup": 2},
        {"assistant": model},
        {"lengths": torch.zeros(0).long()},
    ):
        assert model.generate(tokens[:0], 5, **options).shape == (0, 9)
    assert model.generate(tokens, 0, prompt_lookup=2).shape == (2, 4)
    assert model.generate(tokens, 1, assistant=model).shape == (2, 5)


def test_text_goes_on_from_a_cache_that_stays_as_it_is(model):
    """A prefix that all rows share, read once."""
    prefix, rows = draw(1, WINDOW + 3, seed=8), prompts()
    tokens, mask = padded(rows, "left")
    with torch.no_grad():
        _, cache = model(prefix)
    want = [alone(model, prefix[0].tolist() + row, NEW) for row in rows]
    for options in ({}, {"prompt_lookup": 2}, {}):
        text = model.generate(tokens, NEW, attention_mask=mask, cache=cache.repeat(4), **options)
        assert text[:, 12:].tolist() == want
    first = model.generate(tokens[:1], 5, cache=cache)
    assert torch.equal(model.generate(tokens[:1], 5, cache=cache), first) and cache.tokens == WINDOW + 3


# --- where rows end


def ended(rows, ends):
    """Rows cut after the first token for which ``ends`` of the tokens so far is true."""
    return [next((row[: n + 1] for n in range(len(row)) if ends(row[: n + 1])), row) for row in rows]


DRAFTING = [
    {},
    {"prompt_lookup": 3},
    {"prompt_lookup": 1, "draft_tokens": 2},
    {"assistant": "other"},
    {"assistant": "same"},
]


def drafting(model, options):
    if "assistant" not in options:
        return options
    other = small("hawk", seed=9) if options["assistant"] == "other" else model
    return options | {"assistant": other, "draft_tokens": 3}


@pytest.mark.parametrize("options", DRAFTING, ids=str)
def test_rows_end_where_they_should_and_are_padded(options):
    model = small("griffin")
    options = drafting(model, options)
    rows = prompts()
    tokens, mask = padded(rows, "left")
    whole = [alone(model, row, NEW) for row in rows]
    first, second = whole[0][4], whole[1][7]
    pair = tuple(whole[3][5:7])
    cases = [
        ({"eos_token_id": first}, lambda new: new[-1] == first, first),
        ({"eos_token_id": torch.tensor(first), "pad_token_id": 7}, lambda new: new[-1] == first, 7),
        ({"eos_token_id": torch.tensor([second, first])}, lambda new: new[-1] in (first, second), second),
        ({"eos_token_id": [first, second], "pad_token_id": -1}, lambda new: new[-1] in (first, second), -1),
        ({"stop": [pair, [first]], "pad_token_id": 39}, lambda new: tuple(new[-2:]) == pair or new[-1] == first, 39),
        ({"stop": lambda new: sum(new) > 90}, lambda new: sum(new) > 90, 0),
        (
            {"eos_token_id": {second}, "stop": lambda new: len(new) == 9},
            lambda n: n[-1] == second or len(n) == 9,
            second,
        ),
    ]
    for ends, rule, padding in cases:
        want, streamed = ended(whole, rule), [[] for _ in rows]
        made = models.generate(
            model, tokens, NEW, attention_mask=mask, on_token=lambda row, token, to=streamed: to[row].append(token),
            **ends, **options,
        )  # fmt: skip
        assert made.lengths == tuple(map(len, want)) and min(made.lengths) < NEW
        assert streamed == want
        new = made.tokens[:, tokens.shape[1] :].tolist()
        assert new == [row + [padding] * (max(made.lengths) - len(row)) for row in want]
        assert torch.equal(made.tokens[:, : tokens.shape[1]], tokens)


def test_stops_when_all_rows_have_ended():
    model, calls = small("hawk"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    prompt = draw(1, 5)
    new = alone(model, prompt[0].tolist(), NEW)
    calls.clear()
    text = model.generate(prompt, 1000, eos_token_id=new[3])
    assert text.shape[1] - 5 == new.index(new[3]) + 1 == len(calls)


# --- drafts


@pytest.mark.parametrize("options", DRAFTING[1:], ids=str)
def test_drafts_change_no_token(model, options):
    """Far past the window, rows accept other numbers of drafts, the last round is cut to what is left."""
    rows = prompts()
    rows[1] = (rows[1][:4] * 3)[:11]  # a text that repeats itself
    tokens, mask = padded(rows, "right")
    made = models.generate(model, tokens, 40, attention_mask=mask, **drafting(model, options))
    assert made.tokens[:, 12:].tolist() == [alone(model, row, 40) for row in rows]
    seen = made.acceptance
    assert all(0 <= kept <= offered for kept, offered in zip(seen.accepted, seen.drafted, strict=True))
    assert seen.rate == sum(seen.accepted) / sum(seen.drafted)
    if options.get("assistant") == "same":
        assert seen.rate == 1 and seen.calls == 1 + math.ceil(39 / 4)
    assert seen.calls <= 40


def test_a_text_that_repeats_itself_needs_few_calls():
    """A model whose greedy text has come round is read several tokens at a time."""
    model = small("hawk")
    prompt = draw(1, 4)
    made = models.generate(model, prompt, 200, prompt_lookup=3, draft_tokens=7)
    assert torch.equal(made.tokens, model.generate(prompt, 200))
    assert made.acceptance.calls < 100 and made.acceptance.rate > 0.5


def test_lookup_drafts_what_came_after_the_longest_match():
    texts = Transcript(2, 9, frozenset(), None, None)
    drafter = LookupDrafter([[5, 6, 7, 8, 6, 7], [1, 2, 3, 1]], 2, 4, torch.device("cpu"))
    drafts = drafter.propose([9, 2], texts)
    assert drafts.tokens.tolist() == [[8, 6, 7, 8], [2, 3, 0, 0]] and drafts.lengths == [4, 2]
    texts.rows = [[9], [2]]
    drafts = drafter.propose([4, 4], texts)
    assert drafts.lengths == [0, 4] and drafts.tokens[1].tolist() == [3, 1, 2, 3]
    texts.rows = [[9, 9], [2]]
    assert drafter.propose([4, 0], texts).tokens.tolist() == [[9] * 4, [0] * 4]


def test_the_example_runs(capsys):
    """It asserts that drafts change no token, of two models that it trains."""
    runpy.run_path(str(ROOT / "examples" / "speculative_decoding.py"), run_name="__main__")
    calls = dict(re.findall(r"(prompt lookup|assistant): (\d+) calls", capsys.readouterr().out))
    assert len(calls) == 2 and all(int(number) < 130 for number in calls.values())


# --- what is read, what is refused


@pytest.mark.parametrize("options", DRAFTING, ids=str)
def test_settings_of_torch_that_are_the_users(options):
    model = small("griffin", torch.float32)
    options = drafting(model, options) | {"eos_token_id": 5, "pad_token_id": 0}
    if isinstance(options.get("assistant"), models.Griffin) and options["assistant"] is not model:
        options["assistant"] = options["assistant"].float()
    tokens, mask = padded(prompts(), "left")
    want = model.generate(tokens, NEW, attention_mask=mask, **options)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", errors.UntunedWarning)
            assert torch.equal(model.generate(tokens, NEW, attention_mask=mask, **options), want)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    with torch.autocast("cpu", torch.bfloat16):
        text = model.generate(tokens, NEW, attention_mask=mask, **options)
    assert torch.equal(text[:, :12], tokens) and 0 <= int(text.min()) and int(text.max()) < VOCABULARY


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read on the host"
        return func(*args, **kwargs or {})


def test_decoding_reads_nothing_unless_something_is_watched(model, monkeypatch):
    prompt, lists, plain = draw(2, 5), [], torch.Tensor.tolist

    def noted(tensor):
        if sys._getframe(1).f_globals["__name__"].startswith("griffin_kernels.models"):  # kernels read indices on a CPU
            lists.append(tensor)
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    with NoReads():
        model.generate(prompt, 12)
        model.generate(prompt, 12, temperature=1.0, top_k=9, top_p=0.9)
        assert not lists
        model.generate(prompt, 12, on_token=lambda row, token: None)
        assert len(lists) == 12
        model.generate(prompt, 12, assistant=model, draft_tokens=3)
        assert len(lists) == 12 + 1 + 3  # the first token, then four a round


@torch.no_grad()
def test_a_cache_is_copied_and_verified_without_reading(model):
    prompt, lengths, taken = draw(3, 9), torch.tensor([9, 2, 5]), torch.tensor([2, 0, 1])
    rows = torch.tensor([2, 0, 0])
    with NoReads():
        _, cache = model(prompt, lengths=lengths)
        saved = cache.snapshot(rows)
        _, pending = model.verify(prompt[:, :3], cache)
        pending.commit(taken)
        cache.reorder(rows)
        cache.restore(saved)
        cache.restore(saved.select(rows[:2]), rows[:2])
        cache.repeat(2).fork()
    assert cache.positions.tolist() == [5, 9, 9]


def test_the_first_step_of_a_graph_is_an_ordinary_one(model):
    prompt = draw(2, 5)
    with torch.no_grad():
        logits, cache = model(prompt)
        step, other = DecodeGraph(model, cache, 3), cache.fork()
        token = logits[:, -1].argmax(1)
        assert torch.equal(step(token), model(token[:, None], cache=other)[0][:, 0])
    assert cache.tokens == 6


@torch.no_grad()
def test_a_graph_has_its_tokens_in_one_place_and_counts_what_replays_do(model, monkeypatch):
    """A stand-in for CUDA's: capturing runs nothing, replaying runs what was captured, in the same memory."""
    prompt = draw(2, 5)
    logits, cache = model(prompt)
    other, step = cache.fork(), DecodeGraph(model, cache, 6)

    class Replayed:
        def replay(self):
            counts = cache.tokens, cache.bound
            self.logits.copy_(step._step())
            cache.tokens, cache.bound = counts

    @contextlib.contextmanager
    def capture(graph, **_):
        kept = cache.fork()
        yield
        cache.restore(kept)
        cache.tokens, cache.bound = kept.tokens + 1, kept.bound + 1  # what the host has counted
        graph.logits = step.logits.fill_(torch.nan)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Replayed)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    addresses = None
    for number in range(1, 7):
        token = logits[:, -1].argmax(dim=1)
        logits, _ = model(token[:, None], cache=other)
        assert torch.equal(step(token), logits[:, 0])
        assert (cache.tokens, cache.bound) == (other.tokens, other.bound) == (5 + number, 5 + number)
        places = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
        assert addresses in (None, places)
        addresses = places


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_in_a_graph_gives_the_same_tokens(model, dtype):
    model = model.to("cuda", dtype)
    tokens, mask = (tensor.cuda() for tensor in padded(prompts(), "left"))
    options = {"attention_mask": mask, "eos_token_id": 7}
    want = model.generate(tokens, 40, cuda_graph=False, **options)
    assert torch.equal(model.generate(tokens, 40, **options), want)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": 0}, errors.ArgumentError, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, errors.ArgumentError, "top_p is 0.0, expected above 0"),
        ({"top_p": math.nan}, errors.ArgumentError, "top_p is nan"),
        ({"eos_token_id": VOCABULARY}, errors.ArgumentError, "eos_token_id: 40, expected 0 to 39"),
        ({"stop": [[1], []]}, errors.ArgumentError, "stop has a sequence of 0 tokens"),
        ({"draft_tokens": 0}, errors.ArgumentError, "draft_tokens is 0"),
        ({"prompt_lookup": 0}, errors.ArgumentError, "prompt_lookup is 0"),
        ({"prompt_lookup": True}, errors.ArgumentError, "prompt_lookup is True"),
        ({"assistant": "other"}, errors.ArgumentError, "assistant is a str, expected a Griffin"),
        ({"assistant": models.Griffin(small("hawk").config, device="meta")}, errors.DeviceMismatchError, "on meta"),
        ({"cache": small("hawk").init_cache(3)}, errors.ShapeError, "cache: made for 3 rows, but tokens have 2"),
        ({"cache": small("hawk").init_cache(2), "assistant": small("hawk")}, errors.ArgumentError, "has not seen"),
        ({"prompt_lookup": 1, "assistant": small("hawk")}, errors.ArgumentError, "are both given"),
        ({"assistant": small("hawk", vocab_size=9)}, errors.ArgumentError, "has 9 tokens, but the model has 40"),
        ({"lengths": torch.tensor([0, 2])}, errors.ShapeError, "a prompt of 0 tokens in row 0"),
        ({"lengths": torch.tensor([1, 3])}, errors.ArgumentError, "lengths: 3, expected 0 to T=2"),
        ({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, errors.ShapeError, "a prompt of 0 tokens in row 1"),
        ({"attention_mask": torch.ones(2, 2)}, errors.DtypeError, "attention_mask: dtype torch.float32"),
        ({"attention_mask": torch.ones(2, 3).bool()}, errors.ShapeError, r"attention_mask: shape \[2, 3\]"),
        ({"attention_mask": [[1, 1], [1, 1]]}, errors.ArgumentError, "attention_mask is a list"),
        (
            {"attention_mask": torch.ones(2, 2).bool(), "lengths": torch.tensor([1, 2])},
            errors.ArgumentError,
            "lengths and attention_mask are both given",
        ),
        ({"attention_mask": torch.ones(2, 2, device="meta").bool()}, errors.DeviceMismatchError, "on meta"),
        ({"tokens": [[1, 2]]}, errors.ArgumentError, "tokens is a list"),
        ({"tokens": torch.ones(2, 2)}, errors.DtypeError, "tokens: dtype torch.float32"),
    ],
)
def test_options_at_fault_are_named(options, error, words):
    with pytest.raises(error, match=words):
        small("hawk").generate(**{"tokens": draw(2, 2), "max_new_tokens": 3} | options)
