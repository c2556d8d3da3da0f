"""Predictions held against the published set: row by row, by GPU, fitted and held-out GPUs apart. Needs no PyTorch.

    >>> from roofline.validation import validate
    >>> found = validate()
    >>> found.totals["kernels"].mape

Kernels are predicted from their traffic by ``roofline.kernel_time``: the fixed cost that events see, and the smooth
maximum of device memory, cache, products and the serial chain. Whole models are the kernels of ``roofline.work``, as
PyTorch composes them; decoding as in a graph, where every kernel costs a graph node.

The model's constants were fitted to rows of the A100 and H100 SXM (FITTED) or published; all other GPUs are held out.
"""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from griffin_kernels import datasheet, errors
from griffin_kernels.case import DTYPE_BYTES, Cost, Pass
from roofline import kernel_time, reached
from roofline.published_set import PublishedKernel, PublishedPass, TimedSize, sources
from roofline.study_records import Uncertainty
from roofline.target import of_sku
from roofline.work import Kernel, new_tokens, part_kernels, part_places

FITTED = ("nvidia-a100-80gb-sxm", "nvidia-h100-sxm")
"""SKUs whose own rows gave fixed costs and bandwidths; what is published for others came from other measurements."""

OUTLIER = 0.25
"""A row whose prediction is off by more than this needs a reason."""

SHORT_S = 50e-6
"""Kernels below this are told apart: there the fixed cost counts."""

Kind = Literal["kernel", "decode", "prefill"]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One published row and its prediction. size: as ``PublishedKernel.size`` or ``phase batch x seq``.

    ratio: predicted over published time. bound: the limit that binds. fitted: whether kernels of this GPU gave its
    constants, which whole models never did. weak, outlier: as in the set.
    """

    kind: Kind
    name: str
    size: str
    sku: str
    gpu: str
    dtype: str
    published_s: float
    predicted_s: float
    bound: str
    fitted: bool
    weak: str = ""
    outlier: str = ""
    source: str = ""

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.published_s

    @property
    def error(self) -> float:
        """Share of the published time that the prediction is off by."""
        return abs(self.ratio - 1)


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Several rows together. mape: mean of |predicted / published - 1|; median: of the same. spearman: rank
    correlation; None of fewer than three rows."""

    rows: int
    mape: float
    median: float
    within_10_percent: int
    lowest_ratio: float
    highest_ratio: float
    spearman: float | None


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and totals by name: ``kernels``, ``kernels, fitted GPUs``, ``kernels, held-out GPUs``, ``decode``,
    ``prefill`` and every GPU; weak rows are in ``kernels, weak`` alone."""

    rows: list[Judged]
    totals: dict[str, Total]

    @property
    def outliers(self) -> list[Judged]:
        """Rows off by more than OUTLIER, the worst first."""
        return sorted((row for row in self.rows if row.error > OUTLIER), key=lambda row: -row.error)


@functools.cache
def judged() -> tuple[Judged, ...]:
    """Every row of the published set, predicted."""
    found: list[Judged] = []
    for source in sources():
        for kernel in source.kernels:
            found += [_judged_kernel(kernel, row, source.title) for row in kernel.rows]
        found += [_judged_pass(each, source.title) for each in source.passes]
    return tuple(found)


def validate(sku: str | None = None) -> Validation:
    """Predict the published set, or what is of one SKU.

    Raises UnknownDevice, and ArgumentError for a SKU that nothing is published of.
    """
    rows = list(judged())
    if sku is not None:
        datasheet.datasheet(sku)
        rows = [row for row in rows if row.sku == sku]
        if not rows:
            known = ", ".join(sorted({row.sku for row in judged()}))
            raise errors.ArgumentError(f"nothing is published for {sku}; there are measurements of {known}")
    strong = [row for row in rows if not row.weak]
    kernels = [row for row in strong if row.kind == "kernel"]
    groups: dict[str, list[Judged]] = {
        "kernels": kernels,
        "kernels, fitted GPUs": [row for row in kernels if row.fitted],
        "kernels, held-out GPUs": [row for row in kernels if not row.fitted],
        "kernels, weak": [row for row in rows if row.weak and row.kind == "kernel"],
        "decode": [row for row in strong if row.kind == "decode"],
        "prefill": [row for row in strong if row.kind == "prefill"],
    }
    for kind in ("kernel", "decode", "prefill"):
        of_kind = [row for row in strong if row.kind == kind]
        for gpu in sorted({row.gpu for row in of_kind}):
            groups[f"{kind}, {gpu}"] = [row for row in of_kind if row.gpu == gpu]
    return Validation(rows=rows, totals={name: total(group) for name, group in groups.items() if group})


def total(rows: Sequence[Judged]) -> Total:
    """Errors and ranks of one or more rows."""
    off, ratios = [row.error for row in rows], [row.ratio for row in rows]
    return Total(
        rows=len(rows), mape=statistics.fmean(off), median=statistics.median(off),
        within_10_percent=sum(error <= 0.1 for error in off), lowest_ratio=min(ratios), highest_ratio=max(ratios),
        spearman=_spearman([row.predicted_s for row in rows], [row.published_s for row in rows]),
    )  # fmt: skip


def _spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, equal values sharing their mean rank; None without an order."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return statistics.correlation(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    """Mean rank of each value among all."""
    ordered = sorted(values)
    return [(bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) - 1) / 2 for value in values]


def limits_s(kernel: PublishedKernel, row: TimedSize) -> dict[str, float]:
    """Seconds of each limit of a published kernel on its SKU."""
    sheet = datasheet.datasheet(kernel.sku)
    constants, clock_hz, units = kernel_time.constants_of(sheet), _clock_hz(sheet), sheet.units
    assert clock_hz is not None and units is not None, f"{sheet.sku} has no clock or units"
    moved = kernel_time.traffic(
        row.bytes, sheet.last_level_cache_bytes or 0, again=row.again_bytes, together=row.together_bytes,
        spilled=row.spilled_bytes, spill_space=row.spill_bytes,
    )  # fmt: skip
    per_clock = kernel_time.L2_BYTES_PER_CLOCK * constants.cache_reach * units
    found = {
        "dram": moved.dram / (sheet.dram_bytes_per_s * constants.dram_reach),
        "cache": (moved.dram + moved.cache) / (per_clock * clock_hz),
    }
    if row.steps:
        working = kernel.instructions_per_step * constants.dependent_cycles / clock_hz
        found["latency"] = row.steps * kernel_time.iteration_s(constants.latency_s, working)
    if row.flops:
        share, peak = reached.tensor(sheet, kernel.dtype), sheet.tensor_flops_per_s(kernel.dtype)
        assert share is not None and peak is not None, f"{sheet.sku} has no products in {kernel.dtype}"
        found["tensor"] = row.flops / (peak * share.value * constants.matrix_share)
    return found


def _clock_hz(sheet: datasheet.Datasheet) -> float | None:
    """The clock under load; of a board that states none, what its float32 peak implies on 128 lanes a unit."""
    boost = sheet.boost_clock_mhz
    if boost is None and sheet.fp32_tflops and sheet.units:
        boost = sheet.fp32_tflops * 1e6 / (sheet.units * 256)
    return None if boost is None else boost * 1e6 * reached.clock_share(sheet).value


def _judged_kernel(kernel: PublishedKernel, row: TimedSize, source: str) -> Judged:
    sheet = datasheet.datasheet(kernel.sku)
    limits, fixed = limits_s(kernel, row), reached.event_overhead_s(sheet)
    assert fixed is not None, f"{sheet.sku} is no GPU"
    return Judged(
        kind="kernel", name=kernel.name, size=f"{kernel.size}, N = {row.n}", sku=kernel.sku,
        gpu=kernel.gpu or sheet.name, dtype=kernel.dtype, published_s=row.us * 1e-6,
        predicted_s=fixed.value + kernel_time.smooth_maximum(limits), bound=max(limits, key=lambda name: limits[name]),
        fitted=kernel.sku in FITTED and not kernel.gpu, weak=kernel.weak, outlier=row.outlier, source=source,
    )  # fmt: skip


def _judged_pass(given: PublishedPass, source: str) -> Judged:
    """A whole model, one kernel after the other as PyTorch composes it: others' software, none of this package.

    In decoding a graph's node is added for every kernel. Of a prefill the longer of host and device counts, since the
    host runs ahead.
    """
    target, config = of_sku(given.sku), given.config
    found = part_kernels(config, given.phase, given.batch, given.seq, given.dtype, gpu=True, composed=True)
    kernels = [kernel for kind, _ in part_places(config) for kernel in found[kind]]
    if given.logits == "all":
        kernels.append(_other_logits(given))
    seconds: dict[str, float] = {}
    for step in (step for kernel in kernels for step in kernel.passes or (Pass(kernel.cost),)):
        slow = target.ceilings.slow(step.cost, given.dtype, launches=0)
        times = {roof: time / target.reached(roof, given.dtype) for roof, time in slow.items()}
        bound = max(times, key=lambda roof: times[roof])
        seconds[bound] = seconds.get(bound, 0.0) + step.count * times[bound]
    launches, device_s = sum(kernel.launches for kernel in kernels), sum(seconds.values())
    launch, node = target.ceilings.value("launch"), target.ceilings.ceiling("launch_graph")
    assert launch is not None and node is not None, f"{given.sku} is no GPU"
    decoding = given.phase == "decode"
    return Judged(
        kind="decode" if decoding else "prefill", name=given.name, size=f"{given.batch} x {given.seq}", sku=given.sku,
        gpu=datasheet.datasheet(given.sku).name, dtype=given.dtype, published_s=given.seconds,
        predicted_s=device_s + launches * node.value if decoding else max(device_s, launches * launch),
        bound=max(seconds, key=lambda name: seconds[name]), fitted=False, weak=given.weak,
        outlier=given.outlier, source=f"{source}: {given.software}",
    )  # fmt: skip


def _other_logits(given: PublishedPass) -> Kernel:
    """Logits of all tokens but the last of each sequence, which a pass of ours has already."""
    shape, size = given.shape, DTYPE_BYTES[given.dtype]
    rows = given.batch * (new_tokens(given.phase, given.seq) - 1)
    weights = shape.width * shape.vocab * size
    cost = Cost(
        rows * shape.width * size + weights,
        rows * shape.vocab * size,
        tensor_flops=2 * rows * shape.width * shape.vocab,
    )
    return Kernel("logits", cost, parameter_bytes=weights, rows=rows)


LEAST_ROWS = 3
"""Fewer published rows than this say nothing."""


def of_kernel(sku: str, bound: str, seconds: float, *, flawed: bool = False) -> Uncertainty:
    """Uncertainty of a kernel's predicted time by its SKU, its bound and its size.

    bound: of ``time_model.Prediction`` or ``limits_s``. flawed: it spills registers or serialises its products.
    """
    if flawed:
        return Uncertainty(share=None, rows=0, why="kernels that spill or serialise their products are not predicted")
    sheet = datasheet.datasheet(sku)
    if reached.clock_share(sheet).value < 1:
        return Uncertainty(share=None, rows=0, why="nothing is published of boards that their power limit holds back")
    kernels = [row for row in judged() if row.kind == "kernel"]
    if bound in ("dram", "cache"):
        short = seconds < SHORT_S
        alike = [row for row in kernels if row.bound in ("dram", "cache") and (row.published_s < SHORT_S) == short]
        what = f"memory-bound kernels {'below 50 us' if short else 'of 50 us and more'}"
    else:
        alike = [row for row in kernels if row.bound == bound]
        what = f"kernels bound by {bound}"
    return _seen(alike, sheet, what)


def of_pass(sku: str, phase: str, dtype: str, *, quantised: bool = False) -> Uncertainty:
    """Uncertainty of a whole model's pass by its phase, the width of its dtype and its SKU. quantised: weights are."""
    if quantised:
        return Uncertainty(share=None, rows=0, why="no published passes with quantised weights")
    alike = [row for row in judged() if row.kind == phase and DTYPE_BYTES[row.dtype] == DTYPE_BYTES.get(dtype)]
    how = f"{phase} passes in {8 * DTYPE_BYTES[dtype]} bit" + (", launches in a graph," if phase == "decode" else "")
    return _seen(alike, datasheet.datasheet(sku), how)


def _seen(rows: Iterable[Judged], sheet: datasheet.Datasheet, what: str) -> Uncertainty:
    """From rows that gave no constants: of the SKU itself if there are enough, else of all GPUs of its vendor."""
    held_out = [row for row in rows if not row.weak and not row.fitted]
    own = [row for row in held_out if row.sku == sheet.sku]
    others = [row for row in held_out if datasheet.datasheet(row.sku).vendor == sheet.vendor]
    for group, where in ((own, "this GPU"), (others, "GPUs that nothing was fitted to")):
        if len(group) >= LEAST_ROWS:
            return Uncertainty(share=_most(group), rows=len(group), why=f"{len(group)} published {what} on {where}")
    return Uncertainty(share=None, rows=len(others), why=f"no published {what} on GPUs of {sheet.vendor}")


def _most(rows: Sequence[Judged]) -> float:
    """The error that nine of ten rows stay below."""
    errors_of = sorted(row.error for row in rows)
    return errors_of[min(len(errors_of) - 1, math.ceil(0.9 * len(errors_of)) - 1)]


def by_gpu(rows: Iterable[Judged]) -> Mapping[str, list[Judged]]:
    """Rows by GPU, in the order of the set."""
    found: dict[str, list[Judged]] = {}
    for row in rows:
        found.setdefault(row.gpu, []).append(row)
    return found
