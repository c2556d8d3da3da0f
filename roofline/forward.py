"""A whole forward pass on a device: its floor, what binds, predicted latency, memory. Needs no PyTorch.

    >>> from roofline.forward import analyse
    >>> from roofline.target import of_sku
    >>> result = analyse("griffin-1b3", of_sku("nvidia-h100-sxm"), phase="decode", batch=1, seq=2048, dtype="bfloat16")
    >>> result.latency_s, result.regime, result.memory.fits
    >>> result.frame()  # one row per part, pandas

The *floor* of a kernel is the largest of its times under the four ceilings (memory, matrix, vector, special functions),
with no launch; a part's floor is the sum over its kernels. The *prediction* takes, for each kernel, the first that is
known: the share of its floor that the tuned kernel was measured at, is predicted or guessed to reach
(``roofline.kernel_shares``); FlashAttention as published, which global attention takes before any prediction
(``roofline.flash``); the PyTorch kernels that it is composed of; one kernel. These run at the *usual* rates, the
medians of what was sampled for the ceilings, or at the share of a datasheet's peak that kernels are known to reach.

A CPU adds its launches up. A GPU has two figures. In a captured graph the host is hidden, and each kernel costs the
graph's node time. Eagerly the host runs ahead of the device, so that the pass takes the larger of the sums of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES, Pass
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from griffin_kernels.texts import shortened
from roofline.flash import ATTENDING, FlashAttention
from roofline.study_records import REGIMES, GridPoint, Memory, Part, PassRecord
from roofline.target import AnalysisTarget
from roofline.training_work import TrainingPlan
from roofline.weight_formats import FP8, assumptions, quantised, weight_bytes, weight_format
from roofline.work import Kernel, PartKind, Phase, new_tokens, part_kernels, part_parameters, part_places, tokens_after

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class KernelTime:
    """A kernel on a device. floor_s: by ceiling. predicted_s: split by regime. how: what the prediction rests on.

    launches: kernels that run. host_s: seconds of Python code that start them. status: of a tuned operation,
    ``measured``, ``predicted``, ``guessed`` or ``composed``; ``published`` for FlashAttention; empty for others.
    """

    kernel: Kernel
    floors: dict[str, float]
    predicted: dict[str, float]
    how: str
    launches: int = 1
    host_s: float = 0.0
    status: str = ""

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
            kind=kind, layer=None, parameters=0,
            tensor_flops=cost.tensor_flops, vector_flops=cost.vector_flops, special_ops=cost.special_ops,
            bytes=cost.bytes_total, parameter_bytes=kernel.parameter_bytes, cache_bytes=kernel.cache_bytes,
            run_bytes=kernel.run_bytes, launches=self.launches,
            floor_s=self.floor_s, bound=self.bound, predicted_s=self.predicted_s,
        )  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model on a device, as ``analyse`` finds it. kernels: of each part, in order.

    weights: the format of linear layers' weights; empty for that of the pass. target: with what the answer assumes.
    """

    record: PassRecord
    config: GriffinConfig = field(repr=False)
    target: AnalysisTarget = field(repr=False)
    kernels: tuple[tuple[KernelTime, ...], ...] = field(repr=False)
    weights: str = ""

    @property
    def latency_s(self) -> float:
        """Predicted seconds of the pass."""
        return self.record.predicted_s

    @property
    def regime(self) -> str:
        return self.record.regime

    @property
    def memory(self) -> Memory:
        return self.record.memory

    def frame(self) -> pandas.DataFrame:
        """One row per part, in order; columns are the fields of ``Part``."""
        return frame(self.record.parts)

    def kernel_frame(self) -> pandas.DataFrame:
        """One row per kernel: part, layer, name, floor, bound, prediction, what it rests on."""
        import pandas

        return pandas.DataFrame(
            {"kind": part.kind, "layer": part.layer, "kernel": time.kernel.name}
            | {"case": time.kernel.case.key if time.kernel.case else None, "bytes": time.kernel.cost.bytes_total}
            | {"run_bytes": time.kernel.run_bytes}
            | {name: getattr(time, name) for name in ("launches", "floor_s", "bound", "predicted_s", "how")}
            for part, times in zip(self.record.parts, self.kernels, strict=True)
            for time in times
        )


def frame(rows: Sequence[Part] | Sequence[GridPoint]) -> pandas.DataFrame:
    """One row per part or point of a sweep."""
    import pandas

    return pandas.DataFrame([msgspec.to_builtins(row) for row in rows])


def analyse(
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    phase: Phase,
    batch: int,
    seq: int,
    dtype: str,
    name: str = "custom",
    training: TrainingPlan | None = None,
    weights: str = "",
) -> Forward:
    """Analyse one forward pass, or with phase train one training step, whose recomputation ``training`` says.

    model: a preset's name, or a configuration (called ``name``). phase, batch, seq, dtype: as ``work.part_kernels``.
    weights: ``int8``, ``int4`` or ``fp8`` for linear layers that hold them so; see ``weight_formats``.
    Raises UnknownModelError, ArgumentError (sizes below 1, unknown phase or format of weights) and DtypeError (one that
    the device lacks).
    A model that does not fit is analysed all the same: ``memory.fits`` and ``memory.sentence()`` say so.
    """
    target = target.in_dtype(dtype)
    if phase == "train":
        from roofline.training import analyse_step  # which is made of this module's parts

        if weights:
            raise errors.ArgumentError(f"weights in {shortened(weights)} are for inference, not for phase train")
        plan = training or TrainingPlan()
        return analyse_step(model, target, batch=batch, seq=seq, dtype=dtype, name=name, training=plan)
    if training is not None:
        raise errors.ArgumentError(f"recomputation and optimisers are of phase train, not of {phase}")
    config = preset(model) if isinstance(model, str) else model
    kernels = part_kernels(config, phase, batch, seq, dtype, gpu=target.asynchronous)
    # matrix products that the device has, and somebody measured
    peaks = [known for known in target.ceilings.tensor_flops_per_s if known in DTYPE_BYTES]
    if dtype not in peaks:
        had = ", ".join(peaks) or "none"
        raise errors.DtypeError(f"{target.name} has no known matrix peak in {dtype}; it has {had}")
    products = dtype
    if held := weight_format(weights) if weights else None:
        fp8 = target.ceilings.tensor_flops_per_s.get(FP8) if held.name == FP8 else None
        products = FP8 if fp8 else dtype
        kernels = quantised(kernels, config, dtype, held, products)
        rate = (fp8, target.reached("tensor", FP8)) if fp8 else None
        told = assumptions(config, dtype, held, products, target.name, rate)
        target = replace(target, assumptions=(*target.assumptions, *told))
    size = DTYPE_BYTES[dtype]
    tokens = batch * new_tokens(phase, seq)
    live = max(k.cost.bytes_total - k.parameter_bytes - k.cache_bytes for found in kernels.values() for k in found)
    memory = Memory(
        weights=weight_bytes(config, dtype, held),
        cache=batch * config.cache_bytes(tokens_after(phase, seq), size),
        activations=live + tokens * config.width * size,  # of one kernel, with the residual stream beside it
        device=target.memory_bytes,
        batch=batch,
    )
    timers = {name: Timer(target, name, memory.weights) for name in {dtype, products}}
    places, parameters = part_places(config), part_parameters(config)
    times = {kind: tuple(timers[k.products or dtype].time(k, kind) for k in found) for kind, found in kernels.items()}
    waits = HostWaits.on(target, [time for kind, _ in places for time in times[kind]])
    times = {kind: tuple(map(waits.waited, found)) for kind, found in times.items()}
    sums = {kind: Part.of([time.part(kind) for time in found]) for kind, found in times.items()}
    parts = [structs.replace(sums[kind], layer=layer, count=1, parameters=parameters[kind]) for kind, layer in places]
    predicted_s = sum(part.predicted_s for part in parts)
    predicted = _added(_added(time.predicted for time in times[kind]) for kind, _ in places)
    record = PassRecord(
        model=model if isinstance(model, str) else name, parameters=config.parameters(), parts=parts,
        phase=phase, batch=batch, seq=seq, dtype=dtype,
        floor_s=sum(part.floor_s for part in parts), predicted_s=predicted_s, predicted_by_regime_s=predicted,
        graphed_s=waits.graphed_s, tokens_per_s=tokens / predicted_s,
        regime=max(predicted, key=lambda name: predicted[name]),
        weight_bytes=memory.weights, cache_bytes=memory.cache, activation_bytes=memory.activations,
        needed_bytes=memory.needed, device_bytes=memory.device, fits=memory.fits, largest_batch=memory.largest_batch,
        mode=target.mode, eager_s=waits.eager_s,
        tuned=tuned_words(itertools.chain.from_iterable(times.values())),
    )  # fmt: skip
    return Forward(record, config, target, tuple(times[kind] for kind, _ in places), weights)


@dataclass(frozen=True)
class HostWaits:
    """What a pass waits for the host besides the device's work. device_s: of all kernels. host_s: to start them.

    A GPU's host runs ahead of it: only what its whole time exceeds the device's by is waited for. device_s then is the
    pass in a graph. bare_s: without any launches.
    """

    target: AnalysisTarget
    device_s: float
    bare_s: float
    host_s: float

    @classmethod
    def on(cls, target: AnalysisTarget, times: Sequence[KernelTime]) -> HostWaits:
        """For all kernels of a pass, as ``Timer`` gives them."""
        launch = sum(time.predicted.get("launch", 0.0) for time in times)
        device_s = sum(time.predicted_s for time in times)
        return cls(target, device_s, device_s - launch, sum(time.host_s for time in times))

    @property
    def seconds(self) -> float:
        return max(0.0, self.host_s - self.device_s)

    @property
    def graphed_s(self) -> float:
        return self.device_s if self.target.asynchronous else self.bare_s

    @property
    def eager_s(self) -> float | None:
        return None if self.target.mode == "compiled" else self.device_s + self.seconds

    def waited(self, time: KernelTime) -> KernelTime:
        """A kernel as the target's mode runs it: eagerly with its share of the wait, by the host's time for it."""
        if self.target.mode != "eager" or not self.host_s:
            return time
        launch = time.predicted.get("launch", 0.0) + self.seconds * time.host_s / self.host_s
        return replace(time, predicted=time.predicted | {"launch": launch})


def tuned_words(times: Iterable[KernelTime]) -> dict[str, str]:
    """Status of each tuned operation, and of attention by its published share."""
    words: dict[str, str] = {}
    for time in times:
        if time.status and time.kernel.case is not None:
            words.setdefault(time.kernel.case.op, time.how if time.status == "published" else time.status)
    return words


BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SEQS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def sweep(
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    phase: Phase,
    dtype: str,
    batches: Iterable[int] = BATCHES,
    seqs: Iterable[int] = SEQS,
    training: TrainingPlan | None = None,
    name: str = "custom",
    weights: str = "",
) -> list[GridPoint]:
    """Every batch at every length, batches outermost: the regime map. Raises as ``analyse``."""
    same: dict[str, Any] = {"phase": phase, "dtype": dtype, "training": training, "name": name, "weights": weights}
    return [
        analyse(model, target, batch=batch, seq=seq, **same).record.point
        for batch, seq in itertools.product(batches, seqs)
    ]


class Timer:
    """Times of kernels on a target. weights: bytes of all weights of the model.

    A GPU's times are those in a captured graph; a CPU's have its launches.
    """

    def __init__(self, target: AnalysisTarget, dtype: str, weights: int) -> None:
        self.target, self.dtype, self.weights = target, dtype, weights
        self.usual = target.ceilings.usual
        self.launch_s = self.usual.value("launch") or 0.0
        self.host_s = self.launch_s if target.host_s is None else target.host_s
        node = self.usual.ceiling("launch_graph")
        self.node_s = 0.0 if node is None else node.value

    def time(self, kernel: Kernel, kind: str = "") -> KernelTime:
        """A kernel's time. kind: of the part that it belongs to."""
        floors = self.target.ceilings.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0)
        if self.target.floor_share is not None:
            seconds = max(floors.values(), default=0.0) / self.target.floor_share
            return KernelTime(kernel, floors, self._split(kernel, floors, seconds), "compiled", launches=0)
        found = self._tuned(kernel, floors, kind) if kernel.case is not None else None
        if found is not None:
            return found
        status = "composed" if kernel.case is not None else ""
        if kernel.passes:
            how, parts = f"{kernel.launches} PyTorch kernels at the usual rates", map(self._pass, kernel.passes)
            return self._started(KernelTime(kernel, floors, _added(parts), how, kernel.launches, status=status))
        reached = self._reached(self.usual.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0))
        how = "one kernel at the usual rates"
        if kernel.rows and self.dtype in self.usual.matmul_rows:
            rate = self.usual.matmul_flops_per_s(kernel.rows, self.dtype, kernel.parameter_bytes)
            assert rate is not None
            reached = {"tensor": kernel.cost.tensor_flops / rate}
            how = f"matrix products of about {kernel.rows} rows, as measured"
        seconds = max(reached.values(), default=0.0)
        times = self._split(kernel, floors, seconds) | {"launch": self._launch_s(1)}
        return self._started(KernelTime(kernel, floors, times, how, status=status))

    def _tuned(self, kernel: Kernel, floors: dict[str, float], kind: str) -> KernelTime | None:
        """The time of a tuned operation, or of FlashAttention in its place; None where it is composed."""
        assert kernel.case is not None
        attends, whole = kernel.case.op in ATTENDING, kind == "global_attention"
        if attends and whole and self.target.asynchronous and self.target.attention == "composed":
            return None
        tuned, flash = self.target.tuned(kernel.case), self.target.flash
        # a published measurement goes before a prediction where it is the baseline's
        if attends and flash is not None and (tuned is None or (whole and tuned.status != "measured")):
            return self._flash(kernel, floors, flash)
        if tuned is None:
            return None
        seconds = max(floors.values(), default=0.0) / tuned.share
        times = self._split(kernel, floors, seconds)
        return self._started(KernelTime(kernel, floors, times, tuned.why, status=tuned.status))

    def _flash(self, kernel: Kernel, floors: dict[str, float], flash: FlashAttention) -> KernelTime:
        reached = self._reached(self.usual.slow(kernel.cost, self.dtype, self._resident(kernel), launches=0))
        assert kernel.case is not None
        share, launches = flash.runs(kernel.case.op)
        reached["tensor"] = reached.get("tensor", 0.0) / share
        times = self._split(kernel, reached, max(reached.values())) | {"launch": self._launch_s(launches)}
        return self._started(KernelTime(kernel, floors, times, flash.name, launches, status="published"))

    def _launch_s(self, launches: int) -> float:
        """What launches add to kernels' work: all of their time on a CPU, in a GPU's graph its nodes."""
        return launches * (self.node_s if self.target.asynchronous else self.launch_s)

    def _started(self, time: KernelTime) -> KernelTime:
        """With the host's time for each launch."""
        return replace(time, host_s=time.launches * self.host_s) if self.target.asynchronous else time

    def _resident(self, kernel: Kernel) -> int:
        """Bytes that pass through the cache before a kernel's data is used again: all weights, or its own."""
        return self.weights if kernel.parameter_bytes else kernel.cost.bytes_total

    def _reached(self, floors: dict[str, float]) -> dict[str, float]:
        return {name: seconds / self.target.reached(name, self.dtype) for name, seconds in floors.items()}

    def _pass(self, step: Pass) -> dict[str, float]:
        """Seconds by regime of one pass of a composition, run ``count`` times."""
        reached = self._reached(self.usual.slow(step.cost, self.dtype, step.cost.bytes_total, launches=0))
        one = _longest(reached, {"activations": 1.0}) | {"launch": self._launch_s(1)}
        return {name: seconds * step.count for name, seconds in one.items()}

    def _split(self, kernel: Kernel, floors: dict[str, float], seconds: float) -> dict[str, float]:
        """``seconds`` under the regime of the ceiling that binds; memory time in proportion to what is moved."""
        total = max(kernel.cost.bytes_total, 1)
        shares = {"parameters": kernel.parameter_bytes / total, "cache": kernel.cache_bytes / total}
        shares["activations"] = max(0.0, 1.0 - sum(shares.values()))
        binding = max(floors, key=lambda name: floors[name], default=None)
        return {} if binding is None else _longest({binding: seconds}, shares)


def _longest(reached: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    """The longest of the times by ceiling, under its regime."""
    if not reached:
        return {}
    binding = max(reached, key=lambda name: reached[name])
    seconds = reached[binding]
    if binding in ("dram", "cache"):
        return {name: seconds * share for name, share in memory.items()}
    return {"special" if binding == "special" else "compute": seconds}


def _added(tables: Iterable[dict[str, float]]) -> dict[str, float]:
    """Seconds by regime of several together; 0 for a regime that none has."""
    found = list(tables)
    return {name: sum((table.get(name, 0.0) for table in found), 0.0) for name in REGIMES}
