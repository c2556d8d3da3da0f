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

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.target import AnalysisTarget
from roofline.times import PartTime, Timer, by_regime, moved
from roofline.work import Part, Phase, forward_parts

if TYPE_CHECKING:
    import pandas


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
    target: AnalysisTarget = field(repr=False)
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
        return by_regime(part.predicted for part in self.parts)

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
        alike: dict[int, list[PartTime]] = {}
        for part in self.parts:
            alike.setdefault(id(part.kernels), []).append(part)
        rows = [(len(parts), parts[0].row()) for parts in alike.values()]
        summed = ("tensor_flops", "vector_flops", "special_ops", "bytes", "run_bytes", "launches")
        return {
            "model": self.model,
            "phase": self.phase,
            "batch": self.batch,
            "seq": self.seq,
            "dtype": self.dtype,
            "device": self.target.name,
            "parameters": self.config.parameters(),
            **{name: sum(count * row[name] for count, row in rows) for name in summed},
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
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    phase: Phase,
    batch: int,
    seq: int,
    dtype: str,
    name: str = "custom",
) -> Forward:
    """Analyse one forward pass.

    model: a preset's name, or a configuration (called ``name``). phase, batch, seq, dtype: as ``work.forward_parts``.
    Raises UnknownModelError, ArgumentError (sizes below 1, unknown phase) and DtypeError (one that the device lacks).
    A model that does not fit is analysed all the same: ``memory.fits`` and ``memory.sentence()`` say so.
    """
    config = preset(model) if isinstance(model, str) else model
    parts = forward_parts(config, phase, batch, seq, dtype, gpu=target.asynchronous)
    target.check_dtype(dtype)
    timer = Timer(target, dtype, config.parameters() * DTYPE_BYTES[dtype])
    times = tuple(PartTime(part, timer.times(part.kernels)) for part in parts)
    return Forward(
        model if isinstance(model, str) else name,
        config, target, phase, batch, seq, dtype, times,
        memory_of(config, parts, target, phase, batch, seq, dtype),
    )  # fmt: skip


def memory_of(
    config: GriffinConfig, parts: list[Part], target: AnalysisTarget, phase: Phase, batch: int, seq: int, dtype: str
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
