"""Candidates that do to their process what real ones have done: for tests of the tuner's isolation.

``prepare`` makes the catalogue hold them, in the tuner and (by name, ``tests.hostile:prepare``) in its workers.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from griffin_kernels import catalog
from griffin_kernels.contract import NoConfig, Variant
from tuning.plan import planner

OP = "linear_scan"
CASE = catalog.op(OP).cases_tagged("smoke")[0]
GIB = 2**30


@dataclass(frozen=True)
class Hostile:
    """behave: called with the right outputs. status and words: what the journal has to say of it."""

    behave: Callable
    status: str
    words: str


def segfault(out):
    ctypes.string_at(0)


def endless(out):
    while True:
        time.sleep(0.01)


def deaf(out):
    """Ignores every signal that can be ignored, and holds the interpreter's lock."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def hoard(out):
    held = []
    while True:
        held.append(torch.ones(2**25))


def reserve(out):
    """Asks for memory without end and touches none of it."""
    held = []
    while True:
        held.append(np.empty(8 * GIB, dtype=np.uint8))


@functools.cache
def gigabyte():
    line = b"x" * 2**20
    for _ in range(1024):
        os.write(1, line)


def chatter(out):
    """Right, but its first call prints a gigabyte."""
    gigabyte()
    return out


def overflow(out):
    """Runs out of stack, as a compiler that recurses does."""
    sys.setrecursionlimit(10**9)

    def down():
        return eval("down()", {"down": down})

    down()


def orphan(out):
    """Leaves a child behind that would live for an hour."""
    if os.fork() == 0:
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_(error):
    raise error


HOSTILE = {
    "segfault": Hostile(segfault, "crashed", "SIGSEGV"),
    "endless": Hostile(endless, "timeout", "was killed after"),
    "deaf": Hostile(deaf, "timeout", "was killed after"),
    "hoards": Hostile(hoard, "memory", "GiB"),
    "reserves": Hostile(reserve, "memory", "Unable to allocate"),
    "wrong": Hostile(lambda out: (out[0] * 1.001, *out[1:]), "wrong", "h is wrong"),
    "nan": Hostile(lambda out: (torch.full_like(out[0], float("nan")), *out[1:]), "wrong", "relative norm inf"),
    "chatters": Hostile(chatter, "ok", ""),
    "raises": Hostile(lambda out: raise_(RuntimeError("boom")), "failed", "RuntimeError: boom"),
    "exits": Hostile(lambda out: os._exit(0), "crashed", "status 0"),
    "leaves": Hostile(lambda out: sys.exit(3), "crashed", "status 3"),
    "kills": Hostile(lambda out: os.killpg(0, signal.SIGKILL), "crashed", "SIGKILL"),
    "overflows": Hostile(overflow, "crashed", "SIGSEGV"),
    "orphans": Hostile(orphan, "crashed", "SIGSEGV"),
    "sticky": Hostile(
        lambda out: raise_(RuntimeError("CUDA error: an illegal memory access was encountered")),
        "crashed",
        "illegal memory access",
    ),
}


def planted(name: str, behave: Callable) -> Variant:
    """linear_scan's eager.sequential with something done to its outputs."""
    real = catalog.variant(f"{OP}/eager.sequential")

    def run(call, config):
        return behave(real.run(call, NoConfig()))

    run.__module__ = real.run.__module__
    return Variant(OP, f"eager.{name}", "planted", run, NoConfig)


def prepare(names: tuple[str, ...] = tuple(HOSTILE)) -> None:
    """Only a right candidate, a baseline and the hostile ones compete, for one small case."""
    everything = catalog.variants
    kept = {n: v for n, v in everything(OP).items() if n in ("eager.sequential", "eager.loop")}
    added = {v.name: v for v in (planted(name, HOSTILE[name].behave) for name in names)}

    def variants(op_name):
        return MappingProxyType(kept | added if op_name == OP else dict(everything(op_name)))

    catalog.variants = variants
    planner.bench_cases = lambda op, device: [CASE] if op.name == OP else []
