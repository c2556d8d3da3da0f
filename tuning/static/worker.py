"""Compiles in a process of its own, where TRITON_INTERPRET is not set.

That variable changes what ``triton.jit`` makes of a kernel at import, so a process that runs kernels in the interpreter
cannot compile them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from tuning.static.requests import Answers, Request

MODULE = "tuning.static"


def compile_all(requests: Sequence[Request], timeout: float = 1800.0) -> Answers:
    """Compile every request in one subprocess; ``timeout`` in seconds.

    Raises subprocess.TimeoutExpired, or RuntimeError with the process's own words where it gave no answer.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--requests", "-", "--json"],
        input=msgspec.json.encode(list(requests)),
        capture_output=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    try:
        return msgspec.json.decode(done.stdout, type=Answers)
    except msgspec.DecodeError:
        raise RuntimeError(
            f"the compiling process ended with {done.returncode}: {done.stderr.decode()[-4000:]}"
        ) from None
