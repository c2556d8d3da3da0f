"""One thing that ``griffin tune doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """level: ``ok``, ``note`` (works, but good to know) or ``problem``. fix: what to do about it, if anything."""

    level: Literal["ok", "note", "problem"]
    area: str
    what: str
    fix: str = ""
