"""Launches and machine code that tests of the static model make up, and the steps of real candidates."""

from __future__ import annotations

import dataclasses
import functools

import msgspec

from griffin_kernels import catalog
from griffin_kernels.contract import Case
from tuning.predict import time_model
from tuning.predict.launch_work import CallWork, LaunchWork
from tuning.predict.target_space import described
from tuning.predict.time_model import Constants, machine
from tuning.static import recorded
from tuning.static.describe import meta_call
from tuning.static.recorded import StaticReport

H100, MI300X = "nvidia-h100-sxm", "amd-mi300x"


def report(**facts: object) -> StaticReport:
    """Machine code of a scan: a loop of 400 instructions that loads 4 KB a warp, and whatever ``facts`` say."""
    mix = dict.fromkeys(recorded.load().reports[0].mix, 0) | {"global_loads": 8, "multiply_adds": 64}
    usual = recorded.load().reports[0]
    plain = msgspec.structs.replace(
        usual, registers=64, spill_bytes=0, shared_bytes=0, num_warps=1, instructions=500, loop_instructions=400,
        mix=mix, load_bits={128: 8}, broken=(),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **facts)


def launch(**facts: object) -> LaunchWork:
    usual = LaunchWork("kernel", 0, "key", 1320, 1, 1, 2048, 16.0, 1e8, 0.0)
    return dataclasses.replace(usual, **facts)


def seconds(work: LaunchWork, code: StaticReport, sku: str = H100, constants: Constants | None = None) -> float:
    return time_model.predict([work], lambda _: code, machine(sku), "bfloat16", constants).seconds


@functools.cache
def tensors(op: str, case: Case) -> object:
    return meta_call(catalog.op(op), case)


def steps_of(key: str, case_part: str, arch: str = "sm_90", **values: object) -> list[LaunchWork | CallWork]:
    variant = catalog.variant(key)
    op = catalog.op(variant.op)
    case = next(c for c in op.cases_tagged("bench") if case_part in c.key and c.where != "cpu")
    return described(variant, op, case, variant.config(**values), arch)
