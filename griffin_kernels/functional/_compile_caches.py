"""Keeps code that torch.compile kept on disk from calling operators of another version of this package.

torch finds a compiled graph by what was traced forwards. Our schemas and our formulas of gradients are no part of that:
after an upgrade a program would run yesterday's backward graph, which calls operators with yesterday's arguments. So a
digest of both goes into ``torch.compiler.config.cache_key_tag``, behind what a user has put there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(schemas: Iterable[str]) -> str:
    """Of schemas, in any order, and of this folder's sources, which make graphs of calls."""
    found = hashlib.sha256("\n".join(sorted(schemas)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def mark(schemas: Iterable[str]) -> None:
    """Put the digest into the key of torch's caches, once."""
    import torch.compiler.config  # torch itself does not load it before it compiles

    config: Any = torch.compiler.config
    word = f"griffin_kernels-{digest(schemas)}"
    if word not in config.cache_key_tag:
        config.cache_key_tag = f"{config.cache_key_tag} {word}".strip()
