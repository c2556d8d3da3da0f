"""References in pieces: the same numbers as in one, in a memory that a 16 GB card has."""

from __future__ import annotations

import math
import statistics
import weakref

import msgspec
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from griffin_kernels import catalog, pieces
from griffin_kernels.contract import ROWS
from griffin_kernels.ops.rg_lru import op as rg_lru
from tuning.static.describe import meta_call

CPU = torch.device("cpu")
OPS = list(catalog.ops().values())
CARD = 16 * 10**9
"""Bytes of the smallest card that the default cases are meant for."""


class Live(TorchDispatchMode):
    """Bytes of tensors that operations made and that are still there, and the most that there were at once."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakKeyDictionary()
        for tensor in known:
            self.seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            # asked for what is not finite: tensors without values count as finite
            return torch.empty(0, args[0].dim(), dtype=torch.int64, device="cpu")
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                    self.seen[storage] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
            self.most = max(self.most, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


def small(op):
    """Cases that are tiny in every dim, of every flag; one dtype of each, as all are taken to float64."""
    cases = [case for case in op.cases if case.tag != "bench"]
    return list({(*case.dims.items(), case.flags, case.data): case for case in cases}.values())


def in_memory(op, inputs, parts: int) -> int:
    """Bytes of a device on which a call comes in so many pieces."""
    total = sum(pieces._bytes(op, inputs, torch.float64))
    return math.ceil(total * pieces.WORKSPACE / (pieces.SHARE * parts))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_pieces_give_what_the_whole_gives(op):
    """To rounding: sums over pieces are added in another order, products of other shapes may be too."""
    counts = []
    for case in small(op):
        inputs = op.make_inputs(case, CPU, 0)
        whole = op.reference(op.call(**pieces.in_dtype(torch.float64, inputs)))
        counts.append(len(pieces.cuts(op, inputs, 7)))
        got = pieces.reference(op, inputs, memory_bytes=in_memory(op, inputs, 7))
        for name, mine, theirs in zip(op.outputs, got, whole, strict=True):
            assert (mine is None) == (theirs is None), (case.key, name)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11, msg=f"{case.key} {name}")
    assert statistics.median(counts) > 1 and max(counts) > 4, counts


def test_every_op_says_how_it_splits():
    for op in OPS:
        dims = {dim for spec in (*op.inputs.values(), *op.outputs.values()) for dim in spec.names}
        assert op.splits[0] == ROWS, op.name
        assert all(set(split) <= dims for split in op.splits[1:]), op.name


def test_packed_rows_and_slots_are_never_taken_apart():
    packed = next(case for case in rg_lru.OP.cases if "packed" in case.flags)
    inputs = rg_lru.OP.make_inputs(packed, CPU, 0)
    assert {name for place in pieces.cuts(rg_lru.OP, inputs, 100) for name in place} == {"H", "D"}
    for op in (op for op in OPS if "slots" in op.inputs):
        case = next(c for c in op.cases if "slots" in c.data or not op.inputs["slots"].optional)
        inputs = op.make_inputs(case, CPU, 0)
        assert inputs["slots"] is not None
        found = pieces.cuts(op, inputs, 100)
        assert not {"B", "P"} & {name for place in found for name in place}, op.name


def default_cases(op):
    """Those that ``griffin tune`` measures on a GPU."""
    return [case for case in op.cases_tagged("bench") if case.where != "cpu" and not case.thorough]


def needed(op, case, memory: int) -> int:
    """Bytes in use at most while a case is tuned on a device of ``memory`` bytes, its reference in pieces.

    With the inputs and the results that stay: a piece at its peak, or a call that is checked, whose inputs are kept
    twice, once more what it may change in place, and its outputs.
    """
    inputs = meta_call(op, case)._asdict()
    given = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    _, results = pieces._bytes(op, inputs, torch.float64)
    kept = results if results <= pieces.KEPT * memory else 0
    parts = pieces.parts(op, inputs, torch.float64, memory)
    places = pieces.cuts(op, inputs, parts)
    biggest = max(sum(pieces._bytes(op, pieces.piece(op, inputs, place), torch.float64)) for place in places[:1])
    return given + kept + max(pieces.WORKSPACE * biggest, 2 * given + results // 8 * case.bytes_per_element())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_default_case_tunes_on_a_card_of_16_gb(op):
    for case in default_cases(op):
        assert needed(op, case, CARD) < 0.9 * CARD, case.key


@pytest.mark.parametrize("name", ["linear_scan", "linear_scan_bwd"])
def test_a_million_steps_are_tuned_on_80_gb(name):
    op = catalog.op(name)
    (case,) = (case for case in op.cases if case["T"] == 2**20)
    assert needed(op, case, 80 * 10**9) < 72 * 10**9
    assert needed(op, case, 80 * 10**9) > 30 * 10**9  # it is not small: the pieces matter


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_piece_needs_what_is_said(op):
    """The largest default case, its steps cut to 256 where a reference takes them one by one, counted on meta tensors.

    The card is cut as the steps are. A call that is not in pieces may need all that it would have been allowed.
    """
    case = max(default_cases(op), key=lambda case: op.cost(case).bytes_total)
    memory = CARD
    if "T" in case.dims and not op.name.startswith("local_attention"):
        memory = CARD * 256 // case["T"]
        case = msgspec.structs.replace(case, dims={n: 256 if n == "T" else size for n, size in case.dims.items()})
    inputs = meta_call(op, case)._asdict()
    given = [value for value in inputs.values() if isinstance(value, Tensor)]
    with Live(*given) as live:
        outputs = pieces.reference(op, inputs, memory_bytes=memory)
    _, results = pieces._bytes(op, inputs, torch.float64)
    assert live.most <= results + pieces.SHARE * memory, f"{live.most / 2**30:.2f} GiB"
    parts = pieces.parts(op, inputs, torch.float64, memory)
    if op.name in ("rg_lru_bwd", "recurrent_block_bwd", "local_attention_bwd"):
        assert parts > 1
    storages = {out.untyped_storage() for out in outputs if out is not None}
    assert live.now == sum(storage.nbytes() for storage in storages)  # nothing else is left, or was not counted
