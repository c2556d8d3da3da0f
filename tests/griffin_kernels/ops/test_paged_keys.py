"""Rings of keys in pages: what contiguous rings give, wherever pages lie, and tables that no call can use."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, errors
from griffin_kernels.contract import ordinary
from griffin_kernels.ops.local_attention_extend.cost import make_case
from tests.calls import CPU, copies
from tests.everywhere import running

OP = catalog.op("local_attention_extend")
WINDOW, TOKENS, SIZE, PAGES = 7, 5, 4, 3

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

VARIANTS = pytest.mark.parametrize("variant", list(catalog.variants(OP.name).values()), ids=lambda v: v.key)


def tokens(batch=3, steps=20, heads=4, shared=2, d=16):
    """q [B,T,Hq,d], k, v [B,T,Hkv,d]."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, steps, heads, d), (batch, steps, shared, d), (batch, steps, shared, d))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def pools(count=11):
    """Keys and values of pages in which nothing was written yet."""
    return [torch.full((count, SIZE, 2, 16), torch.nan) for _ in "kv"]


@VARIANTS
def test_chunks_and_steps_equal_the_whole_sequence(variant):
    """Pages are named as they are needed, and what no row names stays as it is."""
    q, k, v = tokens()
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW)
    keys, values = pools()
    full, table = torch.tensor([[9, 0, 4], [2, 7, 1], [5, 3, 8]]), torch.full((3, PAGES), -1)
    chunks, at = (TOKENS, TOKENS, 1, TOKENS, 1, 3), 0
    got = []
    with running(variant):
        for chunk in chunks:
            new = [part[:, at : at + chunk] for part in (q, k, v)]
            reached = min(PAGES, -(-(at + chunk) // SIZE))
            table[:, :reached] = full[:, :reached]
            place = torch.full((3,), at)
            options = {"window": WINDOW, "block_table": table.int()}
            if chunk == 1:
                one = [part[:, 0] for part in new]
                got.append(griffin_kernels.local_attention_step(*one, keys, values, place, **options)[:, None])
            else:
                got.append(griffin_kernels.local_attention_extend(*new, keys, values, place, **options))
            at += chunk
    assert at == 20
    torch.testing.assert_close(torch.cat(got, dim=1), want)
    for pool, written in ((keys, k), (values, v)):
        assert pool[[6, 10]].isnan().all()
        for position in range(20 - PAGES * SIZE, 20):
            page = full[:, position // SIZE % PAGES]
            assert torch.equal(pool[page, position % SIZE], written[:, position])


@VARIANTS
def test_rows_that_pad_touch_no_page(variant):
    q, k, v = (part[:, :2] for part in tokens())
    table = torch.tensor([[0, 3, 5], [-1, 3, 5], [2, 4, 6]])
    position = torch.tensor([9, 9, 9])
    start = [torch.randn(7, SIZE, 2, 16, generator=torch.Generator().manual_seed(2)) for _ in "kv"]
    with running(variant):
        cache = [pool.clone() for pool in start]
        options = {"window": WINDOW, "block_table": table}
        out = griffin_kernels.local_attention_extend(q, k, v, *cache, position, **options)
        alone = [pool.clone() for pool in start]
        rows, options["block_table"] = [0, 2], table[[0, 2]]
        others = griffin_kernels.local_attention_extend(q[rows], k[rows], v[rows], *alone, position[rows], **options)
        assert not out[1].any() and torch.equal(out[rows], others)
        assert all(torch.equal(*both) for both in zip(cache, alone, strict=True))
        options["block_table"] = torch.tensor([[0, 3, 5], [0, -9, 99], [0, 1, 2]])  # page 0 pads for all
        out = griffin_kernels.local_attention_extend(q, k, v, *cache, position, pad_slot=0, **options)
        assert not out.any() and all(torch.equal(*both) for both in zip(cache, alone, strict=True))


@VARIANTS
def test_slots_and_entries_that_nothing_needs_may_be_anything(variant):
    """Bitwise: NaN in other slots and pages, and numbers of other pages."""
    case = make_case(3, 3, 9, 4, 2, 16, pool=13, flags=("paged",), data=("early",))
    inputs = OP.make_inputs(case, CPU, 3)
    assert (inputs["block_table"][:2] < 0).any()
    outs = []
    for poison, number in ((1000.0, -1), (torch.nan, 10**6)):
        given = copies(inputs)
        for name in ("k_cache", "v_cache"):
            given[name].masked_fill_(given[name] == 1000.0, poison)
        given["block_table"][:, 1:].masked_fill_(given["block_table"][:, 1:] < 0, number)
        outs.append(ordinary(variant.on(given, variant.config())[0]))
    assert outs[0].isfinite().all() and torch.equal(*outs)


@pytest.mark.parametrize("variant", [v for v in catalog.variants(OP.name).values() if v.backend == "triton"],
                         ids=lambda v: v.key)  # fmt: skip
def test_pages_out_of_reach_stay_in_bounds(variant):
    """A kernel whose table nobody checks reads and writes nothing beside the pool, and no other row's keys."""
    q, k, v = (part[:, :2].contiguous() for part in tokens())
    guarded = [torch.full((9, SIZE, 2, 16), torch.nan) for _ in "kv"]
    for pool in guarded:
        pool[1:-1] = 0.5
    given = {"q": q, "k": k, "v": v, "k_cache": guarded[0][1:-1], "v_cache": guarded[1][1:-1],
             "positions": torch.tensor([7, 7, 7]), "slots": None, "lengths": None, "window": WINDOW,
             "block_table": torch.tensor([[0, 7, 2**40], [1, -1, 7], [3, 4, 5]])}  # fmt: skip
    out = variant.on(given, variant.config())[0]
    assert out[2].isfinite().all()
    for pool, new in zip(guarded, (k, v), strict=True):
        assert pool[0].isnan().all() and pool[-1].isnan().all()
        written = (pool[1:-1] != 0.5).any(-1).any(-1)  # [7, SIZE]
        assert written.nonzero().tolist() == [[4, 3], [5, 0]]
        assert torch.equal(pool[1:-1][[4, 5], [3, 0]], new[2])


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"slots": torch.arange(3)}, errors.ArgumentError, "block_table and slots are both given: pass block_table alone"),
    (11, errors.ArgumentError, "block_table has 11, but k_cache has only pages 0 to 10"),
    (-5, errors.ArgumentError, "block_table has -5, but k_cache has only pages 0 to 10"),
    (9, errors.ArgumentError, "block_table has page 9 twice, and a token of this call is written to it"),
    ([[9, 0], [2, 7], [5, 3]], errors.ShapeError, "the pages of a row in block_table have 8 slots, expected window"),
    ([[9, 0, 4]], errors.ShapeError, r"block_table has shape \[1, 3\], expected \[B=3, M\]"),
], ids=str)  # fmt: skip
def test_bad_tables_are_named(change, error, words):
    """A dict: other arguments; a number: in place of the second row's second page; a list: another table."""
    q, k, v = (part[:, :TOKENS] for part in tokens())
    table = torch.tensor([[9, 0, 4], [2, 7, 1], [5, 3, 8]])
    if isinstance(change, int):
        table[1, 1] = change
    other = {"block_table": torch.tensor(change)} if isinstance(change, list) else {}
    options = {"window": WINDOW, "block_table": table} | other | (change if isinstance(change, dict) else {})
    cache = pools()
    with pytest.raises(error, match=words) as caught:
        griffin_kernels.local_attention_extend(q, k, v, *cache, torch.tensor([9, 9, 9]), **options)
    assert "\n" not in str(caught.value) and all(pool.isnan().all() for pool in cache)


def test_pages_of_a_prompt_that_rows_share_are_read():
    """Two rows go on from one page of keys; each writes to its own."""
    q, k, v = tokens(batch=1, steps=SIZE)
    more = tokens(batch=2, steps=1)
    cache = pools()
    griffin_kernels.local_attention_extend(
        q, k, v, *cache, torch.tensor([0]), window=WINDOW, block_table=torch.tensor([[3, 1, 2]])
    )
    table = torch.tensor([[3, 5, 6], [3, 7, 8]])
    out = griffin_kernels.local_attention_extend(
        *more, *cache, torch.tensor([SIZE, SIZE]), window=WINDOW, block_table=table
    )
    whole = [torch.cat([a.expand(2, -1, -1, -1), b], dim=1) for a, b in zip((q, k, v), more, strict=True)]
    want = griffin_kernels.local_attention(*whole, window=WINDOW)[:, -1:]
    torch.testing.assert_close(out, want)


def test_a_step_in_pages_needs_a_window():
    q, k, v = (part[:, 0] for part in tokens())
    with pytest.raises(errors.ArgumentError, match="block_table is given without window"):
        griffin_kernels.local_attention_step(
            q, k, v, *pools(), torch.tensor([0, 0, 0]), block_table=torch.arange(9).reshape(3, 3)
        )


def test_rotary_does_not_ask_where_rows_that_pad_stand():
    q, k, v = (part[:, 0] for part in tokens())
    angles = torch.arange(12)[:, None] * torch.tensor([0.3, 1.0])
    options = {"window": WINDOW, "rotary": (angles.cos(), angles.sin())}
    table, ring = torch.tensor([[3, 1, 2], [-1, 5, 6], [4, 7, 8]]), pools()
    out = griffin_kernels.local_attention_step(
        q, k, v, *ring, torch.tensor([0, 10**6, 0]), block_table=table, **options
    )
    assert not out[1].any() and torch.equal(out[[0, 2]], v[[0, 2]].repeat_interleave(2, dim=1))
    with pytest.raises(errors.ArgumentError, match="positions has 12, rotary only 0 to 11"):
        griffin_kernels.local_attention_step(q, k, v, *ring, torch.tensor([0, 0, 12]), block_table=table, **options)
