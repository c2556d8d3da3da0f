"""The three figures of a forecast, and which attention it assumes."""

from __future__ import annotations

import dataclasses

import pytest

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from roofline import flash
from roofline.forward import analyse
from roofline.tables import figures, rests_on
from roofline.target import COMPILED_SHARE, HOST_S, Tuned, of_sku
from tests.roofline.test_forward import ceilings, run, target, times_of

pytestmark = pytest.mark.unit

H100 = "nvidia-h100-sxm"


def tuned(share=0.5, status="predicted"):
    """A registry that knows recurrent blocks."""
    return lambda case: Tuned(share, "test", status) if case.op.startswith("recurrent_block") else None


def on(sku, model, phase="decode", batch=1, seq=32768, attention="flash", **facts):
    where = dataclasses.replace(of_sku(sku), tuned=facts.pop("tuned", tuned())).attending(attention)
    return analyse(model, where, phase=phase, batch=batch, seq=seq, dtype="bfloat16")


@pytest.mark.parametrize("host_s", [1e-9, 1e-3])
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_gpu_hides_its_host_or_waits_for_it(mode, host_s):
    node = ceilings(launch_graph=("s", 2e-6))
    result = run(target(asynchronous=True, ceilings=node, mode=mode, host_s=host_s), "griffin-100m", seq=64)
    record, times = result.record, times_of(result)
    launches = sum(time.launches for time in times)
    device = sum(sum(s for name, s in time.predicted.items() if name != "launch") for time in times) + 2e-6 * launches
    assert record.graphed_s == pytest.approx(device)
    assert record.eager_s == pytest.approx(max(device, host_s * launches))
    assert record.predicted_s == pytest.approx(record.eager_s if mode == "eager" else record.graphed_s)
    assert record.predicted_s == pytest.approx(sum(part.predicted_s for part in record.parts))
    assert record.predicted_s == pytest.approx(sum(record.predicted_by_regime_s.values()))
    assert min(time.predicted["launch"] for time in times) >= 2e-6 * (1 - 1e-9)


def test_without_a_host_of_its_own_a_gpu_takes_the_launch_that_was_measured():
    result = run(target(asynchronous=True, ceilings=ceilings(launch=("s", 1.0))))
    assert result.record.eager_s == pytest.approx(sum(time.launches for time in times_of(result)))


def test_the_headline_of_a_gpu_is_the_graph():
    result = on(H100, "griffin-7b")
    first, second, third = figures(result.record, result.target)
    assert "in a CUDA graph" in first and "launched from Python" in second and third.startswith("floor")
    assert result.record.mode == "graph" and result.record.predicted_s == pytest.approx(result.record.graphed_s)
    assert result.record.eager_s == pytest.approx(HOST_S * sum(part.launches for part in result.record.parts))
    assert "recurrent_block_step predicted" in rests_on(result.record)


def test_a_tpu_pays_no_launches_and_no_composition():
    result = on("google-tpu-v5e", "recurrentgemma-2b", "prefill", seq=2048)
    record = result.record
    assert record.predicted_s == pytest.approx(record.floor_s / COMPILED_SHARE)
    assert record.eager_s is None and record.whole.launches == 0 and record.predicted_by_regime_s["launch"] == 0
    assert figures(record, result.target)[0].startswith("predicted compiled by XLA")
    # RecurrentGemma's report: about 40,000 tokens/s
    assert record.tokens_per_s == pytest.approx(40_000, rel=0.05)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_griffin_against_a_transformer_is_near_what_the_floors_say(phase):
    griffin, mqa = (on(H100, f"{family}-7b", phase).record for family in ("griffin", "mqa"))
    floors, printed = mqa.floor_s / griffin.floor_s, mqa.predicted_s / griffin.predicted_s
    assert floors <= printed <= 1.3 * floors
    assert "FlashAttention-3 as published" in rests_on(mqa)
    composed = on(H100, "mqa-7b", phase, attention="composed").record
    assert composed.predicted_s > mqa.predicted_s
    assert "attention composed of PyTorch's kernels" in rests_on(composed)


def test_a_b200_decodes_as_much_faster_as_its_memory():
    first, second = (on(sku, "mqa-7b", batch=64).record for sku in (H100, "nvidia-b200"))
    rates = [of_sku(sku).ceilings.value("dram") * of_sku(sku).reached("dram", "") for sku in (H100, "nvidia-b200")]
    assert 1.9 < rates[1] / rates[0] < 2.4  # of the published streams; the sheets say 2.39
    assert 0.8 * rates[1] / rates[0] < first.predicted_s / second.predicted_s < rates[1] / rates[0]
    # where the host is slower than either, they are alike
    first, second = (on(sku, "mqa-7b").record for sku in (H100, "nvidia-b200"))
    assert first.eager_s == pytest.approx(second.eager_s)


def test_attention_takes_its_published_share_of_products():
    result = on(H100, "mqa-7b", "prefill")
    attention = next(time for time in times_of(result) if time.kernel.name == "attention")
    rate = attention.kernel.cost.tensor_flops / (attention.predicted_s - attention.predicted["launch"])
    assert rate == pytest.approx(616e12, rel=0.01)
    assert (attention.status, attention.launches, attention.how) == ("published", 1, "FlashAttention-3")
    assert any("2407.08608" in sentence for sentence in result.target.assumptions)
    assert flash.flash_attention("sm_75") is flash.ASSUMED and "assumed" in flash.ASSUMED.source
    assert all(0.5 < known.share < 1 for known in flash.PUBLISHED.values())


def attention_of(result):
    return next(time for time in times_of(result) if time.kernel.name == "attention")


def test_the_order_of_what_attention_rests_on():
    """Global: measured, published. Of a window: whatever a registry says, then published."""
    for status, whole, window in (("measured", "measured", "measured"), ("predicted", "published", "predicted")):
        known = {"tuned": lambda case, status=status: Tuned(0.4, "test", status)}
        assert attention_of(on(H100, "mqa-7b", **known)).status == whole
        assert attention_of(on(H100, "griffin-7b", **known)).status == window
    nothing = {"tuned": lambda case: None}
    assert attention_of(on(H100, "griffin-7b", **nothing)).status == "published"
    assert attention_of(on(H100, "griffin-7b", attention="composed", **nothing)).status == "published"
    assert attention_of(on(H100, "mqa-7b", attention="composed", **nothing)).status == "composed"
    assert attention_of(run(target(), "mqa-tiny")).status == "composed"  # a CPU has no FlashAttention


def test_an_attention_that_there_is_not_is_refused():
    with pytest.raises(errors.ArgumentError, match="attention is 'fast', expected flash or composed"):
        on(H100, "mqa-7b", attention="fast")


def llama(vocabulary, key_heads, mlp):
    """Llama-2-7B and Llama-3-8B as far as sizes go."""
    return GriffinConfig(
        vocab_size=vocabulary, width=4096, mlp_width=mlp, block_types=("global_attention",) * 32, num_heads=32,
        num_kv_heads=key_heads, head_dim=128, lru_width=4096, gate_blocks=16,
    )  # fmt: skip


@pytest.mark.parametrize(("config", "published"), [(llama(32000, 32, 11008), 104.9), (llama(128256, 8, 14336), 93.9)])
def test_decode_in_a_graph_is_ahead_of_gpt_fast_by_the_kernels_that_it_saves(config, published):
    """gpt-fast's README: Llama-2-7B and 3.1-8B in bfloat16, batch 1, one A100-80GB, compiled into a CUDA graph.

    ``griffin roofline validate`` holds PyTorch's own kernels against it, within 10 %. Norms and gates of this package
    are one kernel each: half as many nodes.
    """
    where = of_sku("nvidia-a100-80gb-sxm")
    record = analyse(config, where, phase="decode", batch=1, seq=200, dtype="bfloat16").record
    assert 1 <= record.tokens / record.graphed_s / published <= 1.15


def test_a_layer_of_decoding_starts_few_kernels():
    """Ten of a recurrent layer with its MLP. Rotary embedding alone takes nine, of attention."""
    found = on(H100, "griffin-7b", "decode", batch=1, seq=2048, attention="flash")
    launches = {part.kind: part.launches for part in found.record.parts}
    assert launches["recurrent"] + launches["mlp"] <= 10
    assert launches["local_attention"] + launches["mlp"] <= 10 + 9


def test_a_training_step_takes_flash_attention_and_waits_for_its_host_as_a_pass_does():
    step = on(H100, "mqa-1b3", "train", batch=4, seq=2048)
    gradient = next(time for time in times_of(step) if time.kernel.name == "attention_bwd")
    assert (gradient.status, gradient.launches) == ("published", 3)
    forward = attention_of(step)
    rates = [
        time.kernel.cost.tensor_flops / (time.predicted_s - time.predicted["launch"]) for time in (forward, gradient)
    ]
    assert rates[1] == pytest.approx(rates[0] * flash.BACKWARD)
    record = step.record
    assert record.mode == "graph" and record.predicted_s == pytest.approx(record.graphed_s)
    assert record.eager_s >= record.graphed_s and record.tuned["local_attention_bwd"] == "FlashAttention-3"
    assert on(H100, "mqa-1b3", "train", batch=4, seq=2048, attention="composed").record.predicted_s > record.predicted_s
