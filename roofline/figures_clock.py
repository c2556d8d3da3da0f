"""Times of passes as the paper's programs run them, under a named assumption about attention. Needs no PyTorch.

On a device of a datasheet a pass is a *compiled program*: each kernel once, at the longest of its times under the
ceilings and at the share of them that kernels are known to reach; norms, activations and residual sums are fused into
their neighbours, and nothing is launched. That is how XLA runs the paper's models, and the same for every device, so
that devices can be compared. On the machine at hand it is what ``griffin roofline forward`` predicts for this library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from griffin_kernels.case import Cost
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.ops.local_attention.cost import visible_pairs
from roofline.figures_records import FigureAssumption
from roofline.forward import analyse
from roofline.target import AnalysisTarget
from roofline.work import Kernel, Phase, part_kernels, part_places

Times = Mapping[str, float]
"""Seconds by regime, the keys of ``REGIMES``."""

CAUSAL, ALL_PAIRS = "causal pairs", "all pairs"

ATTENTION_RATE = 0.5
"""Rate of attention's matrix products over that of large products: the softmax between them takes vector units about as
long, on a TPU as in FlashAttention-2, which reaches 50 to 73 % of an A100's peak (arXiv 2307.08691)."""

ATTENTIONS = (
    FigureAssumption(
        name=CAUSAL,
        words="attention computes only pairs that the mask leaves, keeps scores on the chip, "
        "and runs its products at half the rate of large ones, as FlashAttention-2 does",
    ),
    FigureAssumption(
        name=ALL_PAIRS,
        words="attention computes every pair (local attention: of two windows), the masked ones too, at half the rate "
        "of large products, and its scores go through memory",
    ),
)
"""How the baseline's attention was implemented decides the curve, and the paper does not say: the ends of a band."""

SCORE_STREAMS = {"local_attention": 2, "local_attention_bwd": 4}
"""How often scores or their gradients move through memory: written and read; read, written, and read for two
products."""


def bound(times: Times) -> str:
    """The regime that most of the time goes to; empty where there is none."""
    return max(times, key=lambda name: times[name], default="")


def added(parts: Iterable[tuple[Times, float]]) -> Times:
    """Times by regime, each table so many times."""
    total: Counter[str] = Counter()
    for times, count in parts:
        for name, seconds in times.items():
            total[name] += seconds * count  # type: ignore[assignment]
    return total


@dataclass(frozen=True)
class ProgramClock:
    """Seconds of kernels in a compiled program. attention: CAUSAL or ALL_PAIRS."""

    target: AnalysisTarget
    dtype: str
    attention: str = CAUSAL

    def times(self, kernel: Kernel) -> Times:
        """Seconds by regime."""
        op = kernel.case.op if kernel.case is not None else ""
        if op not in SCORE_STREAMS:
            return self._one(kernel, kernel.cost)
        streams, assumed = self._attending(kernel)
        return added([(self._one(kernel, assumed), 1), (self._one(kernel, streams), 1)])

    def _one(self, kernel: Kernel, cost: Cost) -> Times:
        usual = self.target.ceilings.usual.slow(cost, self.dtype, cost.bytes_total, launches=0)
        reached = {name: seconds / self.target.reached(name, self.dtype) for name, seconds in usual.items()}
        if not reached:
            return {}
        binding = bound(reached)
        if binding not in ("dram", "cache"):
            return {"special" if binding == "special" else "compute": reached[binding]}
        shares = {"parameters": kernel.parameter_bytes, "cache": kernel.cache_bytes}
        shares["activations"] = max(0, cost.bytes_total - sum(shares.values()))
        return {name: reached[binding] * size / max(1, sum(shares.values())) for name, size in shares.items()}

    def _attending(self, kernel: Kernel) -> tuple[Cost, Cost]:
        """What scores move through memory, and the rest with products that take 1 / ATTENTION_RATE as long."""
        case, cost = kernel.case, kernel.cost
        assert case is not None
        flops, streams = cost.tensor_flops / ATTENTION_RATE, 0
        if self.attention == ALL_PAIRS:
            keys = case["T"] if case["W"] >= case["T"] else min(case["T"], 2 * case["W"])
            flops *= case["T"] * keys / max(1, visible_pairs(case))
            scores = case["B"] * case["Hq"] * case["T"] * keys
            streams = SCORE_STREAMS[case.op] * scores * case.bytes_per_element()
        return Cost(streams, 0), replace(cost, tensor_flops=round(flops))


def pass_times(
    config: GriffinConfig, target: AnalysisTarget, phase: Phase, batch: int, seq: int, dtype: str, attention: str
) -> Times:
    """Seconds by regime of a forward pass. attention: of a datasheet's device; see ``ATTENTIONS``."""
    if target.measured:
        return analyse(config, target, phase=phase, batch=batch, seq=seq, dtype=dtype).record.predicted_by_regime_s
    clock = ProgramClock(target, dtype, attention)
    kernels = part_kernels(config, phase, batch, seq, dtype, gpu=target.asynchronous)
    counts = Counter(kind for kind, _ in part_places(config))
    return added((clock.times(kernel), count) for kind, count in counts.items() for kernel in kernels[kind])


PROGRAM = (
    "a pass is a compiled program, as the paper's: each kernel once at the rates above, norms, activations and "
    "residual sums fused into others, nothing launched from a host"
)
"""What times of ``ProgramClock`` rest on besides the target."""
