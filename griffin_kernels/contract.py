"""Op, Variant, Case, Cost, Tolerance: the one table that tests, tuner, roofline and reports loop over.

An *op* is a contract, written once as data. A *variant* is a plain function that meets it, plus facts about that
function. Nothing here imports Triton or numba: describing a kernel must not need what runs it.

The key ``op/variant/case/config/device`` names one measurement everywhere: test id, journal key, report anchor.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from griffin_kernels import errors, kernel_sources, launch
from griffin_kernels.case import BenchCase as BenchCase
from griffin_kernels.case import Case as Case
from griffin_kernels.case import Cost as Cost
from griffin_kernels.case import Tolerance as Tolerance

if TYPE_CHECKING:
    from griffin_kernels.device import Device

Inputs = dict[str, Any]
"""Arguments of one call by name: tensors (or None) and plain options. ``Op.call(**inputs)`` is the call."""


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that carries and sums use for data of ``dtype``: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def roundings(dtype: torch.dtype) -> tuple[float, float]:
    """Relative errors of rounding in the accumulator of ``dtype`` and from it to ``dtype``; 0 if that is the same."""
    wide = accumulator(dtype)
    return torch.finfo(wide).eps / 2, 0.0 if wide == dtype else torch.finfo(dtype).eps / 2


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of an op.

    dims: names separated by spaces, ``"B T D"``; the same name means the same size in every tensor of a call.
    A name may be an integer literal or ``name-1`` / ``name+1``.
    dtype: ``"data"`` (the case's dtype), ``"accumulator"`` (float32, or float64 for float64 data), ``"state"`` and
    ``"parameter"`` (either of them, whatever other tensors have; the gradient of a parameter has the parameter's), or a
    torch dtype's name such as ``"int32"`` and ``"bool"``.
    least: the smallest value that a tensor of whole numbers may hold; None where the op's own ``check`` says.
    when: the option that an optional input of a gradient is for: without it none is kept for the gradient.
    of: the optional input that an optional output belongs to, where its name does not tell.
    """

    dims: str
    dtype: str = "data"
    optional: bool = False
    least: int | None = None
    when: str = ""
    of: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.dims.split())


@dataclass(frozen=True)
class Destination:
    """The argument of a call that is a tensor for one of its outputs, by name, to be written into and given back."""

    output: str


LARGEST_INDEX = 2**31 - 1
"""The largest position: it fits in int32, which callers may use, and leaves kernels room to add to it."""

ROWS = ("B", "N", "P", "Ba")
"""Dims that count rows of the batch: N unless sequences are packed, P unless states are kept in a pool, Ba unless all
rows share one."""


_OPTION_TYPES: dict[Any, str] = {bool: "bool", int: "int", float: "float", float | None: "float?", str | None: "str?"}
"""Types of options by annotation, as the schema of a ``torch.library`` operator writes them."""


@dataclass(frozen=True)
class Op:
    """An operation as data. See ``ops/<op>/op.py`` for instances.

    call: the NamedTuple of its arguments, the only list of them. A tensor is ``Annotated`` with its TensorSpec, and is
    optional where its type says so; what follows the tensors are options. ``inputs`` and ``option_types`` are derived.
    A last field ``out``, Annotated with a Destination, is neither: ``destination`` names the output that it is for.
    outputs: tensors by name, in order.
    reference: ``(call) -> tuple of outputs``; plain PyTorch, obviously right, run in float64. An output is None
    where an optional input that it belongs to is None.
    cases: tagged smoke | edge | bench.
    make_inputs: ``(case, device, seed) -> inputs``.
    cost: ``(case) -> Cost``. tolerance: ``(case) -> Tolerance`` with its derivation in a comment.
    case_of: ``(call) -> Case`` for a real call.
    check: ``(call) -> None``; raises what the specs cannot express.
    exact_dims: dimensions that look-up never approximates. free_dims: those it ignores, because they follow from
    others or hardly matter. minor_flags: flags that hardly change which kernel is right: where nothing is tuned for a
    case with them, what is tuned for one without speaks for it. forward: for a backward op, the op it belongs to.
    splits: dims along which a call falls into independent ones: each a dim and those that are cut with it, of which it
    is the coarsest (a gate block and its channels). An output with none of them is a sum over the parts.
    in_place: inputs that ``run`` overwrites, each an output of the same name too: ``run`` gives back the very tensor.
    The reference changes nothing and gives what the tensor is to hold afterwards.
    together: inputs whose elements of one step a variant may mix before it drops one of them, as where one division
    serves two gates: what is broken in one may spoil, at its own step, what depends on any.
    """

    name: str
    summary: str
    call: Any
    outputs: Mapping[str, TensorSpec]
    reference: Callable[..., tuple[torch.Tensor | None, ...]]
    cases: tuple[BenchCase, ...]
    make_inputs: Callable[[Case, torch.device, int], Inputs]
    cost: Callable[[Case], Cost]
    tolerance: Callable[[Case], Tolerance]
    case_of: Callable[..., Case]
    check: Callable[..., None] | None = None
    exact_dims: tuple[str, ...] = ()
    free_dims: tuple[str, ...] = ()
    minor_flags: tuple[str, ...] = ()
    forward: str | None = None
    splits: tuple[tuple[str, ...], ...] = ()
    in_place: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    inputs: Mapping[str, TensorSpec] = field(init=False)
    option_types: Mapping[str, str] = field(init=False)
    destination: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        inputs: dict[str, TensorSpec] = {}
        option_types: dict[str, str] = {}
        for name, hint in typing.get_type_hints(self.call, include_extras=True).items():
            if typing.get_origin(hint) is not typing.Annotated:
                option_types[name] = _OPTION_TYPES[hint]
                continue
            kind, spec = typing.get_args(hint)
            if isinstance(spec, Destination):
                object.__setattr__(self, "destination", spec.output)
            else:
                inputs[name] = dataclasses.replace(spec, optional=type(None) in typing.get_args(kind))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "option_types", option_types)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the arguments that are no tensors."""
        return tuple(self.option_types)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of the inputs and options, in order: the arguments of a ``torch.library`` operator."""
        return (*self.inputs, *self.option_types)

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """Inputs of whole numbers: offsets, positions, slots. Unlike data they can hold a value that is wrong."""
        return tuple(name for name, spec in self.inputs.items() if spec.dtype.startswith("int"))

    def cases_tagged(self, *tags: str) -> tuple[BenchCase, ...]:
        return tuple(case for case in self.cases if case.tag in tags)


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as an ordinary tensor: contiguous and no view, with memory of its own and no more than it needs.

    That is ``tensor`` itself where it is one, and its memory where it fills that; copied otherwise.
    """
    memory = tensor.untyped_storage()
    fills = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes  # torch.compile's buffers may be padded
    if tensor.requires_grad or (fills and not tensor._is_view()):
        return tensor
    if not fills:
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(memory, 0, tensor.size(), tensor.stride())


def _with_ordinary_outputs(run: Callable[..., tuple[torch.Tensor | None, ...]], op: str) -> Callable[..., Any]:
    """``run``, whose outputs are ordinary tensors but for ``out`` and those that it changes in place and gives back."""

    @functools.wraps(run)
    def ordinarily(call: Any, config: Any) -> tuple[torch.Tensor | None, ...]:
        kept = {id(value) for value in call if isinstance(value, torch.Tensor)}
        found = run(call, config)
        if getattr(call, "out", None) is not None:
            contract = importlib.import_module(f"griffin_kernels.ops.{op}.op").OP
            named = zip(contract.outputs, found, strict=True)
            found = tuple(call.out.copy_(out) if name == contract.destination else out for name, out in named)
        return tuple(out if out is None or id(out) in kept else ordinary(out) for out in found)

    return ordinarily


@dataclass(frozen=True)
class NoConfig:
    """Config of a variant that has nothing to tune."""


@dataclass(frozen=True)
class Adapter:
    """A function that is not ours behind the contract of an op, cut where its own work begins and ends.

    A baseline is timed as its users run it. They keep their data in the layout that it wants, and what a gradient needs
    was kept by the forward pass: neither is its work, so that ``call`` alone is timed.

    prepare: ``(call of the op) -> arguments`` of ``call``. finish: ``(result of call, call of the op) -> outputs``.
    """

    prepare: Callable[[Any], Inputs]
    call: Callable[..., Any]
    finish: Callable[[Any, Any], tuple[torch.Tensor | None, ...]]

    def __call__(self, call: Any) -> tuple[torch.Tensor | None, ...]:
        """The op's outputs: all three in a row."""
        return self.finish(self.call(**self.prepare(call)), call)


def from_parts(call: Any, config: Any) -> tuple[torch.Tensor | None, ...]:
    """Stands for ``run`` where a variant is its launches or its adapter: it gets one of its own that runs these."""
    raise errors.CatalogError("a variant without launches and without an adapter needs a run of its own")


def _runner(variant: Variant) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    """``run`` of a variant that is its adapter, or makes launches, runs them, and gives the op's outputs in order."""
    if (adapter := variant.adapter) is not None:

        def adapted(call: Any, config: Any) -> tuple[torch.Tensor | None, ...]:
            return adapter(call)

        adapted.__module__ = adapter.prepare.__module__
        return adapted

    def run(call: Any, config: Any) -> tuple[torch.Tensor | None, ...]:
        assert variant.launches is not None
        outputs: dict[str, Any] = {} if destination is None or call.out is None else {destination: call.out}
        launch.run_all(variant.launches(call, outputs, config))
        outputs |= {name: getattr(call, name) for name in op.in_place}
        return tuple(outputs[name] for name in op.outputs)

    op = variant.contract
    destination = op.destination
    run.__module__ = variant.launches.__module__
    return run


@dataclass(frozen=True)
class Variant:
    """One implementation of an op: a plain function plus facts.

    name: ``<backend>.<algorithm>``; the file is ``<backend>_<algorithm>.py``.
    run: ``(call, config) -> tuple of outputs``; left out where it is the launches, or the adapter. Allocates
    every output with ``torch.empty`` and friends, takes any strides, and changes no input but those of ``Op.in_place``,
    which it writes and gives back, as it does ``call.out`` where an op has that and it is given. Outputs are ordinary
    tensors: no two share memory, nor does one with an input, and none is a view. What PyTorch's own operations give is
    made so here, and is copied into ``call.out``.
    config: frozen dataclass whose defaults are the documented default. axes: values the tuner may try per field.
    reject: ``(case, device, config) -> reason | None``: why this cannot run, in words a user can act on.
    baseline: what a user would otherwise run; every report compares with it.
    rank: ``(case, device) -> int``: preference when nothing is tuned; the highest accepted one is the default.
    adapter: baselines only: what of ``run`` is timed; None where that is all of it.
    package: what else has to be installed, by the name that it is imported as; empty for the backend alone.
    slack: baselines only: multiples of the op's tolerance that it may be off by for 16-bit data, where that is what its
    carry has.
    launches: Triton only, ``(call, outputs, config) -> list[Launch | TorchStep]``; the same description is run on a
    GPU, run in the interpreter and compiled for a GPU that is not there.
    traffic: ``(case, config) -> bytes`` where a variant moves more than the ideal; None means ideal.
    """

    op: str
    name: str
    summary: str
    run: Callable[..., tuple[torch.Tensor | None, ...]] = from_parts
    config: type = NoConfig
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reject: Callable[[Case, Device, Any], str | None] = lambda case, device, config: None
    baseline: bool = False
    rank: Callable[[Case, Device], int] = lambda case, device: 0
    adapter: Adapter | None = None
    package: str = ""
    slack: float = 1.0
    launches: Callable[..., list[Any]] | None = None
    traffic: Callable[[Case, Any], int] | None = None

    def __post_init__(self) -> None:
        fields = {f.name for f in dataclasses.fields(self.config)}
        if unknown := set(self.axes) - fields:
            text = f"{self.key}: axes {sorted(unknown)} are not fields of its Config {sorted(fields)}"
            raise errors.CatalogError(text)
        if not self.baseline and (self.adapter is not None or self.slack != 1.0):
            raise errors.CatalogError(f"{self.key}: only a baseline has an adapter or slack")
        if self.run is from_parts:
            if self.launches is None and self.adapter is None:
                raise errors.CatalogError(f"{self.key} has no run, no launches and no adapter")
            object.__setattr__(self, "run", _runner(self))
        if self.backend in ("eager", "compiled", "peer"):
            object.__setattr__(self, "run", _with_ordinary_outputs(self.run, self.op))

    def on(self, inputs: Inputs, config: Any) -> tuple[torch.Tensor | None, ...]:
        """``run`` on arguments by name."""
        return self.run(self.contract.call(**inputs), config)

    @cached_property
    def contract(self) -> Op:
        return importlib.import_module(f"griffin_kernels.ops.{self.op}.op").OP  # type: ignore[no-any-return]

    @property
    def key(self) -> str:
        """``linear_scan/triton.chunked``."""
        return f"{self.op}/{self.name}"

    @property
    def backend(self) -> str:
        return self.name.split(".", 1)[0]

    @cached_property
    def source_hash(self) -> str:
        """SHA-256 (16 hex digits) of the variant's file, of the one with ``run``, and of what they import of ``ops/``.

        A registry entry is valid only for the source it was measured with. The contracts (``op.py``, ``cost.py``,
        ``unfused.py``) do not count: a new case does not change a kernel.
        """
        home = kernel_sources.home(self.op, self.name)
        modules = kernel_sources.kernel_modules(self.run.__module__)
        modules |= kernel_sources.kernel_modules(home) if home in sys.modules else set()
        return kernel_sources.digest(modules)

    def all_configs(self) -> Iterator[Any]:
        """Every combination of the axes, the default first, before any is rejected."""
        default = self.config()
        yield default
        for values in itertools.product(*self.axes.values()):
            config = self.config(**dict(zip(self.axes, values, strict=True)))
            if config != default:
                yield config

    def configs(self, case: Case, device: Device) -> list[Any]:
        """Configurations that can run ``case`` on ``device``, the default first where it can."""
        return [c for c in self.all_configs() if self.reject(case, device, c) is None]

    def parse_config(self, values: Mapping[str, Any]) -> Any:
        """A Config from plain JSON values; unknown fields and wrong types raise ConfigError."""
        fields = {f.name: f for f in dataclasses.fields(self.config)}
        if unknown := set(values) - set(fields):
            raise errors.ConfigError(f"{self.key}: no config field {sorted(unknown)}; it has {sorted(fields)}")
        default = self.config()
        for name, value in values.items():
            if type(value) is not type(getattr(default, name)):
                want = type(getattr(default, name)).__name__
                raise errors.ConfigError(f"{self.key}: config field {name} is {value!r}, expected {want}")
        return self.config(**values)


def config_dict(config: Any) -> dict[str, Any]:
    """A Config as plain values, in field order."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def config_key(config: Any) -> str:
    """``block_t=32,num_warps=4``; ``default`` for a Config without fields."""
    return ",".join(f"{k}={v}" for k, v in config_dict(config).items()) or "default"
