"""What is in the datasets: the answers of `engine data inspect`, asked for once and kept in the dataset's cache."""

from __future__ import annotations

import json
import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.html import when
from app.jobs import Job, Jobs
from app.workspace import Workspace
from engine.data.builtin import BUILT_IN
from engine.data.manifest import MANIFEST, read_manifest
from engine.errors import EngineError

KIND = "inspect"
SAMPLES = 30  # rows of each split, to be leafed through
VERSION = 1  # of the answer; another one is asked for again


@dataclass(frozen=True)
class Look:
    """state: done, running, failed, or absent where the dataset is not made yet · words: for all states but done ·
    report: see `engine.data.inspection.inspect` · meta: content of `dataset.json`.
    """

    state: str
    words: str = ""
    report: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None


class Inspections:
    """Looks at datasets, one process for each that was not looked at before. Thread-safe."""

    def __init__(self, workspace: Workspace, jobs: Jobs):
        self.workspace = workspace
        self.jobs = jobs
        self._lock = threading.Lock()

    def look(self, id: str, again: bool = False) -> Look:
        """What is known now of the dataset; asks for what is not. again: also if that has failed before."""
        try:
            path = self.workspace.dataset_path(id)
            if id in BUILT_IN and not (path / MANIFEST).is_file():
                return Look("absent", "this corpus is not made yet")
            meta, digest = read_manifest(path)
        except EngineError as error:
            return Look("failed", str(error))
        kept = path / "cache" / f"inspection-{VERSION}-{digest[:16]}.json"
        with self._lock:
            report = _report(kept) or self._answer(id, path, digest, kept, again)
        return report if isinstance(report, Look) else Look("done", report=report, meta=meta)

    def _answer(self, id: str, path: Path, digest: str, kept: Path, again: bool) -> Look | dict[str, Any]:
        about = {"digest": digest, "folder": str(path)}
        job = next((job for job in self.jobs.list(KIND) if job.details == about), None)
        if job is None or (job.state == "failed" and again):
            if job is not None:
                self.jobs.remove(job.id)
            asked = ["data", "inspect", str(path), "--samples", str(SAMPLES), "--json"]
            title = f"looking at {id}"
            job = self.jobs.start(self.jobs.prepare(KIND), title, asked, **about)
        if job.state == "running":
            return Look(
                "running", f"counting texts and labels of {id}, since {when(job.started)}; large data take minutes"
            )
        return self._ended(job, kept)

    def _ended(self, job: Job, kept: Path) -> Look | dict[str, Any]:
        report = _report(job.path / "output.txt")
        if job.state == "failed" or report is None:
            return Look("failed", job.words or "engine data inspect said nothing")
        with suppress(OSError):  # a dataset that nobody may write to: the job keeps the answer
            temporary = kept.with_name(f"{kept.name}.{secrets.token_hex(4)}.tmp")
            kept.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
            os.replace(temporary, kept)
            self.jobs.remove(job.id)
        return report


def _report(file: Path) -> dict[str, Any] | None:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
