"""Tensors go to the disk piece by piece, and safetensors reads what was written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine import tensorfile
from engine.tensorfile import save_tensors

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip


def of_type(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Arbitrary bits; for bool the two there are."""
    random = torch.Generator().manual_seed(len(shape))
    size = torch.Size(shape).numel() * dtype.itemsize
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8, generator=random)
    return content.view(dtype).view(shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(*(part.contiguous().view(-1).view(torch.uint8) for part in (one, other)))


def check_round_trip(tensors, path):
    save_tensors(tensors, path)
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            assert same_bits(loaded[name], tensor.cpu()), name
            assert same_bits(file.get_tensor(name), tensor.cpu()), name


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path):
    shapes = {"scalar": (), "empty": (0,), "no rows": (0, 7), "odd": (3,), "matrix": (5, 9), "cube": (2, 3, 5)}
    tensors = {f"{dtype} {name}": of_type(dtype, *shape) for dtype in DTYPES for name, shape in shapes.items()}
    check_round_trip(tensors, tmp_path / "all.safetensors")


def test_a_tensor_larger_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "PIECE_BYTES", 1000)
    check_round_trip({"big": of_type(torch.bfloat16, 701, 3), "small": torch.ones(3)}, tmp_path / "t.safetensors")


def test_parameters_and_transposed_tensors(tmp_path):
    tensors = {"parameter": torch.nn.Parameter(torch.randn(4, 3)), "transposed": torch.randn(6, 5).T}
    check_round_trip(tensors, tmp_path / "t.safetensors")


def test_nothing_to_save_and_names_beyond_ascii(tmp_path):
    check_round_trip({}, tmp_path / "nothing.safetensors")
    check_round_trip({'größe "1"': torch.ones(2)}, tmp_path / "t.safetensors")


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    save_tensors({f"{dtype}": of_type(dtype, 3) for dtype in DTYPES}, tmp_path / "t.safetensors")
    address = {name: tensor.data_ptr() for name, tensor in load_file(tmp_path / "t.safetensors").items()}
    assert all(address[f"{dtype}"] % dtype.itemsize == 0 for dtype in DTYPES)


SAVE = """
import resource, sys, torch
from pathlib import Path
from engine.tensorfile import save_tensors
tensors = {str(i): torch.full((64 << 20,), i, dtype=torch.uint8) for i in range(4)}
save_tensors({"small": torch.ones(3)}, Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_tensors(tensors, Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_saving_takes_little_host_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path / "t.safetensors")],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 100 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_from_a_gpu_without_a_copy_there(tmp_path):
    tensors = {"big": of_type(torch.bfloat16, 1 << 20, 96).cuda(), "small": of_type(torch.int16, 5).cuda()}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    check_round_trip(tensors, tmp_path / "t.safetensors")
    assert torch.cuda.max_memory_allocated() == before
