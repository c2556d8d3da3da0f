"""Typed JSON of the registry: what a registry file holds, field by field.

The JSON Schema in ``registry.schema.json`` is generated from these classes (a test holds the two together).
Times are seconds. Intervals are [low, high].
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.texts import unmarked

SCHEMA_VERSION = 2
"""Version of the registry format. A reader refuses a file of a later version and says so; it reads earlier ones.

1: the first. 2: entries may name ties, a warm time, a noise floor and a predicted time.
"""


class DeviceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """validity: must equal the reader's device. provenance: recorded; a difference marks entries stale."""

    validity: dict[str, Any]
    provenance: dict[str, Any]


class Tie(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate that the race could not tell from the winner."""

    variant: str
    config: dict[str, Any]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kernel chosen for one case, and why it can be believed.

    status: ``measured`` on this device, or ``predicted`` without running there.
    median_s: with cold caches. warm_median_s: with the same inputs again and again, as far as caches hold them.
    predicted_s: what the static model expects, where status is ``predicted``.
    ties: other finalists that are not told apart from the winner. noise_floor: of the race, as a share; no difference
    below it means anything.
    baseline: the fastest baseline of the same race. speedup: baseline time over winner time, with its interval.
    bound: the ceiling that binds. share_of_bound: time at that ceiling over measured time. above_bound: why it is above
    1, in words.
    error_rel_norm, error_worst: against float64, as in ``contract.Tolerance``.
    samples_digest: SHA-256 (16 hex digits) of the winner's samples in the journal.
    source_hash: of the variant's source; an entry of other source is not used.
    reason: why this one was chosen, in words.
    provenance: facts in which this entry differs from the file's, because the file was published to again since.
    """

    op: str
    case: Case
    variant: str
    config: dict[str, Any]
    status: Literal["measured", "predicted"]
    source_hash: str
    date: str
    reason: str
    candidates: int
    median_s: float | None = None
    interval_s: tuple[float, float] | None = None
    baseline: str | None = None
    baseline_median_s: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    bound: str | None = None
    share_of_bound: float | None = None
    error_rel_norm: float | None = None
    error_worst: float | None = None
    samples_digest: str | None = None
    warm_median_s: float | None = None
    predicted_s: float | None = None
    noise_floor: float | None = None
    ties: list[Tie] = []
    provenance: dict[str, Any] = {}
    above_bound: str | None = None


class RegistryFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One registry file: one device, its entries."""

    schema_version: int
    device: DeviceRecord
    entries: list[Entry]


File = TypeVar("File")


class _Versioned(msgspec.Struct):
    schema_version: int


def decode(raw: bytes, kind: type[File], newest: int, what: str, error: type[Exception], **remedy: str) -> File:
    """A versioned JSON file as ``kind``, or ``error`` with one sentence.

    newest: the latest schema_version that is read. what: the file in words, its path included. remedy: what to do where
    the file is ``later``, and where it is ``broken`` (after what it should have been).
    """
    raw = unmarked(raw)
    try:
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
        if version > newest:
            raise error(f"{what} has schema version {version}, this package reads up to {newest}{remedy['later']}")
        return msgspec.json.decode(raw, type=kind)
    # a ValidationError is a DecodeError; brackets by the thousand raise RecursionError
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        form, _, advice = remedy["broken"].partition("; ")
        # the problem may quote a name out of the file, of any length
        said = " ".join(str(problem).split())
        said = said if len(said) <= 300 else f"{said[:300]}..."
        raise error(f"{what} is not {form}: {said}; {advice}") from None
