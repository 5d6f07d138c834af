"""Writing tensors in the safetensors format piece by piece, from where they are to the disk.

Saving needs no second copy of a tensor, neither on its device nor on the host: one buffer of PIECE_BYTES carries
everything that comes from a device. Format: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE_BYTES = 64 * 2**20
HEADER_ALIGNMENT = 8


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes `tensors`, from any device, to `path`; safetensors reads them back bit for bit.

    Raises OSError when the disk does not take it, and leaves what was written until then. Does not wait for the disk.
    """
    import torch

    # Wide elements first: every tensor then starts at a multiple of its element size.
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    away = [tensor for tensor in tensors.values() if tensor.device.type != "cpu"]
    if away:
        size = min(PIECE_BYTES, max(tensor.numel() * tensor.element_size() for tensor in away))
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=away[0].is_cuda)
    with path.open("wb") as file:
        file.write(_header(order))
        for _, tensor in order:
            for piece in _pieces(tensor.detach()):
                on_host = piece if piece.device.type == "cpu" else buffer[: len(piece)].copy_(piece)
                file.write(memoryview(on_host.numpy()))


def _header(order: list[tuple[str, Tensor]]) -> bytes:
    """Its length as 8 little-endian bytes, then JSON: type, shape and place in the rest of the file, by name."""
    import torch

    types = {
        torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.uint16: "U16",
        torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    entries, start = {}, 0
    for name, tensor in order:
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor in row-major order, uint8, at most PIECE_BYTES at a time; views where it is contiguous."""
    import torch

    if tensor.is_contiguous():
        yield from tensor.view(-1).view(torch.uint8).split(PIECE_BYTES)
    else:
        for row in tensor:
            yield from _pieces(row.contiguous())
