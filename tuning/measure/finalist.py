"""A candidate in a race."""

from __future__ import annotations

import msgspec

from tuning.record.journal_records import Candidate


class Finalist(msgspec.Struct, frozen=True):
    """A candidate in a race. record: of its first timing. incumbent: the published winner. place: in order of trial."""

    record: Candidate
    incumbent: bool = False
    place: int = 0

    @property
    def name(self) -> str:
        values = ",".join(f"{name}={value}" for name, value in self.record.config.items())
        return f"{self.record.variant} [{values}]".removesuffix(" []")
