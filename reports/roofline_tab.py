"""The tab *Roofline*: what the device can do at best, and how near the tuned kernels come to it."""

from __future__ import annotations

from reports import model
from reports.page import Tab, render
from roofline.records import Study


def roofline_tab(study: Study, report: model.Report) -> Tab:
    """The tab of a study's ceilings, kernels and fusion; ``report``: where its kernels' cases are found."""
    anchors = {case.anchor for case in report.cases}
    return Tab("roofline", "Roofline", render("roofline.html.j2", study=study, anchors=anchors))
