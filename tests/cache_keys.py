"""Keys under which Triton caches kernels: as the tuner's compiling processes make them, and as a launch looks them up.

Run as ``python -m tests.cache_keys TARGET`` without Triton's interpreter; prints JSON, variant and case -> counts. No
GPU is needed: a launch gets as far as its compiler, which notes the key in place of compiling. Its tensors are on the
CPU where a GPU's would be, or on the meta device.

``python -m tests.cache_keys TARGET layouts`` counts the keys of calls of many sizes instead: variant and layout ->
kernel -> keys.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime.driver import driver

from griffin_kernels import catalog
from griffin_kernels.contract import Case, Inputs, TensorSpec, Variant, config_dict
from griffin_kernels.launch import Launch, described_for
from griffin_kernels.specs import size_of
from tuning.measure import correctness
from tuning.static.describe import meta_call
from tuning.static.recorded import CompileRequest
from tuning.static.requests import compilable
from tuning.static.targets import target
from tuning.workers.messages import Compiled
from tuning.workers.server import Server

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
    """A compiler that makes nothing but the key, and something for a launch to remember."""
    backend = compiler.make_backend(target)
    parsed = backend.parse_options(dict(options, **src.parse_options()))
    KEYS.append(compiler.get_cache_key(src, backend, parsed, env_vars=compiler.get_cache_invalidating_env_vars()))
    return KEYS


def noted(work: Callable[[], None]) -> set[str]:
    """Keys of what the work compiles, which is what no launch remembers."""
    KEYS.clear()
    work()
    return set(KEYS)


def compile_ahead(variant: Variant, case: Case, arch: str) -> None:
    """What a process does that compiles before a candidate's turn."""
    request = CompileRequest(variant.key, case.plain(), config_dict(variant.config()), arch, until="cached")
    answer = Server(lambda reply: None).answer(request)
    assert answer == Compiled(), answer


def launch(variant: Variant, case: Case, arch: str) -> None:
    """What happens when a candidate is checked and timed, up to the compiler."""
    op, device = catalog.op(variant.op), target(arch).device
    with described_for(arch):
        for seed, problem in enumerate(correctness.cases(case)):
            if variant.reject(problem, device, variant.config()) is not None:
                continue
            inputs = op.make_inputs(problem, torch.device("cpu"), seed)
            for step in variant.launches(catalog.op(variant.op).call(**inputs), {}, variant.config()):
                if isinstance(step, Launch):
                    step.kernel.device_caches.clear()  # what it remembers of another op that launches it
                    warm_up(step)


BATCHES, LENGTHS = (1, 2, 3, 8, 16, 33), (1, 17, 100, 512, 1000, 4096)
"""Sizes of calls: one of each, odd ones, multiples of 16."""

LAYOUTS = {"contiguous": "BTH", "head-major": "BHT", "time-major": "TBH"}
"""Dimensions in memory, the slowest first: B batch rows or slots, T steps, keys or slots of a ring, H heads."""

KINDS = {"B": "B", "Ba": "B", "P": "B", "T": "T", "Ta": "T", "S": "T", "W": "T", "H": "H", "Hq": "H", "Hkv": "H"}


def laid_out(spec: TensorSpec, value: torch.Tensor, sizes: dict[str, int], layout: str) -> torch.Tensor:
    """A meta tensor of ``value``'s dtype with the spec's shape at these sizes and the strides of a layout."""
    wanted = [size_of(dim, sizes) for dim in spec.names]
    shape = [have if want is None else want for want, have in zip(wanted, value.shape, strict=True)]
    kinds = [KINDS.get(name, "") for name in spec.names]
    order = sorted(range(len(shape)), key=lambda dim: (LAYOUTS[layout].find(kinds[dim]) if kinds[dim] else 3, dim))
    dense = torch.empty([shape[dim] for dim in order], dtype=value.dtype, device="meta")
    return dense.permute([order.index(dim) for dim in range(len(shape))])


@functools.cache
def meta_twin(op_name: str, case: Case) -> Inputs:
    return meta_call(catalog.op(op_name), case)._asdict()


def kernels_of_layout(variant: Variant, case: Case, arch: str, layout: str) -> dict[str, int]:
    """How often each kernel of a variant is compiled for calls of all BATCHES and LENGTHS, by its name."""
    op = catalog.op(variant.op)
    twin = meta_twin(variant.op, case)
    carried = case.dims.get("S", 0) - case.dims.get("T", 0)
    keys: dict[str, set[str]] = {}
    for batch, time in itertools.product(BATCHES, LENGTHS if "T" in case.dims else (0,)):
        sizes = case.dims | {"B": batch, "N": batch, "P": batch, "T": time, "S": time + carried}
        sizes |= {"Ba": batch, "Ta": time}  # of no bench case the same gate at all steps
        inputs = dict(twin)
        for tensor, spec in op.inputs.items():
            if isinstance(twin[tensor], torch.Tensor) and {"B", "Ba", "N", "P"} & set(spec.names):
                inputs[tensor] = laid_out(spec, twin[tensor], sizes, layout)
        with described_for(arch):
            for step in variant.launches(catalog.op(variant.op).call(**inputs), {}, variant.config()):
                if isinstance(step, Launch):
                    name = step.name + ", again" * bool(step.constexprs.get("AGAIN"))
                    if name not in keys:
                        step.kernel.device_caches.clear()  # what launches remember of other layouts
                    keys.setdefault(name, set()).update(noted(functools.partial(warm_up, step)))
    return {name: len(found) for name, found in keys.items()}


def warm_up(step: Launch) -> None:
    """A launch up to the compiler."""
    step.kernel.warmup(**step.args, **step.constexprs, **step.options, grid=step.grid)


def main(name: str, what: str = "ahead") -> None:
    """Print the counts."""
    goal = target(name)
    driver.set_active(Driver(GPUTarget(goal.backend, goal.arch, goal.warp_size)))
    triton.compile = triton.compiler.compile = note
    print(json.dumps(ahead(name) if what == "ahead" else layouts(name)))


def layouts(name: str) -> dict[str, dict[str, int]]:
    """Every variant in its default configuration, at sizes around the bench case of a GPU that has most flags."""
    found = {}
    for variant in compilable():
        cases = [case for case in catalog.op(variant.op).cases_tagged("bench") if case.where != "cpu"]
        able = [case for case in cases if variant.reject(case, target(name).device, variant.config()) is None]
        if able:
            case = max(able, key=lambda case: len(case.flags))
            for layout in LAYOUTS:
                found[f"{variant.key}/{layout}"] = kernels_of_layout(variant, case, name, layout)
    return found


def ahead(name: str) -> dict[str, dict[str, int]]:
    """Every variant in its default configuration, at the bench case of a GPU that moves the fewest bytes."""
    goal = target(name)
    found = {}
    for variant in compilable():
        op = catalog.op(variant.op)
        cases = [c for c in op.cases_tagged("bench") if c.where != "cpu"]
        able = [c for c in cases if variant.reject(c, goal.device, variant.config()) is None]
        for case in sorted(able, key=lambda c: op.cost(c).bytes_total)[:1]:
            made = noted(functools.partial(compile_ahead, variant, case, name))
            looked_up = noted(functools.partial(launch, variant, case, name))
            found[f"{variant.key}/{case.key}"] = {"looked_up": len(looked_up), "missing": len(looked_up - made)}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
