"""A Launch and a Target to machine code, with Triton's own compiler and cache.

The signature is made by the same code that Triton runs at a launch, with the target's backend in place of the machine's
own: what is compiled here is what that GPU would run.
"""

from __future__ import annotations

from typing import Any

import triton
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
    if not isinstance(launch.kernel, JITFunction):
        raise errors.DeviceError(
            f"{launch.name} is not compiled code here: TRITON_INTERPRET was set when it was imported; "
            "use tuning.static.worker, which compiles in a process of its own"
        )
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    backend = make_backend(gpu)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "debug": False}
    bound, specialization, _ = bind(**launch.args, **launch.constexprs, **options)
    parsed, signature, constexprs, attributes = launch.kernel._pack_args(
        backend, options, bound, specialization, options
    )
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    return triton.compile(source, target=gpu, options=parsed.__dict__)
