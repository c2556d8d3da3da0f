"""Without a GPU, kernels run in Triton's interpreter: that is said before Triton is imported."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# test processes share the cores: threads of one that wait by spinning take them from the others. A process by itself,
# as of benchmarks, runs as users' programs do.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from tests import purity
from tests.interpreter import quicken

if TYPE_CHECKING:
    from playwright.sync_api import Browser

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    quicken()


@pytest.fixture(autouse=True, scope="session")
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was tuned on this machine for real, or ships, is not what tests read, nor where they write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("griffin_kernels.registry_files.SHIPPED", tmp_path_factory.mktemp("shipped"))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("GRIFFIN_KERNELS_REGISTRY", raising=False)
        yield


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and say so; nothing else is ever skipped."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU that torch can use")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests marked ``unit`` start no process and compile nothing, with their fixtures; see tests/purity.py."""
    with purity.kept() if is_unit(item) else contextlib.nullcontext():
        return (yield)


def is_unit(item: pytest.Item) -> bool:
    """Whether a test is marked ``unit``, in its file or itself, and not ``process`` itself."""
    return item.get_closest_marker("unit") is not None and item.get_closest_marker("process") is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium that has no window and asks the network for nothing."""
    from playwright.sync_api import sync_playwright

    from tests.browsing import ARGUMENTS

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("no Chromium on PATH; install it (Debian: apt-get install chromium) to test the report")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(autouse=True)
def same_numbers():
    """A test that draws from torch's own generator draws the same every time, alone and among others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def any_noise(monkeypatch):
    """Tests race calls of microseconds while others run: how noisy that is matters only where a test asks."""
    for name in ("tuning.decide.decider", "tuning.decide.history"):
        if (module := sys.modules.get(name)) is not None:
            monkeypatch.setattr(module, "UNQUIET", math.inf)
