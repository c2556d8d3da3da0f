"""Conditions around timings: what a machine tells is read, what it does not tell is None, disturbances are in words."""

from __future__ import annotations

import types

import pytest

from griffin_kernels import device
from tuning.measure import conditions
from tuning.record.journal_records import Conditions

pytestmark = pytest.mark.unit

pynvml = pytest.importorskip("pynvml")

GPU = device.Device("cuda", "made up", "sm_90", 132, 1, 1)
AMD = device.Device("hip", "made up", "gfx942", 304, 1, 1)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine that tells nothing but what a test writes into it."""
    monkeypatch.setattr(conditions, "ROOT", tmp_path)
    monkeypatch.setattr(conditions, "_last", None)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_machine_that_tells_nothing(root):
    found = conditions.read(device.cpu())
    assert (found.clock_mhz, found.temperature_c, found.power_w, found.throttle, found.steal) == (None,) * 3 + (
        [],
        None,
    )


def test_this_machine_can_be_read_twice():
    conditions.read(device.cpu())
    found = conditions.read(device.cpu())
    assert found.load is None or found.load >= 0
    assert found.steal is None or 0 <= found.steal <= 1


def test_clock_of_a_cpu(root, monkeypatch):
    monkeypatch.setattr(conditions.os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    root("proc/cpuinfo", "cpu MHz\t\t: 1000.5\ncpu MHz\t\t: 9.0\ncpu MHz\t\t: 2000.5\n")
    assert conditions.read(device.cpu()).clock_mhz == 1500.5
    root("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3000000\n")
    root("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "9000000\n")
    root("sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq", "3200000\n")
    assert conditions.read(device.cpu()).clock_mhz == 3100


def test_hottest_cpu_sensor_counts_and_no_other(root):
    root("sys/class/hwmon/hwmon0/name", "nvme\n")
    root("sys/class/hwmon/hwmon0/temp1_input", "90000\n")
    root("sys/class/hwmon/hwmon1/name", "k10temp\n")
    root("sys/class/hwmon/hwmon1/temp1_input", "61500\n")
    root("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n")
    root("sys/class/thermal/thermal_zone0/temp", "58000\n")
    assert conditions.read(device.cpu()).temperature_c == 61.5


def test_steal_is_since_the_last_reading(root):
    root("proc/stat", "cpu  100 0 0 800 0 0 0 100 50 0\ncpu0 1 2 3\n")
    assert conditions.read(device.cpu()).steal is None
    root("proc/stat", "cpu  150 0 0 830 0 0 0 120 99 0\ncpu0 1 2 3\n")
    assert conditions.read(device.cpu()).steal == pytest.approx(0.2)
    root("proc/stat", "not what it should be\n")
    assert conditions.read(device.cpu()).steal is None


def test_nvml_in_words_and_what_it_refuses_is_none(root, monkeypatch):
    asked = []

    def refuse(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    facts = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(conditions.torch.cuda, "get_device_properties", lambda where: facts)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: asked.append(uuid) or "handle")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, kind: 1980)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", lambda handle, sensor: 54)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: 0x44)
    found = conditions.read(GPU)
    assert asked == ["GPU-1234"]
    assert (found.clock_mhz, found.temperature_c, found.power_w) == (1980, 54, None)
    assert found.throttle == ["SW power cap", "HW thermal slowdown"]


def test_without_a_driver_nvml_says_nothing(root, monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert conditions.read(GPU).clock_mhz is None


def test_reasons_are_those_of_nvml():
    known = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("nvmlClocksEventReason")}
    bits = {value for name, value in known.items() if not name.endswith(("All", "None"))}
    assert bits == set(conditions.REASONS)
    assert conditions.reasons(0) == []
    assert conditions.reasons(1 << 20 | 1) == ["GPU idle", "reason 0x100000"]


def test_amd_is_read_from_its_hwmon_folder(root, monkeypatch):
    facts = types.SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0)
    monkeypatch.setattr(conditions.torch.cuda, "get_device_properties", lambda where: facts)
    assert conditions.read(AMD).power_w is None
    folder = "sys/bus/pci/devices/0000:c1:00.0/hwmon/hwmon3"
    for name, value in {"freq1_input": 2100000000, "temp2_input": 71000, "power1_average": 650000000}.items():
        root(f"{folder}/{name}", f"{value}\n")
    found = conditions.read(AMD)
    assert (found.clock_mhz, found.temperature_c, found.power_w) == (2100, 71, 650)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {}, None),
        ({"throttle": ["GPU idle"]}, {"throttle": ["applications clocks setting"]}, None),
        ({"throttle": []}, {"throttle": ["SW power cap"]}, "clocks were held down (SW power cap)"),
        ({"clock_mhz": 1980.0}, {"clock_mhz": 1900.0}, None),
        ({"clock_mhz": 1980.0}, {"clock_mhz": 1410.0}, "the clock fell from 1980 to 1410 MHz"),
        ({"load": 9.0}, {"load": 1.1}, None),
        ({}, {"load": 1.8}, "other processes wanted the cores (1.8 for each core)"),
        ({}, {"steal": 0.01}, None),
        (
            {},
            {"steal": 0.05, "load": 2.0},
            "other processes wanted the cores (2.0 for each core); the hypervisor took 5% of the CPU time",
        ),
    ],
)
def test_disturbances_in_words(before, after, words):
    assert conditions.disturbed(Conditions(**before), Conditions(**after)) == words
