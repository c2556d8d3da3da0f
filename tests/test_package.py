"""Rules of the package turned into checks: layering, style, types, what an import costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from griffin_kernels import catalog, errors
from griffin_kernels.contract import NoConfig, Variant
from tests import ROOT

BIN = Path(sys.executable).parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports", "--no-cache"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_linters_pass(command):
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_brings_no_heavy_module_and_initialises_no_gpu():
    heavy = "pandas plotly typer rich jinja2 numba triton transformers".split()
    code = (
        "import sys, torch; before = set(sys.modules); import griffin_kernels; import torch as t;"
        f"print([m for m in {heavy} if m in sys.modules and m not in before], t.cuda.is_initialized())"
    )
    assert python(code) == "[] False"


def test_roofline_and_contracts_need_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['numba'] = None;"
        "from griffin_kernels import catalog, device; import roofline.ceilings;"
        "print(all(op.cost(case).bytes_total > 0 for op in catalog.ops().values() for case in op.cases))"
    )
    assert python(code) == "True"


def test_variant_whose_backend_is_missing_is_listed_with_the_reason():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.abc\n"
        "from griffin_kernels import catalog\n"
        "print(catalog.unavailable('linear_scan')['numba.sequential'], 'eager.loop' in catalog.variants('linear_scan'))"
    )
    assert python(code) == "numba is not installed True"


def test_every_op_has_an_eager_variant_a_baseline_and_all_kinds_of_cases():
    for op in catalog.ops().values():
        variants = catalog.variants(op.name).values()
        assert any(v.backend == "eager" and not v.baseline for v in variants), op.name
        assert any(v.baseline for v in variants), op.name
        assert {case.tag for case in op.cases} == {"smoke", "edge", "bench"}, op.name
        assert {case.where for case in op.cases_tagged("bench")} == {"cpu", "gpu"}, op.name
        assert all(case.source for case in op.cases_tagged("bench")), op.name
        keys = [(case.key, case.where) for case in op.cases]
        assert len(keys) == len(set(keys)), op.name


def test_every_backward_op_belongs_to_an_op():
    for op in catalog.ops().values():
        assert (op.forward is not None) == op.name.endswith("_bwd")
        assert op.forward is None or op.forward in catalog.ops()


def test_unknown_names_list_what_there_is():
    with pytest.raises(errors.UnknownOpError, match="no op 'scan'; there are block_diagonal_scan"):
        catalog.op("scan")
    with pytest.raises(
        errors.UnknownVariantError, match=r"no variant 'linear_scan/x.y'; linear_scan has .*eager\.loop"
    ):
        catalog.variant("linear_scan/x.y")


def test_axes_must_be_config_fields():
    with pytest.raises(errors.CatalogError, match="not fields"):
        Variant("linear_scan", "eager.x", "", lambda: (), NoConfig, axes={"block": (1,)})


def test_source_hash_follows_what_a_variant_imports():
    from griffin_kernels.kernel_sources import kernel_modules

    importlib.import_module("griffin_kernels.ops.linear_scan_bwd.eager_chunked")
    found = kernel_modules("griffin_kernels.ops.linear_scan_bwd.eager_chunked")
    assert "griffin_kernels.ops.linear_scan._scan_eager" in found
    assert "griffin_kernels.ops.linear_scan.eager_chunked" in found
    assert not any(name.endswith((".op", ".cost")) for name in found)


ALIKE_BY_DESIGN = ("__init__.py", "__main__.py", "cli.py")


def test_no_two_modules_share_a_file_name_and_no_two_classes_a_name():
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for folder in ("griffin_kernels", "tuning", "roofline", "reports"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = str(path.relative_to(ROOT))
            if where.startswith("griffin_kernels/ops/"):  # an op's folder has the parts of every op
                continue
            files.setdefault(path.name, []).append(where)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    classes.setdefault(node.name, []).append(where)
    assert len(files) > 100 and len(classes) > 150
    assert {n: found for n, found in files.items() if len(found) > 1 and n not in ALIKE_BY_DESIGN} == {}
    assert {n: found for n, found in classes.items() if len(found) > 1} == {}
