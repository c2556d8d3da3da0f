"""temporal_conv1d on packed sequences: laws that hold for any kernel, gradients, bad offsets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog, device, errors, verify
from griffin_kernels.ops.temporal_conv1d.cost import cost, make_case
from tests.everywhere import INTERPRETER

OP = catalog.op("temporal_conv1d")
BACKWARD = catalog.op("temporal_conv1d_bwd")
CPU = torch.device("cpu")
COMMON = settings(max_examples=40, deadline=None)
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call(x, weight, bias, **rest):
    return griffin_kernels.temporal_conv1d(x, weight, bias, **rest)


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def problem(lengths, taps, width=5, seed=0):
    """(x [1,T,D], weight, bias, a state for each sequence), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(1, sum(lengths), width), normal(taps, width), normal(width), normal(len(lengths), taps - 1, width)


def usable(op_name):
    """Variants of an op that run on this machine's CPU without an interpreter."""
    return [v.key for v in catalog.variants(op_name).values() if v.backend != "triton"]


def close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


@COMMON
@given(lengths=LENGTHS, taps=st.integers(1, 5), carried=st.booleans())
def test_packed_is_separate(lengths, taps, carried):
    x, weight, bias, states = problem(lengths, taps)
    y, after = call(x, weight, bias, state=states if carried else None, cu_seqlens=offsets(lengths))
    assert after.shape == states.shape
    for row, part in enumerate(x.split(lengths, dim=1)):
        alone, last = call(part, weight, bias, state=states[row : row + 1] if carried else None)
        close(y.split(lengths, dim=1)[row], alone)
        assert torch.equal(after[row : row + 1], last)


@COMMON
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), taps=st.integers(1, 5))
def test_documents_of_a_row_are_packed_sequences(lengths, taps):
    """A position of 0 cuts as an offset does; the row's new state is that of its last document."""
    x, weight, bias, _ = problem(lengths, taps)
    y, after = call(x, weight, bias, cu_seqlens=offsets(lengths))
    documents = torch.cat([torch.arange(n) for n in lengths])[None]
    one, last = call(x, weight, bias, segment_pos=documents)
    close(one, y)
    assert torch.equal(last[0], after[-1])


@COMMON
@given(lengths=LENGTHS, taps=st.integers(1, 5), data=st.data())
def test_documents_within_packed_sequences(lengths, taps, data):
    x, weight, bias, states = problem(lengths, taps)
    positions = torch.tensor([data.draw(st.integers(0, 6)) for _ in range(sum(lengths))], dtype=torch.int64)[None]
    y, after = call(x, weight, bias, state=states, segment_pos=positions, cu_seqlens=offsets(lengths))
    for row, (part, own) in enumerate(zip(x.split(lengths, dim=1), positions.split(lengths, dim=1), strict=True)):
        alone, last = call(part, weight, bias, state=states[row : row + 1], segment_pos=own)
        close(y.split(lengths, dim=1)[row], alone)
        assert torch.equal(after[row : row + 1], last)


@COMMON
@given(lengths=LENGTHS, more=LENGTHS, taps=st.integers(1, 5))
def test_packed_parts_joined_by_their_states(lengths, more, taps):
    """The first part of every sequence in one call, the rest in a second one."""
    count = min(len(lengths), len(more))
    lengths, more = lengths[:count], more[:count]
    both = [a + b for a, b in zip(lengths, more, strict=True)]
    x, weight, bias, states = problem(both, taps)
    whole, last = call(x, weight, bias, state=states, cu_seqlens=offsets(both))
    parts = x.split(both, dim=1)
    first = torch.cat([p[:, :n] for p, n in zip(parts, lengths, strict=True)], dim=1)
    second = torch.cat([p[:, n:] for p, n in zip(parts, lengths, strict=True)], dim=1)
    y, middle = call(first, weight, bias, state=states, cu_seqlens=offsets(lengths))
    z, end = call(second, weight, bias, state=middle, cu_seqlens=offsets(more))
    joined = [torch.cat(pair, dim=1) for pair in zip(y.split(lengths, dim=1), z.split(more, dim=1), strict=True)]
    close(torch.cat(joined, dim=1), whole)
    assert torch.equal(end, last)


@COMMON
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), taps=st.integers(1, 5), positions=st.booleans())
def test_token_by_token_is_the_whole(lengths, taps, positions):
    x, weight, bias, states = problem(lengths, taps)
    states = states[:1]
    documents = torch.cat([torch.arange(n) for n in lengths])[None] if positions else None
    whole, last = call(x, weight, bias, state=states, segment_pos=documents)
    steps = []
    for t in range(x.shape[1]):
        here = None if documents is None else documents[:, t : t + 1]
        y, states = call(x[:, t : t + 1], weight, bias, state=states, segment_pos=here)
        steps.append(y)
    close(torch.cat(steps, dim=1), whole)
    assert torch.equal(states, last)


@pytest.mark.parametrize("variant", usable("temporal_conv1d_bwd"))
@pytest.mark.parametrize("lengths", [[0, 2, 0, 5, 1, 0], [3], [0, 0]], ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_gradcheck(variant, lengths, carried):
    x, weight, bias, states = problem(lengths, 4, width=2)
    documents = torch.tensor([5, 6, 0, 1, 2, 0, 1, 9])[None, : sum(lengths)]
    documents = None if "grouped" in variant else documents
    wanted = [x, weight, bias, *([states] if carried else [])]
    for value in wanted:
        value.requires_grad_()

    def function(x, weight, bias, state=None):
        return call(x, weight, bias, state=state, segment_pos=documents, cu_seqlens=offsets(lengths))

    with griffin_kernels.use(variant=variant):
        assert torch.autograd.gradcheck(function, wanted)


@pytest.mark.parametrize("op_name", ["temporal_conv1d", "temporal_conv1d_bwd"])
@COMMON
@given(
    lengths=LENGTHS,
    block_t=st.integers(1, 20),
    tile=st.integers(1, 9),
    width=st.integers(8, 40),  # one channel's sum may cancel, which a relative norm does not forgive
    seed=st.integers(0, 99),
)
def test_native_chunks_however_they_are_cut(op_name, lengths, block_t, tile, width, seed):
    """Chunks of time end anywhere: on a sequence's first step, on one without steps, past the last."""
    if sum(lengths) == 0:
        lengths = [*lengths, 1]
    op, variant = catalog.op(op_name), catalog.variant(f"{op_name}/numba.direct")
    facts = {"rows": len(lengths), "flags": ("packed",), "data": ("state",), "op": op_name}
    case = make_case(1, sum(lengths), width, 4, "float32", **facts)
    inputs = op.make_inputs(case, CPU, seed) | {"cu_seqlens": offsets(lengths)}
    found = verify.check(op, variant, case, variant.config(block_t=block_t, block_d=17, tile=tile), inputs)
    assert found.ok, found.problem


@pytest.mark.parametrize("key", [v.key for op in (OP, BACKWARD) for v in catalog.variants(op.name).values()])
@pytest.mark.parametrize("lengths", [[32, 0, 1, 33, 0], [0, 0, 31, 2, 64], [3, 95, 1]], ids=str)
def test_sequences_that_end_where_pieces_do(key, lengths):
    """Triton's pieces of time have 32 steps here: sequences of just that, one less, one more, and none."""
    variant = catalog.variant(key)
    where = INTERPRETER if variant.backend == "triton" else device.cpu()
    if variant.backend == "triton" and torch.cuda.is_available():
        where = device.gpu(0)
    op, target = catalog.op(variant.op), where.torch_device
    segmented = "grouped" not in key
    flags = ("segmented", "packed") if segmented else ("packed",)
    facts = {"rows": len(lengths), "flags": flags, "data": ("state",), "op": op.name}
    case = make_case(1, sum(lengths), 70, 4, "float32", **facts)
    inputs = op.make_inputs(case, target, 0) | {"cu_seqlens": offsets(lengths).to(target)}
    if segmented:
        # documents begin in the last steps of some sequences, and one goes on from its state at position 2
        positions = torch.cat([(torch.arange(n) + 2) % 31 for n in lengths])[None]
        inputs["segment_pos"] = positions.to(target)
    chosen = {name: value for name, value in (("span", 32), ("block_t", 8)) if name in variant.axes}
    config = variant.config(**chosen)
    assert variant.reject(case, where, config) is None
    found = verify.check(op, variant, case, config, inputs)
    assert found.ok, found.problem


@pytest.mark.parametrize("key", [v.key for v in catalog.variants(BACKWARD.name).values() if v.backend != "eager"])
def test_gradients_of_the_weights_are_the_same_bits_every_time(key):
    variant = catalog.variant(key)
    target = "cuda" if variant.backend == "triton" and torch.cuda.is_available() else "cpu"
    case = make_case(2, 67, 33, 4, "float32", data=("state",), op=BACKWARD.name)
    inputs = BACKWARD.make_inputs(case, torch.device(target), 0)
    first, second = (variant.on(inputs, variant.config()) for _ in range(2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_every_sequence_empty_gives_the_states_back():
    _, weight, bias, states = problem([0, 0, 0], 4)
    x = torch.empty(1, 0, 5, dtype=torch.float64, requires_grad=True)
    states.requires_grad_()
    y, after = call(x, weight, bias, state=states, cu_seqlens=offsets([0, 0, 0]))
    assert y.shape == (1, 0, 5)
    assert torch.equal(after, states)
    dx, dstate = torch.autograd.grad(y.sum() + after.sum(), [x, states])
    assert dx.shape == x.shape
    assert torch.equal(dstate, torch.ones_like(states))


def test_compiles_fullgraph_forward_and_backward():
    def model(x, weight, bias, state, cu_seqlens):
        y, after = call(x.tanh(), weight, bias, state=state, cu_seqlens=cu_seqlens)
        return y.square().sum() + after.square().sum()

    grads = []
    for run in (model, torch.compile(model, fullgraph=True)):
        wanted = [value.requires_grad_() for value in problem([4, 0, 7], 4)]
        grads.append(torch.autograd.grad(run(*wanted, offsets([4, 0, 7])), wanted))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


BAD = {
    "batch of two": ({"x": torch.randn(2, 6, 5).double()}, errors.ShapeError, "inputs of batch 1, x has batch 2"),
    "no sequence": ({"cu_seqlens": torch.tensor([0], dtype=torch.int32)}, errors.ShapeError, "N\\+1 >= 2 offsets"),
    "int16": ({"cu_seqlens": offsets([2, 4]).short()}, errors.DtypeError, "cu_seqlens is int16, expected int32"),
    "late start": ({"cu_seqlens": offsets([1, 5]) + 1}, errors.ArgumentError, "T=6 at most, it runs from 1"),
    "late end": ({"cu_seqlens": offsets([1, 6])}, errors.ArgumentError, "from 0 to T=6 at most, it runs from 0 to 7"),
    "descent": ({"cu_seqlens": offsets([4, -1, 3])}, errors.ArgumentError, "cu_seqlens must not decrease"),
    "a state too many": (
        {"state": torch.randn(3, 3, 5).double()}, errors.ShapeError, r"has shape \[3, 3, 5\], expected \[N=2, K-1=3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_offsets_are_named_in_one_sentence(what):
    changes, error, message = BAD[what]
    x, weight, bias, _ = problem([2, 4], 4)
    with pytest.raises(error, match=message) as caught:
        call(**{"x": x, "weight": weight, "bias": bias, "cu_seqlens": offsets([2, 4])} | changes)
    assert "\n" not in str(caught.value)


def test_bad_offsets_are_seen_in_a_signature_that_is_known():
    x, weight, bias, _ = problem([2, 4], 4)
    call(x, weight, bias, cu_seqlens=offsets([2, 4]))
    with pytest.raises(errors.ArgumentError, match="must run from 0 to T=6 at most"):
        call(x, weight, bias, cu_seqlens=offsets([2, 5]))


def test_look_up_ignores_the_number_of_sequences_but_not_that_there_are_some():
    assert "N" in OP.free_dims
    assert "N" in BACKWARD.free_dims
    plain, packed = make_case(1, 64, 32), make_case(1, 64, 32, rows=3, flags=("packed",))
    assert (plain.key, packed.key) == ("B1-T64-D32-K4-float32", "B1-T64-D32-K4-N3-float32+packed")
    grouped = catalog.variant("temporal_conv1d/eager.grouped")
    assert grouped.reject(packed, device.cpu(), grouped.config()) is None


def test_cost_counts_each_input_and_output_once():
    facts = {"rows": 3, "flags": ("segmented", "packed"), "data": ("state",)}
    for op in (OP, BACKWARD):
        case = make_case(1, 11, 5, 4, op=op.name, **facts)
        inputs = op.make_inputs(case, CPU, 0)
        found = op.cost(case)
        unread = inputs["bias"].nbytes if op is BACKWARD else 0  # only slopes want it
        assert found.bytes_read == sum(v.nbytes for v in inputs.values() if v is not None) - unread
        assert found.bytes_written == sum(out.nbytes for out in op.reference(op.call(**inputs)) if out is not None)
    assert cost(make_case(1, 11, 5, rows=1, flags=("packed",))).bytes_read < found.bytes_read
