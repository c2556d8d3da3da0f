"""Addresses of tensors for native code. It believes what it is told, so that every buffer is checked before.

Memory that is not the CPU's, or less of it than the code will touch, would be a read or write outside of the buffer;
here it is an error. A check costs some 0.1 us, which is why it counts bytes and not elements of a dtype.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from griffin_kernels import errors


def address(name: str, tensor: Tensor | None, size: int) -> int:
    """Where the ``size`` bytes of a contiguous tensor begin; 0 for None.

    Raises DeviceMismatchError or ShapeError, naming the buffer, where it is not on the CPU or has another size.
    """
    if tensor is None:
        return 0
    at = tensor.data_ptr()
    # a tensor on meta has the address 0; one on a GPU is refused when the inputs of a call are bound
    if tensor.nbytes != size or not (at or size == 0):
        _refuse(name, tensor, size)
    return at


def strided(name: str, tensor: Tensor | None, size: int) -> tuple[int, int, int]:
    """(address, stride of the first dim, of the second) of a tensor whose elements take ``size`` bytes.

    Zeros for None. Raises as ``address`` does.
    """
    if tensor is None:
        return 0, 0, 0
    at = tensor.data_ptr()
    if tensor.nbytes != size or not (at or size == 0):
        _refuse(name, tensor, size)
    strides = tensor.stride()
    return at, strides[0], strides[1]


def _refuse(name: str, tensor: Tensor, size: int) -> NoReturn:
    if tensor.device.type != "cpu":
        raise errors.DeviceMismatchError(f"{name} is on {tensor.device}; native code works on the CPU's memory")
    raise errors.ShapeError(
        f"{name} is {tensor.dtype} {list(tensor.shape)}, which is {tensor.nbytes} bytes; native code expects {size}"
    )
