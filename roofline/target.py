"""The device that an analysis is for: its ceilings, how much of them kernels reach, its memory. Needs no PyTorch.

``of_sku`` is a device from its datasheet, there or not; ``at_hand``, which does need it, this machine's own, from
ceilings measured on it and the kernels tuned for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES, BenchCase
from griffin_kernels.datasheet import datasheet
from roofline import reached
from roofline.ceilings import MATMUL_DTYPES, Ceilings

if TYPE_CHECKING:
    from griffin_kernels.device import Device


@dataclass(frozen=True)
class Tuned:
    """A tuned kernel near a case. share: of its floor's speed that it reached. why: which entry says so."""

    share: float
    why: str


@dataclass(frozen=True)
class AnalysisTarget:
    """A device to analyse for.

    name: SKU, or the device at hand by its own name. memory_bytes: 0 if unknown. asynchronous: launches run ahead of
    kernels (a GPU), so that only the slower of the two counts; else their times add up (a CPU).
    reach: share of a ceiling that kernels reach, by roof name; 1 where it is not listed, as for measured ceilings.
    tensor_reach: the same of ``tensor`` by dtype, where it differs; ``reached`` knows both.
    tuned: what the registry knows about a case. assumptions: what the figures rest on, in sentences.
    """

    name: str
    ceilings: Ceilings
    memory_bytes: int
    asynchronous: bool
    measured: bool = False
    reach: Mapping[str, float] = field(default_factory=dict)
    tensor_reach: Mapping[str, float] = field(default_factory=dict)
    tuned: Callable[[BenchCase], Tuned | None] = lambda case: None
    assumptions: tuple[str, ...] = ()

    def reached(self, roof: str, dtype: str) -> float:
        """Share of a ceiling that kernels reach in a dtype: 1 where nothing else is known."""
        known = self.reach.get(roof, 1.0)
        return self.tensor_reach.get(dtype, known) if roof == "tensor" else known


def of_sku(sku: str) -> AnalysisTarget:
    """A device by its datasheet, every assumption listed; raises UnknownDevice naming the near ones."""
    sheet = datasheet(sku)
    shares = {dtype: share for dtype in MATMUL_DTYPES if (share := reached.tensor(sheet, dtype)) is not None}
    memory = reached.dram(sheet)
    main = shares.get("bfloat16") or shares.get("float16")
    told = [
        f"matrix products reach {share.value:.0%} of their peak in {dtype} ({share.why})"
        for dtype, share in shares.items()
        if dtype in DTYPE_BYTES
    ]
    return AnalysisTarget(
        name=sheet.sku, ceilings=Ceilings.from_datasheet(sheet), memory_bytes=sheet.memory_bytes, asynchronous=True,
        reach={"tensor": main.value if main else reached.ACHIEVED_TENSOR, "dram": memory.value, "cache": memory.value},
        tensor_reach={dtype: share.value for dtype, share in shares.items()},
        assumptions=(
            f"peaks are those of the datasheet of {sheet.name}; nothing was measured on it",
            *told,
            f"memory traffic reaches {memory.value:.0%} of its peak ({memory.why})",
        ),
    )  # fmt: skip


def at_hand(device: Device, ceilings: Ceilings | None = None) -> AnalysisTarget:
    """This machine's device as it was measured; DeviceError where its ceilings never were."""
    from griffin_kernels import dispatch  # and with it torch
    from roofline import store
    from roofline.floors import op_floors

    known = ceilings or store.load_for(device)
    if known is None:
        raise errors.DeviceError(
            f"the ceilings of {device.name} have not been measured; `griffin roofline measure` takes half a minute"
        )

    def tuned(case: BenchCase) -> Tuned | None:
        """What the registry knows: the share of its floor that the nearest measured entry reached."""
        match = dispatch.select(case.op, case, device).match
        if match is None or match.entry.median_s is None:
            return None
        near = match.entry.case
        floor = max(op_floors(case.op, near, known).values(), default=0.0)
        if not floor:
            return None
        share = floor / match.entry.median_s
        return Tuned(share, f"{match.variant.name}, measured at {share:.0%} of its floor ({near.key})")

    return AnalysisTarget(
        name=device.slug, ceilings=known, memory_bytes=device.memory_bytes, asynchronous=device.kind != "cpu",
        measured=True, tuned=tuned,
        assumptions=(
            f"ceilings were measured on this {device.name}",
            "tuned kernels reach the share of their floor that the nearest entry of the registry reached",
            "everything else runs at the median rates sampled for the ceilings, one PyTorch kernel after the other",
        ),
    )  # fmt: skip
