"""Caches: rows that take in tokens of their own, tokens that are taken in later or never, copies of rows."""

from __future__ import annotations

import random

import pytest
import torch

from griffin_kernels import errors
from griffin_kernels.models.cache import AttentionCache, Cache
from tests.small_models import FAMILIES, VOCABULARY, WINDOW, draw, small

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.usefixtures("one_thread"),
]

EXACT = 1e-13
"""Of the largest element, in float64: other kernels add the same products in another order."""


@pytest.fixture(params=FAMILIES)
def model(request):
    return small(request.param)


def near(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    error = (got - want).abs().max() / want.abs().max()
    assert error <= EXACT, f"{error:.1e}"


def ends(model, rows):
    """Logits after the last token of each sequence, by itself and at once."""
    return torch.stack([model(row[None], return_cache=False)[0][0, -1] for row in rows])


def filled(model, rows):
    """A cache of sequences of several lengths, padded with ids that would be noticed."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = draw(len(rows), int(lengths.max()), seed=99)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    logits, cache = model(tokens, lengths=lengths, last_only=True)
    return logits[:, 0], cache


ROWS = [draw(1, length, seed=length)[0] for length in (3, 17, 1, 8)]
"""Sequences shorter and longer than the window."""


@torch.no_grad()
def test_rows_of_several_lengths_are_as_if_each_were_alone(model):
    logits, cache = filled(model, ROWS)
    near(logits, ends(model, ROWS))
    assert cache.positions.tolist() == [len(row) for row in ROWS]
    texts = list(ROWS)
    # pieces of which some rows get nothing, one token, more than a window
    for seed, lengths in enumerate(([2, 0, 9, 1], [1, 1, 1, 1], [0, 4, 2, 7], [1, 0, 0, 1])):
        piece = draw(4, max(lengths), seed=50 + seed)
        logits, cache = model(piece, cache=cache, lengths=torch.tensor(lengths, dtype=torch.int32), last_only=True)
        texts = [torch.cat([text, row[:length]]) for text, row, length in zip(texts, piece, lengths, strict=True)]
        given = torch.tensor(lengths) > 0
        near(logits[given, 0], ends(model, texts)[given])
        assert cache.positions.tolist() == [len(text) for text in texts]
    token = draw(4, 1, seed=7)
    near(model(token, cache=cache)[0][:, 0], ends(model, [torch.cat(pair) for pair in zip(texts, token, strict=True)]))


@torch.no_grad()
def test_lengths_and_documents(model):
    """Documents begin within what a row gets and within what only pads."""
    tokens = draw(2, 12)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    lengths = torch.tensor([8, 10])
    _, cache = model(tokens, positions, lengths=lengths)
    assert cache.positions.tolist() == [5, 10]
    token = draw(2, 1, seed=4)
    documents = [torch.cat([tokens[0, 3:8], token[0]]), torch.cat([tokens[1, :10], token[1]])]
    near(model(token, cache=cache)[0][:, 0], ends(model, documents))


@torch.no_grad()
def test_a_row_that_gets_nothing_stays_where_it_is_whatever_its_padding_says(model):
    tokens = draw(2, 70)
    _, cache = model(tokens)
    positions = torch.tensor([[0, 1, 2], [70, 71, 72]])  # a document that begins, but is not there
    _, cache = model(draw(2, 3, seed=1), positions, cache, lengths=torch.tensor([0, 1]))
    assert cache.positions.tolist() == [70, 71] and cache.bound >= 71
    _, cache = model(draw(2, 3, seed=1), torch.tensor([[0, 1, 2], [0, 1, 2]]), cache, lengths=torch.tensor([0, 2]))
    assert cache.positions.tolist() == [70, 2] and cache.bound >= 70
    go_on(model, cache, [tokens[0], draw(2, 3, seed=1)[1, :2]])


def test_lengths_where_gradients_are_recorded(model):
    """Output, gradients and cache are those of no_grad; an earlier call's graph keeps the states that it needs."""
    tokens, lengths = draw(2, 9), torch.tensor([4, 9])
    with torch.no_grad():
        want, cache = model(tokens, lengths=lengths)
        more, _ = model(tokens, cache=cache, lengths=lengths)
    first, cache = model(tokens, lengths=lengths)
    second, cache = model(tokens, cache=cache, lengths=lengths)
    near(first.detach(), want)
    near(second.detach()[1], more[1])
    near(second.detach()[0, :4], more[0, :4])
    (first.square().mean() + second.square().mean()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("taken", [[0, 0, 0, 0], [1, 5, 2, 3], [5, 5, 5, 5]])
def test_pending_tokens_are_taken_in_as_far_as_wanted(model, taken):
    """Every row keeps another number of drafted tokens, past the window too, and nothing before is lost."""
    _, cache = filled(model, ROWS)
    before = cache.fork()
    drafted = draw(4, 5, seed=11)
    logits, pending = model.verify(drafted, cache)
    for n in range(5):
        texts = [torch.cat([row, piece[: n + 1]]) for row, piece in zip(ROWS, drafted, strict=True)]
        near(logits[:, n], ends(model, texts))
    for mine, theirs in zip(cache.layers, before.layers, strict=True):  # reading is no writing
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors, theirs.tensors, strict=True))
    addresses = [t.data_ptr() for layer in cache.layers for t in layer.tensors]
    pending.commit(torch.tensor(taken), most=max(taken))
    assert addresses == [t.data_ptr() for layer in cache.layers for t in layer.tensors]
    texts = [torch.cat([row, piece[:n]]) for row, piece, n in zip(ROWS, drafted, taken, strict=True)]
    assert cache.positions.tolist() == [len(text) for text in texts]
    assert int(cache.positions.max()) <= cache.bound
    more = draw(4, 2 * WINDOW, seed=12)
    for step in range(2 * WINDOW):  # every slot that was not to be overwritten is read
        logits, cache = model(more[:, step : step + 1], cache=cache)
        near(logits[:, 0], ends(model, [torch.cat([t, m[: step + 1]]) for t, m in zip(texts, more, strict=True)]))


@torch.no_grad()
def test_tokens_are_committed_once_and_to_an_unchanged_cache(model):
    _, cache = filled(model, ROWS)
    _, pending = model.verify(draw(4, 2), cache)
    with pytest.raises(errors.ArgumentError, match="lengths: 3, expected 0 to T=2"):
        pending.commit(torch.tensor([0, 1, 2, 3]))
    pending.commit(torch.tensor([0, 1, 2, 0]))
    for again in (pending, model.verify(draw(4, 2), cache)[1]):
        model(draw(4, 1), cache=cache)
        with pytest.raises(errors.ArgumentError, match="the cache has changed since these tokens were read"):
            again.commit(torch.tensor([1, 1, 1, 1]))
    with pytest.raises(errors.ArgumentError, match="cache is a NoneType"):
        model.verify(draw(4, 2), None)
    empty, pending = model.verify(draw(4, 0), cache)
    pending.commit(torch.zeros(4, dtype=torch.int64))
    assert empty.shape == (4, 0, 40)


@torch.no_grad()
def test_an_empty_cache_verifies_a_whole_prompt(model):
    cache = model.init_cache(2)
    tokens = draw(2, 9)
    logits, pending = model.verify(tokens, cache)
    near(logits, model(tokens, return_cache=False)[0])
    pending.commit(torch.tensor([0, 7]))
    more = draw(2, 1, seed=5)
    near(model(more, cache=cache)[0][:, 0], ends(model, [more[0], torch.cat([tokens[1, :7], more[1]])]))


def go_on(model, cache, texts, seed=20):
    """Give a piece, then tokens one by one until every slot was read, and hold each row to a run of its own."""
    tokens = draw(len(texts), WINDOW + 4, seed)
    logits, _ = model(tokens[:, :3], cache=cache)
    near(logits[:, -1], ends(model, [torch.cat([text, row[:3]]) for text, row in zip(texts, tokens, strict=True)]))
    for step in range(3, WINDOW + 4):
        logits, _ = model(tokens[:, step : step + 1], cache=cache)
    near(logits[:, 0], ends(model, [torch.cat([text, row]) for text, row in zip(texts, tokens, strict=True)]))


@torch.no_grad()
def test_restore_goes_back_in_place_as_often_as_wanted(model):
    _, cache = filled(model, ROWS)
    saved = cache.snapshot()
    go_on(model, cache, ROWS)
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors] + [cache.positions.data_ptr()]
    for seed in (21, 22):
        cache.restore(saved)
        assert (cache.tokens, cache.bound) == (saved.tokens, saved.bound) == (17, 17)
        go_on(model, cache, ROWS, seed)
    after = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors] + [cache.positions.data_ptr()]
    assert addresses == after


@torch.no_grad()
def test_some_rows_go_back_and_the_others_go_on(model):
    _, cache = filled(model, ROWS)
    saved = cache.snapshot([2, 1])
    assert saved.batch == 2 and saved.positions.tolist() == [1, 17]
    piece = draw(4, 3, seed=30)
    model(piece, cache=cache)
    cache.restore(saved, rows=torch.tensor([0, 1]))  # a prefix that another sequence had
    texts = [ROWS[2], ROWS[1], *(torch.cat([ROWS[row], piece[row]]) for row in (2, 3))]
    assert cache.positions.tolist() == [len(text) for text in texts] and cache.bound >= 17
    go_on(model, cache, texts)


@torch.no_grad()
def test_a_snapshot_may_have_fewer_slots_than_the_cache_or_more():
    model = small("mqa")
    _, short = model(draw(2, 5))
    _, long = model(draw(2, 100, seed=1))
    few, many = short.snapshot(), long.snapshot()
    assert [layer.slots for layer in few.layers] == [64] * 3 and [layer.slots for layer in many.layers] == [128] * 3
    long.restore(few)
    go_on(model, long, list(draw(2, 5)))
    short.restore(many, rows=[1, 0])
    go_on(model, short, list(draw(2, 100, seed=1).flip(0)))


@torch.no_grad()
def test_select_repeat_reorder_fork(model):
    _, cache = filled(model, ROWS)
    go_on(model, cache.select([3, 0, 3]), [ROWS[3], ROWS[0], ROWS[3]])
    go_on(model, cache.select(torch.tensor([1], dtype=torch.int32)), [ROWS[1]])
    go_on(model, cache.repeat(2), [row for row in ROWS for _ in range(2)])
    go_on(model, cache.fork(), ROWS)
    assert cache.select([]).batch == 0 and cache.repeat(0).batch == 0
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
    cache.reorder(torch.tensor([1, 1, 0, 2]))
    assert addresses == [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
    go_on(model, cache, [ROWS[1], ROWS[1], ROWS[0], ROWS[2]])


@torch.no_grad()
def test_a_fork_and_its_origin_do_not_see_each_other(model):
    _, cache = filled(model, ROWS)
    other = cache.fork()
    go_on(model, other, ROWS, seed=40)
    go_on(model, cache, ROWS, seed=41)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_a_cache_each_row_goes_on_from_its_own_text(model, seed):
    """Pieces of several lengths, documents, drafts, copies and returns in any order, held to runs without a cache."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cache, texts, saved = model.init_cache(3), [[], [], []], []

    def piece(time):
        return torch.randint(0, VOCABULARY, (len(texts), time), generator=generator)

    for _ in range(14):
        rows = len(texts)
        some = [pick.randrange(rows) for _ in range(pick.randint(1, 4))]
        action = pick.choice(
            ["extend", "extend", "documents", "verify", "verify", "step", "save", "restore", "copy", "move"]
        )
        time = pick.choice([1, 2, 5, 2 * WINDOW])
        tokens, lengths = piece(time), [pick.randint(0, time) for _ in texts]
        if action == "extend":
            cache = model(tokens, cache=cache, lengths=torch.tensor(lengths))[1]
            texts = [text + row[:n] for text, row, n in zip(texts, tokens.tolist(), lengths, strict=True)]
        elif action == "documents":
            starts = [pick.randint(0, time) for _ in texts]  # time: the document goes on
            positions = torch.tensor(
                [
                    [n - start if n >= start else len(text) + n for n in range(time)]
                    for start, text in zip(starts, texts, strict=True)
                ]
            )
            cache = model(tokens, positions, cache, lengths=torch.tensor(lengths))[1]
            for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
                given = tokens[row].tolist()
                texts[row] = given[start:n] if start < n else texts[row] + given[:n]
        elif action == "verify":
            pending = model.verify(tokens, cache)[1]
            pending.commit(torch.tensor(lengths), most=max(lengths) if pick.random() < 0.5 else None)
            texts = [text + row[:n] for text, row, n in zip(texts, tokens.tolist(), lengths, strict=True)]
        elif action == "step":
            cache = model(tokens[:, :1], cache=cache)[1]
            texts = [text + row[:1] for text, row in zip(texts, tokens.tolist(), strict=True)]
        elif action == "save":
            saved.append((cache.snapshot(some), [texts[row] for row in some]))
        elif action == "restore" and saved:
            kept, prefixes = saved[pick.randrange(len(saved))]
            count = min(rows, kept.batch)
            target = pick.sample(range(rows), count)
            cache.restore(kept.select(list(range(count))), target)
            for row, prefix in zip(target, prefixes, strict=False):
                texts[row] = prefix
        elif action == "copy":
            cache, texts = cache.select(some), [texts[row] for row in some]
        elif action == "move":
            order = [pick.randrange(rows) for _ in texts]
            cache.reorder(order)
            texts = [texts[row] for row in order]
        assert cache.positions.tolist() == [len(text) for text in texts]
        assert all(len(text) <= min(cache.bound, cache.tokens) for text in texts)
    token = piece(1)
    whole = [torch.tensor(text + row) for text, row in zip(texts, token.tolist(), strict=True)]
    near(model(token, cache=cache)[0][:, 0], ends(model, whole))


@torch.no_grad()
def test_states_are_float32_and_snapshots_as_small_as_the_configuration_counts():
    model = small("griffin", torch.bfloat16)
    _, cache = model(draw(4, 50))
    saved = cache.snapshot(rows=[1])
    assert saved.layers[0].state.dtype == torch.float32 and saved.layers[0].conv.dtype == torch.bfloat16
    assert saved.nbytes() == model.config.cache_bytes(50, 2) and cache.nbytes() == 4 * saved.nbytes()
    logits, pending = model.verify(draw(4, 3), cache)
    pending.commit(torch.tensor([1, 2, 3, 0]))
    assert cache.layers[0].state.dtype == torch.float32 and logits.dtype == torch.bfloat16
    assert all(torch.isfinite(t).all() for layer in cache.layers for t in layer.tensors)


@torch.no_grad()
def test_a_committed_state_is_not_rounded():
    """As many bits as a state that was decoded to, in bfloat16: both go on from the same numbers."""
    model = small("hawk", torch.bfloat16)
    _, cache = model(draw(2, 9))
    other = cache.fork()
    piece = draw(2, 3, seed=1)
    _, pending = model.verify(piece, cache)
    pending.commit(torch.tensor([3, 3]))
    for step in range(3):
        model(piece[:, step : step + 1], cache=other)
    first, want = cache.layers[0].state, other.layers[0].state
    rounded = want.bfloat16().float()
    assert (first - want).norm() < 0.1 * (rounded - want).norm()  # the first block's inputs are the same


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c: c.select([0, 2]), errors.ArgumentError, "rows: row 2, expected 0 to 1"),
        (lambda c: c.select(torch.tensor([-1])), errors.ArgumentError, "rows: row -1"),
        (lambda c: c.select(torch.tensor([0.0])), errors.DtypeError, "rows: dtype torch.float32"),
        (lambda c: c.select(torch.tensor([[0]])), errors.ShapeError, r"rows: shape \[1, 1\]"),
        (lambda c: c.select(None), errors.ArgumentError, "rows is None"),
        (lambda c: c.snapshot(torch.zeros(1, dtype=torch.int64, device="meta")), errors.DeviceMismatchError, "on meta"),
        (lambda c: c.repeat(-1), errors.ArgumentError, "count is -1"),
        (lambda c: c.reorder([0]), errors.ShapeError, "rows is of 1 entries, expected 2"),
        (lambda c: c.restore(None), errors.ArgumentError, "snapshot is a NoneType"),
        (lambda c: c.restore(c.snapshot([0])), errors.ShapeError, "has 1 rows, but 2 are to be restored"),
        (lambda c: c.restore(small("hawk").init_cache(2)), errors.ArgumentError, "another configuration"),
        (lambda c: c.restore(small("griffin", torch.float32).init_cache(2)), errors.DtypeError, "of torch.float32"),
        (
            lambda c: c.restore(Cache(c.config, 2, device=torch.device("meta"), dtype=c.dtype)),
            errors.DeviceMismatchError,
            "snapshot: on meta",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    cache = small("griffin").init_cache(2)
    with pytest.raises(error, match=words):
        call(cache)


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2], errors.ArgumentError, "lengths is a list"),
        (torch.tensor([1.0, 2.0]), errors.DtypeError, "lengths: dtype torch.float32"),
        (torch.tensor([1]), errors.ShapeError, r"lengths: shape \[1\], expected \[B=2\]"),
        (torch.tensor([1, 4]), errors.ArgumentError, "lengths: 4, expected 0 to T=3"),
        (torch.tensor([-1, 3]), errors.ArgumentError, "lengths: -1, expected 0 to T=3"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), errors.DeviceMismatchError, "lengths: on meta"),
    ],
)
def test_lengths_that_do_not_fit_are_named(lengths, error, words):
    with pytest.raises(error, match=words):
        small("griffin")(draw(2, 3), lengths=lengths)


@torch.no_grad()
def test_rings_hold_anything_where_no_token_was_written():
    model = small("griffin")
    cache = model.init_cache(4)
    for layer in cache.layers:
        if isinstance(layer, AttentionCache):
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
    tokens = draw(4, 9)
    logits, _ = model(tokens, cache=cache, lengths=torch.tensor([1, 9, 3, 7]), last_only=True)
    near(logits[:, 0], ends(model, [row[:n] for row, n in zip(tokens, (1, 9, 3, 7), strict=True)]))
    drafted = draw(4, 2, seed=3)
    logits, pending = model.verify(drafted, cache)
    assert torch.isfinite(logits).all()
    pending.commit(torch.tensor([1, 2, 0, 1]))
    assert torch.isfinite(model(drafted[:, :1], cache=cache)[0]).all()
