"""`engine doctor`: its part of the command line, and its table. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from engine.errors import EnvironmentProblem

GIB = 2**30
WIDEST = 110  # columns
NAMES = 15  # columns of a row's name
OPTIONAL = ("bitsandbytes", "gradio", "triton")
SHOWN = ("torch", "transformers", "accelerate", "bitsandbytes", "triton", "gradio", "psutil", "python")


def add_doctor(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command."""
    doctor = add_command(commands, "doctor", "check this machine: what works, what to mend", doctor_command)
    doctor.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train (auto)")
    doctor.add_argument("--json", action="store_true", help="print everything as one JSON object")


def doctor_command(options: argparse.Namespace) -> None:
    """Prints the report. Raises EnvironmentProblem where training does not work."""
    print("trying what training needs, about ten seconds", file=sys.stderr, flush=True)
    from engine.planning.doctor import examine

    report = examine(options.device)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(format_report(report, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)))
    sys.stdout.flush()
    if not report["works"]:
        worst = next(finding for finding in report["findings"] if finding["blocks"])
        raise EnvironmentProblem(f"training does not work here: {worst['what']}")


def format_report(report: dict[str, Any], width: int = WIDEST) -> str:
    """The report (see `doctor.examine`) as a table for people, what to mend, and the verdict."""
    lines = []
    for mark, name, text in rows(report):
        head = f"{mark:<4}{name:<{NAMES}}"
        lines += wrap(text, width, head)
    for finding in report["findings"]:
        head = "!!  " if finding["blocks"] else "note  "
        lines += ["", *wrap(finding["what"], width, head)]
        if finding["fix"]:
            lines.append(f"{' ' * len(head)}do: {finding['fix']}")  # not wrapped, so that it can be copied
    return "\n".join([*lines, "", *wrap(verdict(report), width, "")])


def wrap(text: str, width: int, head: str) -> list[str]:
    """Lines of `text` behind `head`, broken at spaces alone: names and options stay whole."""
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def verdict(report: dict[str, Any]) -> str:
    """One sentence: can this machine train, and how to start."""
    if not report["works"]:
        advice = " Meanwhile the processor can train: --device cpu." if report["works_on_cpu"] else ""
        return f"NOT READY: training does not work here yet; mend what is marked !! above.{advice}"
    where = f"on {report['gpus'][0]['name']}" if report["device"] == "cuda" else "on the processor"
    return f"READY: `engine train` works on this machine, {where}."


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(mark, name, text) of each line of the table.

    Marks: ok, -- for what is not there and not needed, ! for what training does without, !! for what it cannot.
    """
    yield from gpu_rows(report)
    if cpu := report["cpu"]:
        cores = f"{cpu['cores']} cores" if cpu["cores"] == cpu["all_cores"] else f"{cpu['cores']} usable cores"
        yield "ok", "processor", f"{cpu['name']}, {cores}"
    if memory := report["memory"]:
        text = f"{gib(memory['usable'])}, {gib(memory['free'])} free"
        if memory["usable"] < memory["total"]:
            text += f" (limit of this container or group; the machine has {gib(memory['total'])})"
        yield "ok", "memory", text
    if disk := report["disk"]:
        yield "ok", "disk", f"{gib(disk['free'])} free for {disk['runs']}"
    yield "ok", "system", report["system"]
    versions = report["versions"]
    whole = all(version or name in OPTIONAL for name, version in versions.items())
    yield "ok" if whole else "!!", "packages", ", ".join(f"{name} {versions[name] or '(missing)'}" for name in SHOWN)
    if triton := report["triton"]:
        text = "works: fused kernels" if triton["works"] else triton["problem"]
        yield state(triton, "!"), "Triton", text if triton["needed"] else "not used on a processor"
    if bitsandbytes := report["bitsandbytes"]:
        works = "works: 8-bit optimizer" + ("" if bitsandbytes["needed"] else ", not needed on a processor")
        yield state(bitsandbytes, "!!"), "bitsandbytes", works if bitsandbytes["works"] else bitsandbytes["problem"]
    if encoder := report["encoder"]:
        source = encoder["source"]
        yield "ok" if source else "!!", "encoder", f"{encoder['name']}, {source or 'not found'}"
    if test := report["self_test"]:
        kernels = test["kernels"].partition(" (")[0]
        text = f"{test['labels_per_second'] / 1e6:.2g} million labels/s: a step of {test['labels']:,} labels"
        text += f" (fan-in {test['fan_in']}, {test['dtype']}, {test['batch']} texts) takes {test['ms']:,.1f} ms"
        yield "ok", "self-test", f"{text}; {kernels}"
    else:
        yield "!!", "self-test", "not passed"
    if profile := report["profile"]:
        how = (
            "trains encoder and classifier"
            if profile["trains_encoder"]
            else "trains classifier and adapter, not the encoder"
        )
        yield "ok", "profile", f"{profile['name']} (what auto takes): {how}"
        plan = report["plan"]
        text = f"{gib(plan['usable'])}: {gib(plan['memory'])} less {gib(plan['reserve'])} for other programs"
        yield "ok", "memory plan", text


def gpu_rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The graphics cards that torch sees, or those that only the driver knows."""
    driver = report["driver"] or {"version": None, "gpus": []}
    rocm = (report["torch"] or {}).get("rocm")
    software = f"ROCm {rocm}" if rocm else f"driver {driver['version'] or 'unknown'}"
    for gpu in report["gpus"] or []:
        used = report["device"] == "cuda" and gpu["index"] == 0
        text = f"{gpu['name']}, {gib(gpu['total_bytes'])}, {gib(gpu['free_bytes'])} free"
        text += f", capability {gpu['capability'][0]}.{gpu['capability'][1]}, bf16 {yes(gpu['compute'] == 'bf16')}"
        text += f", fp8 {yes(gpu['fp8'])}, {software}{'' if used else ' (not used)'}"
        yield "ok" if used else "--", f"GPU {gpu['index']}", text
    if not report["gpus"]:
        for gpu in driver["gpus"]:
            size = f", {gib(gpu['total_bytes'])}" if gpu["total_bytes"] else ""
            size += f", {gib(gpu['free_bytes'])} free" if gpu["free_bytes"] is not None else ""
            text = f"{gpu['name']}{size}, {software}: torch does not see it"
            yield "--" if report["works"] else "!!", "GPU", text
        if not driver["gpus"]:
            yield "--", "GPU", "no graphics card that torch can use"


def state(tried: dict[str, Any], bad: str) -> str:
    """Mark of something that was tried; bad: the one if it does not work and is needed."""
    if tried["works"]:
        return "ok"
    return bad if tried["needed"] else "--"


def gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"


def yes(value: bool) -> str:
    return "yes" if value else "no"
