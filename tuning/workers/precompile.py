"""Precompiles a CPU's variants: calls every native and torch.compile'd one once, in a process per core, before timing.

Such variants compile at their first call, on one core, and cache the result on disk for the process that times them. A
call that hangs is recorded as a timeout and not repeated. A candidate that fails or crashes here is tried in its turn,
and recorded then. A GPU's kernels are compiled beside what is timed
(``tuning.workers.compile_pool``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from griffin_kernels import device as devices
from griffin_kernels.contract import config_dict
from tuning.plan.planner import Job, Planned
from tuning.static.compile_request import CompileRequest
from tuning.workers.limits import Limits
from tuning.workers.messages import Start
from tuning.workers.process import Death, Worker, ask_all

BACKENDS = ("compiled", "numba")
"""What compiles at its first call, the slowest compiler first."""


def first_calls(jobs: Sequence[Job], known: Callable[[Job, Planned], bool]) -> list[list[CompileRequest]]:
    """One call per variant and case, an op's of one backend in one group, in the order to begin them.

    Variants of an op may share kernels; ops seldom do, so groups may run at once. known: whether a candidate was tried
    before: what it needs is on disk.
    """
    groups: dict[tuple[int, str], list[CompileRequest]] = {}
    for job in jobs:
        by_variant: dict[str, list[Planned]] = {}
        for planned in job.candidates:
            if planned.reason is None and planned.variant.backend in BACKENDS:
                by_variant.setdefault(planned.variant.key, []).append(planned)
        for key, candidates in by_variant.items():
            if any(known(job, planned) for planned in candidates):
                continue
            usual = min(candidates, key=lambda p: p.config != p.variant.config())
            group = groups.setdefault((BACKENDS.index(usual.variant.backend), job.op.name), [])
            group.append(CompileRequest(key, job.case, config_dict(usual.config)))
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -len(groups[key])))]


def run(
    groups: Sequence[Sequence[CompileRequest]],
    start: Start,
    limits: Callable[[], Limits],
    hung: Callable[[CompileRequest, Death], None],
    processes: int = 0,
) -> None:
    """Make the calls, each group in one process; returns when all are done.

    start: what every process is told first. limits: made once per process. hung: told of calls that were killed when
    their time was over. processes: by default one per core. WorkerError where none can be made ready.
    """
    workers = [Worker(limits(), [start]) for _ in range(min(processes or len(devices.cores()), len(groups)))]
    for request, answer in ask_all(groups, workers, Worker.ask):
        # the rest of a group whose process died is compiled in its turn
        if isinstance(answer, Death) and answer.status == "timeout" and answer.stage.name:
            hung(request, answer)
