"""What is typed after ``griffin roofline forward``, made sense of. Importing this imports neither torch nor reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.markup import escape

from griffin_kernels import datasheet, errors
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.config_files import find_config
from griffin_kernels.texts import did_you_mean, shortened
from roofline import tables, units, what_if_tables
from roofline.console import output
from roofline.flash import ATTENTIONS, Attention
from roofline.forward import BATCHES, SEQS
from roofline.request_time import parse_request
from roofline.target import AnalysisTarget, at_hand, of_sku
from roofline.training_work import TrainingPlan
from roofline.units import gib
from roofline.weight_formats import FORMATS
from roofline.what_if import AUTO, Question, answer, compare, transformer_of
from roofline.work import LARGEST, PHASES, Phase

if TYPE_CHECKING:
    from griffin_kernels.device import Device

DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short names on the command line."""


def chosen(word: str, names: Iterable[str], flag: str) -> str:
    """``word`` if it is one of ``names``; else ArgumentError lists them and the nearest."""
    known = list(names)
    if word in known:
        return word
    listed = " or ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)
    raise errors.ArgumentError(f"{flag} is {shortened(word)}, expected {listed}{did_you_mean(word, known)}")


def dtype_of(word: str | None) -> str | None:
    """The dtype by its own or its short name; None for None."""
    if word is None or word in DTYPES:
        return DTYPES.get(word or "")
    if word in DTYPES.values():
        return word
    meant = did_you_mean(word, [*DTYPES, *DTYPES.values()])
    raise errors.DtypeError(f"--dtype is {shortened(word)}, expected float32, bfloat16 or float16{meant}")


@dataclass(frozen=True)
class AskedDevice:
    """A device that is asked about. here: this machine's, where it is one of its own. dtype: what it computes in."""

    target: AnalysisTarget
    dtype: str
    here: Device | None = None


def place_of(device: str | None, dtype: str | None, memory_bytes: int | None) -> AskedDevice:
    """A device of this machine (None, ``cpu``, ``cuda``), or a SKU. memory_bytes: in place of all that it has."""
    here: Device | None = None
    if device is None or device == "cpu" or device.startswith("cuda"):
        from griffin_kernels import device as devices

        here = devices.detect(device)
    target = at_hand(here) if here is not None else of_sku(device or "")
    if memory_bytes is not None:
        told = f"it may use {gib(memory_bytes)} of memory (--memory)"
        target = replace(target, memory_bytes=memory_bytes, assumptions=(*target.assumptions, told))
    usual = "float32" if here is not None and here.kind == "cpu" else "bfloat16"
    return AskedDevice(target, dtype or usual, here)


def places_of(device: str | None, dtype: str | None, memory: str | None, attention: str) -> list[AskedDevice]:
    """All devices of ``--device``, comma-separated; this machine's where none is named. attention: of a Transformer."""
    chosen(attention, ATTENTIONS, "--attention")
    limit = None if memory is None else units.size(memory, "--memory")
    names: list[str | None] = [None] if device is None else [part.strip() for part in device.split(",")]
    for name in names:  # a wrong name should not wait for a device
        if name is not None and name != "cpu" and not name.startswith("cuda"):
            datasheet.datasheet(name)
    places = [place_of(name, dtype, limit) for name in names]
    return [replace(place, target=place.target.attending(cast(Attention, attention))) for place in places]


def question_of(
    model: str,
    phase: str,
    batch: str | None,
    seq: str,
    weights: str | None,
    latency: str | None,
    request: str | None,
    training: TrainingPlan | None,
) -> Question:
    """The question that the words ask; ArgumentError names the flag at fault."""
    name, config = find_config(model)
    chosen(phase, PHASES, "--phase")
    if weights is not None:
        chosen(weights, FORMATS, "--weights")
    for flag, given in {"--weights": weights, "--request": request}.items():
        if phase == "train" and given is not None:
            raise errors.ArgumentError(f"{flag} is a question of inference; leave it or --phase train out")
    limit = None if latency is None else units.duration(latency, "--latency")
    automatic = batch == AUTO or (batch is None and limit is not None)
    if limit is not None and not automatic:
        raise errors.ArgumentError(f"--latency bounds the batch, which is given as {batch}; take --batch {AUTO}")
    return Question(
        config,
        name,
        cast(Phase, phase),
        units.count(seq, "--seq", LARGEST),
        None if automatic else units.count(batch or "1", "--batch", LARGEST),
        weights or "",
        limit,
        None if request is None else parse_request(request, "--request"),
        training,
    )


def axes_of(
    axes: str, question: Question, batches: str | None, seqs: str | None
) -> tuple[Sequence[int], Sequence[int]]:
    """Batches and lengths of a sweep."""
    swept = {part.strip() for part in axes.split(",") if part.strip()}
    if not swept or swept - {"batch", "seq"}:
        raise errors.ArgumentError(f"--sweep is {shortened(axes)}, expected batch, seq or batch,seq")
    if question.batch is None:
        raise errors.ArgumentError(f"--sweep takes batches that are given; leave out --batch {AUTO} and --latency")
    rows: Sequence[int] = [question.batch]
    columns: Sequence[int] = [question.seq]
    if "batch" in swept:
        rows = BATCHES if batches is None else units.counts(batches, "--batches", LARGEST)
    if "seq" in swept:
        columns = SEQS if seqs is None else units.counts(seqs, "--seqs", LARGEST)
    return rows, columns


def prices_of(price: str | None, devices: int) -> list[float | None]:
    """The price of an hour of each device; ArgumentError where they are neither one for all nor one for each."""
    if price is None:
        return [None] * devices
    found = units.amounts(price, "--price")
    if len(found) not in (1, devices):
        raise errors.ArgumentError(f"--price has {len(found)} numbers for {devices} devices; give one, or one for each")
    return [*(found * devices if len(found) == 1 else found)]


def versus_of(words: str | None, question: Question) -> tuple[str, GriffinConfig] | None:
    """The model of ``--vs``; ``mqa`` is the Transformer of the size of the model that is asked about."""
    if words is None:
        return None
    if words == "mqa":
        try:
            words = transformer_of(question.name)
        except errors.ArgumentError as error:
            raise errors.ArgumentError(f"--vs mqa: {error}") from None
    return find_config(words)


def show_compared(
    question: Question,
    places: Sequence[AskedDevice],
    prices: Sequence[float | None],
    other: tuple[str, GriffinConfig] | None,
    how: str,
) -> None:
    """Print a row for each device. how: ``json``, ``csv``, or a table."""
    where = [(place.target, place.dtype) for place in places]
    if other is None:
        pairs = zip(where, prices, strict=True)
        rows: list[Any] = [answer(question, target, dtype, price) for (target, dtype), price in pairs]
    else:
        rows = list(compare(question, where, prices, other))
    plain = [what_if_tables.flat(row) for row in rows]
    assumed = [_assumptions(question, target, dtype) for target, dtype in where]
    if how == "json":
        told = [row | {"assumptions": sentences} for row, sentences in zip(plain, assumed, strict=True)]
        typer.echo(json.dumps(told, indent=1))
    elif how == "csv":
        typer.echo(tables.to_csv(plain), nl=False)
    else:
        what_if_tables.show_answers(output(), question, rows)
        # once for all devices that share them, after their names where only some do
        names_of: dict[str, list[str]] = {}
        for (target, _), sentences in zip(where, assumed, strict=True):
            for sentence in sentences:
                names_of.setdefault(sentence, []).append(target.name)
        for sentence, names in names_of.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            of = "" if len(names) == len(where) else f"{', '.join(names[:3])}{more}: "
            output().print(escape(f"- {of}{sentence}"), style="dim", highlight=False)


def _assumptions(question: Question, target: AnalysisTarget, dtype: str) -> tuple[str, ...]:
    """What a row rests on: what a pass of it says, or the device where there is none."""
    try:
        return question.forward(target, dtype, 1, question.phase).target.assumptions
    except errors.DtypeError:
        return target.assumptions
