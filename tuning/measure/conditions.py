"""The conditions under which a device is timed: clocks, temperature, power, load by other processes.

A figure that the machine does not report is None: virtual machines have no temperature, MIG slices no power.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from griffin_kernels import device as devices
from griffin_kernels.device import Device
from tuning.record.journal_records import CeilingRecord, Conditions, Race

ROOT = Path("/")
"""Where /proc and /sys are."""

REASONS = {
    0x1: "GPU idle",
    0x2: "applications clocks setting",
    0x4: "SW power cap",
    0x8: "HW slowdown",
    0x10: "sync boost",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake slowdown",
    0x100: "display clock setting",
}
"""NVML's clock event reasons by bit; nvml.h, nvmlClocksEventReasons."""

SETTINGS = {"GPU idle", "applications clocks setting", "display clock setting"}
"""Reasons that are no disturbance: somebody chose the clock, or there was nothing to do."""

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp", "cpu-thermal")

BUSY = 1.5
"""Load per core above which other processes disturb the timings. A run alone makes a load of 1."""

STOLEN = 0.03
"""Share of CPU time taken by the hypervisor above which it counts as a disturbance."""

FALLEN = 0.9
"""A clock that falls below this share of its value before the race counts as a disturbance."""

SLOWED = 0.8
"""A device that reaches less than this of its usual rate beside a race was slower during it."""


def read(device: Device) -> Conditions:
    """The state of ``device`` now. Steal is since the last call in this process, None at the first."""
    told = {"cuda": _nvidia, "hip": _amd}.get(device.kind, _cpu)(device)
    try:
        load = os.getloadavg()[0] / devices.machine_cores()
    except (OSError, AttributeError):
        load = None
    return Conditions(**told, load=load, steal=_steal())


def disturbed(before: Conditions, after: Conditions) -> str | None:
    """What disturbed the timings between two readings, in words; None if nothing is known to have."""
    found = []
    if held := sorted({*before.throttle, *after.throttle} - SETTINGS):
        found.append(f"clocks were held down ({', '.join(held)})")
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < FALLEN * before.clock_mhz:
        found.append(f"the clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    if after.load is not None and after.load > BUSY:
        found.append(f"other processes wanted the cores ({after.load:.1f} for each core)")
    if after.steal is not None and after.steal > STOLEN:
        found.append(f"the hypervisor took {after.steal:.0%} of the CPU time")
    return "; ".join(found) or None


def slowed(race: Race, ceilings: Mapping[str, CeilingRecord]) -> str | None:
    """How much slower the device was beside a race than it usually is, in words; None where it was not, or none tells.

    ceilings: of the run, by name.
    """
    for name, samples in race.ceilings.items():
        known = ceilings.get(name)
        if known is None or not samples or not known.samples:
            continue
        reached, usual = statistics.median(samples) / known.value, statistics.median(known.samples) / known.value
        if reached < SLOWED * usual:
            return f"{name} reached {reached:.0%} of its ceiling beside the race, and usually {usual:.0%}"
    return None


def _nvidia(device: Device) -> dict[str, Any]:
    """What NVML says of the device."""
    import pynvml

    def held_down(gpu: devices.NvmlHandle) -> Any:
        try:
            return pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu())
        except pynvml.NVMLError:  # what it was called before driver 535
            return pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu())

    told, _ = devices.ask_nvml(
        device.torch_device.index,
        {
            "clock_mhz": lambda gpu: float(pynvml.nvmlDeviceGetClockInfo(gpu(), pynvml.NVML_CLOCK_SM)),
            "temperature_c": lambda gpu: float(pynvml.nvmlDeviceGetTemperature(gpu(), pynvml.NVML_TEMPERATURE_GPU)),
            "power_w": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu()) / 1e3,
            "throttle": lambda gpu: reasons(held_down(gpu)),
        },
    )
    return told


def reasons(bits: int) -> list[str]:
    """The reasons in an NVML bit mask, in words. A bit without a name here is given by its value."""
    return [REASONS.get(1 << i, f"reason {1 << i:#x}") for i in range(bits.bit_length()) if bits >> i & 1]


def _amd(device: Device) -> dict[str, Any]:
    """What amdgpu's hwmon folder says; docs.kernel.org/gpu/amdgpu/thermal.html. The driver tells no reasons there."""
    facts = torch.cuda.get_device_properties(device.torch_device)
    domain, bus, slot = (getattr(facts, f"pci_{name}_id", -1) for name in ("domain", "bus", "device"))
    address = f"{domain:04x}:{bus:02x}:{slot:02x}.0"
    for folder in sorted((ROOT / "sys/bus/pci/devices" / address / "hwmon").glob("hwmon*")):
        return {
            "clock_mhz": next(_numbers(folder, 1e6, "freq1_input"), None),
            # junction before edge: the driver throttles by it, and data-centre cards have no other
            "temperature_c": next(_numbers(folder, 1e3, "temp2_input", "temp1_input"), None),
            "power_w": next(_numbers(folder, 1e6, "power1_average", "power1_input"), None),
        }
    return {}


def _cpu(device: Device) -> dict[str, Any]:
    """Mean clock of the cores that this process may use, and the hottest sensor by hwmon or by thermal zone.

    A hypervisor may show the same clock for ever.
    """
    cores, folder = devices.cores(), ROOT / "sys/devices/system/cpu"
    clocks = [mhz for core in cores for mhz in _numbers(folder / f"cpu{core}/cpufreq", 1e3, "scaling_cur_freq")]
    if not clocks:
        lines = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(ROOT / "proc/cpuinfo"), re.MULTILINE)
        clocks = [float(line) for i, line in enumerate(lines) if i in cores]
    hot: list[float] = []
    for pattern, name, value in (("hwmon/hwmon*", "name", "temp1_input"), ("thermal/thermal_zone*", "type", "temp")):
        for sensor in (ROOT / "sys/class").glob(pattern):
            if _text(sensor / name).strip() in CPU_SENSORS:
                hot += _numbers(sensor, 1e3, value)
    return {"clock_mhz": statistics.fmean(clocks) if clocks else None, "temperature_c": max(hot, default=None)}


_last: tuple[int, int] | None = None


def _steal() -> float | None:
    """Share of the CPU time since the last call that the hypervisor gave to others; proc(5), /proc/stat."""
    global _last
    line = re.match(r"cpu((?: +\d+){8})", _text(ROOT / "proc/stat"))
    if line is None:
        return None
    fields = [int(number) for number in line[1].split()]
    earlier, _last = _last, (fields[7], sum(fields))
    if earlier is None or _last[1] <= earlier[1]:
        return None
    return max(0.0, (_last[0] - earlier[0]) / (_last[1] - earlier[1]))


def _numbers(folder: Path, scale: float, *names: str) -> Iterator[float]:
    """Of the files that hold one."""
    for name in names:
        with contextlib.suppress(ValueError):
            yield float(_text(folder / name)) / scale


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
