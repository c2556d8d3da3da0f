"""Activations in native code, emitted as vectors; see ``_activation.py`` for what they are.

    slope of silu: s + z s (1 - s)        of gelu: s + z s (1 - s) dw/dz,  w = 2 SCALE (z + CUBIC z^3)

1 - s is exact to its last bits. Where z is below its bounds the value is 0 and beyond them the slope is 0 or 1, to the
last bit. NaN stays NaN.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

from griffin_kernels.ops import _gelu
from griffin_kernels.ops._native import DOUBLE, Lanes
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as gates

FILES = (__file__, str(_gelu.__file__), str(gates.__file__))

_FLAT = {"silu": 87.0, "gelu": 16.0}
"""How far from 0 an activation is 0 or the identity; further out a cube or an exponential may overflow."""


def _sigmoid(v: Lanes, z: Any) -> tuple[Any, Any]:
    """sigmoid(z) and 1 - sigmoid(z), in the accumulator's dtype."""
    if v.wide is not DOUBLE:
        return gates.sigmoid(v, z)
    power = v._call("exp", v.builder.fneg(v.at_most(v.at_least(z, -700.0), 700.0)))
    value = v.divide(v.constant(1.0), v.add(power, v.constant(1.0)))
    return value, v.multiply(power, value)


def activated(v: Lanes, activation: str | None, z: Any) -> Any:
    """The activation of z; z itself without one."""
    if activation is None:
        return z
    value = v.at_least(z, -_FLAT[activation])
    argument = value
    if activation == "gelu":
        square = v.multiply(value, value)
        cubic = v.multiply_add(square, v.constant(2 * _gelu.SCALE * _gelu.CUBIC), v.constant(2 * _gelu.SCALE))
        argument = v.multiply(value, cubic)
    return v.multiply(value, _sigmoid(v, argument)[0])


def slope(v: Lanes, activation: str, z: Any) -> Any:
    """The derivative of the activation at z."""
    return value_and_slope(v, activation, z)[1]


def value_and_slope(v: Lanes, activation: str, z: Any) -> tuple[Any, Any]:
    """The activation of z and its derivative, from one sigmoid."""
    value = v.at_most(v.at_least(z, -_FLAT[activation]), _FLAT[activation])
    argument = steepness = value
    if activation == "gelu":
        square, scale = v.multiply(value, value), v.constant(2 * _gelu.SCALE)
        argument = v.multiply(value, v.multiply_add(square, v.constant(2 * _gelu.SCALE * _gelu.CUBIC), scale))
        inner = v.multiply_add(square, v.constant(6 * _gelu.SCALE * _gelu.CUBIC), scale)
        steepness = v.multiply(value, inner)
    share, rest = _sigmoid(v, argument)
    made = v.multiply(v.at_least(z, -_FLAT[activation]), share)
    return made, v.multiply_add(v.multiply(steepness, rest), share, share)
