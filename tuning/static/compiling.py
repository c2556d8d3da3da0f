"""A Launch and a Target to machine code, with Triton's own compiler and cache.

The signature is made by the same code that Triton runs at a launch, with the target's backend in place of the machine's
own: what is compiled here is what that GPU would run.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import triton
from triton._C.libtriton import ir, llvm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from griffin_kernels import errors
from griffin_kernels.launch import Launch
from tuning.static.targets import Target


def compile_launch(launch: Launch, target: Target) -> Any:
    """Triton's CompiledKernel. Tensors may be on the meta device; their base addresses count as aligned.

    Raises DeviceError where kernels were decorated for the interpreter; otherwise whatever the compiler raises.
    """
    source, gpu, options = _prepared(launch, target)
    return triton.compile(source, target=gpu, options=options)


def shared_bytes(launch: Launch, target: Target) -> int:
    """Shared memory of a block, as Triton allots it before it makes machine code: a fraction of compiling's time.

    Triton's own stages, ended where it hands over to LLVM. Raises as ``compile_launch`` does.
    """
    source, gpu, options = _prepared(launch, target)
    backend = make_backend(gpu)
    parsed = backend.parse_options(dict(options, **source.parse_options()))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed, source.language)
    module = source.make_ir(gpu, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)
    metadata: dict[str, Any] = {"target": gpu, **parsed.__dict__}
    with mock.patch.object(llvm, "to_module", _allotted):
        try:
            for name in ("ttir", "ttgir", "llir"):
                module = stages[name](module, metadata)
        except _Allotted as found:
            return int(found.args[0])
    raise AssertionError("Triton made LLVM's code without its to_module")


class _Allotted(Exception):
    """Ends a compilation; its argument is the shared memory in bytes."""


def _allotted(module: Any, context: Any) -> None:
    raise _Allotted(module.get_int_attr("ttg.shared"))


def _prepared(launch: Launch, target: Target) -> tuple[Any, Any, dict[str, Any]]:
    """(source, target, options) as Triton's JIT would have them."""
    if not isinstance(launch.kernel, JITFunction):
        raise errors.DeviceError(
            f"{launch.name} is not compiled code here: TRITON_INTERPRET was set when it was imported; "
            "use tuning.static.worker, which compiles in a process of its own"
        )
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    backend = make_backend(gpu)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    options = launch.options | {"debug": False}
    bound, specialization, _ = bind(**launch.args, **launch.constexprs, **options)
    parsed, signature, constexprs, attributes = launch.kernel._pack_args(
        backend, options, bound, specialization, options
    )
    return ASTSource(launch.kernel, signature, constexprs, attributes), gpu, parsed.__dict__
