"""What to compile: Request, the representative ones of the catalogue, and their answers."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import msgspec

from griffin_kernels import catalog, errors
from griffin_kernels.contract import BenchCase, Case, Variant, config_dict
from griffin_kernels.launch import Launch, Step, described_for
from tuning.static.compiling import shared_bytes
from tuning.static.describe import meta_call
from tuning.static.kernel_digest import digest
from tuning.static.recorded import StaticReport
from tuning.static.report import analyse
from tuning.static.targets import Target, target


class Request(msgspec.Struct, frozen=True):
    """One variant to compile: its key, the key of a case of its op, configuration values, the name of a target.

    lowered: only as far as Triton's own stages go, up to LLVM. That takes a fraction of the time, and has no report.
    """

    variant: str
    case: str
    config: dict[str, Any]
    target: str
    lowered: bool = False


class Failure(msgspec.Struct, frozen=True):
    """A request that could not be compiled, with the compiler's words."""

    request: Request
    reason: str


class Answers(msgspec.Struct):
    """Reports in the order of the requests, one per launch, and what could not be compiled."""

    reports: list[StaticReport]
    failures: list[Failure]


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
) -> Iterator[Request]:
    """Default configuration, or every one, x cases x targets, but for what the variant refuses."""
    names = list(targets)
    for case in cases:
        for config in variant.all_configs() if every_config else [variant.config()]:
            for name in names:
                if variant.reject(case, target(name).device, config) is None:
                    yield Request(variant.key, case.key, config_dict(config), name)


def launches_of(request: Request, where: Target) -> list[Step]:
    """The steps of a request, described for its target; CatalogError where its variant has none."""
    variant = catalog.variant(request.variant)
    op = catalog.op(variant.op)
    case = next(case for case in op.cases if case.key == request.case)
    if variant.launches is None:
        raise errors.CatalogError(f"{variant.key} has no launches to compile")
    with described_for(where.name):
        return variant.launches(meta_call(op, case), {}, variant.parse_config(request.config))


def answer(request: Request, where: Target) -> list[StaticReport | Failure]:
    """Reports on every launch of a request, or the one reason why there are none."""
    variant = catalog.variant(request.variant)
    config = variant.parse_config(request.config)
    _compile_the_same_every_time()
    try:
        launches = [step for step in launches_of(request, where) if isinstance(step, Launch)]
        if request.lowered:
            for launch in launches:
                shared_bytes(launch, where)
            return []
        reports = [analyse(launch, where, variant=variant, case=request.case, config=config) for launch in launches]
    except Exception as error:  # the compiler raises whatever it likes, and one failure must not end the run
        return [Failure(request, f"{type(error).__name__}: {str(error)[-2000:]}")]
    codes = [digest(launch, where) for launch in launches]
    return [msgspec.structs.replace(found, code=each) for found, each in zip(reports, codes, strict=True)]


_ADDR_NO_RANDOMIZE = 0x0040000
"""A flag of Linux's personality(2)."""


@functools.cache
def _compile_the_same_every_time() -> None:
    """Have processes that this one begins laid out alike, where Linux lets it.

    What ptxas makes of equal PTX follows from where its memory lies: rg_lru_gates_chunks on sm_90 has 123 registers in
    some of its runs and 126 in others.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.personality(library.personality(0xFFFFFFFF) | _ADDR_NO_RANDOMIZE)


def _answer(request: Request) -> list[StaticReport | Failure]:
    return answer(request, target(request.target))


def answer_all(requests: Sequence[Request], jobs: int = 1) -> Answers:
    """Compile now, in ``jobs`` processes; see ``worker`` for a process that may run the interpreter."""
    if jobs > 1 and len(requests) > jobs:
        # spawned, as a fork of a process with threads may hang
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            answers = list(pool.map(_answer, requests, chunksize=4))
    else:
        answers = [_answer(request) for request in requests]
    found = [result for results in answers for result in results]
    return Answers(
        [result for result in found if isinstance(result, StaticReport)],
        [result for result in found if isinstance(result, Failure)],
    )
