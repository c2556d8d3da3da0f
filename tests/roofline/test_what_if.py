"""What-ifs: quantised weights, the largest batch, whole requests, several devices; figures by hand or closed form."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import resource
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from griffin_kernels import datasheet, errors
from griffin_kernels.models import Griffin, preset
from griffin_kernels.models.checkpoint_settings import native_entries
from griffin_kernels.nn import int8_linears_
from reports.cli import app
from roofline.ceilings import Ceiling, Ceilings
from roofline.forward import analyse
from roofline.request_time import request_time, served_s, total
from roofline.target import AnalysisTarget, of_sku
from roofline.training_work import TrainingPlan
from roofline.weight_formats import FORMATS, weight_bytes
from roofline.what_if import Question, answer, compare, largest_batch, transformer_of
from roofline.work import LARGEST

H100 = of_sku("nvidia-h100-sxm")

# the linear layers of mqa-100m by hand: 12 layers of width 768, MLP 2304, 6 heads of 128 that share keys and values
MATRICES = {"qkv": (768, 1024), "out": (768, 768), "up": (768, 4608), "down": (2304, 768)}
WEIGHTS = 12 * sum(inputs * outputs for inputs, outputs in MATRICES.values())
SAVED = {
    "int8": WEIGHTS - 12 * 4 * (1024 + 768 + 4608 + 768),
    "fp8": WEIGHTS - 12 * 4 * (1024 + 768 + 4608 + 768),
    "int4": WEIGHTS * 3 // 2 - 12 * 4 * (6 * (1024 + 768 + 4608) + 18 * 768),
}
"""Bytes less than in bfloat16: scales take 4 bytes for each output, or with zero points for each 128 inputs of it."""


def ask(name="griffin-1b3", **facts):
    return Question(preset(name), name, **facts)


def forward(name="mqa-100m", target=H100, phase="decode", batch=1, seq=2048, **facts):
    return analyse(name, target, phase=phase, batch=batch, seq=seq, dtype="bfloat16", **facts)


def memory_only(bandwidth=1e9, memory_bytes=10**10):
    """A device whose memory is all that takes time."""
    table = [Ceiling.stated(n, u, v, "measured", "toy") for n, u, v in (
        ("dram_triad", "bytes_per_s", bandwidth), ("matmul_bfloat16", "flops_per_s", 1e30),
    )]  # fmt: skip
    return AnalysisTarget("toy", Ceilings("toy", tuple(table)), memory_bytes, True)


@pytest.mark.parametrize("weights", FORMATS)
def test_decode_is_faster_by_the_bytes_that_are_not_read(weights):
    plain, held = forward(), forward(weights=weights)
    assert plain.memory.weights - held.memory.weights == SAVED[weights]
    less = plain.record.whole.parameter_bytes - held.record.whole.parameter_bytes
    assert less == SAVED[weights] == plain.record.whole.bytes - held.record.whole.bytes
    # at batch 1 every product is bound by memory: 3.35 TB/s
    assert plain.record.floor_s - held.record.floor_s == pytest.approx(SAVED[weights] / 3.35e12)
    assert plain.record.graphed_s - held.record.graphed_s == pytest.approx(
        SAVED[weights] / (H100.reach["dram"] * 3.35e12), rel=1e-3
    )


def test_int8_weights_are_as_many_bytes_as_the_modules_hold():
    model = int8_linears_(Griffin(preset("griffin-tiny"), dtype=torch.bfloat16))
    held = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    assert weight_bytes(preset("griffin-tiny"), "bfloat16", FORMATS["int8"]) == sum(held.values())


@pytest.mark.parametrize(("sku", "rate"), [("nvidia-h100-sxm", 1979e12), ("nvidia-a100-80gb-sxm", 312e12)])
def test_fp8_products_run_at_their_own_peak_where_one_is_known(sku, rate):
    found = forward("griffin-1b3", of_sku(sku), "prefill", 4, 2048, weights="fp8")
    kernels = {time.kernel.name: time for times in found.kernels for time in times}
    # [8192, 2048] @ [2048, 12288]
    assert kernels["up"].floor_s == pytest.approx(2 * 8192 * 2048 * 12288 / rate)
    # the output matrix is not quantised: the last tokens of 4 sequences, bound by reading 256,000 x 2048 of 2 bytes
    assert kernels["logits"].bound == "dram"
    assert kernels["logits"].kernel.parameter_bytes == 2 * 256_000 * 2048
    told = " ".join(found.target.assumptions)
    assert ("fp8 peak of 1,979 TFLOP/s" if rate > 1e15 else "no fp8 peak of nvidia-a100-80gb-sxm is known") in told


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_prefill_gains_nothing_from_weights_that_are_widened(weights):
    plain, held = (forward("griffin-7b", phase="prefill", weights=found) for found in ("", weights))
    assert held.record.graphed_s == pytest.approx(plain.record.graphed_s, rel=0.01)
    assert "only memory traffic falls" in " ".join(held.target.assumptions)


def test_rates_measured_with_wide_weights_are_not_those_of_narrow_ones():
    curve = [
        Ceiling.stated(f"matmul_rows_bfloat16_{rows}", "flops_per_s", rate, "measured", "toy")
        for rows, rate in ((1, 1e9), (100, 1e11))
    ]
    bare = memory_only()
    where = dataclasses.replace(bare, ceilings=Ceilings("toy", (*bare.ceilings.table, *curve)))
    plain, held = (
        {time.kernel.name: time for times in forward("mqa-100m", where, weights=weights).kernels for time in times}[
            "up"
        ]
        for weights in ("", "int8")
    )
    # 768 x 4608 weights: 2 operations each at the measured rate; in int8 a byte each, and scales, biases, x and y
    assert plain.predicted_s == pytest.approx(2 * 768 * 4608 / 1e9)
    assert held.predicted_s == pytest.approx((768 * 4608 + 4608 * 4 + 2 * (4608 + 768 + 4608)) / 1e9)


def test_matrices_that_are_no_whole_groups_stay_as_they_are():
    found = forward("griffin-tiny", weights="int4")  # of width 64 and MLP 192
    assert found.memory.weights == forward("griffin-tiny").memory.weights
    assert "stay in bfloat16: their inputs are no multiple of 128" in found.target.assumptions[-1]


def test_an_unknown_format_is_one_sentence():
    with pytest.raises(errors.ArgumentError, match="weights is 'int9', expected int8, int4, fp8; did you mean int8"):
        forward(weights="int9")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["hawk-1b3", "mqa-1b3"])
def test_the_largest_batch_fits_and_one_more_does_not(name, phase):
    found = largest_batch(ask(name, phase=phase, batch=None), H100, "bfloat16")
    assert found.bound == "memory" and found.needed <= 80e9
    assert forward(name, phase=phase, batch=found.batch).memory.fits
    assert not forward(name, phase=phase, batch=found.batch + 1).memory.fits


def test_the_largest_batch_within_a_latency_by_closed_form():
    # a step reads the weights once, and states and activations for each sequence: base + batch * each
    where = memory_only(memory_bytes=10**13)
    two, three = (served_s(forward("hawk-100m", where, batch=batch)) for batch in (2, 3))
    each = three - two
    limit = two + 998.5 * each
    found = largest_batch(ask("hawk-100m", batch=None, latency_s=limit), where, "bfloat16")
    assert (found.batch, found.bound) == (1000, "latency")
    assert found.seconds == pytest.approx(limit - 0.5 * each)


def test_limits_that_nothing_keeps_within_and_that_do_not_bind():
    fast = largest_batch(ask(batch=None, latency_s=1e-6), H100, "bfloat16")
    assert (fast.batch, fast.bound) == (0, "latency")
    small = largest_batch(ask("griffin-14b", batch=None), of_sku("nvidia-t4"), "float16")
    assert (small.batch, small.bound) == (0, "memory")
    assert "not even one sequence keeps within the memory of 16.00 GB" in small.sentence(16 * 10**9, None)
    endless = largest_batch(ask("hawk-tiny", batch=None, latency_s=1e30), memory_only(memory_bytes=0), "bfloat16")
    assert (endless.batch, endless.bound) == (LARGEST, "size")
    with pytest.raises(errors.ArgumentError, match="memory of toy is not known"):
        largest_batch(ask(batch=None), memory_only(memory_bytes=0), "bfloat16")
    with pytest.raises(errors.ArgumentError, match="bounds the batch"):
        ask(batch=3, latency_s=1.0)


@pytest.mark.parametrize(
    ("name", "prompt", "new"),
    [("griffin-1b3", 1010, 40), ("mqa-1b3", 1, 200), ("hawk-100m", 5, 40), ("griffin-100m", 3, 2), ("mqa-100m", 7, 1)],
)
def test_a_request_is_its_passes_added_up(name, prompt, new):
    found = request_time(name, H100, prompt=prompt, new=new, batch=3, dtype="bfloat16")
    first = served_s(forward(name, phase="prefill", batch=3, seq=prompt))
    # the first token comes from the prompt's pass, the others after 1, 2, ... more tokens each
    steps = [served_s(forward(name, batch=3, seq=seq)) for seq in range(prompt, prompt + new - 1)]
    assert found.first_s == first
    assert found.steps_s == pytest.approx(sum(steps), rel=1e-6)
    assert found.whole_s == first + found.steps_s
    assert found.output_per_s == pytest.approx(3 * new / (first + sum(steps)))
    assert found.tokens_per_s == pytest.approx(3 * (prompt + new) / (first + sum(steps)))
    assert found.prefill_per_s == pytest.approx(3 * prompt / first)
    if steps:
        assert found.each_s == pytest.approx(sum(steps) / len(steps)) and found.last_s == steps[-1]
        assert found.decode_per_s == pytest.approx(3 * len(steps) / sum(steps))
    else:
        assert (found.each_s, found.decode_per_s, found.last_s) == (None, None, 0.0)


def test_sums_over_kinks_and_jumps_are_exact_and_take_few_calls():
    asked = []

    def value(n):
        asked.append(n)
        return max(1000.0, n) + (500.0 if n > 7000 else 0.0)

    assert total(value, 3, 20000) == pytest.approx(sum(map(value, range(3, 20001))), rel=1e-6)
    asked.clear()
    total(value, 3, 10**12)
    assert len(asked) < 500
    assert total(value, 5, 5) == 1000.0


def test_memory_of_a_request_is_that_of_its_end():
    found = request_time("mqa-1b3", H100, prompt=10, new=5000, batch=2, dtype="bfloat16")
    # 24 layers of keys and values of one head of 128, 5009 tokens: those of the prompt, and all written but the last
    assert found.memory.cache == 2 * 24 * 2 * 128 * 2 * 5009


def test_a_row_is_what_the_passes_say_and_what_an_hour_costs():
    row = answer(ask(phase="decode", batch=16, seq=4096), H100, "bfloat16", price=3.6)
    step = served_s(forward("griffin-1b3", batch=16, seq=4096))
    assert row.seconds == step and row.tokens_per_s == pytest.approx(16 / step)
    assert row.first_token_s == served_s(forward("griffin-1b3", phase="prefill", seq=4096))
    # 3.6 an hour is 0.001 a second
    assert row.cost_per_million == pytest.approx(0.001 * step / 16 * 1e6)
    assert row.fits and row.why == "" and row.bound is None


def test_a_row_of_requests():
    row = answer(ask(batch=4, request=(512, 64)), H100, "bfloat16", price=3600.0)
    found = request_time("griffin-1b3", H100, prompt=512, new=64, batch=4, dtype="bfloat16")
    assert (row.seconds, row.first_token_s, row.token_s) == (found.whole_s, found.first_s, found.each_s)
    assert row.cost_per_million == pytest.approx(1e6 / found.output_per_s)
    limited = answer(ask(batch=None, request=(512, 64), latency_s=2 * found.last_s), H100, "bfloat16")
    assert limited.bound == "latency" and limited.batch > 4


def test_devices_that_cannot_say_why():
    rows = {sku: answer(ask("griffin-14b"), of_sku(sku), "bfloat16", 1.0) for sku in ("nvidia-t4", "nvidia-l4")}
    assert "no known matrix peak in bfloat16" in rows["nvidia-t4"].why
    assert "it does not fit" in rows["nvidia-l4"].why and rows["nvidia-l4"].fits is False
    assert all(row.tokens_per_s is None and row.cost_per_million is None for row in rows.values())


def test_training_steps_are_rows_too():
    plan = TrainingPlan("blocks", None)
    row = answer(ask("griffin-100m", phase="train", batch=None, training=plan), H100, "bfloat16", 2.0)
    assert row.bound == "memory" and row.needed_bytes <= 80e9 and row.first_token_s is None
    one, more = (forward("griffin-100m", phase="train", batch=row.batch + n, training=plan) for n in (0, 1))
    assert one.memory.fits and not more.memory.fits
    assert row.tokens_per_s == pytest.approx(row.batch * 2048 / served_s(one))


def test_beside_a_transformer_of_its_size():
    (row,) = compare(ask("hawk-7b", seq=32768, batch=8), [(H100, "bfloat16")], [None], ("mqa-7b", preset("mqa-7b")))
    hawk, mqa = (served_s(forward(name, batch=8, seq=32768)) for name in ("hawk-7b", "mqa-7b"))
    assert row.ratio("tokens_per_s") == pytest.approx(mqa / hawk) and row.ratio("seconds") == pytest.approx(hawk / mqa)
    assert row.ratio("cost_per_million") is None
    assert transformer_of("griffin-1b3") == "mqa-1b3"
    with pytest.raises(errors.ArgumentError, match="no Transformer preset has the size of 'recurrentgemma-2b'"):
        transformer_of("recurrentgemma-2b")


# the command line


def run(*words, code=0):
    done = CliRunner().invoke(app, ["roofline", "forward", *map(str, words)])
    assert done.exit_code == code, done.output
    return done


def typed(*words, code=0):
    return run("--model", "griffin-1b3", "--device", "nvidia-h100-sxm", *words, code=code)


def test_the_table_of_devices_in_three_ways():
    words = (
        "--model hawk-1b3 --device nvidia-h100-sxm,nvidia-t4,nvidia-l4 --phase decode --batch 8 --vs mqa --price 2,1,1"
    )
    rows = json.loads(run(*words.split(), "--json").stdout)
    assert [row["device"] for row in rows] == ["nvidia-h100-sxm", "nvidia-t4", "nvidia-l4"]
    assert rows[0]["tokens_per_s_ratio"] == pytest.approx(rows[0]["tokens_per_s"] / rows[0]["vs_tokens_per_s"])
    assert rows[1]["tokens_per_s"] is None and "bfloat16" in rows[1]["why"]
    assert rows[0]["cost_per_million"] == pytest.approx(2 / 3600 / rows[0]["tokens_per_s"] * 1e6)
    table = list(csv.DictReader(io.StringIO(run(*words.split(), "--csv").stdout)))
    assert table[2].keys() | {"assumptions"} == rows[2].keys() and float(table[2]["seconds"]) == rows[2]["seconds"]
    text = run(*words.split()).output
    assert "hawk-1b3 against mqa-1b3" in text and "ratio" in text and "per 1M" in text
    assert max(map(len, text.splitlines())) <= 200


def test_every_device_in_one_table_keeps_its_lines_short():
    everything = ",".join(datasheet.skus())
    done = run("--model", "hawk-3b", "--device", everything, "--dtype", "fp16", "--phase", "decode", "--vs", "mqa")
    told = done.output.splitlines()
    assert max(map(len, told)) <= 200 and sum(line.startswith(datasheet.skus()) for line in told) >= len(
        datasheet.skus()
    )


def test_requests_as_typed():
    (row,) = json.loads(typed("--request", "2k+256", "--batch", 4, "--json").stdout)
    found = request_time("griffin-1b3", H100, prompt=2048, new=256, batch=4, dtype="bfloat16")
    assert (row["first_token_s"], row["token_s"], row["seconds"]) == (found.first_s, found.each_s, found.whole_s)
    text = typed("--request", "2k+256", "--weights", "int8").output
    assert "weights are widened to bfloat16 as they are read" in " ".join(text.split())
    assert "requests of 2048 tokens and 256 to write" in text and "first token" in text


def test_batch_auto_as_typed():
    words = ("--phase", "decode", "--seq", "4k", "--latency", "20ms")
    record = json.loads(typed(*words, "--json").stdout)
    found = largest_batch(ask(seq=4096, batch=None, latency_s=0.02), H100, "bfloat16")
    assert (record["batch"], record["bound"], record["seq"]) == (found.batch, "latency", 4096)
    text = " ".join(typed(*words).output.split())
    assert f"the largest batch is {found.batch}, bound by the latency of 20 ms" in text
    small = json.loads(typed("--batch", "auto", "--memory", "20GB", "--json").stdout)
    assert small["bound"] == "memory" and small["device_bytes"] == 20 * 10**9 >= small["needed_bytes"]


def test_weights_and_models_as_typed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(native_entries(preset("mqa-100m"))))
    told = json.loads(typed("--model", tmp_path, "--weights", "int4", "--phase", "decode", "--json").stdout)
    assert (told["weights"], told["weight_bytes"]) == ("int4", 2 * preset("mqa-100m").parameters() - SAVED["int4"])
    assert told["model"] == tmp_path.name
    assert "with int4 weights" in typed("--weights", "int4").output


def test_sweeps_tell_tokens_per_second():
    text = typed("--sweep", "batch", "--batches", "1,1k").output
    assert "predicted latency" in text and "predicted tokens/s" in text
    points = json.loads(
        typed("--sweep", "batch,seq", "--batches", "1,1k", "--seqs", "2k", "--weights", "int8", "--json").stdout
    )
    assert [(point["batch"], point["seq"]) for point in points] == [(1, 2048), (1024, 2048)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--model grifin-1b3", "did you mean griffin-1b3"),
        ("--model google/recurrentgemma-2b", "did you mean recurrentgemma-2b"),
        ("--model " + "x" * 300, "no model 'xxx"),
        ("--model /", "has no config.json"),
        ("--seq 2.5", "--seq is '2.5', expected a whole number such as 2048, 2k or 1M"),
        ("--seq 0", "--seq is 0, expected at least 1"),
        ("--seq -1", "--seq is -1, expected at least 1"),
        ("--seq 2000g", "--seq is 2000g, expected at most 1099511627776"),
        ("--batch many", "--batch is 'many', expected a whole number"),
        ("--batch 0", "--batch is 0, expected at least 1"),
        ("--batches 1,0 --sweep batch", "--batches is 0, expected at least 1"),
        ("--seqs , --sweep seq", "--seqs is ',', expected whole numbers"),
        ("--latency 50", "--latency is '50', expected a time with its unit"),
        ("--latency 50ms --batch 2", "take --batch auto"),
        ("--latency 1us --phase decode", "not even one sequence keeps within the latency"),
        ("--memory -1", "--memory is -1, expected a size from 1 B up"),
        ("--memory 8parsecs", "--memory is '8parsecs', expected a size such as 8GiB"),
        ("--memory 1GB --batch auto", "not even one sequence keeps within the memory of 1.00 GB"),
        ("--price 0", "--price is '0', expected numbers above 0"),
        ("--price 1,2", "--price has 2 numbers for 1 devices"),
        ("--vs mqa --model recurrentgemma-2b", "--vs mqa: no Transformer preset has the size"),
        ("--vs mqa-1b4", "did you mean mqa-1b3"),
        ("--weights int9", "--weights is 'int9', expected int8, int4 or fp8; did you mean int8"),
        ("--phase decoed", "--phase is 'decoed', expected prefill, decode or train; did you mean decode"),
        ("--phase train --weights int8", "--weights is a question of inference"),
        ("--phase train --request 1+1", "--request is a question of inference"),
        ("--dtype bf61", "--dtype is 'bf61', expected float32, bfloat16 or float16; did you mean bf16"),
        ("--request 2048", "--request is '2048', expected tokens of prompt and answer such as 2048+256"),
        ("--request 2048+0", "--request is 0, expected at least 1"),
        ("--request 1+2+3", "expected tokens of prompt and answer"),
        ("--device nvidia-h10-sxm", "near ones are nvidia-h100-sxm"),
        ("--device nvidia-l4,nvidia-h10-sxm", "near ones are nvidia-h100-sxm"),
        ("--device nvidia-l4,", "no datasheet for device ''"),
        ("--sweep batch --batch auto", "--sweep takes batches that are given"),
        ("--sweep size", "--sweep is 'size', expected batch, seq or batch,seq"),
        ("--sweep batch --request 1+1", "--sweep and --request exclude each other"),
        ("--measure --price 2", "--measure and --price exclude each other"),
        ("--measure --weights int8", "--measure and --weights exclude each other"),
        ("--layers --device nvidia-l4,nvidia-t4", "--layers and several devices exclude each other"),
        ("--json --csv --request 1+1", "--json and --csv exclude each other"),
    ],
)
def test_wrong_words_are_answered_in_one_line(words, sentence):
    done = typed(*words.split(), code=2)
    assert sentence in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert len(done.stderr) <= 200


@pytest.mark.process
def test_every_question_is_answered_within_two_seconds_without_torch():
    base = "--model griffin-14b --device nvidia-h100-sxm,amd-mi300x,nvidia-b200"
    questions = [
        f"{base} --vs mqa --price 2.5 --batch auto --latency 50ms --phase decode --weights int4",
        f"{base} --request 2k+200k --batch auto --latency 50ms --json",
        "--model recurrentgemma-9b --device nvidia-l4 --seq 1000000000000 --weights int8 --csv",
    ]
    code = (
        "import sys; from reports.cli import app\n"
        "try: app(['roofline', 'forward', *sys.argv[1].split()])\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'triton', 'numba', 'numpy', 'pandas', 'plotly') if m in sys.modules])"
    )
    for question in questions:
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, question], capture_output=True, text=True, check=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.splitlines()[-1] == "[]"
        # time of the processor, whatever else runs on the machine
        assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 2.0


def test_a_config_of_no_preset_is_asked_about_too():
    config = dataclasses.replace(preset("griffin-1b3"), num_kv_heads=4)
    row = answer(Question(config, "mine", batch=2), H100, "bfloat16")
    assert row.model == "mine" and row.needed_bytes > answer(ask(batch=2), H100, "bfloat16").needed_bytes
