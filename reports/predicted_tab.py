"""The report of a registry of predictions: one HTML file that says on top that nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path

from reports import format as fmt
from reports.build import replace, static_table
from reports.page import Tab, page, render
from reports.predicted import PredictedRegistry, load_prediction
from reports.static_tab import static_tab


def predicted_tab(found: PredictedRegistry) -> Tab:
    """Predicted winners by op and case, and the candidates that each was chosen among."""
    return Tab(
        "predicted", "Predicted", render("predicted.html.j2", found=found, kind=fmt.device_kind(found.device.validity))
    )


def write_predicted_report(registry: Path, out: Path) -> Path:
    """Write the report of a registry of predictions to ``out`` and return ``out``; replaced in one step.

    Raises RegistryError or ReportError where the registry or the candidates beside it cannot be used.
    """
    found = load_prediction(registry)
    name = json.dumps(found.registry_source.name)
    data = (
        f'{{"format":"griffin-kernels prediction data 1","registry_file":{name},'
        f'"sha256":"{found.registry_source.sha256}","registry":{found.registry_text.strip()}}}'
    )
    title = f"Predicted, not measured: {found.name}, {fmt.date(found.date)}"
    tabs = [predicted_tab(found), static_tab(static_table(), str(found.device.validity.get("arch", "")))]
    replace(out, page(title, tabs, data))
    return out
