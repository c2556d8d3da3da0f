"""Predicted seconds of one candidate on one SKU, from its machine code, its launches and the datasheet.

Every step of a candidate runs after the one before, so their times add up. One launch takes launch_s and the smooth
maximum of ``roofline.kernel_time`` over these limits:

dram     bytes of the step / (datasheet bandwidth x dram_reach). Caches are cold, as the tuner times them. Spilled
         registers count too once what all resident threads spill is more than the last-level cache.
cache    bytes that programs ask for, the same ones again included (loads of the main loop x their width, spills) /
         (L2_BYTES_PER_CLOCK per unit x cache_reach).
tensor   products / (datasheet rate x share that published products reach x matrix_share: what Triton reaches of those).
vector   multiplies and adds of the main loop / datasheet float32 rate.
special  exp, rcp, sqrt and the like / the special function units' rate.
shared   shared memory accesses and shuffles, SHARED_CYCLES each on a unit.
issue    all warp instructions / (instructions that a unit starts per clock x issue_reach). AMD's scalar instructions of
         the main loop start beside the vector ones of other waves, at the same rate: the more numerous count.
latency  the chain of one program, times how many follow one another on a unit. An iteration of the main loop waits for
         its loads (latency_s; with asynchronous copies only 1 / (stages - 1) of it) and then for its instructions
         (dependent_cycles each); what follows the loop waits once more. What few warps cannot hide shows here: by
         Little's law latency x bandwidth is what must be in flight.

Units compute whole programs: all limits but dram and cache are those of the busiest unit, ceil(programs / units), and
latency counts whole waves of resident programs (the tail effect). Occupancy is by registers, shared memory, warps and
blocks. A ``Call`` is ``kernels`` launches of PyTorch's at the rate of published products or of memory.

Left out: cache hits between steps, AMD's memory and branch instructions starting beside vector ones (they count with
them), bank conflicts, uncoalesced access, instructions' own latencies, the prologue's mix. Clocks are the boost clocks,
less on boards that their power limit holds back. Constants are the SKU's published ones until ``griffin tune
calibrate`` fits them to measurements; ranks are worth more than times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from griffin_kernels import errors
from griffin_kernels.architectures import KIB, SHARED_KIB
from griffin_kernels.datasheet import Datasheet, datasheet
from griffin_kernels.device import Device
from griffin_kernels.texts import unmarked
from roofline import kernel_time, reached
from roofline.kernel_time import ASSUMED as ASSUMED
from roofline.kernel_time import L2_BYTES_PER_CLOCK, constants_of
from roofline.kernel_time import Constants as Constants
from tuning.predict.launch_work import CallWork, LaunchWork, Work
from tuning.static.describe import device_of
from tuning.static.recorded import StaticReport

Code = Callable[[LaunchWork], StaticReport]
"""The machine code of a launch."""

SHARED_CYCLES = 2.0
"""Clocks of a unit for one shared memory access of a warp: 128 bytes a clock, accesses of 4 to 16 bytes a thread."""

SPECIAL_PER_CLOCK = 16.0
"""Special functions of one CU per clock where the datasheet is silent: a quarter of its 64 lanes."""

VECTOR_LANES: Mapping[str, int] = {"sm_75": 64, "sm_80": 64, "sm_87": 128, "gfx90a": 64}
"""Float32 multiply-adds of one unit per clock; 128 where it is not listed. Gives the clock from the float32 peak."""


def load_constants(path: Path | None) -> Constants | None:
    """Constants that ``griffin tune calibrate`` wrote; None, for those of the SKU, without a path.

    Raises ArgumentError on a bad file.
    """
    if path is None:
        return None
    try:
        return msgspec.json.decode(unmarked(path.read_bytes()), type=Constants)
    except OSError as error:
        raise errors.ArgumentError(f"constants {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"constants {path} cannot be used: {error}; `griffin tune calibrate` writes such files"
        raise errors.ArgumentError(text) from None


@dataclass(frozen=True)
class ResidencyLimits:
    """What one SM or CU has for the blocks that it holds.

    warps: warps (AMD: waves). blocks: thread blocks. registers: 32-bit registers, of all threads together.
    shared_bytes: shared memory (LDS), and block_shared_bytes of it for one block at most. reserved_bytes: shared memory
    that each block takes besides its own. issue: instructions of a warp that start per clock, all schedulers together.
    warp_size: threads.
    """

    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int
    issue: float
    warp_size: int = 32


def _nvidia(arch: str, warps: int, blocks: int) -> ResidencyLimits:
    # a unit has what one block may use and, from sm_80 on, 1 KiB besides, which every block takes for the system
    block, reserved = SHARED_KIB[arch] * KIB, 0 if arch == "sm_75" else KIB
    return ResidencyLimits(warps, blocks, 65536, block + reserved, block, reserved, issue=4.0)


def _cdna(arch: str) -> ResidencyLimits:
    shared = SHARED_KIB[arch] * KIB
    # 4 SIMDs of 512 registers x 64 lanes; each starts a vector instruction of 64 threads every 4 clocks, and beside it
    # one of each other kind, of other waves (ROCm Compute Profiler's documentation, pipeline descriptions, scheduler)
    return ResidencyLimits(32, 32, 4 * 512 * 64, shared, shared, 0, issue=1.0, warp_size=64)


LIMITS: Mapping[str, ResidencyLimits] = {
    "sm_75": _nvidia("sm_75", 32, 16),
    "sm_80": _nvidia("sm_80", 64, 32),
    "sm_86": _nvidia("sm_86", 48, 16),
    "sm_87": _nvidia("sm_87", 48, 16),
    "sm_89": _nvidia("sm_89", 48, 24),
    "sm_90": _nvidia("sm_90", 64, 32),
    "sm_100": _nvidia("sm_100", 64, 32),
    "sm_103": _nvidia("sm_103", 64, 32),
    "sm_120": _nvidia("sm_120", 48, 24),
    "sm_121": _nvidia("sm_121", 48, 24),
    "gfx90a": _cdna("gfx90a"),
    "gfx942": _cdna("gfx942"),
    "gfx950": _cdna("gfx950"),
}
"""NVIDIA: CUDA C++ Programming Guide 13, "technical specifications per compute capability"; 1 KiB of shared memory is
reserved per block from sm_80 on; four schedulers, an instruction each per clock. AMD: instruction set guides of CDNA 2,
3 and 4, and the LLVM AMDGPU guide (8 waves per SIMD, registers in steps of 8)."""

REGISTER_STEP = 8
"""Registers of a thread are given out in steps of this (NVIDIA: 256 per warp of 32; AMD: 8)."""

SCHEDULERS = 4
"""Parts of a unit, on all of these; each owns a quarter of its registers."""

BLOCK_THREADS = 1024
"""Most threads of a block, on all of these."""


class Occupancy(NamedTuple):
    """blocks: of a kernel that one SM or CU holds at once, 0 where one does not fit. limit: what stops more.

    share: of its warps.
    """

    blocks: int
    limit: str
    share: float


def occupancy(arch: str, registers: int, shared_bytes: int, num_warps: int) -> Occupancy:
    """Blocks of ``num_warps`` warps with so many registers per thread and bytes of shared memory that fit a unit.

    arch: one of LIMITS.
    """
    have = LIMITS[arch]
    taken = REGISTER_STEP * -(-max(registers, 1) // REGISTER_STEP) * have.warp_size
    # registers belong to schedulers, and warps go round
    warps_by_registers = SCHEDULERS * (have.registers // SCHEDULERS // taken)
    counts = {"registers": warps_by_registers // num_warps, "warps": have.warps // num_warps, "blocks": have.blocks}
    if shared_bytes:
        counts["shared memory"] = have.shared_bytes // (shared_bytes + have.reserved_bytes)
    if shared_bytes > have.block_shared_bytes:
        counts["shared memory"] = 0
    if num_warps * have.warp_size > BLOCK_THREADS:
        counts["threads of a block"] = 0
    limit = min(counts, key=lambda name: counts[name])
    return Occupancy(counts[limit], limit, counts[limit] * num_warps / have.warps)


@dataclass(frozen=True)
class Machine:
    """A SKU as the model sees it. clock_hz, vector_flops_per_s: under load. constants: those of the SKU."""

    sheet: Datasheet
    limits: ResidencyLimits
    units: int
    clock_hz: float
    vector_flops_per_s: float
    special_per_clock: float
    constants: Constants

    @property
    def arch(self) -> str:
        return self.sheet.arch

    def product_flops_per_s(self, dtype: str) -> float:
        """What a library's products reach in a dtype; the vector rate where the device has no units for it."""
        share, peak = reached.tensor(self.sheet, dtype), self.sheet.tensor_flops_per_s(dtype)
        return self.vector_flops_per_s if share is None or peak is None else peak * share.value

    @cached_property
    def device(self) -> Device:
        """What the driver would report, as far as the datasheet knows."""
        return device_of(self.sheet)


def machine(sku: str) -> Machine:
    """The model's view of a SKU; UnknownDevice lists near ones, DeviceError says why one cannot be predicted for."""
    sheet = datasheet(sku)
    if sheet.arch not in LIMITS:
        what = "is no GPU" if sheet.vendor == "Google" else f"is {sheet.arch}, which Triton does not compile for"
        raise errors.DeviceError(f"{sku} {what}; kernels can be predicted for {', '.join(LIMITS)}")
    missing = [name for name in ("units", "fp32_tflops") if getattr(sheet, name) is None]
    if missing or not sheet.driver_names:
        names = ", ".join(missing or ["driver_names"])
        raise errors.DeviceError(f"the datasheet of {sku} has no {names}, without which nothing can be predicted")
    assert sheet.units is not None and sheet.vector_flops_per_s is not None
    # two operations for each multiply-add: the clock that the float32 peak is stated at
    stated = sheet.vector_flops_per_s / (sheet.units * 2 * VECTOR_LANES.get(sheet.arch, 128))
    clock_hz = sheet.boost_clock_mhz * 1e6 if sheet.boost_clock_mhz else stated
    under_load = reached.clock_share(sheet).value
    return Machine(
        sheet, LIMITS[sheet.arch], sheet.units, clock_hz * under_load, sheet.vector_flops_per_s * under_load,
        sheet.special_per_unit_per_clock or SPECIAL_PER_CLOCK, constants_of(sheet),
    )  # fmt: skip


class StepPrediction(msgspec.Struct, frozen=True):
    """One step: its time, and what each limit alone would take. waves: of resident programs; 0 for a Call.

    occupancy: share of the warps that a unit could hold; limit: what stops more. waits: for products, both of the main
    loop; serialised: each waits for the one before.
    """

    name: str
    seconds: float
    limits_s: dict[str, float]
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    occupancy: float = 0.0
    limit: str = ""
    waves: float = 0.0
    waits: int = 0
    products: int = 0
    serialised: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """A candidate's time on a SKU, and why. bound: the limit that binds for most of the time."""

    seconds: float
    bound: str
    steps: tuple[StepPrediction, ...]

    @property
    def spill_bytes(self) -> int:
        """Per thread, of the step that spills most."""
        return max((step.spill_bytes for step in self.steps), default=0)

    @property
    def serialised(self) -> bool:
        """Whether the products of any step wait for each other."""
        return any(step.serialised for step in self.steps)

    @property
    def flawed(self) -> bool:
        """Whether the compiler did what no prediction of time is good for: spilled registers, serialised products."""
        return bool(self.spill_bytes) or self.serialised

    @property
    def main(self) -> StepPrediction:
        """The launch that takes longest (the step, where none is a launch)."""
        launches = [step for step in self.steps if step.waves] or list(self.steps)
        return max(launches, key=lambda step: step.seconds)


def does_not_fit(work: LaunchWork, code: StaticReport, where: Machine) -> str | None:
    """Why a launch cannot start on the device, if so."""
    held = occupancy(where.arch, code.registers, code.shared_bytes, work.num_warps)
    if held.blocks:
        return None
    if code.shared_bytes > where.limits.block_shared_bytes:
        most = where.limits.block_shared_bytes
        return f"{work.name} needs {code.shared_bytes} bytes of shared memory, {where.arch} has {most} for a block"
    return f"{work.name} needs {code.registers} registers for {work.num_warps} warps: {held.limit} of {where.arch} end"


def predict(
    steps: Sequence[Work], code: Code, where: Machine, dtype: str, constants: Constants | None = None
) -> Prediction:
    """Predicted time of a candidate whose launches fit the device (``does_not_fit``).

    constants: those of the SKU without any.
    """
    found = [_step(step, code, where, dtype, constants or where.constants) for step in steps]
    shares: dict[str, float] = {}
    for step in found:
        binding = max(step.limits_s, key=lambda name: step.limits_s[name])
        shares[binding] = shares.get(binding, 0.0) + step.seconds
    return Prediction(sum(step.seconds for step in found), max(shares, key=lambda name: shares[name]), tuple(found))


def _seconds(times: Mapping[str, float]) -> float:
    """Launches, and on top of them the other limits together."""
    return times["launch"] + kernel_time.smooth_maximum({n: s for n, s in times.items() if n != "launch"})


def _step(work: Work, code_of: Code, where: Machine, dtype: str, constants: Constants) -> StepPrediction:
    bytes_per_s, flops_per_s = where.sheet.dram_bytes_per_s * constants.dram_reach, where.product_flops_per_s(dtype)
    if isinstance(work, CallWork):
        times = {"launch": work.kernels * constants.launch_s, "dram": work.bytes_moved / bytes_per_s}
        if work.flops:
            tail = math.ceil(work.blocks / where.units) * where.units / work.blocks
            times["tensor"] = work.flops / flops_per_s * tail
        return StepPrediction(work.name, _seconds(times), times)
    code = code_of(work)
    held = occupancy(where.arch, code.registers, code.shared_bytes, work.num_warps)
    warp, clock, unit_flops_per_s = where.limits.warp_size, where.clock_hz, where.vector_flops_per_s / where.units
    # without a loop the main loop is the whole program
    loops = work.iterations if code.loop_instructions < code.instructions else 1.0
    busiest = math.ceil(work.programs / where.units)
    waves = work.programs / (where.units * max(1, held.blocks))

    def per_unit(instructions_of_loop: float, once: float = 0.0) -> float:
        """Warp instructions on the busiest unit."""
        return busiest * work.num_warps * (loops * instructions_of_loop + once)

    mix, outside = code.mix, code.instructions - code.loop_instructions
    loads = mix["global_loads"] + mix["async_copies"]
    widths = sum(code.load_bits.values())
    # mean bytes that a thread loads at once
    load_bytes = sum(bits * n for bits, n in code.load_bits.items()) / (8 * widths) if widths else 16.0
    threads, held_programs = work.num_warps * warp, min(work.programs, where.units * max(1, held.blocks))
    asked = loops * loads * load_bytes * threads * work.programs
    moved = kernel_time.traffic(
        work.bytes_moved, where.sheet.last_level_cache_bytes or 0,
        spilled=4.0 * loops * mix["local_memory"] * threads * work.programs,
        spill_space=float(code.spill_bytes * threads * held_programs),
    )  # fmt: skip
    shared = mix["shared_loads"] + mix["shared_stores"] + mix["shuffles"]
    issued = per_unit(max(mix["scalar"], code.loop_instructions - mix["scalar"]), outside)
    # one program alone on a unit
    per_instruction = constants.dependent_cycles / clock
    waiting = constants.latency_s if loads else 0.0
    working = code.loop_instructions * per_instruction
    ahead = work.num_stages - 1 if mix["async_copies"] else 0
    chain = loops * kernel_time.iteration_s(waiting, working, ahead) + outside * per_instruction
    if not loads or code.loop_instructions < code.instructions:
        # a program without a loop has waited already
        chain += constants.latency_s
    times = {
        "launch": constants.launch_s,
        "dram": moved.dram / bytes_per_s,
        "cache": (asked + moved.cache) / (L2_BYTES_PER_CLOCK * clock * where.units * constants.cache_reach),
        "vector": per_unit(mix["multiply_adds"]) * warp * 2 / unit_flops_per_s,
        "special": per_unit(mix["special"]) * warp / (where.special_per_clock * clock),
        "shared": per_unit(shared) * SHARED_CYCLES / clock,
        "issue": issued / (where.limits.issue * clock * constants.issue_reach),
        "latency": math.ceil(waves) * chain,
    }
    if work.flops:
        tail = busiest * where.units / work.programs
        times["tensor"] = work.flops / (flops_per_s * constants.matrix_share) * tail
    return StepPrediction(
        work.name, _seconds(times), times, code.registers, code.spill_bytes, code.shared_bytes, held.share, held.limit,
        waves, code.waits, mix["matrix"], code.serialised,
    )  # fmt: skip
