"""Wrong arguments of the public operations: each is named in one sentence, by every op alike."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, pieces
from griffin_kernels.errors import ArgumentError, DeviceMismatchError, DtypeError, ShapeError
from tests.calls import DIFFERENTIABLE, PARAMETERS, STATES, STEPS, copies, floats, leaves, public, row

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def refuses(name, inputs, changes, error, message):
    """The call raises ``error`` in one line with ``message`` in it, and writes nothing."""
    given = inputs | changes
    before = copies(given)
    with pytest.raises(error, match=message) as caught:
        public(name, given)
    assert "\n" not in str(caught.value)
    for state in catalog.op(name).in_place:
        assert (
            not isinstance(given[state], torch.Tensor)
            or given[state].is_meta
            or torch.equal(given[state], before[state])
        )


@pytest.mark.parametrize("name", DIFFERENTIABLE + STEPS)
def test_every_argument_that_is_no_such_tensor_is_named(name):
    op, inputs = catalog.op(name), row(name)
    if "cu_seqlens" in inputs:
        inputs["cu_seqlens"] = None
    first, *_ = op.inputs
    for argument, spec in op.inputs.items():
        refuses(name, inputs, {argument: 0.5}, ArgumentError, f"{argument} is a float, expected a tensor")
        if not spec.optional:
            either = argument == "a" and name in ("linear_scan", "linear_scan_extend")  # whose gates may come as log_a
            words = "neither a nor log_a is given" if either else f"{argument} is None, expected a tensor"
            refuses(name, inputs, {argument: None}, ArgumentError, words)
        if (value := inputs[argument]) is None:
            continue
        if name != "geglu":  # which takes any number of dimensions
            words = rf"{argument} has shape \[1, .*expected \[{spec.names[0]}"
            refuses(name, inputs, {argument: value[None]}, ShapeError, words)
        weight = spec.dtype == "parameter" or argument.endswith("gate_weight")  # of any float dtype
        wrong = torch.int32 if argument == first or weight else torch.float16
        expected = "one of float32" if argument == first else value.dtype
        words = f"{argument} is {str(wrong)[6:]}, expected {str(expected).removeprefix('torch.')}"
        refuses(name, inputs, {argument: value.to(wrong)}, DtypeError, words)
        if argument != first:
            words = f"{argument} is on meta, the first argument on cpu"
            refuses(name, inputs, {argument: value.to("meta")}, DeviceMismatchError, words)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "weights" in PARAMETERS[name]])
def test_weights_of_another_type_are_refused(name):
    given = {k: v for k, v in row(name).items() if k in PARAMETERS[name]}
    for weights in ({}, (1,)):
        with pytest.raises(ArgumentError, match=f"weights is a {type(weights).__name__}, expected RGLRUWeights"):
            getattr(griffin_kernels, name)(**given, weights=weights)


def offsets(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def gates_of_one_block(given):
    return {name: value[:1] for name, value in given.items() if "gate" in name}


def one_kept(given, row, sequence):
    keep = torch.full_like(given["keep"], -1)
    keep[sequence, -1] = row
    return keep


SCAN = {
    "a of another length": (lambda i: {"a": i["a"][:, :4]}, ShapeError, r"a has shape \[2, 4, .*\[(B=)?2, (T=)?6"),
    "h0 of another batch": (lambda i: {"h0": i["h0"][:1]}, ShapeError, r"h0 has shape \[1, .*expected \[N=2"),
    "reset of floats": (lambda i: {"reset": i["x"][..., 0]}, DtypeError, "reset is float32, expected bool"),
    "reset of another length": (
        lambda i: {"reset": torch.ones(2, 4, dtype=torch.bool)}, ShapeError, r"reset has shape \[2, 4\]"
    ),
    "offsets of int16": (
        lambda i: {"x": i["x"][:1], "a": i["a"][:1], "h0": None, "cu_seqlens": offsets(0, 6, dtype=torch.int16)},
        DtypeError, "cu_seqlens is int16, expected int32",
    ),
}  # fmt: skip
GATED = {
    "blocks that do not fill x": (gates_of_one_block, ShapeError, "make 4 channels; x has 8"),
    "state of another batch": (
        lambda i: {"h0": torch.ones(3, 8)}, ShapeError, r"h0 has shape \[3, 8\], expected \[N=2"
    ),
}  # fmt: skip
STEP = {
    "positions of another batch": (lambda i: {"positions": i["positions"][:2]}, ShapeError, "positions has shape"),
    "a slot beyond the pool": (lambda i: {"slots": torch.tensor([0, 5, 1])}, ArgumentError, "slots has 5"),
    "a slot twice": (lambda i: {"slots": torch.tensor([0, 1, 1])}, ArgumentError, "slots names a row twice"),
    "slots of another batch": (lambda i: {"slots": torch.tensor([0, 1])}, ShapeError, "slots has shape"),
    "a pool without slots": (lambda i: {"slots": None}, ShapeError, "has 5 rows, the batch has 3; pass slots"),
    "a padding slot without slots": (
        lambda i: {"slots": None, "pad_slot": 0}, ArgumentError, "pad_slot is 0 without slots"
    ),
    "a slot twice that is not the padding one": (
        lambda i: {"slots": torch.tensor([0, 1, 1]), "pad_slot": 0}, ArgumentError, "slots names a row twice"
    ),
}  # fmt: skip
TOKEN = STEP | {
    "a place without slots": (
        lambda i: {"slots": None, "dst_slots": torch.tensor([0, 1, 2])}, ArgumentError, "dst_slots is given without"
    ),
    "a place twice": (
        lambda i: {"dst_slots": torch.tensor([0, 0, 0])}, ArgumentError, "dst_slots names a row twice"
    ),
    "a place beyond the pool": (lambda i: {"dst_slots": torch.tensor([0, 5, 1])}, ArgumentError, "dst_slots has 5"),
    "a place that another row reads": (
        lambda i: {"dst_slots": i["slots"][[1, 0, 2]]}, ArgumentError, "whose state another row of the batch reads"
    ),
    "places of another batch": (lambda i: {"dst_slots": torch.tensor([0, 1])}, ShapeError, "dst_slots has shape"),
    "out that is no tensor": (lambda i: {"out": 0.5}, ArgumentError, "out is a float, expected a tensor"),
    "out of another shape": (
        lambda i: {"out": torch.empty(3, 9)}, ShapeError, r"out has shape \[3, 9\], expected \[B=3, D=8\]"
    ),
    "out of another dtype": (
        lambda i: {"out": torch.empty(3, 8, dtype=torch.float64)}, DtypeError, "out is float64, expected float32"
    ),
    "out elsewhere": (
        lambda i: {"out": torch.empty(3, 8, device="meta")}, DeviceMismatchError, "out is on meta, the first"
    ),
    "out in x's memory": (lambda i: {"out": i["x"]}, ArgumentError, "out overlaps x in memory"),
    "out in one place": (
        lambda i: {"out": torch.zeros(1, 8).expand(3, 8)}, ArgumentError, "out has several elements in one place"
    ),
}  # fmt: skip
HELD = {
    "a state of another width": (lambda i: {"h": i["h"][..., 1:]}, ShapeError, "h has shape"),
    "a pool of the data's dtype": (lambda i: {"h": i["h"].bfloat16()}, DtypeError, "h is bfloat16, expected float32"),
    "rows of a pool in one place": (
        lambda i: {"h": i["h"][:1].expand(5, 8)}, ArgumentError, "h has all of its rows in one place"
    ),
    "out in the pool's memory": (lambda i: {"out": i["h"][1:4]}, ArgumentError, "out overlaps h in memory"),
}  # fmt: skip
EXTEND = {
    "a slot beyond the pool": (lambda i: {"slots": torch.tensor([0, 7, 1])}, ArgumentError, "slots has 7, but"),
    "a row to keep beyond the pool": (lambda i: {"keep": i["keep"].clamp_min(9)}, ArgumentError, "keep has 9, but"),
    "a row twice": (lambda i: {"keep": i["keep"].clamp_min(0)}, ArgumentError, "keep names row 0 twice"),
    "another sequence's row": (
        lambda i: {"slots": torch.tensor([0, 1, 2]), "keep": one_kept(i, row=2, sequence=1)},
        ArgumentError,
        "keep has row 2 in sequence 1, but sequence 2 starts from it",
    ),
    "slots of another batch": (lambda i: {"slots": torch.tensor([0, 1])}, ShapeError, "slots has shape"),
    "keep of another length": (lambda i: {"keep": i["keep"][:, 1:]}, ShapeError, "keep has shape"),
}
ATTENTION = {
    "softcap of zero": (lambda i: {"softcap": 0.0}, ArgumentError, "softcap is 0.0, expected a finite number"),
    "endless scale": (lambda i: {"scale": float("inf")}, ArgumentError, "scale is inf"),
}


def packed_apart(inputs, *of_keys):
    """Four queries of one sequence against six keys."""
    parts = {"q": inputs["q"][:1, :4], "k": inputs["k"][:1], "v": inputs["v"][:1]}
    return parts | {"cu_seqlens": offsets(0, 4), "cu_seqlens_k": offsets(*(of_keys or (0, 6)))}


BAD = {
    "linear_scan": SCAN,
    "block_diagonal_scan": SCAN | {
        "blocks that do not make up D": (
            lambda i: {"a": i["a"][:, :, :2]}, ShapeError, "a has 2 blocks of 4 .*but D is 12"
        ),
        "blocks of one, too few": (
            lambda i: {"a": i["a"][..., :1, :1]}, ShapeError, "a has 3 blocks of 1 .*but D is 12"
        ),
        "the same matrices at all steps": (
            lambda i: {"a": i["a"][:1, :1]}, ShapeError, r"a has shape \[1, 1, 3, .*a.expand\(2, 6, 3, 4, 4\)"
        ),
        "the same at all steps and in all rows": (
            lambda i: {"a": i["a"][0, 0]}, ShapeError, r"a has shape \[3, 4, 4\], .*a.expand\(2, 6, 3, 4, 4\)"
        ),
        "matrices in float32 beside 16 bits": (
            lambda i: {"x": i["x"].bfloat16()}, DtypeError, "a is float32, expected bfloat16"
        ),
        "a not square": (
            lambda i: {"a": i["a"][..., :1]}, ShapeError, r"a has shape \[2, 6, 3, 4, 1\], expected \[B=2, T=6, H"
        ),
        "a without blocks": (
            lambda i: {"a": i["a"][:, :, 0]}, ShapeError, r"a has shape \[2, 6, 4, 4\], expected \[B=2, T=6"
        ),
    },
    "complex_scan": SCAN | {
        "pairs side by side": (
            lambda i: {"x": i["x"].flatten(2)}, ShapeError, r"x has shape \[2, 6, 6\], expected \[B, T, D, 2\]"
        ),
        "a of real numbers": (
            lambda i: {"a": i["a"][..., :1]}, ShapeError, r"a has shape .*expected \[B=2, T=6, D=3, 2\]"
        ),
        "h0 of another width": (
            lambda i: {"h0": i["h0"][:, 1:]}, ShapeError, r"h0 has shape \[2, 2, 2\], expected \[N=2, D=3, 2\]"
        ),
    },
    "rg_lru": GATED | {
        "an odd width": (lambda i: {"x": torch.randn(2, 6, 9)}, ShapeError, "x has shape|a_param has shape"),
    },
    "rg_lru_gated": {
        "gates of another width": (
            lambda i: {"input_gate": i["input_gate"][..., :4]}, ShapeError,
            r"input_gate has shape \[2, 6, 4\], expected \[B=2, T=6, D=8\]",
        ),
        "one gate of float64": (
            lambda i: {"recurrence_gate": i["recurrence_gate"].double()}, DtypeError,
            "recurrence_gate is float64, expected float32",
        ),
        "a state of another batch": (
            lambda i: {"h0": torch.ones(3, 8)}, ShapeError, r"h0 has shape \[3, 8\], expected \[N=2"
        ),
        "no decay": (lambda i: {"c": 0.0}, ArgumentError, "c is 0.0, expected a finite number above 0"),
        "a decay of NaN": (lambda i: {"c": float("nan")}, ArgumentError, "c is nan, expected a finite number above 0"),
    },
    "temporal_conv1d": {
        "no taps": (
            lambda i: {"weight": i["weight"][:0], "state": None}, ShapeError,
            r"weight has shape \[0, 8\], expected \[K, D\] with",
        ),
        "weight of torch's conv1d": (
            lambda i: {"weight": torch.randn(8, 1, 4)}, ShapeError,
            r"weight has shape \[8, 1, 4\], expected \[K, D=8\]",
        ),
        "bias of another width": (
            lambda i: {"bias": i["bias"][1:]}, ShapeError, r"bias has shape \[7\], expected \[D=8\]"
        ),
        "state of K rows": (
            lambda i: {"state": torch.randn(2, 4, 8)}, ShapeError,
            r"state has shape \[2, 4, 8\], expected \[N=2, K-1=3, D=8\]",
        ),
        "state of another batch": (lambda i: {"state": i["state"][:1]}, ShapeError, r"state has shape \[1, 3, 8\]"),
        "positions of one row": (
            lambda i: {"segment_pos": torch.arange(6)}, ShapeError,
            r"segment_pos has shape \[6\], expected \[B=2, T=6\]",
        ),
        "an activation of another kind": (
            lambda i: {"activation": "relu"}, ArgumentError, "activation is 'relu', expected None, 'silu' or 'gelu'"
        ),
        "an activation that is a module": (
            lambda i: {"activation": torch.nn.SiLU()}, ArgumentError, r"activation is SiLU\(\), expected None"
        ),
        "residual of one row": (
            lambda i: {"residual": i["x"][:1]}, ShapeError,
            r"residual has shape \[1, 6, 8\], expected \[B=2, T=6, D=8\]",
        ),
        "residual of another dtype": (
            lambda i: {"residual": i["x"].double()}, DtypeError, "residual is float64, expected float32"
        ),
        "activations in a list": (lambda i: {"activation": ["silu"]}, ArgumentError, r"activation is \['silu'\]"),
    },
    "recurrent_block": GATED | {
        "branches of two lengths": (lambda i: {"y": i["y"][:, 1:]}, ShapeError, r"y has shape \[2, 5, 8\], expected"),
        "taps of another width": (
            lambda i: {"conv_weight": torch.randn(4, 9)}, ShapeError, r"conv_weight has shape \[4, 9\]"
        ),
        "no taps": (
            lambda i: {"conv_weight": torch.randn(0, 8), "conv_state": None}, ShapeError,
            "conv_weight|weight has shape",
        ),
        "inputs kept of another batch": (
            lambda i: {"conv_state": torch.ones(3, 3, 8)}, ShapeError, "conv_state has shape"
        ),
    },
    "gated_gelu": {
        "a value of another width": (
            lambda i: {"value": i["value"][..., 1:]}, ShapeError,
            r"value has shape \[2, 6, 7\], expected \[B=2, T=6, D=8\]",
        ),
        "a value of another width, without steps": (
            lambda i: {"gate": i["gate"][0], "value": i["value"][0, :, 1:]}, ShapeError,
            r"value has shape \[6, 7\], expected gate's \[6, 8\]",
        ),
        "one value for all rows": (
            lambda i: {"value": i["value"][0, 0]}, ShapeError, r"value has shape \[8\], expected \[B=2, T=6, D=8\]"
        ),
    },
    "geglu": {
        "an odd width": (
            lambda i: {"x": i["x"][..., :1, 1:]}, ShapeError, r"x has shape \[2, 6, 7\], expected .* 2 M\]"
        ),
        "a number": (lambda i: {"x": torch.ones(())}, ShapeError, r"x has shape \[\], expected .* 2 M\]"),
    },
    "local_attention": ATTENTION | {
        "right below zero": (lambda i: {"right": -1}, ArgumentError, "right is -1, expected 0 or more keys after"),
        "heads that do not divide": (lambda i: {"q": i["q"][:, :, :3]}, ShapeError, "q has 3 heads and k has 2"),
        "v of other heads": (
            lambda i: {"v": i["q"]}, ShapeError, r"v has shape \[2, 6, 4, 8\], expected \[B=2, S=6, Hkv=2"
        ),
        "k of another width": (lambda i: {"k": i["k"][..., :4]}, ShapeError, "k has shape"),
        "no keys": (lambda i: {"k": i["k"][:, :0], "v": i["v"][:, :0]}, ShapeError, "k has no keys for the 6 queries"),
        "as many keys as values": (
            lambda i: {"q": i["q"][:, :4], "v": i["v"][:, :5]}, ShapeError, r"v has shape .* expected \[B=2, S=6"
        ),
        "positions of the keys": (
            lambda i: {"q": i["q"][:, :4], "segment_pos": offsets(0).long().expand(2, 6)}, ShapeError, r"\[B=2, T=4\]"
        ),
        "packed, with carried keys": (
            lambda i: {"q": i["q"][:1, :4], "k": i["k"][:1], "v": i["v"][:1], "cu_seqlens": offsets(0, 4)}, ShapeError,
            "k has 6 keys for the 4 queries of q: with cu_seqlens, .* or cu_seqlens_k with the offsets of the keys",
        ),
        "offsets of keys alone": (
            lambda i: packed_apart(i) | {"cu_seqlens": None}, ArgumentError, "cu_seqlens_k is given without cu_seqlens"
        ),
        "keys of another number of sequences": (
            lambda i: packed_apart(i, 0, 2, 5), ShapeError, r"cu_seqlens_k has shape \[3\], expected \[N\+1=2\]"
        ),
        "offsets beyond the keys": (
            lambda i: packed_apart(i, 0, 7), ArgumentError, "cu_seqlens_k must run from 0 to S=6 at most, .* 0 to 7"
        ),
        "offsets of keys that decrease": (
            lambda i: packed_apart(i, 0, 5, 3) | {"cu_seqlens": offsets(0, 2, 4)}, ArgumentError,
            "cu_seqlens_k must not decrease",
        ),
        "keys in a batch": (
            lambda i: packed_apart(i) | {"k": i["k"]}, ShapeError, r"k has shape \[2, 6, 2, 8\], expected \[B=1"
        ),
        "no window": (lambda i: {"window": 0}, ArgumentError, "window is 0, expected at least 1"),
    },
    "rms_norm": {
        "residual of one row": (
            lambda i: {"residual": i["x"][:1]}, ShapeError,
            r"residual has shape \[1, 6, 8\], expected \[B=2, T=6, D=8\]",
        ),
        "weight of another width": (
            lambda i: {"weight": i["weight"][1:]}, ShapeError, r"weight has shape \[7\], expected \[D=8\]"
        ),
        "no channels": (
            lambda i: {"x": i["x"][..., :0], "weight": i["weight"][:0], "residual": None}, ShapeError,
            r"x has shape \[2, 6, 0\], expected \[B, T, D\] with D >= 1 channels",
        ),
        "a number": (
            lambda i: {"x": i["x"][0, 0, 0], "residual": None}, ShapeError, r"x has shape \[\], expected \[B, T, D\]"
        ),
        "eps below zero": (lambda i: {"eps": -1e-6}, ArgumentError, "eps is -1e-06, expected a finite number from 0"),
        "eps of NaN": (lambda i: {"eps": float("nan")}, ArgumentError, "eps is nan, expected a finite number from 0"),
        "an endless offset": (
            lambda i: {"weight_offset": float("inf")}, ArgumentError, "weight_offset is inf, expected a finite number"
        ),
    },
    "rg_lru_step": TOKEN | HELD,
    "linear_scan_step": {what: bad for what, bad in TOKEN.items() if "positions" not in what} | HELD | {
        "a of another width": (lambda i: {"a": i["a"][:, 1:]}, ShapeError, "a has shape"),
        "resets of every channel": (
            lambda i: {"reset": i["x"] > 0}, ShapeError, r"reset has shape \[3, 8\], expected \[B=3\]"
        ),
    },
    "temporal_conv1d_step": TOKEN | {
        "an activation of another kind": (
            lambda i: {"activation": "relu"}, ArgumentError, "activation is 'relu', expected None, 'silu' or 'gelu'"
        ),
        "a state of another width": (lambda i: {"state": i["state"][..., 1:]}, ShapeError, "state has shape"),
        "a state of K rows": (
            lambda i: {"state": torch.ones(5, 4, 8)}, ShapeError, r"state has shape \[5, 4, 8\], expected \[P, K-1=3"
        ),
    },
    "recurrent_block_step": TOKEN | HELD | {
        "states of two pools": (lambda i: {"h": i["h"][:4]}, ShapeError, "h has"),
    },
    "linear_scan_extend": EXTEND | {
        "states of another width": (lambda i: {"states": i["states"][..., 1:]}, ShapeError, "states has shape"),
        "a of fewer steps": (
            lambda i: {"a": i["a"][:, 1:]}, ShapeError, r"_extend: a has shape \[3, 5, 8\], expected \[3, 6, D\]"
        ),
    },
    "temporal_conv1d_extend": EXTEND | {
        "states of another width": (lambda i: {"states": i["states"][..., 1:]}, ShapeError, "states has shape"),
        "states of K rows": (
            lambda i: {"states": torch.ones(7, 4, 8)}, ShapeError, r"states has shape \[7, 4, 8\], expected \[P, K-1=3"
        ),
        "an activation of another kind": (lambda i: {"activation": "relu"}, ArgumentError, "activation is 'relu'"),
    },
    "rg_lru_extend": EXTEND | {
        "states of another width": (lambda i: {"states": i["states"][..., 1:]}, ShapeError, "states has shape"),
        "blocks that do not fill x": (gates_of_one_block, ShapeError, "make 4 channels; x has 8"),
        "rows in one place": (
            lambda i: {"states": i["states"][:1].expand(7, -1)}, ArgumentError, "states has all of its rows in one"
        ),
    },
    "recurrent_block_extend": EXTEND | {
        "inputs of K rows": (lambda i: {"conv_states": torch.ones(7, 4, 8)}, ShapeError, "conv_states has shape"),
        "states of two pools": (lambda i: {"states": i["states"][:5]}, ShapeError, "states has"),
        "no taps": (lambda i: {"conv_weight": torch.ones(0, 8)}, ShapeError, "conv_states has|weight has"),
    },
    "local_attention_step": STEP | ATTENTION | {
        "heads that do not divide": (lambda i: {"q": i["q"][:, :3]}, ShapeError, "q has 3 heads and k_cache"),
        "k of other heads": (
            lambda i: {"k": i["q"]}, ShapeError, r"v has shape \[3, 2, 8\], expected \[B=3, Hkv=4"
        ),
        "rings of two sizes": (lambda i: {"k_cache": i["k_cache"][:1]}, ShapeError, "v_cache has shape"),
        "rings of two lengths": (lambda i: {"v_cache": i["v_cache"][:, :4]}, ShapeError, "v_cache has shape"),
        "a ring without slots": (
            lambda i: {"k_cache": i["k_cache"][:, :0], "v_cache": i["v_cache"][:, :0]}, ShapeError,
            "k_cache has 0 slots",
        ),
        "a window beyond the ring": (
            lambda i: {"window": 6}, ShapeError, r"k_cache has 5 slots, expected window \+ tokens - 1 = 6 or more"
        ),
    },
    "local_attention_extend": STEP | ATTENTION | {
        "heads that do not divide": (lambda i: {"q": i["q"][:, :, :3]}, ShapeError, "q has 3 heads and k_cache"),
        "k of other heads": (
            lambda i: {"k": i["q"]}, ShapeError, r"v has shape \[3, 6, 2, 8\], expected \[B=3, T=6, Hkv=4"
        ),
        "k of fewer tokens": (lambda i: {"k": i["k"][:, 1:]}, ShapeError, r"k has shape \[3, 5, 2, 8\]"),
        "rings of two sizes": (lambda i: {"k_cache": i["k_cache"][:1]}, ShapeError, "v_cache has shape"),
        "a ring without room": (
            lambda i: {"k_cache": i["k_cache"][:, 1:], "v_cache": i["v_cache"][:, 1:]}, ShapeError,
            r"k_cache has 9 slots, expected window \+ tokens - 1 = 10 or more: in fewer, new keys",
        ),
        "no window": (lambda i: {"window": 0}, ArgumentError, "window is 0, expected at least 1"),
        "more real tokens than tokens": (
            lambda i: {"lengths": torch.tensor([0, 7, 1])}, ArgumentError, "lengths has 7, expected 0 to T=6"
        ),
        "fewer tokens than none": (
            lambda i: {"lengths": torch.tensor([0, -1, 1])}, ArgumentError, "lengths has -1, expected 0 to T=6"
        ),
        "positions of other tokens": (
            lambda i: {"positions": i["positions"][:, None].expand(-1, 4)}, ShapeError,
            r"positions has shape \[3, 4\], expected \[B\] or \[B, T=6\]",
        ),
        "a document within a row": (
            lambda i: {"positions": torch.tensor([[4, 5, 6, 0, 1, 2]] * 3), "lengths": None}, ArgumentError,
            "positions do not rise by one .* needs a call of its own",
        ),
    },
}  # fmt: skip
"""By op: what is wrong, how it changes a good call, the error and its words."""


@pytest.mark.parametrize(("name", "what"), [(name, what) for name in BAD for what in BAD[name]])
def test_bad_argument_is_named(name, what):
    changes, error, message = BAD[name][what]
    inputs = row(name)
    public(name, copies(inputs))  # from here on the signature is known
    refuses(name, inputs, changes(inputs), error, message)


OFFSETS = {
    (1, 6): "from 0 to T=6 at most",
    (0, 7): "from 0 to T=6 at most",
    (0, 4, 2, 6): "must not decrease",
    (0,): r"N\+1 >= 2",
}


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if "cu_seqlens" in catalog.op(name).inputs])
def test_bad_offsets_are_named_on_every_call(name):
    op = catalog.op(name)
    inputs = row(name) | dict.fromkeys((*STATES.values(), "segment_pos"))
    refuses(name, inputs, {"cu_seqlens": offsets(0, 6)}, ShapeError, "batch 1, x has batch 2")
    given = {k: v for k, v in inputs.items() if k in op.call._fields}
    inputs = pieces.piece(op, given, {"B": slice(1), "Ba": slice(1)})
    for wrong, message in OFFSETS.items():
        public(name, inputs | {"cu_seqlens": torch.linspace(0, 6, max(2, len(wrong))).int()})
        refuses(name, inputs, {"cu_seqlens": offsets(*wrong)}, ArgumentError, message)


@pytest.mark.parametrize("name", STEPS)
def test_what_requires_a_gradient_is_refused(name):
    inputs = row(name)
    for argument in floats(leaves(inputs)):
        leaf = {argument: inputs[argument].clone().requires_grad_()}
        sequence = name.removesuffix("_step").removesuffix("_extend")
        words = f"{argument} requires a gradient.*torch.no_grad.*use {sequence}$"
        refuses(name, inputs, leaf, ArgumentError, words)
        with torch.no_grad():
            assert not public(name, copies(inputs) | leaf)[0].requires_grad
