"""Runs every variant, public op and model under settings of torch that are the user's, and compares bit by bit.

A process of its own, because a buffer of the wrong size ends in one that is killed. Prints a line for each difference.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import tests.conftest  # noqa: F401  # Triton's interpreter, before any kernel is imported
from griffin_kernels import catalog, dispatch, verify
from griffin_kernels.functional._bridge import registered
from griffin_kernels.models import Griffin, preset
from tests.everywhere import device_of, running


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default device meta": lambda: default_device("meta"),
    "with torch.device(meta)": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
    "no gradients": torch.no_grad,
}

Run = Callable[[], list[Tensor]]


def variants(backends: tuple[str, ...]) -> Iterator[tuple[str, Run]]:
    """Every variant of some backends, in one plain case and, but for Triton's, in one with documents or sequences.

    Those of torch.compile are left out: torch traces them anew for other defaults, and what it traces names both.
    """
    for op in catalog.ops().values():
        small = [case for case in op.cases_tagged("smoke", "edge") if case.dtype == "float32"]
        cases = [small[0], *[case for case in small if {"packed", "segmented", "reset"} & set(case.flags)][:1]]
        for variant in catalog.variants(op.name).values():
            if variant.backend not in backends:
                continue
            for case in cases[: 1 if variant.backend == "triton" else 2]:
                if variant.reject(case, device_of(variant.backend), variant.config()) is None:
                    inputs = op.make_inputs(case, torch.device("cpu"), 0)
                    yield f"{variant.key} {case.key}", lambda op=op, v=variant, i=inputs: run_variant(op, v, i)


def run_variant(op, variant, inputs) -> list[Tensor]:
    given = inputs | {name: verify.copy_of(inputs[name]) for name in op.in_place}
    with running(variant):
        outputs = dispatch.call(op.name, op.call(**given))
    return [out.detach() for out in outputs if out is not None]


def public() -> Iterator[tuple[str, Run]]:
    """Every public op as users call it, with gradients where it has them."""
    for name, op in catalog.ops().items():
        if op.forward is not None:
            continue
        inputs = op.make_inputs(op.cases_tagged("smoke")[0], torch.device("cpu"), 0)
        yield f"{name}, public", lambda op=op, inputs=inputs: run_public(op, registered(op.name), inputs)


def run_public(op, call, inputs) -> list[Tensor]:
    given = {name: verify.copy_of(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    if op.in_place:
        outputs = call(*op.call(**given))
        return [*(outputs if isinstance(outputs, tuple) else (outputs,)), *(given[name] for name in op.in_place)]
    leaves = [t.requires_grad_() for t in given.values() if isinstance(t, Tensor) and t.is_floating_point()]
    with torch.enable_grad():
        outputs = call(*op.call(**given))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum(out.double().sum() for out in outputs if out is not None and out.requires_grad)
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [t.detach() for t in (*outputs, *gradients) if t is not None]


def models() -> Iterator[tuple[str, Run]]:
    """A model's forward pass, one token after it, and its gradients."""
    for name in ("griffin-tiny", "hawk-tiny", "mqa-tiny"):
        torch.manual_seed(0)
        model = Griffin(preset(name), device="cpu", dtype=torch.float32)
        tokens = torch.randint(256, (2, 19), device="cpu")
        yield name, lambda model=model, tokens=tokens: run_model(model, tokens)


def run_model(model, tokens) -> list[Tensor]:
    with torch.no_grad():
        logits, cache = model(tokens)
        following, _ = model(tokens[:, :1], cache=cache)
    with torch.enable_grad():
        model.zero_grad()
        model(tokens)[0].float().logsumexp(-1).sum().backward()
    return [logits, following, *(p.grad for p in model.parameters())]


KINDS: dict[str, Callable[[], Iterator[tuple[str, Run]]]] = {
    "eager": lambda: variants(("eager", "numba")),
    "triton": lambda: variants(("triton",)),
    "public": public,
    "models": models,
}


def differences(kinds: list[str], settings: list[str]) -> Iterator[str]:
    for kind in kinds:
        for name, run in KINDS[kind]():
            usual = run()
            for setting in settings:
                print(f"{name} with {setting}", file=sys.stderr, flush=True)
                try:
                    with SETTINGS[setting]():
                        outputs = run()
                except Exception as error:
                    yield f"{name} with {setting}: {type(error).__name__}: {error}"
                    continue
                for index, (before, after) in enumerate(zip(usual, outputs, strict=True)):
                    if before.dtype != after.dtype or before.device != after.device or not torch.equal(before, after):
                        yield f"{name} with {setting}: output {index} is {after.dtype} on {after.device} and differs"
                        break


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kinds, settings = sys.argv[1].split(","), sys.argv[2].split(",")
    for line in differences(kinds, settings):
        print(line, flush=True)
