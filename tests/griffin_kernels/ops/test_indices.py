"""Positions and slots that no sequence can have: one error on the CPU whatever runs, and in bounds in GPU kernels."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, errors
from griffin_kernels.contract import LARGEST_INDEX
from tests.calls import CPU, DIFFERENTIABLE, STEPS, operator, small

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

POSITIONS = [
    (name, index)
    for name in DIFFERENTIABLE + STEPS
    for index in catalog.op(name).indices
    if catalog.op(name).inputs[index].least is not None
]
SLOTTED = [name for name in STEPS if "slots" in catalog.op(name).inputs and "keep" not in catalog.op(name).inputs]


def given_for(name, index):
    """A small call of an op that has the index."""
    wanted = {"segment_pos": ("segmented",), "positions": ("positions",), "slots": ("slots",)}[index]
    op = catalog.op(name)
    flags = wanted if small(name, 1, wanted) else ()
    given = op.make_inputs(small(name, 1, flags)[0], CPU, 0)
    assert given[index] is not None
    return given


def wrong(given, index, value):
    spoilt = given[index].clone()
    spoilt.view(-1)[-1] = value
    return given | {index: spoilt}


def test_the_table_has_every_position():
    assert {index for _, index in POSITIONS} == {"segment_pos", "positions"} and len(POSITIONS) >= 13


@pytest.mark.parametrize("name, index", POSITIONS)
def test_positions_that_no_token_can_have(name, index):
    """The same words from the default, once known and before, and from every variant."""
    given, call = given_for(name, index), operator(name)
    before = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    least = catalog.op(name).inputs[index].least
    for value in (least - 1, LARGEST_INDEX + 1):
        words = f"{name}: {index} has {value}, expected {least} to {LARGEST_INDEX}"
        for variant in catalog.variants(name):
            with griffin_kernels.use(variant=f"{name}/{variant}"), pytest.raises(errors.ArgumentError, match=words):
                call(**wrong(given, index, value))
    assert all(torch.equal(given[k], v) for k, v in before.items())
    call(**given)  # from here on the signature is known
    with pytest.raises(errors.ArgumentError, match=f"{index} has {least - 1}"):
        call(**wrong(given, index, least - 1))


@pytest.mark.parametrize("name", SLOTTED)
def test_triton_kernels_touch_nothing_outside_the_pool(name):
    """A GPU's indices are not checked: a slot beyond the pool is one that only pads. Its neighbours keep their NaN."""
    op, given = catalog.op(name), given_for(name, "slots")
    states = [state for state in op.in_place]
    pool = given[states[0]].shape[0]
    batch = given["slots"].shape[0]
    given["slots"] = torch.full((batch,), pool, dtype=torch.int64)
    given["slots"][-1] = 2**40
    given["slots"][0] = 0
    ran = 0
    for variant in catalog.variants(name).values():
        if variant.backend != "triton":
            continue
        ran += 1
        guarded = {}
        for state in states:
            guarded[state] = torch.full((pool + 2, *given[state].shape[1:]), torch.nan, dtype=given[state].dtype)
            guarded[state][1:-1] = given[state]
        inputs = given | {state: guarded[state][1:-1] for state in states}
        out = variant.on(inputs, variant.config())[0]
        for state, whole in guarded.items():
            assert whole[0].isnan().all() and whole[-1].isnan().all(), f"{variant.key} wrote beside {state}"
            assert torch.equal(whole[2:-1], given[state][1:]), f"{variant.key} changed a row that no slot names"
        assert (out[1:] == 0).all() and out[0].isfinite().all(), variant.key
    assert ran and device.cpu().kind == "cpu"


def test_a_negative_position_reaches_no_ring():
    given = given_for("local_attention_step", "positions")
    given["positions"] = torch.full_like(given["positions"], -1)
    for variant in catalog.variants("local_attention_step").values():
        if variant.backend == "triton":
            ring = {name: given[name].clone() for name in ("k_cache", "v_cache")}
            out = variant.on(given | ring, variant.config())[0]
            assert (out == 0).all() and all(torch.equal(ring[name], given[name]) for name in ring)
