"""What the machine code of one launch costs, and whether it keeps the launch's claims."""

from __future__ import annotations

from typing import Any

import msgspec

from griffin_kernels.contract import Variant, config_key
from griffin_kernels.launch import Launch
from tuning.static import amd, nvidia
from tuning.static.code import main_loop, mix
from tuning.static.compiling import compile_launch
from tuning.static.recorded import StaticReport
from tuning.static.targets import Target


def matrix_opcodes(target: Target) -> tuple[str, ...]:
    """What ``tl.dot`` of 16-bit data should become: warp-group products on sm_90, tensor memory's on sm_100 and 103."""
    if target.backend == "hip":
        return ("v_mfma", "v_wmma")
    if target.arch == 90:
        return ("HGMMA",)
    return ("UTCHMMA", "HMMA") if int(target.arch) in (100, 103) else ("HMMA",)


def broken_claims(launch: Launch, target: Target, found: StaticReport, opcodes: set[str]) -> tuple[str, ...]:
    """Sentences about what the launch claims and the code does not keep, or what the target does not have."""
    broken = []
    claims = launch.claims
    if found.spill_bytes and not claims.spills:
        broken.append(f"spills {found.spill_bytes} bytes per thread")
    if found.serialised and not claims.serialised:
        broken.append(f"{found.waits} waits for {found.mix['matrix']} products of its loop: {found.warnings[0]}")
    if target.backend == "cuda":
        widest = max(found.load_bits, default=0)
        if widest < claims.load_bits:
            broken.append(f"widest load is {widest} bits, claimed are {claims.load_bits}")
        if claims.async_copies and not found.mix["async_copies"] and int(target.arch) >= 80:
            broken.append("claims asynchronous copies and has none")
    if claims.matrix and not any(opcode.startswith(matrix_opcodes(target)) for opcode in opcodes):
        broken.append(f"claims matrix products and has no {' or '.join(matrix_opcodes(target))}")
    limit = target.shared_limit_bytes
    if limit is not None and found.shared_bytes > limit:
        broken.append(f"needs {found.shared_bytes} bytes of shared memory, {target.name} has {limit}")
    return tuple(broken)


def analyse(launch: Launch, target: Target, *, variant: Variant, case: str, config: Any) -> StaticReport:
    """Compile one launch and read its machine code."""
    compiled = compile_launch(launch, target)
    waiting: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if target.backend == "cuda":
        instructions, resources = nvidia.read(compiled.asm["cubin"])
        classes, waiting, widths = nvidia.CLASSES, nvidia.WAITS, nvidia.load_widths(instructions)
        warnings = nvidia.warnings(compiled.asm["ptx"])
    else:
        instructions, resources = amd.read(compiled.asm["amdgcn"])
        classes, widths = amd.CLASSES, amd.load_widths(instructions)
    loop = main_loop(instructions)
    threads = launch.num_warps * target.warp_size
    found = StaticReport(
        op=variant.op,
        variant=variant.name,
        case=case,
        config=config_key(config),
        kernel=launch.name,
        target=target.name,
        registers=resources.registers,
        spill_bytes=resources.spill_bytes,
        shared_bytes=max(compiled.metadata.shared, resources.shared_bytes),
        num_warps=launch.num_warps,
        instructions=len(instructions),
        loop_instructions=len(loop),
        instructions_per_element=len(loop) * threads / launch.tile if launch.tile else None,
        mix=mix(loop, classes),
        load_bits=dict(sorted(widths.items())),
        waits=sum(instruction.opcode.startswith(waiting) for instruction in loop),
        warnings=warnings,
    )
    opcodes = {instruction.opcode for instruction in instructions}
    return msgspec.structs.replace(found, broken=broken_claims(launch, target, found, opcodes))
