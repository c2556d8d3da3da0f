"""Functions of kernels that return a bundle or None, or loop over one: ``@bundling`` in place of ``@triton.jit``.

What is None or a compile-time constant in a bundle has to be so for the caller too. Triton 3.7 sees to that. In Triton
3.6 constants that a function returns become tensors of one number, None is an error, and a loop may find None where its
function was given a constant. There the statements of such a function are compiled where it is called, in a scope of
its own.
"""

from __future__ import annotations

import inspect

import triton
from triton import knobs
from triton.language import core
from triton.language.core import base_value, constexpr
from triton.runtime.jit import JITCallable

KEEPS_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
"""Whether what a function returns keeps its constants."""


if not KEEPS_CONSTANTS:
    _types_of = core._type_for_tuple_values

    def _types_with_none(values, fields=None):
        """Types of a tuple's members. Triton 3.6 asks for them where a bundle is compared with None, bare None too."""
        return _types_of([constexpr(None) if value is None else value for value in values], fields)

    core._type_for_tuple_values = _types_with_none


class CompiledInPlace(JITCallable):  # type: ignore[misc]
    """A device function of the form statements, return: compiled anew wherever it is called.

    A JITCallable, so that Triton hashes its source for the kernels that call it. The compiler calls what is bound to a
    value of its own, as methods of tensors are, and hands itself over as ``_generator``.
    """

    __self__ = constexpr(None)

    def __init__(self, fn):
        super().__init__(fn)
        self.taken = inspect.signature(fn)
        self.signature = inspect.signature(self.__call__)  # Triton 3.7 looks for _generator here, 3.6 in the method

    def __call__(self, *args, _generator=None, **kwargs):
        bound = self.taken.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {
            name: value if isinstance(value, (base_value, JITCallable)) else constexpr(value)
            for name, value in bound.arguments.items()
        }
        *statements, result = self.parse().body[0].body
        scopes = _generator.lscope, _generator.local_defs, _generator.gscope
        _generator.lscope, _generator.local_defs, _generator.gscope = values, {}, self.get_capture_scope()
        try:
            for statement in statements:
                _generator.visit(statement)
            return _generator.visit(result.value)
        finally:
            _generator.lscope, _generator.local_defs, _generator.gscope = scopes


bundling = triton.jit if KEEPS_CONSTANTS or knobs.runtime.interpret else CompiledInPlace
"""Decorator of a device function that returns a bundle or None, or loops over one: it ends with its only ``return``."""
