"""What ``griffin tune --target`` leaves, as a report shows it: a registry of predictions, the candidates behind it."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.errors import RegistryError, ReportError
from griffin_kernels.records import DeviceRecord, Entry
from griffin_kernels.texts import unmarked
from reports import format as fmt
from reports.sources import SourceFile, load_registry, source
from tuning.predict.predictor import PREDICTIONS_VERSION, Predicted, PredictionsFile
from tuning.predict.target_space import CandidateRecord

ENDING = ".predictions.json"


@dataclass(frozen=True)
class PredictedChoice:
    """A predicted winner, and the candidates that it was chosen among where their file is there."""

    op: str
    case: Case
    entry: Entry | None
    found: Predicted | None

    @property
    def anchor(self) -> str:
        return f"predicted/{self.op}/{self.case.key}"

    @property
    def label(self) -> str:
        return fmt.case_label(self.case)

    @property
    def compiled(self) -> list[CandidateRecord]:
        """Candidates with a prediction from machine code, the fastest first, then those that were dropped."""
        told = self.found.candidates if self.found else []
        ranked = sorted((t for t in told if t.prediction), key=lambda t: t.prediction.seconds if t.prediction else 0.0)
        return [*ranked, *(t for t in told if t.status == "dropped" and not t.prediction)]

    @property
    def guessed(self) -> int:
        """Candidates that were never compiled."""
        return sum(t.status == "guessed" for t in self.found.candidates) if self.found else 0

    @property
    def chosen(self) -> CandidateRecord | None:
        """The candidate that the entry names, if its prediction is there."""
        told = self.found.candidates if self.found and self.entry else []
        wanted = (self.entry.variant, self.entry.config) if self.entry else None
        return next((t for t in told if (t.variant, t.config) == wanted and t.prediction), None)

    @property
    def why_none(self) -> str:
        """Why no variant is predicted for this case."""
        unfit = self.found.unfit if self.found else {}
        return "; ".join(f"{name}: {reason}" for name, reason in unfit.items()) or "no candidate fits"


@dataclass(frozen=True)
class PredictedRegistry:
    """A registry of predictions as a report shows it. measured: its entries that are none."""

    device: DeviceRecord
    choices: tuple[PredictedChoice, ...]
    measured: int
    file: PredictionsFile | None
    registry_source: SourceFile
    predictions_source: SourceFile | None
    registry_text: str

    @property
    def decided(self) -> list[PredictedChoice]:
        return [choice for choice in self.choices if choice.entry]

    @property
    def name(self) -> str:
        return str(self.device.validity.get("name") or "unnamed device")

    @property
    def bounds(self) -> list[tuple[str, int]]:
        """How many winners each limit binds, the most first."""
        return Counter(choice.entry.bound or "unknown" for choice in self.choices if choice.entry).most_common()

    @property
    def not_default(self) -> int | None:
        """Winners that are not the default configuration; None where the candidates are not there."""
        if self.file is None:
            return None
        return sum(choice.chosen is not None and not choice.chosen.is_default for choice in self.choices)

    @property
    def date(self) -> str:
        return self.file.date if self.file else max((c.entry.date for c in self.decided if c.entry), default="")

    @property
    def constants(self) -> dict[str, Any]:
        """What the model assumed."""
        known = self.file.constants if self.file else self.device.provenance.get("constants", {})
        plain = msgspec.to_builtins(known)
        return dict(plain) if isinstance(plain, dict) else {}


def registry_in(folder: Path) -> Path | None:
    """The registry of predictions in a folder, or ``folder`` itself where it is such a file; None where there is none.

    ReportError where there are several.
    """
    found = [folder] if folder.is_file() else sorted(p for p in folder.glob("*.json") if not p.name.endswith(ENDING))
    registries = []
    for path in found:
        with contextlib.suppress(RegistryError):
            registries += [path] if any(e.status == "predicted" for e in load_registry(path)[1].entries) else []
    if len(registries) > 1:
        names = ", ".join(path.name for path in registries)
        raise ReportError(f"{folder} holds several registries of predictions: {names}; name one of them")
    return registries[0] if registries else None


def load_prediction(path: Path) -> PredictedRegistry:
    """The registry at ``path`` and the candidates beside it. RegistryError or ReportError where they cannot be used."""
    registry_source, file, text = load_registry(path)
    beside = [path.with_name(path.stem + ENDING), path.with_name(ENDING[1:])]
    candidates = next((other for other in beside if other.exists()), None)
    predictions, told_source = _load_candidates(candidates) if candidates else (None, None)
    entries = {(e.op, e.case.key): e for e in file.entries if e.status == "predicted"}
    found = {(p.op, p.case.key): p for p in predictions.cases} if predictions else {}
    cases = {key: entry.case for key, entry in entries.items()} | {key: p.case for key, p in found.items()}
    choices = [PredictedChoice(key[0], case, entries.get(key), found.get(key)) for key, case in sorted(cases.items())]
    measured = sum(entry.status == "measured" for entry in file.entries)
    return PredictedRegistry(file.device, tuple(choices), measured, predictions, registry_source, told_source, text)


class _PredictionsVersion(msgspec.Struct):
    version: int


def _load_candidates(path: Path) -> tuple[PredictionsFile, SourceFile]:
    try:
        data = path.read_bytes()
        plain = unmarked(data)
        version = msgspec.json.decode(plain, type=_PredictionsVersion).version
        if version > PREDICTIONS_VERSION:
            raise ReportError(f"{path} has version {version}, this package reads up to {PREDICTIONS_VERSION}")
        return msgspec.json.decode(plain, type=PredictionsFile), source(path, data)
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is no file of predictions: {error}; predict again, or move it away") from None
