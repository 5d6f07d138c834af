"""Small pieces of HTML. What they are given is plain text and is escaped here, and only here."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

GIB, MIB = 2**30, 2**20
SIGNS = {
    "completed": "✓", "stopped": "■", "failed": "✗", "queued": "…", "preparing": "●", "training": "●",
    "evaluating": "●",
}  # fmt: skip


def escape(text: object) -> str:
    return html.escape(str(text))


def capital(text: str) -> str:
    """The text with a capital at its beginning, but for names of settings and files, which stay as they are."""
    first = text.split(" ", 1)[0]
    return text if "." in first[:-1] else text[:1].upper() + text[1:]


def note(text: str, problem: bool = False) -> str:
    """A remark of one sentence."""
    text = capital(text) + ("" if text.endswith((".", "?", "…")) else ".")
    kind = 'class="note problem" role="alert"' if problem else 'class="note"'
    return f"<p {kind}>{escape(text)}</p>"


def chip(state: str, text: str = "") -> str:
    """The state of something: a sign and a word, in a colour that only repeats what they say."""
    sign = f'<span aria-hidden="true">{SIGNS.get(state, "●")}</span>'
    return f'<span class="chip {escape(state)}">{sign} {escape(text or state)}</span>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names beside values; those without a value are left out."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f'<dl class="facts">{cells}</dl>'


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """(name, value, remark) of numbers worth a box each."""
    cells = "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="remark">{escape(remark)}</div></div>'
        for name, value, remark in rows
    )
    return f'<div class="tiles">{cells}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), label: str = "") -> str:
    """A table that scrolls sideways where it is too wide. numbers: columns set flush right."""
    kinds = ['class="number"' if i in numbers else "" for i in range(len(header))]
    head = "".join(f'<th scope="col" {kind}>{escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label or "table")}">'
        f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def progress(share: float, text: str) -> str:
    """A bar; share: 0 to 1."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}" '
        f'aria-label="{escape(text)}"><div class="fill" style="width:{percent:.2f}%"></div></div>'
        f'<div class="progress-text">{escape(text)}</div>'
    )


def code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 for people; nothing for what is not known."""
    return f"{100 * fraction:.{digits}f} %" if isinstance(fraction, int | float) else ""


def size(bytes_: float | None) -> str:
    """A number of bytes for people."""
    if bytes_ is None:
        return ""
    return f"{bytes_ / GIB:.2f} GiB" if bytes_ >= GIB else f"{bytes_ / MIB:,.0f} MiB"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return ""
    seconds = round(max(0, seconds))
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def when(timestamp: float) -> str:
    """A time of day of today, or else a date and a time; the machine's time zone."""
    same = datetime.fromtimestamp(timestamp).date() == datetime.fromtimestamp(time.time()).date()
    return f"{datetime.fromtimestamp(timestamp):{'%H:%M:%S' if same else '%Y-%m-%d %H:%M'}}"
