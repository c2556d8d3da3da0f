"""A kernel launch as data: the same description is run on a GPU, run in the interpreter, and compiled for a GPU that
is not there.

A Triton variant gives ``launches(call, outputs, config) -> list[Launch | TorchStep]``:

- ``call``: an instance of ``Op.call``, as ``run`` gets it.
- ``outputs``: output tensors by name, a dict. Those it lacks are allocated with ``torch.empty`` and put into it (None
  where the op gives None). Scratch is allocated by ``launches`` and lives as long as the list.
- The list may be run again: every launch gives the same result each time the whole list runs (but for ops that work in
  place, which take the next step).
- A ``TorchStep`` is what PyTorch does between launches, such as a batched matrix product of a vendor's library.

With tensors on torch's ``meta`` device nothing is allocated and nothing can run, but all of it can be compiled.
``run`` of such a variant is ``launches``, then ``run_all``. Nothing here imports Triton.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import device as devices
from griffin_kernels import errors


@dataclass(frozen=True)
class Claims:
    """What a launch promises about its machine code; tests hold the compiled kernel against it.

    load_bits: width of the widest global load per thread (NVIDIA).
    async_copies: loads are pipelined with asynchronous copies to shared memory (NVIDIA from sm_80 on).
    matrix: ``tl.dot`` became matrix instructions of the architecture: warp-group ones on sm_90 (HGMMA), tcgen05 or
    HMMA on later NVIDIA, HMMA before, MFMA on AMD.
    spills: why spilled registers are accepted; empty where there must be none.
    serialised: why warp-group products that wait for each other, as ptxas warns, are accepted (NVIDIA); empty likewise.
    """

    load_bits: int = 0
    async_copies: bool = False
    matrix: bool = False
    spills: str = ""
    serialised: str = ""


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    kernel: a ``triton.jit`` function. grid: programs along x, y, z; y and z at most 65535.
    args: tensors, numbers, None and NamedTuples of these by parameter name; what is ``tl.constexpr`` in a NamedTuple is
    a compile-time value. constexprs: compile-time values by parameter name, and strides, which are compile-time values
    unless they may follow from the call (see ops/_triton/strides.py).
    rare: whether all programs return at once in a call whose data are finite. rarely: names of arguments that are read
    only where data are unusual.
    tile: elements that one program handles per iteration of its main loop (per program where it has no loop); 0 where
    instructions per element mean nothing.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    tile: int = 0
    claims: Claims = field(default_factory=Claims)
    rare: bool = False
    rarely: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's name as written in its source."""
        return str(self.kernel.__name__)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors among the arguments but for the rarely read, those in bundles too."""
        usual = (value for name, value in self.args.items() if name not in self.rarely)
        return (value for value in _leaves(usual) if isinstance(value, Tensor))

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides constexprs. Products and sums fuse, whatever is Triton's default."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and in place of a bundle its own."""
    for value in values:
        if isinstance(value, tuple):
            yield from _leaves(value)
        else:
            yield value


@dataclass(frozen=True)
class TorchStep:
    """A step between launches that PyTorch does: ``function()`` writes tensors that are there before and after.

    It has to allocate through PyTorch only and read nothing back, so that a CUDA graph can hold it. name: in words.
    """

    name: str
    function: Callable[[], Any]


Step = Launch | TorchStep

_described_for: ContextVar[str] = ContextVar("described_for", default="")


@contextlib.contextmanager
def described_for(arch: str) -> Iterator[None]:
    """Within it launches on meta tensors are described for the architecture ``arch``, such as ``sm_90``."""
    before = _described_for.set(arch)
    try:
        yield
    finally:
        _described_for.reset(before)


def architecture(tensor: Tensor) -> str:
    """The architecture that launches on this tensor's device should suit; empty in the interpreter, or if unknown."""
    if tensor.is_cuda:
        return devices.detect(tensor.device).arch
    return _described_for.get()


def run_all(steps: Sequence[Step]) -> None:
    """Enqueue the steps in order on the current stream of the device their tensors are on.

    Raises OutOfResourcesError where the device has too little shared memory, say, for a kernel.
    """
    launches = [step for step in steps if isinstance(step, Launch)]
    tensor = next(tensor for launch in launches for tensor in launch.tensors)
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext(), torch.no_grad():
        for before, step in enumerate(steps):
            if isinstance(step, TorchStep):
                step.function()
                continue
            try:
                step.kernel[step.grid](**step.args, **step.constexprs, **step.options)
            except Exception as error:
                from triton.runtime.errors import OutOfResources

                if not isinstance(error, OutOfResources):
                    raise
                lacks = f"it needs {error.required} of {error.name}, the device has {error.limit}"
                raise errors.OutOfResourcesError(f"{step.name} does not fit: {lacks}", before) from error
