"""The public local_attention_extend: chunks, guesses and rejections against local_attention over whole sequences."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, verify
from griffin_kernels.contract import ordinary
from griffin_kernels.ops.local_attention_extend.cost import make_case
from tests.calls import CPU
from tests.everywhere import running

OP = catalog.op("local_attention_extend")
WINDOW = 7

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

VARIANTS = pytest.mark.parametrize("variant", list(catalog.variants(OP.name).values()), ids=lambda v: v.key)


def sequences(batch=3, steps=40, heads=4, shared=2, d=16, dtype=torch.float32, seed=1):
    """q [B,T,Hq,d] (doubled, so that some keys stand out), k, v [B,T,Hkv,d]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, steps, heads, d), (batch, steps, shared, d), (batch, steps, shared, d))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return 2 * q, k, v


def rings(slots, tokens, window=WINDOW, shared=2, d=16, dtype=torch.float32):
    """Rings with room for so many tokens, in which nothing was written yet: NaN everywhere."""
    return [torch.full((slots, window + tokens - 1, shared, d), torch.nan, dtype=dtype) for _ in "kv"]


@VARIANTS
@pytest.mark.parametrize("guesses", [3, 11])
def test_guesses_of_which_some_are_rejected(variant, guesses):
    """Every token that is kept is as in the whole sequence, whatever was guessed, rejected and overwritten before."""
    q, k, v = sequences(steps=20)
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW)
    generator = torch.Generator().manual_seed(guesses)
    pool, slots = rings(5, guesses), torch.tensor([4, 0, 2])
    got, at = torch.full_like(want, torch.nan), torch.zeros(3, dtype=torch.int64)
    with running(variant):
        while (at < 20).any():
            lengths = torch.randint(1, guesses + 1, (3,), generator=generator).minimum(20 - at)
            accepted = (torch.rand(3, generator=generator) * lengths).long() + (lengths > 0)
            new = [torch.randn(3, guesses, *t.shape[2:], generator=generator) for t in (q, k, v)]
            for row in range(3):
                for guess, true in zip(new, (q, k, v), strict=True):
                    guess[row, : accepted[row]] = true[row, at[row] : at[row] + accepted[row]]
                    guess[row, lengths[row] :] = torch.nan
            out = griffin_kernels.local_attention_extend(
                *new, *pool, at.int(), window=WINDOW, lengths=lengths.int(), slots=slots
            )
            for row in range(3):
                got[row, at[row] : at[row] + accepted[row]] = out[row, : accepted[row]]
                assert (out[row, lengths[row] :] == 0).all()
            at += accepted
    torch.testing.assert_close(got, want)
    assert all(ring[[1, 3]].isnan().all() for ring in pool)


@VARIANTS
def test_a_prefill_in_chunks_of_rows_that_stand_apart(variant):
    q, k, v = sequences(batch=2, steps=50)
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW)
    pool, got, at = rings(2, 16), torch.empty_like(q), torch.tensor([0, 0])
    with running(variant):
        for lengths in ((16, 3), (1, 16), (0, 16), (16, 0), (16, 15), (1, 0)):
            lengths = torch.tensor(lengths)
            new = [torch.zeros(2, 16, *t.shape[2:]) for t in (q, k, v)]
            for row in range(2):
                for chunk, true in zip(new, (q, k, v), strict=True):
                    chunk[row, : lengths[row]] = true[row, at[row] : at[row] + lengths[row]]
            positions = at[:, None] + torch.arange(16)
            out = griffin_kernels.local_attention_extend(*new, *pool, positions, window=WINDOW, lengths=lengths)
            for row in range(2):
                got[row, at[row] : at[row] + lengths[row]] = out[row, : lengths[row]]
            at += lengths
    assert at.tolist() == [50, 50]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("slots", [None, [2, -1, 0]], ids=str)
def test_a_step_in_a_ring_with_room(slots):
    q, k, v = sequences()
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW)
    pool, slots = rings(3, 6), None if slots is None else torch.tensor(slots)
    for step in range(q.shape[1]):
        token, positions = (t[:, step] for t in (q, k, v)), torch.full((3,), step)
        out = griffin_kernels.local_attention_step(*token, *pool, positions, window=WINDOW, slots=slots)
        for row in range(3):
            real = slots is None or slots[row] >= 0
            torch.testing.assert_close(out[row], want[row, step] if real else torch.zeros_like(out[row]))


def test_a_step_whose_window_is_the_ring_is_the_step():
    q, k, v = (t[:, 0] for t in sequences())
    outs = [
        griffin_kernels.local_attention_step(
            q, k, v, *(torch.ones(3, WINDOW, 2, 16) for _ in "kv"), torch.tensor([0, 3, 90]), window=window
        )
        for window in (None, WINDOW)
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("variant", list(catalog.variants("local_attention_step").values()), ids=lambda v: v.key)
def test_slots_of_a_step_that_nothing_was_written_to_may_be_nan(variant):
    q, k, v = sequences()
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW)
    pool = rings(3, 1)
    with running(variant):
        for step in range(2 * WINDOW):
            token, positions = (t[:, step] for t in (q, k, v)), torch.full((3,), step)
            out = griffin_kernels.local_attention_step(*token, *pool, positions)
            torch.testing.assert_close(out, want[:, step])


@VARIANTS
@pytest.mark.parametrize("data", [("early",), ("early", "slots", "lengths"), ("early", "strided")], ids=str)
def test_what_no_token_sees_may_be_nan(variant, data):
    """Bitwise: slots of other positions, rings that no row works on, tokens that only pad."""
    case = make_case(4, 5, 33, 6, 2, 24, pool=6 if "slots" in data else 4, data=data)
    inputs = OP.make_inputs(case, CPU, 3)
    outs = []
    for poison in (1000.0, torch.nan):
        given = {name: verify.copy_of(v) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
        for name in ("k_cache", "v_cache"):
            # make_inputs marks slots of other positions
            given[name].masked_fill_(given[name] == 1000.0, poison)
            used = given["slots"] if given["slots"] is not None else torch.arange(4)
            given[name][[ring for ring in range(case["P"]) if ring not in used.tolist()]] = poison
        if given["lengths"] is not None:
            for row, length in enumerate(given["lengths"].tolist()):
                for name in "qkv":
                    given[name][row, length:] = poison
        outs.append(ordinary(variant.on(given, variant.config())[0]))
    assert outs[0].isfinite().all()
    assert torch.equal(*outs)


@VARIANTS
def test_a_token_that_is_nan_spoils_those_alone_that_see_it(variant):
    """Neither earlier tokens, though one tile holds them all, nor other rows; in the ring, who still sees it."""
    inputs = OP.make_inputs(make_case(2, 6, 9, 4, 2, 16), CPU, 3)
    for name in ("k", "v"):
        given = {n: verify.copy_of(v) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        given[name][0, 3] = torch.nan
        first = given["positions"][1] - 6  # seen by tokens 0, 1 and 2: a window of 9 reaches 8 back
        given[f"{name}_cache"][1, first % 14] = torch.nan
        spoilt = variant.on(given, variant.config())[0].isnan().all((2, 3))
        assert spoilt.tolist() == [[False] * 3 + [True] * 3, [True] * 3 + [False] * 3]


@VARIANTS
@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
def test_extreme_scores(variant, scale):
    # one key takes all the weight, or every key the same: exact but for the mean of 40 values
    inputs = OP.make_inputs(make_case(2, 3, 40, 4, 1, 16), CPU, 0) | {"scale": scale}
    want = OP.reference(OP.call(**{k: v.double() if k in ("q", "k", "v") else v for k, v in inputs.items()} | {
        name: inputs[name].double() for name in ("k_cache", "v_cache")
    }))[0]  # fmt: skip
    out = variant.on({k: verify.copy_of(v) if "cache" in k else v for k, v in inputs.items()}, variant.config())[0]
    torch.testing.assert_close(out, want.float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_enough_for_several_threads(dtype):
    variant = catalog.variant("local_attention_extend/numba.split")
    case = make_case(2, 5, 1500, 7, 1, 128, dtype, data=("early", "lengths"))
    verdict = verify.check(OP, variant, case, variant.config(), OP.make_inputs(case, CPU, 3))
    assert verdict.ok, verdict.problem


@VARIANTS
def test_no_token_is_real(variant):
    q, k, v = sequences(steps=4)
    pool = rings(3, 4)
    given = {"q": q, "k": k, "v": v, "k_cache": pool[0], "v_cache": pool[1], "positions": torch.tensor([0, 1, 9]),
             "block_table": None}  # fmt: skip
    for padding in ({"slots": None, "lengths": torch.zeros(3, dtype=torch.int64)},
                    {"slots": torch.full((3,), -1), "lengths": None}):  # fmt: skip
        out = variant.on(given | padding | {"window": WINDOW}, variant.config())[0]
        assert (out == 0).all() and all(ring.isnan().all() for ring in pool)


def test_no_tokens_change_nothing():
    q, k, v = sequences(steps=0)
    for positions in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64)):
        pool = rings(3, 1)
        out = griffin_kernels.local_attention_extend(q, k, v, *pool, positions, window=WINDOW)
        assert out.shape == q.shape and all(ring.isnan().all() for ring in pool)
