"""Runs a RecurrentGemma as transformers has it and accelerated by this package, in turn: time, parts, memory, tokens.

Both are one module with the same weights: ``accelerate`` and ``restore`` change its classes between two runs. Weights
are random, since no time depends on their values.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from griffin_kernels import errors
from griffin_kernels.device import Device, provenance
from griffin_kernels.records import DeviceRecord
from roofline.measure import watched
from roofline.model_bench_records import MODEL_BENCH_VERSION, PARTS, BenchPhase, ModelBench, PhaseRecord, Side
from roofline.pass_timing import LEAST_CALM, synchronise, timed, undisturbed
from roofline.stats import paired_ratio_interval

SHORT_PROMPT = 32
"""Tokens of the prompt of ``generate``: decoding is what it measures."""

LAYERS, VOCABULARY = 3, 8192
"""Of a preset that is run: a layer of each kind, and a vocabulary beside which they are seen."""

SIDES: tuple[Literal["original", "accelerated"], ...] = ("original", "accelerated")

Tell = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True)
class Settings:
    """What is run. config: of transformers' class. prompt: tokens of a prefill and of a training step. memory: whether
    processes of their own measure the peaks."""

    name: str
    config: Any = field(repr=False)
    dtype: torch.dtype
    batch: int
    prompt: int
    new_tokens: int
    phases: tuple[BenchPhase, ...]
    memory: bool = True


def transformers_module() -> Any:
    """transformers; ArgumentError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise errors.ArgumentError(
            "this runs transformers' RecurrentGemma: pip install griffin-kernels[transformers]"
        ) from None
    return transformers


def configuration(model: str, layers: int | None, vocab_size: int | None, **changes: Any) -> Any:
    """transformers' configuration of a preset's name, or of a folder with a config.json, made smaller where told.

    layers, vocab_size: 0 keeps all; None is all of a folder, and LAYERS and VOCABULARY of a preset. changes: other
    entries of the configuration.
    Raises UnknownModelError, or ArgumentError for a folder or a preset that is no RecurrentGemma.
    """
    from griffin_kernels.models import config_to_transformers
    from griffin_kernels.models.presets import preset

    kind = transformers_module().RecurrentGemmaConfig
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        try:
            given, _ = kind.get_config_dict(folder)
            told = kind.from_dict(given).to_dict()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.ArgumentError(f"{folder / 'config.json'} cannot be used: {error}") from None
        if given.get("model_type") != kind.model_type:
            raise errors.ArgumentError(f"{folder} holds a {given.get('model_type')}, expected a {kind.model_type}")
    else:
        told = config_to_transformers(preset(model))
        layers = LAYERS if layers is None else layers
        vocab_size = VOCABULARY if vocab_size is None else vocab_size
    for name, value in (("num_hidden_layers", layers), ("vocab_size", vocab_size)):
        if value is not None and value < 0:
            raise errors.ArgumentError(f"{name} is {value}, expected at least 0, which keeps all")
        told[name] = min(value or told[name], told[name])
    told.pop("layer_types", None)  # of all layers; block_types is the pattern
    # so that no special token is outside a small vocabulary
    return kind(**told | changes | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": None})


def build(settings: Settings, device: Device) -> Any:
    """A RecurrentGemmaForCausalLM with random weights on a device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(settings.dtype)
    try:
        with torch.device(device.torch_device):
            model = transformers_module().RecurrentGemmaForCausalLM(settings.config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def switch(model: Any, side: str) -> None:
    """Make the model one of the two."""
    from griffin_kernels.integrations.transformers import accelerate, restore

    (accelerate if side == "accelerated" else restore)(model)


def step(model: Any, phase: BenchPhase, settings: Settings, device: Device) -> Callable[[], Any]:
    """A function that runs a phase once, and gives the tokens that were generated in that phase."""
    long = phase != "generate"
    sizes = (settings.batch, settings.prompt if long else min(SHORT_PROMPT, settings.prompt))
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(1, model.config.vocab_size, sizes, generator=generator, dtype=torch.int64, device="cpu")
    tokens = drawn.to(device.torch_device)

    def prefill() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=True, logits_to_keep=1)

    def generate() -> Any:
        with torch.inference_mode():
            count = settings.new_tokens
            return model.generate(tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False)[:, -count:]

    def train() -> None:
        with torch.enable_grad():
            model.train()
            try:
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            finally:
                model.zero_grad(set_to_none=True)
                model.eval()

    return {"prefill": prefill, "generate": generate, "train": train}[phase]


def bench(settings: Settings, device: Device, seconds: float, command: str, tell: Tell) -> ModelBench:
    """Measure every phase, each for about ``seconds``, at the least LEAST_CALM rounds; then memory, in processes."""
    tell(f"building {settings.name}")
    model = build(settings, device)
    found = [_phase(model, phase, settings, device, seconds, tell) for phase in settings.phases]
    same = _same_tokens(model, settings, device) if "generate" in settings.phases else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model  # before other processes build theirs
    return ModelBench(
        schema_version=MODEL_BENCH_VERSION, device=DeviceRecord(device.validity(), provenance(device)),
        transformers=str(transformers_module().__version__), command=command, model=settings.name,
        layers=settings.config.num_hidden_layers, width=settings.config.hidden_size,
        vocab_size=settings.config.vocab_size, parameters=parameters,
        dtype=str(settings.dtype).removeprefix("torch."), batch=settings.batch, prompt=settings.prompt,
        new_tokens=settings.new_tokens, same_tokens=same,
        phases=[_record(phase, samples, parts, settings, device, tell) for phase, samples, parts in found],
    )  # fmt: skip


Samples = dict[str, list[tuple[float, bool]]]
Parts = dict[str, list[dict[str, float]]]


def _phase(
    model: Any, phase: BenchPhase, settings: Settings, device: Device, seconds: float, tell: Tell
) -> tuple[BenchPhase, Samples, Parts]:
    run = step(model, phase, settings, device)
    samples: Samples = {side: [] for side in SIDES}
    parts: Parts = {side: [] for side in SIDES}
    for side in SIDES:
        tell(f"{phase}: {side}, warming up")
        switch(model, side)
        run()
    begin = time.perf_counter()
    for number in itertools.count(1):
        for side in SIDES:
            tell(f"{phase}: {side}, round {number}")
            switch(model, side)
            samples[side].append(watched(lambda: timed(run, device), device))
            if phase != "train":
                parts[side].append(_timed_parts(model, run, device))
        if number >= LEAST_CALM and time.perf_counter() - begin >= seconds:
            return phase, samples, parts
    raise AssertionError("unreachable")


def _record(
    phase: BenchPhase, samples: Samples, parts: Parts, settings: Settings, device: Device, tell: Tell
) -> PhaseRecord:
    sides = {}
    for side in SIDES:
        tell(f"{phase}: memory, {side}" if settings.memory else phase)
        kept, disturbed = undisturbed(samples[side])
        sides[side] = Side(
            samples_s=[value for value, _ in samples[side]], median_s=median(kept), disturbed=disturbed,
            parts_s={name: median(row[name] for row in parts[side]) for name in PARTS} if parts[side] else {},
            peak_bytes=peak_bytes(phase, side, settings, device) if settings.memory else None,
        )  # fmt: skip
    before, after = ([value for value, _ in samples[side]] for side in SIDES)
    return PhaseRecord(
        phase=phase, tokens=settings.batch * (settings.new_tokens if phase == "generate" else settings.prompt),
        original=sides["original"], accelerated=sides["accelerated"],
        ratio=median(a / b for a, b in zip(before, after, strict=True)), interval=paired_ratio_interval(before, after),
    )  # fmt: skip


def _same_tokens(model: Any, settings: Settings, device: Device) -> int:
    """Greedy tokens of both before the first that differs, in the row where that comes first."""
    run = step(model, "generate", settings, device)
    texts = []
    for side in SIDES:
        switch(model, side)
        texts.append(run())
    same = (texts[0] == texts[1]).long().cumprod(dim=1).sum(dim=1)
    return int(same.min())


class _Clock:
    """Reads the time at marks: the host's on a CPU, a stream's events on a GPU."""

    def __init__(self, device: Device) -> None:
        self.host = device.kind == "cpu"

    def now(self) -> Any:
        if self.host:
            return time.perf_counter()
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        return end - begin if self.host else begin.elapsed_time(end) / 1e3  # type: ignore[no-any-return]


def _timed_parts(model: Any, run: Callable[[], Any], device: Device) -> dict[str, float]:
    """Seconds of PARTS in one run, by hooks: inside linear layers, and inside temporal blocks around them."""
    clock = _Clock(device)
    spans: dict[str, list[tuple[Any, Any]]] = {"linears": [], "recurrence": [], "attention": []}
    inner: dict[str, list[tuple[Any, Any]]] = {"recurrence": [], "attention": []}
    inside: list[str] = []  # the temporal block that runs

    with contextlib.ExitStack() as hooks:
        for part, module in _hooked(model):
            begun: list[Any] = []

            def before(*_: Any, begun: list[Any] = begun, part: str = part) -> None:
                if part != "linears":
                    inside.append(part)
                begun.append(clock.now())

            def after(*_: Any, begun: list[Any] = begun, part: str = part) -> None:
                span = (begun.pop(), clock.now())
                spans[part].append(span)
                if part != "linears":
                    inside.pop()
                elif inside:
                    inner[inside[-1]].append(span)

            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        synchronise(device)
        begin = clock.now()
        run()
        synchronise(device)
        end = clock.now()
        synchronise(device)

    def total(found: Sequence[tuple[Any, Any]]) -> float:
        return sum(clock.between(*span) for span in found)

    parts = {"linears": total(spans["linears"])}
    parts |= {name: total(spans[name]) - total(inner[name]) for name in inner}
    return parts | {"rest": clock.between(begin, end) - sum(parts.values())}


def _hooked(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules whose time is told apart, with the part that each belongs to."""
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as theirs

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            yield "linears", module
        elif isinstance(module, theirs.RecurrentGemmaRecurrentBlock):
            yield "recurrence", module
        elif isinstance(module, theirs.RecurrentGemmaAttention):
            yield "attention", module


def peak_bytes(phase: BenchPhase, side: str, settings: Settings, device: Device) -> int | None:
    """Most memory that one run takes above weights and what was held before it, in a process of its own.

    On a GPU what PyTorch allocated; on Linux the resident set's high-water mark, set back before the run; else None.
    """
    if device.kind == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(sender, phase, side, settings, device), daemon=True)
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        child.join()
        raise errors.DeviceError(
            f"the process that measured the memory of {phase}, {side}, ended with exit code {child.exitcode}; "
            "there may be too little memory for a second model"
        ) from None
    child.join()
    return int(found)


def _report_peak(sender: Any, phase: BenchPhase, side: str, settings: Settings, device: Device) -> None:
    model = build(settings, device)
    switch(model, side)
    run = step(model, phase, settings, device)
    run()  # loads and compiles every kernel
    if device.kind == "cpu":
        with contextlib.suppress(AttributeError):  # glibc's: gives freed memory back, so that it counts again
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): sets VmHWM back
        before = _status_bytes("VmRSS")
        run()
        sender.send(_status_bytes("VmHWM") - before)
    else:
        torch.cuda.reset_peak_memory_stats(device.torch_device)
        before = torch.cuda.memory_allocated(device.torch_device)
        run()
        sender.send(torch.cuda.max_memory_allocated(device.torch_device) - before)


def _status_bytes(name: str) -> int:
    """A field of /proc/self/status, which counts in KiB."""
    for row in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if row.startswith(f"{name}:"):
            return int(row.split()[1]) * 1024
    raise errors.DeviceError(f"/proc/self/status has no {name}")
