"""From a call to the kernel that runs it: registry entry if one is near enough, else the documented default.

The choice is made once per signature (shapes, dtypes, device, options) and remembered; a remembered signature has also
passed the checks of its shapes and dtypes, so a repeated call costs one dictionary look-up.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import catalog, errors, misses, specs
from griffin_kernels import device as devices
from griffin_kernels.case import USUAL_SIZE
from griffin_kernels.contract import BenchCase, Case, Op, TensorSpec, Variant, config_key, dtype_name
from griffin_kernels.device import Device
from griffin_kernels.records import RegistryFile
from griffin_kernels.registry import Match, Registry, load_for

Run = Callable[..., tuple[Tensor | None, ...]]

OTHERS = frozenset({type(None), bool, int, float, str})
"""Types of arguments that are no tensors."""


@dataclass(frozen=True)
class Choice:
    """The kernel for a case. origin: ``use``, ``registry`` or ``default``; reason says why, in words."""

    variant: Variant
    config: Any
    origin: str
    reason: str
    match: Match | None = None

    def caveat(self) -> tuple[type[errors.RegistryWarning], str] | None:
        """Why an entry is used with less trust than another (its warning's class, words); None where there is none."""
        if self.match is None:
            return None
        entry = self.match.entry
        if entry.status == "predicted":
            return errors.PredictedWarning, "predicted without running on this device; `griffin tune` measures"
        if self.match.stale:
            again = f"`griffin tune --ops {entry.op}` races it again"
            return errors.StaleWarning, f"stale: measured with {', '.join(self.match.stale)}; still used, {again}"
        return None


ROTATING = ("local_attention_step", "local_attention_extend")
"""Ops whose public functions take ``rotary``."""


@dataclass(frozen=True)
class Explanation:
    """Why a case runs on the kernel it runs on. ``str()`` gives the text; rejected maps variants to reasons.

    casts: a sentence for each weight of a call that is cast before it, and for heads that are turned before it.
    """

    op: str
    case: Case
    device: Device
    choice: Choice
    rejected: Mapping[str, str]
    others: tuple[str, ...]
    casts: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.op} {self.case.key} on {self.device.name} ({self.device.arch}, {self.device.units} units)",
            f"  runs {self.choice.variant.name} [{config_key(self.choice.config)}]: {self.choice.reason}",
        ]
        if match := self.choice.match:
            lines.append(f"  from {match.source}, {match.entry.status} on {match.entry.date}: {match.entry.reason}")
        if caveat := self.choice.caveat():
            lines.append(f"  {caveat[1]}")
        lines += [f"  {cast}" for cast in self.casts]
        if self.others:
            lines.append(f"  could also run: {', '.join(self.others)}")
        lines += [f"  rejected {name}: {reason}" for name, reason in self.rejected.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Override:
    variant: str | None
    config: Any
    registry: Registry | None


@dataclass
class _State:
    """Everything that a choice depends on besides the call."""

    overrides: list[_Override] = field(default_factory=list)
    registries: dict[Device, Registry] = field(default_factory=dict)
    chosen: dict[Any, Run] = field(default_factory=dict)
    too_large: dict[Any, str] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)


_STATE = _State()


def refresh() -> None:
    """Forget every choice and loaded registry, so that the next call reads the registries again."""
    with _STATE.lock:
        _STATE.chosen.clear()
        _STATE.registries.clear()
        _STATE.warned.clear()


def _registry(device: Device) -> Registry:
    for override in reversed(_STATE.overrides):
        if override.registry is not None and override.registry.device == device:
            return override.registry
    if device not in _STATE.registries:
        _STATE.registries[device] = Registry.open(device)
    return _STATE.registries[device]


@contextlib.contextmanager
def use(
    variant: str | None = None,
    config: Mapping[str, Any] | None = None,
    registry: str | Path | Registry | RegistryFile | None = None,
) -> Iterator[None]:
    """Within the block, run a given variant, or choose from a given registry.

    variant: ``"linear_scan/numba.sequential"`` for one op, or ``"eager.sequential"`` for every op that has it.
    config: fields that differ from the variant's default. registry: a file, or a loaded registry.
    It holds for the whole process, because autograd runs backward passes on threads of its own.
    A baseline runs as its own users would run it: linear_scan's compiled.associative_scan, which nothing else chooses
    where another variant can run, gives NaN where a product of gates beyond [-1, 1] overflows.
    Raises UnknownVariantError, ConfigError or RegistryError at once; a case that the variant cannot run raises
    RejectedError when it is called.
    """
    if config is not None and variant is None:
        raise errors.ArgumentError("use: config needs a variant to belong to")
    named = [] if variant is None else _named(variant)
    parsed = None if config is None else named[0].parse_config(config)
    if isinstance(registry, RegistryFile):
        registry = Registry(devices.detect(), [("given registry", registry)])
    elif isinstance(registry, str | Path):
        device = devices.detect()
        registry = Registry(device, [(str(registry), load_for(Path(registry), device))])
    with _STATE.lock:
        _STATE.overrides.append(override := _Override(variant, parsed, registry))
        _STATE.chosen.clear()
    try:
        yield
    finally:
        with _STATE.lock:
            _STATE.overrides.remove(override)
            _STATE.chosen.clear()


def _named(variant: str) -> list[Variant]:
    if "/" in variant:
        return [catalog.variant(variant)]
    found = [table[variant] for table in map(catalog.variants, catalog.ops()) if variant in table]
    if not found:
        names = sorted({name for op in catalog.ops() for name in catalog.variants(op)})
        raise errors.UnknownVariantError(f"no op has a variant {variant!r}; there are {', '.join(names)}")
    return found


def _as_case(name: str, case: Case | Mapping[str, Any], device: Device | None) -> tuple[Op, Case, Device]:
    op = catalog.op(name)
    if isinstance(case, Case):
        if isinstance(case, BenchCase) and case.op != op.name:
            raise errors.ArgumentError(f"this case belongs to {case.op}, not to {op.name}")
        if set(case.dims) != set(op.cases[0].dims):
            raise errors.ArgumentError(f"no case of {op.name}, which has {', '.join(op.cases[0].dims)}: {case.key}")
        return op, case, device or devices.detect()
    fields = op.call._fields
    if unknown := set(case) - set(fields):
        raise errors.ArgumentError(f"{op.name} has no argument {sorted(unknown)}; it has {list(fields)}")
    given = op.call(**dict.fromkeys(fields) | op.call._field_defaults | dict(case))
    given = given._replace(**{name: getattr(given, name).to(dtype) for name, dtype in specs.casts(op, given).items()})
    specs.bind(op, given)
    return op, op.case_of(given), device or devices.detect(given[0].device)


def select(op: str, case: Case | Mapping[str, Any], device: Device | None = None) -> Choice:
    """The kernel that a case runs on.

    case: a Case, or the arguments of a call by name, ``{"x": x, "a": a}``. device: where; else that of the tensors,
    or this machine's. Raises NoVariantError with every reason where nothing can run it.
    """
    return _choose(*_as_case(op, case, device))


def _choose(op: Op, case: Case, device: Device) -> Choice:
    for override in reversed(_STATE.overrides):
        if override.variant is None:
            continue
        for variant in _named(override.variant):
            if variant.op == op.name:
                config = variant.config() if override.config is None else override.config
                if reason := _refusal(variant, case, device, config):
                    raise errors.RejectedError(f"{variant.key} cannot run {case.key} on {device.name}: {reason}")
                return Choice(variant, config, "use", "asked for by use()")
    for match in _registry(device).matches(op, case):
        if _refusal(match.variant, case, device, match.config) is None:
            near = f"tuned for {match.entry.case.key}, within a factor {2**match.distance:.3g} per size"
            reason = near if match.distance else "tuned for this case"
            return Choice(match.variant, match.config, "registry", reason, match)
    # the variant of highest rank among those that accept the case; baselines only where nothing else does
    able, reasons = _able(op, case, device)
    if not able:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise errors.NoVariantError(f"nothing can run {op.name} {case.key} on {device.name}: {listed}")
    best = max(able, key=lambda variant: (not variant.baseline, variant.rank(case, device), variant.name))
    return Choice(best, best.config(), "default", "not tuned near this case: the default by rank")


def _refusal(variant: Variant, case: Case, device: Device, config: Any) -> str | None:
    """Why a variant cannot run a case: what it says itself, or what a launch on this device has shown."""
    shown = _STATE.too_large.get(_footprint(variant, case, device, config)) if _STATE.too_large else None
    return shown or variant.reject(case, device, config)


def _footprint(variant: Variant, case: Case, device: Device, config: Any) -> Any:
    """What a kernel's registers and shared memory depend on: not how many rows and steps there are."""
    lengths = {"B", "T", *USUAL_SIZE}
    sizes = tuple((name, size) for name, size in case.dims.items() if name not in lengths)
    return variant.key, config, sizes, case.dtype, case.flags, device


def _able(op: Op, case: Case, device: Device) -> tuple[list[Variant], dict[str, str]]:
    """The variants that accept a case with their default configuration, and why the others do not, by name."""
    able, reasons = [], dict(catalog.unavailable(op.name))
    for variant in catalog.variants(op.name).values():
        reason = _refusal(variant, case, device, variant.config())
        if reason is None:
            able.append(variant)
        else:
            reasons[variant.name] = reason
    return able, reasons


def explain(op: str, case: Case | Mapping[str, Any], device: Device | None = None) -> Explanation:
    """What ``select`` chooses and why: the entry, its distance, what else could run and what was rejected.

    Of a call it also says which weights the public function casts first, and what that moves; so too for ``rotary``,
    which the public function does before the op.
    """
    turned: tuple[str, ...] = ()
    if op in ROTATING and not isinstance(case, Case):
        if case.get("rotary") is not None:
            moved = 2 * sum(case[name].numel() * case[name].itemsize for name in "qk")
            text = "rotary is not fused: PyTorch's operators turn q and k before the kernel"
            turned = (f"{text}, which reads and writes {moved / 1e6:.3g} MB more",)
        case = {name: value for name, value in case.items() if not name.startswith("rotary")}
    contract, found, where = _as_case(op, case, device)
    choice = _choose(contract, found, where)
    able, rejected = _able(contract, found, where)
    others = [variant.name for variant in able if variant is not choice.variant]
    cast = turned if isinstance(case, Case) else _casts(contract, case) + turned
    return Explanation(op, found, where, choice, rejected, tuple(others), cast)


def _casts(op: Op, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """In words, the weights of a call that are cast before it."""
    given = op.call(**dict.fromkeys(op.call._fields) | dict(arguments))
    words = []
    for name, dtype in specs.casts(op, given).items():
        weight = getattr(given, name)
        into, moved = dtype_name(dtype), weight.numel() * (weight.itemsize + dtype.itemsize)
        text = (
            f"{name} is cast from {dtype_name(weight.dtype)} to {into} at every call, which moves {moved / 1e6:.3g} MB"
        )
        words.append(f"{text}; a copy kept in {into} saves that")
    return tuple(words)


def call(op_name: str, given: Any) -> tuple[Tensor | None, ...]:
    """Check a call, an instance of ``Op.call``, choose its kernel and run it."""
    # asking of None whether it is a tensor takes longer than all else here
    key = (
        op_name,
        *[v if type(v) in OTHERS or not isinstance(v, Tensor) else (v.shape, v.dtype, v.device) for v in given],
    )
    try:
        run = _STATE.chosen.get(key)
    except TypeError:  # a list, say, where a tensor belongs
        specs.bind(catalog.op(op_name), given)
        raise
    if run is None:
        run = _resolve(op_name, given)
        with _STATE.lock:
            if len(_STATE.chosen) >= 2**16:  # varying lengths must not fill the memory
                _STATE.chosen.clear()
            _STATE.chosen[key] = run
    if torch._C._is_any_autocast_enabled() and (kind := given[0].device.type) != "meta":
        # an op's dtypes are those of its inputs: what torch would cast inside it is no concern of the caller's
        with torch.autocast(kind, enabled=False):
            return run(given)
    return run(given)


def _resolve(op_name: str, given: Any) -> Run:
    """Check a call seen for the first time, and bind its kernel.

    A signature tells the shape of positions, offsets and slots, not their values, nor where ``out`` lies: calls that
    have such indices on the CPU, or ``out``, are all checked.
    """
    op = catalog.op(op_name)
    sizes = specs.bind(op, given)
    specs.check_destination(op, given, sizes)
    into = op.destination is not None and given.out is not None
    if into:
        specs.check_apart(op, given)
    specs.check_values(op, given)
    run = _bound(op, given, sizes)
    indices = [getattr(given, name) for name in op.indices]
    if not into and all(index is None or index.device.type != "cpu" for index in indices):
        return run
    where = given[0].device
    hosted = [name for name, index in zip(op.indices, indices, strict=True) if index is not None]
    hosted = [name for name in hosted if specs.is_on_host(name, getattr(given, name))]
    # keys that are packed apart: every variant takes sequences that end early
    beside = getattr(given, "cu_seqlens_k", None) is not None

    def checked(given: Any) -> tuple[Tensor | None, ...]:
        if into:
            specs.check_apart(op, given)
        specs.check_values(op, given)
        if not hosted:
            return run(given)
        total = sizes["T"] if beside else int(given.cu_seqlens[-1])
        if where.type != "cpu":
            moved = {name: getattr(given, name).to(where, non_blocking=True) for name in hosted}
            given = given._replace(**moved)
        return run(given) if total == sizes["T"] else _without_padding(op, given, total, sizes)

    return checked


def _without_padding(op: Op, given: Any, total: int, sizes: specs.Sizes) -> tuple[Tensor | None, ...]:
    """A packed call whose sequences end at step ``total`` of T: what follows is not read, and outputs there are 0."""
    cut = [dim for dim in ("T", "Ta", "S") if sizes.get(dim) == sizes["T"]]

    def along(spec: TensorSpec) -> int | None:
        return next((at for at, dim in enumerate(spec.names) if dim in cut), None)

    parts = {}
    for name, spec in op.inputs.items():
        if (value := getattr(given, name)) is not None and (at := along(spec)) is not None:
            parts[name] = value.narrow(at, 0, total)
    outputs = list(call(op.name, given._replace(**parts)))
    for place, (spec, out) in enumerate(zip(op.outputs.values(), outputs, strict=True)):
        if out is not None and (at := along(spec)) is not None:
            padded = out.new_zeros(*out.shape[:at], sizes["T"], *out.shape[at + 1 :])
            padded.narrow(at, 0, total).copy_(out)
            outputs[place] = padded
    return tuple(outputs)


def _bound(op: Op, given: Any, sizes: specs.Sizes) -> Run:
    """The kernel for a call that has passed its checks."""
    if 0 in [sizes[dim] for dim in ("B", "T") if dim in sizes]:
        return functools.partial(_run_empty, op)
    if given[0].device.type == "meta":
        return functools.partial(_run_meta, op)
    device = devices.detect(given[0].device)
    case = op.case_of(given)
    training = any(isinstance(value, Tensor) and value.requires_grad for value in given)
    with _STATE.lock:
        choice = _choose(op, case, device)
        if op.forward is None:  # a gradient's kernel is spoken of where the user calls, not on a thread of autograd's
            _warn(case, [choice, *(_gradient(op, case, device) if training else ())], device)
    if choice.origin == "default":
        misses.record(op.name, case, device)
    compiles = choice.variant.launches is not None or choice.variant.backend == "compiled"
    if compiles and device.kind == "cuda" and torch.cuda.is_current_stream_capturing():
        raise errors.CaptureError(
            f"{op.name} {case.key}: the first call of these shapes is inside a CUDA graph capture, where its kernels "
            "cannot be compiled and loaded; call it once with the same shapes before the capture"
        )
    if choice.variant.launches is None:
        return functools.partial(choice.variant.run, config=choice.config)

    def launched(given: Any) -> tuple[Tensor | None, ...]:
        try:
            return choice.variant.run(given, choice.config)
        except errors.OutOfResourcesError as error:
            _give_up(op, case, device, choice, error)
        return call(op.name, given)

    return launched


def _give_up(op: Op, case: Case, device: Device, choice: Choice, error: errors.OutOfResourcesError) -> None:
    """Remember that a kernel does not fit the device, and say so once; the next choice is another.

    Raises the error where nothing else may be run: the variant was asked for, or has changed a state already.
    """
    if choice.origin == "use":
        raise error
    key = choice.variant.key
    with _STATE.lock:
        _STATE.too_large[_footprint(choice.variant, case, device, choice.config)] = str(error)
        _STATE.chosen.clear()
        if op.in_place and error.before:
            lost = f"{op.name}: {key} changed states before a launch failed, so this token is lost: {error}"
            raise errors.OutOfResourcesError(f"{lost}; the next call runs another variant", error.before) from error
        instead = _choose(op, case, device).variant.name
        told = key in _STATE.warned
        _STATE.warned.add(key)
    if not told:
        text = f"{key} [{config_key(choice.config)}] cannot run {case.key} on {device.name}: {error}"
        errors.warn(f"{text}; using {instead} from now on", errors.FallbackWarning)


def _gradient(op: Op, case: Case, device: Device) -> list[Choice]:
    """The kernel that would run the op's gradient: a case of it has the sizes and flags of the forward op's."""
    with contextlib.suppress(errors.NoVariantError, errors.RejectedError):  # the backward pass will say so
        return [_choose(other, case, device) for other in catalog.ops().values() if other.forward == op.name]
    return []


def _warn(case: Case, chosen: list[Choice], device: Device) -> None:
    """Say once per op that it is untuned, and once per process that an entry is stale or predicted.

    chosen: for a call and, where it needs one, its gradient. Who was already told of this registry that something in
    it is passed over is not told more.
    """
    passed_over = _registry(device).passed_over
    untuned = {choice.variant.op: choice.variant.name for choice in chosen if choice.origin == "default"}
    new = {op: name for op, name in untuned.items() if op not in _STATE.warned and not passed_over & {op, "*"}}
    if new:
        _STATE.warned.update(new)
        text = f"{' and '.join(new)} {'is' if len(new) == 1 else 'are'} not tuned near {case.key} on {device.name}: "
        text += f"using {' and '.join(new.values())}; `griffin tune` measures this machine"
        errors.warn(text, errors.UntunedWarning)
    for choice in chosen:
        if (caveat := choice.caveat()) and choice.match is not None:
            category, words = caveat
            if category.__name__ not in _STATE.warned and not passed_over:
                _STATE.warned.add(category.__name__)
                where = f"{choice.variant.op} in registry {choice.match.source}"
                errors.warn(f"{where} is {words} (`griffin tune show` lists all)", category)


def _run_empty(op: Op, given: Any) -> tuple[Tensor | None, ...]:
    """Outputs of a problem without steps: the reference's answer, in the dtypes of the contract."""
    data = specs.data_dtype(op, given)
    if op.destination is not None and given.out is not None:
        return tuple(given.out if name == op.destination else getattr(given, name) for name in op.outputs)
    with torch.no_grad():
        outputs = op.reference(given)
    return tuple(
        None
        if out is None
        else out.detach().to(specs.expected_dtype(spec, data, specs.parameter_dtype(op, given, name)), copy=True)
        for (name, spec), out in zip(op.outputs.items(), outputs, strict=True)
    )


def _run_meta(op: Op, given: Any) -> tuple[Tensor | None, ...]:
    """Outputs without memory; states that the op changes are given back as they are."""
    made = dict(zip(op.outputs, specs.empty_outputs(op, given), strict=True))
    made |= {name: getattr(given, name) for name in op.in_place}
    if op.destination is not None and given.out is not None:
        made[op.destination] = given.out
    return tuple(made.values())
