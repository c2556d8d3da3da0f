"""The page around the tabs: templates, figures, and the one HTML file that they end up in."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

from reports import format as fmt
from roofline.shares import why_above

TEMPLATES = Path(__file__).parent / "templates"

FILTERS = (
    "bound", "brief", "count", "date", "decimal", "duration", "error", "fragment", "label", "plural", "rate", "ratio",
    "share", "significant", "size", "time", "time_in", "why_predicted",
)  # fmt: skip
"""Functions of ``format`` that templates call by their own names."""


@dataclass(frozen=True)
class Tab:
    """One page of the report. With a single one no tab bar is shown."""

    name: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Figure:
    """A plotly figure as JSON, and the height that the page keeps free for it."""

    json: Markup
    height: int


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {name: getattr(fmt, name) for name in FILTERS}
    environment.filters |= {
        "case_marks": fmt.marks,
        "case_text": fmt.case,
        "config_text": fmt.config,
        "fact": lambda value, name: fmt.fact(name, value),
        "percent_number": lambda value: f"{100 * value:.1f}",
        # a number for sorting and CSV; empty where there is none
        "raw": lambda value: "" if value is None else repr(float(value)),
        "why_above": why_above,
    }
    return environment


def figure(spec: str | None) -> Figure | None:
    """A chart for the ``figure`` macro, which shows nothing for None."""
    if spec is None:
        return None
    height = re.search(r'"height":(\d+)', spec)
    return Figure(Markup(spec), int(height[1]) if height else 0)


def render(template: str, **values: Any) -> Markup:
    """A template filled in; every text in ``values`` is escaped."""
    return Markup(_environment().get_template(template).render(**values))


def page(title: str, tabs: Sequence[Tab], data: str) -> str:
    """The whole HTML file. data: JSON, embedded for the page's script and for whoever wants the numbers."""
    parts: dict[str, Any] = {
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "plotly": plotly.offline.get_plotlyjs(),
        "data": data.replace("<", "\\u003c"),
    }
    return render("page.html.j2", title=title, tabs=tabs, **{name: Markup(text) for name, text in parts.items()})
