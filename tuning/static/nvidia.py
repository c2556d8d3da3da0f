"""Instructions and resources of a cubin, by the disassembler that comes with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.nvidia.compiler import get_ptxas

from tuning.static.code import Instruction, Resources

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

CLASSES: dict[str, tuple[str, ...]] = {
    "global_loads": ("LDG.",),
    "async_copies": ("LDGSTS", "UTMALDG", "UBLKCP"),
    "global_stores": ("STG",),
    "shared_loads": ("LDS", "LDSM"),
    "shared_stores": ("STS", "STSM"),
    "matrix": ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "DMMA", "UTCHMMA", "UTCQMMA"),
    "special": ("MUFU",),
    "shuffles": ("SHFL",),
    "barriers": ("BAR", "SYNCS"),
    "scalar": (),
    "local_memory": ("LDL", "STL"),
    "multiply_adds": ("FFMA", "FMUL", "FADD", "DFMA", "HFMA2", "HADD2", "HMUL2"),
}
"""Opcode prefixes; see the instruction set reference of the CUDA binary utilities. Instructions of the uniform datapath
are no class of their own: they take a turn of the scheduler as any other."""


WAITS = ("WARPGROUP.DEPBAR",)
"""Opcode prefixes of waits for warp-group products (HGMMA)."""


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, encoding="utf-8", check=True)
    return done.stdout


def parse_sass(text: str) -> list[Instruction]:
    """Instructions of ``nvdisasm -c`` output in order, without padding."""
    labels: dict[str, int] = {}
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(rows)
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            if code[1] != "NOP":
                rows.append((code[1], code[2]))
    found = []
    for opcode, operands in rows:
        jump = re.search(r"`\((\.L_\w+)\)", operands) if opcode.startswith("BRA") else None
        found.append(Instruction(opcode, labels.get(jump[1]) if jump else None))
    return found


def load_widths(instructions: list[Instruction]) -> dict[int, int]:
    """Global loads, asynchronous ones too, by bits per thread."""
    widths: dict[int, int] = {}
    for instruction in instructions:
        if instruction.opcode.startswith(("LDG.", "LDGSTS")):
            parts = instruction.opcode.split(".")
            size = next((p for p in parts if p in ("U8", "S8", "U16", "S16", "64", "128", "256")), "32")
            bits = int(size.lstrip("US"))
            widths[bits] = widths.get(bits, 0) + 1
    return widths


def parse_usage(text: str) -> Resources:
    """Resources out of ``cuobjdump -res-usage`` output. The stack holds nothing but spills in kernels of ours."""
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if match is None:
        raise ValueError(f"cuobjdump -res-usage printed no usage: {text!r}")
    return Resources(*map(int, match.groups()))


def warnings(ptx: str) -> tuple[str, ...]:
    """What ptxas warns of, each kind once: ``C7515: wgmma.mma_async instructions are serialized due to ...``.

    Triton keeps no log of ptxas, and warnings on performance are of asynchronous products: only code that has such is
    assembled again, as Triton does it.
    """
    if "wgmma" not in ptx and "tcgen05" not in ptx:
        return ()
    arch = re.search(r"^\.target (sm_(\d+)\w*)", ptx, re.MULTILINE)
    if arch is None:
        raise ValueError("the assembly names no target")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        options = ("-v", "--regAllocOptLevel=2", f"--gpu-name={arch[1]}", str(path), "-o", str(path) + ".cubin")
        command = [get_ptxas(int(arch[2])).path, *options]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return parse_warnings(done.stderr)


_WARNING = re.compile(r"\((C\d+)\) Potential Performance Loss: (.+?)(?: in (?:the )?function '.*')?$", re.MULTILINE)


def parse_warnings(log: str) -> tuple[str, ...]:
    """Warnings in a log of ``ptxas -v``, without the names of functions."""
    return tuple(dict.fromkeys(f"{code}: {words}" for code, words in _WARNING.findall(log)))


def read(cubin: bytes) -> tuple[list[Instruction], Resources]:
    """Instructions and resources of a cubin that holds one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return parse_sass(_tool("nvdisasm", "-c", str(path))), parse_usage(_tool("cuobjdump", "-res-usage", str(path)))
