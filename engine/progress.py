"""Progress on the terminal: a bar that moves, or where nobody watches, a line now and then."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

INTERVAL = "ENGINE_PROGRESS_SECONDS"  # environment variable: time between two lines, for whoever reads them


def bar(title: str, unit: str, total: int | None = None, initial: int = 0):  # tqdm is imported late
    """A progress bar on standard error; where that is no terminal, a line every 10 s, or as INTERVAL says."""
    from tqdm import tqdm

    live = sys.stderr.isatty() and shutil.get_terminal_size((100, 24)).lines > 1
    seconds = float(os.environ.get(INTERVAL, 10))
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=f" {unit}",
        unit_scale=False,
        delay=0.0 if live else min(2.0, seconds),  # in a log, what is done at once needs no line
        mininterval=0.2 if live else seconds,
        maxinterval=1.0 if live else 2 * seconds,
        file=Terminal() if live else _Lines(),
        dynamic_ncols=live,
        ncols=None if live else 120,
        ascii=not live,
        leave=not live,
    )


class Terminal:
    """Standard error; writing to one whose reader has left is not worth a training."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class _Lines(Terminal):
    """A stream on which every refresh of a bar is a line of its own, for logs and pipes."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            super().write(text + "\n")
            self.flush()
