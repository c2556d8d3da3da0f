"""Warnings that point at the user's line, however many layers of this package and of torch lie between."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import FrameType


def _inside() -> tuple[str, ...]:
    """How the names of files begin that are not the user's: this package, torch, code that torch has made."""
    folders = [str(Path(__file__).parent) + os.sep]
    if (torch := sys.modules.get("torch")) is not None:
        folders.append(str(Path(str(torch.__file__)).parent) + os.sep)
    if (inductor := sys.modules.get("torch._inductor.runtime.cache_dir_utils")) is not None:
        folders.append(inductor.cache_dir() + os.sep)
    return (*folders, "<eval_with_key>")


def level() -> int:
    """``stacklevel`` for a warning by the caller of this function's caller: the innermost frame of a user's code.

    Where there is none, as on a thread of autograd's, the outermost frame.
    """
    inside = _inside()
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        depth += 1
        if not frame.f_code.co_filename.startswith(inside):
            break
        frame = frame.f_back
    return depth


def warn(message: str, category: type[Warning]) -> None:
    """``warnings.warn`` at the line of the user's code that led here."""
    warnings.warn(message, category, stacklevel=level())
