"""Cross-entropy in chunks: against the one that holds all logits, in float64; what it holds; transforms; refusals."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from griffin_kernels import errors
from griffin_kernels.models import Griffin, linear_cross_entropy, preset

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")

ROWS, WIDTH, WORDS = (3, 7), 12, 50

# sums of at most 50 * 12 products in another order, in float64
EXACT = 1e-13


def naive(hidden, weight, targets, softcap=None, **options):
    """It holds all logits."""
    logits = functional.linear(hidden, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wide = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    loss = functional.cross_entropy(wide, targets.flatten(), **options)
    return loss.view(targets.shape) if options.get("reduction") == "none" else loss


def given(dtype=torch.float64, seed=0):
    """hidden, weight and targets, three of which are ignored; logits are about 3, so that a softcap of 5 bends them."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(WORDS, ROWS, generator=generator)
    targets[0, 2], targets[2, :2] = -100, -100
    return hidden, weight, targets


def results(function, hidden, weight, targets, **options):
    """The loss and its gradients, of which every token's has a weight of its own."""
    loss = function(hidden, weight, targets, **options)
    weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return [loss, *torch.autograd.grad(loss, (hidden, weight), weights)]


def close(got, want, tolerance):
    for name, mine, theirs in zip(("loss", "hidden", "weight"), got, want, strict=True):
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert mine.shape == theirs.shape and error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 1, 7, 49, 50, 1000])
def test_loss_and_gradients_are_those_of_all_logits(softcap, reduction, chunk):
    options = {"softcap": softcap, "reduction": reduction}
    got = results(linear_cross_entropy, *given(), chunk=chunk, **options)
    want = results(naive, *given(), **options)
    close(got, want, EXACT)
    assert [tensor.dtype for tensor in got] == [torch.float64] * 3


@pytest.mark.parametrize("index", [-100, -1, 3, 10**6])
def test_any_index_may_be_ignored(index):
    hidden, weight, targets = given()
    targets[targets == -100] = index
    options = {"ignore_index": index, "reduction": "none"}
    got = results(linear_cross_entropy, hidden, weight, targets, chunk=16, **options)
    close(got, results(naive, hidden, weight, targets, **options), EXACT)
    assert not got[0][targets == index].any()


def test_only_ignored_targets_and_no_tokens_at_all():
    hidden, weight, targets = given()
    nothing = torch.full_like(targets, -100)
    assert linear_cross_entropy(hidden, weight, nothing).isnan() and naive(hidden, weight, nothing).isnan()
    loss, *gradients = results(linear_cross_entropy, hidden, weight, nothing, reduction="sum")
    assert loss == 0 and not any(gradient.any() for gradient in gradients)
    empty = linear_cross_entropy(hidden[:, :0], weight, targets[:, :0], reduction="sum")
    assert empty == 0 and empty.dtype == torch.float64


@pytest.mark.parametrize("trains", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted(trains):
    tensors, want = given(), results(naive, *given(), softcap=5.0)
    for tensor, wanted in zip(tensors, trains, strict=False):
        tensor.requires_grad_(wanted)
    linear_cross_entropy(*tensors, softcap=5.0, chunk=7).backward()
    for tensor, wanted, gradient in zip(tensors, trains, want[1:], strict=False):
        assert (tensor.grad is not None) == wanted
        if wanted:
            torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_other_dtypes_against_float64(dtype, softcap):
    """A logit of about 3, in length 24 at most, is rounded once; its gradient too, and results once more."""
    narrow = given(dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in narrow[:2]]
    got = results(linear_cross_entropy, *narrow, softcap=softcap, chunk=7)
    want = results(naive, *wide, narrow[2], softcap=softcap)
    assert [tensor.dtype for tensor in got] == [torch.float32, dtype, dtype]
    close(got, want, 10 * torch.finfo(dtype).eps)


def test_a_float32_weight_beside_bfloat16_data_has_a_float32_gradient():
    hidden, weight, targets = given(torch.bfloat16)
    wide = weight.detach().float().requires_grad_()  # rounds to the same
    got = results(linear_cross_entropy, hidden, wide, targets, chunk=7)
    assert [tensor.dtype for tensor in got] == [torch.float32, torch.bfloat16, torch.float32]
    close(got, results(linear_cross_entropy, hidden, weight, targets, chunk=7), 4 * torch.finfo(torch.bfloat16).eps)


def test_autocast_multiplies_in_its_dtype():
    got, wants = [], []
    for function, found in ((linear_cross_entropy, got), (naive, wants)):
        hidden, weight, targets = given(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(hidden, weight, targets, softcap=5.0)
        found += [loss, *torch.autograd.grad(loss, (hidden, weight))]  # outside of it, as training does
    close(got, wants, 4 * torch.finfo(torch.bfloat16).eps)
    assert [tensor.dtype for tensor in got] == [torch.float32] * 3
    exact = results(linear_cross_entropy, *given(torch.float32), softcap=5.0)
    assert (got[0] - exact[0]).abs() > 1e-5  # it did round


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing(reentrant):
    hidden, weight, targets = given()

    def loss(hidden, weight):
        return linear_cross_entropy(torch.sin(hidden), weight, targets, softcap=5.0, chunk=7)

    want = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    checkpoint(loss, hidden, weight, use_reentrant=reentrant).backward()
    assert torch.equal(hidden.grad, want[0]) and torch.equal(weight.grad, want[1])


@pytest.mark.parametrize("ambient", [None, torch.bfloat16])
def test_compiled(ambient):
    def loss(hidden, weight, targets):
        return linear_cross_entropy(hidden, weight, targets, softcap=5.0, chunk=20)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for function in (loss, compiled):
        hidden, weight, targets = given(torch.float32)
        with torch.autocast("cpu", ambient, enabled=ambient is not None):
            value = function(hidden, weight, targets)
        found.append([value, *torch.autograd.grad(value, (hidden, weight))])
    close(found[1], found[0], 1e-6)


def test_second_derivatives_are_refused():
    hidden, weight, targets = given()
    with pytest.raises(errors.TransformError, match="no second derivatives; torch"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        found = [out] if isinstance(out, torch.Tensor) else out if isinstance(out, (tuple, list)) else []
        self.elements = max([self.elements, *(t.numel() for t in found if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("chunk", [1, 7])
def test_no_more_logits_than_a_chunk_are_held(chunk):
    hidden, weight, targets = given()
    with Largest() as held:
        linear_cross_entropy(hidden, weight, targets, softcap=5.0, chunk=chunk).backward()
    assert held.elements == max(weight.numel(), hidden.numel(), 21 * chunk) < 21 * WORDS
    with Largest() as held:
        naive(*given(), softcap=5.0).backward()
    assert held.elements == 21 * WORDS


def test_many_logits_are_cut_without_being_told(monkeypatch):
    from griffin_kernels.models import loss

    monkeypatch.setattr(loss, "_AT_ONCE", 2**14)
    weight = torch.randn(700, 3, dtype=torch.float64)
    hidden, targets = torch.randn(64, 3, dtype=torch.float64), torch.randint(700, (64,))
    with Largest() as held:
        got = linear_cross_entropy(hidden, weight, targets)
    assert held.elements == 64 * 256
    torch.testing.assert_close(got, naive(hidden, weight, targets))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_loss_of_a_model_and_all_its_gradients(softcap):
    """Embedding and output matrix are one; documents, and targets that are ignored."""
    torch.manual_seed(0)
    model = Griffin(replace(preset("griffin-tiny"), logits_softcap=softcap), dtype=torch.float64)
    tokens, targets = torch.randint(256, (2, 3, 25))
    targets[0, :4], targets[2, 9] = -100, -100
    positions = torch.cat([torch.arange(11), torch.arange(14)]).repeat(3, 1)
    logits, _ = model(tokens, positions, return_cache=False)
    want = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    gradients = torch.autograd.grad(want, list(model.parameters()))
    loss = model.loss(tokens, targets, positions)
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=EXACT, atol=0)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        off = (parameter.grad - gradient).norm() / gradient.norm()
        assert off <= 1e-12, (name, off)  # through three blocks
    every = model.loss(tokens, targets, positions, reduction="none")
    assert every.shape == targets.shape and torch.allclose(every.sum() / (targets != -100).sum(), want)


def test_the_loss_of_a_model_compiles_without_a_break():
    torch.manual_seed(0)
    model = Griffin(replace(preset("griffin-tiny"), block_types=("recurrent", "local_attention"), logits_softcap=2.0))
    tokens, targets = torch.randint(256, (2, 3, 25))
    found = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        value = loss(tokens, targets)
        found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for got, want in zip(*reversed(found), strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@torch.no_grad()
def test_hidden_states_are_what_logits_are_made_of():
    torch.manual_seed(0)
    model = Griffin(preset("griffin-tiny"), dtype=torch.float64)
    tokens = torch.randint(256, (2, 20))
    want, cache = model(tokens)
    hidden, same = model.hidden(tokens)
    assert hidden.shape == (2, 20, model.config.width) and same.tokens == cache.tokens == 20
    assert torch.equal(functional.linear(hidden, model.embedding.weight), want)
    last, none = model.hidden(tokens, last_only=True, return_cache=False)
    assert none is None and torch.equal(last, hidden[:, -1:])
    assert model.hidden(tokens[:, :0])[0].shape == (2, 0, model.config.width)


BAD = {
    "hidden is a list": (errors.ArgumentError, {"hidden": [1.0]}),
    "weight is a NoneType": (errors.ArgumentError, {"weight": None}),
    "weight: shape [50, 11], expected [V, D]": (errors.ShapeError, {"weight": torch.ones(50, 11)}),
    "targets: shape [21], expected [3, 7]": (errors.ShapeError, {"targets": torch.zeros(21, dtype=torch.int64)}),
    "targets: dtype torch.float64": (errors.DtypeError, {"targets": torch.zeros(3, 7, dtype=torch.float64)}),
    "hidden: dtype torch.int64": (errors.DtypeError, {"hidden": torch.ones(3, 7, 12, dtype=torch.int64)}),
    "weight: on meta, but hidden is on cpu": (errors.DeviceMismatchError, {"weight": torch.ones(9, 12, device="meta")}),
    "targets: 50, expected 0 to 49, or ignore_index=-100": (
        errors.ArgumentError,
        {"targets": torch.full((3, 7), 50)},
    ),
    "no reduction 'average'; there are mean, sum, none": (errors.ArgumentError, {"reduction": "average"}),
    "no implementation 'fused'; there are chunked, liger, cut": (errors.ArgumentError, {"implementation": "fused"}),
    "softcap is 0, expected a finite number above 0": (errors.ArgumentError, {"softcap": 0}),
    "chunk is 0, expected at least 1": (errors.ArgumentError, {"chunk": 0}),
    "needs liger-kernel: pip install liger-kernel": (errors.ArgumentError, {"implementation": "liger"}),
    "needs cut-cross-entropy: pip install cut-cross-entropy": (errors.ArgumentError, {"implementation": "cut"}),
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message, monkeypatch):
    for package in ("liger_kernel", "liger_kernel.transformers", "cut_cross_entropy"):
        monkeypatch.setitem(sys.modules, package, None)  # not installed, wherever this runs
    kind, wrong = BAD[message]
    arguments = dict(zip(("hidden", "weight", "targets"), given(), strict=True)) | wrong
    with pytest.raises(kind) as caught:
        linear_cross_entropy(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_target_out_of_range_that_is_not_checked_makes_its_loss_nan():
    """As on a GPU, whose values are not looked at."""
    from griffin_kernels.models.loss import _Chunked

    hidden, weight, targets = given()
    targets[1, 1] = WORDS
    losses = _Chunked.apply(hidden.flatten(0, 1), weight, targets.flatten(), None, -100, torch.float64, 7)
    assert losses.isnan().nonzero().tolist() == [[8]]


@pytest.fixture
def others(monkeypatch):
    """Stubs with the signatures of liger-kernel 0.8.5 and cut-cross-entropy 25.1.1: how they were called."""
    calls = []

    class LigerFusedLinearCrossEntropyLoss:
        def __init__(self, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
                     reduction="mean", softcap=None, return_z_loss=False):  # fmt: skip
            self.options = ignore_index, reduction, softcap

        def __call__(self, lin_weight, _input, target, bias=None):
            calls.append(("liger", _input, lin_weight, target, *self.options))
            return _input.sum()

    def linear_cross_entropy(e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False):
        calls.append(("cut", e, c, targets, ignore_index, reduction, softcap))
        return e.sum()

    liger, inside, cut = (types.ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers", "cut"))
    inside.LigerFusedLinearCrossEntropyLoss, cut.linear_cross_entropy = (
        LigerFusedLinearCrossEntropyLoss,
        linear_cross_entropy,
    )
    names = ("liger_kernel", "liger_kernel.transformers", "cut_cross_entropy")
    for name, module in zip(names, (liger, inside, cut), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("implementation", ["liger", "cut"])
def test_other_implementations_are_called_as_they_are_documented(others, implementation):
    with FakeTensorMode():
        hidden = torch.empty(3, 7, 12, device="cuda", dtype=torch.bfloat16)
        weight, targets = torch.empty(50, 12, device="cuda"), torch.empty(3, 7, device="cuda", dtype=torch.int64)
        loss = linear_cross_entropy(
            hidden, weight, targets, softcap=30.0, ignore_index=-1, reduction="sum", implementation=implementation
        )
    (called,) = others
    assert loss.dim() == 0 and called[0] == implementation and called[4:] == (-1, "sum", 30.0)
    assert [tuple(tensor.shape) for tensor in called[1:4]] == [(21, 12), (50, 12), (21,)]
    assert [tensor.dtype for tensor in called[1:4]] == [torch.bfloat16, torch.bfloat16, torch.int64]


@pytest.mark.parametrize("implementation", ["liger", "cut"])
def test_other_implementations_want_a_gpu(others, implementation):
    with pytest.raises(errors.ArgumentError, match=f'"{implementation}" runs on a GPU, and hidden is on cpu: use "chu'):
        linear_cross_entropy(*given(), implementation=implementation)
    assert not others
