"""Words and numbers of the tab of forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reports import format as fmt
from roofline.study_records import REGIMES, Part, PassSummary
from roofline.tables import SHORT
from roofline.work import LENGTH_IS, PartKind, Phase

PHASE_MEANINGS: dict[Phase, str] = {
    "prefill": "reads a whole prompt and gives the logits of its last token",
    "decode": "adds one token to every sequence, after a number of tokens that are cached already",
    "train": "reads whole sequences, takes the gradient of their loss, and updates the weights",
}

KIND_NAMES: dict[PartKind, str] = {"recurrent": "recurrent block", "mlp": "MLP", "head": "output head"}


def short_count(number: int) -> str:
    """``16K`` for 16,384; a number that is no multiple of 1024 is left as it is."""
    return f"{number // 1024}K" if number % 1024 == 0 else str(number)


def parameters(number: int) -> str:
    """``291 M``, ``1.83 B``: B for billions, as models are called."""
    return fmt.decimal(number, "").replace("G", "B").strip()


def interval(low: float, high: float) -> str:
    """``451 to 460 ms``."""
    scale, unit = fmt.time_unit(high)
    return f"{fmt.time_in(low, scale)} to {fmt.time_in(high, scale)}{fmt.THIN_SPACE}{unit}"


def signed(value: float | None, text: Callable[[float], str] = fmt.share) -> str:
    """A relative difference: ``+4.2%``; or another, whose size ``text`` writes."""
    if value is None:
        return fmt.MISSING
    return ("+" if value > 0 else fmt.MINUS if value < 0 else "") + text(abs(value))


def signed_time(seconds: float | None) -> str:
    """A difference of times: ``+1.20 ms``."""
    return "0" if seconds == 0 else signed(seconds, fmt.time)


def work(phase: Phase, seq: int) -> str:
    """``prefill of 1 024 tokens``, ``decode after 1 024 tokens``."""
    return f"{phase} {LENGTH_IS[phase]} {fmt.count(seq)} tokens"


def size(phase: Phase, batch: int, seq: int) -> str:
    return f"{work(phase, seq)}, batch {fmt.count(batch)}"


def label(found: PassSummary) -> str:
    """``hawk-100m, prefill of 1 024 tokens, batch 1``."""
    return f"{found.model}, {size(*found.size)}"


def number_of(axis: str, number: int) -> str:
    """A value of an axis: ``batch 16``, ``1 024 tokens``."""
    return f"batch {fmt.count(number)}" if axis == "batch" else f"{fmt.count(number)} tokens"


def span(shares: list[float]) -> str:
    """Shares from the least to the largest: ``61% to 72%``."""
    ends = dict.fromkeys(fmt.share(share) for share in (min(shares), max(shares)))
    return " to ".join(ends)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def regime(name: str) -> str:
    """What a pass is bound by, in words."""
    return REGIMES.get(name, name)


def letter(name: str) -> str:
    """The letter of a regime on the map."""
    return SHORT.get(name, "?")


def key(names: Iterable[str]) -> str:
    """``P reading the weights, L launching kernels``."""
    return ", ".join(f"{letter(name)} {regime(name)}" for name in names)


def part(row: Part) -> str:
    """``7 recurrent block``, ``embedding``: layers are counted from 0."""
    name = KIND_NAMES.get(row.kind, row.kind.replace("_", " "))
    return name if row.layer is None else f"{row.layer} {name}"


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
