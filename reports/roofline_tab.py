"""The tab *Roofline*: what the device can do at best, and how near the tuned kernels come to it."""

from __future__ import annotations

from reports import format as fmt
from reports import model
from reports.charts import roofline
from reports.page import Tab, figure, render
from reports.roofline_model import ROOF_NAMES, ROOF_WORK, RooflineView, ceiling_rate, roof_name, roof_work
from roofline.study_records import Study


def roofline_tab(study: Study, report: model.Report) -> Tab:
    """The tab of a study's ceilings, kernels and fusion; ``report``: where its kernels' cases are found."""
    view = RooflineView(study, (case.anchor for case in report.cases))
    facts = study.device.validity
    body = render(
        "roofline.html.j2",
        view=view,
        kind=fmt.device_kind(facts),
        elsewhere=facts != report.journal.run.device.validity,
        date=study.device.provenance.get("date"),
        roofline_figure=figure(roofline.roofline(view)),
        times_figure=figure(roofline.times(view)),
        rows_figure=figure(roofline.matmul_rows(view)),
        shown=roofline.MOST,
        roof_name=roof_name,
        roof_work=roof_work,
        ceiling_rate=ceiling_rate,
        definitions=[(ROOF_NAMES[name], ROOF_WORK[name]) for name in ROOF_NAMES],
    )
    return Tab("roofline", "Roofline", body)
