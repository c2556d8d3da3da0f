"""One plan shared out among machines that know nothing of each other: ``griffin tune --shard 2/8``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from griffin_kernels import errors

if TYPE_CHECKING:
    from tuning.plan.planner import Job


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` parts of a plan, from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Shard:
        """``2/8``; ArgumentError for anything else."""
        index, slash, count = text.partition("/")
        if slash and index.strip().isdecimal() and count.strip().isdecimal():
            made = cls(int(index), int(count))
            if 1 <= made.index <= made.count:
                return made
        raise errors.ArgumentError(f"--shard is {text!r}, expected I/N with I from 1 to N, such as 2/8")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()


def share(jobs: Sequence[Job], shard: Shard) -> list[Job]:
    """The jobs of one shard, in their order; every job is in exactly one shard, the same on every machine.

    The heaviest first, each to the shard that has least, op by op: an op's cases are spread, since an op may call
    another, whose entries a shard then has near enough. Raises ArgumentError for a shard that is left without any.
    """
    load = [0.0] * shard.count
    mine: set[tuple[str, str]] = set()
    for op in dict.fromkeys(job.op.name for job in jobs):
        own = sorted((job for job in jobs if job.op.name == op), key=lambda job: (-weight(job), job.case.key))
        for job in own:
            least = min(range(shard.count), key=lambda index: (load[index], index))
            load[least] += weight(job)
            if least == shard.index - 1:
                mine.add(job.place)
    if not mine:
        raise errors.ArgumentError(f"--shard {shard} has no case: there are {len(jobs)} for {shard.count} shards")
    return [job for job in jobs if job.place in mine]


def weight(job: Job) -> float:
    """What a job takes, in candidates: each is compiled and checked, which takes longer than the races."""
    return float(len(job.candidates))
