"""The static table as data: what is to be compiled, what it costs then, and the file that holds all of that.

``python -m tuning.static --save`` (``make static``) writes the file into the package, so that a report can show it
without a compiler, and a test holds it against the sources: a kernel that has changed since is found. Nothing here
imports Triton or a kernel.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from griffin_kernels.case import Case

FILE = Path(str(resources.files("tuning.static"))) / "recorded.json"


class CompileRequest(msgspec.Struct, frozen=True, tag="compile"):
    """One candidate that is to be compiled: variant key, case, configuration values, name of the target.

    target: empty for this machine: the variant is called once, for what it compiles then and keeps on disk.
    step: which of the candidate's steps; None for all.
    until: a ``report`` on the machine code, or ``cached`` machine code (of the short form that a candidate is checked
    on, too), or ``lowered`` to LLVM by Triton's own stages, which takes a fraction of the time.
    """

    variant: str
    case: Case
    config: dict[str, Any]
    target: str = ""
    step: int | None = None
    until: Literal["report", "cached", "lowered"] = "report"


class StaticReport(msgspec.Struct, frozen=True):
    """Figures of one compiled kernel; per thread unless a name says otherwise.

    registers: vector registers. spill_bytes: stack used for spilled registers. shared_bytes: per block.
    instructions: in the whole program. loop_instructions: in the main loop, or the whole program without one.
    instructions_per_element: thread-instructions that the main loop issues per element (None where it means nothing).
    mix: instructions of the main loop by class. load_bits: global loads of the whole program by width.
    waits: for warp-group products, in the main loop; as many as products where ptxas serialised these.
    warnings: what ptxas says that performance is lost by.
    broken: claims of the launch that the machine code does not keep, one sentence each.
    code: digest of all that the machine code follows from (kernel_digest.py).
    """

    op: str
    variant: str
    case: str
    config: str
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: int
    loop_instructions: int
    instructions_per_element: float | None
    mix: dict[str, int]
    load_bits: dict[int, int]
    waits: int = 0
    warnings: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    code: str = ""

    @property
    def serialised(self) -> bool:
        """Whether products that could be under way together wait for each other."""
        return any("serialized" in warning for warning in self.warnings)

    @property
    def specials_per_element(self) -> float | None:
        """Special functions that the main loop issues per element."""
        each, loop = self.instructions_per_element, self.loop_instructions
        return None if each is None or not loop else each * self.mix["special"] / loop


class Recorded(msgspec.Struct, frozen=True):
    """triton: its version. sources: source hash by variant key. reports: default configurations at bench cases.

    readers: digest of what made the reports out of machine code; with another, all are made anew.
    """

    triton: str
    sources: dict[str, str]
    reports: list[StaticReport]
    readers: str = ""


def save(found: Recorded, path: Path = FILE) -> None:
    """Write the file in one step: a line for each kernel, in order, so that a change is readable as a difference."""
    from griffin_kernels.registry import write_atomically  # imports torch, which whoever reads the file does without

    ordered = sorted(found.reports, key=lambda r: (r.op, r.variant, r.case, r.kernel, r.target))
    sources = dict(sorted(found.sources.items()))
    head = msgspec.json.encode({"triton": found.triton, "readers": found.readers, "sources": sources})
    rows = b",\n".join(msgspec.json.encode(report) for report in ordered)
    write_atomically(path, head[:-1] + b',\n"reports":[\n' + rows + b"\n]}\n")


def load(path: Path = FILE) -> Recorded:
    """The recorded table; OSError where there is none, msgspec.DecodeError where it is broken."""
    return msgspec.json.decode(path.read_bytes(), type=Recorded)
