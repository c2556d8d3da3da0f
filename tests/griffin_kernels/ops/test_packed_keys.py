"""local_attention where keys are packed apart from queries, by cu_seqlens_k, and of more queries than keys."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog, device, planted, verify
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys
from griffin_kernels.ops.local_attention.cost import PACKED_KEYS, make_case, visible_pairs
from griffin_kernels.ops.local_attention.op import rounding

OP = catalog.op("local_attention")
BACKWARD = catalog.op("local_attention_bwd")
CPU = torch.device("cpu")
FLOATS = ("q", "k", "v")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

SMALL = make_case(1, 13, 4, 2, 8, 5, flags=("packed", PACKED_KEYS), keys=18, rows=6, data=("lse",))
NAMES = [
    v.name
    for v in catalog.variants("local_attention").values()
    if v.backend in ("eager", "numba") and v.reject(SMALL, device.cpu(), v.config()) is None
]
VARIANTS = pytest.mark.parametrize("name", NAMES)

QUERIES, KEYS = (3, 0, 5, 1, 0, 2), (7, 2, 3, 0, 0, 2)
"""Of each sequence: more keys, keys without queries, more queries than keys, no keys, neither, as many."""
BEYOND = 2, 4
"""Queries and keys of the buffers that are of no sequence."""
WINDOWS = ((4, 0), (1, 2), (2, 6), (30, 30))


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def data(time, keys, batch=1, dtype=torch.float64, seed=0):
    """q, k, v, leaves."""
    made = torch.Generator().manual_seed(seed)
    sizes = ((batch, time, 4, 8), (batch, keys, 2, 8), (batch, keys, 2, 8))
    return [torch.randn(size, generator=made).to(dtype).requires_grad_() for size in sizes]


def alone(q, k, v, window, right):
    """One sequence [t,Hq,d] and [s,Hkv,d] by an explicit mask, its queries the last of its keys: out, lse [Hq,t]."""
    own = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    key = torch.arange(k.shape[0])
    visible = (key > own - window) & (key <= own + right)
    seeing = visible.any(1).nonzero()[:, 0]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("thd,khd->htk", q[seeing], k) * q.shape[2] ** -0.5
    scores = scores.masked_fill(~visible[seeing], -torch.inf)
    out = torch.zeros_like(q).index_put((seeing,), torch.einsum("htk,khd->thd", scores.softmax(2), v))
    lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf)
    return out, lse.index_put((torch.arange(q.shape[1])[:, None], seeing), scores.logsumexp(2))


def one_by_one(q, k, v, window, right):
    """Every sequence alone, and what is of none."""
    at, where = offsets(QUERIES).tolist(), offsets(KEYS).tolist()
    parts = [
        alone(q[0, a:b], k[0, c:d], v[0, c:d], window, right)
        for a, b, c, d in zip(at, at[1:], where, where[1:], strict=False)
    ]
    parts.append((torch.zeros_like(q[0, at[-1] :]), q.new_full((q.shape[2], q.shape[1] - at[-1]), -torch.inf)))
    return torch.cat([out for out, _ in parts])[None], torch.cat([lse for _, lse in parts], dim=1)[None]


def close(op, name, got, want, keys):
    """Within the op's tolerance for data of got's dtype and sums over so many."""
    bound = rounding(got.dtype, 8, keys).times(1 if op is OP else 4)
    found = verify.error_of(name, got.detach(), want.detach().double())
    assert found.rel_norm <= bound.rel_norm and found.worst <= bound.worst, found


def agree(call, reference, leaves, dtype):
    """Outputs, lse and gradients of both against the reference in float64."""
    mine = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    got, want = call(*mine), reference(*leaves)
    upstream = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype) for x in want]
    keys = leaves[1].shape[1]
    for name, one, other in zip(("out", "lse"), got, want, strict=True):
        assert torch.equal(one == -torch.inf, other == -torch.inf)
        close(OP, name, one, other, keys)
    found = torch.autograd.grad(got, mine, [x.to(y.dtype) for x, y in zip(upstream, got, strict=True)])
    for name, one, other in zip(FLOATS, found, torch.autograd.grad(want, leaves, upstream), strict=True):
        close(BACKWARD, f"d{name}", one, other, keys)


def dtype_of(name):
    return torch.float64 if name.startswith("eager") else torch.float32


@VARIANTS
@pytest.mark.parametrize(("window", "right"), WINDOWS)
def test_packed_sequences_are_those_of_each_alone(name, window, right):
    """Buffers are longer than the sequences, and what follows them is NaN."""
    spare, spare_keys = BEYOND
    leaves = data(sum(QUERIES) + spare, sum(KEYS) + spare_keys)
    packed = {"cu_seqlens": offsets(QUERIES), "cu_seqlens_k": offsets(KEYS)}

    def call(q, k, v):
        ends = [torch.full_like(x[:, :n], torch.nan) for x, n in ((q, spare), (k, spare_keys), (v, spare_keys))]
        q, k, v = (torch.cat([x[:, : -end.shape[1]], end], dim=1) for x, end in zip((q, k, v), ends, strict=True))
        return griffin_kernels.local_attention(q, k, v, window=window, right=right, **packed, return_lse=True)

    with griffin_kernels.use(variant=name):
        agree(call, lambda *given: one_by_one(*given, window, right), leaves, dtype_of(name))


@VARIANTS
@pytest.mark.parametrize(("time", "keys"), [(9, 4), (9, 1), (70, 3)])
def test_more_queries_than_keys(name, time, keys):
    """The first ones see nothing: zeros, -inf and no gradient."""
    leaves = data(time, keys, batch=2)
    for window, right in WINDOWS:

        def reference(q, k, v, window=window, right=right):
            rows = [alone(*row, window, right) for row in zip(q, k, v, strict=True)]
            return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

        def call(q, k, v, window=window, right=right):
            return griffin_kernels.local_attention(q, k, v, window=window, right=right, return_lse=True)

        with griffin_kernels.use(variant=name):
            agree(call, reference, leaves, dtype_of(name))


@VARIANTS
def test_documents_within_sequences_of_other_keys(name):
    """A query at position p of its document sees p keys before its own, and none past the next one's beginning."""
    q, k, v = data(7, 14, dtype=dtype_of(name))
    positions = torch.tensor([[5, 6, 0, 1, 9, 0, 1]])
    given = {"cu_seqlens": torch.tensor([0, 4, 7]), "cu_seqlens_k": torch.tensor([0, 9, 14]), "segment_pos": positions}
    seen = ((0, 6), (1, 6), (7, 8), (7, 8), (9, 11), (12, 13), (12, 13))
    with griffin_kernels.use(variant=name):
        out = griffin_kernels.local_attention(q, k, v, window=6, right=5, **given)
        for t, (first, last) in enumerate(seen):
            keys = slice(first, last + 1)
            alone = griffin_kernels.local_attention(q[:, t : t + 1], k[:, keys], v[:, keys], window=20)
            torch.testing.assert_close(out[:, t : t + 1], alone)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_chunks_with_cached_keys_continue_their_prompts(dtype):
    """Two prompts, cut at different places: the second chunks, beside all keys, give what the whole prompts do."""
    q, k, v = data(21, 21)
    whole, done = (0, 12, 21), (7, 4)
    spans = [slice(start + past, end) for (start, end), past in zip(itertools.pairwise(whole), done, strict=True)]
    new = torch.cat([q[:, span] for span in spans], dim=1)
    prompts = torch.tensor(whole, dtype=dtype)
    out = griffin_kernels.local_attention(
        new, k, v, window=6, cu_seqlens=offsets([5, 5], dtype), cu_seqlens_k=prompts
    )  # fmt: skip
    want = griffin_kernels.local_attention(q, k, v, window=6, cu_seqlens=prompts)
    torch.testing.assert_close(out, torch.cat([want[:, span] for span in spans], dim=1))


@VARIANTS
def test_nan_of_a_sequence_stays_with_it(name):
    """Of queries, keys or values of one of three, forward and backward, bit for bit."""
    at, where = offsets(QUERIES).tolist(), offsets(KEYS).tolist()
    clean = data(sum(QUERIES), sum(KEYS), dtype=dtype_of(name))
    given = {"cu_seqlens": offsets(QUERIES), "cu_seqlens_k": offsets(KEYS), "window": 4, "right": 1}
    upstream = torch.linspace(-1, 1, clean[0].numel()).reshape(clean[0].shape).to(clean[0].dtype)

    def run(leaves):
        out = griffin_kernels.local_attention(*leaves, **given)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

    with griffin_kernels.use(variant=name):
        before = run(clean)
        for n, which in itertools.product((0, 2, 5), range(3)):
            leaves = [leaf.detach().clone() for leaf in clean]
            spans = slice(at[n], at[n + 1]), slice(where[n], where[n + 1]), slice(where[n], where[n + 1])
            leaves[which][:, spans[which]] = math.nan
            after = run([leaf.requires_grad_() for leaf in leaves])
            for one, other, span in zip(before, after, (spans[0], *spans), strict=True):
                changed = ~planted.same(one, other).flatten(2).all(2)[0]
                changed[span] = False
                assert not changed.any(), (n, which)


def test_sequences_of_one_length_cost_what_they_see():
    case = make_case(1, 12, 1, 1, 8, 4, keys=30, rows=3, right=2, flags=("packed", PACKED_KEYS))
    q, k = torch.empty(1, 12, 1, 8), torch.empty(1, 30, 1, 8)
    call = OP.call(q, k, k, None, offsets([4] * 3), offsets([10] * 3), 4, right=2)
    assert visible_pairs(case) == (last_keys(call) - first_keys(call) + 1).sum()
    assert OP.case_of(call).flags == case.flags


def test_offsets_are_not_read_on_the_host():
    """Tensors of the meta device have no values: a kernel that asked for one would fail."""
    with torch.device("meta"):
        q, k, v = torch.empty(1, 12, 4, 8), torch.empty(1, 30, 2, 8), torch.empty(1, 30, 2, 8)
        cu_seqlens, cu_seqlens_k = torch.empty(2, 4, dtype=torch.int32)
    call = OP.call(q, k, v, None, cu_seqlens, cu_seqlens_k, 5, with_lse=True, right=2)
    variant = catalog.variant("local_attention/eager.masked")
    out, lse = variant.run(call, variant.config())
    assert (out.shape, lse.shape) == (q.shape, (1, 4, 12))
    out = griffin_kernels.local_attention(q, k, v, window=5, cu_seqlens=offsets([4] * 3), cu_seqlens_k=offsets([9] * 3))
    assert (out.shape, out.device.type) == (q.shape, "meta")


def test_compiles_fullgraph():
    def loss(q, k, v, cu_seqlens, cu_seqlens_k):
        out = griffin_kernels.local_attention(q, k, v, window=4, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k)
        return out.square().sum()

    leaves = data(sum(QUERIES), sum(KEYS))
    given = (*leaves, offsets(QUERIES), offsets(KEYS))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(run(*given), leaves) for run in (compiled, loss))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("key", ["local_attention/compiled.flex_attention", "local_attention/eager.blocked"])
def test_what_does_not_take_them_says_why(key):
    variant = catalog.variant(key)
    gpu = device.Device("cuda", "H100", "sm_90", 132, 0, 0)
    words = {"compiled": "block masks", "eager": "cu_seqlens_k lies on the device"}[variant.backend]
    assert words in variant.reject(SMALL, gpu, variant.config())


NATIVE = [f"{op}/{name}" for op in ("local_attention", "local_attention_bwd") for name in NAMES if name[:5] == "numba"]


@pytest.mark.parametrize("key", NATIVE)
@settings(max_examples=15, deadline=None)
@given(
    time=st.integers(8, 70),
    keys=st.integers(8, 90),
    sequences=st.integers(0, 5),
    window=st.integers(4, 90),
    right=st.integers(0, 90),
    documents=st.booleans(),
    rows=st.integers(1, 90),
    tile=st.integers(1, 100),
    part=st.integers(1, 50),
)
def test_however_the_work_is_cut(key, time, keys, sequences, window, right, documents, rows, tile, part):
    """Of packed sequences, or of two rows without offsets."""
    op, variant = catalog.op(key.partition("/")[0]), catalog.variant(key)
    flags = ("segmented",) * documents + (("packed", PACKED_KEYS) if sequences else ())
    facts = {"keys": keys, "rows": sequences or 2, "right": right, "op": op.name, "data": SMALL.data * (op is OP)}
    case = make_case(1 if sequences else 2, time, 4, 2, 9, window, "float32", flags, **facts)
    config = {"rows": rows, "keys": tile} | ({"part": part} if op is BACKWARD else {})
    found = verify.check(op, variant, case, variant.config(**config), op.make_inputs(case, CPU, 0))
    assert found.ok, found.problem
