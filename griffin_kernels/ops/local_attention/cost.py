"""What one local_attention costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.nearness import Nearness
from griffin_kernels.ops.rg_lru.cost import index_bytes

FLAGS = ("softcap", "segmented", "packed")
"""Properties of a call that look-up matches exactly."""

RIGHT = "right"
"""The flag of cases whose queries see keys after their own; how many is in their data, as in ``right16``."""


PACKED_KEYS = "packed_keys"
"""The flag of packed cases whose keys are packed apart from the queries, by cu_seqlens_k."""


NEAR = Nearness(exact_dims=("Hkv", "d"), free_dims=("N",), minor_flags=(RIGHT, PACKED_KEYS))
"""What look-up compares."""


def right_of(case: Case) -> int:
    """Keys after its own that a query sees at most."""
    found = [item.removeprefix(RIGHT) for item in case.data if item.startswith(RIGHT)]
    return int(found[0]) if found else 0


def visible_pairs(case: Case) -> int:
    """Query-key pairs of one head and row if each row is one document; of packed keys, if sequences are of one length.

    Queries are the last of the keys, or where they are more than keys these are the keys of the last queries.
    """
    rows = max(case["N"], 1) if PACKED_KEYS in case.flags else 1
    time, keys = -(-case["T"] // rows), -(-case["S"] // rows)
    with_own = min(time, keys)

    def pairs(length: int) -> int:
        """Of a sequence from its beginning: sum of min(i, W) over i = 1 .. length."""
        window = min(case["W"], length)
        return length * window - window * (window - 1) // 2

    def ahead(reach: int) -> int:
        """Sum of min(i, S) over i = 1 .. reach."""
        within = max(min(reach, keys), 0)
        return within * (within + 1) // 2 + max(reach - keys, 0) * keys

    right = min(right_of(case), max(with_own - 1, 0))
    # to the right: sum of min(i, right) over the i = 0 .. n - 1 keys that come after a query's own
    own = pairs(keys) - pairs(keys - with_own) + right * with_own - right * (right + 1) // 2
    # queries before the first key see what of ``right`` reaches it
    return rows * (own + ahead(right_of(case)) - ahead(right_of(case) - (time - with_own)))


def keys_within_reach(case: Case) -> int:
    """Keys of one head and row that some query sees; what lies before them need not be read."""
    return case["S"] if PACKED_KEYS in case.flags else min(case["S"], case["T"] + case["W"] - 1)


def offset_bytes(case: Case) -> int:
    """Bytes of segment_pos, cu_seqlens and cu_seqlens_k."""
    return index_bytes(case) + (4 * (case["N"] + 1) if PACKED_KEYS in case.flags else 0)


def attending(case: Case, pairs: int) -> dict[str, int]:
    """Operations of attention, of two products and a softmax, to ``pairs`` of a query and a key."""
    # per pair: scale 1, maximum 1, difference 1, sum 1; softcap 2 more
    capped = "softcap" in case.flags
    return {
        "tensor_flops": 4 * pairs * case["d"],
        "vector_flops": (6 if capped else 4) * pairs,
        "special_ops": (2 if capped else 1) * pairs,
    }


def cost(case: Case) -> Cost:
    """Read q, k, v within reach, write out (and lse); two products and a softmax over the pairs within the window."""
    pairs = case["B"] * case["Hq"] * visible_pairs(case)
    queries = case["B"] * case["T"] * case["Hq"]
    keys = case["B"] * keys_within_reach(case) * case["Hkv"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(queries + 2 * keys) * case["d"] * size + offset_bytes(case),
        bytes_written=queries * case["d"] * size + (4 * queries if "lse" in case.data else 0),
        **attending(case, pairs),
    )


def make_case(
    batch: int,
    time: int,
    heads: int,
    shared: int,
    d: int,
    window: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    keys: int | None = None,
    rows: int | None = None,
    right: int = 0,
    op: str = "local_attention",
    data: tuple[str, ...] = (),
    **facts: object,
) -> BenchCase:
    """A case from sizes. S, the number of keys, is T unless given; N is the batch, or the number of sequences."""
    if right:
        flags, data = (*flags, RIGHT), (*data, f"{RIGHT}{right}")
    keys, rows = time if keys is None else keys, batch if rows is None else rows
    sizes = (batch, time, keys, heads, shared, d, window, rows)
    dims = tuple(zip(("B", "T", "S", "Hq", "Hkv", "d", "W", "N"), sizes, strict=True))
    return BenchCase(dict(dims), dtype, tuple(flags), data, op=op, **facts)  # type: ignore[arg-type]
