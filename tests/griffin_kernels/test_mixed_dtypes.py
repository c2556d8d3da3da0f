"""Weights of another dtype than the data's, and torch.autocast: what trainers and servers make of a model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import griffin_kernels
from griffin_kernels import catalog
from griffin_kernels.contract import accumulator
from griffin_kernels.errors import ArgumentError, DtypeError
from griffin_kernels.models import Griffin, preset
from tests.calls import CPU, DIFFERENTIABLE, STEPS, copies, leaves, public, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

WEIGHTS = ("a_param", "weight", "bias", "conv_weight", "conv_bias")
MATRICES = ("input_gate_weight", "recurrence_gate_weight")
WEIGHTED = [name for name in DIFFERENTIABLE + STEPS if set(MATRICES + WEIGHTS) & set(catalog.op(name).inputs)]
KEEPING = ["block_diagonal_scan", "complex_scan", "rms_norm"]
"""Whose data are not cast under autocast."""
UNIT = torch.finfo(torch.bfloat16).eps / 2


def is_weight(name):
    return name in WEIGHTS or name.endswith(("gate_weight", "gate_bias"))


def inputs_of(name, data, weights):
    """Inputs of the smoke case with data and weights in dtypes of their own; states are as they were."""
    case = next(c for c in catalog.op(name).cases_tagged("smoke") if c.dtype == "float32")
    given = catalog.op(name).make_inputs(case, CPU, 0)
    states = {key for key, spec in catalog.op(name).inputs.items() if spec.dtype in ("state", "accumulator")}
    cast = {
        key: value.to(weights if is_weight(key) else data)
        for key, value in given.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key not in states
    }
    return given | cast


@pytest.mark.parametrize("weights", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("data", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_any_dtype(name, data, weights):
    """Results are those of float64 weights to the data's rounding; each gradient has its tensor's dtype."""
    given = inputs_of(name, data, weights)
    exact = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    given, exact = (leaves(v) if name in DIFFERENTIABLE else copies(v) for v in (given, exact))
    found, wanted = public(name, given), public(name, exact)
    assert found[0].dtype == data
    # the matrices are rounded to the data's dtype, the gates' arguments too, and the result: each once
    unit = torch.finfo(data).eps / 2
    bound = {"bfloat16": 8, "float32": 64}[str(data).removeprefix("torch.")] * unit
    for mine, want in zip(found, wanted, strict=True):
        assert (mine.double() - want.double()).norm() <= bound * want.double().norm()
    if name in DIFFERENTIABLE:
        for outputs in (found, wanted):
            sum(out.double().square().sum() for out in outputs).backward()
        for key, value in given.items():
            if isinstance(value, torch.Tensor) and value.requires_grad:
                assert value.grad.dtype == value.dtype, key
                rounding = torch.finfo(value.dtype).eps / 2
                off = (value.grad.double() - exact[key].grad).norm()
                assert off <= (4 * bound + rounding) * exact[key].grad.norm(), key


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE + STEPS if "scan" not in n and n not in KEEPING])
def test_autocast_is_a_cast(name):
    """Of data and of gate matrices; biases and a_param stay. A step's data get the dtype of the state that it keeps."""
    given = inputs_of(name, torch.float32, torch.float32)
    if name in STEPS:
        kept = {
            key: value.bfloat16()
            for key, value in given.items()
            if key in catalog.op(name).in_place and catalog.op(name).inputs[key].dtype == "data"
        }
        given |= kept
    half = inputs_of(name, torch.bfloat16, torch.float32)
    cast = copies(given) | {
        key: value for key, value in copies(half).items() if catalog.op(name).inputs.get(key) and not is_weight(key)
    }
    want = public(name, cast)
    with torch.autocast("cpu", torch.bfloat16):
        found = public(name, copies(given))
    for mine, theirs in zip(found, want, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


TOKENS = torch.randint(0, 200, (2, 41), generator=torch.Generator().manual_seed(0))


def gradients(model, autocast, forward=None):
    """Loss and gradients of one training step."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = (model if forward is None else forward)(TOKENS[:, :-1])[0]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), TOKENS[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Griffin(preset("griffin-tiny"))


def test_a_training_step_under_autocast(model):
    """float32 weights, bfloat16 data: gradients in float32, off by no more than roundings add up to."""
    loss, exact = gradients(model, autocast=False)
    half_loss, found = gradients(model, autocast=True)
    # each of three blocks rounds some ten tensors on the way there and as many back, independently of each other
    bound = (2 * 10 * len(model.blocks)) ** 0.5 * UNIT
    assert abs(loss - half_loss) <= bound * loss
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[name]).norm() <= bound * exact[name].norm(), name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_under_autocast(model, backend):
    loss, want = gradients(model, autocast=True)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    found_loss, found = gradients(model, autocast=True, forward=compiled)
    # norms are left to the compiler, and inductor leaves out roundings between what it fuses
    bound = (2 * 10 * len(model.blocks)) ** 0.5 * UNIT
    assert abs(found_loss - loss) <= bound * loss
    for name, gradient in found.items():
        assert (gradient - want[name]).norm() <= bound * want[name].norm(), name


def test_checkpointed_under_autocast(model):
    loss, want = gradients(model, autocast=True)
    again, found = gradients(model, True, lambda tokens: checkpoint(model, tokens, use_reentrant=False))
    assert again == loss
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, want[name], rtol=0, atol=0)


def test_decoding_under_autocast(model):
    """Chunks and single tokens go on from a cache of the weights' dtype."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model(TOKENS)[0]
        logits, cache = model(TOKENS[:, :30])
        pieces = [logits]
        for at in (*range(30, 35), 35):
            logits, cache = model(TOKENS[:, at : at + (1 if at < 35 else 6)], cache=cache)
            pieces.append(logits)
    found = torch.cat(pieces, 1)
    assert found.shape == whole.shape
    bound = (10 * len(model.blocks)) ** 0.5 * UNIT
    assert (found.double() - whole.double()).norm() <= bound * whole.double().norm()
    assert accumulator(torch.bfloat16) == cache.layers[0].state.dtype


def test_a_scan_s_data_is_cast_and_its_gates_are_not_under_autocast():
    given = catalog.op("linear_scan").make_inputs(small("linear_scan")[0], CPU, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = public("linear_scan", copies(given))
    want = public("linear_scan", copies(given | {"x": given["x"].bfloat16()}))
    assert given["a"].dtype == torch.float32
    for mine, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", KEEPING)
def test_some_keep_their_dtype_under_autocast(name):
    given = catalog.op(name).make_inputs(small(name)[0], CPU, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = public(name, copies(given))
    for mine, want in zip(found, public(name, copies(given)), strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [None, [1.0], torch.zeros(1, dtype=torch.int32)], ids=["none", "list", "int32"])
def test_a_step_s_wrong_state_is_named_under_autocast(wrong):
    given = inputs_of("temporal_conv1d_step", torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises((ArgumentError, DtypeError), match=r"state (is|has)"):
        public("temporal_conv1d_step", given | {"state": wrong})


@pytest.mark.parametrize("name", WEIGHTED)
def test_explain_says_what_casts_move(name):
    """Of float32 weights beside bfloat16 data the gates' matrices are cast; the others are read as they are."""
    given = inputs_of(name, torch.bfloat16, torch.float32)
    found = griffin_kernels.explain(name, given)
    matrices = [key for key in given if key in MATRICES]
    assert [words.split()[0] for words in found.casts] == matrices
    for key, words in zip(matrices, found.casts, strict=True):
        megabytes = f"{given[key].numel() * 6 / 1e6:.3g}"
        start = f"{key} is cast from float32 to bfloat16 at every call, which moves {megabytes} MB"
        assert words.startswith(start) and words in str(found)
    assert griffin_kernels.select(name, given).variant is found.choice.variant
    assert not griffin_kernels.explain(name, inputs_of(name, torch.bfloat16, torch.bfloat16)).casts


def test_explain_without_data_names_what_is_missing():
    with pytest.raises(ArgumentError, match="x is None"):
        griffin_kernels.explain("rg_lru", {})
