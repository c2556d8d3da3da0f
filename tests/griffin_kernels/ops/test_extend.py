"""Sequences that go on from rows of a pool: pieces, checkpoints and rejected tokens give what one run does."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog
from tests import calls
from tests.everywhere import device_of

NAMES = ("linear_scan_extend", "rg_lru_extend", "temporal_conv1d_extend", "recurrent_block_extend")
OPS = [name for name in NAMES if name in catalog.ops()]
LENGTH, WIDTH, BLOCKS = 29, 24, 3
POOL = 40

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def variants(*backends):
    found = [v for op in OPS for v in catalog.variants(op).values() if v.backend in backends]
    return pytest.mark.parametrize("variant", found, ids=lambda v: v.key)


each = variants("eager", "numba")
seeds = drawn(seed=st.integers(0, 2**20))


def dtype_of(variant):
    """float64 where the variant takes it."""
    return torch.float64 if variant.backend == "eager" else torch.float32


def equal(mine, theirs):
    close = {} if mine.dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(mine, theirs, equal_nan=True, **close)


def made(variant, seed, sequences, length=LENGTH):
    """(x and y of some sequences, or x and gates, parameters, a pool of NaN)."""
    op, generator = catalog.op(variant.op), torch.Generator().manual_seed(seed)
    case = next(c for c in op.cases_tagged("smoke") if c["D"] == WIDTH and c.dtype == "float32")
    given = op.make_inputs(case, calls.CPU, seed)
    given = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    given = {k: v.to(dtype_of(variant)) for k, v in given.items()}
    tokens = {
        k: torch.randn(sequences, length, WIDTH, generator=generator).to(v.dtype)
        for k, v in given.items()
        if op.inputs[k].names in (("B", "T", "D"), ("Ba", "Ta", "D"))
    }
    if "a" in tokens:
        tokens["a"] = tokens["a"].sigmoid()
    pools = {k: given[k].new_full((POOL, *given[k].shape[1:]), torch.nan) for k in op.in_place}
    parameters = {k: v for k, v in given.items() if k not in tokens and k not in pools}
    return tokens, parameters, pools


def extend(variant, tokens, parameters, pools, slots, keep, **documents):
    """A call of the public function, or of the variant where only the interpreter runs it; pools change."""
    slots, keep = (v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=torch.int64) for v in (slots, keep))
    given = tokens | parameters | pools | {"slots": slots, "keep": keep} | documents
    op = catalog.op(variant.op)
    if variant.backend == "triton":
        absent = {name: op.call._field_defaults.get(name) for name in op.call._fields if name not in given}
        return variant.on(given | absent, variant.config())[0]
    with griffin_kernels.use(variant=variant.key):
        return calls.public(variant.op, given)[0]


def one_run(variant, tokens, parameters):
    """(output, states after every token by pool) of each sequence by itself, from nothing."""
    count, length = next(iter(tokens.values())).shape[:2]
    op = catalog.op(variant.op)
    case = next(c for c in op.cases_tagged("smoke") if c["D"] == WIDTH and c.dtype == "float32")
    like = op.make_inputs(case, calls.CPU, 0)
    pools = {k: torch.zeros(count * length, *like[k].shape[1:], dtype=dtype_of(variant)) for k in op.in_place}
    keep = torch.arange(count * length).reshape(count, length)
    eager = next(v for v in catalog.variants(variant.op).values() if v.backend == "eager")
    exact = {k: v.double() for k, v in (tokens | parameters | pools).items()}
    out = calls.public(eager.op, exact | {"slots": torch.full((count,), -1), "keep": keep})[0]
    return out.to(dtype_of(variant)), {k: exact[k].unflatten(0, (count, length)).to(pools[k].dtype) for k in pools}


def part(tokens, sequence, begin, end):
    return {k: v[sequence : sequence + 1, begin:end] for k, v in tokens.items()}


@each
def test_every_state_is_that_of_the_sequence_form(variant):
    """Without a pool: one call for every prefix, whose last states are those kept."""
    tokens, parameters, _ = made(variant, 3, 2, 7)
    out, states = one_run(variant, tokens, parameters)
    name, exact = variant.op.removesuffix("_extend"), {k: v.double() for k, v in parameters.items()}
    for length in range(1, 8):
        first, *last = calls.public(name, exact | {k: v[:, :length].double() for k, v in tokens.items()})
        equal(first.to(out.dtype), out[:, :length])
        for mine, theirs in zip(states.values(), last, strict=True):
            equal(mine[:, length - 1], theirs.to(mine.dtype))


@each
@seeds
@settings(max_examples=10, deadline=None)
def test_pieces_of_a_prompt(variant, seed):
    """Continuous batching: pieces of several prompts, packed or padded, at random; empty ones among them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    tokens, parameters, pools = made(variant, seed, 4)
    want, states = one_run(variant, tokens, parameters)
    rows, done, found = torch.randperm(POOL, generator=generator)[:4].tolist(), [0] * 4, torch.empty_like(want)
    while min(done) < LENGTH:
        wanted = [min(draw(0, 12), LENGTH - at) for at in done]
        slots = [row if at else -1 for row, at in zip(rows, done, strict=True)]
        if draw(0, 2):
            packed = [part(tokens, n, at, at + count) for n, (at, count) in enumerate(zip(done, wanted, strict=True))]
            offsets = torch.tensor([0, *itertools.accumulate(wanted)], dtype=torch.int32)
            keep = griffin_kernels.last_tokens(torch.tensor(rows), int(offsets[-1]), offsets)
            joined = {k: torch.cat([piece[k] for piece in packed], dim=1) for k in tokens}
            out = extend(variant, joined, parameters, pools, slots, keep, cu_seqlens=offsets)
            pieces = [out[0, begin:end] for begin, end in itertools.pairwise(offsets.tolist())]
        else:
            longest = max(wanted)
            filled = {k: torch.full((4, longest, WIDTH), torch.nan, dtype=v.dtype) for k, v in tokens.items()}
            keep = torch.full((4, longest), -1)
            for n, (at, count) in enumerate(zip(done, wanted, strict=True)):
                for k, v in tokens.items():
                    filled[k][n, :count] = v[n, at : at + count]
                if count:
                    keep[n, count - 1] = rows[n]
            out = extend(variant, filled, parameters, pools, slots, keep)
            pieces = [out[n, :count] for n, count in enumerate(wanted)]
        for n, piece in enumerate(pieces):
            found[n, done[n] : done[n] + wanted[n]] = piece
            done[n] += wanted[n]
    equal(found, want)
    for name, pool in pools.items():
        equal(pool[rows], states[name][:, -1])
        others = [row for row in range(POOL) if row not in rows]
        assert pool[others].isnan().all()


@each
@seeds
@settings(max_examples=10, deadline=None)
def test_rejected_tokens(variant, seed):
    """Speculative decoding: up to 6 drafted tokens, of which some are accepted; the states of the rest are not used."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    tokens, parameters, pools = made(variant, seed, 2)
    want, _ = one_run(variant, tokens, parameters)
    rows = torch.randperm(POOL, generator=generator)[:14].reshape(2, 7).tolist()
    done, start = [0, 0], [-1, -1]
    while min(done) < LENGTH:
        count = draw(1, 7)
        drafted = {k: torch.randn(2, count, WIDTH, generator=generator).to(v.dtype) for k, v in tokens.items()}
        right = [min(draw(1, count + 1), LENGTH - at) for at in done]
        for n, (at, good) in enumerate(zip(done, right, strict=True)):
            for k, v in tokens.items():
                drafted[k][n, :good] = v[n, at : at + good]
        keep = [rows[n][:count] for n in range(2)]
        out = extend(variant, drafted, parameters, pools, start, keep)
        for n, good in enumerate(right):
            equal(out[n, :good], want[n, done[n] : done[n] + good])
            start[n] = keep[n][good - 1]  # of a sequence that is complete any
            done[n] += good


@each
def test_a_prefix_is_read_again(variant):
    """States of every fifth token of a prompt; others go on from one of them, several at once."""
    tokens, parameters, pools = made(variant, 5, 1)
    want, states = one_run(variant, tokens, parameters)
    keep = [[t // 5 if t % 5 == 4 else -1 for t in range(LENGTH)]]
    equal(extend(variant, tokens, parameters, pools, [-1], keep), want)
    for name, pool in pools.items():
        equal(pool[: LENGTH // 5], states[name][0, 4::5])
    shared = {k: v[:, 15:20].expand(3, 5, WIDTH) for k, v in tokens.items()}
    before = {k: v.clone() for k, v in pools.items()}
    keep = griffin_kernels.last_tokens(torch.tensor([7, -1, 8]), 5)
    out = extend(variant, shared, parameters, pools, [2, 2, 2], keep)
    for row in range(3):
        equal(out[row], want[0, 15:20])
    for name, pool in pools.items():
        equal(pool[[7, 8]], states[name][0, [19, 19]])
        untouched = [row for row in range(POOL) if row not in (7, 8)]
        equal(pool[untouched], before[name][untouched])


@variants("triton")
def test_pieces_and_rejected_tokens_in_triton(variant):
    tokens, parameters, pools = made(variant, 1, 2)
    want, states = one_run(variant, tokens, parameters)
    if reason := variant.reject(catalog.op(variant.op).cases_tagged("smoke")[0], device_of("triton"), variant.config()):
        pytest.skip(reason)
    begin, rows = 0, [11, 3]
    for end in (1, 5, 21, LENGTH):
        piece = {k: v[:, begin:end] for k, v in tokens.items()}
        keep = griffin_kernels.last_tokens(torch.tensor(rows), end - begin)
        out = extend(variant, piece, parameters, pools, rows if begin else [-1, POOL + 3], keep)
        equal(out, want[:, begin:end])
        begin = end
    for name, pool in pools.items():
        equal(pool[rows], states[name][:, -1])
        assert pool[[row for row in range(POOL) if row not in rows]].isnan().all()


@variants("eager", "numba", "triton")
def test_pools_that_are_not_contiguous(variant):
    """Pages of an engine and channels that lie apart: written where they are."""
    tokens, parameters, pools = made(variant, 2, 2, 6)
    if reason := variant.reject(
        catalog.op(variant.op).cases_tagged("smoke")[0], device_of(variant.backend), variant.config()
    ):
        pytest.skip(reason)
    keep = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    for pool in pools.values():
        pool.normal_()
    want = extend(variant, tokens, parameters, plain := {k: v.clone() for k, v in pools.items()}, [2, 8], keep)
    for spread in (1, 2):
        wide = {}
        for k, v in pools.items():
            pages = torch.full((POOL, *v.shape[1:-1], spread * WIDTH + 9), torch.nan, dtype=v.dtype)
            wide[k] = pages[..., 5 : 5 + spread * WIDTH : spread].copy_(v)
        equal(extend(variant, tokens, parameters, wide, [2, 8], keep), want)
        for k in pools:
            equal(wide[k], plain[k])


@each
def test_no_steps(variant):
    tokens, parameters, pools = made(variant, 2, 2, 0)
    out = extend(variant, tokens, parameters, pools, [-1, 3], torch.empty(2, 0, dtype=torch.int64))
    assert out.shape == (2, 0, WIDTH) and all(pool.isnan().all() for pool in pools.values())


def test_last_tokens():
    slots = torch.tensor([4, -1, 2], dtype=torch.int32)
    assert griffin_kernels.last_tokens(slots, 2).tolist() == [[-1, 4], [-1, -1], [-1, 2]]
    offsets = torch.tensor([0, 3, 4, 4], dtype=torch.int32)
    assert griffin_kernels.last_tokens(slots, 4, offsets).tolist() == [[-1, -1, 4, -1]]
    assert griffin_kernels.last_tokens(slots, 0).shape == (3, 0)
    assert griffin_kernels.last_tokens(slots, 0, torch.zeros(4, dtype=torch.int32)).shape == (1, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_captured_in_a_cuda_graph(op):
    """Replays go on from the rows that slots and keep name then."""
    variant = next(v for v in catalog.variants(op).values() if v.backend == "triton")
    tokens, parameters, pools = made(variant, 2, 3, 4)
    given = {k: v.cuda() for k, v in (tokens | parameters | pools).items()}
    for name in pools:
        given[name].normal_()
    rows = {"slots": torch.tensor([0, -1, 7]), "keep": torch.arange(12).reshape(3, 4)}
    given |= {k: v.cuda() for k, v in rows.items()}
    plain = {name: value.clone() for name, value in given.items()}
    calls.public(op, {name: value.clone() for name, value in given.items()})  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = calls.public(op, given)[0]
    for _ in range(3):
        graph.replay()
        torch.testing.assert_close(out, calls.public(op, plain)[0])
        for name in pools:
            torch.testing.assert_close(given[name], plain[name])
        for held in (given, plain):
            held["slots"].copy_(torch.tensor([3, 6, -1]))
            held["keep"].copy_(torch.arange(12).reshape(3, 4) + 20)
