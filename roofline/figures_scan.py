"""Figure 8, predicted: one scan of [8, T, 1024] in three ways, relative to the native one. Needs no PyTorch.

``linear``: one kernel that keeps the state on the chip. ``native``: a loop over time that the framework runs, its state
through memory. ``associative``: a tree over pairs. Each is predicted from the work that its algorithm does, which is
stated here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from griffin_kernels.case import DTYPE_BYTES, BenchCase, Cost, Pass
from griffin_kernels.datasheet import DRAM_LATENCY_S
from griffin_kernels.ops.linear_scan.cost import cost, make_case
from roofline.figures_clock import ProgramClock, Times, added, bound
from roofline.figures_records import FigureAssumption, FigurePanel, FigurePoint, FigureSeries
from roofline.target import AnalysisTarget
from roofline.work import Kernel

SCAN_BATCH, SCAN_WIDTH = 8, 1024
"""Of figure 8."""

SCAN_LENGTHS = (1024, 2048, 4096, 8192)
"""Lengths of figure 8. The axis of the paper is an image; these are round numbers along it."""

NATIVE = "native"

SCAN_KINDS = {"linear": "Linear scan kernel", NATIVE: "Native scan", "associative": "Associative scan"}
"""Kinds -> what the paper calls them."""

PANEL_OF = {"bfloat16": "8a-bf16", "float16": "8a-fp16", "float32": "8a-fp32"}
"""Panels of scans by dtype."""

TREE_STREAMS = 20
"""Elements that a tree over pairs moves for each pair, as ``jax.lax.associative_scan`` does it: a level reads both
halves of its pairs and writes half as many, later combines the other half (4 streams of half the size), and interleaves
them (2 read, 2 written): 10 streams a level, and the levels below are half of it together."""

CARRIED = 4
"""Bytes of an element of the state, and of a pair's numbers: float32."""

LOOP, WAITING = "steps overlap", "steps wait"

LOOPS = (
    FigureAssumption(
        name=LOOP,
        words="the native scan is a fused step after the other: x and a read, the float32 state read and written, h "
        "written; going round costs nothing, so that this is its least time",
    ),
    FigureAssumption(
        name=WAITING,
        words="likewise, and each step waits until the state that the last one wrote has come back from memory: "
        f"{DRAM_LATENCY_S * 1e6:g} us, as on A100 and H100",
    ),
)
"""What a loop over time costs beside its traffic is known of no accelerator here: the ends of a band."""


TREE_NOTE = (
    f"the associative scan moves {TREE_STREAMS} float32 streams, as jax.lax.associative_scan's recursion does; "
    "on a CPU it is this package's baseline, a doubling of spans"
)


def scan_panel(dtype: str) -> FigurePanel:
    """The panel of scans in a dtype."""
    return FigurePanel(name=PANEL_OF[dtype], title=f"(a) One scan, {dtype}", y="time over the native scan's",
                       quantity="ratio")  # fmt: skip


@dataclass(frozen=True)
class ScanWork:
    """The passes of one kind of scan, in a compiled program and as this package's baseline runs them in PyTorch."""

    kind: str
    time: int
    dtype: str
    batch: int = SCAN_BATCH
    width: int = SCAN_WIDTH
    loop: str = LOOP

    @property
    def elements(self) -> int:
        return self.batch * self.time * self.width

    @property
    def case(self) -> BenchCase:
        return make_case(self.batch, self.time, self.width, self.dtype)

    @property
    def program(self) -> tuple[Pass, ...]:
        """On a device of a datasheet."""
        size = DTYPE_BYTES[self.dtype]
        if self.kind == "linear":
            return (Pass(cost(self.case)),)
        if self.kind == NATIVE:
            row = self.elements // self.time
            return (Pass.elementwise(row, 2 * size + CARRIED, CARRIED + size, vector=2, count=self.time),)
        streams = TREE_STREAMS // 2 * CARRIED
        return (Pass.elementwise(self.elements, streams, streams, vector=6),)

    @property
    def eager(self) -> tuple[Pass, ...]:
        """By this package on a CPU: the tuned kernel, ``eager.loop``, ``eager.associative``."""
        size, one = DTYPE_BYTES[self.dtype], self.elements
        if self.kind == "linear":
            return self.program
        casts = (Pass.elementwise(one, size, CARRIED, count=2), Pass.elementwise(one, CARRIED, size))
        around = casts if size != CARRIED else ()
        if self.kind == NATIVE:
            step = Pass.elementwise(one // self.time, 2 * CARRIED, CARRIED, vector=1, count=2 * self.time)
            return (*around, step, Pass.elementwise(one, CARRIED, CARRIED))
        levels = max(1, (self.time - 1).bit_length())
        # a copy of x; arriving, its sum, and of the gates of all levels but the last a copy and a product
        two = Pass.elementwise(one, 2 * CARRIED, CARRIED, vector=1, count=3 * levels - 1)
        return (*around, two, Pass.elementwise(one, CARRIED, CARRIED, count=levels))

    def times(self, target: AnalysisTarget) -> Times:
        """Seconds by regime on a target."""
        if not target.measured:
            clock = ProgramClock(target, self.dtype)
            waits = self.time if self.kind == NATIVE and self.loop == WAITING else 0
            run = [(clock.times(Kernel("scan", step.cost)), step.count) for step in self.program]
            return added([*run, ({"launch": DRAM_LATENCY_S}, waits)])
        if self.kind == "linear":
            known = target.tuned(self.case)
            if known is not None:
                work = self.program[0].cost
                floors = target.ceilings.slow(work, self.dtype, work.bytes_total, launches=0)
                return {"activations": max(floors.values()) / known.share}
        return added((self._eager(target, step.cost), step.count) for step in self.eager)

    def _eager(self, target: AnalysisTarget, work: Cost) -> Times:
        """One kernel that PyTorch launches, and its launch."""
        usual = target.ceilings.usual
        floors = usual.slow(work, self.dtype, work.bytes_total, launches=0)
        return {"activations": max(floors.values(), default=0.0), "launch": usual.value("launch") or 0.0}


def scans(target: AnalysisTarget, dtypes: Sequence[str], lengths: Sequence[int]) -> Iterator[FigureSeries]:
    """Panels (a) of figure 8: each kind over the native one, by dtype."""
    for dtype, loop in itertools.product(dtypes, loops(target)):
        found: Mapping[str, list[Times]] = {
            kind: [ScanWork(kind, time, dtype, loop=loop).times(target) for time in lengths] for kind in SCAN_KINDS
        }
        natives = [sum(times.values()) for times in found[NATIVE]]
        for kind, label in SCAN_KINDS.items():
            points = [
                FigurePoint(
                    x=time, y=sum(times.values()) / native, batch=SCAN_BATCH, seq=time, seconds=sum(times.values()),
                    bound=bound(times),
                )
                for time, times, native in zip(lengths, found[kind], natives, strict=True)
            ]  # fmt: skip
            yield FigureSeries(
                label=label, model=kind, panel=PANEL_OF[dtype], device=target.name, origin="predicted",
                assumption=loop, points=points, dtype=dtype,
            )  # fmt: skip


def loops(target: AnalysisTarget) -> tuple[str, ...]:
    """Assumptions about the native scan: none on the machine at hand, where its launches were measured."""
    return ("",) if target.measured else tuple(assumed.name for assumed in LOOPS)
