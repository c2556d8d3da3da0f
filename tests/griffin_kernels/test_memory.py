"""The pool of large CPU outputs: reused only when free, bounded, aligned, and never in the way of NaN-filling."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch

from griffin_kernels import memory, poison

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pool is for Linux")

SHAPE = (3, 1024, 1024)


@pytest.fixture(autouse=True)
def empty_pool():
    memory.release()
    yield
    memory.release()


def test_block_is_reused_after_its_last_tensor_died_and_not_before():
    first = memory.empty(SHAPE, torch.float32)
    second = memory.empty(SHAPE, torch.float32)
    assert first.data_ptr() != second.data_ptr()
    address, view = first.data_ptr(), first[1:, ::2]
    del first
    assert memory.empty(SHAPE, torch.float32).data_ptr() not in (address, second.data_ptr())
    memory.release()
    del view
    assert memory.empty(SHAPE, torch.float32).data_ptr() == address


def test_tensor_is_plain_contiguous_and_aligned():
    tensor = memory.empty(SHAPE, torch.bfloat16)
    assert type(tensor) is torch.Tensor
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (SHAPE, torch.bfloat16, True)
    assert tensor.data_ptr() % 2**21 == 0
    tensor.fill_(1.5)
    assert tensor.clone().sum(dtype=torch.float64).item() == 1.5 * tensor.numel()


@pytest.mark.parametrize("count", [2**19 - 1, 2**19, 2**20 + 3, 2**22 - 1, 2**22])
def test_every_size_can_be_filled_to_its_last_byte(count):
    tensors = [memory.empty((count,), torch.uint8).fill_(value) for value in (1, 2, 3)]
    assert [int(t.min()) for t in tensors] == [int(t.max()) for t in tensors] == [1, 2, 3]


def test_gradient_graph_keeps_a_block_alive():
    tensor = memory.empty(SHAPE, torch.float32).fill_(2.0).requires_grad_()
    product = (tensor * tensor).sum()
    del tensor
    gc.collect()
    memory.empty(SHAPE, torch.float32).fill_(7.0)
    product.backward()
    assert product.item() == 4.0 * 3 * 2**20


def test_idle_blocks_are_bounded(monkeypatch):
    monkeypatch.setattr(memory, "MOST_IDLE_BYTES", 40 * 2**20)
    held = [memory.empty(SHAPE, torch.float32) for _ in range(5)]
    held.clear()
    assert 0 < sum(map(len, memory._POOL.idle)) <= 40 * 2**20


def test_much_smaller_tensor_takes_no_large_block():
    large = memory.empty((8, *SHAPE[1:]), torch.float32)
    address = large.data_ptr()
    del large
    assert memory.empty((2, *SHAPE[1:]), torch.float32).data_ptr() != address


def test_poisoned_memory_is_nan_and_bypasses_the_pool():
    with poison.poisoned():
        assert memory.empty(SHAPE, torch.float32).isnan().all()
    assert memory._POOL.idle == []


def test_threads_never_share_a_block():
    clashes = []

    def work(value):
        for _ in range(50):
            tensor = memory.empty(SHAPE, torch.float32)
            tensor[:, 0] = value
            if not (tensor[:, 0] == value).all():
                clashes.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
