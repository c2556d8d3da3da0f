"""What times a GPU, on one made of stubs: launches are hidden, sweeps leave nothing to write back, NVML may refuse."""

from __future__ import annotations

import ast

import pytest
import torch

from griffin_kernels import device
from roofline import measure, probes
from tests import ROOT
from tests.fake_gpu import BANDWIDTH, LAUNCH_S, fake_gpu
from tuning.measure import conditions, timing
from tuning.workers import compile_farm, compile_pool

PACKAGES = ("griffin_kernels", "tuning", "roofline", "reports", "tests")


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as made:
        yield made


def test_a_probe_shorter_than_its_launch_is_timed_without_it(gpu):
    x, out = torch.ones(75_000), torch.empty(75_000)
    kernel_s = 8 * x.numel() / BANDWIDTH
    assert kernel_s < LAUNCH_S / 10
    probe = probes.Probe("x", "bytes_per_s", 8 * x.numel(), lambda: out.copy_(x), "")
    assert probe.sample(device.gpu(0)) == pytest.approx(BANDWIDTH)
    gpu.synchronize()
    alone = probes.seconds_of(probe.work, device.gpu(0))
    assert alone == pytest.approx(LAUNCH_S + kernel_s), "what is measured where nothing hides the launch"


def test_a_gpu_is_kept_busy_for_as_long_as_launching_takes(gpu):
    x = torch.ones(3)
    calls = round(2 * probes.BUSY_S / LAUNCH_S)
    seconds = probes.kernel_seconds_of(lambda: [x.add_(1) for _ in range(calls)], device.gpu(0))
    assert seconds < calls * LAUNCH_S / 10
    much = round(2 * probes.MOST_BUSY_S / LAUNCH_S)
    seconds = probes.kernel_seconds_of(lambda: [x.add_(1) for _ in range(much)], device.gpu(0))
    assert seconds > much * LAUNCH_S / 4, "with its launches, and it ends"


def test_launch_is_what_launching_costs(gpu):
    here = device.gpu(0)
    found = {probe.name: probe for probe in probes.launch(here)}
    found["launch"].work()
    gpu.synchronize()
    assert found["launch"].sample(here) == pytest.approx(LAUNCH_S, rel=0.02)
    assert found["launch_graph"].sample(here) < LAUNCH_S / 100


def test_dram_ceilings_are_those_of_the_gpu(gpu):
    for ceiling in measure.dram(device.gpu(0), seconds=0.02):
        assert ceiling.value == pytest.approx(BANDWIDTH, rel=0.01)


@pytest.mark.parametrize(("gib", "buffer"), [(80, 2**30), (16, 2**30), (4, 2**29)])
def test_dram_buffers_are_a_gibibyte_where_memory_allows(gib, buffer):
    assert probes.BUFFER_BYTES["gpu"] == 2**30
    assert probes.buffer_bytes(device.Device("cuda", "x", "sm_90", 132, gib * 2**30, 50 * 2**20)) == buffer


def test_a_sweep_ends_with_reads_of_as_much_as_it_wrote(gpu, monkeypatch):
    timing._sweep(device.gpu(0))  # makes the buffers
    seen = []
    monkeypatch.setattr(gpu, "do", lambda again, seconds: seen.append(seconds))
    timing._sweep(device.gpu(0))
    assert len(seen) == 2
    written, read, total = timing._sweepers(device.gpu(0).torch_device, timing.cold_bytes(device.gpu(0)))
    assert read.numel() * 4 == timing.cold_bytes(device.gpu(0)) == 2 * device.gpu(0).last_level_cache_bytes
    read.fill_(1.0), written.fill_(5.0)
    timing._sweep(device.gpu(0))
    assert not written.any() and total == read.numel()


def test_what_nvml_refuses_drops_nothing_else(gpu):
    told = device.provenance(device.gpu(0))
    assert (told["driver"], told["max_sm_clock_mhz"]) == ("580.1", 1980)
    assert "power_limit_watts" not in told and told["nvml"].startswith("unavailable: power_limit_watts (Not Supported")
    assert conditions.read(device.gpu(0)).clock_mhz == 1980


def test_cores_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 3, 5, 6}, raising=False)
    monkeypatch.setattr(device.os, "cpu_count", lambda: 64)
    assert device.cores() == {0, 3, 5, 6} and device.machine_cores() == 64
    assert compile_pool.processes_for(device.Device("cuda", "x", "sm_90", 1, 1, 1), 1) == 2
    monkeypatch.delattr(device.os, "sched_getaffinity")
    assert len(device.cores()) == 64


def test_nobody_else_counts_cores_or_opens_nvml():
    assert compile_pool.devices is compile_farm.devices is device
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name.startswith(("test_", "fake_")):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                if name in ("cpu_count", "process_cpu_count", "sched_getaffinity", "nvmlInit"):
                    found.append(f"{path.relative_to(ROOT)}: {name}")
    assert set(found) == {
        "griffin_kernels/device.py: cpu_count",
        "griffin_kernels/device.py: sched_getaffinity",
        "griffin_kernels/device.py: nvmlInit",
    }
