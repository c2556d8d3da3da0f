"""Random inputs of the ops' cases: drawn in float32 on the CPU, so that every device and dtype gets the same ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, accumulator
from griffin_kernels.ops import _slots


class Draws:
    """Draws for one case from one seed, in the order in which they are asked for."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 on the CPU."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def uniform(self, *shape: int) -> Tensor:
        """float32 on the CPU in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def data(self, values: Tensor) -> Tensor:
        """In the case's dtype, on its device."""
        return values.to(self.device, self.case.torch_dtype)

    def wide(self, values: Tensor) -> Tensor:
        """In the accumulator's dtype, on the case's device."""
        return values.to(self.device, accumulator(self.case.torch_dtype))

    def parameter(self, values: Tensor) -> Tensor:
        """In the dtype that the case's parameters have, on its device."""
        return self.wide(values) if self.case.wide_parameters else self.data(values)

    def placed(self, values: Tensor, dims: int = 3, parameter: bool = False) -> Tensor:
        """As ``data`` or ``parameter``, laid out as the case's ``strided`` asks for where there are so many dimensions.

        That is every second element of a buffer whose outer dimensions are swapped: no stride is 1, batch is not
        outermost, and what lies between is nobody's.
        """
        values = self.parameter(values) if parameter else self.data(values)
        if "strided" not in self.case.data or values.dim() < dims:
            return values
        outer = min(1, values.dim() - 2)
        shape = values.transpose(0, outer).shape
        view = values.new_full((*shape[:-1], 2 * shape[-1]), math.nan).transpose(0, outer)[..., ::2]
        return view.copy_(values)

    def pool(self, *shape: int, wide: bool = True) -> Tensor:
        """Standard normal states, in the accumulator's dtype if ``wide``; ``strided`` rows lie apart, as in pages."""
        values = self.normal(*shape)
        values = self.wide(values) if wide else self.data(values)
        if "strided" not in self.case.data:
            return values
        pages = values.new_full((shape[0], math.prod(shape[1:]) + 24), math.nan)
        return pages[:, 8:-16].view(shape).copy_(values)

    def offsets(self, steps: int | None = None, *, first_too: bool = False) -> Tensor:
        """int32 [N+1]: N packed sequences of random lengths in ``steps``, which are the case's unless given.

        The last one is empty where the case's data say so, and with ``first_too`` the first one.
        """
        time = self.case["T"] if steps is None else steps
        shape = (self.case["N"] - 1,)
        drawn = torch.randint(0, time + 1, shape, generator=self.generator, dtype=torch.int64, device="cpu")
        cuts = drawn.sort().values
        if "empty_sequence" in self.case.data:
            cuts[-1] = time
            if first_too:
                cuts[0] = 0
        return torch.tensor([0, *cuts.tolist(), time], dtype=torch.int32, device=self.device)

    def positions(self, steps: int) -> Tensor:
        """int64 [B, steps]: several documents a row; odd rows go on with an earlier one, at position 3."""
        rows = []
        for row, begins in enumerate((self.uniform(self.case["B"], steps) < min(0.1, 4 / steps)).tolist()):
            position, positions = 3 if row % 2 else 0, []
            for begin in begins:
                position = 0 if begin else position
                positions.append(position)
                position += 1
            rows.append(positions)
        return torch.tensor(rows, dtype=torch.int64, device=self.device).reshape(self.case["B"], steps)

    def decoding(self) -> Inputs:
        """Positions from 0 on, so that some documents have just begun, and slots; each where the case's data ask.

        pad_zero: row 0 of the pool pads. dst_slots: new states go to other rows than the old ones came from.
        """
        batch, data = self.case["B"], self.case.data
        pool, pad = self.case["P"], 0 if "pad_zero" in data else -1
        slots = _slots.make(batch, pool, self.generator, pad) if "slots" in data else None
        others = _slots.make_others(slots, pool, pad) if slots is not None and "dst_slots" in data else None
        positions = torch.arange(batch, device=self.device, dtype=torch.int64) if "positions" in data else None
        found: Inputs = {"positions": positions, "slots": slots, "dst_slots": others}
        return {name: None if v is None else v.to(self.device) for name, v in found.items()} | {"pad_slot": pad}

    def pooled(self, state: Tensor, slots: Tensor | None) -> Tensor:
        """``state`` [B, ...] in a pool of P rows at its slots; each in a page of its own where the case's data ask.

        A page is longer than the row, as where an engine keeps another state beside it; the rest of it is NaN.
        """
        if slots is not None:
            filled = self.normal(self.case["P"], *state.shape[1:]).to(state.device, state.dtype)
            state = _slots.updated(filled, slots, state)
        if "paged" not in self.case.data:
            return state
        row, whole = math.prod(state.shape[1:]), 8 * math.prod(state.shape[1:])
        pages = state.new_full((state.shape[0], whole), math.nan)
        return pages[:, row : 2 * row].view(state.shape).copy_(state)
