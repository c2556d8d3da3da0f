"""A tune run of a few seconds for tests: smoke cases, eager variants.

Run as ``python -m tests.small_tune FOLDER [--resume]``; its candidates then run in a worker, as users' do. ``OPTIONS``
have them run in the test's own process.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console

from griffin_kernels import catalog, device, dispatch
from roofline import probes
from roofline.console import plain_errors
from tuning import run as runs
from tuning.decide import decider, history
from tuning.measure import rounds
from tuning.plan import planner
from tuning.record import journal
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.ui import terminal

CACHE_BYTES = 4 * 2**20
"""Of a last-level cache by which buffers are made that are to lie outside it; to fill larger ones takes too long."""


def shrink(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the plan small, and what is measured of the machine: what is tried changes, how it is tried does not.

    replace: how to set an attribute; in a test, ``monkeypatch.setattr``, which sets it back.
    """
    everything, noise = catalog.variants, rounds.machine_noise

    def eager_only(op_name):
        return MappingProxyType({n: v for n, v in everything(op_name).items() if v.backend == "eager"})

    def with_small_cache(device):
        return dataclasses.replace(device, last_level_cache_bytes=CACHE_BYTES)

    replace(catalog, "variants", eager_only)
    replace(planner, "bench_cases", lambda op, device: list(op.cases_tagged("smoke")[:3]))
    replace(probes, "BUFFER_BYTES", {"cpu": 4 * CACHE_BYTES})
    replace(probes, "roofs", lambda device: probes.dram(with_small_cache(device)))
    replace(runs, "ceilings_s", lambda budget, minutes: 0.05)
    replace(rounds, "machine_noise", lambda device: noise(with_small_cache(device)))
    for module in (decider, history):
        replace(module, "UNQUIET", math.inf)  # races of microseconds, on a machine that does other things


def small(monkeypatch, tmp_path):
    """A fixture: the plan is small, results go to a folder of the test's, and nothing of it stays."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shrink(monkeypatch.setattr)
    dispatch.refresh()
    yield
    dispatch.refresh()


class Quiet:
    """A listener that listens to nothing."""

    def __getattr__(self, name):
        return lambda *args, **facts: None


def run(folder, options=None, resume=False, listener=None):
    """A tune of this CPU with its results in ``folder``; ``OPTIONS`` by default."""
    paths = Paths.choose(folder, device.cpu())
    return tune(OPTIONS if options is None else options, paths, listener or Quiet(), "griffin tune", resume)


def records(folder, kind):
    """The records of one kind in the journal of ``folder``."""
    return [r for r in journal.read(folder / journal.FILE_NAME) if isinstance(r, kind)]


OPTIONS = planner.Options(ops=("linear_scan", "linear_scan_bwd"), budget="quick", device="cpu", in_process=True)


def main(folder: str, *flags: str) -> int:
    shrink()
    options = dataclasses.replace(OPTIONS, in_process=False)
    try:
        with plain_errors(Console(stderr=True)):
            output, resume = terminal.RunOutput(Console()), "--resume" in flags
            done = terminal.run(output, options, Path(folder), resume, "griffin tune", "tests.small_tune:shrink")
    except typer.Exit as ended:
        return ended.exit_code
    if done is None or done.interrupted:
        terminal.ignore_interrupts()
        return 130
    return 0


if __name__ == "__main__":
    # a shell that starts tests in the background has them ignore Ctrl-C, which tests then send
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(*sys.argv[1:]))
