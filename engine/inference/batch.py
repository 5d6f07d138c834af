"""Predictions of a whole file, in the order of its texts, that go on where they stopped.

While it works there is OUTPUT.partial, a line of JSON a text, and OUTPUT.partial.json, which says of what model, texts
and k it is; at the end the first gets its name and the second goes. Whatever was interrupted goes on at a multiple of
WINDOW texts, so that the same texts share their batches and the file is the same as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from engine.errors import ConfigError, EnvironmentProblem, StopRequested
from engine.files import sync
from engine.inference.predictor import WINDOW, Prediction, Predictor
from engine.inference.texts import read_texts
from engine.progress import bar
from engine.words import counted


def predict_file(
    predictor: Predictor, source: Path, column: str, k: int, output: Path, overwrite: bool = False
) -> tuple[int, int]:
    """Writes the k best labels of each text of `source` (see read_texts) to `output`.

    Returns (texts, how many of them were there from an earlier call). Memory does not grow with either. Raises
    ConfigError if `output` is there, or was begun with something else, and not `overwrite`; DataError for a bad
    text, before anything is predicted; StopRequested on Ctrl-C; EnvironmentProblem when the disk does not take it.
    """
    if output.exists() and (source.samefile(output) or not overwrite):
        raise ConfigError(f"{output} exists; name another --output, or replace it with --overwrite")
    count, digest = _survey(source, column)
    made_of = {"texts": digest, "count": count, "k": k, "model": _digest_of_files(predictor.bundle.path)}
    partial = output.with_name(output.name + ".partial")
    done = 0
    try:
        with _begun(partial, made_of, overwrite) as file:
            done = found = _keep_windows(file)
            texts = islice(read_texts(str(source), column), done, None)
            with bar("predicting", "texts", count, initial=done) as shown:
                while window := list(islice(texts, WINDOW)):
                    rows = zip(window, predictor.predict(window, k), strict=True)
                    file.write("".join(as_json(text, row) + "\n" for text, row in rows).encode())
                    file.flush()
                    done += len(window)
                    shown.update(len(window))
            os.fsync(file.fileno())
        os.replace(partial, output)
        _mark(partial).unlink()
        sync(output.parent)
    except KeyboardInterrupt:
        raise StopRequested(
            f"{done:,} of {counted(count, 'text')} are predicted and kept in {partial}; the same command goes on"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{partial} cannot be written: {error.strerror or error}; make room, then the same command goes on"
        ) from error
    return count, found


def as_json(text: str, predictions: list[Prediction]) -> str:
    """A text and its labels as one line of JSON."""
    labels = [{"label": p.label, "probability": round(p.probability, 6)} for p in predictions]
    return json.dumps({"text": text, "labels": labels}, ensure_ascii=False)


def _survey(source: Path, column: str) -> tuple[int, str]:
    """(number of texts, sha256 over them)"""
    total, count = hashlib.sha256(), 0
    with bar("checking", "texts") as shown:
        for text in read_texts(str(source), column):
            content = text.encode()
            total.update(len(content).to_bytes(8, "little") + content)
            count += 1
            shown.update()
    return count, total.hexdigest()


def _digest_of_files(folder: Path) -> str:
    """sha256 over names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _mark(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


@contextmanager
def _begun(partial: Path, made_of: dict, overwrite: bool) -> Iterator[BinaryIO]:
    """The file of what is predicted so far, open for reading and writing, kept from other processes."""
    mark = _mark(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        _lock(file, partial)
        if overwrite or not mark.exists():
            file.truncate()
            fresh = mark.with_name(mark.name + ".tmp")
            fresh.write_text(json.dumps(made_of) + "\n")
            os.replace(fresh, mark)
        elif differing := _differing(mark, made_of):
            raise ConfigError(f"{partial} was begun with another {differing}; --overwrite starts again")
        yield file


def _lock(file: BinaryIO, partial: Path) -> None:
    """Until the file is closed. Windows has no such lock."""
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another process is writing {partial}; wait for it, or name another --output") from None


def _differing(mark: Path, made_of: dict) -> str:
    """What is not as it was when the file was begun; empty if everything is."""
    names = {"k": "-k", "texts": "input", "count": "input", "model": "model"}
    try:
        before = json.loads(mark.read_text())
        return next((names[key] for key, value in made_of.items() if before[key] != value), "")
    except (ValueError, KeyError, TypeError):
        return "version"


def _keep_windows(file: BinaryIO) -> int:
    """Cuts off what is behind the last whole window; the number of texts before it, which the file now ends with."""
    kept = end = place = 0
    for lines, line in enumerate(file, start=1):
        place += len(line)
        if not line.startswith(b"{") or not line.endswith(b"}\n"):  # written halfway, or lost in a power failure
            break
        if lines % WINDOW == 0:
            kept, end = lines, place
    file.seek(end)
    file.truncate()
    return kept
