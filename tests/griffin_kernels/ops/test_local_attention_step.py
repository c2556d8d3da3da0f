"""The public local_attention_step: decoding with a ring against local_attention over the whole sequence."""

from __future__ import annotations

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, pieces, verify
from griffin_kernels.ops.local_attention_step.cost import make_case

OP = catalog.op("local_attention_step")
CPU = torch.device("cpu")
WINDOW = 7
STEPS = 3 * WINDOW + 5

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def sequence(dtype=torch.float64, batch=3, heads=4, shared=2, d=8, steps=STEPS):
    """q [B,T,Hq,d] (doubled, so that some keys stand out), k, v [B,T,Hkv,d]."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, steps, heads, d), (batch, steps, shared, d), (batch, steps, shared, d))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return 2 * q, k, v


def rings(k, window=WINDOW, strided=False):
    """Two rings [B,W,Hkv,d] for keys like k, with what an earlier document may have left in them."""
    batch, _, shared, d = k.shape
    if strided:
        return [torch.full((batch, shared, window, 2 * d), 50.0, dtype=k.dtype).transpose(1, 2)[..., ::2] for _ in "kv"]
    return [torch.full((batch, window, shared, d), 50.0, dtype=k.dtype) for _ in "kv"]


def decode(q, k, v, positions, strided=False, **options):
    """Every token of [B,T,..] in turn, row b at ``positions[b, t]``."""
    k_ring, v_ring = rings(k, strided=strided)
    outs = []
    for t in range(q.shape[1]):
        outs.append(
            griffin_kernels.local_attention_step(q[:, t], k[:, t], v[:, t], k_ring, v_ring, positions[:, t], **options)
        )
    return torch.stack(outs, dim=1)


def documents(*starts, batch=3):
    """int64 [B,T]: row b has documents beginning at 0 and at each of ``starts`` + b."""
    rows = []
    for row in range(batch):
        begins = [0, *(start + row for start in starts)]
        rows.append([t - max(begin for begin in begins if begin <= t) for t in range(STEPS)])
    return torch.tensor(rows)


VARIANTS = pytest.mark.parametrize(
    "variant", [v.key for v in catalog.variants(OP.name).values() if v.backend != "triton"]
)
"""Those that a CPU runs; test_triton_attention.py has the others."""


@VARIANTS
@pytest.mark.parametrize("starts", [(), (3,), (11, 20)], ids=str)
@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (4, 2), (3, 3)])
def test_decoding_equals_the_whole_sequence(variant, starts, heads, shared):
    dtype = torch.float64 if "eager" in variant else torch.float32
    q, k, v = sequence(dtype, heads=heads, shared=shared)
    positions = documents(*starts)
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW, segment_pos=positions)
    with griffin_kernels.use(variant=variant):
        torch.testing.assert_close(decode(q, k, v, positions), want)
        torch.testing.assert_close(decode(q, k, v, positions.int(), strided=True), want)


def test_softcap_and_scale():
    q, k, v = sequence()
    options = {"softcap": 3.0, "scale": 0.4}
    positions = documents(9)
    want = griffin_kernels.local_attention(q, k, v, window=WINDOW, segment_pos=positions, **options)
    torch.testing.assert_close(decode(q, k, v, positions, **options), want)
    assert (decode(q, k, v, positions, scale=0.4) - want).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes(dtype):
    q, k, v = sequence(dtype)
    positions = documents(9)
    exact = (t.double() for t in (q, k, v))
    want = griffin_kernels.local_attention(*exact, window=WINDOW, segment_pos=positions)
    got = decode(q, k, v, positions)
    assert got.dtype == dtype
    tolerance = OP.tolerance(make_case(3, WINDOW, 4, 2, 8, str(dtype).removeprefix("torch.")))
    error = verify.error_of("out", got, want)
    assert error.rel_norm <= tolerance.rel_norm, error
    assert error.worst <= tolerance.worst, error


def test_rows_at_different_positions_and_what_is_written():
    q, k, v = sequence(batch=4, steps=1)
    positions = torch.tensor([0, 3, WINDOW - 1, 2 * WINDOW + 2])
    k_ring, v_ring = (ring.normal_(generator=torch.Generator().manual_seed(5)) for ring in rings(k))
    before = k_ring.clone(), v_ring.clone()
    out = griffin_kernels.local_attention_step(q[:, 0], k[:, 0], v[:, 0], k_ring, v_ring, positions)
    for ring, old, new in ((k_ring, before[0], k), (v_ring, before[1], v)):
        for row, slot in enumerate((0, 3, WINDOW - 1, 2)):
            old[row, slot] = new[row, 0]
        assert torch.equal(ring, old)
    torch.testing.assert_close(out[0], v[0, 0].repeat_interleave(2, dim=0))
    for row, seen in enumerate((1, 4, WINDOW, WINDOW)):
        # the order of keys does not matter to one query
        keys, values = k_ring[row : row + 1, :seen], v_ring[row : row + 1, :seen]
        alone = griffin_kernels.local_attention(q[row : row + 1], keys, values, window=WINDOW)
        torch.testing.assert_close(out[row], alone[0, 0])


@VARIANTS
@pytest.mark.parametrize("slots", [[3, -1, 0], [-1, -1, 5], [-1, -1, -1], [4, 0, 1]], ids=str)
def test_slots_are_rows_of_a_pool_and_padding_touches_none(variant, slots):
    q, k, v = sequence(torch.float32, steps=1)
    pools = [torch.randn(6, WINDOW, 2, 8, generator=torch.Generator().manual_seed(7)) for _ in "kv"]
    before = [pool.clone() for pool in pools]
    positions = torch.tensor([2 * WINDOW + 3, 1, WINDOW - 1])
    args = (q[:, 0], k[:, 0], v[:, 0])
    with griffin_kernels.use(variant=variant):
        out = griffin_kernels.local_attention_step(*args, *pools, positions, slots=torch.tensor(slots))
        for row, ring in enumerate(slots):
            if ring < 0:
                assert not out[row].any()
                continue
            alone = [old[ring : ring + 1].clone() for old in before]
            one = (part[row : row + 1] for part in args)
            want = griffin_kernels.local_attention_step(*one, *alone, positions[row : row + 1])
            torch.testing.assert_close(out[row : row + 1], want)
            for pool, old, new in zip(pools, before, alone, strict=True):
                assert torch.equal(pool[ring], new[0])
                old[ring] = new[0]
    for pool, old in zip(pools, before, strict=True):
        assert torch.equal(pool, old)


@VARIANTS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_ring_large_enough_for_several_threads(variant, dtype):
    case = make_case(3, 2048, 5, 1, 128, dtype, data=("early",))
    kernel = catalog.variant(variant)
    verdict = verify.check(OP, kernel, case, kernel.config(), OP.make_inputs(case, CPU, 3))
    assert verdict.ok, verdict.problem


@VARIANTS
@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
def test_extreme_scores(variant, scale):
    # one key takes all the weight, or every key the same: exact but for the mean of 40 values
    inputs = OP.make_inputs(make_case(2, 40, 4, 1, 16), CPU, 0) | {"scale": scale}
    want = pieces.reference(OP, inputs)[0]
    out = catalog.variant(variant).on(inputs, catalog.variant(variant).config())[0]
    torch.testing.assert_close(out, want.float())
