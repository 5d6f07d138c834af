"""Several runs beside each other, and the list of all, in HTML."""

from __future__ import annotations

from collections.abc import Sequence

from app.charts import Series, line_chart
from app.history import Histories
from app.html import chip, duration, escape, percent, size, when
from app.live import percent_tick, read
from app.settings import HIDDEN, named, shown
from app.words import explained
from engine.runs import RunSummary

COLUMNS = ("Run", "State", "Steps", "Labels", "Fan-in", "P@1", "P@5", "Peak memory", "Time", "Started")
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5")


def listing(runs: Sequence[RunSummary], results: Sequence[dict]) -> str:
    """All runs as a table; the name of each is a button that carries its id."""
    rows = []
    for run, result in zip(runs, results, strict=True):
        share = f"{run.step / run.total:.0%} of {run.total:,}" if run.total else ""
        numbers = (
            share,
            f"{run.labels:,}" if run.labels else "",
            str(run.fan_in or ""),
            percent(run.metrics.get("P@1")),
            percent(run.metrics.get("P@5")),
            size(result.get("peak_memory_bytes")),
            duration(result.get("wall_seconds")),
        )
        cells = "".join(f'<td class="number">{escape(text)}</td>' for text in numbers)
        problem = f'<div class="note">{escape(run.message)}</div>' if run.message and run.state != "completed" else ""
        rows.append(
            f'<tr><th scope="row"><button type="button" class="link" data-run="{escape(run.id)}">{escape(run.id)}'
            f"</button>{problem}</th><td>{chip(run.state)}</td>{cells}<td>{when(run.started)}</td></tr>"
        )
    head = "".join(
        f'<th scope="col"{"" if i in (0, 1, 9) else " class=number"}>{explained(name)}</th>'
        for i, name in enumerate(COLUMNS)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="list runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def compare(runs: Sequence[RunSummary], histories: Histories) -> str:
    """Curves over each other, results beside each other, and the settings that differ."""
    charts = []
    for title, name, tick in (("Loss", "loss", None), ("P@1 on validation", "P@1", percent_tick)):
        lines = [Series(run.id, *histories.of(run.path).curve(name).thinned(), colour=i) for i, run in enumerate(runs)]
        form = {"y_format": tick, "points": True} if tick else {}
        charts.append(line_chart(title, lines, **form))
    return f'<div class="charts wide">{"".join(charts)}</div>{_results(runs)}{_settings(runs)}'


def _results(runs: Sequence[RunSummary]) -> str:
    results = [read(run, "result.json") for run in runs]
    rows = [(explained(name), [percent(run.metrics.get(name)) for run in runs]) for name in METRICS]
    rows.append(("peak memory", [size(result.get("peak_memory_bytes")) for result in results]))
    rows.append(("time", [duration(result.get("wall_seconds")) for result in results]))
    rows.append(("state", [run.state for run in runs]))
    return _beside("Results", runs, [(name, cells) for name, cells in rows if any(cells)], mark=False)


def _settings(runs: Sequence[RunSummary]) -> str:
    configs = [read(run, "config.json").get("config", {}) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [
        (escape(named(key)), [shown(config.get(key, "")) for config in configs])
        for key in keys
        if key not in HIDDEN or key == "data.path"
    ]
    different = [(name, cells) for name, cells in rows if len(set(cells)) > 1]
    same = len(rows) - len(different)
    if not different:
        return '<p class="note">All settings are the same.</p>'
    return _beside("Settings that differ", runs, different, mark=True) + (
        f'<p class="note">The other {same} settings are the same.</p>'
    )


def _beside(title: str, runs: Sequence[RunSummary], rows: Sequence[tuple[str, list[str]]], mark: bool) -> str:
    """rows: (name in HTML, cells of the runs)."""
    head = "".join(
        f'<th scope="col"><i class="swatch fill{i % 8}"></i>{escape(run.id)}</th>' for i, run in enumerate(runs)
    )
    body = "".join(
        f'<tr{" class=differs" if mark else ""}><th scope="row">{name}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    table = f'<table class="list"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    frame = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div>'
    return f"<h3 class=head>{escape(title)}</h3>{frame}"
