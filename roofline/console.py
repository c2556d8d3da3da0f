"""What all commands share: where they print, and how errors look."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer
from rich.console import Console

from griffin_kernels import errors

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask: tables for people who read logs."""


def output() -> Console:
    """Standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


@contextlib.contextmanager
def plain_errors(console: Console | None = None) -> Iterator[None]:
    """Errors of the package in one line on standard error, exit code 2; an interrupt leaves with 130."""
    told = console or Console(stderr=True)
    try:
        yield
    except errors.GriffinKernelsError as error:
        told.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        told.print("interrupted", style="red", highlight=False)
        raise typer.Exit(130) from None
