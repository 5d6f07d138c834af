"""Progress on the terminal: a bar that moves, or where nobody watches, a line now and then."""

from __future__ import annotations

import sys


def bar(title: str, unit: str, total: int | None = None, initial: int = 0):  # tqdm is imported late
    """A progress bar on standard error; where that is no terminal, a line every 20 s."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=f" {unit}",
        unit_scale=False,
        mininterval=0.2 if live else 20.0,
        maxinterval=1.0 if live else 30.0,
        file=sys.stderr if live else _LineBars(),
        dynamic_ncols=live,
        ncols=None if live else 120,
        ascii=not live,
        leave=not live,
    )


class _LineBars:
    """A stream on which every refresh of a bar is a line of its own, for logs and pipes."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()
