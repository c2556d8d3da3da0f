"""The README's table is the catalogue's, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from griffin_kernels import catalog
from reports.cli import app

README = Path(__file__).parent.parent / "README.md"
MARKS = re.compile(r"(<!-- table: .*? -->\n)(.*)(<!-- end of table -->)", re.DOTALL)


def table() -> str:
    """Every op with its variants, baselines in italics."""
    lines = ["| op | what | variants (*baselines*) |", "|---|---|---|"]
    for op in catalog.ops().values():
        variants = [
            f"*{v.name}*" if v.baseline else f"`{v.name}`"
            for v in catalog.variants(op.name).values()
            if v.backend != "peer"
        ]
        lines.append(f"| `{op.name}` | {op.summary} | {', '.join(variants)} |")
    return "\n".join(lines) + "\n"


def test_table_is_that_of_the_catalogue():
    found = MARKS.search(README.read_text())
    assert found is not None
    assert found[2] == table(), "run `python -m tests.test_readme` to bring the table up to date"


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "linear_scan B1-T2048-D2560-float32" in capsys.readouterr().out


def test_roofline_commands_of_the_readme_run():
    lines = re.findall(r"^    (?:\$ )?griffin (roofline forward [^#\n]*)", README.read_text(), re.MULTILINE)
    elsewhere = [line for line in lines if "--device cpu" not in line]
    assert len(elsewhere) == 3
    for line in elsewhere:
        done = CliRunner().invoke(app, line.split())
        assert done.exit_code == 0, done.output


if __name__ == "__main__":
    README.write_text(MARKS.sub(lambda m: m[1] + table() + m[3], README.read_text()))
