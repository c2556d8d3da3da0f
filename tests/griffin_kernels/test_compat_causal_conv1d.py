"""compat.causal_conv1d against the reference functions of the original and of vLLM's form of it; document numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from griffin_kernels.errors import ArgumentError, DtypeError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

BATCH, WIDTH, STEPS = 3, 8, 11
F = torch.nn.functional


def fn_reference(x, weight, bias=None, initial_states=None, activation=None):
    """causal_conv1d_ref of causal_conv1d/causal_conv1d_interface.py: (out, final states)."""
    time, (dim, width) = x.shape[-1], weight.shape
    if initial_states is None:
        initial_states = x.new_zeros(x.shape[0], dim, width - 1)
    x = torch.cat([initial_states, x], dim=-1)
    # PyTorch convolves no fewer steps than there are taps: one more for sequences of none
    out = F.conv1d(F.pad(x, (0, 1)), weight.unsqueeze(1), bias, padding=0, groups=dim)[..., :time]
    return activated(out, activation), x[..., x.shape[-1] - width + 1 :]


def update_reference(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None):
    """causal_conv1d_update_ref of the same file; x [B, D, T]. Changes conv_state."""
    _, dim, seqlen = x.shape
    width, state_len = weight.shape[1], conv_state.shape[-1]
    if cache_seqlens is None:
        x_new = torch.cat([conv_state, x], dim=-1)
        conv_state.copy_(x_new[:, :, x_new.shape[-1] - state_len :])
    else:
        width_idx = torch.arange(-(width - 1), 0).unsqueeze(0) + cache_seqlens.unsqueeze(1)
        width_idx = torch.remainder(width_idx, state_len).unsqueeze(1).expand(-1, dim, -1)
        x_new = torch.cat([conv_state.gather(2, width_idx), x], dim=-1)
        copy_idx = torch.arange(seqlen).unsqueeze(0) + cache_seqlens.unsqueeze(1)
        conv_state.scatter_(2, torch.remainder(copy_idx, state_len).unsqueeze(1).expand(-1, dim, -1), x)
    out = F.conv1d(x_new, weight.unsqueeze(1), bias, padding=0, groups=dim)[:, :, -seqlen:]
    return activated(out, activation)


def activated(out, activation):
    assert activation in (None, "silu", "swish")
    return out if activation is None else F.silu(out)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filters(taps, bias=True):
    return drawn(WIDTH, taps, seed=1), drawn(WIDTH, seed=2) if bias else None


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("taps", "bias", "carried"), [(4, True, True), (2, False, False), (4, True, False)])
def test_sequences_and_their_gradients(taps, bias, carried, channels_last, activation):
    x, (weight, bias) = drawn(BATCH, WIDTH, STEPS), filters(taps, bias)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    state = drawn(BATCH, WIDTH, taps - 1, seed=5) if carried else None
    given = [value for value in (x, weight, bias, state) if value is not None]
    upstream = drawn(BATCH, WIDTH, STEPS, seed=3), drawn(BATCH, WIDTH, taps - 1, seed=4)
    results = []
    for function in (fn_reference, lambda *a, **k: causal_conv1d_fn(*a, **k, return_final_states=True)):
        leaves = {id(value): value.detach().clone().requires_grad_() for value in given}
        of = lambda value, leaves=leaves: None if value is None else leaves[id(value)]  # noqa: E731
        found = function(of(x), of(weight), of(bias), initial_states=of(state), activation=activation)
        results.append((*found, *torch.autograd.grad(found, list(leaves.values()), upstream)))
    for mine, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_final_states_are_written_where_wanted():
    x, (weight, bias) = drawn(BATCH, WIDTH, STEPS), filters(4)
    out = torch.full((BATCH, WIDTH, 3), torch.nan, dtype=x.dtype)
    _, final = causal_conv1d_fn(x, weight, bias, return_final_states=True, final_states_out=out)
    assert final is out and torch.equal(out, x[..., -3:])
    alone = causal_conv1d_fn(x, weight, bias)
    assert isinstance(alone, torch.Tensor) and alone.shape == x.shape


@pytest.mark.parametrize("activation", [None, "silu"])
def test_documents_and_padding(activation):
    """Each run of a number by itself; what is negative gives 0, and NaN in it reaches no other step."""
    seq_idx = numbers([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2], [-1, -1, 4, 4, 4, 4, -1, 5, 5, -1, -1], [7] * 9 + [-1, -1])
    x, (weight, bias) = drawn(BATCH, WIDTH, STEPS), filters(4)
    padding = (seq_idx < 0)[:, None].expand_as(x)
    x[padding] = torch.nan
    leaves = [value.requires_grad_() for value in (x, weight, bias)]
    y = causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation=activation)
    want = torch.zeros_like(y)
    for row, number in itertools.product(range(BATCH), range(8)):
        at = (seq_idx[row] == number).nonzero()[:, 0]
        if at.numel():
            want[row : row + 1, :, at] = fn_reference(x[row : row + 1, :, at], weight, bias, activation=activation)[0]
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(y)
    mine, theirs = (torch.autograd.grad(out, leaves[1:], upstream, retain_graph=True) for out in (y, want))
    if activation is None:  # weights sum over all steps: those of NaN too, times a gradient of 0
        torch.testing.assert_close(mine[1], theirs[1])
    dx = torch.autograd.grad(y, x, upstream)[0]
    torch.testing.assert_close(dx[~padding], torch.autograd.grad(want, x, upstream)[0][~padding])


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("steps", "length", "circular"),
    [(None, 3, False), (1, 3, False), (None, 5, False), (4, 3, False), (4, 6, False), (1, 5, True), (3, 7, True)],
)
def test_updates(steps, length, circular, bias, activation):
    weight, bias = filters(4, bias)
    mine, theirs = drawn(BATCH, WIDTH, length, seed=6), drawn(BATCH, WIDTH, length, seed=6)
    seen = torch.tensor([0, 4, 9], dtype=torch.int32)
    for call in range(3):
        x = drawn(BATCH, WIDTH, steps or 1, seed=10 + call)
        cache = {"cache_seqlens": seen} if circular else {}
        want = update_reference(x, theirs, weight, bias, activation, **cache)
        got = causal_conv1d_update(x if steps else x[..., 0], mine, weight, bias, activation, **cache)
        torch.testing.assert_close(got if steps else got[..., None], want)
        assert torch.equal(mine, theirs)
        seen = seen + (steps or 1)


@settings(max_examples=20, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    taps=st.integers(1, 5),
    room=st.integers(0, 4),
    circular=st.booleans(),
)
def test_pieces_of_a_text_through_any_state_are_the_whole(pieces, taps, room, circular):
    """y is the sum at every token; the state holds the last inputs in their order, or each at its time modulo L."""
    weight, bias = filters(taps)
    length, time = max(taps - 1 + room, max(pieces) if circular else 0), sum(pieces)
    text, state = drawn(1, WIDTH, time), torch.zeros(1, WIDTH, length, dtype=torch.float64)
    padded, parts, seen = F.pad(text, (taps - 1, 0)), [], 0
    for count in pieces:
        cache = {"cache_seqlens": numbers(seen)} if circular else {}
        parts.append(causal_conv1d_update(text[..., seen : seen + count], state, weight, bias, **cache))
        seen += count
    want = sum(weight[:, k, None] * padded[..., k : k + time] for k in range(taps)) + bias[:, None]
    torch.testing.assert_close(torch.cat(parts, dim=2), want)
    for t in range(max(0, time - length), time):
        column = t % length if circular else length - time + t
        assert torch.equal(state[..., column], text[..., t])


def test_a_step_on_the_last_rows_of_longer_states_shifts_those_alone():
    weight, bias = filters(4)
    whole, x = drawn(BATCH, WIDTH, 6, seed=6), drawn(BATCH, WIDTH)
    pool = whole.clone().transpose(1, 2)  # [B, 6, D]
    want = causal_conv1d_update(x, whole, weight, bias, "silu")
    first = pool[:, :3].clone()
    got = griffin_kernels.temporal_conv1d_step(x, weight.t(), bias, pool[:, 3:], activation="silu")
    torch.testing.assert_close(got, want)
    assert torch.equal(pool[:, 3:], whole.transpose(1, 2)[:, 3:]) and torch.equal(pool[:, :3], first)


@pytest.mark.parametrize(("steps", "length", "circular"), [(1, 3, False), (2, 5, False), (2, 4, True)])
def test_updates_of_rows_of_a_pool(steps, length, circular):
    """Rows that are not named stay as they are, NaN and all; rows that pad give 0."""
    weight, bias = filters(4)
    pool = torch.full((7, WIDTH, length), torch.nan, dtype=torch.float64)
    rows = numbers(5, -1, 0)
    state, x = drawn(2, WIDTH, length, seed=6), drawn(BATCH, WIDTH, steps)
    pool[[5, 0]] = state
    cache = {"cache_seqlens": numbers(2, 2, 6)} if circular else {}
    chosen = {"cache_seqlens": numbers(2, 6)} if circular else {}
    got = causal_conv1d_update(x, pool, weight, bias, "silu", conv_state_indices=rows, **cache)
    want = update_reference(x[[0, 2]], state, weight, bias, "silu", **chosen)
    torch.testing.assert_close(got[[0, 2]], want)
    assert (got[1] == 0).all() and torch.equal(pool[[5, 0]], state)
    assert pool[[1, 2, 3, 4, 6]].isnan().all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), packed=st.booleans())
def test_pools_of_vllm(seed, packed):
    """Prompts in two pieces, the second of which goes on from the pool; a sequence that pads, and other rows, stay."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = filters(4)
    pool = torch.full((9, 3, WIDTH), torch.nan, dtype=torch.float64).transpose(1, 2)
    rows = torch.randperm(9, generator=generator)[:4].int()
    pad, names = int(rows[3]), rows.clone()
    lengths = torch.randint(0, 7, (2, 4), generator=generator) if packed else torch.full((2, 4), 5)
    texts = [drawn(1, WIDTH, int(total), seed=n) for n, total in enumerate(lengths.sum(0))]
    want = [fn_reference(text, weight, bias, activation="silu") for text in texts]
    begins = [0] * 4
    for call in range(2):
        parts = [text[..., at : at + int(n)] for text, at, n in zip(texts, begins, lengths[call], strict=True)]
        started = torch.tensor(begins) > 0
        given = {"conv_states": pool, "cache_indices": names, "has_initial_state": started, "pad_slot_id": pad}
        if packed:
            offsets = torch.tensor([0, *itertools.accumulate(lengths[call].tolist())], dtype=torch.int32)
            joined = torch.cat(parts, dim=2)[0]
            out = causal_conv1d_fn(joined, weight, bias, query_start_loc=offsets, activation="silu", **given)
            pieces = [out[:, begin:end] for begin, end in itertools.pairwise(offsets.tolist())]
        else:
            pieces = list(causal_conv1d_fn(torch.cat(parts), weight, bias, activation="silu", **given))
        for n in range(3):
            count = int(lengths[call][n])
            torch.testing.assert_close(pieces[n], want[n][0][0, :, begins[n] : begins[n] + count])
            begins[n] += count
    for n in range(3):
        if begins[n]:
            torch.testing.assert_close(pool[int(rows[n])], want[n][1][0])
    others = [row for row in range(9) if row not in rows[:3].tolist()]
    assert pool[others].isnan().all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 2), min_size=9, max_size=9), min_size=1, max_size=3), st.booleans())
def test_positions_of_document_numbers(rows, carried):
    seq_idx = torch.tensor(rows, dtype=torch.int32)
    first = torch.tensor([5, 0, 2][: len(rows)]) if carried else None
    got = griffin_kernels.segment_positions(seq_idx, first)
    for n, row in enumerate(rows):
        want, start = [], 0 if first is None else int(first[n])
        for t, number in enumerate(row):
            fresh = number < 0 or (t and number != row[t - 1])
            want.append(0 if fresh else want[-1] + 1 if t else start)
        assert got[n].tolist() == want
    assert got.dtype == torch.int64 and got.shape == seq_idx.shape


def test_positions_of_no_tokens():
    for shape in ((0, 4), (2, 0)):
        assert griffin_kernels.segment_positions(torch.zeros(shape, dtype=torch.int32)).shape == shape


BAD_CALLS = {
    "documents and states": (
        lambda x, w: causal_conv1d_fn(x, w, seq_idx=torch.zeros(3, 11, dtype=torch.int32), return_final_states=True),
        ArgumentError, "seq_idx excludes initial_states and return_final_states",
    ),
    "nowhere to return it": (
        lambda x, w: causal_conv1d_fn(x, w, final_states_out=x), ArgumentError, "final_states_out is only written with"
    ),
    "an activation of another kind": (
        lambda x, w: causal_conv1d_fn(x, w, activation="relu"), ArgumentError, "activation is 'relu'"
    ),
    "rows of no pool": (
        lambda x, w: causal_conv1d_fn(x, w, cache_indices=torch.arange(3)), ArgumentError, "cache_indices goes with"
    ),
    "a pool and states": (
        lambda x, w: causal_conv1d_fn(x, w, conv_states=x[..., :3], return_final_states=True), ArgumentError,
        "conv_states excludes seq_idx, initial_states and final states",
    ),
    "packed without offsets": (
        lambda x, w: causal_conv1d_fn(x[0], w, conv_states=x[..., :3]), ArgumentError, "pass query_start_loc"
    ),
    "a longer pool": (
        lambda x, w: causal_conv1d_fn(x, w, conv_states=x[..., :5]), ShapeError,
        r"conv_states has 5 columns, expected K-1=3: of a longer pool pass the last columns, conv_states\[..., 2:\]",
    ),
    "a shorter pool": (
        lambda x, w: causal_conv1d_fn(x, w, conv_states=x[..., :2]), ShapeError, "has 2 columns, expected K-1=3$"
    ),
    "a short state": (lambda x, w: causal_conv1d_update(x, x[..., :2], w), ShapeError, "has 2 columns, expected at"),
    "more tokens than a ring holds": (
        lambda x, w: causal_conv1d_update(x, x[..., :4].clone(), w, cache_seqlens=torch.zeros(3, dtype=torch.int32)),
        ArgumentError, "x has 11 tokens, conv_state is a ring of 4",
    ),
    "positions of floats": (lambda x, w: griffin_kernels.segment_positions(x[0]), DtypeError, "seq_idx is float64"),
    "positions of one row": (
        lambda x, w: griffin_kernels.segment_positions(torch.arange(3)), ShapeError, r"seq_idx has shape \[3\]"
    ),
    "first of another batch": (
        lambda x, w: griffin_kernels.segment_positions(torch.zeros(2, 3, dtype=torch.int32), torch.arange(3)),
        ShapeError, r"first has shape \[3\], expected \[B=2\]",
    ),
    "a list of numbers": (lambda x, w: griffin_kernels.segment_positions([[0]]), ArgumentError, "seq_idx is a list"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls_are_named(what):
    function, error, message = BAD_CALLS[what]
    with pytest.raises(error, match=message) as caught:
        function(drawn(BATCH, WIDTH, STEPS), filters(4)[0])
    assert "\n" not in str(caught.value)
