"""Checkpoints of whole models: through transformers' own class and back, odd ones and faulty ones."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from griffin_kernels import errors, models
from griffin_kernels.models import Griffin, checkpoint_files, load_pretrained, save_pretrained
from tests.griffin_kernels.checkpoint_models import CONFIG, SHARDS, A, R, assert_equal, model_of
from tests.griffin_kernels.test_models_parity import LOGITS, assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# none of these can be a RecurrentGemma
OWN = {
    "hawk": replace(CONFIG, block_types=(R, R), scale_embeddings=False, logits_softcap=None),
    "griffin": replace(CONFIG, gate_blocks=6),
    "mqa": replace(CONFIG, block_types=("global_attention",) * 2),
}


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(3))


def edit(folder, **entries):
    """Entries of config.json, None to drop one."""
    found = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


@pytest.mark.parametrize("size", SHARDS)
@torch.no_grad()
def test_transformers_reads_ours(model, tokens, tmp_path, size):
    model.save_pretrained(tmp_path, max_shard_size=SHARDS[size])
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "sharded")
    theirs, info = transformers.RecurrentGemmaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same(model(tokens)[0], theirs(tokens, use_cache=False).logits, LOGITS)
    assert_equal(load_pretrained(tmp_path), model)

    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=SHARDS[size])
    assert_equal(Griffin.from_pretrained(tmp_path / "theirs"), model)


def test_shards_are_as_large_as_they_may_be(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    sizes = {path.name: sum(t.nbytes for t in load_file(path).values()) for path in tmp_path.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(sizes) and len(sizes) > 3
    assert index["metadata"]["total_size"] == sum(sizes.values()) == sum(p.nbytes for p in model.parameters())
    assert max(sizes.values()) <= 30_000
    one_each = tmp_path / "one_each"
    model.save_pretrained(one_each, max_shard_size=1)
    assert len(list(one_each.glob("*.safetensors"))) == len(index["weight_map"])


@pytest.mark.parametrize("name", OWN)
def test_what_transformers_cannot_be_keeps_our_names(name, tmp_path):
    model = model_of(OWN[name])
    save_pretrained(model, tmp_path, max_shard_size="50KB")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "griffin_kernels"
    assert_equal(load_pretrained(tmp_path), model)
    with pytest.raises(errors.ArgumentError, match="transformers' RecurrentGemma has no such model: "):
        models.config_to_transformers(model.config)


def test_configurations_come_back():
    for config in (CONFIG, models.preset("recurrentgemma-2b"), replace(CONFIG, block_types=(A, R) * 3)):
        entries = models.config_to_transformers(config)
        assert models.config_from_transformers(entries) == config
        assert models.config_from_transformers(transformers.RecurrentGemmaConfig(**entries)) == config
    assert models.config_to_transformers(replace(CONFIG, block_types=(R, R, A, R, R)))["block_types"] == [
        R,
        R,
        "attention",
    ]


@pytest.mark.parametrize(
    "entries",
    [
        {"block_types": None},
        {"block_types": None, "_block_types": ["recurrent", "recurrent", "attention"]},
        {"block_types": None, "layer_types": ["linear_attention"] * 2 + ["sliding_attention", "linear_attention"]},
        {"rope_theta": None, "partial_rotary_factor": None},
        {"rope_parameters": None, "rms_norm_eps": None, "conv1d_width": None},
    ],
)
def test_configurations_of_other_versions(model, tmp_path, entries):
    save_pretrained(model, tmp_path)
    edit(tmp_path, **entries)
    text = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + text)
    assert_equal(load_pretrained(tmp_path), model)


NAMES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "ddp": lambda name: f"module.{name}",
    "compiled_blocks": lambda name: name.replace("mlp_block.", "mlp_block._orig_mod."),
    "body_only": lambda name: name.removeprefix("model."),
    "compiled_body_of_ddp": lambda name: "module._orig_mod." + name.removeprefix("model."),
    "head_in_place_of_embedding": lambda name: "lm_head.weight" if "embed_tokens" in name else name,
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_wrappers(model, tmp_path, kind):
    save_pretrained(model, tmp_path)
    tensors = {NAMES[kind](name): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal(load_pretrained(tmp_path), model)
    assert_equal(models.load_transformers(tensors, CONFIG), model)
    if not any("lm_head" in name for name in tensors):
        embedding = next(tensor for name, tensor in tensors.items() if "embed_tokens" in name)
        prefix = "_orig_mod." if kind == "compiled" else ""
        save_file(tensors | {f"{prefix}lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
        assert_equal(load_pretrained(tmp_path), model)
        save_file(tensors | {f"{prefix}lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
        with pytest.raises(errors.ArgumentError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
            load_pretrained(tmp_path)


def test_wrapped_models_are_written_by_their_own_names(tmp_path):
    model = model_of()
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    save_pretrained(torch.nn.DataParallel(torch.compile(model, backend="eager")), tmp_path)
    got = load_pretrained(tmp_path).state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], tensor) for name, tensor in want.items())
    save_pretrained(model, tmp_path, state_dict={name: tensor + 1 for name, tensor in want.items()})
    assert torch.equal(load_pretrained(tmp_path).embedding.weight, want["embedding.weight"] + 1)


@torch.no_grad()
def test_dtypes(model, tokens, tmp_path):
    mixed = model_of(dtype=torch.bfloat16)
    for block in mixed.blocks[:2]:
        block.mixing.rg_lru.a_param.data = block.mixing.rg_lru.a_param.float() + 1e-4
    save_pretrained(mixed, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert_equal(loaded, mixed)
    assert torch.equal(loaded(tokens)[0], mixed(tokens)[0])
    for dtype in (torch.float16, "float64", "torch.bfloat16"):
        want = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
        got = Griffin.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in got.parameters()} == {want}
        assert torch.equal(got.embedding.weight, mixed.embedding.weight.to(want))

    # parts of what is one linear layer of ours
    tensors = load_file(tmp_path / "model.safetensors")
    for name in tensors:
        if name.endswith(("k_proj.weight", "up_proj.bias", "o_proj.weight")):
            tensors[name] = tensors[name].float()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal(load_pretrained(tmp_path, dtype="auto"), mixed)


def test_other_defaults_change_nothing(model, tmp_path):
    save_pretrained(model, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal(load_pretrained(tmp_path), model)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert_equal(load_pretrained(tmp_path, device="cpu"), model)
        assert load_pretrained(tmp_path).embedding.weight.is_meta
        save_pretrained(model, tmp_path)
    assert_equal(load_pretrained(tmp_path), model)
    state = torch.get_rng_state()
    load_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_entries(model, tmp_path):
    save_pretrained(model, tmp_path, config_entries={"eos_token_id": 7, "bos_token_id": None})
    assert transformers.AutoConfig.from_pretrained(tmp_path).eos_token_id == 7
    with pytest.raises(errors.ArgumentError, match="must be what JSON can hold"):
        save_pretrained(model, tmp_path, config_entries={"eos_token_id": tokens})


# DeepMind's files


@pytest.mark.parametrize("old_format", [False, True])
def test_deepmind_files(tmp_path, old_format):
    config = replace(
        CONFIG, head_dim=20, num_heads=2, gate_blocks=2, window=2049, rope_base=10_000.0, logits_softcap=30.0
    )
    model = model_of(config)
    file = tmp_path / "new" / "2b.pt"
    models.save_deepmind(model, file)
    state = torch.load(file, weights_only=True)
    assert state["blocks.0.mlp_block.ffw_up.w"].shape == (2, 40, 56)
    torch.save(
        {f"module.{name}": tensor for name, tensor in state.items()},
        file,
        _use_new_zipfile_serialization=not old_format,
    )
    assert_equal(models.load_deepmind(file), model)
    assert_equal(models.load_deepmind(file, replace(config, window=9)), Griffin_with(model, replace(config, window=9)))
    assert models.load_deepmind(file, dtype="bfloat16").embedding.weight.dtype == torch.bfloat16
    assert os.listdir(file.parent) == ["2b.pt"]


def Griffin_with(model, config):
    other = Griffin(config)
    other.load_state_dict(model.state_dict())
    return other


def test_faulty_deepmind_files(tmp_path):
    file = tmp_path / "x.pt"

    def refused(words):
        with pytest.raises(errors.ArgumentError, match=words):
            models.load_deepmind(file)

    refused("there is no file")
    file.write_bytes(b"not this")
    refused("cannot be read as a PyTorch state dict")
    torch.save(replace(CONFIG), file)
    refused("cannot be read as a PyTorch state dict: Weights only load failed")
    torch.save({"params": {"a": torch.ones(1)}}, file)
    refused("holds something else than a state dict")
    torch.save({"a": torch.ones(1)}, file)
    refused("no state dict of DeepMind's RecurrentGemma: it lacks embedder.input_embedding")


# what is refused


def test_quantised_checkpoints_are_refused(model, tmp_path):
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp_block.down_proj.weight"
    for dtype, word in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
        with pytest.raises(errors.DtypeError, match=rf"{name} is stored as {word}, expected one of F64, F32"):
            load_pretrained(tmp_path)
    with pytest.raises(errors.DtypeError, match=r"blocks.0.mlp.down.weight is of torch.int8, expected floating-point"):
        models.load_transformers(tensors | {name: tensors[name].to(torch.int8)}, CONFIG)
    edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(errors.ArgumentError, match="holds weights quantised by gptq"):
        load_pretrained(tmp_path)


def test_faulty_indices_are_described(model, tmp_path):
    def refused(words):
        with pytest.raises(errors.ArgumentError, match=words):
            load_pretrained(tmp_path)

    save_pretrained(model, tmp_path, max_shard_size="30KB")
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    where = good["weight_map"]
    name, shard = next(iter(where.items()))
    for bad, words in (
        ({}, "has no weight_map"),
        (
            {"weight_map": where | {name: "../x.safetensors"}},
            "names '../x.safetensors', which is no file of the folder",
        ),
        ({"weight_map": where | {"model.more": shard}}, "lacks model.more, which the index says it holds"),
        ({"weight_map": {key: file for key, file in where.items() if key != name}}, f"the state dict lacks {name}$"),
        ({"weight_map": where | {name: "model-9.safetensors"}}, "lacks model-9.safetensors"),
    ):
        index.write_text(json.dumps(bad))
        refused(words)
    index.write_text(json.dumps(good))
    data = (tmp_path / shard).read_bytes()
    (tmp_path / shard).write_bytes(data[:-1])
    refused(f"{shard} cannot be read as safetensors")
    (tmp_path / shard).unlink()
    refused(f"lacks {shard}")


def test_arguments_are_checked(model, tmp_path):
    with pytest.raises(errors.ArgumentError, match=r"there is no folder google/recurrentgemma-2b: .* downloaded first"):
        load_pretrained("google/recurrentgemma-2b")
    for size in ("5 apples", 0, True, -1):
        with pytest.raises(errors.ArgumentError, match="max_shard_size is "):
            save_pretrained(model, tmp_path, max_shard_size=size)
    for size, want in (("1.5KB", 1500), ("2 MiB", 2**21), (7, 7)):
        assert checkpoint_files.size_of(size) == want
    with pytest.raises(errors.ArgumentError, match="model is a Linear, expected a Griffin"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    with pytest.raises(errors.ArgumentError, match=r"embedding.weight is on meta"):
        save_pretrained(Griffin(CONFIG, device="meta"), tmp_path)
    with pytest.raises(errors.ArgumentError, match=r"has blocks.9.x, which this model has no place for"):
        save_pretrained(model, tmp_path, state_dict=model.state_dict() | {"blocks.9.x": torch.ones(1)})
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path)
    for dtype in ("int8", "wide", torch.int8, torch.float8_e4m3fn, 3):
        with pytest.raises(
            errors.DtypeError, match=r"dtype is .*, expected one of float64, float32, float16, bfloat16"
        ):
            load_pretrained(tmp_path, dtype=dtype)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(errors.ArgumentError, match=r"lacks model.safetensors; it has pytorch_model.bin"):
        load_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    edit(tmp_path, hidden_size="wide")
    with pytest.raises(errors.ArgumentError, match="config: an entry is of the wrong type"):
        load_pretrained(tmp_path)
    edit(tmp_path, model_type="griffin_kernels", vocab_size=None)
    with pytest.raises(errors.ArgumentError, match=r"config: .* missing .*'vocab_size'"):
        load_pretrained(tmp_path)


# host memory

CHILD = """
import os, re, sys, torch
from griffin_kernels.models import load_pretrained

def memory(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(1)
load_pretrained(sys.argv[1] + "/warm")
for folder, dtype in (("single", None), ("sharded", None), ("sharded", "float32")):
    if os.fork():  # into no memory that an earlier one has left
        assert os.wait()[1] == 0
        continue
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = memory("VmRSS")
    model = load_pretrained(f"{sys.argv[1]}/{folder}", dtype=dtype)
    print((memory("VmHWM") - before) / sum(parameter.nbytes for parameter in model.parameters()), flush=True)
    os._exit(0)
"""


@pytest.mark.process
def test_host_memory_is_that_of_the_weights(tmp_path):
    """A third of the weights is the embedding; two shards more than half each, and one file, must not be held whole."""
    config = replace(CONFIG, vocab_size=16_000, width=1024, mlp_width=3072, lru_width=1023, num_heads=3, head_dim=256)
    model = Griffin(config, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()
    for name, size in (("single", "50GB"), ("sharded", "60MB")):
        save_pretrained(model, tmp_path / name, max_shard_size=size)
    save_pretrained(model_of(), tmp_path / "warm")
    ratios = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(ratios) == 3 and all(0.9 < float(ratio) < 1.2 for ratio in ratios), ratios
