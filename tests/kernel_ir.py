"""The first code that Triton makes of a kernel, its IR: whether the installed Triton takes the kernels, in no time.

Usage: python -m tests.kernel_ir TARGET ...   (of every launch of every variant, at edge cases and representative ones;
exits with 1 where Triton refuses one)
"""

from __future__ import annotations

import sys

from triton._C.libtriton import ir
from triton.compiler import make_backend

from griffin_kernels import catalog
from griffin_kernels.launch import Launch
from tuning.static import compiling
from tuning.static.requests import compilable, launches_of, representative, requests_for
from tuning.static.targets import Target, target


def ir_of(launch: Launch, goal: Target) -> str:
    """Its text. Raises what the compiler raises."""
    source, gpu, options = compiling._prepared(launch, goal)
    backend = make_backend(gpu)
    parsed = backend.parse_options(dict(options, **source.parse_options()))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    return str(source.make_ir(gpu, parsed, functions, backend.get_module_map(), context))


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error)[-300:]}"


def main(names: list[str]) -> int:
    launches = failures = 0
    for variant in compilable():
        cases = catalog.op(variant.op).cases
        chosen = [*representative(cases), *(case for case in cases if case.tag == "edge")]
        for request in requests_for(variant, chosen, names):
            config = variant.parse_config(request.config)
            for _, launch in launches_of(variant, request.case, config, request.target):
                launches += 1
                try:
                    ir_of(launch, target(request.target))
                except Exception as error:
                    failures += 1
                    at = f"{variant.key} {request.case.key} {request.target} {launch.name}"
                    print(f"{at}: {_cause(error)}", flush=True)
    print(f"IR of {launches} launches for {', '.join(names)}: {failures} failed")
    return 1 if failures or not launches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
