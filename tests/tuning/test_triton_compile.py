"""Every Triton variant compiled for GPUs that are not here: it compiles, does not spill, keeps its claims."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import msgspec
import pytest

from griffin_kernels import catalog
from griffin_kernels.contract import Case, config_dict
from tuning.static import recorded, table
from tuning.static.code import Instruction, main_loop
from tuning.static.defaults import choices, gpus
from tuning.static.nvidia import load_widths, parse_sass, parse_warnings
from tuning.static.recorded import CompileRequest
from tuning.static.requests import compilable, representative, requests_for
from tuning.static.targets import CHECKED, target

ALL = os.environ.get("GRIFFIN_TEST_TARGETS") == "all"


def awkward(cases: tuple[Case, ...]) -> list[Case]:
    """Edge cases that go through most branches of a kernel, and float64: what bench shapes do not compile.

    Of edge cases with several flags as many as have each flag once; with `make soak` all.
    """
    found, seen = [c for c in cases if c.tag == "smoke" and c.dtype == "float64"], set()
    several = [c for c in cases if c.tag == "edge" and len(c.flags) + ("strided" in c.data) >= 3]
    for case in sorted(several, key=lambda c: len(c.flags), reverse=True):
        branches = {*case.flags, *({"strided"} & set(case.data))}
        if ALL or branches - seen:
            found.append(case)
            seen |= branches
    return found


def widest(variant) -> object | None:
    """The configuration with most channels per thread, for variants that have such a choice."""
    if not {"block_d", "num_warps"} <= set(variant.axes):
        return None
    values = {"block_d": max(variant.axes["block_d"]), "num_warps": min(variant.axes["num_warps"])}
    return dataclasses.replace(variant.config(), **values)


SHORT = ("sm_90", "gfx942")
"""Targets compiled for here, in turn; `make soak` compiles all for all. The recorded table holds all of these very
sources (tests/tuning/test_static_table.py)."""


def some(asked: list[CompileRequest]) -> list[CompileRequest]:
    """Every variant for every target: where it has several cases, the first for one target, the next for the other."""
    found = []
    for _, group in itertools.groupby(asked, key=lambda request: request.variant):
        mine = list(group)
        found += mine if len(mine) <= len(SHORT) else mine[:: len(SHORT) + 1]
    return found


def by_name(reports):
    """Kernels of a variant, case and target, in the order of its launches."""
    found = {}
    for r in reports:
        found.setdefault((r.op, r.variant, r.case, r.config, r.kernel, r.target), []).append(msgspec.to_builtins(r))
    return found


COUNTED = ("registers", "instructions", "loop_instructions", "instructions_per_element")
"""Figures in which two compilations of one source differ: rg_lru_gates_chunks on sm_90 has 1303 or 1307 instructions,
806 to 809 of them in its loop, and 122 or 123 registers (Triton 3.7, five compilations)."""


def alike(mine, recorded):
    """Equal, what is counted to 1%."""
    pairs = [(m[name], r[name]) for m, r in zip(mine, recorded, strict=True) for name in COUNTED]
    counts = all(m == r or m == pytest.approx(r, rel=0.01, abs=2) for m, r in pairs)
    nothing = dict.fromkeys(COUNTED)
    return counts and [m | nothing for m in mine] == [r | nothing for r in recorded]


def test_defaults_keep_their_claims_and_are_as_recorded():
    """One test, as compiling takes minutes: no failure, spill, serialised product or other broken claim, no kernel
    that does not fit, whole sectors, the recorded table.
    """
    targets = CHECKED if ALL else SHORT
    asked = [
        request
        for variant in compilable()
        for request in requests_for(variant, representative(catalog.op(variant.op).cases), targets)
    ]
    asked = asked if ALL else some(asked)
    answers = table.compile_all(asked)
    table.show(answers.reports)
    assert not answers.failures, "\n\n".join(f"{f.request}: {f.reason}" for f in answers.failures)
    assert not [(r.variant, r.case, r.kernel, r.target, r.broken) for r in answers.reports if r.broken]
    # ptxas' word and the machine code agree on what is serialised
    warp_group = [r for r in answers.reports if r.target == "sm_90" and r.mix["matrix"]]
    assert warp_group and not [(r.kernel, r.waits, r.mix) for r in warp_group if 2 * r.waits > r.mix["matrix"]]
    # a load of a warp brings 128 bytes in one go: 4 per thread at least, wherever channels are neighbours
    nvidia = [r for r in answers.reports if r.target.startswith("sm_") and r.load_bits]
    assert not [(r.kernel, r.load_bits) for r in nvidia if max(r.load_bits) < 32]
    places = {(request.variant, request.case.key, request.target) for request in asked}
    known = by_name(r for r in recorded.load().reports if (f"{r.op}/{r.variant}", r.case, r.target) in places)
    fresh = by_name(answers.reports)
    assert set(fresh) == set(known), "`make static` records the table anew"
    other = [name for name in fresh if not alike(fresh[name], known[name])]
    assert not other, f"`make static` records the table anew: {other}"


@pytest.mark.parametrize("sku", gpus(CHECKED))
def test_every_untuned_op_has_more_than_a_baseline(sku):
    assert not [(case.op, case.key) for case, choice in choices(sku) if choice.variant.baseline]


def test_what_runs_untuned_fits_in_shared_memory():
    """sm_75 has least of it, and no asynchronous copies; `make soak` looks at all."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tuning.static", "--defaults", "--target", ",".join(CHECKED if ALL else ["sm_75"])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nvidia-t4: rg_lru_step/triton.fused" in done.stdout


def test_turing_runs_no_kernel_that_needs_matrix_units():
    """Triton has none for sm_75: what it would multiply one by one is refused in words, or made for that."""
    sizes = {"rg_lru": "n160", "rg_lru_bwd": "n160", "local_attention": "d128", "local_attention_bwd": "d128"}
    for name, size in sizes.items():
        case = next(c for c in catalog.op(name).cases_tagged("bench") if size in c.key and c.dtype == "bfloat16")
        refused = [v.reject(case, target("sm_75").device, v.config()) for v in catalog.variants(name).values()]
        assert any("Triton has no matrix instructions for sm_75" in str(reason) for reason in refused), name


def test_serialised_products_are_seen_in_both_the_log_and_the_code():
    """What made attention backward slow at d = 256 on sm_90, if this Triton still does it to 64 keys by 32 queries."""
    case = next(
        c for c in catalog.op("local_attention_bwd").cases_tagged("bench") if "d256" in c.key and c.where == "gpu"
    )
    config = {"resident": 64, "streamed": 32, "num_warps": 8, "num_stages": 2}
    answers = table.compile_all(
        [CompileRequest("local_attention_bwd/triton.flash_window", case.plain(), config, "sm_90")]
    )
    products = [r for r in answers.reports if r.mix["matrix"]]
    assert products and all(r.serialised == (2 * r.waits > r.mix["matrix"]) for r in products)
    assert all(any("waits for" in claim for claim in r.broken) == r.serialised for r in products)


def test_awkward_cases_compile():
    """As far as Triton goes, up to LLVM; `make soak` makes machine code of them."""
    asked = [
        msgspec.structs.replace(request, until="report" if ALL else "lowered")
        for variant in compilable()
        for request in requests_for(variant, awkward(catalog.op(variant.op).cases), ["sm_90"])
    ]
    answers = table.compile_all(asked)
    assert not answers.failures, "\n\n".join(f"{f.request}: {f.reason}" for f in answers.failures)


def test_eight_channels_per_thread_load_128_bits():
    """Channels per thread decide the width of a load; the widest configuration of every variant reaches 16 bytes."""
    asked = []
    for variant in compilable():
        case = representative(catalog.op(variant.op).cases)[0]
        if case.dtype == "bfloat16" and (config := widest(variant)) is not None:
            asked.append(CompileRequest(variant.key, case.plain(), config_dict(config), "sm_90"))
    answers = table.compile_all(asked)
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


LOG = """\
ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'k'
ptxas info    : 11 bytes gmem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
register resources for the wgmma pipeline in function 'k'
ptxas info    : Used 232 registers, used 1 barriers
"""


def test_warnings_of_ptxas_are_read():
    assert [warning[:5] for warning in parse_warnings(LOG + LOG)] == ["C7515", "C7510"]
    assert parse_warnings(LOG)[1].endswith("due to insufficient register resources for the wgmma pipeline")
    assert parse_warnings("ptxas info    : 11 bytes gmem") == ()


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
