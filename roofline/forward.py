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
from typing import TYPE_CHECKING

import msgspec

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.pass_records import Memory, PartRow, PassRecord, sums
from roofline.target import AnalysisTarget
from roofline.times import KernelTime, Timer, by_regime, moved
from roofline.work import Part, Phase, forward_parts, new_tokens, tokens_after

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model on a device, as ``analyse`` finds it. kernels: of each part, in order."""

    record: PassRecord
    config: GriffinConfig = field(repr=False)
    target: AnalysisTarget = field(repr=False)
    kernels: tuple[tuple[KernelTime, ...], ...] = field(repr=False)

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
        """One row per part, in order; columns are the fields of ``PartRow``."""
        import pandas

        return pandas.DataFrame(msgspec.to_builtins(self.record.parts))

    def kernel_frame(self) -> pandas.DataFrame:
        """One row per kernel: part, layer, name, floor, bound, prediction, what it rests on."""
        import pandas

        return pandas.DataFrame(
            {
                "kind": part.kind,
                "layer": part.layer,
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
            for part, times in zip(self.record.parts, self.kernels, strict=True)
            for time in times
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
    memory = memory_of(config, parts, target, phase, batch, seq, dtype)
    timer = Timer(target, dtype, memory.weights)
    kernels = tuple(timer.times(part.kernels) for part in parts)
    alike = {id(times): _row(part, times) for part, times in zip(parts, kernels, strict=True)}
    rows = [
        msgspec.structs.replace(alike[id(times)], layer=part.layer) for part, times in zip(parts, kernels, strict=True)
    ]
    predicted_s = sum(row.predicted_s for row in rows)
    predicted = by_regime(by_regime(time.predicted for time in times) for times in kernels)
    record = PassRecord(
        model=model if isinstance(model, str) else name,
        phase=phase,
        batch=batch,
        seq=seq,
        dtype=dtype,
        parameters=config.parameters(),
        floor_s=sum(row.floor_s for row in rows),
        predicted_s=predicted_s,
        graphed_s=predicted_s - predicted["launch"],
        tokens_per_s=batch * new_tokens(phase, seq) / predicted_s,
        regime=max(predicted, key=lambda name: predicted[name]),
        predicted_by_regime_s=predicted,
        weight_bytes=memory.weights,
        cache_bytes=memory.cache,
        activation_bytes=memory.activations,
        needed_bytes=memory.needed,
        device_bytes=memory.device,
        fits=memory.fits,
        largest_batch=memory.largest_batch,
        parts=rows,
    )
    return Forward(record, config, target, kernels)


def _row(part: Part, times: tuple[KernelTime, ...]) -> PartRow:
    fields = sums([time.row(part) for time in times])
    return PartRow(**fields | {"parameters": part.parameters})


def memory_of(
    config: GriffinConfig, parts: list[Part], target: AnalysisTarget, phase: Phase, batch: int, seq: int, dtype: str
) -> Memory:
    """Weights, the cache after the pass, and the largest live set of one kernel with the residual stream beside it."""
    size = DTYPE_BYTES[dtype]
    live = max(k.cost.bytes_total - k.parameter_bytes - k.cache_bytes for part in parts for k in part.kernels)
    return Memory(
        weights=config.parameters() * size,
        cache=batch * config.cache_bytes(tokens_after(phase, seq), size),
        activations=live + batch * new_tokens(phase, seq) * config.width * size,
        device=target.memory_bytes,
        batch=batch,
    )
