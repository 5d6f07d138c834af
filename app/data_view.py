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
from engine.words import counted

ROWS = 3  # of each split, shown at a time
ENDED = {"completed": "imported", "stopped": "cancelled", "failed": "failed"}
_READ_PROBLEMS = 5000  # lines of the list of rows that were left out
_CELL = 160  # characters of an uploaded table's cell


def overview(report: dict[str, Any], meta: dict[str, Any]) -> str:
    """Figures, warnings and charts of a dataset. report: of `engine data inspect` · meta: `dataset.json`."""
    return f"{_tiles(report)}{_warnings(report, meta)}{_charts(report)}"


def _tiles(report: dict[str, Any]) -> str:
    train, test = report["splits"]["train"], report["splits"].get("test")
    frequency, characters = report["frequency"], train["characters"]
    used = report["labels"] - frequency["never"]
    return tiles(
        [
            ("Training texts", f"{train['texts']:,}", f"median length {characters['median']:,.0f} characters"),
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
    """A sentence or two for each thing that a person should know before training."""
    train, test = report["splits"]["train"], report["splits"].get("test")
    frequency, only, labels = report["frequency"], report["only_in_test"], report["labels"]
    if n := sum(meta.get("details", {}).get("problems", {}).values()):
        yield f"Left out: {counted(n, 'row')} of the files, for the reasons below."
    if meta.get("details", {}).get("unused_delimiter"):
        yield (
            f"No field of labels has the sign {meta['details']['delimiter']!r} that was to stand between two labels, "
            "so every field is one label. Import again with the sign that is found, if there are several in a field."
        )
    if n := train["without_labels"]:
        yield f"Without any label: {_of(n, train['texts'], 'training text')}. Training skips them."
    if n := train["repeated_texts"]:
        yield f"Repeating another one word for word: {_of(n, train['texts'], 'training text')}."
    if n := frequency["once"]:
        yield f"In one training text only: {_of(n, labels, 'label')}. They are hard to learn."
    if n := frequency["never"] - only["labels"]:
        yield f"In no text at all: {_of(n, labels, 'label')}. They cost memory and cannot be learnt."
    if n := only["labels"]:
        examples = ", ".join(only["examples"][:3])
        yield f"In test texts alone: {_of(n, labels, 'label')}, such as {examples}. They cannot be learnt."
    if test and (n := test["without_labels"]):
        yield f"Without any label: {_of(n, test['texts'], 'test text')}. The scores leave them out."
    if test and (n := report["overlap"]):
        yield (
            f"Also among the training texts: {_of(n, test['texts'], 'test text')}. "
            "They make the scores look better than they are."
        )
    if test is None:
        yield "No test texts, so no training can say how good its model is. Import again with a share held out."


def _charts(report: dict[str, Any]) -> str:
    train, curve = report["splits"]["train"], report["frequency"]["curve"]
    ranks, frequencies = zip(*curve, strict=True) if curve else ((), ())
    lengths, sizes = train["characters"]["histogram"], train["labels_per_text"]["histogram"]
    drawn = [
        line_chart(
            "Training texts of a label",
            [Series("labels", ranks, frequencies)],
            "rank of the label, the most frequent first",
            log_x=True,
            log_y=True,
            legend=False,
        ),
        histogram("Lengths of the training texts", _trimmed(lengths), "characters, from", "texts"),
        histogram("Labels of a training text", sizes, "labels, from", "texts"),
    ]
    return f'<div class="charts small">{"".join(drawn)}</div>'


def _trimmed(bins: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Without the empty bins in front."""
    first = next((i for i, (_, _, count) in enumerate(bins) if count), 0)
    return list(bins[first:])


def origin(folder: Path, meta: dict[str, Any]) -> str:
    """Where a dataset comes from and what its import decided, and the rows that it left out."""
    details, known = meta.get("details", {}), []
    if "format" in details:
        known.append(("Files", f"{', '.join(meta['sources'])} ({details['format']})"))
    if details.get("delimiter") is not None:
        signs = {"": "nothing, a field is one label", " ": "a space", "\t": "a tab", "list": "written as a list"}
        known.append(("Between labels", signs.get(details["delimiter"], details["delimiter"])))
    if "test_fraction" in details:
        share, seed = details["test_fraction"], details["seed"]
        known.append(("Held out for testing", f"{100 * share:g} % of the texts, chosen with seed {seed}"))
    known.append(("Folder", str(folder.resolve())))
    return f'{_left_out(folder, details)}<h3 class="head">Where it comes from</h3>{facts(known)}'


def _left_out(folder: Path, details: dict[str, Any]) -> str:
    """The rows that an import left out, by what is wrong with them; the first of each with its place."""
    counts = details.get("problems")
    if not counts:
        return ""
    first: dict[str, tuple[str, str]] = {}
    with suppress(OSError, ValueError), (folder / REPORT).open(encoding="utf-8") as file:
        for line in islice(file, _READ_PROBLEMS):
            problem = json.loads(line)
            first.setdefault(problem["kind"], (Path(problem["where"]).name, problem["what"]))
    found = [(kind, f"{count:,}", *first.get(kind, ("", ""))) for kind, count in counts.items()]
    listed = table(("What", "Rows", "First", "What is wrong there"), found, [1], "rows that were left out")
    all_of_them = facts([("All of them", str((folder / REPORT).resolve()))])
    return f'<h3 class="head">Rows that were left out</h3>{listed}{all_of_them}'


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
    return note(f"{files}. First rows") + table(found["columns"], cells, label="first rows of the file")


def running(job: Job) -> str:
    """The progress of an import."""
    title, done = job.title[:1].upper() + job.title[1:], share(job.words)
    if done is None:
        return progress(0, f"{title}, since {when(job.started)}…")
    left = ", almost ready" if done[0] == 1 else "" if done[1] is None else f", about {duration(done[1])} left"
    return progress(done[0], f"{title}: {100 * done[0]:.0f} %{left}")


def ended(job: Job) -> str:
    """What became of an import."""
    state = _state(job)
    role = ' role="alert"' if state == "failed" else ""
    words = f"{chip(state, ENDED[state])} {escape(job.details['dataset'])}: {escape(outcome(job))}"
    return f'<p class="note"{role}>{words}</p>'


def _state(job: Job) -> str:
    """The word that signs and colours go by."""
    return "completed" if job.state == "done" else "stopped" if cancelled(job) else "failed"


def past(jobs: Sequence[Job]) -> str:
    """The imports so far."""
    if not jobs:
        return note("no imports yet")
    found = [(when(job.started), job.details["dataset"], *_became(job)) for job in jobs]
    return table(("Started", "Dataset", "State", "What it says"), found, label="imports so far")


def _became(job: Job) -> tuple[str, str]:
    if job.state == "running":
        return "● running", ""
    return f"{SIGNS[_state(job)]} {ENDED[_state(job)]}", outcome(job)


def _of(count: int, total: int, what: str) -> str:
    return f"{counted(count, what)} ({percent(count / total)})"
