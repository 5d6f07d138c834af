"""One run as it is now, in HTML: its state and progress, the numbers that matter, the curves, and what happened."""

from __future__ import annotations

import re
import time
from datetime import datetime

from app.charts import Series, line_chart
from app.history import History
from app.html import GIB, chip, duration, escape, note, percent, progress, size, tiles, when
from app.jobs import last_lines
from app.launch import OUTPUT
from app.words import explained
from engine.errors import DataError
from engine.runs import RunDirectory, RunSummary
from engine.words import counted

LAST_WORDS = 12
SHOWN_EVENTS = 60
ALL_DONE = ("completed",)
COUNTING = re.compile(r"([\d,]+) of ([\d,]+)")  # `computing features: 768 of 18,966 texts`


def head(run: RunSummary, history: History) -> str:
    """State, message and a progress bar with the time that is left."""
    parts = [f'<div class="run-head">{chip(run.state)} <b>{escape(run.id)}</b></div>']
    if run.total:
        share = run.step / run.total
        text = f"step {run.step:,} of {run.total:,} ({share:.0%})"
        left = remaining(run, history)
        if left is not None:
            text += f", {duration(left)} left"
        parts.append(progress(1.0 if run.state in ALL_DONE else share, text))
    counting = COUNTING.search(run.message) if run.state == "preparing" else None
    if counting:
        done, whole = (int(number.replace(",", "")) for number in counting.groups())
        parts.append(progress(done / max(whole, 1), run.message[:1].upper() + run.message[1:]))
    elif run.message and run.state != "completed":
        parts.append(note(run.message, problem=run.state == "failed"))
    return "".join(parts)


def remaining(run: RunSummary, history: History) -> float | None:
    """Seconds that the training steps still take; None where that is not known."""
    if run.state != "training" or history.eta_seconds is None:
        return None
    return max(0.0, history.eta_seconds - (time.time() - history.spoken_at))


def numbers(run: RunSummary, history: History, plan: dict, result: dict) -> str:
    """Tiles: quality, memory against the prediction, speed, time."""
    predicted = plan.get("predicted_bytes")
    measured = result.get("peak_memory_bytes") or history.curve("memory_bytes").last
    host = result.get("host_peak_bytes") or history.curve("host_bytes").last
    rows = []
    if run.metrics:
        found = "  ".join(f"{k} {percent(run.metrics.get(k))}" for k in ("P@3", "P@5") if k in run.metrics)
        rows.append(("Right first label (P@1)", percent(run.metrics.get("P@1")), f"test texts; {found}"))
    elif history.best:
        step, metrics = history.best
        rows.append(("Right first label (P@1)", percent(metrics.get("P@1")), f"validation, best so far, step {step:,}"))
    if history.curve("loss").last is not None:
        rows.append(("Loss", f"{history.curve('loss').last:,.3f}", "lower is better"))
    if measured:
        where = "graphics memory" if plan.get("device") == "cuda" else "memory"
        rows.append((f"Peak {where}", size(measured), f"predicted {size(predicted)}" if predicted else ""))
    if host and plan.get("device") == "cuda":
        rows.append(("Peak host memory", size(host), f"predicted {size(plan.get('host_bytes'))}"))
    speed, over = result.get("instances_per_second"), "texts a second, on average"
    if speed is None:
        speed, over = history.curve("instances_per_second").last, "texts a second now"
    if speed is not None:
        rows.append(("Speed", f"{speed:,.0f}", over))
    if plan:
        dense = plan.get("head") == plan.get("labels")
        fan_in = "dense" if dense else f"{plan['fan_in']:,} of {plan['width']:,}"
        words = plan.get("head_words" if dense else "words")
        beside = f", {words:,} words" if words else ""
        sharing = "" if dense else f", groups of {plan['group_size']}"
        rows.append(("Fan-in", fan_in, f"{counted(plan['labels'], 'label')}{sharing}{beside}"))
    if result.get("wall_seconds"):
        rows.append(("Time", duration(result["wall_seconds"]), "from start to result"))
    return tiles(rows) if rows else ""


def curves(history: History, plan: dict) -> str:
    """Loss, validation metrics, speed, and memory against the prediction."""
    if not history.curves:
        return ""
    loss, speed = (history.curve(name).thinned() for name in ("loss", "instances_per_second"))
    charts = [line_chart("Loss", [Series("training", *loss)])]
    names = [name for name in history.metrics if name.startswith("P@")]
    measured = [Series(name, *history.curve(name).thinned()) for name in names]
    charts.append(line_chart("Validation", measured, y_format=percent_tick, points=True, from_zero=True))
    charts.append(line_chart("Texts a second", [Series("speed", *speed, colour=2)], from_zero=True))
    charts.append(memory_chart(history, plan))
    return f'<div class="charts">{"".join(charts)}</div>'


def memory_chart(history: History, plan: dict) -> str:
    """Measured peaks, and beside them the prediction; of a card, the budget too."""
    on_gpu = plan.get("device") == "cuda"
    steps, values = history.curve("memory_bytes").thinned()
    lines = [Series("graphics card" if on_gpu else "process", steps, values / GIB, colour=0)]
    if on_gpu:
        steps_host, host = history.curve("host_bytes").thinned()
        lines.append(Series("host", steps_host, host / GIB, colour=2))
    if len(steps):
        ends = [steps[0], steps[-1]]
        if plan.get("predicted_bytes"):
            lines.append(Series("predicted", ends, [plan["predicted_bytes"] / GIB] * 2, colour=1, dashed=True))
        if plan.get("budget_bytes") and on_gpu:
            lines.append(Series("budget", ends, [plan["budget_bytes"] / GIB] * 2, colour=7, dashed=True))
    return line_chart("Memory, GiB", lines, y_format=_short, from_zero=True)


def happenings(run: RunSummary, history: History) -> str:
    """The event log in words, newest first; of a failed run the last words of its process before it."""
    parts = []
    if run.state == "failed":
        said = last_lines(run.path / OUTPUT, LAST_WORDS) or last_lines(run.path / "log.txt", LAST_WORDS)
        if said:
            lines = "\n".join(said)
            parts.append(f"<h3 class=head>Last words of the process</h3><pre><code>{escape(lines)}</code></pre>")
    items = "".join(
        f'<li><time datetime="{datetime.fromtimestamp(at).isoformat()}">{when(at)}</time>{explained(text)}</li>'
        for at, text in reversed(history.words[-SHOWN_EVENTS:])
    )
    if items:
        parts.append(f'<h3 class=head>What happened</h3><ul class="log" tabindex="0" aria-label="Events">{items}</ul>')
    return "".join(parts)


def files(run: RunSummary) -> tuple[dict, dict]:
    """(plan.json, result.json) of a run, empty where there is none yet."""
    return read(run, "plan.json"), read(run, "result.json")


def read(run: RunSummary, name: str) -> dict:
    try:
        found = RunDirectory(run.path).read_json(name)
    except (OSError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def percent_tick(fraction: float) -> str:
    """A share on an axis."""
    return f"{100 * fraction:.3g} %"


def _short(value: float) -> str:
    return f"{value:.3g}"
