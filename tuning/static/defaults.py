"""What dispatch runs untuned on GPUs that are not here, and whether its blocks find the shared memory that they need.

For every GPU of the datasheets, every op and bench case: the variant of highest rank, its launches, and the shared
memory that Triton allots to each different one. Nothing is compiled to machine code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from griffin_kernels import catalog, dispatch
from griffin_kernels.contract import BenchCase
from griffin_kernels.datasheet import datasheet, skus
from griffin_kernels.registry import Registry
from tuning.static import recorded
from tuning.static.compiling import shared_bytes
from tuning.static.describe import compile_key, device_of
from tuning.static.requests import launches_of
from tuning.static.targets import target

SMALL = 16 * 1024
"""Bytes of shared memory that every architecture has several times: a kernel that needs no more in the recorded table,
for all its architectures, keeps no tiles there and is not looked at again."""


def gpus(targets: Iterable[str]) -> list[str]:
    """The GPUs of the datasheets that have one of these architectures and a known count of units."""
    wanted = set(targets)
    return [sku for sku in skus() if (sheet := datasheet(sku)).arch in wanted and sheet.units is not None]


def choices(sku: str) -> Iterator[tuple[BenchCase, dispatch.Choice]]:
    """What runs untuned on a GPU for every bench case of every op."""
    device = device_of(datasheet(sku))
    with dispatch.use(registry=Registry(device, [])):
        for op in catalog.ops().values():
            for case in op.cases_tagged("bench"):
                if case.where != "cpu":
                    yield case, dispatch.select(op.name, case, device)


def defaults(targets: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(kernel and what it needs, why it cannot start if it cannot) of all with tiles that run untuned on these GPUs.

    Each different kernel once, of the first GPU that runs it.
    """
    reports = recorded.load().reports
    small = {r.kernel for r in reports} - {r.kernel for r in reports if r.shared_bytes > SMALL}
    known: set[str] = set()
    for sku in gpus(targets):
        where = target(datasheet(sku).arch)
        for case, choice in list(choices(sku)):
            if choice.variant.launches is None:
                continue
            for _, launch in launches_of(choice.variant, case, choice.config, where.name):
                key = f"{where.name} {compile_key(launch)}"
                if key in known or launch.name in small:
                    continue
                known.add(key)
                needed, limit = shared_bytes(launch, where), where.shared_limit_bytes
                fits = limit is None or needed <= limit
                problem = "" if fits else f"{where.name} has {limit} bytes of shared memory for a block"
                name = f"{sku}: {case.op}/{choice.variant.name} {case.key} {launch.name}"
                yield f"{name} needs {needed} bytes", problem
