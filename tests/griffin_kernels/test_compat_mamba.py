"""compat.mamba against plain PyTorch: each sequence by itself, step by step, as vLLM's kernels define it."""

from __future__ import annotations

import itertools

import pytest
import torch

from griffin_kernels.compat.mamba import causal_conv1d_fn, causal_conv1d_update, selective_state_update
from griffin_kernels.errors import ArgumentError, DtypeError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

WIDTH = 8


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def numbers(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def convolved(inputs, weight, bias, activation):
    """y [D, T] of inputs [D, K-1+T]: the sum of taps at each step, as written."""
    taps = weight.shape[1]
    sums = [(weight * inputs[:, t : t + taps]).sum(1) + bias for t in range(inputs.shape[1] - taps + 1)]
    out = torch.stack(sums, 1) if sums else inputs[:, :0]
    return torch.nn.functional.silu(out) if activation else out


def pool_of(rows, length, dtype=torch.float64, channels_last=True):
    """NaN wherever nothing was written."""
    shape = (rows, length, WIDTH) if channels_last else (rows, WIDTH, length)
    pool = torch.full(shape, torch.nan, dtype=dtype)
    return pool.transpose(1, 2) if channels_last else pool


@pytest.mark.parametrize("pad", [-1, 3], ids=["negative", "a row"])
@pytest.mark.parametrize(("taps", "length", "channels_last"), [(4, 3, True), (4, 6, True), (2, 3, False)])
def test_prompts(taps, length, channels_last, pad):
    """One goes on, one is shorter than the taps, one has no tokens, one pads; columns past K-1 and other rows stay."""
    weight, bias = drawn(WIDTH, taps, seed=1), drawn(WIDTH, seed=2)
    pool, rows, kept = pool_of(7, length, channels_last=channels_last), numbers(5, 0, 2, pad, 1), taps - 1
    pool[[5, 2], :, :kept] = drawn(2, WIDTH, kept, seed=3)
    before, offsets, x = pool.clone(), numbers(0, 6, 8, 8, 10, 14), drawn(WIDTH, 14)
    started = torch.tensor([True, False, True, True, False])
    y = causal_conv1d_fn(x, weight, bias, pool, offsets, rows, started, True, pad)
    want = before.clone()
    for n, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        row = int(rows[n])
        if row == pad:
            continue
        history = before[row, :, :kept] if started[n] else torch.zeros(WIDTH, kept, dtype=x.dtype)
        inputs = torch.cat([history, x[:, begin:end]], 1)
        torch.testing.assert_close(y[:, begin:end], convolved(inputs, weight, bias, True))
        if end > begin:
            want[row, :, :kept] = inputs[:, -kept:]
    assert torch.equal(pool.nan_to_num(9.0), want.nan_to_num(9.0))


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize(("steps", "length"), [(None, 3), (1, 5), (3, 5)])
def test_next_tokens(steps, length, slots):
    weight, bias = drawn(WIDTH, 4, seed=1), drawn(WIDTH, seed=2)
    rows = numbers(4, 0, 2) if slots else numbers(0, 1, 2)
    pool = pool_of(5 if slots else 3, length)
    pool[rows.long(), :, :3] = drawn(3, WIDTH, 3, seed=3)
    want, named = pool.clone(), {"conv_state_indices": rows, "pad_slot_id": 0} if slots else {}
    for call in range(2):
        x = drawn(3, WIDTH, steps or 1, seed=10 + call)
        y = causal_conv1d_update(x if steps else x[..., 0], pool, weight, bias, "swish", **named)
        y = y if steps else y[..., None]
        for n, row in enumerate(rows.tolist()):
            if slots and row == 0:
                assert (y[n] == 0).all()
                continue
            inputs = torch.cat([want[row, :, :3], x[n]], 1)
            torch.testing.assert_close(y[n], convolved(inputs, weight, bias, True))
            want[row, :, :3] = inputs[:, -3:]
        assert torch.equal(pool.nan_to_num(9.0), want.nan_to_num(9.0))


def test_next_tokens_of_packed_sequences():
    weight, bias = drawn(WIDTH, 4, seed=1), drawn(WIDTH, seed=2)
    pool, rows, offsets, x = pool_of(5, 3), numbers(4, 2), numbers(0, 2, 3), drawn(3, WIDTH)
    pool[rows.long()] = drawn(2, WIDTH, 3, seed=3)
    before = pool.clone()
    y = causal_conv1d_update(x, pool, weight, bias, None, rows, query_start_loc=offsets, max_query_len=2)
    for row, begin, end in ((4, 0, 2), (2, 2, 3)):
        inputs = torch.cat([before[row], x[begin:end].t()], 1)
        torch.testing.assert_close(y[begin:end].t(), convolved(inputs, weight, bias, None))
        assert torch.equal(pool[row], inputs[:, -3:])
    assert pool[[0, 1, 3]].isnan().all()


@pytest.mark.parametrize(("taps", "packed"), [(4, False), (4, True), (2, True), (1, False)])
def test_guesses_of_which_some_hold(taps, packed):
    """After any number of accepted guesses a text is as if only those had been there; other columns and rows stay."""
    generator = torch.Generator().manual_seed(taps)
    weight, bias, most = drawn(WIDTH, taps, seed=1), drawn(WIDTH, seed=2), 4
    length, rows = max(taps - 1, taps - 2 + most) + 1, numbers(5, -1, 1, 3)
    pool, kept = pool_of(6, length), taps - 1
    texts = {n: drawn(WIDTH, kept, seed=20 + n) for n in (0, 2, 3)}  # what holds so far
    for n, text in texts.items():
        pool[int(rows[n]), :, :kept] = text
    accepted = numbers(1, 0, 1, 1)  # what pads may have any number
    for call in range(6):
        counts = torch.randint(0, most + 1, (4,), generator=generator) if packed else torch.full((4,), most)
        if call == 0:
            counts[2] = most  # a pool's columns hold a history to begin with
        x = [drawn(WIDTH, int(count), seed=100 * call + n) for n, count in enumerate(counts)]
        before = pool.clone()
        if packed:
            offsets = torch.tensor([0, *itertools.accumulate(counts.tolist())], dtype=torch.int32)
            given, named = torch.cat(x, 1).t(), {"query_start_loc": offsets, "max_query_len": most}
        else:
            given, named = torch.stack(x), {}
        y = causal_conv1d_update(given, pool, weight, bias, "silu", rows, accepted, **named)
        for n, text in texts.items():
            got = y[offsets[n] : offsets[n + 1]].t() if packed else y[n]
            inputs = torch.cat([text[:, text.shape[1] - kept :], x[n]], 1)
            torch.testing.assert_close(got, convolved(inputs, weight, bias, True))
            row, count = int(rows[n]), int(counts[n])
            if count:
                stays = max(taps - 2, 0) + count
                assert torch.equal(pool[row, :, stays:].nan_to_num(9.0), before[row, :, stays:].nan_to_num(9.0))
                accepted[n] = torch.randint(1, count + 1, (1,), generator=generator)
                texts[n] = torch.cat([text, x[n][:, : int(accepted[n])]], 1)
            else:
                assert torch.equal(pool[row].nan_to_num(9.0), before[row].nan_to_num(9.0))
        if not packed:
            assert (y[1] == 0).all()
        assert pool[[0, 2, 4]].isnan().all()


def test_guesses_do_not_read_padding_past_the_last_sequence():
    """A captured graph pads tokens: offsets on the CPU end before x does, and NaN there reaches nothing."""
    weight, pool, rows = drawn(WIDTH, 4, seed=1), pool_of(3, 6), numbers(2, 0)
    pool[rows.long(), :, :3] = drawn(2, WIDTH, 3, seed=3)
    x, alone = drawn(5, WIDTH), pool.clone()
    x[3:] = torch.nan
    named = {"query_start_loc": numbers(0, 1, 3), "max_query_len": 2}
    y = causal_conv1d_update(x, pool, weight, None, None, rows, numbers(1, 1), **named)
    want = causal_conv1d_update(x[:3], alone, weight, None, None, rows, numbers(1, 1), **named)
    assert torch.equal(y[:3], want) and torch.equal(pool.nan_to_num(9.0), alone.nan_to_num(9.0))


def test_data_is_computed_in_the_pool_s_dtype():
    weight, x = drawn(WIDTH, 4, seed=1, dtype=torch.float32), drawn(2, WIDTH, dtype=torch.bfloat16)
    y = causal_conv1d_update(x, torch.zeros(2, WIDTH, 3), weight)
    assert y.dtype == torch.bfloat16 and torch.equal(y, (x.float() * weight[:, -1]).bfloat16())


@pytest.mark.parametrize("form", ["channels", "heads", "plain"])
def test_a_token_of_mamba_s_scan(form):
    heads, groups, size = (1, 1, 3) if form != "heads" else (4, 2, 3)
    lead = () if form != "heads" else (heads,)
    x, dt, z = (drawn(3, *lead, WIDTH, seed=n) for n in (1, 2, 3))
    a, b, c = (
        -drawn(*lead, WIDTH, size).exp(),
        drawn(3, *lead[:0], groups, size, seed=4),
        drawn(3, groups, size, seed=5),
    )
    if form != "heads":
        b, c = b[:, 0], c[:, 0]
    skip, bias = drawn(*lead, WIDTH, seed=6), drawn(*lead, WIDTH, seed=7)
    rows, places = numbers(4, 0, 2), numbers(4, 1, 1 if form == "plain" else 3)
    pool = torch.full((6, *lead, WIDTH, size), torch.nan, dtype=torch.float64)
    pool[[4, 2]] = drawn(2, *lead, WIDTH, size, seed=8)
    before, options = pool.clone(), {} if form == "plain" else {"D": skip, "z": z, "dt_bias": bias, "dt_softplus": True}
    out = torch.full_like(x, torch.nan)
    got = selective_state_update(
        pool,
        x,
        dt,
        a,
        b,
        c,
        state_batch_indices=rows,
        dst_state_batch_indices=places,
        pad_slot_id=0,
        out=out,
        **options,
    )
    assert got is out and (got[1] == 0).all()
    want, wanted = before.clone(), got.clone()
    for n in (0, 2):
        step = torch.nn.functional.softplus(dt[n] + bias) if options else dt[n]
        mine = lambda v, n=n: v[n].repeat_interleave(heads // groups, 0)[:, None] if lead else v[n]  # noqa: E731
        state = (step[..., None] * a).exp() * before[int(rows[n])] + (step * x[n])[..., None] * mine(b)
        want[int(places[n])], wanted[n] = state, (state * mine(c)).sum(-1)
        if options:
            wanted[n] = (wanted[n] + skip * x[n]) * torch.nn.functional.silu(z[n])
    torch.testing.assert_close(pool, want, equal_nan=True)
    torch.testing.assert_close(got, wanted)


def updated(x, pool, weight, **named):
    return causal_conv1d_update(x, pool, weight, **named)


BAD_CALLS = {
    "blocks of a prefix cache": (
        lambda x, pool, w: causal_conv1d_fn(x[0], w, None, pool, numbers(0, 2), initial_state_idx=numbers(0)),
        ArgumentError, "causal_conv1d_fn does not take initial_state_idx",
    ),
    "a tree of guesses": (
        lambda x, pool, w: updated(x, pool, w, retrieve_parent_token=numbers(0, 0)),
        ArgumentError, "causal_conv1d_update does not take retrieve_parent_token",
    ),
    "a short state": (
        lambda x, pool, w: updated(x, pool[..., :2], w), ShapeError, "conv_state has 2 columns, expected at least K-1=3"
    ),
    "no room for guesses": (
        lambda x, pool, w: updated(x, pool[..., :3], w, num_accepted_tokens=numbers(1, 1, 1)),
        ShapeError, r"conv_state has 3 columns, expected K-2 \+ 2 tokens = 4",
    ),
    "no token accepted": (
        lambda x, pool, w: updated(x, pool, w, num_accepted_tokens=numbers(1, 0, 1)),
        ArgumentError, "num_accepted_tokens is beyond 1 to 3, the tokens that conv_state has room for",
    ),
    "packed tokens without slots": (
        lambda x, pool, w: updated(x[..., 0], pool, w, query_start_loc=numbers(0, 3)),
        ArgumentError, "query_start_loc goes with",
    ),
    "an activation of another kind": (
        lambda x, pool, w: updated(x[..., 0], pool, w, activation="relu"), ArgumentError, "activation is 'relu'"
    ),
    "a pool of rounded states": (
        lambda x, pool, w: selective_state_update(pool.bfloat16(), *[x[..., 0]] * 2, w, *[x[..., 0]] * 2),
        DtypeError, "state is bfloat16, expected float32",
    ),
    "slots in pieces": (
        lambda x, pool, w: selective_state_update(pool, *[x[..., 0]] * 2, w, *[x[..., 0]] * 2),
        ArgumentError, "with each slot in one piece",
    ),
    "several tokens of the scan": (
        lambda x, pool, w: selective_state_update(
            pool, *[x[..., 0]] * 2, w, *[x[..., 0]] * 2, num_accepted_tokens=numbers(1)
        ),
        ArgumentError, "selective_state_update does not take num_accepted_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls_are_named(what):
    function, error, message = BAD_CALLS[what]
    with pytest.raises(error, match=message) as caught:
        function(drawn(3, WIDTH, 2), torch.zeros(3, 5, WIDTH, dtype=torch.float64).transpose(1, 2), drawn(WIDTH, 4))
    assert "\n" not in str(caught.value)
