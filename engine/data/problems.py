"""What is wrong in source files: counted by kind, the first of each kept for the person, all of them for a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.errors import DataError

REPORT = "import-problems.jsonl"
MOST_LISTED = 100_000  # of a kind; a file of nothing but bad rows would make a report of many times its size


@dataclass
class Kind:
    """Problems of one kind: how many, and the message of the first, with its place."""

    count: int
    first: str


class Problems:
    """Collects the rows that cannot be imported.

    strict: the first problem is raised as a DataError instead.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.kinds: dict[str, Kind] = {}
        self._folder: Path | None = None
        self._report: IO[str] | None = None

    def report_in(self, folder: Path) -> None:
        """From now on a problem is a JSON line (`kind`, `where`, `what`) of the file REPORT in `folder`.

        Of a kind with more than MOST_LISTED the rest is one line (`kind`, `not_listed`) at the end.
        """
        self._folder = folder

    def add(self, kind: str, where: str, what: str) -> None:
        """Notes a problem. where: "file:line".  what: what is wrong there, and what to do."""
        if self.strict:
            raise DataError(f"{where}: {what}")
        known = self.kinds.setdefault(kind, Kind(0, f"{where}: {what}"))
        known.count += 1
        if self._folder is not None and known.count <= MOST_LISTED:
            if self._report is None:
                self._report = open(self._folder / REPORT, "w", encoding="utf-8")  # noqa: SIM115  closed by close()
            self._report.write(json.dumps({"kind": kind, "where": where, "what": what}) + "\n")

    def counts(self) -> dict[str, int]:
        """Number of problems of every kind."""
        return {name: kind.count for name, kind in self.kinds.items()}

    def first(self) -> str | None:
        """The message of the first of all, if there was any."""
        return next((kind.first for kind in self.kinds.values()), None)

    def close(self) -> None:
        """Completes the report. Closing twice does nothing."""
        if self._report is not None and not self._report.closed:
            with self._report as report:
                for name, kind in self.kinds.items():
                    if kind.count > MOST_LISTED:
                        report.write(json.dumps({"kind": name, "not_listed": kind.count - MOST_LISTED}) + "\n")
