"""Kernels on a target: floors under each ceiling, predicted times, and what they are bound by. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from griffin_kernels.case import Pass
from roofline.pass_records import Part
from roofline.target import AnalysisTarget
from roofline.work import Kernel, PartKind

REGIMES = {
    "parameters": "reading the weights",
    "cache": "reading and writing keys, values and states",
    "activations": "moving activations through memory",
    "compute": "matrix and vector arithmetic",
    "special": "exp, tanh and their like",
    "launch": "launching kernels",
}
"""What a pass can be bound by -> in words. The regime of a pass is where most of its predicted time goes."""


@dataclass(frozen=True)
class KernelTime:
    """A kernel on a device. floor_s: by ceiling. predicted_s: split by regime. how: what the prediction rests on."""

    kernel: Kernel
    floors: dict[str, float]
    predicted: dict[str, float]
    how: str

    @property
    def floor_s(self) -> float:
        return max(self.floors.values(), default=0.0)

    @property
    def bound(self) -> str:
        """The ceiling that gives the floor."""
        return max(self.floors, key=lambda name: self.floors[name], default="none")

    @property
    def predicted_s(self) -> float:
        return sum(self.predicted.values())

    def part(self, kind: PartKind) -> Part:
        """The kernel's share of a part; parameters are counted for the whole part alone."""
        kernel, cost = self.kernel, self.kernel.cost
        return Part(
            kind=kind,
            layer=None,
            parameters=0,
            tensor_flops=cost.tensor_flops,
            vector_flops=cost.vector_flops,
            special_ops=cost.special_ops,
            bytes=cost.bytes_total,
            parameter_bytes=kernel.parameter_bytes,
            cache_bytes=kernel.cache_bytes,
            run_bytes=kernel.run_bytes,
            launches=kernel.launches,
            floor_s=self.floor_s,
            bound=self.bound,
            predicted_s=self.predicted_s,
        )


class Timer:
    """Times of kernels on a target. weights: bytes of all weights of the model."""

    def __init__(self, target: AnalysisTarget, dtype: str, weights: int) -> None:
        self.target, self.dtype, self.weights = target, dtype, weights
        self.usual = target.ceilings.usual

    def time(self, kernel: Kernel) -> KernelTime:
        floors = self.target.ceilings.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0)
        if kernel.case is not None and (tuned := self.target.tuned(kernel.case)) is not None:
            seconds = max(floors.values(), default=0.0) / tuned.share
            return KernelTime(kernel, floors, self._split(kernel, floors, seconds), tuned.why)
        if kernel.passes:
            parts = [self._pass(kernel, p) for p in kernel.passes]
            return KernelTime(kernel, floors, by_regime(parts), f"{kernel.launches} PyTorch kernels at the usual rates")
        reached = self._reached(self.usual.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0))
        how = "one kernel at the usual rates"
        if kernel.rows and self.dtype in self.usual.matmul_rows:
            rate = self.usual.matmul_flops_per_s(kernel.rows, self.dtype, kernel.parameter_bytes)
            assert rate is not None
            reached = {"tensor": kernel.cost.tensor_flops / rate}
            how = f"matrix products of about {kernel.rows} rows, as measured"
        seconds = max(reached.values(), default=0.0)
        return KernelTime(kernel, floors, self._launched(self._split(kernel, floors, seconds), 1), how)

    def _resident(self, kernel: Kernel) -> int:
        """Bytes that pass through the cache before a kernel's data is used again: all weights, or its own."""
        return self.weights if kernel.parameter_bytes else kernel.cost.bytes_total

    def _reached(self, floors: dict[str, float]) -> dict[str, float]:
        return {name: seconds / self.target.reach.get(name, 1.0) for name, seconds in floors.items()}

    def _pass(self, kernel: Kernel, step: Pass) -> dict[str, float]:
        """Seconds by regime of one pass of a composition, run ``count`` times."""
        reached = self._reached(self.usual.slow(step.cost, self.dtype, step.cost.bytes_total, launches=0))
        one = self._launched(_by_regime(reached, {"activations": 1.0}), 1)
        return {name: seconds * step.count for name, seconds in one.items()}

    def _split(self, kernel: Kernel, floors: dict[str, float], seconds: float) -> dict[str, float]:
        """``seconds`` under the regime of the ceiling that binds; memory time in proportion to what is moved."""
        total = max(kernel.cost.bytes_total, 1)
        shares = {"parameters": kernel.parameter_bytes / total, "cache": kernel.cache_bytes / total}
        shares["activations"] = max(0.0, 1.0 - sum(shares.values()))
        binding = max(floors, key=lambda name: floors[name], default=None)
        return {} if binding is None else _by_regime({binding: seconds}, shares)

    def _launched(self, times: dict[str, float], launches: int) -> dict[str, float]:
        """Add launches: their whole time on a CPU, on a GPU what kernels do not hide."""
        launch = launches * (self.usual.launch_s or 0.0)
        if self.target.asynchronous:
            launch = max(0.0, launch - sum(times.values()))
        return times | {"launch": launch}


def _by_regime(reached: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    """The longest of the times by ceiling, under its regime."""
    if not reached:
        return {}
    binding = max(reached, key=lambda name: reached[name])
    seconds = reached[binding]
    if binding in ("dram", "cache"):
        return {name: seconds * share for name, share in memory.items()}
    return {"special" if binding == "special" else "compute": seconds}


def by_regime(tables: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = dict.fromkeys(REGIMES, 0.0)
    for table in tables:
        for name, seconds in table.items():
            total[name] += seconds
    return total
