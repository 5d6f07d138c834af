"""Commands that the interface starts: imports, batch predictions, the look at the machine.

Each is a process of its own that outlives the interface, and a folder `<jobs>/<id>/` that says what became of it:

    job.json      kind, title, arguments, started; pid and create_time of the process
    output.txt    what the command printed as its result      messages.txt   its progress, and its last words
    exit          its exit code, written at the end           files/         what it reads or makes

A training is none of these: it has a run directory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app.runlist import changed_at
from engine.errors import ConfigError
from engine.runs import CREATE_TIME_TOLERANCE

TAIL_BYTES = 8192
KEPT = 30  # finished jobs of a kind


@dataclass(frozen=True)
class Job:
    """state: running, done or failed · words: its progress now, or how it ended."""

    id: str
    path: Path
    kind: str
    title: str
    details: dict[str, Any]
    started: float
    state: str
    words: str

    @property
    def files(self) -> Path:
        return self.path / "files"

    def output(self) -> str:
        """Standard output of the command."""
        return (self.path / "output.txt").read_text(encoding="utf-8", errors="replace")


class Jobs:
    """The jobs in a folder."""

    def __init__(self, root: Path):
        self.root = root

    def prepare(self, kind: str) -> Path:
        """A new folder for a job, with an empty folder `files` inside; `start` makes it a job."""
        while True:
            path = self.root / f"{time.time_ns() // 1_000_000}-{kind}"
            try:
                (path / "files").mkdir(parents=True)
                return path
            except FileExistsError:
                time.sleep(0.001)  # the names of jobs are in the order of their starts

    def start(self, path: Path, title: str, arguments: list[str], **details: Any) -> Job:
        """Runs `engine ARGUMENTS` as the job of the folder that `prepare` made, or again as that of a job that has
        ended. details: JSON-ready, kept with it."""
        kind = path.name.partition("-")[2]
        (path / "exit").unlink(missing_ok=True)
        about = {"kind": kind, "title": title, "arguments": arguments, "details": details, "started": time.time()}
        _write(path / "job.json", about)
        with (path / "output.txt").open("wb") as output, (path / "messages.txt").open("wb") as messages:
            process = detached([sys.executable, "-m", "app.job", str(path)], output, messages)
        _write(path / "job.json", about | {"pid": process.pid, "create_time": _create_time(process.pid)})
        self._prune(kind)
        return self.get(path.name)

    def list(self, kind: str) -> list[Job]:
        """Jobs of a kind, newest first."""
        if not self.root.is_dir():
            return []
        found = (_read(path) for path in self.root.iterdir() if path.name.endswith(f"-{kind}"))
        return sorted(filter(None, found), key=lambda job: job.id, reverse=True)

    def states(self) -> list[tuple[str, str]]:
        """(id, state) of every job, oldest first. Those that have ended are only looked at."""
        if not self.root.is_dir():
            return []
        found = []
        for path in sorted(path for path in self.root.iterdir() if path.is_dir()):
            ended = changed_at(path / "exit")
            job = None if ended else _read(path)
            found.append((path.name, f"ended {ended}" if ended else job.state if job else "none"))
        return found

    def get(self, id: str) -> Job:
        """The job of that id. Raises ConfigError."""
        names = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        job = _read(self.root / id) if id in names else None
        if job is None:
            raise ConfigError("this job is not there any more")
        return job

    def stop(self, id: str) -> None:
        """Asks a running job to end; what it was making goes, or goes on with the same command."""
        process = _process(_json(self.get(id).path / "job.json"))
        if process is not None:
            process.terminate()

    def remove(self, id: str) -> None:
        """Deletes a job that has ended, with its files. Raises ConfigError while it runs."""
        job = self.get(id)
        if job.state == "running":
            raise ConfigError(f"{job.title} is still running; stop it first")
        shutil.rmtree(job.path, ignore_errors=True)

    def _prune(self, kind: str) -> None:
        for job in self.list(kind)[KEPT:]:
            if job.state != "running":
                shutil.rmtree(job.path, ignore_errors=True)


def detached(command: list[str], output: Any, messages: Any) -> subprocess.Popen:
    """Starts a process that lives on when this one ends. output, messages: binary files for its two streams."""
    if os.name == "nt":
        apart = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        apart = {"start_new_session": True}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=messages, **apart)
    # An ended child stays in the process table until someone asks how it ended.
    threading.Thread(target=process.wait, name=f"reaper of {process.pid}", daemon=True).start()
    return process


def last_lines(file: Path, count: int) -> list[str]:
    """The last lines of a text that may be long and being written, without what a progress bar wrote over."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _read(path: Path) -> Job | None:
    about = _json(path / "job.json")
    if not about:
        return None
    said = last_lines(path / "messages.txt", 1)
    words = re.sub(r"^engine( [a-z]+)*: (error: )?", "", said[0]) if said else ""
    exit_code = _exit_code(path)
    alive = exit_code is None and (_process(about) is not None or "pid" not in about)
    if exit_code is None and not alive:
        exit_code = _exit_code(path)  # it may have ended between the two looks
        words = words if exit_code is not None else "ended without a word: it was killed, or the machine stopped"
    state = "running" if alive else "done" if exit_code == 0 else "failed"
    details = about.get("details", {})
    return Job(path.name, path, about["kind"], about["title"], details, about["started"], state, words)


def _exit_code(path: Path) -> int | None:
    try:
        return int((path / "exit").read_text())
    except (OSError, ValueError):
        return None


def _process(about: dict) -> psutil.Process | None:
    try:
        process = psutil.Process(about["pid"])
        same = abs(process.create_time() - about["create_time"]) <= CREATE_TIME_TOLERANCE
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError):
        return None


def _create_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:  # ended already
        return 0.0


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(file: Path, content: dict) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, file)
