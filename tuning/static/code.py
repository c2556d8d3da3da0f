"""Instructions of one kernel, whatever the architecture: which loop is the main one, how much of what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """opcode: as the disassembler writes it, without predicate and operands. target: index it may jump to."""

    opcode: str
    target: int | None = None


@dataclass(frozen=True)
class Resources:
    """What one program holds. registers: vector registers per thread. spill_bytes: per thread. shared_bytes: static."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def main_loop(instructions: Sequence[Instruction]) -> Sequence[Instruction]:
    """The longest loop that holds no other loop; the whole program where there is no loop."""
    jumps = [(i.target, at) for at, i in enumerate(instructions) if i.target is not None and i.target < at]
    inner = [
        (start, end)
        for start, end in jumps
        if not any((start, end) != other and start <= other[0] and other[1] <= end for other in jumps)
    ]
    if not inner:
        return instructions
    start, end = max(inner, key=lambda jump: jump[1] - jump[0])
    return instructions[start : end + 1]


def mix(instructions: Sequence[Instruction], classes: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Instructions per class; ``classes`` gives opcode prefixes, the first class that fits counts. Zeros are kept."""
    counts = Counter(dict.fromkeys(classes, 0))
    for instruction in instructions:
        for name, prefixes in classes.items():
            if instruction.opcode.startswith(prefixes):
                counts[name] += 1
                break
    return dict(counts)
