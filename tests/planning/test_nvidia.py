"""What is read from NVIDIA's driver: from /proc, and from nvidia-smi (here a script that prints what one printed)."""

import os

import pytest

from engine.planning.nvidia import DriverGpu, find_driver, parse_query, parse_version

MIB = 2**20
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the scripts are for a POSIX shell")


def script(folder, text):
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def proc(root, version="NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024"):
    folder = root / "proc/driver/nvidia"
    (folder / "gpus/0000:01:00.0").mkdir(parents=True)
    (folder / "version").write_text(version + "\nGCC version:  gcc version 13.2.0\n")
    (folder / "gpus/0000:01:00.0/information").write_text(
        "Model: \t\t NVIDIA GeForce RTX 3070\nIRQ:   \t\t 131\nBus Type: \t PCIe\n"
    )
    return root


def test_every_gpu_of_the_query_is_read():
    gpus, version = parse_query(
        "NVIDIA GeForce RTX 4060, 8188, 7102, 580.65.06, 8.9\n"
        "NVIDIA GeForce GTX 1060 6GB, 6144, [N/A], 580.65.06, 6.1\n"
    )
    assert version == "580.65.06"
    assert gpus[0] == DriverGpu("NVIDIA GeForce RTX 4060", 8188 * MIB, 7102 * MIB, (8, 9))
    assert gpus[1].free_bytes is None
    assert gpus[1].capability == (6, 1)


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (root@x)",
    ],
)
def test_both_kinds_of_the_kernel_module_name_their_version(text):
    assert parse_version(text) == "550.54.14"


def test_a_machine_without_the_driver_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_driver(tmp_path) is None


def test_without_nvidia_smi_the_kernel_module_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = find_driver(proc(tmp_path))
    assert driver.version == "550.54.14"
    assert driver.major == 550
    assert [gpu.name for gpu in driver.gpus] == ["NVIDIA GeForce RTX 3070"]
    assert not driver.reachable


def test_the_device_file_makes_the_driver_reachable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert find_driver(proc(tmp_path)).reachable


def test_an_old_nvidia_smi_does_not_know_the_capability(tmp_path):
    smi = script(
        tmp_path,
        'case "$1" in *compute_cap*) echo "Field is not a valid field to query."; exit 2;; esac\n'
        'echo "NVIDIA GeForce GTX 1080, 8119, 8000, 470.256.02"',
    )
    driver = find_driver(tmp_path, smi)
    assert driver.complaint is None
    assert driver.gpus == (DriverGpu("NVIDIA GeForce GTX 1080", 8119 * MIB, 8000 * MIB, None),)


def test_the_complaint_of_a_broken_driver_is_kept(tmp_path):
    smi = script(tmp_path, 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    driver = find_driver(proc(tmp_path), smi)
    assert driver.complaint == "Failed to initialize NVML: Driver/library version mismatch"
    assert driver.version == "550.54.14"


def test_a_driver_without_a_gpu_counts_as_none(tmp_path):
    assert find_driver(tmp_path, script(tmp_path, 'echo "No devices were found"; exit 6')) is None


def test_an_nvidia_smi_that_cannot_be_started(tmp_path):
    assert "does not answer" in find_driver(tmp_path, str(tmp_path / "missing")).complaint
