"""Measures every point of a case for replay: ``python -m tuning.replay.record --out FOLDER [--ops ...] [--cases ...]``.

All points take turns: each round samples every point once, in a new random order, so that drift of the machine hits all
alike and can be taken out. Points that are far behind drop out early; those near the best are sampled until the best is
known well, because the fastest of many noisy medians looks faster than it is. One file per case, written when it is
done; a case whose file holds the same source on the same device is passed over, so a broken run goes on where it was.

No output is checked here: that is the tuner's work, and the tests'.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from griffin_kernels import device as devices
from griffin_kernels import errors, verify
from griffin_kernels.contract import config_dict
from griffin_kernels.device import Device
from griffin_kernels.records import DeviceRecord
from griffin_kernels.texts import now
from roofline import stats
from roofline.console import StatusLine
from tuning.measure import timing
from tuning.plan import planner
from tuning.plan.budget import SLOW_FACTOR
from tuning.plan.planner import Job, Planned
from tuning.replay import packed
from tuning.replay.packed import MeasuredPoint, Packed

CASES: Mapping[str, tuple[str, ...]] = {
    "linear_scan": ("B1-T2048-D2560-float32", "B1-T2048-D2560-bfloat16", "B8-T512-D2560-float32"),
    "linear_scan_bwd": ("B1-T2048-D2560-float32", "B1-T2048-D4096-float32"),
    "local_attention": ("B1-T1024-Hq6-Hkv1-d128-W1024-float32", "B1-T2048-Hq10-Hkv1-d256-W512-float32"),
    "local_attention_bwd": ("B1-T1024-Hq6-Hkv1-d128-W1024-float32",),
    "temporal_conv1d": ("B1-T2048-D2560-K4-float32", "B1-T1024-D1024-K4-float32"),
    "temporal_conv1d_bwd": ("B1-T2048-D2560-K4-float32",),
}
"""What is recorded where nothing is asked for: cases with enough points on a CPU for a search to make a difference."""

SLOW_SAMPLES, LEAST, MOST = 3, 11, 101
"""Rounds that every point takes part in; that every point takes part in that is not slow; that there are at most."""

NEAR, NEAREST = 1.25, 8
"""Points within this factor of the best, and at least so many, take part until the best is known."""

KNOWN = 0.004
"""The best is known when its interval is narrower than this share of it, to either side."""

DOUBTFUL = 0.015
"""Where the best is known worse than this, what is within 2% of it is not known."""

SPENT_SAMPLES = 5
"""Samples that count as what a tuner pays for a point, besides its first call."""


@dataclasses.dataclass
class _Runner:
    """A point while it is being measured."""

    planned: Planned
    sample: timing.Sampler | None = None
    problem: str | None = None
    first_s: float = 0.0
    samples: list[float] = dataclasses.field(default_factory=list)

    def prepare(self, inputs: timing.Rotation, device: Device) -> None:
        """Two first calls: what the first compiles, other points share; the second is what the point itself costs."""
        run = functools.partial(self.planned.variant.run, config=self.planned.config)
        try:
            timing.sampler(run, inputs, device)
            began = time.monotonic()
            self.sample = timing.sampler(run, inputs, device)
            self.first_s = time.monotonic() - began
        except Exception as error:  # whatever a kernel raises is that point's result
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def measured(self) -> MeasuredPoint:
        return MeasuredPoint(
            variant=self.planned.variant.name,
            config=config_dict(self.planned.config),
            status="failed" if self.problem else "ok",
            problem=self.problem,
            samples_s=self.samples,
            seconds_spent=self.first_s + sum(self.samples[:SPENT_SAMPLES]),
        )


def exhaustive(job: Job, device: Device, seconds: float, say: Callable[[str], None]) -> Packed:
    """Measure every point of a job. seconds: after it the points near the best get no further rounds."""
    began = time.monotonic()
    inputs = job.op.make_inputs(job.case, device.torch_device, 0)
    own = {name: verify.copy_of(inputs[name]) for name in job.op.in_place}
    rotation = timing.copies({**inputs, **own}, device, job.op.call)
    runners = [_Runner(planned) for planned in job.competitors]
    for number, runner in enumerate(runners, start=1):
        say(f"first calls, {number} of {len(runners)}")
        runner.prepare(rotation, device)
    order = random.Random(f"{job.op.name}/{job.case.key}")
    live = [r for r in runners if r.sample is not None]
    if not live:
        raise errors.NoVariantError(f"{job.op.name} {job.case.key}: nothing runs; the first says {runners[0].problem}")
    for number in range(1, MOST + 1):
        say(f"round {number}, {len(live)} points")
        for runner in order.sample(live, len(live)):
            assert runner.sample is not None
            runner.samples.append(runner.sample())
        if number == SLOW_SAMPLES:
            best = min(stats.median(r.samples) for r in live)
            live = [r for r in live if min(r.samples) <= SLOW_FACTOR * best]
        elif number == LEAST:
            medians = _packed(job, device, runners).seconds
            known = {id(r): s or 0.0 for r, s in zip(runners, medians, strict=True)}
            live.sort(key=lambda r: known[id(r)])
            limit = NEAR * known[id(live[0])]
            live = [r for place, r in enumerate(live) if place < NEAREST or known[id(r)] <= limit]
        elif number > LEAST and number % 10 == 0:
            if time.monotonic() - began > seconds or _packed(job, device, runners).uncertainty < KNOWN:
                break
    return _packed(job, device, runners)


def _packed(job: Job, device: Device, runners: Sequence[_Runner]) -> Packed:
    return Packed.of(
        job,
        [r.measured() for r in runners],
        device=DeviceRecord(device.validity(), devices.provenance(device)),
        date=now(),
        source="tuning.replay.record: every point timed in interleaved rounds on the device itself",
        interleaved=True,
    )


def jobs_for(ops: Sequence[str], cases: Sequence[str], device: Device) -> list[Job]:
    """The jobs of ``CASES``, or of what was asked for, with all their configurations."""
    jobs = planner.make(planner.Options(tuple(ops), tuple(cases), budget="thorough", device=device.kind), device)
    if ops or cases:
        return jobs
    return [job for job in jobs if job.case.key in CASES.get(job.op.name, ())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record case after case; 2 after a wrong option, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tuning.replay.record", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for one file per case")
    parser.add_argument("--ops", type=_split, default=(), help="ops, comma-separated; a chosen few by default")
    parser.add_argument("--cases", type=_split, default=(), help="parts of the keys of cases, comma-separated")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<index>")
    parser.add_argument("--seconds", type=float, default=60.0, help="per case, beyond the least that every point gets")
    parser.add_argument("--again", action="store_true", help="measure cases again that are there")
    given = parser.parse_args(arguments)
    status = StatusLine(Console(stderr=True))
    try:
        device = devices.detect(given.device)
        for job in jobs_for(given.ops, given.cases, device):
            path = given.out / packed.file_name(job.op.name, job.case.key)
            if not given.again and path.exists():
                there = packed.read(path)
                if there.source_hashes == packed.source_hashes(job) and there.device.validity == device.validity():
                    print(f"{path.name}: there", flush=True)
                    continue
            began = time.monotonic()
            found = exhaustive(job, device, given.seconds, status)
            packed.write(given.out, found)
            failed = sum(not point.timed for point in found.points)
            doubt = ": the machine was not quiet, measure it --again" if found.uncertainty > DOUBTFUL else ""
            print(
                f"{path.name}: {len(found.points)} points, {failed} failed, best {found.optimum_s:.4g} s "
                f"(+-{found.uncertainty:.1%}{doubt}), {time.monotonic() - began:.0f} s",
                flush=True,
            )
    except errors.GriffinKernelsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; cases that are done are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
