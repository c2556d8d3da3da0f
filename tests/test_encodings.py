"""Every text file that the package opens names its encoding: what a locale prefers is not what it was written in."""

from __future__ import annotations

import ast

import pytest

from tests import ROOT

pytestmark = pytest.mark.unit

FOLDERS = ("griffin_kernels", "tuning", "roofline", "reports")
SUBPROCESS = ("run", "Popen", "check_output", "check_call")


def text_without_encoding(source: str) -> list[tuple[int, str]]:
    """(line, call) of every open, read_text, write_text, fdopen, decoded subprocess that leaves the encoding open."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {word.arg: word.value for word in node.keywords}
        if "encoding" in given or None in given:
            continue
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name == "open" and owner in ("os", "webbrowser", "tarfile", "zipfile", "Registry", "registry", "Image"):
            continue
        if name in ("open", "fdopen"):
            place = (
                0 if isinstance(node.func, ast.Attribute) and name == "open" and owner not in ("io", "builtins") else 1
            )
            mode = given.get("mode", node.args[place] if len(node.args) > place else None)
            if mode is None or (
                isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value
            ):
                found.append((node.lineno, name))
        elif (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) < 2):
            found.append((node.lineno, name))
        elif name in SUBPROCESS and any(
            isinstance(given.get(word), ast.Constant) and given[word].value for word in ("text", "universal_newlines")
        ):
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(p)", 1), ("open(p, 'w')", 1), ("p.open()", 1), ("p.read_text()", 1), ("p.write_text(x)", 1),
        ("os.fdopen(d, 'w')", 1), ("subprocess.run(x, text=True)", 1), ("io.open(p, 'r')", 1),
        ("open(p, 'rb')", 0), ("open(p, encoding='utf-8')", 0), ("p.open('rb')", 0), ("p.read_text('utf-8')", 0),
        ("p.write_text(x, encoding='utf-8')", 0), ("subprocess.run(x)", 0), ("os.open(p, 1)", 0),
    ],
)  # fmt: skip
def test_rule(source, found):
    assert len(text_without_encoding(source)) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_names_its_encoding(folder):
    bad = [
        f"{path.relative_to(ROOT)}:{line}: {call}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, call in text_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not bad, "\n".join(bad)
