"""What the machine code of one launch costs, and whether it keeps the launch's claims."""

from __future__ import annotations

from typing import Any

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


def broken_claims(
    launch: Launch, target: Target, spill_bytes: int, widths: dict[int, int], copies: int, opcodes: set[str]
) -> list[str]:
    """Sentences about what the launch claims and the code does not keep."""
    found = []
    if spill_bytes and not launch.claims.spills:
        found.append(f"spills {spill_bytes} bytes per thread")
    if target.backend == "cuda":
        widest = max(widths, default=0)
        if widest < launch.claims.load_bits:
            found.append(f"widest load is {widest} bits, claimed are {launch.claims.load_bits}")
        if launch.claims.async_copies and not copies and int(target.arch) >= 80:
            found.append("claims asynchronous copies and has none")
    if launch.claims.matrix and not any(opcode.startswith(matrix_opcodes(target)) for opcode in opcodes):
        found.append(f"claims matrix products and has no {' or '.join(matrix_opcodes(target))}")
    return found


def analyse(launch: Launch, target: Target, *, variant: Variant, case: str, config: Any) -> StaticReport:
    """Compile one launch and read its machine code."""
    compiled = compile_launch(launch, target)
    if target.backend == "cuda":
        instructions, resources = nvidia.read(compiled.asm["cubin"])
        classes, widths = nvidia.CLASSES, nvidia.load_widths(instructions)
    else:
        instructions, resources = amd.read(compiled.asm["amdgcn"])
        classes, widths = amd.CLASSES, amd.load_widths(instructions)
    loop = main_loop(instructions)
    threads = launch.num_warps * target.warp_size
    copies = mix(instructions, classes)["async_copies"]
    shared_bytes = max(compiled.metadata.shared, resources.shared_bytes)
    broken = broken_claims(launch, target, resources.spill_bytes, widths, copies, {i.opcode for i in instructions})
    if target.shared_limit_bytes is not None and shared_bytes > target.shared_limit_bytes:
        broken.append(f"needs {shared_bytes} bytes of shared memory, {target.name} has {target.shared_limit_bytes}")
    return StaticReport(
        op=variant.op,
        variant=variant.name,
        case=case,
        config=config_key(config),
        kernel=launch.name,
        target=target.name,
        registers=resources.registers,
        spill_bytes=resources.spill_bytes,
        shared_bytes=shared_bytes,
        num_warps=launch.num_warps,
        instructions=len(instructions),
        loop_instructions=len(loop),
        instructions_per_element=len(loop) * threads / launch.tile if launch.tile else None,
        mix=mix(loop, classes),
        load_bits=dict(sorted(widths.items())),
        broken=tuple(broken),
    )
