"""Which launches share machine code: Triton compiles one kernel for all that have the same key."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.launch import Launch


def compile_key(launch: Launch) -> str:
    """Equal where Triton compiles the same code: dtypes, compile-time values, and what it specialises numbers for."""

    def kind(value: Any) -> str:
        if isinstance(value, Tensor):
            # Triton asks whether base addresses are multiples of 16 bytes; these count as aligned
            return str(value.dtype)
        if isinstance(value, bool) or value is None:
            return str(value)
        if isinstance(value, int):
            return "1" if value == 1 else f"i{32 if -(2**31) <= value < 2**31 else 64}{'d' * (value % 16 == 0)}"
        if isinstance(value, tuple):
            return f"{type(value).__name__}({','.join(map(kind, value))})"
        return str(value) if type(value).__name__ == "constexpr" else type(value).__name__

    constant = {name for name, wanted in launch.kernel.fn.__annotations__.items() if "constexpr" in str(wanted)}
    args = ",".join(f"{name}:{kind(value)}" for name, value in launch.args.items())
    fixed = ",".join(
        f"{name}={value}" if name in constant or type(value).__name__ == "constexpr" else f"{name}:{kind(value)}"
        for name, value in launch.constexprs.items()
    )
    return f"{launch.name}({args})[{fixed}]x{launch.num_warps}s{launch.num_stages}"
