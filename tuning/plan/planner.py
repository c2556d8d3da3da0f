"""What a run will try: for every op and case, the candidates in order of work."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from griffin_kernels import catalog, errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import BenchCase, Case, Op, Variant, config_key
from griffin_kernels.device import Device
from griffin_kernels.misses import Miss
from tuning.plan.budget import BUDGETS, LONGEST_S, Budget
from tuning.plan.sharding import WHOLE, Shard, share
from tuning.record.journal_records import Place
from tuning.search.strategies import named

WEIGHTS: Mapping[str, float] = {
    "linear_scan": 3.0,
    "linear_scan_bwd": 3.0,
    "rg_lru": 3.0,
    "rg_lru_bwd": 3.0,
    "rg_lru_gated": 1.0,
    "rg_lru_gated_bwd": 1.0,
    "local_attention": 3.0,
    "local_attention_bwd": 3.0,
    "temporal_conv1d": 2.0,
    "recurrent_block": 3.0,
    "temporal_conv1d_bwd": 1.0,
    "recurrent_block_bwd": 2.0,
    "gated_gelu": 1.0,
    "gated_gelu_bwd": 1.0,
    "geglu": 2.0,
    "geglu_bwd": 1.0,
    "rg_lru_step": 2.0,
    "rg_lru_extend": 2.0,
    "recurrent_block_extend": 2.0,
    "temporal_conv1d_step": 1.0,
    "linear_scan_step": 1.0,
    "linear_scan_extend": 1.0,
    "temporal_conv1d_extend": 1.0,
    "recurrent_block_step": 2.0,
    "local_attention_step": 2.0,
    "local_attention_extend": 2.0,
    "rms_norm": 1.0,
    "rms_norm_bwd": 1.0,
}
"""The order in which ops are tuned, heaviest first, and how much of a short time each gets; others follow by name, with
1. An op comes after those that its variants call."""


@dataclass(frozen=True)
class Options:
    """What the user asked for. Empty tuples mean everything that fits the device.

    strategy: of search, by name; empty for what suits a space. timeout: seconds that any stage of a candidate may take
    at most. memory_gib: resident memory of a worker at most; 0 for most of what is free. in_process: no workers.
    misses: recorded cases, tuned in place of the op's bench cases. minutes: after them no candidate is begun, and no
    case that cannot be decided in time; 0 for no end. baselines: race what is published against every baseline, the
    compiled ones and other projects' included, and search nothing. shard: the part of the plan that is tuned here.
    """

    ops: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    budget: str = "default"
    device: str = ""
    strategy: str = ""
    timeout: float = LONGEST_S
    memory_gib: float = 0.0
    in_process: bool = False
    misses: tuple[Miss, ...] = ()
    minutes: float = 0.0
    baselines: bool = False
    shard: Shard = WHOLE

    def __post_init__(self) -> None:
        for name in ("timeout", "memory_gib", "minutes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise errors.ArgumentError(f"{name} is {value:g}, expected a number from 0 up")
        if self.timeout == 0:
            raise errors.ArgumentError("timeout is 0, expected a number of seconds")

    @property
    def whole(self) -> bool:
        """Whether nothing is left out: all ops, cases and dtypes are searched."""
        some = self.ops or self.cases or self.dtypes or self.misses or self.baselines
        return not some and self.shard.count == 1

    def limits(self) -> Budget:
        """The budget by name, without a search where baselines are raced; ArgumentError lists the names."""
        if self.budget not in BUDGETS:
            raise errors.ArgumentError(f"no budget {self.budget!r}; there are {', '.join(BUDGETS)}")
        budget = BUDGETS[self.budget]
        few: dict[str, Any] = {"share": 0.0, "least_tries": 2, "most_tries": 2, "hurried": 2, "gpu_compiled": True}
        return dataclasses.replace(budget, **few) if self.baselines else budget


@dataclass(frozen=True)
class Planned:
    """One candidate. reason: why it cannot run (then it is recorded and not tried)."""

    variant: Variant
    config: Any
    reason: str | None = None

    def key(self, case: Case, device: Device) -> str:
        """``op/variant/case/config/device``."""
        return f"{self.variant.key}/{case.key}/{config_key(self.config)}/{device.slug}"


@dataclass(frozen=True)
class Job:
    """One op and case: everything that competes for it. default: what dispatch would run untuned."""

    op: Op
    case: Case
    candidates: tuple[Planned, ...]
    default: Planned | None

    @property
    def place(self) -> Place:
        """Op and key of the case."""
        return self.op.name, self.case.key

    @property
    def competitors(self) -> list[Planned]:
        """The candidates that a search chooses among: those that can run and are no baselines."""
        return [p for p in self.candidates if p.reason is None and not p.variant.baseline]


def make(options: Options, device: Device) -> list[Job]:
    """Jobs in order: ops as they were named, or by weight; see ``WEIGHTS``.

    Raises UnknownOpError, DtypeError or ArgumentError naming what does not exist and listing what does.
    """
    budget = options.limits()
    if options.strategy:
        named(options.strategy)
    for name in options.dtypes:
        if name not in DTYPE_BYTES:
            raise errors.DtypeError(f"no dtype {name!r}; there are {', '.join(DTYPE_BYTES)}")
    chosen = [catalog.op(name) for name in options.ops or ops_by_weight()]
    # the recorded misses of an op where there are any to tune, else its bench cases
    missed = [(op, miss.case) for op in chosen for miss in options.misses if miss.op == op.name]
    bench = [(op, case) for op in chosen if not options.misses for case in bench_cases(op, device)]
    available: list[tuple[Op, Case]] = [*missed, *bench]
    take_all = bool(budget.thorough or options.cases or options.dtypes)
    jobs = [
        _job(op, case.plain(), device, slow=device.kind == "cpu" or budget.gpu_compiled)
        for op, case in available
        if case.dtype in (options.dtypes or [case.dtype])
        and any(fnmatch.fnmatchcase(case.key, f"*{pattern}*") for pattern in options.cases or ["*"])
        and (take_all or not (isinstance(case, BenchCase) and case.thorough))
    ]
    if not jobs:
        keys = ", ".join(dict.fromkeys(case.key for _, case in available))
        where = "among the recorded misses" if options.misses else "on this device"
        raise errors.ArgumentError(
            f"no case matches --cases {list(options.cases)} --dtypes {list(options.dtypes)}; "
            f"{where} there are {keys or 'none of these ops'}"
        )
    return share(jobs, options.shard)


def ops_by_weight() -> list[str]:
    """Every op, the heaviest first."""
    return sorted(catalog.ops(), key=lambda name: [*WEIGHTS, name].index(name))


def bench_cases(op: Op, device: Device) -> list[BenchCase]:
    """The op's bench cases that are meant for a kind of device."""
    where = ("any", "cpu") if device.kind == "cpu" else ("any", "gpu")
    return [case for case in op.cases_tagged("bench") if case.where in where]


def one_case(text: str, cases: Sequence[Case]) -> Case:
    """The only case whose key is ``text``, or else holds it; ArgumentError lists what there is."""
    by_key = {case.key: case for case in cases}  # a case may be meant for CPUs and for GPUs
    found = [key for key in by_key if key == text] or [key for key in by_key if text in key]
    if len(found) != 1:
        problem = "several cases match" if found else "no case matches"
        raise errors.ArgumentError(f"{problem} {text!r}: {', '.join(found or by_key)}")
    return by_key[found[0]]


def compiles_itself(variant: Variant) -> bool:
    """Whether a variant compiles at its first call: through torch.compile, or inside another project's package."""
    return variant.backend in ("compiled", "peer")


def _job(op: Op, case: Case, device: Device, slow: bool) -> Job:
    """The job of a case. slow: include baselines that compile at their first call."""
    planned: list[Planned] = []
    for variant in catalog.variants(op.name).values():
        if variant.baseline and compiles_itself(variant) and not slow:
            continue
        planned += [Planned(variant, config) for config in variant.configs(case, device)] or [
            Planned(variant, variant.config(), variant.reject(case, device, variant.config()))
        ]
    able = [p for p in planned if p.reason is None and not p.variant.baseline and p.config == p.variant.config()]
    default = max(able, key=lambda p: (p.variant.rank(case, device), p.variant.name), default=None)
    # default and baselines first: the others are cut off against their times
    planned.sort(key=lambda p: (p is not default, not p.variant.baseline, -p.variant.rank(case, device)))
    return Job(op, case, tuple(planned), default)
