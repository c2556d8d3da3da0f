"""What may be wrong with this machine: its GPU, cores and who else uses them, memory of disks and folders."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import torch

from griffin_kernels import device as devices
from griffin_kernels import errors, nvml
from griffin_kernels.validity import quoted
from roofline.units import units_text
from tuning.doctor import Finding
from tuning.record.paths import prove_writable


def gpu() -> Iterator[Finding]:
    """The GPUs that torch can use, or why there is none."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            try:
                device = devices.gpu(index)
            except (errors.DeviceError, RuntimeError) as error:
                yield Finding("problem", "GPU", f"GPU {index} cannot be used: {quoted(error, 200)}", "see nvidia-smi")
                continue
            size = f"{units_text(device.units, device.kind)}, {device.memory_bytes / 2**30:.0f} GiB"
            yield Finding("ok", "GPU", f"{device.name} ({device.arch}, {size})")
            yield from gpu_users(index)
        return
    card = "NVIDIA" if os.path.exists("/proc/driver/nvidia/version") else "AMD" if os.path.exists("/dev/kfd") else ""
    hidden = next((name for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if name in os.environ), None)
    build = "AMD" if torch.version.hip else "NVIDIA" if torch.version.cuda else ""
    if not card:
        yield Finding("ok", "GPU", "this machine has none; kernels run on the CPU")
    elif hidden is not None and os.environ[hidden] in ("", "-1", "NoDevFiles"):
        fix = f"unset {hidden} to use it"
        yield Finding("note", "GPU", f"{hidden}={os.environ[hidden]} hides the {card} GPU", fix)
    elif build != card:
        what = f"there is an {card} GPU, but this torch ({torch.__version__}) is built for {build or 'the CPU only'}"
        yield Finding("problem", "GPU", what, f"install torch for {card} (pytorch.org)")
    else:
        what = f"there is an {card} driver, but torch sees no GPU: {_reason()}"
        yield Finding("problem", "GPU", what, "the driver may be older than this torch needs: see nvidia-smi, rocm-smi")


def _reason() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return quoted(error, 200)
    return "it gives no reason"


def gpu_users(index: int) -> Iterator[Finding]:
    """Other processes on an NVIDIA GPU, which share its clock, its memory and its bandwidth."""
    if torch.version.hip is not None:
        return
    import pynvml

    answers, refused = nvml.ask(index, {"users": lambda gpu: pynvml.nvmlDeviceGetComputeRunningProcesses(gpu())})
    if refused:
        yield Finding("note", "GPU", f"NVML does not answer ({refused['users']}): clocks and other users are not seen")
        return
    others = [process.pid for process in answers["users"] if process.pid != os.getpid()]
    if others:
        told = ", ".join(map(str, others[:8]))
        fix = "tune when they are done, or choose another GPU with --device"
        yield Finding("problem", "GPU", f"processes {told} use GPU {index}: timings will suffer", fix)


def cores() -> Iterator[Finding]:
    """Threads against the cores that this process may use."""
    usable, there = devices.cpu().units, devices.machine_cores()
    threads, quota = torch.get_num_threads(), cpu_quota()
    text = f"{usable} of {there} cores" if usable < there else f"{usable} cores"
    if quota is not None and quota < usable:
        fix = f"set OMP_NUM_THREADS={max(1, int(quota))}, or give the container more CPU time"
        text = f"this container may use {quota:g} cores' time, but sees {usable}: threads are stopped again and again"
        if threads > quota:
            yield Finding("problem", "cores", text, fix)
            return
    if threads > usable:
        text = f"torch uses {threads} threads on {usable} cores"
        yield Finding("problem", "cores", text, f"set OMP_NUM_THREADS={usable}, or allow more cores (taskset, cpuset)")
    elif threads < usable:
        fix = "unset OMP_NUM_THREADS and MKL_NUM_THREADS, unless your programs run with them too"
        yield Finding("note", "cores", f"torch uses {threads} threads on {usable} cores", fix)
    else:
        yield Finding("ok", "cores", f"{text}, {threads} threads")


def cpu_quota() -> float | None:
    """Cores' worth of time that the control group allows; None where it sets no limit or cannot be read."""
    folder = Path("/sys/fs/cgroup")
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        try:
            limit, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            return None if limit == "max" or int(limit) <= 0 else int(limit) / int(period)
        except (OSError, ValueError):
            continue
    return None


def load() -> Iterator[Finding]:
    """Whether other processes want the cores."""
    if not hasattr(os, "getloadavg"):
        return
    wanted, units = os.getloadavg()[0], devices.cpu().units
    text = f"{wanted:.1f} processes wanted a core in the last minute, there are {units}"
    if wanted > units / 4:  # from so many on timings suffer
        yield Finding("note", "load", text, "timings of the CPU are steadier when nothing else runs (see top)")
    else:
        yield Finding("ok", "load", text)


def folder() -> Iterator[Finding]:
    """The user's data folder: can it be written, and is there room."""
    path = Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False))
    nearest = next((p for p in (path, *path.parents) if os.path.exists(p)), Path("/"))
    variable = "XDG_DATA_HOME" if platform.system() == "Linux" else "HOME"
    try:
        prove_writable(nearest)
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        text = f"the data folder {path} cannot be written: {error.strerror or error}"
        fix = f"set {variable} to a folder that can be, or tune with --out; registries in it are still read"
        yield Finding("problem", "data folder", text, fix)
        return
    text = f"{path}, {free / 2**30:.3g} GiB free"
    if free < 2**30:
        yield Finding("problem", "data folder", text, "make room: a journal and a report take some hundred megabytes")
    else:
        yield Finding("ok", "data folder", text)
