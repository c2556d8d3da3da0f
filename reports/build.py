"""Builds a report: one HTML file that needs nothing else, from recorded files alone.

That is a journal, a registry and a roofline study, or a registry of predictions. Nothing is measured again and no
kernel is imported. Equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from griffin_kernels.errors import ReportError
from griffin_kernels.registry import write_atomically
from griffin_kernels.texts import encodable
from reports import format as fmt
from reports import model
from reports.figures_tab import figures_tab, load_figures
from reports.model_bench_tab import load_model_bench, model_bench_tab
from reports.page import Tab, page, render
from reports.predicted import load_prediction
from reports.sources import load, load_registry, load_study
from reports.tabs import forward_tab, roofline_tab, static_tab, tuning_tab
from roofline import figures_records, model_bench_records
from roofline.study_records import FILE_NAME
from tuning.static import recorded
from tuning.static.recorded import Recorded


def write_report(journal: Path, out: Path, registry: Path | None = None, study: Path | None = None) -> Path:
    """Write the report of ``journal`` to ``out`` and return ``out``; an existing file is replaced in one step.

    study: the roofline study; one that lies beside the journal is found by itself. With one there are tabs for the
    roofline and for forward passes; with a record of `griffin bench model` or `griffin roofline study --figure` beside
    the journal, one for that.
    Raises ReportError where the journal, the registry or the study cannot be used, or ``out`` cannot be written. An
    unfinished run, and one without results, gives a report of what there is.
    """
    loaded = load(journal)
    registry_source, registry_file, registry_text = load_registry(registry) if registry else (None, None, "null")
    if study is None and journal.with_name(FILE_NAME).exists():
        study = journal.with_name(FILE_NAME)
    study_source, found, study_text = load_study(study) if study else (None, None, "null")
    report = model.build(loaded, registry_file)
    raced = journal.with_name(model_bench_records.FILE_NAME)
    bench_source, bench, bench_text = load_model_bench(raced) if raced.exists() else (None, None, "null")
    drawn = journal.with_name(figures_records.FILE_NAME)
    figures_source, figures, figures_text = load_figures(drawn) if drawn.exists() else (None, None, "null")
    name = json.dumps(loaded.source.name)
    data = (
        f'{{"format":"griffin-kernels report data 1","journal":{name},"sha256":"{loaded.source.sha256}",'
        f'"records":[{",".join(loaded.lines)}],"registry":{registry_text.strip()},"study":{study_text},'
        f'"model_bench":{bench_text},"paper_figures":{figures_text}}}'
    )
    title = f"Tuning report: {report.device}, {fmt.date(loaded.run.date)}"
    tabs = [tuning_tab(report, registry_source, study_source)]
    if found is not None:
        tabs += [roofline_tab(found, report), forward_tab(found)]
    if figures is not None and figures_source is not None:
        tabs.append(figures_tab(figures, figures_source, loaded.run.device.validity))
    if bench is not None and bench_source is not None:
        tabs.append(model_bench_tab(bench, bench_source, loaded.run.device.validity))
    tabs.append(static_tab(static_table()))
    replace(out, page(title, tabs, data))
    return out


def write_predicted_report(registry: Path, out: Path) -> Path:
    """Write the report of a registry of predictions to ``out`` and return ``out``; replaced in one step.

    It says on top that nothing was measured. Raises RegistryError or ReportError where the registry or the candidates
    beside it cannot be used.
    """
    found = load_prediction(registry)
    name = json.dumps(found.registry_source.name)
    data = (
        f'{{"format":"griffin-kernels prediction data 1","registry_file":{name},'
        f'"sha256":"{found.registry_source.sha256}","registry":{found.registry_text.strip()}}}'
    )
    title = f"Predicted, not measured: {found.name}, {fmt.date(found.date)}"
    validity = found.device.validity
    # predicted winners by op and case, and the candidates that each was chosen among
    body = render("predicted.html.j2", found=found, kind=fmt.device_kind(validity))
    tabs = [Tab("predicted", "Predicted", body), static_tab(static_table(), str(validity.get("arch", "")))]
    replace(out, page(title, tabs, data))
    return out


def static_table() -> Recorded:
    """The table of compiled kernels that the package carries."""
    try:
        return recorded.load()
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"cannot read the table of compiled kernels {recorded.FILE}: {error}") from error


def replace(out: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, encodable(text).encode())
    except OSError as error:  # OutputFolderError is one
        raise ReportError(f"cannot write the report {out}: {error.strerror or error}") from error
