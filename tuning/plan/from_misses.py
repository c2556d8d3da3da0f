"""Recorded misses as cases to tune: what ``griffin tune --from-misses PATH`` adds to a plan.

Look-up takes entries of other sizes, so not every recorded size needs an entry of its own: of cases whose sizes differ
by at most a factor of two, the one that was recorded most often is tuned.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch

from griffin_kernels import catalog, errors, registry, specs
from griffin_kernels import device as devices
from griffin_kernels.case import DTYPE_BYTES, USUAL_SIZE
from griffin_kernels.device import Device
from griffin_kernels.misses import ENVIRONMENT_VARIABLE, Miss
from griffin_kernels.texts import unmarked
from griffin_kernels.validity import quoted
from tuning.plan.budget import memory_allowed
from tuning.plan.planner import Options

NEAR = 1.0
"""Largest log2 ratio of a size at which one tuned case speaks for another: half of what look-up allows."""

TRIED_BYTES = 512 * 2**20
"""Inputs and outputs up to which a case is made once to see that it can be; a larger one is made when it is tuned."""

_DECODER = msgspec.json.Decoder(Miss)


def chosen(path: Path, device: Device) -> tuple[tuple[Miss, ...], list[str]]:
    """(recorded cases of a device that tuning can make, the most frequent first; a sentence on each that is left out).

    Raises JournalError where the file cannot be read, ArgumentError where nothing in it can be tuned here.
    """
    notes: list[str] = []
    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], tuple[int, Miss]] = {}
    elsewhere: Counter[str] = Counter()
    for number, miss in _lines(path, notes):
        if miss.device != device.slug:
            elsewhere[quoted(miss.device)] += 1
            continue
        miss = _fillable(miss)
        key = (miss.op, miss.case.key)
        counted[key] += 1
        first.setdefault(key, (number, miss))
    for name, count in elsewhere.items():
        notes.append(f"{path}: {count} of {name}, left out: this device is {device.slug}")
    kept: list[Miss] = []
    near: Counter[str] = Counter()
    for key, _ in counted.most_common():
        number, miss = first[key]
        if problem := unmakeable(miss):
            notes.append(f"{path}, line {number}: {quoted(' '.join(key), 200)} is left out: {problem}")
        elif any(
            (far := registry.distance(catalog.op(miss.op), miss.case, other.case)) is not None and far <= NEAR
            for other in kept
            if miss.op == other.op
        ):
            near[miss.op] += 1
        else:
            kept.append(miss)
    if near:
        told = ", ".join(f"{count} of {name}" for name, count in near.items())
        notes.append(f"{path}: {told}, left out: within a factor of {2**NEAR:g} of cases that are tuned")
    if not kept:
        why = f": {notes[0]}" if notes else f"; {ENVIRONMENT_VARIABLE}={path} records them while a model runs"
        raise errors.ArgumentError(f"{path} holds no case to tune here{why}")
    return tuple(kept), notes


def _lines(path: Path, notes: list[str]) -> Iterator[tuple[int, Miss]]:
    """(line number, miss) of every good line; bad ones are named in ``notes``."""
    try:
        if path.exists() and not path.is_file():
            raise errors.JournalError(f"misses {path} is not a file; give the file that {ENVIRONMENT_VARIABLE} named")
        raw = path.read_bytes()
    except OSError as error:
        raise errors.JournalError(f"misses {path} cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(unmarked(raw).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            notes.append(f"{path}, line {number} is left out: not a recorded miss: {quoted(error.args[0], 160)}")


def _fillable(miss: Miss) -> Miss:
    """A miss whose case says all that ``make_inputs`` needs: a pool larger than the batch is used through slots, if
    it is not in pages."""
    dims = miss.case.dims
    if dims.get("P", dims.get("B")) == dims.get("B") or "paged" in miss.case.flags:
        return miss
    return msgspec.structs.replace(miss, case=msgspec.structs.replace(miss.case, data=["slots"]))


def unmakeable(miss: Miss) -> str | None:
    """Why the op cannot make inputs of a recorded case, in words; None where it can."""
    try:
        op = catalog.op(miss.op)
    except errors.UnknownOpError as error:
        return quoted(error, 200)
    dims = list(op.cases[0].dims)
    if list(miss.case.dims) != dims or min(miss.case.dims.values()) < 1:
        return f"expected a size of at least 1 for each of {', '.join(dims)}"
    if miss.case.dtype not in DTYPE_BYTES:
        return f"no dtype {quoted(miss.case.dtype)}; there are {', '.join(DTYPE_BYTES)}"
    flags = {flag for case in op.cases for flag in case.flags}
    if unknown := set(miss.case.flags) - flags:
        return f"no flag {quoted(min(unknown))}; {op.name} has {', '.join(sorted(flags)) or 'none'}"
    case = _fillable(miss).case
    needed = op.cost(case).bytes_total
    if needed > TRIED_BYTES:
        room = memory_allowed()
        if needed > room:
            return f"its tensors take {needed / 2**30:.3g} GiB, {room / 2**30:.3g} GiB are free"
        return None
    try:
        call = op.call(**op.make_inputs(case, torch.device("cpu"), 0))
        specs.bind(op, call)
        if op.check is not None:
            op.check(call)
        made = op.case_of(call)
    except Exception as error:  # sizes that contradict each other fail in whatever way the op's tensors do
        return f"its inputs cannot be made: {type(error).__name__}: {quoted(error, 160)}"
    differs = [name for name, size in made.dims.items() if name not in USUAL_SIZE and size != case[name]]
    if differs or registry.distance(op, made, case) != 0.0:
        return f"its inputs come out as {made.key}"
    return None


def extended(options: Options, path: Path, tell: Callable[[str], None]) -> Options:
    """``options`` with the misses recorded at ``path``; what is left out of them is told, a sentence each."""
    device = devices.detect(options.device or None)
    misses, notes = chosen(path.expanduser(), device)
    for note in notes:
        tell(note)
    return dataclasses.replace(options, misses=misses)
