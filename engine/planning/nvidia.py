"""What NVIDIA's driver says of the GPUs, without torch: needed to tell why torch does not see them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine.planning.limits import read_small

FIELDS = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
WSL = "/usr/lib/wsl/lib/nvidia-smi"  # not on every user's PATH there
TIMEOUT = 10.0  # seconds; a broken driver can hang
MIB = 2**20


@dataclass(frozen=True)
class DriverGpu:
    """A GPU in the driver's order. Bytes and capability are None where the driver does not tell."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Driver:
    """version: such as 550.54.14, None if unknown · complaint: nvidia-smi's, where it fails · reachable: whether the
    driver's device file is there for this process.
    """

    version: str | None
    gpus: tuple[DriverGpu, ...]
    complaint: str | None = None
    reachable: bool = True

    @property
    def major(self) -> int | None:
        return int(self.version.partition(".")[0]) if self.version else None


def find_driver(root: Path = Path("/"), smi: str | None = None) -> Driver | None:
    """The driver, or None where there is none, or no GPU for it. smi: the nvidia-smi to ask (the one on PATH)."""
    smi = smi or shutil.which("nvidia-smi") or shutil.which(WSL)
    loaded = root / "proc/driver/nvidia"
    if smi is None and not loaded.is_dir():
        return None
    text, complaint = _ask(smi) if smi else ("", None)
    if complaint and "No devices" in complaint:
        return None
    gpus, version = parse_query(text)
    version = version or parse_version(read_small(loaded / "version"))
    if not gpus:
        files = sorted(loaded.glob("gpus/*/information"))
        gpus = tuple(DriverGpu(parse_model(read_small(file))) for file in files)
    devices = ("dev/nvidiactl", "dev/dxg")  # the second is that of WSL
    reachable = bool(text) or not (root / "proc").is_dir() or any((root / device).exists() for device in devices)
    return Driver(version, gpus, complaint, reachable)


def parse_query(text: str) -> tuple[tuple[DriverGpu, ...], str | None]:
    """(GPUs, driver version) of nvidia-smi's CSV with the columns FIELDS, memory in MiB; older ones lack the last."""
    gpus, version = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(FIELDS) - 1:
            continue
        name, total, free, version = cells[:4]
        sizes = (int(cell) * MIB if cell.isdigit() else None for cell in (total, free))
        capability = re.fullmatch(r"(\d+)\.(\d+)", cells[4]) if len(cells) > 4 else None
        gpus.append(DriverGpu(name, *sizes, tuple(map(int, capability.groups())) if capability else None))
    return tuple(gpus), version


def parse_version(text: str) -> str | None:
    """Driver version of /proc/driver/nvidia/version."""
    found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", text)
    return found.group(1) if found else None


def parse_model(text: str) -> str:
    """Name of the GPU of /proc/driver/nvidia/gpus/*/information."""
    found = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else "NVIDIA GPU"


def _ask(smi: str) -> tuple[str, str | None]:
    """(what nvidia-smi prints, None), or ("", why it failed)."""
    complaint = None
    for fields in (FIELDS, FIELDS[:-1]):  # drivers before 510 do not know the last one
        command = [smi, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            return "", f"nvidia-smi does not answer ({type(error).__name__})"
        if done.returncode == 0:
            return done.stdout, None
        words = (done.stdout + done.stderr).split()
        complaint = " ".join(words) or f"nvidia-smi exits with {done.returncode}"
    return "", complaint
