"""What a test marked ``unit`` may not do: start or end a process, compile a kernel, run Triton's interpreter.

``make quick`` runs the tests so marked. The rule is kept while they run, so that no test can become expensive unseen.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

REFUSED_EVENTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.kill"})
"""Audit events of Python: one of these starts a browser, a worker, or a compiler that is a program of its own."""

REFUSED = (
    ("triton.compiler", "compile"),
    ("triton.runtime.interpreter", "GridExecutor.__call__"),
    ("numba.core.ccallback", "CFunc.compile"),
    ("numba.core.dispatcher", "Dispatcher.compile"),
    ("torch._dynamo.convert_frame", "ConvertFrame.__call__"),
    ("multiprocessing.process", "BaseProcess.start"),
)
"""Module and attribute of what compiles, or interprets, within this process; and of what starts one unaudited."""


class ImpureError(AssertionError):
    """A test marked ``unit`` did what such a test may not do."""


_watched = threading.local()
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in REFUSED_EVENTS and getattr(_watched, "now", False) and not _asks_version(arguments):
        raise ImpureError(f"a test marked unit caused {event}{arguments[:2]}; mark it process")


def _asks_version(arguments: tuple[object, ...]) -> bool:
    """Whether a program is only asked for its version, as torch.compile's variants ask the C++ compiler, once."""
    return len(arguments) > 1 and isinstance(arguments[1], list) and arguments[1][1:] == ["--version"]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within it, whatever starts or ends a process in this thread, or compiles a kernel, raises ImpureError."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # a hook cannot be removed, so there is one
        _hooked = True
    with contextlib.ExitStack() as stack:
        for module, path in REFUSED:
            if importlib.util.find_spec(module.partition(".")[0]) is not None:
                stack.enter_context(_refused(module, path))
        _watched.now = True
        try:
            yield
        finally:
            _watched.now = False


def _refused(module: str, path: str) -> contextlib.AbstractContextManager[object]:
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)

    def refuse(*_: object, **__: object) -> None:
        raise ImpureError(f"a test marked unit called {module}.{path}; mark it process")

    return mock.patch.object(owner, name, refuse)
