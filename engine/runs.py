"""Run directories: where a training writes what it does, and from where everybody else reads it.

A run is a folder `<root>/<id>/`. The training process is its only writer; the command line and the browser
interface read it, and ask for one thing only, by making the file `stop`. Layout:

    config.json  plan.json  result.json   JSON objects, replaced atomically
    status.json                           state, pid, create_time, heartbeat, step, total, message
    events.jsonl                          append-only, one JSON object a line: `type`, `time`, and the rest
    log.txt                               append-only text
    checkpoints/step_<n>/  model/         tensors, written by others
    stop                                  its presence asks the training to save itself and stop
    .lock                                 held by the process that trains, see engine.turns

A word in a file cannot know that its writer died. So "running" is derived: the process of that pid must exist,
must have been created when the file says (pids are reused), and must have written lately.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, DataError, EnvironmentProblem

WORKING_STATES = ("preparing", "training", "evaluating")
ACTIVE_STATES = ("queued", *WORKING_STATES)  # a process has the run; queued: it waits until another run has finished
END_STATES = ("completed", "stopped", "failed")
HEARTBEAT_SECONDS = 2.0
# Many missed heartbeats: a machine that swaps, or a long call that holds the interpreter lock, is not dead.
SILENCE_SECONDS = 60.0
# The creation time that the system reports moves with its clock, by up to a second on a healthy machine.
CREATE_TIME_TOLERANCE = 2.0
ID_TIME = "%Y%m%d-%H%M%S"
DELETED = ".deleted-"


class RunDirectory:
    """One run. Make one with `create` or `open`; the constructor checks nothing.

    Methods that report progress (`event`, `log`, `heartbeat`) drop what cannot be written: a full disk
    costs a line of history, never the training. All other methods raise the OSError.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {"state": "preparing", "step": 0, "total": 0, "message": ""}
        self._written = -math.inf

    @classmethod
    def create(cls, root: Path, name: str = "", state: str = "preparing", message: str = "starting") -> RunDirectory:
        """Makes `<root>/<UTC time>-<name>/`, a name no other process has taken, in `state`.

        Ids sort by time. `name` is reduced to ASCII letters, digits, dots, dashes and underscores.
        """
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")[:60]
        stem = "-".join(filter(None, (datetime.now(UTC).strftime(ID_TIME), slug)))
        for attempt in range(1, 1000):
            path = root / (stem if attempt == 1 else f"{stem}-{attempt}")
            with suppress(FileExistsError):
                path.mkdir()
                run = cls(path)
                run.status(state, 0, 0, message)
                return run
        raise ConfigError(f"{root} already holds a thousand runs named {stem}: choose another run.name")

    @classmethod
    def open(cls, root_or_path: Path, id: str | None = None) -> RunDirectory:
        """The run `id` of the folder `root_or_path`, or without `id` the run in that folder itself.

        Raises ConfigError, naming the next step, when there is no such run.
        """
        if id is not None:
            return find_run(root_or_path, id)
        path = Path(root_or_path)
        if not path.is_dir():
            raise ConfigError(f"there is no run {path}: `engine runs list` shows the runs there are")
        if not _is_run(path):
            raise ConfigError(f"{path} is not a run (no status.json): `engine runs list` shows the runs there are")
        return cls(path)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    # Files

    def write_json(self, name: str, obj: Any) -> None:
        """Replaces the file `name` by `obj` in one step: a reader, and a power cut, see the old or the new.

        Numpy scalars become numbers, paths strings, and numbers that JSON lacks (NaN, infinities) null.
        """
        self._replace(name, json.dumps(json_ready(obj), indent=2, ensure_ascii=False) + "\n", durable=True)

    def read_json(self, name: str) -> Any:
        """The contents of the file `name`. Raises DataError when it is missing or not JSON."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing: the run has not got that far, or its folder is incomplete") from None
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}): restore it or train again") from None

    def event(self, type: str, **fields: Any) -> None:
        """Appends one line to events.jsonl: `type`, `time` (seconds since 1970) and `fields`."""
        line = json.dumps(json_ready({"type": type, "time": round(time.time(), 3), **fields}), ensure_ascii=False)
        self._append("events.jsonl", line)

    def events(self, types: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """Events in the order written, all or those of `types`. Skips lines torn by a crash or still being written."""
        with suppress(FileNotFoundError), (self.path / "events.jsonl").open("rb") as file:
            for line in file:
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and (types is None or event.get("type") in types):
                        yield event

    def log(self, text: str) -> None:
        """Appends `text` to log.txt behind the local time."""
        self._append("log.txt", f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text.rstrip()}")

    # Status

    def status(self, state: str, step: int = 0, total: int = 0, message: str = "") -> None:
        """Writes status.json now. `state` is one of ACTIVE_STATES or END_STATES; `step` of `total` steps are done."""
        if state not in ACTIVE_STATES + END_STATES:
            raise ValueError(f"unknown state {state!r}")
        with self._lock:
            self._fields = {"state": state, "step": step, "total": total, "message": message}
            self._write_status(durable=True)

    def heartbeat(self, step: int | None = None, total: int | None = None, message: str | None = None) -> None:
        """Says that the process lives, and what has changed. Cheap enough for every step: writes every 2 s at most."""
        news = {"step": step, "total": total, "message": message}
        with self._lock:
            self._fields |= {key: value for key, value in news.items() if value is not None}
            if time.monotonic() - self._written >= HEARTBEAT_SECONDS and self._fields["state"] in ACTIVE_STATES:
                with suppress(OSError):
                    self._write_status(durable=False)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Keeps the heartbeat fresh from a thread while the body computes, however long it reports nothing.

        On leaving it the state stays what it is: write an end state before, or readers will derive `failed`.
        """
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.heartbeat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def read_status(self) -> dict[str, Any]:
        """status.json as written; an unreadable one reads as a failed run that says so."""
        with suppress(OSError, DataError):
            status = self.read_json("status.json")
            if isinstance(status, dict) and status.get("state") in ACTIVE_STATES + END_STATES:
                return status
        return {"state": "failed", "step": 0, "total": 0, "message": "status.json is missing or damaged"}

    def process_alive(self) -> bool:
        """Whether the process that last wrote the status still exists, in whatever state and however silent."""
        import psutil

        status = self.read_status()
        try:
            process = psutil.Process(int(status["pid"]))
            # A child that died and was not waited for keeps its pid and creation time.
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - float(status["create_time"])) <= CREATE_TIME_TOLERANCE
        except (psutil.Error, KeyError, TypeError, ValueError):
            return False

    def state(self) -> str:
        """The state now: an end state as written; an active one only if its process lives and was heard of lately,
        else `failed`."""
        return self.current_status()["state"]

    def current_status(self) -> dict[str, Any]:
        """status.json with `state` as `state()` derives it, and with a `message` that says what happened."""
        status = self.read_status()
        if status["state"] in END_STATES:
            return status
        if not self.process_alive():
            message = f"the process ended while {status['state']}, without a word"
            return {**status, "state": "failed", "message": message}
        beat = status.get("heartbeat")
        silence = time.time() - beat if isinstance(beat, int | float) else math.inf
        if silence > SILENCE_SECONDS:
            return {**status, "state": "failed", "message": "the process exists but has stopped reporting"}
        return status

    # Stopping

    def stop_requested(self) -> bool:
        """Whether someone asked the run to save itself and stop."""
        return (self.path / "stop").exists()

    def request_stop(self) -> None:
        """Asks the run to save itself and stop at its next step."""
        (self.path / "stop").touch()

    def clear_stop(self) -> None:
        """Takes the request back, as a run that resumes must."""
        (self.path / "stop").unlink(missing_ok=True)

    # Writing

    def _write_status(self, durable: bool) -> None:
        import psutil

        self._written = time.monotonic()
        process = {"pid": os.getpid(), "create_time": psutil.Process().create_time(), "heartbeat": time.time()}
        self._replace("status.json", json.dumps(json_ready(self._fields | process), indent=2) + "\n", durable)

    def _replace(self, name: str, text: str, durable: bool) -> None:
        """`durable` waits for the disk: right for facts, too slow for a heartbeat inside a training loop."""
        temporary = self.path / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _append(self, name: str, line: str) -> None:
        data = line.encode() + b"\n"
        with suppress(OSError), self._lock, (self.path / name).open("ab+", buffering=0) as file:
            # A line torn by a crash or a full disk must not swallow the next one.
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                data = b"\n" + data
            file.write(data)


@dataclass(frozen=True)
class RunSummary:
    """One row of a listing. What its files do not tell (yet) is None."""

    id: str
    path: Path
    state: str
    """The derived state, see RunDirectory.state."""
    message: str
    step: int
    total: int
    started: float
    """Seconds since 1970."""
    has_model: bool
    """Whether `model/` holds a bundle; while a run is active it is the best so far."""
    profile: str | None
    fan_in: int | str | None
    labels: int | None
    metrics: dict[str, float]
    """Of the test set, from result.json; empty before the end."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES


def list_runs(root: Path) -> list[RunSummary]:
    """All runs in the folder `root`, newest first; none if it does not exist. A damaged run is listed as failed."""
    summaries = [_summary(RunDirectory(path)) for path in run_paths(root)]
    return sorted(summaries, key=lambda run: (run.started, run.id), reverse=True)


def find_run(root: Path, run_id: str) -> RunDirectory:
    """The run of exactly that id in `root`: the one way from an id that a client sent to a folder.

    The id is compared with the names in the listing and never becomes part of a path.
    Raises ConfigError when there is none.
    """
    paths = {path.name: path for path in run_paths(root)}
    if isinstance(run_id, str) and run_id in paths:
        return RunDirectory(paths[run_id])
    there = f"it holds {len(paths)}, such as {max(paths)}" if paths else "it holds none"
    raise ConfigError(f"no run {str(run_id)[:80]!r} in {Path(root)} ({there}): `engine runs list` shows them")


def _is_run(path: Path) -> bool:
    return (path / "status.json").is_file() or (path / "config.json").is_file()


def run_paths(root: Path) -> list[Path]:
    """The folders of all runs in `root`, in no order; none if it does not exist."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path for path in Path(root).iterdir() if path.name[0] != "." and path.is_dir() and _is_run(path)]
    return []


def delete_run(root: Path, run_id: str) -> None:
    """Removes the run of exactly that id in `root`, and what an interrupted removal has left there.

    Of a link to a run elsewhere only the link is removed. Raises ConfigError when there is no such run or its process
    lives, EnvironmentProblem when the system refuses.
    """
    run = find_run(root, run_id)
    state = run.read_status()["state"]
    if state in ACTIVE_STATES and run.process_alive():
        raise ConfigError(f"{run.path} is {state}; stop it first: `engine runs stop {run.path}`")
    try:
        # A hidden folder is no run: half of one is never listed.
        os.rename(run.path, run.path.with_name(f"{DELETED}{run.id}-{time.time_ns()}"))
        for path in Path(root).glob(f"{DELETED}*"):
            with suppress(FileNotFoundError):  # another process sweeps too
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        raise EnvironmentProblem(f"{run.path} cannot be removed: {error.filename} ({error.strerror})") from error


def _summary(run: RunDirectory) -> RunSummary:
    status = run.current_status()
    config, plan, result = (_object(run, name) for name in ("config.json", "plan.json", "result.json"))
    metrics = result.get("metrics")
    return RunSummary(
        id=run.id,
        path=run.path,
        state=status["state"],
        message=str(status.get("message") or ""),
        step=_number(status.get("step")),
        total=_number(status.get("total")),
        started=_started(run.path),
        has_model=(run.model / "model.json").is_file(),
        profile=config.get("profile"),
        fan_in=_first("fan_in", result, plan),
        labels=_first("labels", result, plan),
        metrics=metrics if isinstance(metrics, dict) else {},
    )


def _object(run: RunDirectory, name: str) -> dict[str, Any]:
    with suppress(OSError, DataError):
        value = run.read_json(name)
        if isinstance(value, dict):
            return value
    return {}


def _first(key: str, *places: dict[str, Any]) -> Any:
    """The value at `key` in the first place that knows it."""
    return next((place[key] for place in places if place.get(key) is not None), None)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _started(path: Path) -> float:
    """From the id; a folder that was renamed has only the time of its last change."""
    try:
        return datetime.strptime(path.name[:15], ID_TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        with suppress(OSError):
            return path.stat().st_mtime
        return 0.0


def json_ready(value: Any) -> Any:
    """`value` in the types that strict JSON has: NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
