"""What native CPU kernels over several files are made of: vectors, loops, fields, and a cache that sees every file.

A kernel is a numba function of one pointer, to a block of 64-bit integers (addresses, strides, sizes), compiled to a C
function. Its inner loops are emitted as LLVM vectors by *intrinsics*: functions that write instructions rather than
Python. Work items are taken from a shared counter in the block, so any number of threads may run one call at once (see
``_threads.py``). The pointer's element type names the data's dtype: float32, float64, int16 for float16, uint16 for
bfloat16; or a tuple of n of these where a number n is known when a kernel is compiled. Arithmetic is in the
accumulator's dtype: float32, or float64 for float64.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numba
import torch
from llvmlite import ir
from numba import extending, types
from numba.core import registry, sigutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

# numba has types for some of these, which know nothing of compiled code
intrinsic: Any = extending.intrinsic
_njit: Any = numba.njit

INT8, INT16, INT32, INT64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
ELEMENTS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.float16: types.int16,
    torch.bfloat16: types.uint16,
}
"""numba types that stand for the data's dtypes."""
BYTES = {types.float32: 4, types.float64: 8, types.int16: 2, types.uint16: 2}
CACHE_LINE = 64
_MEMORY = {types.float32: FLOAT, types.float64: DOUBLE, types.int16: ir.HalfType(), types.uint16: INT16}


@functools.cache
def lanes() -> int:
    """float32 values in a vector register of the processor that numba compiles for."""
    features = registry.cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return 16 if "+avx512f" in features else 8 if "+avx" in features else 4


@functools.cache
def registers() -> int:
    """Vector registers of that processor: x86 before AVX-512 has 16."""
    triple = registry.cpu_target.target_context.codegen().magic_tuple()[0]
    return 16 if triple.startswith(("x86_64", "i686")) and lanes() < 16 else 32


@dataclass(frozen=True)
class Lanes:
    """Emits loads, stores and arithmetic on ``count`` neighbouring values; addresses are integers."""

    builder: Any
    count: int
    element: Any = types.float32  # of load and store

    @property
    def wide(self) -> Any:
        """The scalar type of arithmetic."""
        return DOUBLE if self.element is types.float64 else FLOAT

    def of(self, scalar: Any) -> Any:
        """The type of ``count`` values of a scalar type."""
        return scalar if self.count == 1 else ir.VectorType(scalar, self.count)

    def constant(self, value: float, scalar: Any = None) -> Any:
        kind = self.of(self.wide if scalar is None else scalar)
        return ir.Constant(kind, [value] * self.count if isinstance(kind, ir.VectorType) else value)

    def broadcast(self, scalar: Any) -> Any:
        """A float in every lane."""
        if self.count == 1:
            return scalar
        kind, zero = self.of(FLOAT), ir.Constant(ir.VectorType(INT32, self.count), [0] * self.count)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT32(0))
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zero)

    def pointer(self, address: Any, scalar: Any) -> Any:
        """What an address means to ``load`` and the like: where values of a scalar type lie."""
        return self.builder.inttoptr(address, self.of(scalar).as_pointer())

    def read(self, address: Any) -> Any:
        """Values in the accumulator's dtype."""
        return self.builder.load(self.pointer(address, self.wide), align=8 if self.wide is DOUBLE else 4)

    def write(self, value: Any, address: Any) -> None:
        """Values in the accumulator's dtype."""
        self.builder.store(value, self.pointer(address, self.wide), align=8 if self.wide is DOUBLE else 4)

    def data_at(self, address: Any) -> Any:
        return self.pointer(address, _MEMORY[self.element])

    def load(self, address: Any) -> Any:
        """Data, widened."""
        value = self.builder.load(self.data_at(address), align=BYTES[self.element])
        if self.element is types.int16:
            return self.builder.fpext(value, self.of(FLOAT))
        if self.element is types.uint16:
            # bfloat16 is the upper half of a float32
            bits = self.builder.shl(self.builder.zext(value, self.of(INT32)), self.constant(16, INT32))
            return self.builder.bitcast(bits, self.of(FLOAT))
        return value

    def store(self, value: Any, address: Any, stream: bool = False) -> None:
        """Data, rounded to nearest, ties to even; NaN stays NaN. stream: past the caches, to a multiple of its size.

        What is longer than a cache line goes to a multiple of that.
        """
        if self.element is types.int16:
            value = self.builder.fptrunc(value, self.of(ir.HalfType()))
        elif self.element is types.uint16:
            value = self.rounded_to_bfloat16(value)
        size = BYTES[self.element]
        align = min(CACHE_LINE, size * self.count) if stream else size
        store = self.builder.store(value, self.data_at(address), align=align)
        if stream:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(INT32, 1)]))

    def rounded_to_bfloat16(self, value: Any) -> Any:
        """The upper halves of floats, rounded: to nearest, ties to even; NaN stays NaN."""
        b = self.builder
        bits = b.bitcast(value, self.of(INT32))
        upper = b.lshr(bits, self.constant(16, INT32))
        odd = b.and_(upper, self.constant(1, INT32))
        rounded = b.lshr(b.add(b.add(bits, self.constant(0x7FFF, INT32)), odd), self.constant(16, INT32))
        # a NaN whose payload is all in the lower half would round to infinity
        quiet = b.or_(upper, self.constant(0x40, INT32))
        return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), self.of(INT16))

    def add(self, p: Any, q: Any) -> Any:
        return self.builder.fadd(p, q)

    def subtract(self, p: Any, q: Any) -> Any:
        return self.builder.fsub(p, q)

    def multiply(self, first: Any, *others: Any) -> Any:
        return functools.reduce(self.builder.fmul, others, first)

    def divide(self, p: Any, q: Any) -> Any:
        return self.builder.fdiv(p, q)

    def multiply_add(self, p: Any, q: Any, r: Any) -> Any:
        """p q + r, fused where the processor can."""
        return self._call("fmuladd", p, q, r)

    def sqrt(self, value: Any) -> Any:
        return self._call("sqrt", value)

    def at_least(self, value: Any, bound: float) -> Any:
        """max(value, bound); NaN stays NaN."""
        limit = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered("<", value, limit), limit, value)

    def at_most(self, value: Any, bound: float) -> Any:
        """min(value, bound); NaN stays NaN."""
        limit = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered(">", value, limit), limit, value)

    def _call(self, name: str, *values: Any) -> Any:
        kind = self.of(self.wide)
        name = f"llvm.{name}.{'' if self.count == 1 else f'v{self.count}'}{'f64' if self.wide is DOUBLE else 'f32'}"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * len(values)), name)
        return self.builder.call(function, values)


def loop(
    builder: Any, start: Any, end: Any, step: int, body: Callable[..., Sequence[Any]], carried: Sequence[Any] = ()
) -> list[Any]:
    """Emit ``for index in range(start, end, step): carried = body(index, *carried)``; returns what is carried out."""
    before, inside, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("loop.end")
    builder.cbranch(builder.icmp_signed("<", start, end), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(INT64)
    index.add_incoming(start, before)
    held = [builder.phi(value.type) for value in carried]
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    results = body(index, *held)
    following, last = builder.add(index, INT64(step)), builder.block
    for phi, value in zip((index, *held), (following, *results), strict=True):
        phi.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
    builder.position_at_end(after)
    out = [builder.phi(value.type) for value in carried]
    for phi, value, result in zip(out, carried, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, last)
    return out


def _mover(read: Callable[..., Any], write: Callable[..., None]) -> Any:
    """``(data, rows, count, source, source_step, target, target_step)``: rows that are read and written by ``Lanes``.

    source and target: address of a first row; steps: bytes from row to row. ``Lanes.load`` reads data and all but
    ``Lanes.write`` writes it, where the others are of floats.
    """

    @intrinsic
    def move(
        typing: Any, data: Any, rows: Any, count: Any, source: Any, source_step: Any, target: Any, target_step: Any
    ) -> Any:
        element = element_of(data)
        size = INT64(BYTES[element])
        from_size, to_size = size if read is Lanes.load else INT64(4), INT64(4) if write is Lanes.write else size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, rows, count, source, source_step, target, target_step = args
            whole = builder.and_(count, INT64(-lanes()))

            def row(_: Any, source: Any, target: Any) -> Sequence[Any]:
                for start, end, step in ((INT64(0), whole, lanes()), (whole, count, 1)):

                    def piece(index: Any, v: Lanes = Lanes(builder, step, element)) -> Sequence[Any]:
                        value = read(v, builder.add(source, builder.mul(index, from_size)))
                        write(v, value, builder.add(target, builder.mul(index, to_size)))
                        return ()

                    loop(builder, start, end, step, piece)
                return builder.add(source, source_step), builder.add(target, target_step)

            loop(builder, INT64(0), rows, 1, row, (source, target))
            return context.get_dummy_value()

        return types.void(data, rows, count, source, source_step, target, target_step), generate

    # a function of its own, not the instructions at every call: half the time to compile a kernel
    @_njit
    def moved(data: Any, rows: int, count: int, source: int, source_step: int, target: int, target_step: int) -> None:
        move(data, rows, count, source, source_step, target, target_step)

    return moved


widen, narrow, copy = _mover(Lanes.load, Lanes.write), _mover(Lanes.read, Lanes.store), _mover(Lanes.read, Lanes.write)
"""Rows of data to rows of floats, of floats to data, of floats to floats."""
copy_data = _mover(Lanes.load, Lanes.store)
"""Rows of data to rows of data."""
narrow_past_caches = _mover(Lanes.read, lambda v, value, target: v.store(value, target, stream=v.count > 1))
"""As ``narrow``; whole vectors of the target must begin on a multiple of their size."""


def _integer_at(kind: Any, add: int = 0) -> Any:
    """A numba function ``(array, index) -> int64`` of an array of ``kind``, given by address or as a pointer.

    It reads an integer or, with ``add``, adds that and gives what it was: no other thread gets the same.
    """

    @intrinsic
    def integer(typing: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.bitcast if isinstance(array, types.CPointer) else builder.inttoptr
            place = builder.gep(pointer(args[0], kind.as_pointer()), [args[1]])
            if add:
                return builder.atomic_rmw("add", place, INT64(add), "monotonic")
            value = builder.load(place)
            return value if kind is INT64 else builder.sext(value, INT64)

        return types.int64(array, types.int64), generate

    return integer


int8_at, int32_at, int64_at = _integer_at(INT8), _integer_at(INT32), _integer_at(INT64)
field = int64_at
"""One of the integers that a kernel is given, by its pointer."""
take = _integer_at(INT64, add=1)
"""Takes a work item: counts one of these integers up."""


Strided = tuple[int, int, int]
"""A field of three integers: the address of a tensor, the stride of batch rows, that of steps."""


def breadth(kind: Any) -> int:
    """Integers in a field that is a tuple of them; 0 for an integer."""
    return len(getattr(kind, "_fields", get_args(kind)))


def places(family: type, first: int = 1) -> Any:
    """Where each field of a kernel's NamedTuple begins among its integers; the counter of work items comes first.

    Fields are tuples of integers, which may have names too, then integers; so _native_call.py puts them into memory.
    """
    kinds = list(get_type_hints(family).values())
    assert kinds == sorted(kinds, key=lambda kind: kind is int)
    begins = itertools.accumulate([breadth(kind) or 1 for kind in kinds[:-1]], initial=first)
    named = [hasattr(kind, "_fields") for kind in kinds]
    return family(*[places(k, at) if deep else at for k, at, deep in zip(kinds, begins, named, strict=True)])


@intrinsic
def finish(typing: Any, data: Any) -> Any:
    """Make rows that went past the caches visible to other threads before this one says that it is done."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(data), generate


def element_of(data: Any) -> Any:
    """The type of data's elements, from that of a kernel's pointer."""
    return data.dtype.dtype if isinstance(data.dtype, types.UniTuple) else data.dtype


def known(value: Callable[[Any], int]) -> Any:
    """A numba function ``(data) -> int64`` of what the pointer's type says, known when compiled."""

    @intrinsic
    def number(typing: Any, data: Any) -> Any:
        constant = value(data)
        return types.int64(data), lambda context, builder, signature, args: INT64(constant)

    return number


def parameters_of(data: Any) -> Any:
    """The type of parameters' elements: the data's, or where the pointer's type holds ``WIDE`` float."""
    return types.float32 if isinstance(data.dtype, types.UniTuple) and data.dtype.count == WIDE else data.dtype


WIDE = 2
"""Number in the type of the pointer of a one-token kernel, where its parameters are floats beside 16-bit data."""

data_bytes = known(lambda data: BYTES[element_of(data)])  # of one data element
parameter_bytes = known(lambda data: BYTES[parameters_of(data)])  # of one element of a parameter


@intrinsic
def vector(typing: Any) -> Any:
    """``lanes()`` within compiled code."""
    return types.int64(), lambda context, builder, signature, args: INT64(lanes())


@functools.cache
def _digest(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in (__file__, *files):
        digest.update(Path(file).read_bytes() + b"\0")
    return digest.hexdigest()


class _Cache(FunctionCache):
    """numba's cache on disk, which by itself would watch only the file of the function that it compiles."""

    def __init__(self, function: Any, digest: str) -> None:
        super().__init__(function)
        self._digest = digest

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (*super()._index_key(signature, codegen), self._digest)


_KERNELS: list[Any] = []
"""Compiled kernels, kept alive as long as their addresses may be called."""


@functools.cache
def compiled(
    kernel: Callable[[Any], None], dtype: torch.dtype, files: tuple[str, ...], number: int | None = None
) -> Any:
    """A kernel for data of ``dtype`` as a ctypes function of the address of its integers; ``number``: a known one.

    Compiled on first use and kept on disk: beside its file, in the user's cache folder, or in NUMBA_CACHE_DIR. files:
    sources that it is made from besides this one; a change in any of them makes a new kernel.
    """
    element = ELEMENTS[dtype]
    signature = types.void(types.CPointer(element if number is None else types.UniTuple(element, number)))
    options = {"nopython": True, "error_model": "numpy"}
    function: Any = CFunc(kernel, sigutils.normalize_signature(signature), locals={}, options=options)
    try:
        function._cache = _Cache(kernel, _digest(files))
    except RuntimeError as error:
        # numba's word for "none of these folders can be written": compile again in every process
        if "cannot cache function" not in str(error):
            raise
    function.compile()
    _KERNELS.append(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
