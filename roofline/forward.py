"""A whole forward pass on a device: its floor, what binds, predicted latency, memory. Needs no PyTorch.

    >>> from roofline.forward import analyse
    >>> from roofline.target import of_sku
    >>> result = analyse("griffin-1b3", of_sku("nvidia-h100-sxm"), phase="decode", batch=1, seq=2048, dtype="bfloat16")
    >>> result.latency_s, result.regime, result.memory.fits
    >>> result.frame()  # one row per part, pandas

The *floor* of a kernel is the largest of its times under the four ceilings (memory, matrix, vector, special functions),
with no launch; a part's floor is the sum over its kernels. The *prediction* takes, for each kernel, the first that is
known: the tuned kernel's measured share of its floor; the PyTorch kernels that it is composed of; one kernel. These run
at the *usual* rates, the medians of what was sampled for the ceilings, or at the share of a datasheet's peak that
kernels are known to reach. Launches are added on a CPU and hidden behind kernels on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from griffin_kernels.case import DTYPE_BYTES, Cost, Pass
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.target import Target
from roofline.work import Kernel, Part, Phase, forward_parts

if TYPE_CHECKING:
    import pandas

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


@dataclass(frozen=True)
class PartTime:
    """A part of a pass on a device: sums over its kernels. Times in seconds, sizes in bytes."""

    part: Part
    kernels: tuple[KernelTime, ...] = field(repr=False)

    @cached_property
    def floor_s(self) -> float:
        return sum(kernel.floor_s for kernel in self.kernels)

    @cached_property
    def predicted_s(self) -> float:
        return sum(kernel.predicted_s for kernel in self.kernels)

    @cached_property
    def predicted(self) -> dict[str, float]:
        """Predicted seconds by regime."""
        return _sum(kernel.predicted for kernel in self.kernels)

    @cached_property
    def bound(self) -> str:
        """The ceiling that most of the floor is spent under."""
        floors: Counter[str] = Counter()
        for kernel in self.kernels:
            floors[kernel.bound] += kernel.floor_s  # type: ignore[assignment]
        return max(floors, key=lambda name: floors[name])

    def cost(self) -> Cost:
        return add(kernel.kernel.cost for kernel in self.kernels)

    def run_bytes(self) -> int:
        """Bytes that the composition of today moves."""
        return sum(moved(kernel.kernel) for kernel in self.kernels)

    def row(self) -> dict[str, Any]:
        """One row of a table."""
        cost = self.cost()
        return {
            "kind": self.part.kind,
            "layer": self.part.layer,
            "parameters": self.part.parameters,
            "tensor_flops": cost.tensor_flops,
            "vector_flops": cost.vector_flops,
            "special_ops": cost.special_ops,
            "bytes": cost.bytes_total,
            "parameter_bytes": sum(k.kernel.parameter_bytes for k in self.kernels),
            "cache_bytes": sum(k.kernel.cache_bytes for k in self.kernels),
            "run_bytes": self.run_bytes(),
            "launches": sum(k.kernel.launches for k in self.kernels),
            "floor_s": self.floor_s,
            "bound": self.bound,
            "predicted_s": self.predicted_s,
        }


@dataclass(frozen=True)
class Memory:
    """What a pass keeps in device memory, in bytes. device: 0 if unknown."""

    weights: int
    cache: int
    activations: int
    device: int
    cache_per_sequence: int
    activations_per_sequence: int

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if not self.device else self.needed <= self.device

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that fits at this length, 0 if not even one sequence does."""
        if not self.device:
            return None
        return max(0, (self.device - self.weights) // (self.cache_per_sequence + self.activations_per_sequence))

    def sentence(self) -> str:
        """Whether it fits, in words."""
        needs = f"needs {gib(self.needed)}"
        if self.fits is None:
            return f"{needs}; the device's memory is not known"
        return f"{needs}, the device has {gib(self.device)}" + ("" if self.fits else ": it does not fit")


def gib(size: float) -> str:
    """``3.21 GB``, decimal."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model on a device, as ``analyse`` finds it."""

    model: str
    config: GriffinConfig = field(repr=False)
    target: Target = field(repr=False)
    phase: Phase
    batch: int
    seq: int
    dtype: str
    parts: tuple[PartTime, ...] = field(repr=False)
    memory: Memory

    @property
    def tokens(self) -> int:
        """Tokens that the pass computes."""
        return self.batch * (self.seq if self.phase == "prefill" else 1)

    @cached_property
    def floor_s(self) -> float:
        return sum(part.floor_s for part in self.parts)

    @cached_property
    def latency_s(self) -> float:
        """Predicted seconds of the pass."""
        return sum(part.predicted_s for part in self.parts)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.latency_s

    @property
    def graphed_s(self) -> float:
        """Predicted seconds with nothing but kernels: what a captured CUDA graph comes near to."""
        return self.latency_s - self.predicted["launch"]

    @cached_property
    def predicted(self) -> dict[str, float]:
        """Predicted seconds by regime."""
        return _sum(part.predicted for part in self.parts)

    @property
    def regime(self) -> str:
        """Where most of the predicted time goes: a key of REGIMES."""
        return max(self.predicted, key=lambda name: self.predicted[name])

    def by_kind(self) -> list[dict[str, Any]]:
        """Rows summed over the parts of a kind, with their ``count``."""
        rows: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            row = {name: value for name, value in part.row().items() if name != "layer"}
            if (total := rows.setdefault(part.part.kind, {"count": 0} | row))["count"]:
                total.update({n: total[n] + value for n, value in row.items() if not isinstance(value, str)})
            total["count"] += 1
        return list(rows.values())

    def summary(self) -> dict[str, Any]:
        """The pass in one row."""
        rows = [part.row() for part in self.parts]
        summed = ("tensor_flops", "vector_flops", "special_ops", "bytes", "run_bytes", "launches")
        return {
            "model": self.model,
            "phase": self.phase,
            "batch": self.batch,
            "seq": self.seq,
            "dtype": self.dtype,
            "device": self.target.name,
            "parameters": self.config.parameters(),
            **{name: sum(row[name] for row in rows) for name in summed},
            "floor_s": self.floor_s,
            "predicted_s": self.latency_s,
            "graphed_s": self.graphed_s,
            "tokens_per_s": self.tokens_per_s,
            "regime": self.regime,
            "regime_share": self.predicted[self.regime] / self.latency_s,
            "weight_bytes": self.memory.weights,
            "cache_bytes": self.memory.cache,
            "activation_bytes": self.memory.activations,
            "needed_bytes": self.memory.needed,
            "device_bytes": self.memory.device,
            "fits": self.memory.fits,
            "largest_batch": self.memory.largest_batch,
        }

    def record(self) -> dict[str, Any]:
        """Everything as plain values: what ``--json`` prints."""
        return self.summary() | {
            "predicted_by_regime_s": self.predicted,
            "assumptions": list(self.target.assumptions),
            "parts": [part.row() for part in self.parts],
        }

    def frame(self) -> pandas.DataFrame:
        """One row per part, in order; columns as in ``PartTime.row``."""
        import pandas

        return pandas.DataFrame([part.row() for part in self.parts])

    def kernel_frame(self) -> pandas.DataFrame:
        """One row per kernel: part, layer, name, floor, bound, prediction, what it rests on."""
        import pandas

        return pandas.DataFrame(
            {
                "kind": part.part.kind,
                "layer": part.part.layer,
                "kernel": time.kernel.name,
                "case": time.kernel.case.key if time.kernel.case else None,
                "bytes": time.kernel.cost.bytes_total,
                "run_bytes": moved(time.kernel),
                "launches": time.kernel.launches,
                "floor_s": time.floor_s,
                "bound": time.bound,
                "predicted_s": time.predicted_s,
                "how": time.how,
            }
            for part in self.parts
            for time in part.kernels
        )


def analyse(
    model: str | GriffinConfig, target: Target, *, phase: Phase, batch: int, seq: int, dtype: str, name: str = "custom"
) -> Forward:
    """Analyse one forward pass.

    model: a preset's name, or a configuration (called ``name``). phase, batch, seq, dtype: as ``work.forward_parts``.
    Raises UnknownModelError, ArgumentError (sizes below 1, unknown phase) and DtypeError (one that the device lacks).
    A model that does not fit is analysed all the same: ``memory.fits`` and ``memory.sentence()`` say so.
    """
    config = preset(model) if isinstance(model, str) else model
    parts = forward_parts(config, phase, batch, seq, dtype, gpu=target.asynchronous)
    target.check_dtype(dtype)
    timer = _Timer(target, dtype, config.parameters() * DTYPE_BYTES[dtype])
    times = tuple(PartTime(part, timer.times(part.kernels)) for part in parts)
    return Forward(
        model if isinstance(model, str) else name,
        config, target, phase, batch, seq, dtype, times,
        memory_of(config, parts, target, phase, batch, seq, dtype),
    )  # fmt: skip


def memory_of(
    config: GriffinConfig, parts: list[Part], target: Target, phase: Phase, batch: int, seq: int, dtype: str
) -> Memory:
    """Weights, the cache after the pass, and the largest live set of one kernel with the residual stream beside it."""
    size = DTYPE_BYTES[dtype]
    tokens = seq if phase == "prefill" else 1
    live = max(k.cost.bytes_total - k.parameter_bytes - k.cache_bytes for part in parts for k in part.kernels)
    activations = live + batch * tokens * config.width * size
    per_sequence = config.cache_bytes(seq if phase == "prefill" else seq + 1, size)
    return Memory(
        weights=config.parameters() * size,
        cache=batch * per_sequence,
        activations=activations,
        device=target.memory_bytes,
        cache_per_sequence=per_sequence,
        activations_per_sequence=-(-activations // batch),
    )


class _Timer:
    """Times of kernels on a target; parts of a kind share their kernels, which are timed once."""

    def __init__(self, target: Target, dtype: str, weights: int) -> None:
        self.target = target
        self.usual = target.ceilings.usual
        self.dtype = dtype
        self.weights = weights
        self.known: dict[int, tuple[KernelTime, ...]] = {}

    def times(self, kernels: tuple[Kernel, ...]) -> tuple[KernelTime, ...]:
        if id(kernels) not in self.known:
            self.known[id(kernels)] = tuple(self.time(kernel) for kernel in kernels)
        return self.known[id(kernels)]

    def time(self, kernel: Kernel) -> KernelTime:
        floors = self.target.ceilings.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0)
        if kernel.case is not None and (tuned := self.target.tuned(kernel.case)) is not None:
            seconds = max(floors.values(), default=0.0) / tuned.share
            return KernelTime(kernel, floors, self._split(kernel, floors, seconds), tuned.why)
        if kernel.passes:
            parts = [self._pass(kernel, p) for p in kernel.passes]
            return KernelTime(kernel, floors, _sum(parts), f"{kernel.launches} PyTorch kernels at the usual rates")
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


def moved(kernel: Kernel) -> int:
    """Bytes that a kernel's composition moves."""
    return sum(p.count * p.cost.bytes_total for p in kernel.passes) or kernel.cost.bytes_total


def add(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    table = list(costs)
    return Cost(
        sum(c.bytes_read for c in table),
        sum(c.bytes_written for c in table),
        sum(c.tensor_flops for c in table),
        sum(c.vector_flops for c in table),
        sum(c.special_ops for c in table),
    )


def _sum(tables: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = dict.fromkeys(REGIMES, 0.0)
    for table in tables:
        for name, seconds in table.items():
            total[name] += seconds
    return total
