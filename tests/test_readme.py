"""README.md, CONTRIBUTING.md and docs/: the table is the catalogue's, Python runs, commands, paths and links exist."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from griffin_kernels import catalog, datasheet
from griffin_kernels.models.presets import PRESETS
from reports.cli import app
from tests import ROOT

pytestmark = pytest.mark.unit

REFERENCE = ROOT / "docs" / "reference.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = re.compile(r"(<!-- table: .*? -->\n)(.*)(<!-- end of table -->)", re.DOTALL)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
VALUES = {
    "--model": PRESETS,
    "--device": {"cpu", "cuda", *datasheet.skus()},
    "--target": datasheet.skus(),
    "--ops": catalog.ops(),
    "--budget": ("quick", "default", "thorough"),
}
"""What options of ``griffin`` may be given; words in capitals stand for something."""

SHELL = {"cp", "export", "git", "mkdir", "pip", "sed", "source"}
"""Programs that are not ours; what they are given is not checked."""


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


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, those in lists too."""
    return [textwrap.dedent(text) for _, name, text in FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every line of shell, and of the commands of ours that stand between backticks in a sentence."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words
    for code in CODE.findall(FENCE.sub("", page.read_text())):
        if re.match(r"(griffin|make|python -m) |scripts/\S+\.sh", code):
            yield shlex.split(code)


def parsed(command: typer.main.TyperCommand | typer.main.TyperGroup, words: list[str]) -> None:
    """Let a command and its subcommands parse ``words`` without running anything; raises where they cannot."""
    context = command.make_context(command.name, list(words))
    left = [*context._protected_args, *context.args]
    if left:
        assert isinstance(command, typer.main.TyperGroup), left
        _, below, rest = command.resolve_command(context, left)
        parsed(below, rest)  # type: ignore[arg-type]
    elif command.name == "griffin" and words:
        raise AssertionError(words)


def check(words: list[str]) -> None:
    """AssertionError, or an error of typer, where a line of shell names what is not there."""
    while "=" in words[0]:
        name, words = words[0].partition("=")[0], words[1:]
        script = next(word for word in words if word.startswith("scripts/"))
        assert f"${{{name}:-" in (ROOT / script).read_text(), name
    program, *rest = words
    if program in ("griffin", "tune"):
        parsed(typer.main.get_command(app), words[1:] if program == "griffin" else words)
        for option, value in itertools.pairwise(rest):
            known = VALUES.get(option)
            unknown = [v for v in value.split(",") if known is not None and v not in known and v != v.upper()]
            assert not unknown, f"{option} {value}"
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), rest
    elif program == "python":
        assert rest[0] == "-m" and importlib.util.find_spec(rest[1]) is not None, rest
        assert all((ROOT / word.split("::")[0]).exists() for word in rest if word.startswith("tests/")), rest
    elif program.startswith("scripts/"):
        assert (ROOT / program).exists(), program
    else:
        assert program in SHELL, program


def test_every_fence_is_found_and_of_a_kind_that_is_checked():
    for page in PAGES:
        fences = FENCE.findall(page.read_text())
        assert 2 * len(fences) == len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)), page.name
        assert {language for _, language, _ in fences} <= {"python", "sh", "html", "text"}, page.name


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_table_is_that_of_the_catalogue():
    found = MARKS.search(REFERENCE.read_text())
    assert found is not None
    assert found[2] == table(), "run `python -m tests.test_readme` to bring the table up to date"


@pytest.mark.process
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_python_runs(page):
    names = {}  # a reader goes through a page from the top
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_first_example_says_which_kernel_ran(capsys):
    first = next(block for block in blocks(PAGES[0], "python") if "griffin_kernels.explain" in block)
    exec(compile(first, "README.md", "exec"), {})
    assert "linear_scan B1-T2048-D2560-float32" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page):
    for words in commands(page):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{page.name}: {shlex.join(words)}: {error!r}") from error


@pytest.mark.parametrize(
    "line",
    [
        "griffin tune --op linear_scan",
        "griffin tune --ops linear_scans",
        "griffin roofline forward --model griffin-2b3 --device cpu",
        "griffin roofline",
        "griffin measure",
        "griffin tune diff OLD",
        "griffin tune show FILE --csv",
        "make everything",
        "python -m tuning.nothing",
        "scripts/cpu.sh",
        "LIMITS=3 scripts/gpu.sh",
        "rm -r results",
    ],
)
def test_commands_that_do_not_exist_are_found(line):
    with pytest.raises(Exception, match=r".|^$"):
        check(shlex.split(line))


def test_readme_names_the_two_commands():
    lines = [words[:2] for words in commands(PAGES[0])]
    assert ["make", "tune"] in lines and ["make", "test"] in lines


def test_roofline_commands_run():
    found = {
        shlex.join(words[1:])
        for page in PAGES
        for words in commands(page)
        if words[:3] == ["griffin", "roofline", "forward"] and "cpu" not in words and "MODEL" not in words
    }
    assert len(found) >= 3
    for line in found:
        done = CliRunner().invoke(app, shlex.split(line))
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", linked.read_text() if anchor else "", re.MULTILINE)
        assert not anchor or anchor in map(slug, headings), f"{page.name}: {target}"
    drawn = [word for block in blocks(page, "text") for word in block.split()]
    for code in [*CODE.findall(text), *drawn]:
        if re.fullmatch(r"(griffin_kernels|tuning|roofline|reports|tests|scripts|docs)/[\w./*<>-]*", code):
            pattern = re.sub(r"<[^>]*>", "*", code).rstrip("/")
            assert list(ROOT.glob(pattern)), f"{page.name}: {code}"


def test_every_page_is_linked_from_the_readme():
    readme = PAGES[0].read_text()
    assert [page.name for page in PAGES[1:] if f"]({page.relative_to(ROOT)})" not in readme] == []


def test_environment_variables_are_those_that_are_read():
    """A name is read where it is a string of its own in Python, or stands in the Makefile."""
    strings = {
        node.value
        for folder in ("griffin_kernels", "tuning", "roofline", "reports", "tests")
        for path in ROOT.glob(f"{folder}/**/*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    read = {name for name in strings if re.fullmatch(r"GRIFFIN_(KERNELS|TEST)_[A-Z]+", name)}
    read -= {"GRIFFIN_KERNELS_REGISTERY", "GRIFFIN_TEST_CALLS"}  # a misspelling for the doctor; between two tests
    assert set(re.findall(r"`(GRIFFIN_(?:KERNELS|TEST)_[A-Z]+)`", REFERENCE.read_text())) == read


def test_picture_is_small():
    assert 10_000 < (ROOT / "docs" / "report.png").stat().st_size < 150_000


if __name__ == "__main__":
    REFERENCE.write_text(MARKS.sub(lambda m: m[1] + table() + m[3], REFERENCE.read_text()))
