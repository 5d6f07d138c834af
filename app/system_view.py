"""What the System page shows of a report of `engine doctor`, as HTML."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.html import chip, escape, note, size, tiles
from app.workspace import Workspace
from engine.planning.doctor_command import SHOWN, rows, verdict
from engine.words import counted

MARKS = {
    "ok": ("✓", "works"),
    "--": ("–", "not there, not needed"),
    "!": ("!", "works without"),
    "!!": ("✗", "to mend"),
}
MOST_FILES = 200_000  # counted in a folder


def headline(report: dict[str, Any] | None, problem: str, asking: bool) -> str:
    """Can this machine train. report: see `engine.planning.doctor.examine`; None before the first answer."""
    busy = note("looking at this machine, which takes ten to thirty seconds…") if asking else ""
    if problem and not asking:
        busy = note(f"the look at this machine failed: {problem}", problem=True)
    if report is None:
        return busy
    words = verdict(report).replace(" above", " below").replace("`engine train`", "training")
    state, sign = ("completed", "ready") if report["works"] else ("failed", "not ready")
    said = words.partition(": ")[2]
    return f'<h2 class="verdict">{chip(state, sign)} {escape(said[:1].upper() + said[1:])}</h2>{busy}'


def findings(report: dict[str, Any]) -> str:
    """What is to be mended and how, the gravest first."""
    if not report["findings"]:
        return ""
    items = []
    for finding in sorted(report["findings"], key=lambda finding: not finding["blocks"]):
        mark = chip("failed", "to mend") if finding["blocks"] else chip("queued", "note")
        fix = ""
        if finding["fix"]:
            button = '<button class="copy" type="button">Copy</button>'
            fix = f'<div class="fix"><code>{escape(finding["fix"])}</code>{button}</div>'
        items.append(f"<li>{mark} {escape(finding['what'])}{fix}</li>")
    return f'<h3 class="head">What to mend</h3><ul class="findings">{"".join(items)}</ul>'


def gauges(report: dict[str, Any]) -> str:
    """How full the memories and the disk are."""
    bars = [
        _gauge(f"GPU {gpu['index']}: {gpu['name']}", gpu["total_bytes"], gpu["free_bytes"])
        for gpu in report["gpus"] or (report["driver"] or {"gpus": []})["gpus"]
        if gpu["total_bytes"] and gpu["free_bytes"] is not None
    ]
    if memory := report["memory"]:
        bars.append(_gauge("Memory of the machine", memory["usable"], memory["free"]))
    if disk := report["disk"]:
        bars.append(_gauge("Disk", disk["total"], disk["free"]))
    return f'<div class="gauges">{"".join(bars)}</div>' if bars else ""


def _gauge(name: str, total: int, free: int) -> str:
    used = max(total - free, 0)
    share = 100 * used / max(total, 1)
    words = f"{size(used)} used of {size(total)}, {size(free)} free"
    return (
        f'<div class="gauge"><div class="name">{escape(name)}</div><div class="track" role="meter" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}" aria-label="{escape(f"{name}: {words}")}">'
        f'<div style="width:{share:.1f}%"></div></div><div class="words">{escape(words)}</div></div>'
    )


def parts(report: dict[str, Any]) -> str:
    """The table of `engine doctor`, and the versions."""
    lines = "".join(_part(*row) for row in rows(report) if row[1] != "packages")
    table = f'<table class="list parts"><tbody>{lines}</tbody></table>'
    versions = report["versions"]
    order = [*SHOWN, *(name for name in versions if name not in SHOWN)]
    found = tiles((name, versions[name] or "missing", "") for name in order if name in versions)
    return f'<h3 class="head">What was looked at</h3>{table}<h3 class="head">Versions</h3>{found}'


def _part(mark: str, name: str, text: str) -> str:
    sign, words = MARKS[mark]
    kind = {"ok": "good", "!!": "bad", "!": "wait"}.get(mark, "")
    return (
        f'<tr><td class="mark {kind}"><span aria-hidden="true">{sign}</span><span class="hidden">{words}</span></td>'
        f'<th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'
    )


def folders(workspace: Workspace) -> str:
    """The folders in use and their sizes."""
    lines = []
    for name, path in (
        ("Runs", workspace.runs), ("Datasets", workspace.datasets), ("Encoders", workspace.encoders),
    ):  # fmt: skip
        count, bytes_, whole = _measure(path)
        held = (
            f"{'' if whole else 'more than '}{size(bytes_)} in {counted(count, 'file')}"
            if path.is_dir()
            else "not made yet"
        )
        with suppress(OSError):
            held += f"; {size(shutil.disk_usage(_there(path)).free)} free on its disk"
        lines.append(f'<tr><th scope="row">{name}</th><td>{escape(path.resolve())}</td><td>{escape(held)}</td></tr>')
    return f'<h3 class="head">Folders in use</h3><table class="list parts"><tbody>{"".join(lines)}</tbody></table>'


def _measure(path: Path) -> tuple[int, int, bool]:
    """(files, bytes, whether all were counted)"""
    count = total = 0
    for bytes_ in _sizes(path):
        count, total = count + 1, total + bytes_
        if count >= MOST_FILES:
            return count, total, False
    return count, total, True


def _sizes(path: Path) -> Iterator[int]:
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                yield os.lstat(os.path.join(folder, name)).st_size


def _there(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
