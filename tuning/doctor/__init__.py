"""Checks of the installation, the machine and its registries: ``griffin tune doctor``."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """level: ``ok``, ``note`` (works, but good to know) or ``problem``. fix: what to do about it, if anything."""

    level: Literal["ok", "note", "problem"]
    area: str
    what: str
    fix: str = ""
