"""What may be wrong with this installation and machine.

Of the installation: versions, the C++ compiler, numba's cache, environment variables. Of the machine: its GPU, cores
and who else uses them, memory of disks and folders.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import platformdirs
import torch

from griffin_kernels import catalog, errors, misses, registry
from griffin_kernels import device as devices
from griffin_kernels.validity import quoted
from roofline import store
from roofline.units import units_text
from tuning.doctor import Finding
from tuning.record.paths import prove_writable

PACKAGE = "griffin-kernels"


def versions() -> Iterator[Finding]:
    """Python and the libraries against what the package says it needs."""
    try:
        needs = metadata.requires(PACKAGE) or []
        python = metadata.metadata(PACKAGE)["Requires-Python"]
    except metadata.PackageNotFoundError:
        fix = f"pip install {PACKAGE}, or pip install -e . in its source"
        yield Finding("problem", "versions", f"{PACKAGE} is not installed, it only happens to be importable", fix)
        return
    yield _version("Python", platform.python_version(), python, "make a virtual environment with such a Python")
    for name in ("torch", "triton", "numba"):  # their versions decide what kernels do
        need = next((need for need in needs if re.match(rf"{name}\b", need)), "")
        wanted, _, condition = need.partition(";")
        if "Linux" in condition and platform.system() != "Linux":
            yield Finding("ok", "versions", f"{name} is not for {platform.system()}; its kernels are left out")
            continue
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("problem", "versions", f"{name} is not installed", f"pip install '{wanted.strip()}'")
            continue
        yield _version(name, found, wanted.strip().removeprefix(name), f"pip install --upgrade '{wanted.strip()}'")


def _version(name: str, found: str, wanted: str, fix: str) -> Finding:
    if unmet := [bound for bound in wanted.split(",") if not _meets(found, bound.strip())]:
        return Finding("problem", "versions", f"{name} is {found}, supported is {', '.join(unmet)}", fix)
    return Finding("ok", "versions", f"{name} {found}")


def _meets(version: str, bound: str) -> bool:
    """Whether ``2.13.0+cpu`` meets ``>=2.11`` or ``<3.14``; other kinds of bounds are met."""
    numbers = (re.findall(r"\d+", text.partition("+")[0])[:3] for text in (version, bound))
    have, need = (list(map(int, found)) for found in numbers)
    if bound.startswith(">="):
        return have >= need
    return have[: len(need)] < need if re.match(r"<\d", bound) else True


def backends() -> Iterator[Finding]:
    """Whether what kernels are written in can be imported."""
    for name in ("triton", "numba"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken install fails in any way it likes
            if not isinstance(error, ModuleNotFoundError) or error.name != name:
                text = f"importing {name} fails: {type(error).__name__}: {quoted(error, 200)}"
                yield Finding("problem", "versions", text, f"pip install --force-reinstall {name}")
    absent = {f"{op}/{name}": reason for op in catalog.ops() for name, reason in catalog.unavailable(op).items()}
    peers = {key: reason for key, reason in absent.items() if "/peer." in key}
    if own := absent.keys() - peers.keys():
        reasons = ", ".join(sorted({absent[key] for key in own}))
        yield Finding("note", "versions", f"{len(own)} kernels cannot be used: {reasons}", "install what is missing")
    if peers and devices.detect().kind != "cpu":
        text = f"not raced as baselines: {', '.join(sorted(set(peers.values())))}"
        yield Finding("note", "versions", text, f"pip install {' '.join(catalog.PEERS.values())}")


def compiler() -> Finding:
    """Whether the baselines that use torch.compile can be measured."""
    from griffin_kernels.ops import _compiled

    if reason := _compiled.problem(devices.detect()):
        fix = "install one (Debian: apt-get install g++) to have these baselines measured too"
        return Finding("note", "compiler", reason, fix)
    return Finding("ok", "compiler", "torch.compile can build its kernels")


def numba_cache() -> Iterator[Finding]:
    """Whether native kernels are compiled once, or again in every process."""
    try:
        from numba.core.caching import FunctionCache

        from griffin_kernels.ops import _native
    except ImportError:
        return  # versions() says so
    try:
        folder = FunctionCache(_native.lanes.__wrapped__).cache_path  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        fix = "set NUMBA_CACHE_DIR to a folder that can be written"
        text = f"native kernels are compiled anew in every process: {quoted(error, 160)}"
        yield Finding("note", "numba cache", text, fix)
        return
    yield Finding("ok", "numba cache", f"compiled native kernels are kept in {folder}")


def variables() -> Iterator[Finding]:
    """GRIFFIN_* variables that name what is not there, or that nothing reads."""
    read = (registry.ENVIRONMENT_VARIABLE, store.ENVIRONMENT_VARIABLE, misses.ENVIRONMENT_VARIABLE)
    given = {name: value for name, value in os.environ.items() if name.startswith("GRIFFIN_")}
    for name, value in sorted(given.items()):
        path = os.path.expanduser(value)
        place = path if os.path.exists(path) else os.path.dirname(path) or "."
        writable = os.access(place, os.W_OK) and not os.path.isdir(path)
        if name not in read and not name.startswith("GRIFFIN_TEST_"):
            yield Finding("note", "variables", f"nothing reads {name}", f"read are {', '.join(read)}")
        elif value and name == misses.ENVIRONMENT_VARIABLE and not writable:
            fix = "name a file in a folder that can be written, or unset it"
            yield Finding("problem", "variables", f"{name}={value} cannot be written", fix)
        elif value and name in read and name != misses.ENVIRONMENT_VARIABLE and not os.path.exists(path):
            yield Finding("problem", "variables", f"{name}={value} points to nothing", "correct it or unset it")
        else:
            yield Finding("ok", "variables", f"{name}={value}")


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
        reason = "it gives no reason"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            reason = quoted(error, 200)
        what = f"there is an {card} driver, but torch sees no GPU: {reason}"
        yield Finding("problem", "GPU", what, "the driver may be older than this torch needs: see nvidia-smi, rocm-smi")


def gpu_users(index: int) -> Iterator[Finding]:
    """Other processes on an NVIDIA GPU, which share its clock, its memory and its bandwidth."""
    if torch.version.hip is not None:
        return
    import pynvml

    answers, refused = devices.ask_nvml(
        index, {"users": lambda gpu: pynvml.nvmlDeviceGetComputeRunningProcesses(gpu())}
    )
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
