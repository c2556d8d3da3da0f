"""The correctness check before timing: a candidate with wrong outputs is recorded as wrong and never timed.

A case gives two problems: the case itself, and a short form with an odd number of steps and another seed, where tails
and chunk boundaries fall differently. NaN and infinity are planted in the short form; outputs that do not depend on
them must not change. An op with wild data has a third problem, the short form with such data. Variants of torch.compile
are checked on the case alone, because another shape would compile them again.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import msgspec
from torch import Tensor

from griffin_kernels import pieces, planted, verify
from griffin_kernels.contract import Case, Inputs, Op
from griffin_kernels.device import Device
from tuning.plan.planner import Planned

SHORT_STEPS = 331
"""Steps of the second problem: prime, so no block size divides it."""

PLANTS = 1
"""How often values are planted: NaN in one step of all inputs over time. Each planting is one more run."""

WILD = "wild"
"""What ``Case.data`` calls values that are hard to keep in range."""


@dataclass(frozen=True)
class Problem:
    """One set of inputs, the outputs of the float64 reference, and which outputs each place of the inputs affects."""

    case: Case
    inputs: Inputs
    want: tuple[Tensor | None, ...]
    plantings: tuple[planted.Planting, ...] = ()


def cases(case: Case) -> list[Case]:
    """The cases that a candidate is checked on: the case and, if the case is longer, its short form."""
    if case.dims.get("T", 0) <= SHORT_STEPS:
        return [case]
    dims = {name: SHORT_STEPS if name == "T" else size for name, size in case.dims.items()}
    return [case, msgspec.structs.replace(case, dims=dims)]


def problems(op: Op, case: Case, device: Device) -> list[Problem]:
    """The full problem (seed 0) and, for longer cases, the short one (seed 1), which may come in a wild form too."""
    forms = cases(case)
    short = len(forms) - 1
    if any(WILD in other.data for other in op.cases) and short:
        # the same flags and inputs, so that no kernel is compiled for it
        forms.append(msgspec.structs.replace(forms[short], data=(*forms[short].data, WILD)))
    found = []
    for seed, form in enumerate(forms):
        inputs = op.make_inputs(form, device.torch_device, seed)
        places = planted.plantings(op, inputs, zlib.crc32(case.key.encode()), PLANTS) if seed == short else ()
        found.append(Problem(form, inputs, pieces.reference(op, inputs), tuple(places)))
    return found


def check(op: Op, planned: Planned, problem: Problem) -> verify.Verdict:
    """Check a candidate on one problem, and that planted values reach no output that does not depend on them."""
    where = (op, planned.variant, problem.case, planned.config, problem.inputs)
    verdict = verify.check(*where, problem.want)
    if not verdict.ok:
        return dataclasses.replace(verdict, problem=f"{problem.case.key}: {verdict.problem}")
    if problem.plantings and not planned.variant.baseline:  # which nothing published ever names
        return dataclasses.replace(verdict, problem=planted.check(*where, list(problem.plantings)))
    return verdict
