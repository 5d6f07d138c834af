"""What this machine is: what `engine doctor` said of it, asked by a process of its own.

The interface itself never touches a GPU: looking at one takes some hundred MiB of its memory. Until the first answer
of this interface is there, that of an earlier one holds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from app.jobs import Job, Jobs
from engine.planning.hardware import Hardware, cpu_compute

KIND = "doctor"
REMEMBERED = "machine.json"  # in the folder of the jobs


class Machine:
    """Asks when it is made, and again on request; thread-safe. `report` is None until the first answer."""

    def __init__(self, jobs: Jobs):
        self.jobs = jobs
        self.problem = ""  # why there is no answer
        self._report: dict[str, Any] | None = self._remembered()
        self._job: Job | None = None
        self._lock = threading.Lock()
        self.ask()

    def ask(self) -> None:
        """Looks again, unless somebody is looking already."""
        with self._lock:
            if self._job is None:
                self._job = self.jobs.start(self.jobs.prepare(KIND), "looking at this machine", ["doctor", "--json"])

    @property
    def asking(self) -> bool:
        self._look()
        return self._job is not None

    @property
    def report(self) -> dict[str, Any] | None:
        """The latest answer: see `engine.planning.doctor.examine`."""
        self._look()
        return self._report

    def wait(self, seconds: float) -> bool:
        """Whether there is an answer, after waiting for it for so long at most."""
        end = time.monotonic() + seconds
        while self.report is None and self._job is not None and time.monotonic() < end:
            time.sleep(0.2)
        return self._report is not None

    def hardware(self) -> Hardware | None:
        """What is planned for on this machine; None until it is known, and where training does not work."""
        report = self.report
        if not report or not report["device"]:
            return None
        memory, cores = report["memory"], report["cpu"]["cores"]
        if report["device"] == "cuda":
            gpu = report["gpus"][0]
            return Hardware("cuda", gpu["name"], gpu["total_bytes"], cores, gpu["compute"], gpu["free_bytes"])
        return Hardware("cpu", "CPU", memory["usable"], cores, cpu_compute(), memory["free"])

    @property
    def profile(self) -> str | None:
        """The built-in profile for this machine; None until it is known."""
        return ((self.report or {}).get("profile") or {}).get("name")

    def _look(self) -> None:
        with self._lock:
            if self._job is None:
                return
            job = self.jobs.get(self._job.id)
            if job.state == "running":
                return
            self._job = None
            try:
                self._report, self.problem = json.loads(job.output()), ""
                self._remember(job.output())
            except ValueError:
                self.problem = job.words or "engine doctor said nothing"
            self.jobs.remove(job.id)

    def _remembered(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.jobs.root / REMEMBERED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _remember(self, report: str) -> None:
        temporary = self.jobs.root / f"{REMEMBERED}.tmp"
        temporary.write_text(report, encoding="utf-8")
        os.replace(temporary, self.jobs.root / REMEMBERED)
