"""Charts as SVG, drawn here: they fit any width and both themes, and ask the browser for no library.

Lines stretch with the page; the numbers beside them are HTML, which does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.html import escape

COLOURS = 8  # .c0 to .c7 of the style sheet
BARS_NAMED = 7  # of a histogram


@dataclass(frozen=True)
class Series:
    """One line. x, y: numbers of equal length, x ascending · colour: number of the colour; None: by position ·
    dashed: for what is a bound or a prediction.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int | None = None
    dashed: bool = False


def plain(value: float) -> str:
    """A number on an axis."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        for size, letter in ((1e9, "G"), (1e6, "M")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}"
        return f"{value:.0e}"
    return f"{value:,.10g}"


def short(value: float) -> str:
    """A number under a bar: 16384 -> 16k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * size:
            return f"{value / size:.0f}{letter}"
    return f"{value:,.0f}"


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str = "step",
    x_format: Callable[[float], str] = plain,
    y_format: Callable[[float], str] = plain,
    log_x: bool = False,
    log_y: bool = False,
    points: bool = False,
    from_zero: bool = False,
    legend: bool = True,
) -> str:
    """Lines over each other. points: mark every value · from_zero: the y axis begins there · legend: name
    the lines. Values that a logarithmic axis cannot show, and those that are not finite, are left out.
    """
    drawn = []
    for i, line in enumerate(series):
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        keep = np.isfinite(x) & np.isfinite(y) & ~(log_x & (x <= 0)) & ~(log_y & (y <= 0))
        if keep.any():
            drawn.append((line, x[keep], y[keep], (i if line.colour is None else line.colour) % COLOURS))
    if not drawn:
        return _figure(title, '<div class="empty">nothing measured yet</div>', "")
    xs, ys = np.concatenate([x for _, x, _, _ in drawn]), np.concatenate([y for _, _, y, _ in drawn])
    across = _Axis(xs.min(), xs.max(), log_x, tight=True, whole=bool((xs == xs.round()).all()))
    up = _Axis(0.0 if from_zero else ys.min(), ys.max(), log_y)
    shapes = []
    for line, x, y, colour in drawn:
        at = " ".join(f"{100 * across.at(a):.2f},{100 - 100 * up.at(b):.2f}" for a, b in zip(x, y, strict=True))
        style = f'class="line c{colour}{" dashed" if line.dashed else ""}"'
        shapes.append(f'<polyline {style} points="{at}"/>')
        if points or len(x) == 1:
            shapes += [
                f'<path class="dot c{colour}" d="M{100 * across.at(a):.2f} {100 - 100 * up.at(b):.2f}h0">'
                f"<title>{escape(line.name)}: {escape(y_format(b))} at {escape(x_label)} {escape(x_format(a))}</title>"
                "</path>"
                for a, b in zip(x, y, strict=True)
            ]
    keys = "".join(
        f'<span class="key"><i class="c{colour}{" dashed" if line.dashed else ""}"></i>{escape(line.name)} '
        f"<b>{escape(y_format(float(f'{y[-1]:.6g}')))}</b></span>"
        for line, _, y, colour in drawn
    )
    return _figure(title, _plot(across, up, shapes, x_label, x_format, y_format), keys if legend else "")


def histogram(title: str, bins: Sequence[Sequence[int]], x_label: str, y_label: str, log_y: bool = False) -> str:
    """Bars of (lowest, highest, count), side by side whatever their widths."""
    bins = [tuple(entry) for entry in bins]
    if not bins:
        return _figure(title, '<div class="empty">nothing to count</div>', "")
    most = max(count for _, _, count in bins)
    up = _Axis(0.5 if log_y else 0.0, max(most, 1), log_y)
    columns = []
    every = math.ceil(len(bins) / BARS_NAMED)
    for i, (low, high, count) in enumerate(bins):
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        tall = max(100 * up.at(count), 0.6) if count else 0.0
        columns.append(
            f'<div class="column" title="{escape(f"{name}: {count:,} {y_label}")}">'
            f'<div class="bar" style="height:{tall:.1f}%"></div>'
            f'<span class="tick">{escape(short(low)) if i % every == 0 else ""}</span></div>'
        )
    marks = "".join(
        f'<span style="bottom:{100 * up.at(value):.1f}%">{escape(plain(value))}</span>'
        for value in up.ticks
        if value >= 1 or not log_y
    )
    body = (
        f'<div class="columns"><div class="y">{marks}</div><div class="bars">{"".join(columns)}</div></div>'
        f'<div class="x-label">{escape(x_label)}</div>'
    )
    return _figure(title, body, "", described=f"{title}, {len(bins)} bars, the highest {most:,} {y_label}")


class _Axis:
    """From numbers to places between 0 and 1. tight: the ends are the lowest and highest value, not ticks · whole: only
    whole numbers are ticks.
    """

    def __init__(self, low: float, high: float, log: bool, tight: bool = False, whole: bool = False):
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = (low - 0.5, high + 0.5)
        if log:
            step = max(1, math.ceil((high - low) / 5))
            first, last = math.floor(low), math.ceil(high)
            places = [float(n) for n in range(first, last + 1, step)]
        else:
            step = max(_step((high - low) / 4), float(whole))
            first, last = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
            places = [first + step * n for n in range(round((last - first) / step) + 1)]
        self.low, self.high = (low, high) if tight else (min(low, places[0]), max(high, places[-1]))
        inside = [p for p in places if self.low - 1e-9 <= p <= self.high + 1e-9]
        self.ticks = [10**p for p in inside] if log else inside

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return (place - self.low) / (self.high - self.low)


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _plot(across: _Axis, up: _Axis, shapes: list[str], x_label: str, x_format, y_format) -> str:
    lines = "".join(f'<path class="grid" d="M0 {100 - 100 * up.at(v):.2f}h100"/>' for v in up.ticks)
    left = "".join(f'<span style="bottom:{100 * up.at(v):.2f}%">{escape(y_format(v))}</span>' for v in up.ticks)
    places = [(100 * across.at(v), x_format(v)) for v in across.ticks]
    below = "".join(
        f'<span class="{"first" if at < 4 else "last" if at > 96 else ""}" style="left:{at:.2f}%">{escape(text)}</span>'
        for at, text in places
    )
    return (
        f'<div class="plot"><div class="y">{left}</div><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{lines}{"".join(shapes)}</svg><div class="x">{below}</div></div>'
        f'<div class="x-label">{escape(x_label)}</div>'
    )


def _figure(title: str, body: str, legend: str, described: str = "") -> str:
    return (
        f'<figure class="chart" role="img" aria-label="{escape(described or title)}"><figcaption>{escape(title)}'
        f'<span class="legend">{legend}</span></figcaption>{body}</figure>'
    )
