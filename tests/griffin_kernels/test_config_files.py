"""A model by what people call it: presets, folders, files, ids in the hub's cache. No network, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from griffin_kernels import errors
from griffin_kernels.models import PRESETS, config_to_transformers, preset
from griffin_kernels.models.checkpoint_settings import native_entries
from griffin_kernels.models.config_files import cached_models, find_config, hub_cache

pytestmark = pytest.mark.unit

OURS = replace(preset("griffin-tiny"), window=48)
THEIRS = replace(preset("recurrentgemma-2b"), vocab_size=1000)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def write(folder, entries, mark=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(mark + json.dumps(entries), encoding="utf-8")
    return folder


def test_a_preset_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "griffin-1b3", native_entries(OURS))
    assert find_config("griffin-1b3") == ("griffin-1b3", PRESETS["griffin-1b3"])


@pytest.mark.parametrize(
    ("entries", "config"), [(native_entries(OURS), OURS), (config_to_transformers(THEIRS), THEIRS)], ids=["ours", "hub"]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_folders_and_files_of_both_layouts(tmp_path, entries, config, mark):
    folder = write(tmp_path / "my-model", entries, mark)
    assert find_config(str(folder)) == ("my-model", config)
    assert find_config(str(folder / "config.json")) == ("my-model", config)
    other = (folder / "config.json").rename(tmp_path / "changed.json")
    assert find_config(str(other)) == ("changed", config)


def test_an_id_in_the_hub_s_cache_is_its_main_revision(hub):
    snapshots = hub / "models--google--recurrentgemma-2b" / "snapshots"
    write(snapshots / "abc", config_to_transformers(replace(THEIRS, window=64)))
    write(snapshots / "def", config_to_transformers(THEIRS))
    (hub / "models--google--recurrentgemma-2b" / "refs").mkdir()
    (hub / "models--google--recurrentgemma-2b" / "refs" / "main").write_text("abc")
    (hub / "models--half--loaded").mkdir()
    name, config = find_config("google/recurrentgemma-2b")
    assert (name, config.window) == ("google/recurrentgemma-2b", 64)
    assert list(cached_models()) == ["google/recurrentgemma-2b"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert hub_cache() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "llama", "vocab_size": 10}, "model_type is 'llama', expected 'recurrent_gemma'"),
        ({"vocab_size": 10}, "config: no entry 'hidden_size'"),
        (native_entries(OURS) | {"width": 0}, "width is 0, expected at least 1"),
        ({"model_type": "griffin_kernels", "width": 4}, "missing"),
        (native_entries(OURS) | {"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
        ([1], "holds a list, expected an object"),
    ],
)
def test_a_file_that_describes_no_model_of_ours_is_named(tmp_path, entries, words):
    folder = write(tmp_path / "m", entries)
    with pytest.raises(errors.ArgumentError) as caught:
        find_config(str(folder))
    assert words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_json_and_a_folder_without_one(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.ArgumentError, match="cannot be read as JSON"):
        find_config(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(errors.ArgumentError, match=r"has no config\.json"):
        find_config(str(tmp_path))


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("grifin-1b3", "did you mean griffin-1b3"),
        ("GRIFFIN-1B3", "did you mean griffin-1b3"),
        ("google/recurrentgemma-2b", "did you mean recurrentgemma-2b"),
        ("acme/hawk-larg", "did you mean acme/hawk-large"),
        ("zzzzzzzzzz", "shows all"),
        ("", "shows all"),
        ("x" * 5000, "shows all"),
        ("nul\0l", "no model 'nul"),
    ],
)
def test_an_unknown_name_is_one_short_sentence_with_near_ones(hub, word, near):
    if word.startswith("acme"):
        write(hub / "models--acme--hawk-large" / "snapshots" / "1", native_entries(OURS))
    with pytest.raises(errors.UnknownModelError) as caught:
        find_config(word)
    assert near in str(caught.value) and len(str(caught.value)) <= 190 and "\n" not in str(caught.value)


@pytest.mark.process
def test_it_needs_no_torch(tmp_path):
    folder = write(tmp_path / "m", config_to_transformers(THEIRS))
    code = (
        f"import sys; from griffin_kernels.models.config_files import find_config; find_config({str(folder)!r})\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
