"""Labels for a whole file: an uploaded file becomes a job that writes its labels to another."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from app.html import chip, facts, note, progress, when
from app.html import duration as span
from app.jobs import Job, Jobs
from engine.data.csv_header import find_header
from engine.errors import ConfigError, DataError, EngineError
from engine.inference.texts import read_texts
from engine.runs import RunDirectory
from engine.words import counted

KIND = "predict"
SAMPLE = 1 << 20  # bytes looked at for the names of columns
# A bar of `engine.progress` in a log: `predicting:  45%|####5     | 1,024/2,048 [00:10<00:12, 100.00 texts/s]`
BAR = re.compile(r"^(\w+): +\d+%\|.*\| *(\d+)/(\d+) \[[\d:]+<([\d:?]+)")
GOES_ON = "the same command goes on"  # what a stopped prediction says


def columns(file: Path) -> list[str]:
    """Names of the columns of a .csv, or of the fields of a .jsonl, that with the longest text in the first row first;
    none of other files."""
    with file.open("rb") as stream:
        text = stream.read(SAMPLE).decode("utf-8-sig", errors="replace")
    first: dict = {}
    if file.suffix == ".csv":
        with suppress(csv.Error):
            lines = io.StringIO(text, newline="\n")
            separator, header = find_header(file, next((line for line in lines if not line.isspace()), ""))
            rows = csv.reader(lines, delimiter=separator)
            first = dict.fromkeys(header, "") | dict(zip(header, next(rows, []), strict=False))
    elif file.suffix == ".jsonl":
        with suppress(ValueError):
            first = json.loads(text.partition("\n")[0])
    fields = first.items() if isinstance(first, dict) else ()
    return [key for key, value in sorted(fields, key=lambda item: -len(str(item[1]))) if isinstance(value, str)]


def start(jobs: Jobs, run: RunDirectory, upload: str | None, column: str | None, k: int) -> Job:
    """Asks the model of `run` for the labels of every text in an uploaded file. Raises an EngineError, before anything
    is started, when its first text cannot be read."""
    if not upload:
        raise ConfigError("choose a file first")
    name = re.sub(r"[^\w.-]", "_", Path(upload).name).lstrip(".-") or "texts.txt"
    folder = jobs.prepare(KIND)
    source = folder / "files" / name
    try:
        try:
            os.link(upload, source)
        except OSError:
            shutil.copyfile(upload, source)
        column = (column or "").strip() or "text"
        if next(read_texts(str(source), column), None) is None:
            raise DataError(f"{name} has no texts")
    except (EngineError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        words = plain(str(error), source.parent)
        raise DataError(words.replace("; name it with --column", "; choose another column")) from None
    output = source.with_name(f"{source.stem}-labels.jsonl")
    arguments = ["predict", str(run.path), "--input", str(source), "--output", str(output), "-k", str(k)]
    arguments += ["--device", "cpu", f"--column={column}"]
    return jobs.start(folder, name, arguments, run=run.id, k=k, output=output.name)


def go_on(jobs: Jobs, id: str) -> None:
    """Goes on with a prediction that was stopped, or died. Raises ConfigError."""
    job = jobs.get(id)
    if job.state != "failed":
        raise ConfigError(f"{job.title} is {job.state}; there is nothing to go on with")
    arguments = json.loads((job.path / "job.json").read_text(encoding="utf-8"))["arguments"]
    jobs.start(job.path, job.title, arguments, **job.details)


def result(job: Job) -> Path | None:
    """The file with the labels, once all of them are there."""
    file = job.files / str(job.details.get("output"))
    return file if job.state == "done" and file.is_file() else None


def view(job: Job) -> str:
    """A job as HTML: what it is, and how far."""
    state = "stopped" if stopped(job) else job.state
    rows = [("Model", str(job.details.get("run"))), ("Labels a text", str(job.details.get("k")))]
    rows.append(("Started", when(job.started)))
    if job.state == "running":
        below = _progress(job.words)
    elif job.state == "done":
        below = note(job.output().strip().rpartition(": ")[2])
    elif state == "stopped":
        done = (
            plain(job.words, job.files).partition(" and kept")[0] if job.words.endswith(GOES_ON) else "nothing is done"
        )
        below = note(f"{done}; the rest can be done later")
    else:
        below = note(plain(job.words, job.files) or "it ended without a word", problem=True)
    return f'<div class="job">{chip(state)}{facts([("File", job.title), *rows])}{below}</div>'


def stopped(job: Job) -> bool:
    """Whether a person stopped it."""
    return job.state == "failed" and job.words.endswith((GOES_ON, "interrupted"))


def choice(job: Job) -> tuple[str, str]:
    """(text, id) for a list of jobs."""
    state = "stopped" if stopped(job) else job.state
    return f"{job.title}, {when(job.started)} ({state})", job.id


def plain(words: str, folder: Path) -> str:
    """What the engine says of files in `folder`, which their owner does not know, without it."""
    return words.replace(f"{folder}{os.sep}", "")


def _progress(words: str) -> str:
    found = BAR.search(words)
    if not found:
        return progress(0.0, words or "loading the model")
    done, total = int(found[2]), int(found[3])
    parts = found[4].split(":")
    left = "" if "?" in found[4] else span(sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))) + " left"
    return progress(done / max(1, total), ", ".join(filter(None, (f"{done:,} of {counted(total, 'text')}", left))))
