"""Finds ops and variants by scanning ``ops/``: a new op is a folder, a new variant is a file.

``ops()`` imports only the ``op.py`` files. ``variants(op)`` imports the kernels, and with them Triton or numba, the
first time they are asked for. A kernel whose backend is not installed is listed with the reason, never dropped in
silence.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from griffin_kernels import errors
from griffin_kernels.contract import Op, Variant

BACKENDS: Mapping[str, str] = MappingProxyType(
    {"eager": "torch", "compiled": "torch", "numba": "numba", "triton": "triton", "peer": "torch"}
)
"""Backend -> the distribution it needs. A peer is another project's kernel; ``Variant.package`` is what it needs."""

PEERS: Mapping[str, str] = MappingProxyType(
    {"accelerated_scan": "accelerated-scan", "causal_conv1d": "causal-conv1d", "fla": "flash-linear-attention"}
)
"""Packages of peers, as they are imported -> as they are installed."""

_OPS_FOLDER = Path(__file__).parent / "ops"


@functools.cache
def ops() -> Mapping[str, Op]:
    """Every op by name, forward ops before the backward ops that belong to them."""
    found: dict[str, Op] = {}
    for folder in sorted(p.parent for p in _OPS_FOLDER.glob("*/op.py")):
        op: Op = importlib.import_module(f"griffin_kernels.ops.{folder.name}.op").OP
        if op.name != folder.name:
            raise errors.CatalogError(f"ops/{folder.name}/op.py describes op {op.name!r}: folder and name must agree")
        found[op.name] = op
    return MappingProxyType(found)


def op(name: str) -> Op:
    """The op called ``name``; raises UnknownOpError listing what there is."""
    try:
        return ops()[name]
    except KeyError:
        raise errors.UnknownOpError(f"no op {name!r}; there are {', '.join(ops())}") from None


@functools.cache
def _load(op_name: str) -> tuple[Mapping[str, Variant], Mapping[str, str]]:
    op(op_name)
    found: dict[str, Variant] = {}
    missing: dict[str, str] = {}
    for path in sorted((_OPS_FOLDER / op_name).glob("*_*.py")):
        backend, _, algorithm = path.stem.partition("_")  # ``triton_chunked.py`` holds ``triton.chunked``
        if backend not in BACKENDS:
            continue
        name, needed = f"{backend}.{algorithm}", BACKENDS[backend]
        try:
            module = importlib.import_module(f"griffin_kernels.ops.{op_name}.{path.stem}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != needed:
                raise
            missing[name] = f"{needed} is not installed"
            continue
        variant: Variant = module.VARIANT
        if (variant.op, variant.name) != (op_name, name):
            text = f"{path.name} in ops/{op_name} describes {variant.key}, expected {op_name}/{name}"
            raise errors.CatalogError(text)
        if variant.package and importlib.util.find_spec(variant.package) is None:
            missing[name] = f"{PEERS.get(variant.package, variant.package)} is not installed"
            continue
        found[name] = variant
    return MappingProxyType(found), MappingProxyType(missing)


def variants(op_name: str) -> Mapping[str, Variant]:
    """Every variant of an op by name, whose backend is installed."""
    return _load(op_name)[0]


def unavailable(op_name: str) -> Mapping[str, str]:
    """Variants of an op that cannot be imported here -> the reason."""
    return _load(op_name)[1]


def variant(key: str) -> Variant:
    """The variant ``op/backend.algorithm``; raises UnknownVariantError listing what there is."""
    op_name, _, name = key.partition("/")
    table = variants(op_name)
    if name in table:
        return table[name]
    if reason := unavailable(op_name).get(name):
        raise errors.UnknownVariantError(f"{key} cannot be used: {reason}")
    raise errors.UnknownVariantError(f"no variant {key!r}; {op_name} has {', '.join(table)}")
