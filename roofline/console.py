"""What all commands share: where they print, and how errors look."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from griffin_kernels import errors


def output() -> Console:
    """Standard output; 160 columns where there is no terminal to ask: tables for people who read logs."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def line(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, without markup or wrapping: names and paths in it may look like markup."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def table(words: Iterable[str], figures: Iterable[str] = (), more_words: Iterable[str] = (), **look: Any) -> Table:
    """A table by its headings: columns of words that may fold, then of figures, then of words again."""
    drawn = Table(**{"box": None, "pad_edge": False, "header_style": "bold", "title_justify": "left", **look})
    word: dict[str, Any] = {"overflow": "fold"}
    for names, how in ((words, word), (figures, {"justify": "right", "no_wrap": True}), (more_words, word)):
        for name in names:
            drawn.add_column(name, **how)
    return drawn


DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:<index>. The first GPU, else the CPU.")]
"""The option of every command that takes a device of this machine."""


class StatusLine:
    """One line that says what is being done, drawn between measurements: a thread that draws would disturb them.

    Nothing is drawn where there is no terminal.
    """

    def __init__(self, console: Console, head: str = "") -> None:
        self.console, self.head, self.drawn = console, head, 0.0

    def __call__(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(f"{self.head + text:<79.79}", end="\r", highlight=False, markup=False)

    def progress(self, what: str, share: float) -> None:
        """``what (share)``, at most five times a second."""
        if time.monotonic() - self.drawn > 0.2:
            self.drawn = time.monotonic()
            self(f"{what} ({share:.0%})")

    def clear(self) -> None:
        """Leave an empty line."""
        if self.console.is_terminal:
            self.console.print(" " * 79, end="\r")


@contextlib.contextmanager
def plain_errors(console: Console | None = None) -> Iterator[None]:
    """Errors of the package and of files in one line on standard error, exit code 2; an interrupt leaves with 130.

    Warnings are one line too, without the place in the code that a user did not write. What standard output and error
    cannot encode is printed as an escape: file names need not be UTF-8.
    """
    told = console or Console(stderr=True)

    def note(message: Warning | str, *where: Any, **more: Any) -> None:
        line(told, f"note: {message}", "yellow")

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = note
            yield
    except errors.GriffinKernelsError as error:
        line(told, f"error: {error}", "red")
        raise typer.Exit(2) from None
    except BrokenPipeError:  # nobody reads any more, which is no error
        raise
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        line(told, f"error: {place}{error.strerror or error}", "red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        line(told, "interrupted", "red")
        raise typer.Exit(130) from None
