"""The paper's figures: their axes, what they rest on, every statement of the text judged; measured ones on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from typer.testing import CliRunner

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.models.presets import preset
from griffin_kernels.ops.local_attention import cost as attention
from reports.cli import app
from roofline import figures, figures_decode, figures_measure, figures_records, figures_scan, store
from roofline.ceilings import Ceiling
from roofline.figures_claims import STATEMENTS, claims
from roofline.figures_clock import ALL_PAIRS, CAUSAL, ProgramClock, pass_times
from roofline.figures_records import FIGURES_VERSION, FigurePoint, FigureSeries, PaperFigures, encode
from roofline.figures_training import scaled
from roofline.target import of_sku
from roofline.work import Kernel

TPU = figures.PAPER_SKU
PAPER = ("1b", "3", "4", "8")

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@functools.cache
def predicted(name, *skus):
    return figures.predicted(name, [of_sku(sku) for sku in skus or (TPU,)])


def outcomes(figure, assumption):
    return [j.outcome for claim in figure.claims for j in claim.judgements if j.assumption == assumption]


@pytest.mark.parametrize("name", PAPER)
def test_every_statement_is_judged_with_numbers(name):
    figure = predicted(name, TPU, "nvidia-h100-sxm", "amd-mi300x")
    assert [claim.statement for claim in figure.claims] == [statement.words for statement in STATEMENTS[name]]
    kinds = {(s.device, s.origin, s.assumption) for s in figure.series}
    assert len(kinds) == 6 and all(assumption for *_, assumption in kinds)
    for claim in figure.claims:
        assert {(j.device, j.origin, j.assumption) for j in claim.judgements} == kinds
        assert all(j.outcome in ("pass", "fail", "cannot tell") and re.search(r"\d", j.why) for j in claim.judgements)


def test_figure_3_on_the_papers_hardware_agrees_with_every_statement_if_attention_is_causal():
    assert outcomes(predicted("3"), CAUSAL) == ["pass"] * 6
    # and how attention was implemented decides: with every pair, Griffin-7B would be the faster one
    assert outcomes(predicted("3"), ALL_PAIRS).count("fail") == 1


@pytest.mark.parametrize("name", ["1b", "4"])
def test_sampling_on_the_papers_hardware_agrees_if_whole_caches_are_read(name):
    found = outcomes(predicted(name), figures_decode.WHOLE)
    assert found.count("pass") >= 3 and "fail" not in found


def test_axes_are_the_papers():
    (throughput, training, latency, scans) = map(predicted, PAPER)
    assert {tuple(p.x for p in s.points) for s in throughput.series} == {(512, 1024, 2048, 4196)}
    assert {s.model for s in throughput.series} == {"hawk-1b3", "griffin-1b3", "mqa-1b3"}
    assert {p.batch for s in latency.series for p in s.points} == {16}
    assert {s.panel: s.points[-1].seq for s in latency.series} == {"4a": 4096, "4b": 4096 + 4095}
    assert {p.batch * p.seq for s in training.series for p in s.points} == {16384}
    assert [panel.name for panel in training.panels] == ["3-400m", "3-1b3", "3-7b"]
    assert {s.points[0].y for s in training.series if s.label == "MQA"} == {1.0}
    assert {p.batch for s in scans.series if s.panel.startswith("8a") for p in s.points} == {8}
    assert {s.dtype for s in scans.series} == {"bfloat16", "float32"} and scans.panels[-1].name == "8b"


def test_figure_3_is_that_of_closed_forms():
    """Matrices three times forward, attention 3.5 times at half the rate, the head on all tokens: nothing else."""

    def per_token(config, length):
        d, r, m = config.width, config.lru_width, config.mlp_width
        heads = config.num_heads * config.head_dim
        flops = 4 * 2 * d * config.vocab_size  # logits are computed again
        for kind in config.block_types:
            flops += 3 * 2 * 3 * d * m
            if kind == "recurrent":
                flops += 3 * (2 * 3 * d * r + 4 * r * config.gate_block_width)
            else:
                keys = length / 2 if kind == "global_attention" else config.window * (1 - config.window / 2 / length)
                flops += 3 * 2 * (2 * d * heads + 2 * d * config.head_dim) + 2 * 3.5 * 4 * keys * heads
        return flops

    for series in predicted("3").series:
        if series.assumption == CAUSAL:
            base = per_token(preset(series.model.replace("griffin", "mqa")), 2048)
            expected = [per_token(preset(series.model), p.seq) / base for p in series.points]
            assert [p.y for p in series.points] == pytest.approx(expected, rel=0.03)


def test_attention_as_assumed():
    case = attention.make_case(1, 4096, 16, 1, 128, 4096, "bfloat16")
    kernel = Kernel("attention", attention.cost(case), case=case)
    target = of_sku(TPU)
    rate = target.ceilings.tensor_flops_per_s["bfloat16"] * target.reached("tensor", "bfloat16")
    causal = sum(ProgramClock(target, "bfloat16", CAUSAL).times(kernel).values())
    assert causal == pytest.approx(2 * kernel.cost.tensor_flops / rate)
    every = ProgramClock(target, "bfloat16", ALL_PAIRS).times(kernel)
    assert every["compute"] == pytest.approx(2 * 4 * 16 * 4096**2 * 128 / rate)
    moved = 2 * 2 * 16 * 4096**2
    assert every["activations"] == pytest.approx(
        moved / (target.ceilings.value("dram") * target.reached("dram", "bfloat16"))
    )


def test_a_window_needs_no_more_pairs_than_two_of_it():
    case = attention.make_case(1, 4096, 16, 1, 128, 1024, "bfloat16")
    kernel = Kernel("attention", attention.cost(case), case=case)
    times = [ProgramClock(of_sku(TPU), "bfloat16", how).times(kernel)["compute"] for how in (CAUSAL, ALL_PAIRS)]
    assert times[1] / times[0] == pytest.approx(4096 * 2048 / attention.visible_pairs(case))


@pytest.mark.parametrize(("start", "tokens"), [(1, 1), (1, 2), (1, 4196), (4096, 777), (1000, 100)])
def test_a_sample_is_the_sum_of_its_steps(start, tokens):
    def step(seq):
        return {"cache": 1.0 + min(seq, 1024) * 0.01, "parameters": 2.0}

    added = Counter()
    for seq in range(start, start + tokens):
        added.update(step(seq))
    assert figures_decode.sample_times(step, start, tokens, [1024]) == pytest.approx(dict(added))


@pytest.mark.parametrize("family", ["hawk", "griffin", "mqa"])
def test_samples_of_models_are_the_sum_of_their_steps(family):
    config, target = preset(f"{family}-1b3"), of_sku(TPU)
    decoder = figures_decode.Decoder(config, target, "bfloat16", figures_decode.GROWING)
    steps = [pass_times(config, target, "decode", 64, seq, "bfloat16", CAUSAL) for seq in range(900, 1300)]
    assert sum(decoder.sample(64, 900, 400).values()) == pytest.approx(sum(sum(s.values()) for s in steps), rel=1e-3)


def test_the_best_batch_fits_and_one_that_is_twice_as_large_does_not():
    size = 2
    for series in predicted("1b").series:
        config, device = preset(series.model), of_sku(TPU).memory_bytes
        for point in series.points:
            kept = config.parameters() * size + point.batch * config.cache_bytes(point.seq, size)
            assert kept < device < 2.5 * kept, (series.label, point)


@pytest.mark.parametrize("name", list(figures.PLANS))
def test_lengths_of_any_magnitude_are_answered(name):
    figure = figures.predicted(name, [of_sku(TPU)], lengths=[10**12, 2048])
    assert {p.x for s in figure.series for p in s.points} == {2048, 10**12}
    assert all(p.y is None or 0 < p.y < float("inf") for s in figure.series for p in s.points)


@pytest.mark.parametrize("length", [0, -1, 2**40 + 1])
def test_lengths_that_are_none(length):
    with pytest.raises(errors.ArgumentError, match=f"a length of the axis is {length}, expected 1 to 1099511627776"):
        figures.predicted("4", [of_sku(TPU)], lengths=[1024, length])


def test_a_state_stays_and_a_cache_grows():
    figure = predicted("context")
    kept = {(s.label, s.panel): [p.y for p in s.points] for s in figure.series if s.assumption == CAUSAL}
    assert len(set(kept["Hawk", "context-states"])) == 1 and set(kept["Hawk", "context-keys"]) == {None}
    assert len(set(kept["Griffin", "context-keys"])) == 1
    assert kept["MQA", "context-keys"][-1] == 1048576 * 24 * 2 * 128 * 2 and set(kept["MQA", "context-states"]) == {
        None
    }
    config = preset("hawk-1b3")
    assert kept["Hawk", "context-states"][0] == 24 * config.lru_width * (4 + 3 * 2)


def changed(series, label, panel, factors):
    """Series with the values of one line multiplied."""
    found = []
    for one in series:
        if (one.label, one.panel) == (label, panel):
            points = [msgspec.structs.replace(p, y=p.y * f) for p, f in zip(one.points, factors, strict=True)]
            one = msgspec.structs.replace(one, points=points)
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("name", "statement", "label", "panel", "factors", "outcome"),
    [
        ("1b", 0, "Griffin", "1b", (0.5, 1, 1, 1), "fail"),
        ("1b", 1, "Griffin", "1b", (1.2, 1, 1, 1), "fail"),
        ("3", 0, "Griffin", "3-400m", (1.5, 1, 1, 1), "fail"),
        ("3", 1, "MQA", "3-1b3", (1, 0.8, 1, 1), "fail"),
        ("3", 2, "Griffin", "3-7b", (1, 1, 1, 1.2), "fail"),
        ("3", 3, "MQA", "3-400m", (1, 1, 1, 0.7), "fail"),
        ("3", 4, "Griffin", "3-7b", (0.9, 1, 1, 1), "fail"),
        ("4", 0, "Griffin", "4b", (1, 1, 1, 1, 1, 2), "fail"),
        ("4", 1, "MQA", "4a", (2, 1, 1, 1, 1, 1), "fail"),
        ("4", 2, "MQA", "4b", (0.5, 1, 1, 1, 1, 1), "fail"),
        ("4", 3, "Griffin", "4a", (1.3, 1, 1, 1, 1, 1), "fail"),
    ],
)
def test_a_changed_line_changes_the_outcome(name, statement, label, panel, factors, outcome):
    assumed = CAUSAL if name == "3" else figures_decode.WHOLE
    series = [s for s in predicted(name).series if s.assumption == assumed]
    assert {c.judgements[0].outcome for c in claims(name, series)} == {"pass"}
    assert claims(name, changed(series, label, panel, factors))[statement].judgements[0].outcome == outcome


@pytest.mark.parametrize(
    ("name", "statement", "label", "other", "panel"),
    [("1b", 1, "Griffin", "Hawk", "1b"), ("3", 4, "Griffin", "MQA", "3-7b"), ("4", 0, "MQA", "Hawk", "4a")],
)
def test_what_is_level_decides_nothing(name, statement, label, other, panel):
    assumed = CAUSAL if name == "3" else figures_decode.WHOLE
    series = [s for s in predicted(name).series if s.assumption == assumed]
    mine, level = (next(s for s in series if (s.label, s.panel) == (who, panel)) for who in (label, other))
    factors = [b.y / a.y for a, b in zip(mine.points, level.points, strict=True)]
    assert claims(name, changed(series, label, panel, factors))[statement].judgements[0].outcome == "cannot tell"


def made(label, panel, ys, **changes):
    points = [FigurePoint(x=x, y=y, batch=8, seq=x, seconds=y, bound="") for x, y in zip((256, 512), ys, strict=True)]
    told = {
        "label": label, "model": label, "panel": panel, "device": "cpu", "origin": "measured", "assumption": "",
        "points": points, "dtype": "float32",
    }  # fmt: skip
    return FigureSeries(**told | changes)


@pytest.mark.parametrize(
    ("kernel", "tree", "expected"),
    [
        ((0.3, 0.3), (1.3, 1.4), ["pass", "pass", "pass", "pass"]),
        ((0.5, 0.5), (0.8, 1.4), ["fail", "pass", "fail", "fail"]),
        ((0.95, 0.95), (1.8, 1.7), ["fail", "fail", "pass", "fail"]),
        ((0.4, 0.4), (1.02, 1.2), ["cannot tell", "pass", "cannot tell", "cannot tell"]),
    ],
)
def test_statements_about_scans(kernel, tree, expected):
    series = [
        made(label, panel, ys)
        for panel in ("8a-fp32", "8b")
        for label, ys in (("Native scan", (1.0, 1.0)), ("Linear scan kernel", kernel), ("Associative scan", tree))
    ]
    assert [claim.judgements[0].outcome for claim in claims("8", series)] == expected


def test_the_least_time_of_the_native_scan_decides_one_way_only():
    figure = predicted("8")
    for claim in figure.claims:
        least = next(j for j in claim.judgements if j.assumption == figures_scan.LOOP)
        assert least.outcome == "cannot tell", claim.statement
    kernel, native = (
        next(s for s in figure.series if (s.label, s.panel, s.assumption) == (label, "8a-bf16", figures_scan.LOOP))
        for label in ("Linear scan kernel", "Native scan")
    )
    # 3 streams of 2 bytes; and two of 4 more
    assert native.points[0].seconds / kernel.points[0].seconds == pytest.approx(14 / 6)


def test_missing_models_decide_nothing():
    for name in PAPER:
        alone = [s for s in predicted(name).series if s.label in ("Hawk", "Native scan")]
        found = claims(name, alone)
        assert all(j.outcome == "cannot tell" for claim in found for j in claim.judgements)


def test_a_record_reads_as_it_was_written(tmp_path):
    record = PaperFigures(
        schema_version=FIGURES_VERSION, command="griffin", figures=[predicted(n) for n in figures.PLANS]
    )
    path = tmp_path / figures_records.FILE_NAME
    path.write_bytes(encode(record))
    assert figures_records.read(path) == record
    path.write_bytes(encode(msgspec.structs.replace(record, schema_version=FIGURES_VERSION + 1)))
    with pytest.raises(errors.ReportError, match="upgrade"):
        figures_records.read(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(errors.ReportError, match="not a record of `griffin roofline study --figure`"):
        figures_records.read(path)


def run(*words, code=0):
    done = CliRunner().invoke(app, ["roofline", "study", *map(str, words)])
    assert done.exit_code == code, done.output
    return done


def test_tables_say_the_numbers_and_the_outcomes():
    text = run("--figure", "1b,3", "--device", f"{TPU},nvidia-h100-sxm").output
    assert "Figure 1b: Throughput of sampling" in text and "Figure 3: Time of a training step" in text
    assert "6 of 6 statements hold: google-tpu-v3, predicted, causal pairs" in text
    assert "griffin-7b" in text and "nvidia-h100-sxm" in text and "B5555" in text


def test_json_is_the_figures():
    found = json.loads(run("--figure", "4", "--context", "--json").stdout)
    assert [figure["name"] for figure in found] == ["4", "context"]
    assert msgspec.convert(found[0], figures_records.PaperFigure) == predicted("4")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--figure", "5"], "--figure is '5', expected some of 1b, 3, 4, 8, context, or all"),
        (["--figure", ""], "--figure is ''"),
        (["--figure", "3", "--device", "tpu3"], "near ones are"),
        (["--figure", "3", "--device", "cpu,cuda"], "--device is 'cpu,cuda'"),
        (["--figure", "3", "--seqs", "0"], "--seqs is 0, expected at least 1"),
        (["--figure", "3", "--seqs", "x"], "--seqs is 'x', expected a whole number"),
        (["--figure", "3", "--dtype", "fp16"], "google-tpu-v3 has no known matrix peak in float16; it has bfloat16"),
        (["--json"], "belong to --figure"),
    ],
)
def test_wrong_words_are_one_sentence(words, sentence):
    done = run(*words, code=2)
    assert sentence in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_device_whose_memory_is_not_known_is_one_sentence(monkeypatch):
    unknown = dataclasses.replace(of_sku(TPU), memory_bytes=0)
    monkeypatch.setattr("roofline.figures_cli.of_sku", lambda sku: unknown)
    done = run("--figure", "1b", code=2)
    assert "no figure is known for the memory of google-tpu-v3" in done.stderr and done.stderr.count("\n") == 1
    run("--figure", "3")


def test_figures_need_no_torch_and_answer_at_once():
    code = (
        "import sys, time; began = time.perf_counter(); from reports.cli import app\n"
        "sys.argv = 'griffin roofline study --figure all --seqs 2048,1000000000000'.split()\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'triton', 'numba', 'pandas', 'plotly') if m in sys.modules], time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    modules, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert modules == "[]" and float(seconds) < 2


@pytest.fixture
def small_machine(tmp_path, monkeypatch):
    """This machine's CPU with ceilings as if measured, and the tiny presets where it would run larger ones."""
    device = devices.cpu()
    rates = {
        "dram_copy": ("bytes_per_s", 2e10), "matmul_float32": ("flops_per_s", 1e11), "launch": ("s", 2e-6),
        "vector_float32": ("flops_per_s", 5e10), "special_exp": ("ops_per_s", 1e9),
    }  # fmt: skip
    table = [Ceiling.stated(name, unit, value, "measured", "test") for name, (unit, value) in rates.items()]
    path = tmp_path / "ceilings.json"
    store.save(path, device, table, {})
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("griffin_kernels.device.detect", lambda name=None: device)
    for module in (figures, figures_measure):
        monkeypatch.setattr(module, "usual_size", lambda target: "tiny")
    for module in ("figures_measure", "figures_training"):
        monkeypatch.setattr(f"roofline.{module}.scaled", lambda family: preset(f"{family}-tiny"))
    for module in (figures_measure, figures_scan):
        monkeypatch.setattr(module, "SCAN_WIDTH", 16)
    monkeypatch.setattr(figures_measure, "LATENCY_BATCH", 2)
    monkeypatch.setattr(figures_measure, "BATCHES_TRIED", (1, 2))
    monkeypatch.setattr(figures_measure, "LEAST_CALM", 1)
    monkeypatch.setattr(figures_measure, "LONG_PROMPT", 40)
    return device


def test_measured_beside_predicted(small_machine):
    done = run("--figure", "all", "--device", f"{TPU},cpu", "--measure", "--seconds", 0, "--seqs", "16,32")
    path = store.results_folder(small_machine) / figures_records.FILE_NAME
    assert str(path) in done.output.replace("\n", "")
    record = figures_records.read(path)
    assert record.device is not None and record.device.validity == small_machine.validity()
    assert [figure.name for figure in record.figures] == list(figures.PLANS)
    for figure in record.figures:
        lines = {(s.label, s.panel, s.origin) for s in figure.series if s.device == small_machine.slug}
        measured = [s for s in figure.series if s.origin == "measured"]
        assert measured and {(s.label, s.panel, "predicted") for s in measured} <= lines
        for series, point in ((s, p) for s in measured for p in s.points):
            low, high = point.interval
            assert low <= point.y <= high and point.seconds > 0 and point.bound == "" and series.assumption == ""
        assert all(series.note for series in measured if not series.panel.startswith("8a"))
        kinds = {(j.device, j.origin) for claim in figure.claims for j in claim.judgements}
        assert not figure.claims or (small_machine.slug, "measured") in kinds
    # a figure that is made again takes the place of the old one, others stay
    before = record.figures[2:]
    run("--figure", "1b", "--out", path)
    again = figures_records.read(path)
    assert [figure.name for figure in again.figures] == list(figures.PLANS) and again.figures[2:] == before
    assert {s.origin for s in again.figures[0].series} == {"predicted"}


def test_scaled_models_have_a_layer_of_each_kind():
    for family, kinds in (("griffin", 2), ("mqa", 1), ("hawk", 1)):
        assert len(set(scaled(family).block_types)) == kinds and scaled(family).width == 768


def test_the_papers_lengths_are_not_measured_beyond_what_memory_holds(small_machine):
    done = run("--context", "--device", "cpu", "--measure", "--seconds", 0, "--seqs", "1000000", code=2)
    assert "fills caches of 32768 tokens at most" in done.stderr


def test_pairs_of_figures_and_devices_keep_their_order():
    named = ["nvidia-l4", TPU]
    for name in itertools.islice(figures.PLANS, 2):
        figure = figures.predicted(name, [of_sku(sku) for sku in named])
        assert list(dict.fromkeys(s.device for s in figure.series)) == named == [d.name for d in figure.devices]
