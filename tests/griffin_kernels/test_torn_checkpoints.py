"""Saving that a full disk, Ctrl-C or a power cut ends: one whole checkpoint is left, the old or the new."""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from griffin_kernels import models
from griffin_kernels.models import checkpoint_files, load_pretrained, save_pretrained
from tests.griffin_kernels.checkpoint_models import CONFIG, SHARDS, assert_equal, model_of, same

pytestmark = [
    pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model():
    return model_of()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", SHARDS)
def test_a_full_disk_leaves_the_old_checkpoint(model, tmp_path, size):
    save_pretrained(model, tmp_path, max_shard_size=SHARDS[size])
    (tmp_path / "tokenizer.json").write_text("{}")
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_pretrained(model_of(replace(CONFIG, width=80), seed=1), tmp_path, max_shard_size=50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C: what runs in the background of a shell is born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path, max_shard_size="30KB")
    before = contents(tmp_path)
    write = checkpoint_files.write_safetensors
    written = []

    def interrupted(file, tensors):
        write(file, tensors)
        written.append(file)
        if len(written) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint_files, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model_of(seed=1), tmp_path, max_shard_size="30KB")
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_between_files_puts_all_in_place(model, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path, max_shard_size="30KB")
    other = model_of(seed=1)
    rename = checkpoint_files._rename
    renamed = []

    def interrupted(before, after):
        rename(before, after)
        renamed.append(after)
        if len(renamed) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint_files, "_rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(other, tmp_path, max_shard_size="40KB")
    assert_equal(load_pretrained(tmp_path), other)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors.index.json",
        *index["weight_map"].values(),
    }


TORN = {"single": "50GB", "sharded": "110KB"}


class PowerCut(BaseException):
    """What no code of ours handles."""


@pytest.mark.parametrize("after", TORN)
@pytest.mark.parametrize("before", TORN)
def test_a_power_cut_leaves_one_whole_checkpoint(model, tmp_path, monkeypatch, before, after):
    other = model_of(seed=1)
    seen = set()
    for steps in range(100):
        folder = tmp_path / str(steps)
        save_pretrained(model, folder, max_shard_size=TORN[before])
        left = steps
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                real = getattr(Path, name)

                def cut(self, *args, real=real, **options):
                    nonlocal left
                    if left == 0:
                        raise PowerCut
                    left -= 1
                    return real(self, *args, **options)

                patch.setattr(Path, name, cut)
            try:
                save_pretrained(other, folder, max_shard_size=TORN[after])
                break
            except PowerCut:
                pass
        found = load_pretrained(folder)
        assert same(found, model) or same(found, other)
        left = "old" if same(found, model) else "new"
        if left not in seen:
            assert same(models.load_transformers(theirs_of(folder)), found)
        seen.add(left)
    assert "old" in seen, "no cut left the old one"
    assert same(load_pretrained(folder), other)
    assert not list(folder.glob(".*"))


def theirs_of(folder):
    return transformers.RecurrentGemmaForCausalLM.from_pretrained(folder)
