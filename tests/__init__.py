"""Tests of the packages, laid out as these are; what is of the repository as a whole lies at the top."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
