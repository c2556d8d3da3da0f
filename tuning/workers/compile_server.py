"""``python -m tuning.workers.compile_server``: compiles the launches that ``compile_farm`` asks for, one per JSON line.

It ends with its standard input, so it never outlives the process that asked. What a compiler prints goes to standard
error; answers alone go to standard output.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before anything imports a kernel

import msgspec

from griffin_kernels import catalog
from griffin_kernels.case import Case
from griffin_kernels.launch import Launch, described_for
from tuning.static.describe import meta_call
from tuning.static.report import analyse
from tuning.static.targets import target
from tuning.workers.compile_farm import Answer, LaunchRequest


@functools.lru_cache(maxsize=8)
def _call(op: str, case: Case) -> Any:
    return meta_call(catalog.op(op), case)


def answer(request: LaunchRequest) -> Answer:
    """Compile one launch; the compiler's words where it fails."""
    variant = catalog.variant(request.variant)
    case = request.case
    config = variant.parse_config(request.config)
    assert variant.launches is not None, f"{variant.key} has nothing to compile"
    try:
        with described_for(request.target):
            call = _call(variant.op, request.case)
            step = variant.launches(call, {}, config)[request.step]
        assert isinstance(step, Launch), f"step {request.step} of {variant.key} is no launch"
        report = analyse(step, target(request.target), variant=variant, case=case.key, config=config)
    except Exception as error:  # the compiler raises whatever it likes, and one failure must not end the run
        words = " ".join(str(error).split())[-500:]
        return Answer(reason=f"{type(error).__name__}: {words}")
    return Answer(report)


def main() -> None:
    """Answer until standard input ends."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        channel.write(msgspec.json.encode(answer(msgspec.json.decode(line, type=LaunchRequest))) + b"\n")
        channel.flush()


if __name__ == "__main__":
    main()
