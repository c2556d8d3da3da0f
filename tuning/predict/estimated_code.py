"""Estimated machine code of launches that are not compiled yet: it orders what to compile, and is never a result.

The recorded table has the default configuration of every kernel. Instructions, registers and shared memory of another
configuration are taken to follow the elements of a thread (tile / threads), as loops over a thread's elements are
unrolled; a kernel that no table has gets the figures of a plain one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tuning.predict.launch_work import LaunchWork
from tuning.static.recorded import StaticReport

BASE_REGISTERS = 16
"""Registers for addresses and counters, whatever the tile."""

MOST_REGISTERS = 255
"""Of a thread; what is above is spilled, four bytes each."""

PLAIN_PER_ELEMENT = 15.0
"""Instructions per element of a kernel of which nothing is known: see the forms of linear_scan in the table."""

MIX = (
    *("async_copies", "global_loads", "global_stores", "shared_loads", "shared_stores", "matrix"),
    *("special", "shuffles", "barriers", "scalar", "local_memory", "multiply_adds"),
)


_NAMELESS: dict[str, Any] = dict.fromkeys(("op", "variant", "case", "config", "target"), "")


class EstimatedCode:
    """Guessed machine code by kernel name, from reports on other configurations or architectures."""

    def __init__(self, reports: Iterable[StaticReport], arch: str, warp_size: int) -> None:
        self.arch, self.warp_size = arch, warp_size
        self._known: dict[str, list[StaticReport]] = {}
        # another vendor's code tells nothing
        self.learn(report for report in reports if report.target[:3] == arch[:3])

    def learn(self, reports: Iterable[StaticReport]) -> None:
        """Take reports into account from now on, the later before the earlier."""
        for report in reports:
            if report.instructions_per_element:
                self._known.setdefault(report.kernel, []).insert(0, report)  # the newest wins ties

    def _nearest(self, work: LaunchWork) -> StaticReport | None:
        """Of the same architecture if there is one, then of about as many elements per thread, and as many warps."""

        def far(report: StaticReport) -> tuple[bool, float]:
            assert report.instructions_per_element is not None
            elements = report.loop_instructions / report.instructions_per_element
            here = work.tile / (work.num_warps * self.warp_size)
            warps = abs(math.log2(report.num_warps / work.num_warps))
            return report.target != self.arch, abs(math.log2(elements / here)) + warps / 2

        return min(self._known.get(work.name, ()), key=far, default=None) if work.tile else None

    def __call__(self, work: LaunchWork) -> StaticReport:
        threads = work.num_warps * self.warp_size
        known = self._nearest(work)
        found: dict[str, Any]
        if known is None or not known.instructions_per_element:
            each = max(1.0, work.tile / threads)
            loop = round(PLAIN_PER_ELEMENT * each)
            mix = dict.fromkeys(MIX, 0) | {"global_loads": max(1, round(each / 4)), "multiply_adds": round(2 * each)}
            registers, shared_bytes = BASE_REGISTERS + round(2 * each), 0
            found = {"loop_instructions": loop, "instructions": loop + 100, "mix": mix, "load_bits": {128: 1}}
            spill_bytes = 0
        else:
            scale = work.tile / threads * known.instructions_per_element / known.loop_instructions
            registers = BASE_REGISTERS + round(max(0, known.registers - BASE_REGISTERS) * scale)
            shared_bytes = round(known.shared_bytes / known.num_warps * scale * work.num_warps)
            spill_bytes = max(0, registers - MOST_REGISTERS) * 4
            found = {
                "loop_instructions": max(1, round(known.loop_instructions * scale)),
                "instructions": max(2, round(known.instructions * scale)),
                "mix": {name: round(count * scale) for name, count in known.mix.items()},
                "load_bits": known.load_bits,
            }
        return StaticReport(
            **_NAMELESS,
            **found,
            kernel=work.name,
            num_warps=work.num_warps,
            registers=min(MOST_REGISTERS, registers),
            spill_bytes=spill_bytes,
            shared_bytes=shared_bytes,
            instructions_per_element=None,
        )
