"""What ``make quick`` chooses, and what keeps it quick: a test marked ``unit`` starts nothing and compiles nothing."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from griffin_kernels import catalog
from griffin_kernels.kernel_sources import kernel_modules
from tests import purity, quick


def run_triton() -> None:
    x = torch.ones(1, 4, 8)
    inputs = {"x": x, "a": x, "h0": None, "reset": None, "cu_seqlens": None, "reverse": False}
    variant = catalog.variant("linear_scan/triton.sequential")
    variant.on(inputs, variant.config())


def compile_for_a_gpu() -> None:
    from triton.compiler import compile

    compile(None)


FORBIDDEN = {
    "a program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "a shell": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "a process of multiprocessing": lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
    "a kill": lambda: os.kill(os.getpid(), 0),
    "an interpreted kernel": run_triton,
    "a compiled kernel": compile_for_a_gpu,
    "a compiled graph": lambda: torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_unit_test_may_not_do_raises(what):
    with purity.kept(), pytest.raises(purity.ImpureError):
        FORBIDDEN[what]()


def test_asking_a_program_for_its_version_is_let_through():
    with purity.kept():
        subprocess.run([sys.executable, "--version"], check=True, capture_output=True)


@pytest.mark.unit
def test_a_unit_test_is_watched():
    with pytest.raises(purity.ImpureError):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_other_tests_are_not():
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_unit_files_are_found_by_their_mark():
    names = {path.name for path in quick.unit_files()}
    assert {"test_stats.py", "test_journal.py", Path(__file__).name} <= names
    assert not names & {"test_variants.py", "test_triton_compile.py", "test_tune_killed.py", "test_report_browser.py"}


def test_sources_of_a_variant_are_those_that_it_was_loaded_from():
    for key in ("linear_scan/triton.sequential", "rg_lru_bwd/triton.fused_scan", "recurrent_block/numba.fused"):
        variant = catalog.variant(key)
        hashed = {Path(str(sys.modules[name].__file__)) for name in kernel_modules(variant.run.__module__)}
        packages = {path for path in hashed if path.name == "__init__.py"}
        assert hashed - packages <= quick.sources(variant.op, variant.name)


def test_a_variant_depends_on_its_file_its_contract_and_what_they_import():
    own = quick.sources("linear_scan", "eager.chunked")
    assert {quick.OPS / "linear_scan" / name for name in ("eager_chunked.py", "op.py", "cost.py")} <= own
    assert not any(path.name.startswith(("triton_", "numba_", "eager_loop")) for path in own)
    scan, gated = quick.sources("linear_scan", "triton.sequential"), quick.sources("rg_lru", "triton.fused_scan")
    assert any("_triton" in path.as_posix() for path in scan & gated)


class Item:
    """As much of a pytest item as choosing needs."""

    def __init__(self, variant):
        self.callspec = self
        self.params = {"variant": variant}


def test_every_variant_has_its_turn():
    first, second = catalog.variant("linear_scan/eager.loop"), catalog.variant("linear_scan/eager.chunked")
    items = [Item(first), Item(first), Item(first), Item(second)]
    assert quick.in_turn(items) == [items[0], items[3], items[1], items[2]]


def test_changes_are_counted_from_where_the_branch_left_main(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(quick, "ROOT", tmp_path)
    git("init")
    for name in ("old", "committed", "deleted"):
        (tmp_path / name).write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    git("checkout", "-b", "branch")
    (tmp_path / "committed").write_text("new")
    git("commit", "-am", "second")
    (tmp_path / "deleted").unlink()
    (tmp_path / "untracked").write_text("")
    assert {path.name for path in quick.changed()} == {"committed", "untracked"}


def test_without_git_nothing_counts_as_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert quick.changed() == []
