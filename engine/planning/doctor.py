"""`engine doctor`: looks at everything that training needs of this machine, tries it, and says what to mend.

A part that breaks becomes a finding with its cause; the others are still looked at.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.config import RunConfig, resolve
from engine.errors import EngineError
from engine.planning import causes
from engine.planning.causes import Finding
from engine.planning.doctor_command import OPTIONAL
from engine.planning.hardware import (
    GIB,
    Hardware,
    cpu_name,
    detect,
    free_memory,
    host_memory,
    profile_for,
    read_gpu,
    usable_cores,
)
from engine.planning.limits import cpu_quota, memory_limit, read_small
from engine.planning.nvidia import Driver, find_driver

NEEDED = ("torch", "transformers", "accelerate", "numpy", "psutil", "pyarrow", "safetensors", "scikit-learn", "tqdm")
MODULES = {"scikit-learn": "sklearn"}  # where the package has another name
PARTS = (
    "cpu", "memory", "disk", "driver", "torch", "gpus", "triton", "bitsandbytes", "self_test", "profile", "plan",
    "encoder",
)  # fmt: skip
DISK_BYTES = 5 * GIB  # a training of the largest profiles with its checkpoints wants more than that
AMD_VENDOR = "0x1002"


def examine(device: str = "auto", root: Path = Path("/")) -> dict[str, Any]:
    """Everything found, JSON-ready; what could not be found out is None. device: auto, cpu or cuda.

    `works` says whether training works on that device, `works_on_cpu` whether it does on the processor (as far as
    that was seen), `findings` what does not and how to mend it. root: where the files of graphics drivers are.
    """
    findings: list[Finding] = []
    of_gpus: list[Finding] = []
    driver = None
    report: dict[str, Any] = {"works": False, "device": None, "versions": versions(), "system": system()}
    missing = [name for name in NEEDED if report["versions"][name] is None]
    if missing:
        findings.append(Finding(f"not installed: {', '.join(missing)}", f"{pip()} install {' '.join(missing)}", True))
    if report["versions"]["gradio"] is None:
        fix = f"{pip()} install gradio"
        findings.append(Finding("gradio is not installed: no browser interface; training does not need it", fix))
    report |= dict.fromkeys(PARTS)
    with part("processor", findings):
        report["cpu"] = {"name": cpu_name(), "cores": usable_cores(), "all_cores": os.cpu_count(), "quota": cpu_quota()}
    with part("memory", findings):
        report["memory"] = memory()
    with part("disk", findings):
        report["disk"] = disk(findings)
    with part("NVIDIA driver", findings):
        driver = find_driver(root)
        report["driver"] = asdict(driver) if driver else None
    with part("torch", findings, blocks=True):
        report["torch"] = torch_builds()
        report["gpus"], of_gpus = look_at_gpus(device, driver, root)
        findings += of_gpus
        hardware = detect(device)
        report["device"] = hardware.device
        with enough_memory(hardware, findings):
            try_kernels(report, hardware, findings)
        look_at_profile(report, hardware, findings)
    with part("encoder", findings, blocks=True):
        report["encoder"] = encoder(findings)
    report["findings"] = [asdict(finding) for finding in dict.fromkeys(findings)]
    blocking = [finding for finding in findings if finding.blocks]
    report["works"] = not blocking
    report["works_on_cpu"] = all(finding in of_gpus for finding in blocking)
    return report


@contextmanager
def part(name: str, findings: list[Finding], blocks: bool = False) -> Iterator[None]:
    """What is raised inside becomes a finding, unless one that blocks is there already and is taken for the cause.

    blocks: whether training needs this part.
    """
    try:
        yield
    except Exception as error:  # broken installations raise anything
        known = isinstance(error, EngineError)
        what = str(error) if known else f"{name}: {type(error).__name__}: {first_line(error)}"
        if not any(finding.blocks for finding in findings):
            findings.append(Finding(what, blocks=blocks))


@contextmanager
def enough_memory(hardware: Hardware, findings: list[Finding]) -> Iterator[None]:
    """A device whose memory runs out inside becomes a finding."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        fix = "close other programs that use it (nvidia-smi lists them)"
        findings.append(Finding(f"the memory of {hardware.name} ran out in the self-test", fix, True))


def versions() -> dict[str, str | None]:
    """Of the packages, None for what is not installed, "unknown" for what can be imported and does not say."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*NEEDED, *OPTIONAL):
        found[name] = _version(name) or (_version("triton-windows") if name == "triton" else None)
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown" if find_spec(MODULES.get(name, name)) else None


def system() -> str:
    """Operating system, and whether it is a guest of Windows."""
    release = platform.release()
    name = f"{platform.system()} {release.partition('-')[0]}"
    return f"{name} (WSL)" if "microsoft" in release.lower() else name


def pip() -> str:
    """The command that installs into this Python."""
    return f"{shlex.quote(sys.executable)} -m pip"


def memory() -> dict[str, int | None]:
    """Bytes of host memory: the machine's, those this process may use, those free now; a container's limit."""
    import psutil

    now = psutil.virtual_memory()
    usable = host_memory()
    return {"total": now.total, "usable": usable, "free": min(usable, free_memory()), "limit": memory_limit()}


def disk(findings: list[Finding]) -> dict[str, Any]:
    """Folder of the runs and the bytes of its disk."""
    runs = Path(RunConfig().run.output).absolute()
    there = next(folder for folder in (runs, *runs.parents) if folder.is_dir())
    space = shutil.disk_usage(there)
    if not os.access(there, os.W_OK):
        findings.append(Finding(f"nothing can be written to {there}", "work in another folder, or add --output DIR"))
    if space.free < DISK_BYTES:
        what = f"only {space.free / GIB:.1f} GiB are free for runs and their checkpoints"
        findings.append(Finding(what, "free some space, or name another disk with --output DIR"))
    return {"runs": str(runs), "total": space.total, "free": space.free}


def torch_builds() -> dict[str, str | None]:
    """What torch is built for: versions of CUDA and of ROCm."""
    import torch

    return {"cuda": torch.version.cuda, "rocm": torch.version.hip}


def look_at_gpus(device: str, driver: Driver | None, root: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    """(the GPUs that torch sees, what is wrong with them or with one that it does not see)"""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with warnings.catch_warnings():  # said below, with the cause
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [read_gpu(index) for index in range(count)]
    findings = []
    if count and torch.version.hip is None:
        first, built_for = gpus[0], torch.cuda.get_arch_list()
        found = causes.architecture_problem(first.name, first.capability, built_for, driver, pip())
    elif count:
        found = None
    else:
        error = cuda_error() if driver else ""
        found = causes.cuda_problem(driver, torch.__version__, torch.version.cuda, visible, error, pip())
        if found is None and device == "cuda":
            found = Finding("no NVIDIA GPU is found in this machine", "train on the processor: --device cpu", True)
    if found:
        blocks = device == "cuda" or (found.blocks and device == "auto")
        findings.append(Finding(found.what, found.fix, blocks))
    amd = bool(torch.version.hip) if count else driver is None and has_amd(root)
    findings += causes.other_gpus(amd, torch.version.hip, torch.backends.mps.is_available(), pip())
    return [asdict(gpu) for gpu in gpus], findings


def cuda_error() -> str:
    """What torch says when it is made to start CUDA, in one line."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return first_line(error)
    return ""


def first_line(error: BaseException) -> str:
    """The first line of its message, or else its kind."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def has_amd(root: Path) -> bool:
    """Whether the system lists a graphics device of AMD (Linux)."""
    files = root.glob("sys/class/drm/card*/device/vendor")
    return any(read_small(file) == AMD_VENDOR for file in files)


def try_kernels(report: dict[str, Any], hardware: Hardware, findings: list[Finding]) -> None:
    """Runs the fused kernels, the 8-bit optimizer and a short training step; adds their states to the report."""
    import torch

    from engine.kernels.dispatch import triton_problem
    from engine.planning.trial import optimizer_problem, run_trial

    if any(finding.blocks for finding in findings) and hardware.device == "cuda":
        return  # torch cannot compute on it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    device = torch.device(hardware.device)
    problem = triton_problem(device)
    report["triton"] = {"works": problem is None, "needed": hardware.device == "cuda", "problem": problem}
    if problem and hardware.device == "cuda":
        installed = report["versions"]["triton"]
        findings.append(causes.triton_finding(problem, installed, platform.system(), pip()))
    problem = optimizer_problem(device)
    needed = hardware.device == "cuda"
    report["bitsandbytes"] = {"works": problem is None, "needed": needed, "problem": problem}
    if problem:
        override = os.environ.get("BNB_CUDA_VERSION")
        findings.append(causes.bitsandbytes_finding(problem, needed, override, pip()))
    report["self_test"] = asdict(run_trial(hardware))


def look_at_profile(report: dict[str, Any], hardware: Hardware, findings: list[Finding]) -> None:
    """The profile that `auto` takes, and the memory that is planned with it."""
    name, note = profile_for(hardware)
    if note:
        findings.append(Finding(note))
    config, _ = resolve(name, {}, {})
    given = config.hardware.memory_gib
    planned = hardware.memory_bytes if given == "auto" else int(given * GIB)
    reserve = int(config.hardware.reserve_gib * GIB)
    report["profile"] = {"name": name, "trains_encoder": config.encoder.trainable == "all", "data": config.data.path}
    report["plan"] = {"memory": planned, "reserve": reserve, "usable": max(0, planned - reserve)}
    hint = causes.choice_of_gpu(len(report["gpus"]), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if hint and hardware.device == "cuda":
        findings.append(Finding(hint))


def encoder(findings: list[Finding]) -> dict[str, Any]:
    """The default encoder: where it is, or whether the hub would give it."""
    from engine.model.sources import find_locally

    name = RunConfig().encoder.name
    if found := find_locally(name):
        return {"name": name, "source": found[1], "path": str(found[0])}
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=5.0)
    except Exception as error:  # no network, no such model, a proxy's page
        what = f"encoder {name} is not on this machine, and the hub does not give it ({type(error).__name__})"
        findings.append(Finding(what, f"{pip()} install {causes.ENCODER}", True))
        return {"name": name, "source": None, "path": None}
    return {"name": name, "source": "Hugging Face hub, downloaded by the first training", "path": None}
