"""The public temporal_conv1d: published numbers, documents, carried state, gradients."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_kernels
from griffin_kernels import catalog, device, errors
from griffin_kernels.ops.temporal_conv1d.cost import cost, make_case
from tests import ROOT

OP = catalog.op("temporal_conv1d")
BACKWARD = catalog.op("temporal_conv1d_bwd")
CPU = torch.device("cpu")
FLOATS = ("x", "weight", "bias", "state")
DATA = ROOT / "tests" / "data"

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call(inputs):
    return griffin_kernels.temporal_conv1d(**inputs)


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in FLOATS if inputs[name] is not None]


def plain(batch=2, time=6, width=8, taps=4, dtype=torch.float64, state=True, **changes):
    case = make_case(batch, time, width, taps, str(dtype).split(".")[1], data=("state",) if state else ())
    return OP.make_inputs(case, CPU, 0) | changes


def positions(lengths, first=0):
    """int64 [1, T] of documents of these lengths, the first of which goes on at ``first``."""
    parts = [torch.arange(n) + (first if i == 0 else 0) for i, n in enumerate(lengths)]
    return torch.cat(parts)[None]


@pytest.fixture(scope="module")
def golden():
    with numpy.load(DATA / "temporal_conv1d.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def usable(op_name):
    """Variants of an op that run on this machine's CPU without an interpreter."""
    return [v.key for v in catalog.variants(op_name).values() if v.backend != "triton"]


def assert_golden(got, want):
    # five float32 terms on both sides, in different orders
    torch.testing.assert_close(got.float(), want, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", usable("temporal_conv1d"))
def test_published_code_packed_and_then_one_token(golden, variant, dtype):
    x, weight, bias, state, token = (golden[name].to(dtype) for name in ("x", "param/w", "param/b", "state", "x_next"))
    segment_pos = golden["segment_pos"]
    # the published code multiplies x by its document mask in place, and the file holds x after that: in these rows,
    # the last three before the boundary, x no longer is what y was computed from
    spoilt = torch.zeros_like(segment_pos, dtype=torch.bool)
    spoilt[0, 8:11] = True
    assert (x[spoilt] == 0).all()
    case, found = OP.case_of(OP.call(x, weight, bias, None, segment_pos, None)), catalog.variant(variant)
    with griffin_kernels.use(variant=variant):
        if found.reject(case, device.cpu(), found.config()) is None:
            y, after = griffin_kernels.temporal_conv1d(x, weight, bias, segment_pos=segment_pos)
            assert_golden(y[~spoilt], golden["y"][~spoilt])
            assert_golden(after, golden["state"])
        else:
            # no documents: the other row is one
            y, after = griffin_kernels.temporal_conv1d(x[1:], weight, bias)
            assert_golden(y, golden["y"][1:])
            assert_golden(after, golden["state"][1:])
        y, after = griffin_kernels.temporal_conv1d(token, weight, bias, state=state)
    assert_golden(y, golden["y_next"])
    assert_golden(after, golden["state_next"])


def torch_conv1d(x, weight, bias, before):
    """float64 conv1d over (before, x)."""
    inputs = torch.cat([before, x], dim=1).double().transpose(1, 2)
    y = torch.nn.functional.conv1d(inputs, weight.double().t()[:, None], bias.double(), groups=x.shape[2])
    return y.transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), time=st.integers(1, 40), width=st.integers(1, 40), taps=st.integers(1, 6))
def test_equals_torch_conv1d(batch, time, width, taps):
    for state in (False, True):
        inputs = plain(batch, time, width, taps, state=state)
        y, after = call(inputs)
        before = inputs["state"] if state else torch.zeros(batch, taps - 1, width, dtype=torch.float64)
        want = torch_conv1d(inputs["x"], inputs["weight"], inputs["bias"], before)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-13)
        assert torch.equal(after, torch.cat([before, inputs["x"]], dim=1)[:, time:])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), taps=st.integers(1, 5))
def test_parts_joined_by_the_state_equal_the_whole(lengths, taps):
    inputs = plain(time=sum(lengths), taps=taps)
    whole, last = call(inputs)
    state, parts = inputs["state"], []
    for x in inputs["x"].split(lengths, dim=1):
        y, state = call(inputs | {"x": x, "state": state})
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(state, last)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    first=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 42), max_size=3),
    taps=st.integers(1, 5),
)
def test_packed_documents_equal_each_alone_however_they_are_cut(lengths, first, cuts, taps):
    """The first document goes on at position ``first``, from a state of which no more than that is its own."""
    time = sum(lengths)
    inputs = plain(1, time, 8, taps, segment_pos=positions(lengths, first))
    alone = []
    own = inputs["state"].clone()
    own[:, : max(taps - 1 - first, 0)] = 0
    for index, x in enumerate(inputs["x"].split(lengths, dim=1)):
        y, last = call(inputs | {"x": x, "segment_pos": None, "state": own if index == 0 else None})
        alone.append(y)
    want = torch.cat(alone, dim=1)
    y, after = call(inputs)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-13)
    assert torch.equal(after, last)
    bounds = sorted({0, time, *(cut for cut in cuts if cut < time)})
    state, parts = inputs["state"], []
    for start, end in itertools.pairwise(bounds):
        piece = {"x": inputs["x"][:, start:end], "segment_pos": inputs["segment_pos"][:, start:end], "state": state}
        y, state = call(inputs | piece)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), want, rtol=1e-13, atol=1e-13)
    assert torch.equal(state, last)


def test_decoding_after_packed_documents_needs_no_positions():
    """The state has zeros for the document before, so one token at a time goes on as the last document alone."""
    inputs = plain(1, 9, state=False, segment_pos=positions([8, 1]))
    token = torch.randn(1, 1, 8, dtype=torch.float64)
    _, state = call(inputs)
    y, _ = call(inputs | {"x": token, "state": state, "segment_pos": None})
    alone = torch.cat([inputs["x"][:, 8:], token], dim=1)
    want, _ = call(inputs | {"x": alone, "state": None, "segment_pos": None})
    torch.testing.assert_close(y, want[:, 1:])


@pytest.mark.parametrize("variant", usable("temporal_conv1d"))
def test_a_bad_value_stays_in_its_document_and_channel(variant):
    segment_pos = positions([5, 7]) if "grouped" not in variant else None
    inputs = plain(1, 12, segment_pos=segment_pos, state=False)
    inputs["x"][0, 3, 2] = float("nan")
    with griffin_kernels.use(variant=variant):
        y, _ = call(inputs)
    bad = torch.zeros(1, 12, 8, dtype=torch.bool)
    bad[0, 3 : 5 if segment_pos is not None else 7, 2] = True
    assert torch.equal(y.isnan(), bad)


def test_outputs_own_their_memory():
    inputs = plain(1, 3, 8)
    for time in (1, 3):
        x = inputs["x"][:, :time].contiguous()
        y, after = call(inputs | {"x": x})
        for out in (y, after):
            for source in (x, inputs["state"]):
                assert out.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
            assert out.is_contiguous()


@pytest.mark.parametrize("variant", usable("temporal_conv1d_bwd"))
@pytest.mark.parametrize("time", [1, 2, 7])
@pytest.mark.parametrize("state", [False, True])
def test_gradcheck(variant, time, state):
    inputs = plain(2, time, 3, 4, state=state)
    if "grouped" not in variant:
        inputs["segment_pos"] = torch.stack([torch.arange(time) + 1, torch.arange(time) % 2])
    wanted = leaves(inputs)
    names = [name for name in FLOATS if inputs[name] is not None]

    def function(*values):
        return call(inputs | dict(zip(names, values, strict=True)))

    with griffin_kernels.use(variant=variant):
        assert torch.autograd.gradcheck(function, wanted)


@pytest.mark.parametrize("variant", usable("temporal_conv1d"))
def test_a_residual_is_added_last_and_has_the_gradient_of_y(variant):
    inputs = plain(2, 7, 3, activation="silu")
    residual, upstream = (torch.randn(2, 7, 3, dtype=torch.float64) for _ in range(2))
    residual = residual.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    wanted = leaves(inputs)
    with griffin_kernels.use(variant=variant):
        y, after = call(inputs | {"residual": residual})
        without, same = call(inputs | {"residual": None})
    torch.testing.assert_close(y, without + residual, rtol=1e-15, atol=1e-15)
    assert torch.equal(after, same)
    of_residual, *mine = torch.autograd.grad(y, [residual, *wanted], upstream)
    assert torch.equal(of_residual, upstream)
    assert all(map(torch.equal, mine, torch.autograd.grad(without, wanted, upstream)))


def test_a_residual_that_is_x_itself():
    inputs = plain()
    x = inputs["x"].requires_grad_()
    mine, theirs = call(inputs | {"residual": x})[0], call(inputs)[0] + x
    assert torch.equal(torch.autograd.grad(mine.sum(), x)[0], torch.autograd.grad(theirs.sum(), x)[0])


@pytest.mark.parametrize("end", [4, 6])
def test_a_residual_past_the_last_sequence_is_not_read(end):
    inputs = plain(1, 6, state=False, cu_seqlens=torch.tensor([0, 1, end], dtype=torch.int32))
    residual = torch.full_like(inputs["x"], torch.nan)
    residual[:, :end] = 1.0
    for function in (call, torch.func.vmap(call, in_dims=({name: None for name in inputs} | {"residual": 0},))):
        rows = residual if function is call else residual[None]
        y, _ = function(inputs | {"residual": rows.requires_grad_()})
        padded = y.reshape(6, 8)[end:]
        assert not y.isnan().any() and not padded.any()
        gradient = torch.autograd.grad(y.sum(), rows)[0].reshape(6, 8)
        assert (gradient[:end] == 1).all() and not gradient[end:].any()


def test_a_residual_compiles_fullgraph_forward_and_backward():
    inputs = plain(1, 6, cu_seqlens=torch.tensor([0, 4, 5], dtype=torch.int32), activation="gelu")
    inputs["state"] = torch.randn(2, 3, 8, dtype=torch.float64)
    inputs["residual"] = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    wanted = [*leaves(inputs), inputs["residual"]]
    results = []
    for function in (call, torch.compile(call, fullgraph=True)):
        y, after = function(inputs)
        results.append((y, after, *torch.autograd.grad(y.square().sum() + after.sum(), wanted)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradient_of_the_new_state_alone():
    inputs = plain(1, 2, segment_pos=positions([2], first=1))
    x, state = inputs["x"].requires_grad_(), inputs["state"].requires_grad_()
    _, after = call(inputs)
    dx, dstate = torch.autograd.grad(after.sum(), [x, state])
    assert (dx == 1).all()
    # the new state is (state[2], x), and position 1 owns the last row of the old one
    assert torch.equal(dstate[0, :, 0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def test_strides_do_not_matter():
    inputs = plain(3, 20, 16, dtype=torch.float32)
    inputs["segment_pos"] = (torch.arange(20) % 6)[:, None].repeat(1, 3).t()
    swapped = inputs | {
        "x": inputs["x"].permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "weight": inputs["weight"].t().contiguous().t(),
        "state": inputs["state"].transpose(0, 1).contiguous().transpose(0, 1),
        "bias": inputs["bias"].repeat_interleave(2)[::2],
    }
    assert not swapped["x"].is_contiguous()
    gradients = []
    for given_ in (inputs, swapped):
        wanted = leaves({k: v.detach() for k, v in given_.items() if v is not None})
        taken = dict(zip(FLOATS, wanted, strict=True)) | {"segment_pos": given_["segment_pos"]}
        outputs = call(taken)
        gradients.append([*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], wanted)])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_grouped_conv1d_is_refused_for_documents():
    with (
        griffin_kernels.use(variant="temporal_conv1d/eager.grouped"),
        pytest.raises(errors.RejectedError, match="reads across the documents"),
    ):
        call(plain(segment_pos=torch.arange(6).expand(2, 6)))


@pytest.mark.parametrize("variant", usable("temporal_conv1d"))
@pytest.mark.parametrize("position", range(5))
def test_one_token_reads_no_more_of_the_state_than_its_position_says(variant, position):
    inputs = plain(2, 1, segment_pos=torch.full((2, 1), position))
    with griffin_kernels.use(variant=variant):
        y, after = call(inputs)
    own = inputs["state"].clone()
    own[:, : max(3 - position, 0)] = 0
    torch.testing.assert_close(y, torch_conv1d(inputs["x"], inputs["weight"], inputs["bias"], own))
    assert torch.equal(after, torch.cat([own[:, 1:], inputs["x"]], dim=1))


def test_cost_counts_each_input_and_output_once():
    for data in ((), ("state",)):
        inputs = plain(3, 11, 5, 4, torch.float32, state=bool(data)) | {"segment_pos": torch.zeros(3, 11).long()}
        found = cost(make_case(3, 11, 5, 4, flags=("segmented",), data=data))
        assert found.bytes_read == sum(v.nbytes for v in inputs.values() if v is not None)
        assert found.bytes_written == sum(out.nbytes for out in call(inputs))
        added = cost(make_case(3, 11, 5, 4, flags=("segmented", "residual"), data=data))
        assert added.bytes_read == found.bytes_read + inputs["x"].nbytes
        active = make_case(3, 11, 5, 4, flags=("segmented", "silu"), data=data, op="temporal_conv1d_bwd")
        backward = make_case(3, 11, 5, 4, flags=("segmented",), data=data, op="temporal_conv1d_bwd")
        inputs = BACKWARD.make_inputs(backward, CPU, 0)
        everything = sum(v.nbytes for v in inputs.values() if v is not None)
        assert BACKWARD.cost(active).bytes_read == everything
        assert BACKWARD.cost(backward).bytes_read == everything - inputs["bias"].nbytes  # only slopes want it
        assert BACKWARD.cost(backward).bytes_written == sum(
            out.nbytes for out in BACKWARD.reference(BACKWARD.call(**inputs)) if out is not None
        )
