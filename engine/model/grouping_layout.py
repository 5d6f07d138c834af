"""How wide label vectors may be for groups to be formed within a given memory; needs no torch.

Beside the vectors there are an order (4 bytes a label) and, while a large node is cut, a score and a second order
(8 bytes a label); everything else is made for BLOCK labels at a time.
"""

from __future__ import annotations

VECTOR_WIDTH, LEAST_WIDTH = 64, 8
BLOCK = 1 << 16  # labels whose vectors are looked at together
ORDER_BYTES = 12  # a label: its place before and after a cut, and its score
BLOCK_VECTORS = 4  # fp32 vectors a label of a block: gathered, converted, multiplied, kept by the allocator
BLOCK_BYTES = 256  # a label of a block, beside them: ids, scores, what sorting needs


def vector_bytes(labels: int, width: int, memory: int | None) -> tuple[int, int]:
    """(K, bytes of an element) of label vectors such that they and their ordering together take at most `memory`.

    fp32 and VECTOR_WIDTH (or the features' width, if smaller) where that fits or memory is None; else 16 bits, and as
    many dimensions as fit, though not fewer than LEAST_WIDTH.
    """
    most = min(width, VECTOR_WIDTH)
    if memory is None or forming_bytes(labels, most, 4) <= memory:
        return most, 4
    for narrower in range(most, LEAST_WIDTH, -1):
        if forming_bytes(labels, narrower, 2) <= memory:
            return narrower, 2
    return min(most, LEAST_WIDTH), 2


def forming_bytes(labels: int, vector_width: int, itemsize: int) -> int:
    """Most bytes that the vectors [L, K] and their ordering take together."""
    block = min(labels, BLOCK) * (BLOCK_VECTORS * vector_width * 4 + BLOCK_BYTES)
    return labels * (vector_width * itemsize + ORDER_BYTES) + block
