"""Keys under which Triton caches kernels: as the tuner's compiling processes make them, and as a launch looks them up.

Run as ``python -m tests.cache_keys TARGET`` without Triton's interpreter; prints JSON, variant and case -> counts. No
GPU is needed: a launch gets as far as its compiler, which notes the key in place of compiling. Its tensors are on the
CPU where a GPU's would be.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime.driver import driver

from griffin_kernels import catalog
from griffin_kernels.contract import Case, Variant, config_dict
from griffin_kernels.launch import Launch, described_for
from griffin_kernels.records import CaseRecord
from tuning import gate, worker
from tuning.messages import Compile, Ready
from tuning.static.requests import compilable
from tuning.static.targets import target

KEYS: list[str] = []


class Driver:
    """A GPU that is not there, as far as a launch asks for it before it compiles."""

    def __init__(self, gpu: GPUTarget) -> None:
        self._gpu = gpu

    def get_current_target(self) -> GPUTarget:
        return self._gpu

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def note(src, target, options):
    """A compiler that makes nothing but the key."""
    backend = compiler.make_backend(target)
    parsed = backend.parse_options(dict(options, **src.parse_options()))
    KEYS.append(compiler.get_cache_key(src, backend, parsed, env_vars=compiler.get_cache_invalidating_env_vars()))


def noted(work: Callable[[], None]) -> set[str]:
    KEYS.clear()
    work()
    return set(KEYS)


def compile_ahead(variant: Variant, case: Case, arch: str) -> None:
    """What a process does that compiles before a candidate's turn."""
    request = Compile(variant.key, CaseRecord.of(case), config_dict(variant.config()), arch)
    answer = worker._compile(request)
    assert answer == Ready(), answer


def launch(variant: Variant, case: Case, arch: str) -> None:
    """What happens when a candidate is checked and timed, up to the compiler."""
    op, device = catalog.op(variant.op), target(arch).device
    with described_for(arch):
        for seed, problem in enumerate(gate.cases(case)):
            if variant.reject(problem, device, variant.config()) is not None:
                continue
            inputs = op.make_inputs(problem, torch.device("cpu"), seed)
            for step in variant.launches(inputs, {}, variant.config()):
                if isinstance(step, Launch):
                    options = {"num_warps": step.num_warps, "num_stages": step.num_stages}
                    step.kernel.warmup(**step.args, **step.constexprs, **options, grid=step.grid)


def main(name: str) -> None:
    """Every variant in its default configuration, at the bench case of a GPU that moves the fewest bytes."""
    goal = target(name)
    driver.set_active(Driver(GPUTarget(goal.backend, goal.arch, goal.warp_size)))
    triton.compile = triton.compiler.compile = note
    found = {}
    for variant in compilable():
        op = catalog.op(variant.op)
        cases = [c for c in op.cases_tagged("bench") if c.where != "cpu"]
        able = [c for c in cases if variant.reject(c, goal.device, variant.config()) is None]
        for case in sorted(able, key=lambda c: op.cost(c).bytes_total)[:1]:
            made = noted(functools.partial(compile_ahead, variant, case, name))
            looked_up = noted(functools.partial(launch, variant, case, name))
            found[f"{variant.key}/{case.key}"] = {"looked_up": len(looked_up), "missing": len(looked_up - made)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
