"""Cases that no registry entry was near enough to, written down for ``griffin tune --from-misses``.

With ``GRIFFIN_KERNELS_RECORD_MISSES=path``, each process appends every case that it runs on a default kernel once, as
one line of JSON in one write, so that any number of processes can share a file.
"""

from __future__ import annotations

import errno
import os
import threading

import msgspec

from griffin_kernels import errors
from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.texts import now

ENVIRONMENT_VARIABLE = "GRIFFIN_KERNELS_RECORD_MISSES"


class Miss(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line: a case that ran untuned. device: its slug, as registry files are named. date: of recording, UTC."""

    op: str
    case: Case
    device: str
    date: str = ""


_LOCK = threading.Lock()
_SEEN: set[tuple[str, str, str, str]] = set()
_CLOSED: set[str] = set()
"""Files that could not be written."""


def record(op: str, case: Case, device: Device) -> None:
    """Append a case to the file that the environment names, if it names one and this process has not done so yet.

    Never raises: a file that cannot be written gives one MissWarning.
    """
    path = os.environ.get(ENVIRONMENT_VARIABLE)
    if not path:
        return
    key = (path, op, case.key, device.slug)
    with _LOCK:
        if key in _SEEN or path in _CLOSED or len(_SEEN) >= 2**16:  # so many say all there is to say
            return
        _SEEN.add(key)
    try:
        append(path, Miss(op=op, case=case.plain(), device=device.slug, date=now()))
    except OSError as error:
        with _LOCK:
            _CLOSED.add(path)
        text = f"untuned cases cannot be recorded in {path} ({ENVIRONMENT_VARIABLE}): {error.strerror or error}"
        errors.warn(text, errors.MissWarning)


def append(path: str, miss: Miss) -> None:
    """Append one line in one write. Raises OSError."""
    line = msgspec.json.encode(miss) + b"\n"
    # without O_NONBLOCK, opening a pipe that nobody reads would wait for ever
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(os.path.expanduser(path), flags, 0o644)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
