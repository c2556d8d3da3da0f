"""Arguments that several ops have, as the fields of a Call are annotated: a tensor, its dims and its dtype."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from griffin_kernels.contract import Destination, TensorSpec

Sequence = Annotated[Tensor, TensorSpec("B T D")]
"""Data of every step and channel."""

OptionalSequence = Annotated[Tensor | None, TensorSpec("B T D")]
"""The same where it may be left out."""

Gates = Annotated[Tensor, TensorSpec("Ba Ta D", "parameter")]
"""Gates of every step and channel; Ta is 1 where all steps have the same, and Ba where all rows have those."""

Channels = Annotated[Tensor, TensorSpec("D", "parameter")]
"""A parameter of every channel."""

OptionalChannels = Annotated[Tensor | None, TensorSpec("D", "parameter")]
"""The same where it may be left out."""

State = Annotated[Tensor | None, TensorSpec("N D", "state")]
"""A recurrence's state before the first step, or the gradient of the last one."""

Resets = Annotated[Tensor | None, TensorSpec("B T", "bool")]
"""Where the state before a step counts as 0."""

Positions = Annotated[Tensor | None, TensorSpec("B T", "int64", least=0)]
"""Each token's position in its document."""

Tokens = Annotated[Tensor, TensorSpec("B D")]
"""One step of every row."""

TokenPositions = Annotated[Tensor | None, TensorSpec("B", "int64", least=0)]
"""The token's position in the document of each row."""

Slots = Annotated[Tensor | None, TensorSpec("B", "int64")]
"""Which row of a pool of states belongs to each row, and which its new state is for; see ``ops/_slots.py``."""

Token = Annotated[Tensor | None, Destination("y")]
"""Where the output y is written."""

Offsets = Annotated[Tensor | None, TensorSpec("N+1", "int32")]
"""Where packed sequences begin, and the end of the last one."""

Starts = Annotated[Tensor, TensorSpec("N", "int64")]
"""The row of a pool that each sequence starts from; see ``ops/_keep.py``."""

Keep = Annotated[Tensor, TensorSpec("B T", "int64")]
"""The row of a pool that the state after each step is written to; see ``ops/_keep.py``."""

States = Annotated[Tensor, TensorSpec("P D", "accumulator")]
"""A pool of a recurrence's states."""
