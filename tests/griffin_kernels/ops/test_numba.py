"""The native CPU kernels beyond the table of cases: conversions, non-finite values, chunk edges, threads, processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from griffin_kernels import catalog, device, memory, poison, verify
from griffin_kernels.contract import Case, Variant
from griffin_kernels.ops import _native_call, _threads
from griffin_kernels.ops.linear_scan.cost import make_case
from tests.everywhere import INTERPRETER

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
ALGORITHMS = pytest.mark.parametrize("algorithm", ["sequential", "chunked"])
OPS = pytest.mark.parametrize("op_name", ["linear_scan", "linear_scan_bwd"])


def scan(x: Tensor, a: Tensor, h0: Tensor | None = None, *, algorithm: str = "sequential", **config: int):
    variant = catalog.variant(f"linear_scan/numba.{algorithm}")
    return variant.run(catalog.op("linear_scan").call(x, a, h0), variant.config(**config))[:2]


def verdict(variant: Variant, case: Case, **config: int) -> verify.Verdict:
    op = catalog.op(variant.op)
    inputs = op.make_inputs(case, torch.device("cpu"), 0)
    return verify.check(op, variant, case, variant.config(**config), inputs)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@HALVES
def test_every_half_value_survives_a_round_trip(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).reshape(1, 1, -1)
    h, h_last = scan(x, torch.zeros_like(x))
    assert torch.equal(h.isnan(), x.isnan())
    assert torch.equal(h.nan_to_num(), x.nan_to_num())
    assert torch.equal(torch.signbit(h[~x.isnan() & (x != 0)]), torch.signbit(x[~x.isnan() & (x != 0)]))
    assert torch.equal(h_last[None].nan_to_num(), x.float().nan_to_num())


def awkward_float32() -> Tensor:
    """Random bit patterns, every tie between neighbours of either half format, subnormals, infinities and NaNs."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**31), 2**31, (2**18,), generator=generator).to(torch.int32).view(torch.float32)
    bfloat16_ties = ((torch.arange(2**16) << 16) + 0x8000).to(torch.int32).view(torch.float32)
    halves = torch.arange(0, 0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    float16_ties = (halves[1:] + halves[:-1]) / 2
    special = torch.tensor([np.inf, -np.inf, np.nan, 0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-45, 3.4e38])
    hidden_nan = torch.tensor([0x7F800001, 0x7F80FFFF, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    return torch.cat([random, bfloat16_ties, float16_ties, -float16_ties, special, hidden_nan])


@HALVES
def test_rounding_of_float32_is_torchs(dtype):
    state = awkward_float32()[None]  # [1, D]
    one = torch.ones((1, 1, state.shape[1]), dtype=dtype)
    h, h_last = scan(-0.0 * one, one, state)
    want = state.to(dtype)
    assert torch.equal(h[0].isnan(), state.isnan())
    assert torch.equal(h[0].nan_to_num(), want.nan_to_num())
    assert torch.equal(h_last.nan_to_num(), state.nan_to_num())


@ALGORITHMS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gate_stays_in_its_channel_and_flows_forward(algorithm, bad):
    x, a = torch.ones(2, 700, 70), torch.full((2, 700, 70), 0.9)
    a[1, 300, 33] = bad
    h, h_last = scan(x, a, algorithm=algorithm)
    finite = torch.isfinite(h)
    assert not finite[1, 300:, 33].any()
    finite[1, 300:, 33] = True
    assert finite.all()
    assert not torch.isfinite(h_last[1, 33])


@OPS
@pytest.mark.parametrize("time", [63, 64, 65, 128, 129, 1000])
@pytest.mark.parametrize("flags", [(), ("reverse",), ("reset",), ("packed",), ("reset", "packed", "reverse")])
def test_chunk_edges(op_name, time, flags):
    case = make_case(1 if "packed" in flags else 2, time, 21, "float32", flags, rows=5 if "packed" in flags else None)
    case = make_case(case["B"], time, 21, flags=flags, rows=case["N"], op=op_name, data=("h0", "empty_sequence"))
    found = verdict(catalog.variant(f"{op_name}/numba.chunked"), case, chunk=64)
    assert found.ok, found.problem


@OPS
@ALGORITHMS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("ahead", [False, True])
def test_outputs_written_past_the_caches(op_name, algorithm, dtype, ahead, monkeypatch):
    monkeypatch.setattr(_native_call, "STREAMED", 0)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    # rows that begin on a cache line, and rows and blocks that do not
    for width, block in ((320, 128), (331, 128), (320, 100)):
        case = make_case(2, 130, width, dtype, ("reset",), op=op_name, data=("h0",))
        found = verdict(catalog.variant(f"{op_name}/numba.{algorithm}"), case, block_d=block, ahead=ahead)
        assert found.ok, found.problem


def test_a_large_scan():
    found = verdict(catalog.variant("linear_scan/numba.sequential"), make_case(1, 2048, 2560))
    assert found.ok, found.problem


@ALGORITHMS
def test_every_thread_count_gives_the_same_bits(algorithm, restore_threads):
    generator = torch.Generator().manual_seed(0)
    x, a = torch.randn(3, 1000, 300, generator=generator), torch.rand(3, 1000, 300, generator=generator)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(scan(x, a, algorithm=algorithm, block_d=128))
    for h, h_last in results[1:]:
        assert torch.equal(h, results[0][0])
        assert torch.equal(h_last, results[0][1])


def test_python_threads_where_torch_has_no_openmp(monkeypatch):
    x, a = torch.randn(2, 900, 300), torch.rand(2, 900, 300)
    want = scan(x, a, block_d=128)
    monkeypatch.setattr(_threads, "_team", lambda: _threads._python_threads)
    got = scan(x, a, block_d=128)
    assert torch.equal(got[0], want[0])


def test_calls_from_several_python_threads_at_once():
    inputs = [(torch.randn(1, 800, 512), torch.rand(1, 800, 512)) for _ in range(4)]
    want = [scan(x, a) for x, a in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, expected in zip(pool.map(lambda pair: scan(*pair, block_d=128), inputs), want, strict=True):
                assert torch.equal(got[0], expected[0])


def _scan_in_child(x: Tensor, a: Tensor, want: np.ndarray) -> None:
    # compared in NumPy: torch's own operations may hang here
    sys.exit(0 if np.array_equal(scan(x, a, block_d=128)[0].numpy(), want) else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_forked_child_of_a_process_that_used_threads(restore_threads):
    torch.set_num_threads(2)
    x, a = torch.randn(2, 900, 300), torch.rand(2, 900, 300)
    want, _ = scan(x, a, block_d=128)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_scan_in_child, args=(x, a, want.numpy()), daemon=True)
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert not alive, "the child hangs"
    assert child.exitcode == 0


def test_runs_where_nothing_can_be_written(tmp_path):
    """No folder for numba's cache: the kernel is compiled in memory."""
    code = (
        "import torch, numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from griffin_kernels import catalog\n"
        "v = catalog.variant('linear_scan/numba.sequential')\n"
        "x = torch.ones(1, 3, 2)\n"
        "print(v.run(catalog.op('linear_scan').call(x, x), v.config())[0][0, :, 0].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[1.0, 2.0, 3.0]", done.stderr


def test_gradients_of_inputs_and_expanded_inputs_do_not_matter():
    x = torch.randn(1, 1, 40).expand(3, 50, 40)
    a = torch.rand(40, 50, 3).permute(2, 1, 0).requires_grad_()
    h, _ = scan(x, a)
    want, _ = scan(x.contiguous(), a.detach().contiguous())
    assert torch.equal(h, want)


def test_empty_batch_and_no_time():
    for shape in ((0, 5, 8), (2, 0, 8)):
        x = torch.empty(shape)
        for algorithm in ("sequential", "chunked"):
            h, h_last = scan(x, x, algorithm=algorithm)
            assert h.shape == shape
            assert torch.equal(h_last, torch.zeros(shape[0], 8))


def untuned(case: Case, where: device.Device) -> Variant:
    """What a case runs where nothing is tuned."""
    variants = [v for v in catalog.variants(case.op).values() if v.reject(case, where, v.config()) is None]
    return max(variants, key=lambda v: v.rank(case, where))


def test_default_on_a_cpu_and_rejected_elsewhere():
    for op_name in ("linear_scan", "linear_scan_bwd"):
        case = make_case(1, 4096, 2560, op=op_name)
        best = untuned(case, device.cpu())
        assert best.backend == "numba"
        assert best.reject(case, INTERPRETER, best.config()) == "needs a CPU"
    many_cores = device.Device("cpu", "test", "x86-64-avx2", 16, 0, 0, details=(("isa", ("f16c",)),))
    assert untuned(make_case(1, 2**16, 64), many_cores).name == "numba.chunked"
    assert untuned(make_case(8, 512, 2560), many_cores).name == "numba.sequential"


@pytest.mark.parametrize("shape", [(3,), (1, 1024, 1025), (7, 1024, 1024)])
def test_memory_is_fresh_contiguous_and_poisonable(shape):
    with poison.poisoned():
        tensor = memory.empty(shape, torch.float32)
    assert tensor.shape == shape
    assert tensor.is_contiguous()
    assert tensor.isnan().all()
