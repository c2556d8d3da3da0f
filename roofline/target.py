"""The device that an analysis is for: its ceilings, how much of them kernels reach, its memory. Needs no PyTorch.

``of_sku`` is a device from its datasheet, there or not; ``at_hand``, which does need it, this machine's own, from
ceilings measured on it and the kernels tuned for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES, BenchCase
from griffin_kernels.datasheet import datasheet
from roofline import kernel_shares, reached
from roofline.ceilings import MATMUL_DTYPES, Ceilings
from roofline.flash import ATTENTIONS, Attention, FlashAttention, flash_attention
from roofline.kernel_shares import SkuKernels
from roofline.kernel_shares import Tuned as Tuned

if TYPE_CHECKING:
    from griffin_kernels.device import Device


TUNED_SENTENCE = "tuned kernels reach the share of their floor that the nearest entry of the registry reached"
"""What a share is carried over from; a forecast's first line says whether it was measured, predicted or guessed."""

DECODING_SENTENCE = "in decode attention reads keys and values as fast as other kernels read memory"
"""FlashMLA's README: 3,000 of an H800's 3,350 GB/s."""

HOST_S = 30e-6
"""Seconds of host for each kernel of nn.Module code in eager PyTorch: Llama-2-7B gave 25.5 tokens/s on an A100 before
any compiling (pytorch.org, accelerating-generative-ai-2), 39 ms for about 1,231 kernels. Others count 20 to 30 us."""

COMPILED_SHARE = 0.88
"""Share of the floor's speed that a compiled program reaches on a TPU: RecurrentGemma-2B's prefill of 2,048 tokens,
about 40,000 tokens/s on a TPU v5e (arXiv 2404.07839, figure 1), over 45,600 at the floor. One point."""

COMPILED_SENTENCE = (
    f"a compiler fuses the pass, which then runs at {COMPILED_SHARE:.0%} of the floor's speed "
    "(RecurrentGemma-2B's prefill on a TPU v5e, arXiv 2404.07839); no launches are counted"
)
"""What is assumed on a TPU."""

Mode = Literal["eager", "graph", "compiled"]

MODES: Mapping[Mode, str] = {
    "eager": "launched from Python",
    "graph": "in a CUDA graph",
    "compiled": "compiled by XLA",
}
"""How a pass runs, in words: each kernel started by Python code, all captured in a graph (PyTorch calls HIP's so too),
or fused by a compiler."""


@dataclass(frozen=True)
class AnalysisTarget:
    """A device to analyse for.

    name: SKU, or the device at hand by its own name. memory_bytes: 0 if unknown. asynchronous: launches run ahead of
    kernels (a GPU), so that only the slower of the two counts; else their times add up (a CPU).
    reach: share of a ceiling that kernels reach, by roof name; 1 where it is not listed, as for measured ceilings.
    tensor_reach: the same of ``tensor`` by dtype, where it differs; ``reached`` knows both.
    tuned: what the registry knows about a case. assumptions: what the figures rest on, in sentences.
    mode: how the predicted pass runs. host_s: seconds of host for each kernel launched from Python; None takes the
    ceiling ``launch``. In a graph each kernel costs the ceiling ``launch_graph``, and nothing where that is not known.
    flash: how attention runs where the registry knows nothing; None on what has no FlashAttention. attention: how
    global attention runs on a GPU, ``flash`` or ``composed``; a CPU composes it where nothing was tuned.
    floor_share: of the floor's speed that every kernel reaches, where a compiler fuses all; None elsewhere.
    products: by dtype, those of the assumptions that are of matrix products in it.
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
    mode: Mode = "eager"
    host_s: float | None = None
    flash: FlashAttention | None = None
    attention: Attention = "flash"
    floor_share: float | None = None
    products: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise errors.ArgumentError(f"attention is {self.attention!r}, expected {' or '.join(ATTENTIONS)}")

    def attending(self, attention: Attention) -> AnalysisTarget:
        """The same with global attention ``flash`` or ``composed``; ArgumentError for anything else."""
        return replace(self, attention=attention)

    def in_dtype(self, dtype: str) -> AnalysisTarget:
        """The same without what is assumed of products in other dtypes."""
        others = {sentence for name, sentence in self.products.items() if name != dtype}
        return replace(self, assumptions=tuple(sentence for sentence in self.assumptions if sentence not in others))

    def reached(self, roof: str, dtype: str) -> float:
        """Share of a ceiling that kernels reach in a dtype: 1 where nothing else is known."""
        known = self.reach.get(roof, 1.0)
        return self.tensor_reach.get(dtype, known) if roof == "tensor" else known


def of_sku(sku: str) -> AnalysisTarget:
    """A device by its datasheet, every assumption listed; raises UnknownDevice naming the near ones."""
    sheet = datasheet(sku)
    known = Ceilings.from_datasheet(sheet)
    peaks = f"peaks are those of the datasheet of {sheet.name}; nothing was measured on it"
    if sheet.vendor == "Google":
        return AnalysisTarget(
            name=sheet.sku, ceilings=known, memory_bytes=sheet.memory_bytes, asynchronous=True,
            mode="compiled", floor_share=COMPILED_SHARE, assumptions=(peaks, COMPILED_SENTENCE),
        )  # fmt: skip
    kernels, flash = SkuKernels(sheet, known), flash_attention(sheet.arch)
    node = known.ceiling("launch_graph")
    nodes = "launches in a graph are not counted: what one costs on it is not known"
    if node is not None:
        nodes = f"each kernel costs {node.value * 1e6:.3g} us in a CUDA graph ({node.source})"
    shares = {dtype: share for dtype in MATMUL_DTYPES if (share := reached.tensor(sheet, dtype)) is not None}
    memory = reached.dram(sheet)
    main = shares.get("bfloat16") or shares.get("float16")
    products = {
        dtype: f"matrix products reach {share.value:.0%} of their peak in {dtype} ({share.why})"
        for dtype, share in shares.items()
        if dtype in DTYPE_BYTES
    }
    return AnalysisTarget(
        name=sheet.sku, ceilings=known, memory_bytes=sheet.memory_bytes, asynchronous=True,
        reach={"tensor": main.value if main else reached.ACHIEVED_TENSOR, "dram": memory.value, "cache": memory.value},
        tensor_reach={dtype: share.value for dtype, share in shares.items()},
        tuned=lambda case: kernels(case, case.op), flash=flash, mode="graph", host_s=HOST_S, products=products,
        assumptions=(
            peaks,
            *products.values(),
            f"memory traffic reaches {memory.value:.0%} of its peak ({memory.why})",
            flash.sentence(),
            DECODING_SENTENCE,
            TUNED_SENTENCE,
            nodes,
            f"launched from Python, each takes {HOST_S * 1e6:g} us of the host, hidden behind the device's work",
        ),
    )  # fmt: skip


def at_hand(device: Device, ceilings: Ceilings | None = None) -> AnalysisTarget:
    """This machine's device as it was measured; DeviceError where its ceilings never were."""
    from griffin_kernels import dispatch  # and with it torch
    from roofline import store

    known = ceilings or store.load_for(device)
    if known is None:
        raise errors.DeviceError(
            f"the ceilings of {device.name} have not been measured; `griffin roofline measure` takes half a minute"
        )

    def tuned(case: BenchCase) -> Tuned | None:
        """What the registry knows: the share of its floor that the nearest entry reached, or is predicted to."""
        match = dispatch.select(case.op, case, device).match
        return None if match is None else kernel_shares.tuned(match.entry, known)

    gpu = device.kind in ("cuda", "hip")
    launch = known.usual.value("launch") or 0.0
    flash = flash_attention(device.arch) if gpu else None
    return AnalysisTarget(
        name=device.slug, ceilings=known, memory_bytes=device.memory_bytes, asynchronous=device.kind != "cpu",
        measured=True, tuned=tuned, flash=flash,
        host_s=max(HOST_S, launch) if gpu else None,
        assumptions=(
            f"ceilings were measured on this {device.name}",
            TUNED_SENTENCE,
            *([flash.sentence() + ", where nothing was measured"] if flash else []),
            "everything else runs at the median rates sampled for the ceilings, one PyTorch kernel after the other",
        ),
    )  # fmt: skip
