"""The Triton kernels of rg_lru where the shared cases do not go: lengths that meet tiles, fast gates, extremes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import triton
import triton.language as tl

from griffin_kernels import catalog, device, launch, pieces, verify
from griffin_kernels.ops.recurrent_block.cost import make_case as block_case
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import Gates, decay
from griffin_kernels.ops.rg_lru._triton_lru import gates_of as gates
from griffin_kernels.ops.rg_lru.cost import make_case
from tests.everywhere import INTERPRETER

WHERE = device.gpu(0) if torch.cuda.is_available() else INTERPRETER
H100 = device.Device("cuda", "NVIDIA H100", "sm_90", 132, 80 * 2**30, 50 * 2**20, warp_size=32)
OP = catalog.op("rg_lru")
TABLE = catalog.variants("rg_lru")
VARIANTS = [variant for variant in TABLE.values() if variant.launches is not None]
WITH_PRODUCTS_INSIDE = [variant for variant in VARIANTS if "gates" in variant.name]


def small_config(variant, **changes):
    """The smallest tiles and chunks."""
    smallest = {name: values[0] for name, values in variant.axes.items()}
    return dataclasses.replace(variant.config(), **smallest | changes)


def holds(variant, case, config, inputs=None):
    inputs = OP.make_inputs(case, WHERE.torch_device, 0) if inputs is None else inputs
    assert variant.reject(case, WHERE, config) is None
    verdict = verify.check(OP, variant, case, config, inputs)
    assert verdict.ok, verdict.problem
    return verdict


@pytest.mark.parametrize("flags", [("segmented",), ("packed",)], ids="+".join)
@pytest.mark.parametrize("time", [8, 32, 33, 64])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_lengths_that_meet_tiles_and_chunks(variant, time, flags):
    rows = 3 if "packed" in flags else 1
    case = make_case(1, time, 4, 1, "bfloat16", flags, rows=rows, data=("h0",))
    holds(variant, case, small_config(variant))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_launches_fill_the_given_outputs_and_can_be_run_again(variant):
    case = make_case(1, 70, 8, 2, "bfloat16", ("packed",), rows=4, data=("empty_sequence",))
    inputs = OP.make_inputs(case, WHERE.torch_device, 0)
    outputs = {}
    steps = variant.launches(catalog.op(variant.op).call(**inputs), outputs, small_config(variant))
    again = variant.launches(catalog.op(variant.op).call(**inputs), dict(outputs), small_config(variant))
    launch.run_all(steps)
    first = {name: value.clone() for name, value in outputs.items()}
    assert set(first) == set(OP.outputs)
    for some in (steps, again):
        for value in outputs.values():
            value.fill_(float("nan"))
        launch.run_all(some)
        for name, value in outputs.items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_fast_gates_keep_the_tolerance_of_bfloat16(variant):
    for data in (("h0",), ("near_one",)):
        case = make_case(2, 40, 24, 3, "bfloat16", data=data)
        holds(variant, case, small_config(variant, fast=True))


@pytest.mark.parametrize("variant", WITH_PRODUCTS_INSIDE, ids=lambda v: v.key)
def test_products_in_parts(variant):
    """80 channels are five parts of 16, and one slice of 64 outputs beside one of 16."""
    assert (lru.part(80), lru.padded(80)) == (16, 80)
    holds(variant, make_case(1, 20, 160, 2, "float16"), small_config(variant, block_n=64))


def test_parts_pad_least():
    assert [(n, lru.part(n), lru.padded(n)) for n in (8, 100, 131, 160, 250, 256)] == [
        (8, 16, 16),
        (100, 16, 112),
        (131, 32, 160),
        (160, 32, 160),
        (250, 64, 256),
        (256, 64, 256),
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_rows_further_apart_than_32_bits_reach(variant):
    """Three rows 2**30 elements apart: the last begins at 2**31. Only the touched pages take memory."""
    case = make_case(1, 3, 4, 1, "bfloat16", data=("h0",))
    inputs = OP.make_inputs(case, WHERE.torch_device, 0)
    memory = torch.empty(2**31 + 4, dtype=torch.bfloat16, device=WHERE.torch_device)
    inputs["x"] = memory.as_strided((1, 3, 4), (0, 2**30, 1)).copy_(inputs["x"])
    got = variant.on(inputs, variant.config())
    verdict = verify.compare(OP, case, got, pieces.reference(OP, inputs), OP.tolerance(case))
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_saturated_gates_and_gates_of_one_give_no_nan(variant):
    """Arguments of +-1e4 and a decay that rounds to none: the state stays, or follows the input."""
    inputs = OP.make_inputs(make_case(1, 18, 4, 1, "bfloat16", data=("h0",)), WHERE.torch_device, 0)
    bias = torch.tensor([[1e4, -1e4, 1e4, -1e4]], dtype=torch.bfloat16, device=WHERE.torch_device)
    inputs |= {"recurrence_gate_bias": bias, "input_gate_bias": bias.flip(1).contiguous()}
    inputs["a_param"] = torch.tensor([-200.0, 200.0, 200.0, -200.0], dtype=torch.bfloat16, device=WHERE.torch_device)
    for fast in (False, True):
        config = small_config(variant, fast=fast)
        holds(variant, make_case(1, 18, 4, 1, "bfloat16", data=("h0",)), config, inputs)


@triton.jit
def gates_kernel(z_i, z_r, a_param, out, FAST: tl.constexpr, SIZE: tl.constexpr):
    """i, r, a, v, m as rows of out [5, SIZE]."""
    at = tl.arange(0, SIZE)
    values = gates(tl.load(z_i + at), tl.load(z_r + at), Gates(0.0, 0.0, decay(tl.load(a_param + at))), FAST)
    for k in tl.static_range(5):
        tl.store(out + k * SIZE + at, values[k])


def gates_of(fast):
    """(computed, exact in float64), rows i, r, a, v, m; a from 1 - 1e-13 to far below 0.01, and equal to 1."""
    size = 2**14
    generator = torch.Generator().manual_seed(0)
    z_i, z_r = (6 * torch.randn(2, size, generator=generator)).clamp(-40, 40).to(WHERE.torch_device)
    a_param = (-30 + 32 * torch.rand(size, generator=generator)).to(WHERE.torch_device)
    a_param[0] = -1000.0
    out = torch.full((5, size), float("nan"), device=WHERE.torch_device)
    gates_kernel[(1,)](z_i, z_r, a_param, out, fast, size)
    i, r = z_i.double().sigmoid(), z_r.double().sigmoid()
    log_a = -8 * torch.logaddexp(a_param.double(), torch.zeros_like(a_param).double()) * r
    v = -torch.expm1(2 * log_a)
    return out.double(), torch.stack([i, r, log_a.exp(), v, v.sqrt()])


def test_exact_gates_do_not_cancel_near_one():
    got, want = gates_of(fast=False)
    for k in (0, 1, 3, 4):
        error = (got[k] - want[k]).abs() / want[k].clamp_min(1e-30)
        # exp2 magnifies its argument's rounding by |argument|, 58 for z = -40
        assert error.max() < 8e-6, k
        assert error.median() < 2e-7, k
    assert (got[2] - want[2]).abs().max() < 1e-6


def test_fast_gates_are_far_below_the_rounding_of_bfloat16_near_one():
    got, want = gates_of(fast=True)
    sigmoids = 3e-4 if WHERE.kind == "cuda" else 1e-6
    assert (got[:2] - want[:2]).abs().max() < sigmoids
    if WHERE.kind != "cuda":  # there r itself is off by what the hardware's tanh is
        assert ((got[3] - want[3]).abs() / want[3].clamp_min(1e-30)).max() < 2**-13
    assert not got.isnan().any()


def test_a_tanh_off_by_its_bound_stays_within_bfloat16_tolerance():
    """What the interpreter cannot run, a tanh with a relative error of 2^-11, put into the reference by hand."""
    case = make_case(2, 256, 32, 2, "bfloat16")
    inputs = pieces.in_dtype(torch.float64, OP.make_inputs(case, torch.device("cpu"), 0))
    want = pieces.reference(OP, inputs)
    generator = torch.Generator().manual_seed(1)

    def sigmoid(z):
        error = (2 * torch.rand(z.shape, generator=generator, dtype=z.dtype) - 1) * 2**-11
        return 0.5 * torch.tanh(0.5 * z) * (1 + error) + 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sigmoid", sigmoid)
        got = OP.reference(OP.call(**inputs))
    tolerance = OP.tolerance(case)
    for name, mine, theirs in zip(OP.outputs, got, want, strict=True):
        error = verify.error_of(name, mine, theirs)
        assert 0 < error.rel_norm < tolerance.rel_norm / 3, error
        assert error.worst < tolerance.worst / 3, error


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.key)
def test_refusals_say_why(variant):
    case = make_case(1, 64, 24, 3, "bfloat16")
    assert "GPU" in variant.reject(case, device.cpu(), variant.config())
    assert variant.reject(case, INTERPRETER, variant.config()) is None
    assert "float64" in variant.reject(make_case(1, 64, 24, 3, "float64"), H100, variant.config())
    fast = dataclasses.replace(variant.config(), fast=True)
    assert "2^-11" in variant.reject(make_case(1, 64, 24, 3, "float16"), H100, fast)
    assert variant.reject(case, H100, fast) is None


@pytest.mark.parametrize("variant", WITH_PRODUCTS_INSIDE, ids=lambda v: v.key)
def test_refusals_of_products_inside(variant):
    config = variant.config()
    assert "512 input channels" in variant.reject(make_case(1, 64, 1024, 2, "bfloat16"), H100, config)
    assert "TF32" in variant.reject(make_case(1, 64, 512, 2), H100, config)
    assert "of 16 rows" in variant.reject(make_case(1, 64, 24, 24, "bfloat16"), H100, config)
    assert "gate block" in variant.reject(make_case(1, 64, 96, 2, "bfloat16"), H100, small_config(variant, block_n=128))
    large = small_config(variant, block_n=128, block_t=64, num_stages=3)
    assert "bytes of shared memory" in variant.reject(make_case(1, 64, 512, 2, "bfloat16"), H100, large)
    small = dataclasses.replace(H100, arch="sm_89")
    assert variant.reject(make_case(1, 64, 512, 2, "bfloat16"), small, config) is None, "takes smaller tiles there"


def test_default_follows_the_size_of_the_problem():
    def default(*sizes):
        case = make_case(*sizes)
        accepted = [v for v in TABLE.values() if v.reject(case, H100, v.config()) is None]
        return max(accepted, key=lambda v: v.rank(case, H100)).name

    assert default(8, 2048, 2560, 10, "bfloat16") == "triton.fused_gates"
    assert default(1, 2048, 2560, 10, "bfloat16") == "triton.fused_gates_chunked"
    assert default(1, 1, 2560, 10, "bfloat16") == "triton.fused_gates"
    assert default(8, 2048, 2560, 10, "float32") == "triton.fused_scan"
    assert default(1, 8192, 2560, 10, "float32") == "triton.fused_scan_chunked"


def test_traffic_counts_the_second_reading():
    case = make_case(1, 2**20, 2560, 10, "bfloat16")
    stream = case["T"] * case["D"] * 2
    ideal = OP.cost(case).bytes_total
    for name, streams in (("scan", 8), ("scan_chunked", 11), ("gates_chunked", 3)):
        variant = TABLE[f"triton.fused_{name}"]
        extra = variant.traffic(case, variant.config()) - ideal
        assert (streams - 2) * stream * 0.99 < extra < (streams - 2) * stream * 1.05 + 0.2 * stream


BLOCK = catalog.op("recurrent_block")
BLOCK_VARIANTS = [v for v in catalog.variants("recurrent_block").values() if v.launches is not None]


@pytest.mark.parametrize("variant", BLOCK_VARIANTS, ids=lambda v: v.key)
def test_block_without_h_gives_the_same_and_no_h(variant):
    case = next(c for c in BLOCK.cases if "segmented" in c.flags and c.dtype == "bfloat16" and "with_h" in c.data)
    inputs = BLOCK.make_inputs(case, WHERE.torch_device, 0)
    config = small_config(variant)
    *wanted, h = variant.on(inputs, config)
    *got, nothing = variant.on(inputs | {"with_h": False}, config)
    assert h is not None
    assert nothing is None
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("variant", BLOCK_VARIANTS, ids=lambda v: v.key)
def test_fast_block_keeps_the_tolerance_of_bfloat16(variant):
    case = next(c for c in BLOCK.cases if "packed" in c.flags and c.dtype == "bfloat16")
    config = small_config(variant, fast=True)
    assert variant.reject(case, WHERE, config) is None
    verdict = verify.check(BLOCK, variant, case, config, BLOCK.make_inputs(case, WHERE.torch_device, 0))
    assert verdict.ok, verdict.problem


@pytest.mark.parametrize("variant", BLOCK_VARIANTS, ids=lambda v: v.key)
def test_block_refuses_more_taps_than_are_unrolled(variant):
    case = block_case(1, 40, 24, 3, 17, "bfloat16")
    assert "17 taps" in variant.reject(case, WHERE, variant.config())
    assert "GPU" in variant.reject(block_case(1, 40, 24, 3, 4, "bfloat16"), device.cpu(), variant.config())
