"""Rotary position embedding: the helper against complex numbers, and the calls that decode against heads turned before.

The bound of the helper: two products and a sum of float32, each rounded once, so 2 eps of the pair's length.
"""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import errors
from griffin_kernels.functional._rotary import rotate

WINDOW, HEADS, SHARED, D = 5, 4, 2, 12
STEPS = 13

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def tables(positions=STEPS, turning=8, dtype=torch.float32):
    """cos and sin [positions, d_rot / 2]."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * 100.0 ** -torch.linspace(0, 1, turning // 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def by_complex_numbers(x, cos, sin, interleaved):
    """x [B,T,H,d] in float64, token t turned by row t of the tables, channel by channel."""
    n = cos.shape[1]
    out = x.double().clone()
    for i in range(n):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + n)
        pair = torch.complex(x[..., a].double(), x[..., b].double())
        turn = torch.complex(cos[: x.shape[1], i].double(), sin[: x.shape[1], i].double())[:, None]
        out[..., a], out[..., b] = (pair * turn).real, (pair * turn).imag
    return out


def sequences(dtype=torch.float32, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, STEPS, heads, D, generator=generator).to(dtype) for heads in (HEADS, SHARED, SHARED)]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turning", [2, 8, D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_heads_are_turned(interleaved, turning, dtype):
    x = sequences(dtype)[0]
    cos, sin = tables(turning=turning, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    got = rotate(x, cos[:, None], sin[:, None], interleaved)
    want = by_complex_numbers(x, cos, sin, interleaved)
    eps = torch.finfo(dtype).eps
    assert got.dtype == dtype and torch.equal(got[..., turning:], x[..., turning:])
    assert ((got.double() - want).abs() <= 2 * eps * x.abs().amax().double()).all()
    assert (want - x.double())[:, 1:, :, :turning].abs().amin((0, 1, 2)).max() > 1e-4


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_decoding_equals_attention_to_heads_turned_before(interleaved, window):
    """window: in a ring with room for more, whose step is an extend."""
    q, k, v = sequences()
    cos, sin = tables()
    q_turned, k_turned = (rotate(x, cos[:, None], sin[:, None], interleaved) for x in (q, k))
    want = griffin_kernels.local_attention(q_turned, k_turned, v, window=WINDOW)
    rings = [torch.full((3, WINDOW + (3 if window else 0), SHARED, D), torch.nan) for _ in "kv"]
    for t in range(STEPS):
        out = griffin_kernels.local_attention_step(
            q[:, t], k[:, t], v[:, t], *rings, torch.full((3,), t, dtype=torch.int32), window=window,
            rotary=(cos, sin), rotary_interleaved=interleaved,
        )  # fmt: skip
        torch.testing.assert_close(out, want[:, t])
        assert torch.equal(rings[0][:, t % rings[0].shape[1]], k_turned[:, t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_pad_may_have_any_position(dtype):
    """Bitwise what the op gives for heads turned before; tables that end at the last real token."""
    q, k, v = (x[:, :3] for x in sequences(dtype, 5))
    positions, slots = torch.tensor([-7, 6, 0, 2**40, -1]), torch.tensor([-1, 2, 0, 5, 3])
    lengths = torch.tensor([3, 2, 3, 1, 0])
    cos, sin = tables(8, dtype=dtype)
    places = torch.tensor([[0] * 3, [6, 7, 7], [0, 1, 2], [0] * 3, [0] * 3])
    turned = [rotate(x, cos[places][:, :, None], sin[places][:, :, None]) for x in (q, k)]
    held = torch.tensor([0, 6, 0, 0, 0])
    options = {"window": WINDOW, "slots": slots, "pad_slot": 5}

    def run(function, q, k, v, positions, **more):
        rings = [torch.full((6, WINDOW + 2, SHARED, D), 0.5, dtype=dtype) for _ in "kv"]
        return function(q, k, v, *rings, positions, **options, **more), *rings

    extend, step = griffin_kernels.local_attention_extend, griffin_kernels.local_attention_step
    got = run(extend, q, k, v, positions, lengths=lengths, rotary=(cos, sin))
    want = run(extend, *turned, v, held, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and want[0].isfinite().all()
    slots[4] = 5
    got = run(step, q[:, 0], k[:, 0], v[:, 0], positions, rotary=(cos, sin))
    want = run(step, *(x[:, 0] for x in (*turned, v)), held)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and want[0].isfinite().all()


def test_under_compile():
    q, k, v = (x[:, 3] for x in sequences())
    step = griffin_kernels.local_attention_step
    outs = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        rings = [torch.zeros(3, WINDOW, SHARED, D) for _ in "kv"]
        with torch.no_grad():
            outs.append((function(q, k, v, *rings, torch.tensor([3, 0, 12]), rotary=tables()), *rings))
    for one, other in zip(*outs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("rotary", "error", "words"),
    [
        (torch.ones(2, 9, 4), errors.ArgumentError, "rotary is no pair of tensors"),
        ((torch.ones(9, 4), None), errors.ArgumentError, "rotary is no pair of tensors"),
        ((torch.ones(9, 7), torch.ones(9, 7)), errors.ShapeError, "rotary's cos .* with d_rot of d=12 at most"),
        ((torch.ones(9, 4), torch.ones(9, 3)), errors.ShapeError, r"rotary's sin has shape \[9, 3\]"),
        ((torch.ones(0, 4), torch.ones(0, 4)), errors.ShapeError, r"rotary's cos has shape \[0, 4\]"),
        (tables(dtype=torch.bfloat16), errors.DtypeError, "rotary's cos is bfloat16, expected float32"),
        ([t.to("meta") for t in tables()], errors.DeviceMismatchError, "rotary's cos is on meta"),
        (tables(6), errors.ArgumentError, "positions has 6, rotary only 0 to 5"),
    ],
)
def test_tables_that_do_not_fit_are_named(rotary, error, words):
    q, k, v = (x[:, :3] for x in sequences())
    for name, at in (("local_attention_extend", slice(None)), ("local_attention_step", 0)):
        rings = [torch.zeros(3, WINDOW + 2, SHARED, D) for _ in "kv"]
        positions = torch.tensor([0, 4, 1]) + (2 if at == 0 else 0)  # the last token is at 6
        given = (*(x[:, at] for x in (q, k, v)), *rings, positions)
        with pytest.raises(error, match=f"{name}: {words}"):
            getattr(griffin_kernels, name)(*given, window=WINDOW, rotary=rotary)
        assert not rings[0].any()


def test_wrong_tokens_are_named_by_the_op():
    q, k, v = (x[:, 0] for x in sequences())
    rings = [torch.zeros(3, WINDOW, SHARED, D) for _ in "kv"]
    at = torch.zeros(3, dtype=torch.int64)
    for wrong, words in (
        ((q, k[:2], v, *rings, at), "k has shape"), ((q, None, v, *rings, at), "k is None"),
        ((q, k, v, *rings, None), "positions is None"), ((q, k, v, *rings, at[:2]), "positions has shape"),
    ):  # fmt: skip
        with pytest.raises(errors.GriffinKernelsError, match=words):
            griffin_kernels.local_attention_step(*wrong, rotary=tables())


def test_explain_says_that_it_is_not_fused():
    q, k, v = (x[:, 0] for x in sequences())
    names = ("q", "k", "v", "k_cache", "v_cache")
    given = dict(zip(names, (q, k, v, *torch.zeros(2, 3, WINDOW, SHARED, D)), strict=True))
    given["positions"] = torch.zeros(3, dtype=torch.int64)
    plain, told = (str(griffin_kernels.explain("local_attention_step", given | r)) for r in ({}, {"rotary": tables()}))
    assert "rotary is not fused" in told and "rotary" not in plain
