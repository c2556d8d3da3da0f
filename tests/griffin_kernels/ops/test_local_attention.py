"""The public local_attention: windows, documents, carried keys."""

from __future__ import annotations

import itertools

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys
from griffin_kernels.ops.local_attention.cost import keys_within_reach, make_case, right_of, visible_pairs

OP = catalog.op("local_attention")
BACKWARD = catalog.op("local_attention_bwd")
CPU = torch.device("cpu")
FLOATS = ("q", "k", "v")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


VARIANTS = pytest.mark.parametrize(
    "variant", [v.key for v in catalog.variants("local_attention").values() if v.name[:5] == "eager"]
)


def call(inputs):
    positional = [inputs[name] for name in FLOATS]
    return griffin_kernels.local_attention(
        *positional, **{k: v for k, v in inputs.items() if k not in (*FLOATS, "with_lse")}
    )


def inputs_of(case, **changes):
    return OP.make_inputs(case, CPU, 0) | changes


def plain(time=12, window=5, dtype="float64", heads=4, shared=2, **facts):
    return inputs_of(make_case(2, time, heads, shared, 8, window, dtype, **facts))


def piece(inputs, start, stop, kept):
    """The arguments of a call for queries start .. stop - 1 with up to ``kept`` keys before them."""
    low = max(0, start - kept)
    parts = {"q": slice(start, stop), "k": slice(low, stop), "v": slice(low, stop), "segment_pos": slice(start, stop)}
    return inputs | {name: inputs[name][:, part] for name, part in parts.items() if inputs[name] is not None}


def dense(inputs):
    """Causal attention without a window, by PyTorch."""
    q, k, v = (inputs[name].transpose(1, 2) for name in FLOATS)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in FLOATS]


@pytest.mark.parametrize("window", [12, 13, 1000])
@VARIANTS
def test_window_of_the_whole_sequence_is_causal_attention(window, variant):
    inputs = plain() | {"window": window}
    with griffin_kernels.use(variant=variant):
        torch.testing.assert_close(call(inputs), dense(inputs))


def test_window_of_one_gives_v_and_its_gradient():
    inputs = plain() | {"window": 1}
    wanted = leaves(inputs)
    out = call(inputs)
    torch.testing.assert_close(out, inputs["v"].repeat_interleave(2, dim=2))
    dq, dk, dv = torch.autograd.grad(out, wanted, torch.ones_like(out))
    torch.testing.assert_close(dv, torch.full_like(dv, 2.0))
    for nothing in (dq, dk):
        torch.testing.assert_close(nothing, torch.zeros_like(nothing))


def test_a_query_sees_exactly_window_keys():
    inputs = plain(window=5)
    before = call(inputs)
    inputs["v"][:, 3] += 1
    changed = (call(inputs) != before).flatten(2).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("offsets", [[0, 4, 4, 5, 12], [0, 12]])
def test_packed_sequences_and_positions_equal_the_sequences_alone(offsets):
    inputs = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in plain().items()}
    packed = call(inputs | {"cu_seqlens": torch.tensor(offsets, dtype=torch.int32)})
    spans = [range(a, b) for a, b in itertools.pairwise(offsets)]
    positions = torch.tensor([[t - span.start for span in spans for t in span]])
    torch.testing.assert_close(call(inputs | {"segment_pos": positions}), packed)
    torch.testing.assert_close(call(inputs | {"segment_pos": positions.int()}), packed)
    for span in spans:
        part = slice(span.start, span.stop)
        alone = call(inputs | {name: inputs[name][:, part] for name in FLOATS})
        torch.testing.assert_close(packed[:, part], alone)


def test_a_row_that_begins_above_position_zero_is_one_document():
    inputs = plain()
    torch.testing.assert_close(call(inputs | {"segment_pos": torch.arange(7, 19).expand(2, 12)}), call(inputs))


@VARIANTS
@pytest.mark.parametrize("flags", [(), ("segmented",), ("segmented", "softcap")])
@pytest.mark.parametrize("cuts", [[0, 7, 30], [0, 1, 4, 29, 30], list(range(31))], ids=["two", "four", "tokens"])
def test_pieces_with_carried_keys_equal_one_call(variant, flags, cuts):
    inputs = plain(30, 5, flags=flags)
    with griffin_kernels.use(variant=variant):
        whole = call(inputs)
        for kept in (4, 30):  # just enough, and all: what no query can reach does not matter
            parts = [call(piece(inputs, start, stop, kept)) for start, stop in itertools.pairwise(cuts)]
            torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_gradients_of_pieces_with_carried_keys_sum_to_those_of_one_call():
    inputs = plain(30, 5, flags=("segmented",))
    wanted = leaves(inputs)
    whole = call(inputs)
    dout = torch.randn_like(whole)
    parts = [call(piece(inputs, start, stop, 20)) for start, stop in ((0, 11), (11, 12), (12, 30))]
    got = torch.autograd.grad(torch.cat(parts, dim=1), wanted, dout)
    for mine, theirs in zip(got, torch.autograd.grad(whole, wanted, dout), strict=True):
        torch.testing.assert_close(mine, theirs)


@VARIANTS
def test_stale_keys_before_the_document_are_never_seen(variant):
    inputs = plain(4, 9, keys=12)
    positions = torch.tensor([[2, 3, 0, 1], [6, 7, 8, 9]])  # the first row's document begins 2 keys before its queries
    with griffin_kernels.use(variant=variant):
        out = call(inputs | {"segment_pos": positions})
        for name in ("k", "v"):
            inputs[name][0, :6] = torch.nan
            inputs[name][1, :2] = torch.nan
        assert not call(inputs)[0].isfinite().any()
        inputs["k"].nan_to_num_(1e3)
        inputs["v"].nan_to_num_(1e3)
        torch.testing.assert_close(call(inputs | {"segment_pos": positions}), out)


def test_a_position_below_zero_sees_itself():
    inputs = plain()
    out = call(inputs | {"segment_pos": torch.full((2, 12), -1)})
    torch.testing.assert_close(out, inputs["v"].repeat_interleave(2, dim=2))


def test_keys_and_windows_beyond_reach_are_the_same_case():
    for keys, window, seen in ((500, 20, 24), (12, 400, 12)):
        inputs = plain(5, window, keys=keys)
        case = OP.case_of(OP.call(**inputs))
        assert (case["S"], case["W"]) == (seen, min(window, keys))
    assert "-S" not in OP.case_of(OP.call(**plain(5, 20))).key
    assert "-T5-S24-" in OP.case_of(OP.call(**plain(5, 20, keys=500))).key


@pytest.mark.parametrize(
    "case",
    [
        make_case(1, t, 1, 1, 8, w, keys=s, right=right)
        for t, s, w, right in ((9, 9, 4, 0), (5, 20, 4, 0), (5, 7, 9, 0), (9, 9, 4, 3), (5, 20, 4, 4), (5, 7, 9, 50))
    ]
    + [
        make_case(1, t, 1, 1, 8, w, keys=s, right=right)
        for t, s, w, right in ((9, 5, 4, 0), (9, 5, 2, 3), (20, 3, 2, 15), (9, 1, 4, 8), (9, 5, 4, 50))
    ],
)
def test_cost_counts_the_visible_pairs(case):
    q, k = torch.empty(1, case["T"], 1, 8), torch.empty(1, case["S"], 1, 8)
    call = OP.call(q, k, k, None, None, None, case["W"], right=right_of(case))
    first, last = first_keys(call)[0], last_keys(call)[0]
    assert visible_pairs(case) == (last - first + 1).sum()
    assert keys_within_reach(case) == case["S"] - first[0]


def one_by_one(q, k, v, window, right, document):
    """Each query alone against the keys that it sees, scores written out. document: the number of each key's own."""
    earlier, group, out = k.shape[1] - q.shape[1], q.shape[2] // k.shape[2], []
    for t in range(q.shape[1]):
        own = t + earlier
        seen = [
            j for j in range(own - window + 1, own + right + 1) if 0 <= j < k.shape[1] and document[j] == document[own]
        ]
        keys, values = (x[:, seen].repeat_interleave(group, dim=2) for x in (k, v))
        weights = (torch.einsum("bhd,bkhd->bhk", q[:, t], keys) * q.shape[3] ** -0.5).softmax(2)
        out.append(torch.einsum("bhk,bkhd->bhd", weights, values))
    return torch.stack(out, dim=1)


@VARIANTS
@pytest.mark.parametrize("kind", ["one document", "positions", "packed", "both", "carried"])
def test_windows_to_the_right_are_those_of_each_query_alone(variant, kind):
    """Outputs and gradients, documents of 1, 2 and more steps."""
    starts = [0] if kind in ("one document", "carried") else [0, 4, 5, 7]
    inputs = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in plain(13, keys=13).items()}
    document = [sum(start <= j for start in starts) for j in range(13)]
    if kind in ("positions", "both"):
        inputs["segment_pos"] = torch.tensor([[j - max(s for s in starts if s <= j) for j in range(13)]])
    if kind in ("packed", "both"):
        # what tells documents apart may come from either
        inputs["cu_seqlens"] = torch.tensor([0, 4, 13] if kind == "both" else [*starts, 13], dtype=torch.int32)
    if kind == "carried":
        inputs["q"] = inputs["q"][:, 6:]
    wanted = leaves(inputs)
    for window, right in ((4, 1), (3, 5), (1, 2), (30, 30)):
        want = one_by_one(*wanted, window, right, document)
        with griffin_kernels.use(variant=variant.partition("/")[2]):
            got = call(inputs | {"window": window, "right": right})
            torch.testing.assert_close(got, want)
            upstream = torch.randn_like(want)
            mine = torch.autograd.grad(got, wanted, upstream)
        for gradient, theirs in zip(mine, torch.autograd.grad(want, wanted, upstream), strict=True):
            torch.testing.assert_close(gradient, theirs)


def test_a_right_that_reaches_no_key_is_the_causal_case():
    assert "right" not in OP.case_of(OP.call(**plain(1, 20, keys=30) | {"right": 7})).key
    case = OP.case_of(OP.call(**plain(5, 20) | {"right": 70}))
    assert (right_of(case), case.flags) == (4, ("right",))


def test_lse_is_given_only_where_asked_for():
    inputs = plain()
    variant = catalog.variant("local_attention/eager.blocked")
    for with_lse in (False, True):
        _, lse = variant.on(inputs | {"with_lse": with_lse}, variant.config())
        assert (lse is not None) == with_lse


def test_compiles_fullgraph_forward_and_backward():
    def model(q, k, v):
        return griffin_kernels.local_attention(q.tanh(), k, v, window=4, softcap=3.0).square().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for time, keys in ((5, 5), (12, 12), (5, 9)):
        given = [plain(time, dtype="float32", keys=keys)[name] for name in FLOATS]
        grads = []
        for run in (model, compiled):
            args = [t.clone().requires_grad_() for t in given]
            grads.append(torch.autograd.grad(run(*args), args))
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(compiled(*given), model(*given))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_sets_of_keys_are_joined_by_lse(softcap):
    """One query, its keys in two calls: results and gradients are those of one call."""
    inputs = plain(time=20)
    q, k, v = inputs["q"][:, -1:], inputs["k"], inputs["v"]

    def whole(q, k, v):
        return griffin_kernels.local_attention(q, k, v, window=20, softcap=softcap)

    def joined(q, k, v):
        calls = [
            griffin_kernels.local_attention(q, k[:, part], v[:, part], window=20, softcap=softcap, return_lse=True)
            for part in (slice(8), slice(8, None))
        ]
        lse = torch.stack([lse for _, lse in calls])
        shares = (lse - lse.logsumexp(0)).exp().transpose(2, 3)[..., None]  # [2, B, T, Hq, 1]
        return (shares * torch.stack([out for out, _ in calls])).sum(0)

    torch.testing.assert_close(joined(q, k, v), whole(q, k, v))
    given = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    upstream = torch.randn_like(q)
    want, got = (torch.autograd.grad(function(*given), given, upstream) for function in (whole, joined))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_lse_alone_has_a_gradient(compiled):
    inputs = plain()
    q, k, v = leaves(inputs)

    def function(q, k, v):
        return griffin_kernels.local_attention(q, k, v, window=5, return_lse=True)[1]

    lse = (torch.compile(function, fullgraph=True) if compiled else function)(q, k, v)
    assert lse.shape == (2, 4, 12) and lse.dtype == torch.float64
    want = OP.reference(OP.call(**inputs | {"with_lse": True}))[1]
    torch.testing.assert_close(lse, want)
    found = torch.autograd.grad(lse.square().sum(), [q, k])
    for mine, theirs in zip(found, torch.autograd.grad(want.square().sum(), [q, k]), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(function, (q, k, v), fast_mode=True)
