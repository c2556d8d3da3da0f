"""Every Triton variant compiled for GPUs that are not here: it compiles, does not spill, keeps its claims."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import msgspec

from griffin_kernels import catalog
from griffin_kernels.contract import Case, config_dict
from tuning.static import recorded, table, worker
from tuning.static.code import Instruction, main_loop
from tuning.static.nvidia import load_widths, parse_sass
from tuning.static.requests import Request, compilable, representative, requests_for
from tuning.static.targets import CHECKED


def awkward(cases: tuple[Case, ...]) -> list[Case]:
    """Edge cases that go through most branches of a kernel, and float64: what bench shapes do not compile."""
    several = [c for c in cases if c.tag == "edge" and len(c.flags) + ("strided" in c.data) >= 3]
    return several + [c for c in cases if c.tag == "smoke" and c.dtype == "float64"]


def widest(variant) -> object | None:
    """The configuration with most channels per thread, for variants that have such a choice."""
    if not {"block_d", "num_warps"} <= set(variant.axes):
        return None
    values = {"block_d": max(variant.axes["block_d"]), "num_warps": min(variant.axes["num_warps"])}
    return dataclasses.replace(variant.config(), **values)


SHORT = ("sm_90", "gfx942")
"""Targets compiled for here; `make soak` compiles for all, and the recorded table holds all of these very sources."""


def by_name(reports):
    """Kernels of a variant, case and target, in the order of its launches."""
    found = {}
    for r in reports:
        found.setdefault((r.op, r.variant, r.case, r.config, r.kernel, r.target), []).append(msgspec.to_builtins(r))
    return found


def alike(mine, recorded):
    """Equal in all but the count of all instructions, where two compilations of one source may differ by one or two.

    Seen with Triton 3.7 on sm_90, outside the main loop, 1719 and 1720.
    """
    same_counts = all(abs(a["instructions"] - b["instructions"]) <= 2 for a, b in zip(mine, recorded, strict=True))
    return same_counts and [m | {"instructions": 0} for m in mine] == [r | {"instructions": 0} for r in recorded]


def test_defaults_keep_their_claims_and_are_as_recorded():
    """One test, as compiling takes minutes: no failure, spill or broken claim, whole sectors, the recorded table."""
    targets = CHECKED if os.environ.get("GRIFFIN_TEST_TARGETS") == "all" else SHORT
    asked = [
        request
        for variant in compilable()
        for request in requests_for(variant, representative(catalog.op(variant.op).cases), targets)
    ]
    answers = worker.compile_all(asked)
    table.show(answers.reports)
    assert not answers.failures, "\n\n".join(f"{f.request}: {f.reason}" for f in answers.failures)
    assert not [(r.variant, r.case, r.kernel, r.target, r.broken) for r in answers.reports if r.broken]
    # a load of a warp brings 128 bytes in one go: 4 per thread at least, wherever channels are neighbours
    nvidia = [r for r in answers.reports if r.target.startswith("sm_") and r.load_bits]
    assert not [(r.kernel, r.load_bits) for r in nvidia if max(r.load_bits) < 32]
    known = by_name(r for r in recorded.load().reports if r.target in targets)
    fresh = by_name(answers.reports)
    assert set(fresh) == set(known), "`make static` records the table anew"
    other = [name for name in fresh if not alike(fresh[name], known[name])]
    assert not other, f"`make static` records the table anew: {other}"


def test_awkward_cases_compile():
    asked = [
        request
        for variant in compilable()
        for request in requests_for(variant, awkward(catalog.op(variant.op).cases), ["sm_90"])
    ]
    answers = worker.compile_all(asked)
    assert not answers.failures, "\n\n".join(f"{f.request}: {f.reason}" for f in answers.failures)


def test_eight_channels_per_thread_load_128_bits():
    """Channels per thread decide the width of a load; the widest configuration of every variant reaches 16 bytes."""
    asked = []
    for variant in compilable():
        case = representative(catalog.op(variant.op).cases)[0]
        if case.dtype == "bfloat16" and (config := widest(variant)) is not None:
            asked.append(Request(variant.key, case.key, config_dict(config), "sm_90"))
    answers = worker.compile_all(asked)
    assert not answers.failures
    # the carry of chunked scans reads rows of float32 with a block of its own
    widths = {(r.op, r.variant): 0 for r in answers.reports}
    for r in answers.reports:
        widths[r.op, r.variant] = max(widths[r.op, r.variant], *r.load_bits)
    assert set(widths.values()) <= {128}, widths


def test_command_line_fails_where_nothing_fits():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tuning.static", "--op", "no_such_op"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "nothing to compile" in done.stderr


def test_main_loop_is_the_longest_innermost_one():
    code = [Instruction("A"), Instruction("B"), Instruction("BRA", 1), Instruction("C"), Instruction("BRA", 3)]
    code += [Instruction("D"), Instruction("BRA", 0)]
    assert [i.opcode for i in main_loop(code)] == ["B", "BRA"]
    assert main_loop(code[:2]) == code[:2]


def test_disassembly_is_read():
    text = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
        /*0070*/                   NOP ;
"""
    code = parse_sass(text)
    assert [i.opcode.split(".")[0] for i in code] == ["LDC", "LDG", "LDGSTS", "LDG", "BRA", "EXIT", "BRA"]
    assert load_widths(code) == {128: 2, 16: 1}
    assert main_loop(code) == code[1:5]
