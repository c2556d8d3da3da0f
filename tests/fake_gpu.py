"""A GPU made of stubs: torch.cuda with a stream, events and graphs on a clock of its own, NVML, an H100's facts.

Tensors stay on the CPU and Triton kernels in its interpreter, so what is computed is right; what things take is made
up: every operator of torch and every launch costs the host ``LAUNCH_S`` and the GPU its bytes over ``BANDWIDTH``. The
stream runs behind the host as a real one does: a kernel begins when it is launched and what came before it has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from griffin_kernels import device as devices
from griffin_kernels import launch
from roofline import probes
from tuning.measure import timing

LAUNCH_S = 10e-6
BANDWIDTH = 3e12
CLOCK_HZ = 1.7e9

FACTS = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30,
    L2_cache_size=2**16, warp_size=32, uuid="1234", gcnArchName="",
)  # fmt: skip
"""Of an H100, but for an L2 that is swept in no time."""


class FakeGpu:
    """The clock of the host and the stream of the GPU. counts: what was done how often."""

    def __init__(self) -> None:
        self.now = 0.0
        self.free_at = 0.0
        self.recording: list[Callable[[], None]] | None = None
        self.counts: dict[str, int] = {"captures": 0, "replays": 0, "launches": 0}
        self.problems: list[Callable[[launch.Launch], None]] = []

    def enqueue(self, seconds: float, host_s: float = LAUNCH_S) -> None:
        """A kernel of so many seconds."""
        self.now += host_s
        self.free_at = max(self.free_at, self.now) + seconds
        self.counts["launches"] += 1

    def synchronize(self, *where: object) -> None:
        self.now = max(self.now, self.free_at)

    def do(self, again: Callable[[], None], seconds: float) -> None:
        """Kept for replaying while a graph is being captured, else enqueued."""
        if self.recording is None:
            self.enqueue(seconds)
        else:
            self.recording.append(again)
            self.recording.append(lambda: self.enqueue(seconds, host_s=0.0))

    def clock(self) -> float:
        """Seconds on the host. Looking at it takes some, so that nothing waits for ever."""
        self.now += 1e-6
        return self.now


class _Event:
    gpu: FakeGpu

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, *stream: object) -> None:
        self.at = max(self.gpu.free_at, self.gpu.now)

    def query(self) -> bool:
        return self.gpu.now >= self.at

    def synchronize(self) -> None:
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


class _Graph:
    gpu: FakeGpu

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        self.gpu.counts["replays"] += 1
        self.gpu.now += LAUNCH_S
        with _quiet():
            for step in self.steps:
                step()


class _Asked:
    """A kernel that only raises what a problem has to say: as Triton's own launch, within ``launch.run_all``."""

    def __init__(self, problem: Callable[[launch.Launch], None], step: launch.Launch) -> None:
        self.problem, self.step, self.__name__ = problem, step, step.name

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda **_: self.problem(self.step)


_silent = False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is done within is not noted: a kernel is one launch, whatever the interpreter makes of it."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


class _Noting(TorchDispatchMode):
    """Every operator is a kernel on the stream, and a step of the graph that is being captured."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if _silent or func.is_view or any(word in func._schema.name for word in ("empty", "_local_scalar", "detach")):
            return found
        outs = [t for t in tree_flatten(found)[0] if isinstance(t, Tensor)]
        touched = {id(t): t for t in [*tree_flatten((args, kwargs))[0], *outs] if isinstance(t, Tensor)}
        moved = sum(t.numel() * t.element_size() for t in touched.values())

        def again() -> None:
            for mine, fresh in zip(outs, tree_flatten(func(*args, **kwargs))[0], strict=False):
                if fresh is not mine:
                    mine.copy_(fresh)

        self.gpu.do(again, moved / BANDWIDTH)
        return found


@contextlib.contextmanager
def fake_gpu(patch: pytest.MonkeyPatch, noting: bool = True) -> Iterator[FakeGpu]:
    """Within it this machine has the GPU. noting: operators of torch cost time too."""
    gpu = FakeGpu()
    where = torch.device("cpu")
    _Event.gpu = _Graph.gpu = gpu
    cuda = torch.cuda
    plain: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_properties": lambda *_: FACTS, "get_device_name": lambda *_: FACTS.name,
        "get_device_capability": lambda *_: (9, 0), "is_bf16_supported": lambda **_: True,
        "mem_get_info": lambda *_: (70 * 2**30, 80 * 2**30), "set_device": lambda *_: None,
        "synchronize": gpu.synchronize, "current_stream": lambda *_: gpu_stream, "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: gpu.recording is not None, "Event": _Event, "CUDAGraph": _Graph,
        "stream": lambda *_: contextlib.nullcontext(), "Stream": lambda *_: gpu_stream,
        "device": lambda *_: contextlib.nullcontext(),
        "_sleep": lambda cycles: gpu.enqueue(cycles / CLOCK_HZ),
    }  # fmt: skip
    gpu_stream = types.SimpleNamespace(wait_stream=lambda *_: None, synchronize=gpu.synchronize)

    @contextlib.contextmanager
    def capture(graph: _Graph, **options: object) -> Iterator[None]:
        gpu.counts["captures"] += 1
        gpu.recording = graph.steps
        try:
            yield
        finally:
            gpu.recording = None

    def run_all(steps: Any) -> None:
        for step in steps:
            if not isinstance(step, launch.Launch):
                step.function()
                continue
            for problem in gpu.problems:
                real([dataclasses.replace(step, kernel=_Asked(problem, step))])
            alone = functools.partial(real, [step])
            with _quiet():
                alone()
            moved = sum(t.numel() * t.element_size() for t in step.tensors)
            gpu.do(alone, moved / BANDWIDTH)

    real = launch.run_all
    for name, value in plain.items():
        patch.setattr(cuda, name, value, raising=False)
    patch.setattr(cuda, "graph", capture)
    patch.setattr(devices.Device, "torch_device", property(lambda self: where))
    detect = devices.detect
    patch.setattr(devices, "detect", lambda of=None: devices.gpu(0) if of != "cpu" else detect(of))
    patch.setattr(launch, "run_all", run_all)
    patch.setattr(timing, "LEAST_SWEEP_BYTES", {})
    patch.setitem(probes.BUFFER_BYTES, "gpu", 2**18)
    for name, answer in {
        "nvmlInit": None, "nvmlSystemGetDriverVersion": "580.1", "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetMaxClockInfo": 1980, "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetTemperature": 50,
        "nvmlDeviceGetPowerUsage": 300_000, "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetComputeRunningProcesses": [],
    }.items():  # fmt: skip
        patch.setattr(pynvml, name, lambda *_, answer=answer: answer)

    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    patch.setattr(pynvml, "nvmlDeviceGetPowerManagementLimit", refuse)
    caches = (devices.gpu, timing._sweepers, probes._cycle_s)
    for cache in caches:
        cache.cache_clear()
    try:
        with _Noting(gpu) if noting else contextlib.nullcontext():
            yield gpu
    finally:
        patch.undo()
        for cache in caches:
            cache.cache_clear()
