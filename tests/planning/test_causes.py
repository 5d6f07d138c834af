"""From what is seen on a machine to the cause and the command that mends it."""

import tomllib
from pathlib import Path

import pytest

from engine.planning.causes import (
    BITSANDBYTES,
    DRIVERS,
    ENCODER,
    TORCH,
    architecture_problem,
    bitsandbytes_finding,
    choice_of_gpu,
    cuda_problem,
    other_gpus,
    torch_build,
    triton_finding,
)
from engine.planning.nvidia import Driver, DriverGpu

CARD = DriverGpu("NVIDIA GeForce RTX 4060", 8 << 30, 7 << 30, (8, 9))
OLD_CARD = DriverGpu("NVIDIA GeForce GTX 1060", 6 << 30, 5 << 30, (6, 1))
NEW_CARD = DriverGpu("NVIDIA GeForce RTX 5060", 8 << 30, 7 << 30, (12, 0))
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def cuda(driver, torch_cuda="13.0", visible=None, error=""):
    return cuda_problem(driver, "2.13.0", torch_cuda, visible, error, "pip")


def test_what_is_installed_is_what_the_project_asks_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {TORCH, BITSANDBYTES} <= set(project["dependencies"])
    assert ENCODER in project["optional-dependencies"]["demo"][0]


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        (580, (8, 9), "cu130"),
        (580, (12, 0), "cu130"),
        (580, None, "cu130"),
        (580, (6, 1), "cu126"),  # CUDA 13 has left Pascal and Volta behind
        (550, (8, 9), "cu126"),
        (575, (12, 0), None),  # CUDA 12.6 does not know Blackwell
        (470, (8, 9), None),
        (580, (3, 5), None),
        (None, (8, 9), "cu130"),
    ],
)
def test_the_build_of_torch_fits_driver_and_gpu(driver, capability, build):
    assert torch_build(driver, capability) == build


def test_no_driver_is_no_problem():
    assert cuda(None) is None


def test_a_torch_without_cuda_is_replaced_by_one_for_the_card():
    found = cuda(Driver("580.65.06", (CARD,)), torch_cuda=None)
    assert found.blocks
    assert "RTX 4060 is there, but this torch (2.13.0) is built without CUDA" in found.what
    assert found.fix == f'pip install --force-reinstall "{TORCH}" --index-url https://download.pytorch.org/whl/cu130'
    assert "cu126" in cuda(Driver("580.65.06", (OLD_CARD,)), torch_cuda=None).fix


def test_a_driver_older_than_torch():
    found = cuda(Driver("550.54.14", (CARD,)))
    assert found.blocks
    assert "driver 550.54.14 of NVIDIA GeForce RTX 4060 is too old" in found.what
    assert "needs driver 580" in found.what
    assert "cu126" in found.fix
    assert cuda(Driver("575.10", (NEW_CARD,))).fix == DRIVERS


def test_a_card_hidden_on_purpose_does_not_block():
    found = cuda(Driver("580.65.06", (CARD,)), visible="")
    assert not found.blocks
    assert found.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_choice_of_cards_that_is_wrong_blocks():
    found = cuda(Driver("580.65.06", (CARD,)), visible="7")
    assert found.blocks
    assert "CUDA_VISIBLE_DEVICES=7 names no GPU" in found.what


def test_a_driver_that_was_updated_needs_a_restart():
    complaint = "Failed to initialize NVML: Driver/library version mismatch"
    assert cuda(Driver("580.65.06", (CARD,), complaint)).fix == "restart the computer"
    assert cuda(Driver("580.65.06", (CARD,), "couldn't communicate with the NVIDIA driver")).fix == DRIVERS


def test_a_container_that_was_not_given_the_card():
    found = cuda(Driver("580.65.06", (CARD,), reachable=False))
    assert "--gpus all" in found.fix


def test_otherwise_torchs_own_words_are_passed_on():
    found = cuda(Driver("580.65.06", (CARD,)), error="CUDA unknown error")
    assert found.what.endswith("torch cannot start CUDA: CUDA unknown error")
    assert found.fix


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 9), CUDA_13, True),  # code for 8.6 runs on 8.9
        ((12, 1), CUDA_13, True),
        ((6, 1), CUDA_13, False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((8, 6), [], True),  # nothing is known
    ],
)
def test_code_for_the_cards_architecture(capability, built_for, runs):
    found = architecture_problem("a card", capability, built_for, Driver("580.1", (CARD,)), "pip")
    assert (found is None) == runs
    if found:
        assert found.blocks
        assert found.fix.endswith("cu126" if capability < (7, 5) else "cu130")


@pytest.mark.parametrize(
    ("problem", "version", "system", "fix"),
    [
        ("triton is not installed", None, "Linux", "pip install triton"),
        ("triton is not installed", None, "Windows", "pip install triton-windows"),
        ("gcc failed; install gcc", "3.9.0", "Linux", "sudo apt install gcc python3-dev"),
        ("no C compiler", "3.9.0", "Windows", "pip install triton-windows"),
        ("it computes wrong results", "3.9.0", "Linux", "pip install --force-reinstall --no-deps triton==3.9.0"),
        ("the GPU has compute capability 7.5, the fused kernels need 8.0", "3.9.0", "Linux", None),
    ],
)
def test_training_goes_on_without_triton(problem, version, system, fix):
    found = triton_finding(problem, version, system, "pip")
    assert not found.blocks
    assert found.fix == fix
    assert problem in found.what


def test_bitsandbytes_is_needed_where_the_encoder_is_trained():
    assert not bitsandbytes_finding("no library", False, None, "pip").blocks
    found = bitsandbytes_finding("no library", True, None, "pip")
    assert found.blocks
    assert "--set encoder.optimizer=adamw" in found.what
    assert BITSANDBYTES in found.fix
    assert bitsandbytes_finding("no library", True, "118", "pip").fix == "unset BNB_CUDA_VERSION"


def test_what_holds_for_other_makers_cards():
    assert other_gpus(False, None, False, "pip") == []
    (amd,) = other_gpus(True, None, False, "pip")
    assert "rocm" in amd.fix
    assert not amd.blocks
    (rocm,) = other_gpus(True, "7.2", False, "pip")
    assert "trains through torch" in rocm.what
    (apple,) = other_gpus(False, None, True, "pip")
    assert "training runs on the processor" in apple.what


def test_how_to_take_another_card():
    assert choice_of_gpu(1, None) is None
    assert choice_of_gpu(2, None).endswith("CUDA_VISIBLE_DEVICES=1 engine train")
    assert choice_of_gpu(2, "4,6").endswith("CUDA_VISIBLE_DEVICES=6 engine train")
