"""What may be wrong with this installation: versions, the C++ compiler, numba's cache, environment variables."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata

from griffin_kernels import catalog, misses, registry
from griffin_kernels import device as devices
from griffin_kernels.validity import quoted
from roofline import store
from tuning.doctor import Finding

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
    sign, limit = bound[:2].rstrip("0123456789"), bound.lstrip("<>=!~ ")
    have, need = _numbers(version), _numbers(limit)
    if sign == ">=":
        return have >= need
    return have[: len(need)] < need if sign == "<" else True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


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
        if name not in read and not name.startswith("GRIFFIN_TEST_"):
            yield Finding("note", "variables", f"nothing reads {name}", f"read are {', '.join(read)}")
        elif value and name == misses.ENVIRONMENT_VARIABLE and not _is_writable(path):
            fix = "name a file in a folder that can be written, or unset it"
            yield Finding("problem", "variables", f"{name}={value} cannot be written", fix)
        elif value and name in read and name != misses.ENVIRONMENT_VARIABLE and not os.path.exists(path):
            yield Finding("problem", "variables", f"{name}={value} points to nothing", "correct it or unset it")
        else:
            yield Finding("ok", "variables", f"{name}={value}")


def _is_writable(path: str) -> bool:
    """Whether a file can be written, or made."""
    return not os.path.isdir(path) and os.access(
        path if os.path.exists(path) else os.path.dirname(path) or ".", os.W_OK
    )
