"""The public recurrent_block: gradients, parts and packs, its pieces, torch.compile, opcheck, bad and empty input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import griffin_kernels
import griffin_kernels.functional  # registers torch.ops.griffin_kernels
from griffin_kernels import RGLRUWeights, catalog, errors, verify
from griffin_kernels.ops.recurrent_block.cost import make_case
from griffin_kernels.ops.recurrent_block_bwd.op import gelu_and_slope

OP = catalog.op("recurrent_block")
BACKWARD = catalog.op("recurrent_block_bwd")
CPU = torch.device("cpu")
CALLS = OP.cases_tagged("smoke", "edge")
FLOATS = [name for name, spec in OP.inputs.items() if spec.dtype in ("data", "state")]

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def call(inputs):
    weights = RGLRUWeights(**{name: inputs[name] for name in RGLRUWeights._fields})
    branches = [inputs[name] for name in ("x", "y", "conv_weight", "conv_bias")]
    optional = {name: inputs[name] for name in ("conv_state", "h0", "segment_pos", "cu_seqlens")}
    return griffin_kernels.recurrent_block(*branches, weights, **optional)


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in FLOATS if inputs[name] is not None]


def plain(time=6, **changes):
    return OP.make_inputs(make_case(2, time, 8, 2, dtype="float64"), CPU, 0) | changes


def test_gelu_and_its_slope_are_those_of_torch():
    y = torch.linspace(-6, 6, 97, dtype=torch.float64, requires_grad=True)
    want = torch.nn.functional.gelu(y, approximate="tanh")
    value, slope = gelu_and_slope(y.detach())
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), y)[0])


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_backward_reference_is_autograd_of_the_forward_reference(case):
    inputs = verify.to_float64(OP.make_inputs(case, CPU, 0)) | {"with_h": True}
    inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    wanted = leaves(inputs)
    out, kept, h_last, h = OP.reference(OP.call(**inputs))
    upstream = [torch.randn_like(target) for target in (out, kept, h_last)]
    want = torch.autograd.grad([out, kept, h_last], wanted, upstream, allow_unused=True)
    given = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items() if k != "with_h"}
    names = ("dout", "dnew_conv_state", "dh_last")
    got = BACKWARD.reference(BACKWARD.call(**dict(zip(names, upstream, strict=True)), h=h.detach(), **given))
    present = [name for name in FLOATS if inputs[name] is not None]
    for name, mine, theirs in zip(present, [g for g in got if g is not None], want, strict=True):
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.key)
def test_gradients_match_float64_autograd(case):
    inputs = OP.make_inputs(case, CPU, 0)
    exact = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in verify.to_float64(inputs).items()}
    wanted = leaves(inputs)
    targets = call(inputs)
    upstream = [torch.randn_like(target) for target in targets]
    got = torch.autograd.grad(targets, wanted, upstream)
    wanted = leaves(exact)
    want = torch.autograd.grad(
        OP.reference(OP.call(**exact))[:3], wanted, [u.double() for u in upstream], allow_unused=True
    )
    tolerance, extra = BACKWARD.tolerance(case), torch.finfo(case.torch_dtype).eps  # h is rounded once more
    names = [name for name in FLOATS if inputs[name] is not None]
    for name, mine, theirs in zip(names, got, want, strict=True):
        error = verify.error_of(name, mine, torch.zeros_like(mine, dtype=torch.float64) if theirs is None else theirs)
        assert error.rel_norm <= tolerance.rel_norm + extra, error
        assert error.worst <= tolerance.worst + 2 * extra, error


def test_it_is_its_pieces():
    inputs = plain(11, segment_pos=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]] * 2))
    weights = RGLRUWeights(**{name: inputs[name] for name in RGLRUWeights._fields})
    positions = inputs["segment_pos"]
    u, kept = griffin_kernels.temporal_conv1d(
        inputs["x"], inputs["conv_weight"], inputs["conv_bias"], segment_pos=positions
    )
    h, h_last = griffin_kernels.rg_lru(u, weights, segment_pos=positions)
    want = h * torch.nn.functional.gelu(inputs["y"], approximate="tanh")
    for mine, theirs in zip(call(inputs), (want, kept, h_last), strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=20, deadline=None)
@given(time=st.integers(2, 30), cut=st.integers(1, 29), taps=st.integers(1, 6), seed=st.integers(0, 99))
def test_parts_with_carried_states_equal_the_whole(time, cut, taps, seed):
    cut = min(cut, time - 1)
    inputs = OP.make_inputs(make_case(2, time, 6, 2, taps, "float64", data=("state", "h0")), CPU, seed)
    whole = call(inputs)
    head = {name: inputs[name][:, :cut] for name in ("x", "y")}
    tail = {name: inputs[name][:, cut:] for name in ("x", "y")}
    first, kept, middle = call(inputs | head)
    second, *ends = call(inputs | tail | {"conv_state": kept, "h0": middle})
    for mine, theirs in zip((torch.cat([first, second], dim=1), *ends), whole, strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), states=st.booleans(), seed=st.integers(0, 99))
def test_packed_sequences_equal_the_same_sequences_alone(lengths, states, seed):
    total, count = sum(lengths), len(lengths)
    inputs = OP.make_inputs(make_case(1, max(total, 1), 6, 3, dtype="float64"), CPU, seed)
    inputs |= {name: inputs[name][:, :total] for name in ("x", "y")}
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(count, 3, 6, generator=generator, dtype=torch.float64) if states else None
    h0 = torch.randn(count, 6, generator=generator, dtype=torch.float64) if states else None
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    packed = call(inputs | {"cu_seqlens": offsets, "conv_state": kept, "h0": h0})
    start = 0
    for row, length in enumerate(lengths):
        part = {name: inputs[name][:, start : start + length] for name in ("x", "y")}
        if states:
            part |= {"conv_state": kept[row : row + 1], "h0": h0[row : row + 1]}
        alone = call(inputs | part)
        at = slice(start, start + length)
        for mine, theirs in zip((packed[0][:, at], packed[1][row, None], packed[2][row, None]), alone, strict=True):
            torch.testing.assert_close(mine, theirs)
        start += length


@pytest.mark.parametrize("case", CALLS[:1] + CALLS[-2:], ids=lambda case: case.key)
def test_opcheck(case):
    inputs = OP.make_inputs(case, CPU, 0)
    leaves(inputs)
    opcheck(torch.ops.griffin_kernels.recurrent_block.default, OP.call(**inputs))
    opcheck(torch.ops.griffin_kernels.recurrent_block_bwd.default, BACKWARD.call(**BACKWARD.make_inputs(case, CPU, 0)))


def test_compiles_fullgraph_forward_and_backward():
    def model(inputs):
        out, kept, h_last = call(inputs | {"x": inputs["x"].tanh()})
        return out.square().sum() + kept.sum() + h_last.sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for time in (5, 12):
        grads = []
        for run in (model, compiled):
            inputs = plain(time, segment_pos=torch.arange(time).expand(2, time))
            wanted = leaves(inputs)
            grads.append(torch.autograd.grad(run(inputs), wanted))
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5)])
def test_empty_input_gives_empty_output(batch, time):
    inputs = OP.make_inputs(make_case(max(batch, 1), max(time, 1), 8, 2), CPU, 0)
    for name in ("x", "y"):
        inputs[name] = inputs[name][:batch, :time].expand(batch, time, 8).clone()
    inputs |= {"h0": torch.randn(batch, 8), "conv_state": torch.randn(batch, 3, 8)}
    wanted = leaves(inputs)
    out, kept, h_last = call(inputs)
    assert out.shape == (batch, time, 8)
    torch.testing.assert_close(h_last, inputs["h0"])
    torch.testing.assert_close(kept, inputs["conv_state"])
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum() + h_last.sum() + kept.sum(), wanted))


BAD = {
    "branches of two lengths": ({"y": torch.randn(2, 5, 8)}, errors.ShapeError, r"y has shape \[2, 5, 8\], expected"),
    "a branch in half": ({"y": torch.randn(2, 6, 8).half()}, errors.DtypeError, "y is float16, expected float32"),
    "taps of another width": ({"conv_weight": torch.randn(4, 9)}, errors.ShapeError, r"conv_weight has shape \[4, 9\]"),
    "no taps": (
        {"conv_weight": torch.randn(0, 8), "conv_state": None}, errors.ShapeError, "conv_weight|weight has shape"
    ),
    "blocks that do not fill x": (
        {name: plain()[name].float()[:1] for name in ("input_gate_weight", "input_gate_bias",
         "recurrence_gate_weight", "recurrence_gate_bias")}, errors.ShapeError, "make 4 channels; x has 8"
    ),
    "state of another batch": ({"h0": torch.ones(3, 8)}, errors.ShapeError, r"h0 has shape \[3, 8\], expected \[N=2"),
    "inputs kept of another batch": ({"conv_state": torch.ones(3, 3, 8)}, errors.ShapeError, "conv_state has shape"),
    "offsets with a batch": (
        {"cu_seqlens": torch.tensor([0, 6], dtype=torch.int32)}, errors.ShapeError, "batch 1, x has batch 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_argument_is_named(what):
    changes, error, message = BAD[what]
    inputs = OP.make_inputs(make_case(2, 6, 8, 2), CPU, 0)
    with pytest.raises(error, match=message):
        call(inputs | changes)


def test_weights_of_another_type_are_refused():
    with pytest.raises(errors.ArgumentError, match="weights is a dict, expected RGLRUWeights"):
        griffin_kernels.recurrent_block(*[torch.randn(1, 2, 8)] * 2, torch.randn(4, 8), torch.randn(8), {})
