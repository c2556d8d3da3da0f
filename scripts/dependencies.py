"""Which packages that griffin-kernels needs this interpreter lacks, one a line; pyproject.toml says what it needs.

Usage: python scripts/dependencies.py [extra ...]. Needs nothing but Python's own library.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def missing(extras: Iterable[str] = ()) -> Iterator[str]:
    """Names of distributions that are not installed, of the dependencies and of the extras named."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    for line in wanted:
        found = re.match(r"[A-Za-z0-9._-]+", line)
        if found is None or found[0] == project["name"]:
            continue
        try:
            importlib.metadata.distribution(found[0])
        except importlib.metadata.PackageNotFoundError:
            yield found[0]


if __name__ == "__main__":
    print(*missing(sys.argv[1:]), sep="\n", end="")
