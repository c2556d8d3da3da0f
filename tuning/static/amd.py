"""Instructions and resources out of the assembly that Triton's AMD backend keeps."""

from __future__ import annotations

import re

from tuning.static.code import Instruction, Resources

CLASSES: dict[str, tuple[str, ...]] = {
    "async_copies": ("global_load_lds", "buffer_load_lds"),
    "global_loads": ("global_load", "buffer_load", "flat_load"),
    "global_stores": ("global_store", "buffer_store", "flat_store"),
    "shared_loads": ("ds_read", "ds_load"),
    "shared_stores": ("ds_write", "ds_store"),
    "matrix": ("v_mfma", "v_wmma", "v_smfmac"),
    "special": ("v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_"),
    "shuffles": ("ds_bpermute", "ds_permute", "ds_swizzle"),
    "barriers": ("s_barrier",),
    "scalar": ("s_",),
    "local_memory": ("scratch_",),
    "multiply_adds": ("v_fma", "v_pk_fma", "v_mul_f", "v_pk_mul_f", "v_add_f", "v_pk_add_f", "v_mac"),
}
"""Opcode prefixes; see AMD's instruction set guides."""

_DWORDS = {"x2": 64, "x3": 96, "x4": 128}


def parse_assembly(text: str) -> list[Instruction]:
    """Instructions of the kernel in an ``amdgcn`` listing, in order."""
    labels: dict[str, int] = {}
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith(".Lfunc_end"):
            break
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(rows)
        elif code := re.match(r"\s+([a-z]+_\w+)\s*([^;]*)", line):
            rows.append((code[1], code[2].strip()))
    found = []
    for opcode, operands in rows:
        jumps = opcode.startswith(("s_branch", "s_cbranch"))
        found.append(Instruction(opcode, labels.get(operands) if jumps else None))
    return found


def load_widths(instructions: list[Instruction]) -> dict[int, int]:
    """Global loads by bits per thread."""
    widths: dict[int, int] = {}
    for instruction in instructions:
        match = re.match(r"(?:global|buffer|flat)_load_(?:lds_)?([a-z]+?)(\d+)?(x\d)?(?:_|$)", instruction.opcode)
        if match:
            kind, bits_written, dwords = match.groups()
            bits = {"ubyte": 8, "sbyte": 8, "ushort": 16, "sshort": 16, "short": 16}.get(kind, 32)
            bits = int(bits_written) if bits_written and kind in "bui" else bits
            bits = _DWORDS[dwords] if dwords else bits
            widths[bits] = widths.get(bits, 0) + 1
    return widths


def parse_usage(text: str) -> Resources:
    """Resources out of the metadata at the end of the listing."""

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", text)
        if match is None:
            raise ValueError(f"the assembly's metadata has no {name}")
        return int(match[1])

    return Resources(
        registers=number("vgpr_count"),
        spill_bytes=max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size")),
        shared_bytes=number("group_segment_fixed_size"),
    )


def read(assembly: str) -> tuple[list[Instruction], Resources]:
    """Instructions and resources of an assembly listing that holds one kernel."""
    return parse_assembly(assembly), parse_usage(assembly)
