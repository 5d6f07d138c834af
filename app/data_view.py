"""What the Data page shows, as HTML: figures, warnings in words, curves, rows, and what became of imports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from app.charts import Series, histogram, line_chart
from app.html import SIGNS, chip, duration, escape, facts, note, percent, progress, table, tiles, when
from app.imports import cancelled, outcome, share
from app.jobs import Job
from engine.data.problems import REPORT

ROWS = 3  # of each split, shown at a time
_READ_PROBLEMS = 5000  # lines of the list of rows that were left out
_CELL = 160  # characters of an uploaded table's cell


def overview(report: dict[str, Any], meta: dict[str, Any]) -> str:
    """Figures, warnings and charts of a dataset. report: of `engine data inspect` · meta: `dataset.json`."""
    return f"{_tiles(report)}{_warnings(report, meta)}{_charts(report)}{_origin(report, meta)}"


def _tiles(report: dict[str, Any]) -> str:
    train, test = report["splits"]["train"], report["splits"].get("test")
    frequency, characters = report["frequency"], train["characters"]
    used = report["labels"] - frequency["never"]
    return tiles(
        [
            ("Training texts", f"{train['texts']:,}", f"{characters['median']:,.0f} characters, the middle one"),
            ("Test texts", f"{test['texts']:,}" if test else "none", "held out to measure with" if test else ""),
            ("Labels", f"{report['labels']:,}", f"{used:,} of them in training texts"),
            (
                "Labels of a text",
                f"{train['labels_per_text']['mean']:.1f}",
                f"{train['labels_per_text']['highest']:,} at most",
            ),
            ("Texts of a label", f"{train['positives'] / max(used, 1):.1f}", f"{frequency['highest']:,} at most"),
        ]
    )


def _warnings(report: dict[str, Any], meta: dict[str, Any]) -> str:
    said = "".join(f"<li>{escape(words)}</li>" for words in warnings(report, meta))
    if not said:
        return note("nothing about these data stands out")
    return f'<h3 class="head">Worth knowing</h3><ul class="warnings">{said}</ul>'


def warnings(report: dict[str, Any], meta: dict[str, Any]) -> Iterator[str]:
    """One sentence for each thing that a person should know before training."""
    train, test = report["splits"]["train"], report["splits"].get("test")
    frequency, only, labels = report["frequency"], report["only_in_test"], report["labels"]
    left_out = meta.get("details", {}).get("problems", {})
    if left_out:
        yield f"{_count(sum(left_out.values()), 'row')} of the files could not be used; they are listed below."
    if n := train["without_labels"]:
        yield f"{_count(n, 'training text')} ({percent(n / train['texts'])}) without any label: nothing is learnt from them but to say nothing."
    if n := train["repeated_texts"]:
        yield f"{_count(n, 'training text')} ({percent(n / train['texts'])}) stand there before, word by word."
    if n := frequency["once"]:
        yield f"{_count(n, 'label')} ({percent(n / labels)}) seen in one training text only: hard to learn."
    if n := frequency["never"] - only["labels"]:
        yield f"{_count(n, 'label')} that no text has: they cost memory and are never predicted with good reason."
    if n := only["labels"]:
        examples = ", ".join(only["examples"][:3])
        yield f"{_count(n, 'label')} in test texts alone: no training can teach them. Such as {examples}."
    if test and (n := test["without_labels"]):
        yield f"{_count(n, 'test text')} without any label: every prediction for them counts as wrong."
    if n := report["overlap"]:
        yield f"{_count(n, 'test text')} ({percent(n / test['texts'])}) are training texts too: the scores will look better than they are."
    if test is None:
        yield "No test texts: a training cannot say how good its model is. Import again with a test share."


def _charts(report: dict[str, Any]) -> str:
    train = report["splits"]["train"]
    ranks, frequencies = zip(*report["frequency"]["curve"], strict=True) if report["frequency"]["curve"] else ((), ())
    return (
        '<div class="charts">'
        + line_chart(
            "How often labels occur", [Series("rarest label", ranks, frequencies)], "rank of the label, the most frequent first",
            log_x=True, log_y=True,
        )
        + histogram("Lengths of the training texts", _trimmed(train["characters"]["histogram"]), "characters, from", "texts")
        + histogram("Labels of the training texts", train["labels_per_text"]["histogram"], "labels, from", "texts")
        + "</div>"
    )  # fmt: skip


def _trimmed(bins: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Without the empty bins in front."""
    first = next((i for i, (_, _, count) in enumerate(bins) if count), 0)
    return list(bins[first:])


def _origin(report: dict[str, Any], meta: dict[str, Any]) -> str:
    details, rows = meta.get("details", {}), []
    if "format" in details:
        rows.append(("Files", f"{', '.join(meta['sources'])} ({details['format']})"))
    if details.get("delimiter") is not None:
        signs = {"": "nothing, a field is one label", " ": "a space", "\t": "a tab", "list": "written as a list"}
        rows.append(("Between labels", signs.get(details["delimiter"], details["delimiter"])))
    if "test_fraction" in details:
        rows.append(
            ("Held out for testing", f"{percent(details['test_fraction'])}, chosen with seed {details['seed']}")
        )
    rows.append(("Folder", report["path"]))
    return f'<h3 class="head">Where it comes from</h3>{facts(rows)}'


def left_out(folder: Path, details: dict[str, Any]) -> str:
    """The rows that an import left out, by what is wrong with them, the first of each with its place."""
    counts = details.get("problems")
    if not counts:
        return ""
    first: dict[str, dict[str, str]] = {}
    with suppress(OSError, ValueError), (folder / REPORT).open(encoding="utf-8") as file:
        for line in islice(file, _READ_PROBLEMS):
            problem = json.loads(line)
            first.setdefault(problem["kind"], problem)
    rows = [
        (
            kind,
            f"{count:,}",
            Path(first[kind]["where"]).name if kind in first else "",
            first.get(kind, {}).get("what", ""),
        )
        for kind, count in counts.items()
    ]
    head = f'<h3 class="head">Rows that were left out</h3>{table(("What", "Rows", "First", "What is wrong there"), rows, [1], "rows left out")}'
    return head + facts([("All of them", str(folder / REPORT))])


def rows(report: dict[str, Any], page: int) -> str:
    """Some of the sampled rows with their labels. page: which ones, from 0, beginning again after the last."""
    shown = []
    for split in report["splits"]:
        samples = [sample for sample in report["samples"] if sample["split"] == split]
        start = page * ROWS % max(len(samples), 1)
        shown += (samples[start:] + samples[:start])[:ROWS] if len(samples) > ROWS else samples
    return f'<h3 class="head">Texts and their labels</h3><ul class="rows">{"".join(map(_row, shown))}</ul>'


def _row(sample: dict[str, Any]) -> str:
    labels = "".join(f'<span class="label">{escape(label)}</span>' for label in sample["labels"])
    if sample["more_labels"]:
        labels += f'<span class="more">and {sample["more_labels"]:,} more</span>'
    return (
        f'<li><div class="text">{escape(sample["text"])}</div>'
        f'<div class="labels">{labels or "<span class=more>no label</span>"}</div>'
        f'<div class="split">{escape(sample["split"])} text {escape(sample["uid"])}</div></li>'
    )


def uploaded(found: dict[str, Any]) -> str:
    """What the files hold that were uploaded: see `engine.data.columns.look_at`."""
    files = ", ".join(
        f"{name} for {'training' if split == 'train' else 'testing'}" for split, name in found["splits"].items()
    )
    if not found["columns"]:
        return note(f"understood as {found['format']}: {files}")
    cells = [[cell if len(cell) <= _CELL else cell[: _CELL - 1] + "…" for cell in row] for row in found["rows"]]
    count = f"{len(cells)} first rows" if len(cells) > 1 else "first row" if cells else "no rows"
    return note(f"{files}; the {count}:") + table(found["columns"], cells, label="first rows of the file")


def running(job: Job) -> str:
    """The progress of an import."""
    done = share(job.words)
    if done is None:
        return progress(0, f"{job.title}, since {when(job.started)}…")
    left = "" if done[1] is None else f", about {duration(done[1])} left" if done[0] < 1 else ", almost ready"
    return progress(done[0], f"{job.title}: {100 * done[0]:.0f} %{left}")


def ended(job: Job) -> str:
    """What became of an import."""
    state = "stopped" if cancelled(job) else "completed" if job.state == "done" else "failed"
    words = {"stopped": "cancelled", "completed": "imported", "failed": "failed"}[state]
    role = ' role="alert"' if state == "failed" else ""
    return f'<p class="note"{role}>{chip(state, words)} {escape(job.details["dataset"])}: {escape(outcome(job))}</p>'


def past(jobs: Sequence[Job]) -> str:
    """The imports so far."""
    if not jobs:
        return note("no imports yet")
    rows = []
    for job in jobs:
        state = "running" if job.state == "running" else "cancelled" if cancelled(job) else job.state
        sign = SIGNS.get({"done": "completed", "cancelled": "stopped"}.get(state, state), "●")
        rows.append(
            (
                when(job.started),
                job.details["dataset"],
                f"{sign} {state}",
                outcome(job) if job.state != "running" else "",
            )
        )
    return table(("Started", "Dataset", "State", "What it says"), rows, label="imports so far")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
