"""What a first call says and does: warnings at the user's line, a kernel that does not fit, a graph being captured."""

from __future__ import annotations

import dataclasses
import inspect
import warnings

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, launch
from griffin_kernels.contract import NoConfig
from griffin_kernels.functional._bridge import registered
from griffin_kernels.models import Griffin, preset
from tests.calls import CPU, DIFFERENTIABLE, leaves, operator, small

X, A = torch.randn(1, 8, 4), torch.rand(1, 8, 4)


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    dispatch.refresh()
    dispatch._STATE.too_large.clear()
    yield
    dispatch._STATE.too_large.clear()
    dispatch.refresh()


def here():
    return inspect.currentframe().f_back.f_lineno


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_forward_call_speaks_for_both_directions(name):
    op = catalog.op(name)
    call = op.call(**leaves(op.make_inputs(small(name)[0], CPU, 0)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        outputs, line = registered(name)(*call), here()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs[0].sum().backward()
    ours = [warning for warning in seen if issubclass(warning.category, errors.UntunedWarning)]
    assert [(warning.filename, warning.lineno) for warning in ours] == [(__file__, line)]
    assert f"{name} and {name}_bwd are not tuned near" in str(ours[0].message)


def test_warnings_as_errors_stop_the_first_forward_call_and_nothing_else():
    x = X.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.UntunedWarning)
        with pytest.raises(errors.UntunedWarning, match="linear_scan and linear_scan_bwd are not tuned"):
            griffin_kernels.linear_scan(x, A)
        griffin_kernels.linear_scan(x, A)[0].sum().backward()
    assert x.grad is not None


def test_a_gradient_wanted_later_is_spoken_of_in_its_forward_call():
    with pytest.warns(errors.UntunedWarning, match="linear_scan is not tuned"):
        griffin_kernels.linear_scan(X, A)
    with pytest.warns(errors.UntunedWarning, match="linear_scan_bwd is not tuned"):
        griffin_kernels.linear_scan(X[:, 1:].clone().requires_grad_(), A[:, 1:])


def test_the_line_through_compiled_code():
    function, inside = torch.compile(lambda x: griffin_kernels.linear_scan(x, A)[0], fullgraph=True), here()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _, line = function(X), here()
    (ours,) = [warning for warning in seen if issubclass(warning.category, errors.UntunedWarning)]
    assert ours.filename == __file__ and ours.lineno in (inside, line)


def test_the_line_through_a_model():
    model = Griffin(preset("griffin-tiny"))
    with warnings.catch_warnings(record=True) as seen, torch.no_grad():
        warnings.simplefilter("always")
        _, line = model(torch.zeros(1, 4, dtype=torch.int64)), here()
    ours = [warning for warning in seen if issubclass(warning.category, errors.UntunedWarning)]
    assert ours and {(warning.filename, warning.lineno) for warning in ours} == {(__file__, line)}


class TooLarge:
    """A kernel that needs more shared memory than there is."""

    __name__ = "too_large"

    def __getitem__(self, grid):
        from triton.runtime.errors import OutOfResources

        def start(**_):
            raise OutOfResources(86016, 65536, "shared memory")

        return start


def preferred(monkeypatch, op_name, before=0):
    """A variant of highest rank whose kernel does not fit, after ``before`` launches that do."""
    real = next(v for v in catalog.variants(op_name).values() if v.name.startswith("numba"))
    tries = []

    def run(call, config):
        tries.append(1)
        tensor = next(value for value in call if isinstance(value, torch.Tensor))
        fits = launch.TorchStep("fits", lambda: None)
        launch.run_all([fits] * before + [launch.Launch(TooLarge(), (1,), {"x": tensor}, {})])

    run.__module__ = real.run.__module__
    name = "triton.too_large"
    variant = dataclasses.replace(
        real,
        reject=lambda *_: None,
        name=name,
        run=run,
        config=NoConfig,
        axes={},
        rank=lambda case, device: 1000,
        launches=lambda *_: [],
    )
    variants, named = catalog.variants, catalog.variant
    monkeypatch.setattr(catalog, "variants", lambda op: variants(op) | ({name: variant} if op == op_name else {}))
    monkeypatch.setattr(catalog, "variant", lambda key: variant if key == variant.key else named(key))
    return variant, tries


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_a_kernel_that_does_not_fit_gives_way_once_and_for_all(monkeypatch):
    variant, tries = preferred(monkeypatch, "linear_scan")
    with pytest.warns(errors.FallbackWarning, match="needs 86016 of shared memory, the device has 65536") as seen:
        h, _ = griffin_kernels.linear_scan(X, A)
    told = [warning for warning in seen if warning.category is errors.FallbackWarning]
    assert [warning.filename for warning in told] == [__file__]
    assert h.isfinite().all() and len(tries) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.FallbackWarning)
        griffin_kernels.linear_scan(X, A)
        griffin_kernels.linear_scan(X[:, 1:], A[:, 1:])  # other lengths need as much
        dispatch.refresh()
        griffin_kernels.linear_scan(X, A)
    assert len(tries) == 1
    assert "86016" in griffin_kernels.explain("linear_scan", {"x": X, "a": A}).rejected[variant.name]
    with griffin_kernels.use(variant=variant.key), pytest.raises(errors.RejectedError, match="86016"):
        griffin_kernels.linear_scan(X, A)


@pytest.mark.filterwarnings(
    "ignore::griffin_kernels.errors.UntunedWarning", "ignore::griffin_kernels.errors.FallbackWarning"
)
def test_a_state_that_is_half_changed_is_said_to_be(monkeypatch):
    name = "temporal_conv1d_step"
    given = catalog.op(name).make_inputs(small(name)[0], CPU, 0)
    preferred(monkeypatch, name, before=1)
    with pytest.raises(errors.OutOfResourcesError, match="changed states before a launch failed"):
        operator(name)(**given)
    assert operator(name)(**given).isfinite().all()


@pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")
def test_a_first_call_inside_a_capture(monkeypatch):
    preferred(monkeypatch, "linear_scan")
    monkeypatch.setattr(dispatch.devices, "detect", lambda *_: dataclasses.replace(device.cpu(), kind="cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(errors.CaptureError, match="call it once with the same shapes before the capture"):
        griffin_kernels.linear_scan(X, A)
