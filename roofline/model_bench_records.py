"""What ``griffin bench model`` records: one JSON file that its table and the report's tab are made from. Needs no
PyTorch.

Times are seconds, sizes bytes, intervals [low, high]. Versioned like the registry: a reader refuses a later version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from griffin_kernels.records import DeviceRecord
from roofline.study_records import encode as encode
from roofline.study_records import read_file

MODEL_BENCH_VERSION = 1
"""Version of the format."""

FILE_NAME = "model_bench.json"

BenchPhase = Literal["prefill", "generate", "train"]

PHASES: dict[BenchPhase, str] = {
    "prefill": "one forward pass over the prompt, with a cache, logits of the last token",
    "generate": "a short prompt, then greedy decoding, token by token",
    "train": "forward and backward of the loss of every token",
}
"""What is run -> in words."""

PARTS = {
    "linears": "linear layers",
    "recurrence": "recurrent blocks without their linear layers",
    "attention": "attention blocks without their linear layers",
    "rest": "embedding, norms, residuals, activations",
}
"""Parts of a forward pass -> in words."""


class Side(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the two in one phase. disturbed: other processes took the cores in too many runs to leave those out.

    parts_s: medians of the parts by name, of runs of their own; empty for a training step, where the backward pass is
    not told apart. peak_bytes: most memory that one run took beside weights and what the process held before; None
    where the system does not tell.
    """

    samples_s: list[float]
    median_s: float
    parts_s: dict[str, float]
    peak_bytes: int | None
    disturbed: bool


class PhaseRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A phase, the model as transformers runs it and accelerated, measured in turn.

    tokens: that a run takes in or gives. ratio: the original's time over the accelerated one's, median of the rounds,
    with its 95 % interval.
    """

    phase: BenchPhase
    tokens: int
    original: Side
    accelerated: Side
    ratio: float
    interval: tuple[float, float]

    def part_ratio(self, part: str) -> float | None:
        """The original's time in a part over the accelerated one's; None where it was not measured or is nothing."""
        before, after = self.original.parts_s.get(part, 0.0), self.accelerated.parts_s.get(part, 0.0)
        return before / after if before > 0 and after > 0 else None

    @property
    def memory_ratio(self) -> float | None:
        """The accelerated one's peak over the original's."""
        before, after = self.original.peak_bytes, self.accelerated.peak_bytes
        return after / before if before and after is not None else None


class ModelBench(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file. model: as it was named. layers, vocab_size, width, parameters: of what was run, which can be smaller.

    prompt: tokens of a prefill and of a training step. same_tokens: how many of ``new_tokens`` greedy tokens were the
    same before the first that differed, in the row where that came first. transformers: its version.
    """

    schema_version: int
    device: DeviceRecord
    transformers: str
    command: str
    model: str
    layers: int
    width: int
    vocab_size: int
    parameters: int
    dtype: str
    batch: int
    prompt: int
    new_tokens: int
    same_tokens: int | None
    phases: list[PhaseRecord]

    @property
    def tokens_told(self) -> str | None:
        """How far the two generate the same text, in a sentence; None where nothing was generated."""
        if self.same_tokens is None or self.same_tokens == self.new_tokens:
            return None if self.same_tokens is None else f"the same {self.new_tokens} greedy tokens from both"
        return (
            f"greedy tokens are the same up to number {self.same_tokens} of {self.new_tokens}: "
            f"a rounding in {self.dtype} can turn a near tie, after which the texts differ"
        )


def read(path: Path) -> ModelBench:
    """Read a file; ReportError says in one sentence what is wrong with it."""
    return read_file(path, ModelBench, MODEL_BENCH_VERSION, "a record of `griffin bench model`")
