"""What to compile: the representative requests of the catalogue, their launches, and their reports."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from griffin_kernels import catalog, errors
from griffin_kernels.contract import BenchCase, Case, Variant, config_dict
from griffin_kernels.launch import Launch, Step, described_for
from tuning.static.compiling import compile_launch, shared_bytes
from tuning.static.describe import meta_call
from tuning.static.kernel_digest import digest
from tuning.static.recorded import CompileRequest, StaticReport
from tuning.static.report import analyse
from tuning.static.targets import target


def representative(cases: Iterable[BenchCase]) -> list[Case]:
    """The first bench case for a GPU of every dtype that has one."""
    found: dict[str, Case] = {}
    for case in cases:
        if case.tag == "bench" and case.where != "cpu":
            found.setdefault(case.dtype, case)
    return list(found.values())


def compilable(op_name: str | None = None, variant: str | None = None) -> Iterator[Variant]:
    """Variants of the catalogue that describe their launches; ``variant`` is a key or a name."""
    for op in catalog.ops().values():
        if op_name in (None, op.name):
            for found in catalog.variants(op.name).values():
                if found.launches is not None and variant in (None, found.key, found.name):
                    yield found


def requests_for(
    variant: Variant, cases: Iterable[Case], targets: Iterable[str], every_config: bool = False
) -> Iterator[CompileRequest]:
    """Default configuration, or every one, x cases x targets, but for what the variant refuses."""
    names = list(targets)
    for case in cases:
        for config in variant.all_configs() if every_config else [variant.config()]:
            for name in names:
                if variant.reject(case, target(name).device, config) is None:
                    yield CompileRequest(variant.key, case.plain(), config_dict(config), name)


def launches_of(variant: Variant, case: Case, config: Any, target_name: str) -> list[tuple[int, Launch]]:
    """(step, launch) of a candidate, described for a target. CatalogError where its variant describes none."""
    if variant.launches is None:
        raise errors.CatalogError(f"{variant.key} has no launches to compile")
    with described_for(target_name):
        steps: list[Step] = variant.launches(_call(variant.op, case), {}, config)
    return [(index, step) for index, step in enumerate(steps) if isinstance(step, Launch)]


@functools.lru_cache(maxsize=512)
def _call(op_name: str, case: Case) -> Any:
    op = catalog.op(op_name)
    # a row of the op's table that is no bench case is small, and keeps its strides
    return meta_call(op, next((row for row in op.cases if row.key == case.key), case))


def compiled(request: CompileRequest) -> list[StaticReport]:
    """Compile the launches of a request, and report where it asks for that. Raises whatever the compiler raises."""
    where, variant = target(request.target), catalog.variant(request.variant)
    config = variant.parse_config(request.config)
    reports = []
    for step, launch in launches_of(variant, request.case, config, request.target):
        if request.step not in (None, step):
            continue
        if request.until == "lowered":
            shared_bytes(launch, where)
        elif request.until == "cached":
            compile_launch(launch, where)
        else:
            report = analyse(launch, where, variant=variant, case=request.case.key, config=config)
            reports.append(msgspec.structs.replace(report, code=digest(launch, where)))
    return reports
