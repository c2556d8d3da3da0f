"""Case, Cost, Tolerance: one problem, its ideal work, and how wrong an answer may be.

Nothing here needs PyTorch: the cost of an operation is arithmetic, and ``griffin roofline forward`` answers sooner
than torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from griffin_kernels import errors

if TYPE_CHECKING:
    import torch

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8})
"""Bytes per element of the dtypes that data tensors have, by the name used in cases and the registry."""

USUAL_SIZE: Mapping[str, str] = MappingProxyType({"N": "B", "S": "T", "P": "B"})
"""Dimensions that usually have the size of another: N unless sequences are packed, S unless keys are carried, P unless
states are kept in a pool."""


def telling(dims: Mapping[str, int]) -> dict[str, int]:
    """The sizes that say something: those of USUAL_SIZE are left out where they are as usual."""
    return {name: size for name, size in dims.items() if name not in USUAL_SIZE or size != dims.get(USUAL_SIZE[name])}


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One problem of an op: its sizes, and what else tells it from others.

    dims: size of every named dimension, in the op's order.
    flags: properties that change which kernel is right and are matched exactly on look-up (``reverse``, ``reset``).
    data: how ``make_inputs`` fills the tensors (``h0``, ``strided``); never looked up.
    """

    dims: dict[str, int]
    dtype: str
    flags: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((tuple(self.dims.items()), self.dtype, self.flags, self.data))

    def __getitem__(self, dim: str) -> int:
        return self.dims[dim]

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @cached_property
    def key(self) -> str:
        """``B1-T4096-D2560-float32+reset~h0``: telling sizes, dtype, ``+flags``, ``~data``.

        Safe in file names and URLs.
        """
        sizes = "-".join(f"{name}{value}" for name, value in telling(self.dims).items())
        return "".join([sizes, "-", self.dtype, *(f"+{f}" for f in self.flags), *(f"~{d}" for d in self.data)])

    @classmethod
    def parse(cls, op: str, key: str, dims: Sequence[str] = ()) -> Case:
        """The case of a ``key``. op: to name it where the key is wrong.

        dims: the op's dimensions in order, as any case of it has them; with them, those that the key leaves out have
        their usual size. ArgumentError where ``key`` is no such key.
        """
        head, *data = key.split("~")
        head, *flags = head.split("+")
        *sizes, dtype = head.split("-")
        found = [re.fullmatch(r"([A-Za-z_]+)(\d+)", size) for size in sizes]
        if dtype not in DTYPE_BYTES or not found or not all(found) or not all([*flags, *data]):
            raise errors.ArgumentError(f"no case {key!r} of {op}; keys look like B1-T4096-D2560-float32+reset~h0")
        size = {part[1]: int(part[2]) for part in found if part}
        size |= {name: size[USUAL_SIZE[name]] for name in dims if name not in size and USUAL_SIZE.get(name) in size}
        if dims and set(size) != set(dims):
            raise errors.ArgumentError(f"no case {key!r} of {op}: its dimensions are {', '.join(dims)}")
        return cls({name: size[name] for name in dims or size}, dtype, tuple(flags), tuple(data))

    def bytes_per_element(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def half(self) -> bool:
        """Whether data have 16 bits: sums and states are then wider than they are."""
        return self.bytes_per_element() == 2

    @property
    def wide_parameters(self) -> bool:
        """Whether parameters have the accumulator's dtype in place of the data's."""
        return "wide" in self.flags or "wide_parameters" in self.data

    def plain(self) -> Case:
        """What is looked up, recorded and told: the case without what a table says of it."""
        return self if type(self) is Case else Case(self.dims, self.dtype, self.flags, self.data)


class BenchCase(Case, frozen=True):
    """A row of an op's table of cases.

    tag: ``smoke`` (tiny, plain), ``edge`` (awkward on purpose), ``bench`` (a shape people run), ``call`` (a real one).
    where: ``any``, or ``cpu`` / ``gpu`` for bench shapes that are meant for one of them.
    thorough: only measured with ``--budget thorough``.
    source: where a bench shape comes from.
    """

    op: str = ""
    tag: str = "bench"
    where: str = "any"
    thorough: bool = False
    source: str = ""


@dataclass(frozen=True)
class Cost:
    """Ideal work of a case, from dimensions alone. Each input is read once, each output written once.

    tensor_flops: multiply-adds that a matrix unit can do, counted as 2.
    vector_flops: float32 operations outside matrix units, a multiply-add counted as 2.
    special_ops: results of exp, sigmoid, tanh, sqrt, rsqrt, reciprocal.
    """

    bytes_read: int
    bytes_written: int
    tensor_flops: int = 0
    vector_flops: int = 0
    special_ops: int = 0

    @property
    def bytes_total(self) -> int:
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Pass:
    """One kernel of a composition, run ``count`` times, each at ``cost``."""

    cost: Cost
    count: int = 1

    @classmethod
    def elementwise(
        cls, elements: int, read: int, written: int, vector: int = 0, special: int = 0, count: int = 1
    ) -> Pass:
        """A kernel over ``elements``: bytes read and written, vector and special operations for each of them."""
        cost = Cost(elements * read, elements * written, vector_flops=elements * vector, special_ops=elements * special)
        return cls(cost, count)


@dataclass(frozen=True)
class Tolerance:
    """Largest error against the float64 reference that still counts as right.

    rel_norm: ||out - ref|| / ||ref||.
    worst: max over elements of |out - ref| / (|ref| + rms(ref)); the rms keeps elements near zero from dividing
    by nothing, and scales the bound with the data.
    """

    rel_norm: float
    worst: float

    def times(self, factor: float) -> Tolerance:
        return Tolerance(self.rel_norm * factor, self.worst * factor)
