"""What machine this is: Device, detect(), fingerprint().

*Validity* facts (name, architecture, units, memory, caches) decide whether a measurement may be used on a machine.
*Provenance* facts (driver, versions, power limit, date) are recorded beside it and mark it stale when they differ.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from griffin_kernels import errors
from griffin_kernels.texts import now, slug

NvmlHandle = Callable[[], Any]
"""Gives NVML's handle of the GPU; raises NVMLError where NVML does not know it."""


@dataclass(frozen=True)
class Device:
    """One device that kernels run on.

    kind: ``cpu``, ``cuda`` (NVIDIA), ``hip`` (AMD), or ``interpreter`` (Triton's, with TRITON_INTERPRET=1; tests only).
    name: as the driver or the operating system reports it. arch: ``sm_90``, ``gfx942``, ``x86-64-avx512``.
    units: SMs, CUs or usable CPU cores. memory_bytes: device memory; on a CPU the machine's RAM.
    last_level_cache_bytes: L2 of a GPU, L3 (else L2) of a CPU; 0 if unknown. warp_size: 0 on a CPU.
    details: further facts by name (CPU: isa, sockets, numa_nodes, l1d_bytes, l2_bytes; GPU: mig, index).
    """

    kind: str
    name: str
    arch: str
    units: int
    memory_bytes: int
    last_level_cache_bytes: int
    warp_size: int = 0
    details: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    @property
    def slug(self) -> str:
        """File-name form of the device: ``nvidia-h100-80gb-hbm3``, ``cpu-amd-epyc-2x-avx512``."""
        parts = [self.name]
        if self.kind == "cpu":
            parts = ["cpu", self.name, f"{self.units}x", self.arch.rsplit("-", 1)[-1]]
        elif dict(self.details).get("mig"):
            parts.append("mig")
        return slug("-".join(parts))

    @property
    def torch_device(self) -> torch.device:
        if self.kind in ("cuda", "hip"):
            return torch.device("cuda", dict(self.details).get("index", 0))
        return torch.device("cpu")

    def validity(self) -> dict[str, Any]:
        """Facts that must be equal for a measurement of one machine to be used on another."""
        facts = dataclasses.asdict(self)
        del facts["details"]
        # RAM is reported a little differently by every kernel, and does not change which kernel is fastest.
        memory = round(facts.pop("memory_bytes") / 2**30)
        facts["memory_gib"] = 0 if self.kind == "cpu" else memory
        facts["mig"] = bool(dict(self.details).get("mig", False))
        return facts


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cache_bytes() -> dict[str, int]:
    """Cache size by level of one instance (``l1d``, ``l2``, ``l3``), from sysfs; empty where that is not there."""
    sizes: dict[str, int] = {}
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        match = re.fullmatch(r"(\d+)([KMG]?)", _read(str(index / "size")))
        kind = _read(str(index / "type"))
        if match and kind != "Instruction":
            level = "l" + _read(str(index / "level")) + ("d" if kind == "Data" else "")
            sizes[level] = int(match[1]) * units[match[2]]
    return sizes


def cores() -> frozenset[int]:
    """Numbers of the cores that this process may use: those of its affinity mask, where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(machine_cores()))


def machine_cores() -> int:
    """Cores of the whole machine, for what concerns all its processes; how many to use is ``len(cores())``."""
    return os.cpu_count() or 1


@functools.cache
def cpu() -> Device:
    """This machine's CPU."""
    facts = _read("/proc/cpuinfo")
    flags = set(re.findall(r"[\w.]+", facts.lower()))
    # vector extensions that change which kernel wins, weakest first
    known = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "sve2")
    isa = tuple(name for name in known if name in flags)
    levels = [level for level in ("avx512f", "avx2", "avx", "sve2", "sve", "asimd") if level in isa]
    level = levels[0].removesuffix("f") if levels else "baseline"
    name = re.search(r"^(?:model name|Hardware|cpu model)\s*:\s*(.+)$", facts, re.MULTILINE)
    caches = _cache_bytes()
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    try:
        ram_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        ram_bytes = 0
    sockets = len(set(re.findall(r"^physical id\s*:\s*(\d+)", facts, re.MULTILINE))) or 1
    details = {"isa": isa, "sockets": sockets, "numa_nodes": nodes}
    details |= {"l1d_bytes": caches.get("l1d", 0), "l2_bytes": caches.get("l2", 0)}
    return Device(
        kind="cpu",
        name=name[1].strip() if name else platform.processor() or platform.machine(),
        arch=f"{platform.machine().lower().replace('_', '-')}-{level}",
        units=len(cores()),
        memory_bytes=ram_bytes,
        last_level_cache_bytes=caches.get("l3", caches.get("l2", 0)),
        details=tuple(details.items()),
    )


@functools.cache
def gpu(index: int = 0) -> Device:
    """GPU ``index``, NVIDIA or AMD, as torch sees it; raises DeviceError where there is none."""
    if not torch.cuda.is_available():
        raise errors.DeviceError("this machine has no GPU that torch can use; device 'cpu' works")
    if not 0 <= index < torch.cuda.device_count():
        raise errors.DeviceError(f"no GPU {index}; this machine has {torch.cuda.device_count()}, counted from 0")
    properties = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    major, minor = properties.major, properties.minor
    return Device(
        kind="hip" if hip else "cuda",
        name=properties.name,
        arch=properties.gcnArchName.split(":")[0] if hip else f"sm_{major}{minor}",
        units=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        last_level_cache_bytes=getattr(properties, "L2_cache_size", 0),
        warp_size=properties.warp_size,
        details=(("index", index), ("mig", "MIG" in properties.name)),
    )


def detect(where: torch.device | str | None = None) -> Device:
    """The Device behind a torch device; without an argument the first GPU, or else the CPU.

    Raises DeviceError for a device type that has no kernels here.
    """
    if where is None:
        return gpu(0) if torch.cuda.is_available() else cpu()
    try:
        where = torch.device(where)
    except RuntimeError:
        raise errors.DeviceError(f"unknown device {where!r}; 'cpu', 'cuda' and 'cuda:<index>' work") from None
    if where.type == "cpu":
        return cpu()
    if where.type == "cuda":
        index: int | None = where.index
        if index is None:
            index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return gpu(index)
    raise errors.DeviceError(f"device type {where.type!r} has no kernels; 'cpu' and 'cuda' (NVIDIA or AMD) work")


def ask_nvml(index: int, questions: Mapping[str, Callable[[NvmlHandle], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """(answers, refusals in NVML's words) about one GPU, by name; every question is in one of them.

    What a driver refuses is one answer missing, and no more than that: a virtual machine may hide the power limit, and
    a MIG slice its clocks, while everything else is told. index: as torch counts.
    """
    import pynvml

    @functools.cache
    def handle() -> Any:
        # NVML counts physical GPUs, torch counts visible ones: match them by UUID
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")

    answers: dict[str, Any] = {}
    refusals: dict[str, str] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {}, dict.fromkeys(questions, str(error))
    for name, question in questions.items():
        try:
            answers[name] = question(handle)
        except pynvml.NVMLError as error:
            refusals[name] = str(error)
    return answers, refusals


def provenance(device: Device) -> dict[str, Any]:
    """Facts recorded beside measurements: versions, driver, power limit, threads, details, date (UTC)."""
    facts: dict[str, Any] = {
        "date": now(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
    }
    for package in ("triton", "numba"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["system"] = f"{platform.system()} {platform.release()}"
    if device.kind == "cpu":
        facts["threads"] = torch.get_num_threads()
    if device.kind == "cuda":
        import pynvml

        questions: dict[str, Callable[[NvmlHandle], Any]] = {
            "driver": lambda gpu: pynvml.nvmlSystemGetDriverVersion(),
            "power_limit_watts": lambda gpu: pynvml.nvmlDeviceGetPowerManagementLimit(gpu()) / 1000,
            "max_sm_clock_mhz": lambda gpu: pynvml.nvmlDeviceGetMaxClockInfo(gpu(), pynvml.NVML_CLOCK_SM),
        }
        answers, refusals = ask_nvml(dict(device.details).get("index", 0), questions)
        facts |= {"cuda": torch.version.cuda, **answers}
        if refusals:
            facts["nvml"] = "unavailable: " + "; ".join(f"{name} ({why})" for name, why in refusals.items())
    if device.kind == "hip":
        facts["rocm"] = torch.version.hip
    return facts | {name: list(v) if isinstance(v, tuple) else v for name, v in device.details}
