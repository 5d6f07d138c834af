"""Accuracy, time and memory of one dataset at several fan-ins.

    python benchmarks/fan_in.py datasets/mine 32 64 128 dense [-- any flag of `engine train`]

Each is a run of `engine train` in a process of its own; a table in Markdown follows on standard output.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def train(data: str, fan_in: str, flags: list[str]) -> dict:
    command = [sys.executable, "-m", "engine", "train", "--data", data, "--fan-in", fan_in, "--json", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {**result, "plan": json.loads((Path(result["run"]) / "plan.json").read_text())}


def row(name: str, metrics: dict, rest: str = "| | |") -> str:
    values = " | ".join(f"{100 * metrics[key]:.1f}" for key in ("P@1", "P@3", "P@5", "PSP@5"))
    return f"| {name} | {values} {rest} |"


def main(arguments: list[str]) -> None:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    (data, *fan_ins), flags = arguments[:at], arguments[at + 1 :]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    results = {fan_in: train(data, fan_in, flags) for fan_in in fan_ins}
    print(f"{platform.processor() or platform.machine()}, {packages}")
    print(f"`python benchmarks/fan_in.py {' '.join(arguments)}`\n")
    print("| fan-in, sparsity | P@1 | P@3 | P@5 | PSP@5 | classifier | training | peak host memory |")
    print("|---|---|---|---|---|---|---|---|")
    for fan_in, result in results.items():
        plan = result["plan"]
        size = plan["classifier_bytes"] / 2**20
        seconds, peak = result["training_seconds"], result["host_peak_bytes"] / 2**20
        name = f"{fan_in}, {1 - plan['fan_in'] / plan['width']:.0%}"
        print(row(name, result["metrics"], f"| {size:,.1f} MiB | {seconds:,.0f} s | {peak:,.0f} MiB"))
    for name, metrics in result["baselines"].items():
        print(row(name, metrics, "| | |"))


if __name__ == "__main__":
    main(sys.argv[1:])
