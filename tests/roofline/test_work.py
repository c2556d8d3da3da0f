"""What a forward pass does: counts against closed forms, the paper's own figures, and traces of the modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from griffin_kernels.models import PRESETS, Griffin, preset
from griffin_kernels.ops.linear_scan import cost as scan
from griffin_kernels.ops.local_attention import cost as attention
from griffin_kernels.ops.rg_lru import cost as rg_lru
from roofline.target import of_sku
from roofline.work import Kernel, is_operation, part_kernels, part_parameters, part_places

FAMILIES = ("hawk", "griffin", "mqa")


def kernels(name, phase="prefill", batch=1, seq=64, dtype="bfloat16"):
    by_kind = part_kernels(preset(name), phase, batch, seq, dtype)
    return [kernel for kind, _ in part_places(preset(name)) for kernel in by_kind[kind]]


def matmul_flops(found: list[Kernel]) -> int:
    return sum(kernel.cost.tensor_flops for kernel in found if kernel.rows)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_parts_are_all_parameters(name):
    parameters = part_parameters(preset(name))
    assert sum(parameters[kind] for kind, _ in part_places(preset(name))) == preset(name).parameters()


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("recurrentgemma")])
def test_matrix_flops_are_two_per_parameter_and_token(name):
    # every matrix is used once per token, the output matrix once per sequence; biases, norms, taps are no products, and
    # gates are products of their own
    config = preset(name)
    d, r, f = config.width, config.lru_width, config.mlp_width
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    per_block = {"recurrent": 3 * d * r, "local_attention": d * heads, "global_attention": d * heads}
    weights = sum(per_block[kind] + 3 * d * f for kind in config.block_types)
    for phase, tokens in (("prefill", 3 * 40), ("decode", 3)):
        want = 2 * (tokens * weights + 3 * config.vocab_size * d)
        assert matmul_flops(kernels(name, phase, batch=3, seq=40)) == want


@pytest.mark.parametrize(("time", "window"), [(1, 1), (7, 3), (64, 64), (100, 17), (50, 200), (4096, 1024)])
def test_attention_pairs_are_exact(time, window):
    queries, keys = torch.arange(time)[:, None], torch.arange(time)[None]
    counted = int(((keys <= queries) & (keys > queries - window)).sum())
    case = attention.make_case(1, time, 1, 1, 4, window)
    assert attention.visible_pairs(case) == counted
    if time >= window:
        assert counted == time * window - window * (window - 1) // 2
    # two products of head_dim multiply-adds for each pair
    assert attention.cost(case).tensor_flops == 2 * 2 * 4 * counted


def test_kv_and_state_bytes_follow_the_paper():
    # arXiv 2402.19427, section 5: 2 N T h_k d_head of keys and values; N D_RNN of state; (K - 1) D_RNN of taps
    mqa, hawk, griffin = (preset(f"{family}-1b3") for family in ("mqa", "hawk", "griffin"))
    assert mqa.cache_bytes(1000, 2) == 2 * 24 * 1000 * 1 * 128 * 2
    # the published code keeps the state in float32 whatever the weights are
    assert hawk.cache_bytes(1000, 2) == 24 * (2560 * 4 + 3 * 2560 * 2) == hawk.cache_bytes(1, 2)
    local = 8 * 2 * 1024 * 128 * 2
    assert griffin.cache_bytes(5000, 2) == local + 16 * (2560 * 4 + 3 * 2560 * 2) == griffin.cache_bytes(1024, 2)
    # per token, 12.3 kB for the MQA Transformer; beyond some 40 tokens its cache is the largest of the three
    assert mqa.cache_bytes(1, 2) == 12_288
    equal = next(t for t in range(1, 1000) if mqa.cache_bytes(t, 2) > griffin.cache_bytes(t, 2))
    # equal where 12288 T = 4096 T + 16 * 25600: T = 50; with a bfloat16 state, as the paper counts, T = 40
    assert equal == 51


def test_cache_against_weights_as_the_paper_derives():
    # time to load parameters is matched by B * cache / bandwidth where B * cache = parameters (embedding left out)
    mqa, hawk, griffin = (preset(f"{family}-1b3") for family in ("mqa", "hawk", "griffin"))
    weights = {c: 2 * (c.parameters() - c.embedding_parameters()) for c in (mqa, hawk, griffin)}
    assert weights[mqa] / (16 * mqa.cache_bytes(1, 2)) == pytest.approx(11_400, rel=0.01)
    # 550 and 5,300 with a bfloat16 state; ours is float32, so a sequence keeps 2 % and 25 % more
    assert weights[griffin] / griffin.cache_bytes(10_000, 2) == pytest.approx(550, rel=0.03)
    assert weights[hawk] / hawk.cache_bytes(10_000, 2) == pytest.approx(5_300 / 1.25, rel=0.03)


def test_scan_intensity_of_the_paper():
    # with gate pre-activations given, an element reads x and two of them, 6 bytes, and writes 2. Of rg_lru's nine
    # float32 operations three belong to the gates (two biases and log a's product); the recurrence has the paper's 6:
    # 2 log a, its negation, two products with the input, a multiply-add
    case = rg_lru.make_case(8, 2048, 1024, 16, "bfloat16")
    elements = 8 * 2048 * 1024
    recurrence = rg_lru.cost(case).vector_flops - 3 * elements
    assert recurrence == 6 * elements
    intensity = recurrence / ((6 + 2) * elements)
    assert intensity == 0.75
    # far below what TPU-v3's vector unit needs, 4.2 operations a byte: memory binds
    tpu = of_sku("google-tpu-v3").ceilings
    assert tpu.value("vector") / tpu.value("dram") == pytest.approx(4.2, rel=0.02)
    plain = scan.cost(scan.make_case(8, 2048, 1024, "bfloat16"))
    assert plain.vector_flops / plain.bytes_total == pytest.approx(2 / 6)


def test_linear_layers_are_compute_bound_from_136_rows_on_a_tpu_v3():
    # 2 N D^2 operations over 2 (D^2 + 2 N D) bytes in bfloat16: N D / (D + 2 N) must exceed 136 operations a byte
    ceilings = of_sku("google-tpu-v3").ceilings
    ridge = ceilings.tensor_flops_per_s["bfloat16"] / ceilings.value("dram")
    assert ridge == pytest.approx(136, rel=0.01)
    config = preset("griffin-7b")

    def bound(rows):
        down = next(k for k in kernels("griffin-7b", batch=1, seq=rows) if k.name == "linear_out")
        times = ceilings.slow(down.cost, "bfloat16", launches=0)
        return max(times, key=lambda name: times[name])

    # inner 5632, outer 4096: rows where the two times are equal, biases aside
    d, r = config.width, config.lru_width
    flip = ridge * d * r / (d * r - ridge * (d + r))
    assert 136 < flip < 160
    assert bound(math.floor(flip) - 2) == "dram" and bound(math.ceil(flip) + 2) == "tensor"


def test_decode_is_memory_bound_up_to_a_batch_near_128():
    ceilings = of_sku("google-tpu-v3").ceilings
    for family in FAMILIES:
        bounds = {}
        for batch in (1, 64, 128, 256):
            found = [k for k in kernels(f"{family}-1b3", "decode", batch, 128) if k.rows]
            times = [ceilings.slow(k.cost, "bfloat16", launches=0) for k in found]
            bounds[batch] = {max(t, key=lambda name: t[name]) for t in times}
        assert bounds[1] == bounds[64] == bounds[128] == {"dram"}
        assert "tensor" in bounds[256]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", PRESETS)
def test_matrix_flops_equal_those_that_torch_counts(name, phase):
    # what torch has formulas for, and not this package, are the matrix products: just what has rows
    config = preset(name)
    model = Griffin(config, device="meta", dtype=torch.bfloat16)
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        cache = model.init_cache(2, tokens=9) if phase == "decode" else None
        if cache is not None:
            cache.tokens = cache.bound = 8
        with counter:
            model(
                torch.zeros(2, 8 if cache is None else 1, dtype=torch.int64, device="meta"), cache=cache, last_only=True
            )
    found = counter.get_flop_counts()["Global"]
    own = sum(flops for op, flops in found.items() if "griffin_kernels" in str(op))
    assert own > 0
    assert sum(found.values()) - own == matmul_flops(kernels(name, phase, batch=2, seq=8))


class Trace(TorchDispatchMode):
    """Records each operator that runs on data: (part, name, bytes in and out)."""

    def __init__(self):
        super().__init__()
        self.part, self.rows = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.rows.append((self.part, str(func), sum(t.nbytes for t in tensors)))
        return out


def traced(name, phase, batch, seq, dtype):
    model = Griffin(preset(name), dtype=dtype)
    trace = Trace()

    def mark(*_):
        trace.part += 1

    for norm in [n for block in model.blocks for n in (block.temporal_norm, block.channel_norm)] + [model.final_norm]:
        norm.register_forward_pre_hook(mark)
    with torch.no_grad():
        cache = model.init_cache(batch, tokens=seq + 1) if phase == "decode" else None
        if cache is not None:
            cache.tokens = cache.bound = seq
            cache.positions.fill_(seq)
        with trace:
            model(torch.zeros(batch, seq if cache is None else 1, dtype=torch.int64), cache=cache, last_only=True)
    return trace.rows


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_between_tuned_operations_are_those_that_run(family, phase, dtype):
    name = f"{family}-tiny"
    rows = traced(name, phase, 2, 64, getattr(torch, dtype))
    places, found = part_places(preset(name)), part_kernels(preset(name), phase, 2, 64, dtype)
    assert {row[0] for row in rows} == set(range(len(places)))
    inside = {"attention", "recurrent_block"}
    for index, (kind, _) in enumerate(places):
        ran = [row for row in rows if row[0] == index and not row[1].startswith("griffin_kernels.")]
        if kind == "embedding":
            # making the cache is there too, and the trace counts the whole matrix that a few rows are taken from
            assert found[kind][0].launches <= len(ran)
            continue
        told = [kernel for kernel in found[kind] if kernel.name not in inside and not is_operation(kernel)]
        # the last block's part ends with the cache's count of tokens
        assert len(ran) - 1 <= sum(kernel.launches for kernel in told) <= len(ran)
        # the rest: factors that are broadcast, which are no streams: RoPE's tables, 4 KB that eight products read
        moved_bytes = sum(row[2] for row in ran)
        assert sum(kernel.run_bytes for kernel in told) == pytest.approx(moved_bytes, rel=0.05, abs=2**15)
