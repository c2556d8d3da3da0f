"""The tab *Forward passes*: whole models, predicted and, where they were run, measured."""

from __future__ import annotations

from reports.page import Tab, render
from roofline.records import Study


def forward_tab(study: Study) -> Tab:
    """The tab of a study's forward passes."""
    return Tab("forward", "Forward passes", render("forward.html.j2", pages=study.pages))
