"""Text in files and names of files, whatever editors and file systems have made of it."""

from __future__ import annotations

import codecs
import datetime
import difflib
import re
from collections.abc import Iterable


def unmarked(raw: bytes) -> bytes:
    """The bytes of a UTF-8 file without the byte order mark that some editors begin it with."""
    return raw.removeprefix(codecs.BOM_UTF8)


def encodable(text: str) -> str:
    r"""A text that any UTF-8 file can hold: what was no UTF-8 in the name of a file is shown as ``\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def now() -> str:
    """The time as files hold it: UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def shortened(text: str, most: int = 60) -> str:
    """A text as a message quotes it: with quotes, escaped, and at most so long."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def did_you_mean(word: str, names: Iterable[str], most: int = 4) -> str:
    """``; did you mean a or b?``: those of ``names`` that are spelt like ``word``; empty where none is."""
    near = difflib.get_close_matches(word.lower(), names, n=most, cutoff=0.4)
    return f"; did you mean {', '.join(near)}?" if near else ""


def slug(name: str) -> str:
    """File-name form of a device's name: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
