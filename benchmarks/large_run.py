"""A training of a given size that is killed and goes on: its time, its memory, and that it survives.

    python benchmarks/large_run.py --labels 2812281 --encoder-shape bert-base --output large [engine train flags]

Makes a synthetic dataset and an encoder with random weights in the output folder (kept for the next call with the
same shape), trains under the memory limit of the profile, kills the training without warning as soon as it has a
checkpoint at or behind step --kill-at, resumes it, and prints a report in Markdown. With --kill-at 0 it is left alone
and writes only its first and last checkpoint. Ends with 1 if not all steps are done. --labels max takes the largest
label count that can be planned:

    python benchmarks/large_run.py --labels max --profile 4gb --fan-in 64 --texts 512 --steps 3 --kill-at 0 --output DIR
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from synthetic import SHAPES, known_words, make_dataset, make_encoder

from engine.config import resolve
from engine.errors import MemoryBudgetError
from engine.planning.planner import make_plan
from engine.planning.problems import named_hardware, problem_for
from engine.runs import RunDirectory

GIB = 2**30
TEST_TEXTS = 64
POLL_SECONDS = 0.02


def options() -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and all others, which go to `engine train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--labels", default="2812281", metavar="N", help="or max: as many as can be planned")
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--encoder-shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--profile", default="8gb")
    parser.add_argument("--fan-in", default="auto")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill-at", type=int, default=100, help="step; 0: it is not killed")
    parser.add_argument("--checkpoint-seconds", type=float, default=1.0, help="between two checkpoints")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_known_args()


def prepare(o: argparse.Namespace) -> tuple[Path, Path, dict[str, float]]:
    """(dataset, encoder, seconds of making each); what is there already takes none."""
    encoder = o.output / f"encoder-{o.encoder_shape}-{o.tokens}"
    seconds = {}
    if not encoder.exists():
        started = time.monotonic()
        make_encoder(encoder, SHAPES[o.encoder_shape], o.tokens)
        seconds["making the encoder"] = time.monotonic() - started
    labels = most_labels(o, encoder) if o.labels == "max" else int(o.labels)
    data = o.output / f"data-{o.encoder_shape}-{labels}-{o.texts}-{o.tokens}"
    if not data.exists():
        started = time.monotonic()
        make_dataset(data, labels, o.texts, TEST_TEXTS, o.tokens, known_words(SHAPES[o.encoder_shape]))
        seconds["making the dataset"] = time.monotonic() - started
    return data, encoder, seconds


def most_labels(o: argparse.Namespace, encoder: Path) -> int:
    """The largest label count, in thousands, that can be planned with the profile and the fan-in."""
    flags = {
        "classifier.fan_in": o.fan_in, "training.batch_size": o.batch_size, "data.max_tokens": o.tokens,
        "encoder.name": encoder,
    }  # fmt: skip
    config, _ = resolve(o.profile, {key: str(value) for key, value in flags.items()}, {})
    card = named_hardware(config, o.profile)

    def fits(thousands: int) -> bool:
        try:
            make_plan(problem_for(config, card, 1000 * thousands))
        except MemoryBudgetError:
            return False
        return True

    low, high = 1, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return 1000 * low


def train_flags(o: argparse.Namespace, data: Path, encoder: Path, more: list[str]) -> list[str]:
    values = {
        "data.max_tokens": o.tokens,
        "data.validation_fraction": min(0.5, TEST_TEXTS / o.texts),
        "training.epochs": 1 + o.steps * o.batch_size // max(1, o.texts - TEST_TEXTS),
        "evaluation.every_epochs": o.steps,
        "evaluation.baselines": "false",
        "checkpoint.every_minutes": o.checkpoint_seconds / 60 if o.kill_at else 1e6,
    }
    flags = ["--profile", o.profile, "--data", data, "--encoder", encoder, "--output", o.output / "runs"]
    flags += ["--device", o.device, "--fan-in", o.fan_in, "--batch-size", o.batch_size, "--max-steps", o.steps]
    for key, value in values.items():
        flags += ["--set", f"{key}={value}"]
    return [*map(str, flags), *more]


class Session:
    """One process of `engine train`, watched through its run directory."""

    def __init__(self, flags: list[str], log: Path) -> None:
        self.log = log
        self.host_peak = 0
        self.started, self.training = time.time(), None
        with log.open("w") as out:
            command = [sys.executable, "-m", "engine", "train", *flags]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def watch(self) -> Iterator[None]:
        """Turns of looking, as long as the process lives; keeps the largest resident size seen (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            if status.is_file():
                lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
                self.host_peak = max([self.host_peak, *(int(line.split()[1]) * 1024 for line in lines)])
            yield
            time.sleep(POLL_SECONDS)

    def fail(self, problem: str) -> None:
        raise SystemExit(f"{problem}; the end of {self.log}:\n{self.log.read_text()[-3000:]}")


def train_until_killed(o: argparse.Namespace, flags: list[str]) -> tuple[Session, RunDirectory, int | None]:
    """(session, run, step of the checkpoint after which the training was killed; None with --kill-at 0)."""
    before = set((o.output / "runs").glob("2*"))
    session = Session(flags, o.output / "first.log")
    for _ in session.watch():
        for path in set((o.output / "runs").glob("2*")) - before:
            run = RunDirectory(path)
            if session.training is None and run.state() == "training":
                session.training = time.time()
            saved = [event["step"] for event in run.events(["checkpoint"]) if event["step"] >= o.kill_at]
            if saved and o.kill_at:
                session.process.kill()
                session.process.wait()
                return session, run, saved[0]
    if not o.kill_at and not session.process.returncode:
        return session, run, None
    return session.fail(f"the training ended ({session.process.returncode}) without a checkpoint at {o.kill_at}")


def resume(o: argparse.Namespace, run: RunDirectory) -> Session:
    session = Session(["--resume", str(run.path)], o.output / "second.log")
    for _ in session.watch():
        pass
    if session.process.returncode:
        session.fail(f"the resumed training ended with {session.process.returncode}")
    return session


def phases(events: list[dict], session: Session) -> dict[str, float]:
    """Seconds between the lines that the run said before it began to train."""
    began = session.training or math.inf
    times = [("start of the program", session.started)]
    times += [(f"after `{e['text'].split()[0]}`", e["time"]) for e in events if e["type"] == "message"]
    times = [(name, moment) for name, moment in times if moment < began]
    ends = [*(moment for _, moment in times[1:]), began]
    return {name: end - moment for (name, moment), end in zip(times, ends, strict=True)}


def step_milliseconds(events: list[dict]) -> float | None:
    """Median over spans between two logged steps, without the time that checkpoints took."""
    found, since, saving = [], None, 0.0
    for event in events:
        if event["type"] == "checkpoint":
            saving += event["seconds"]
        elif event["type"] == "step":
            if since and event["step"] > since["step"]:
                found.append((event["time"] - since["time"] - saving) / (event["step"] - since["step"]))
            since, saving = event, 0.0
        elif event["type"] == "message":
            since = None
    return 1000 * statistics.median(found) if found else None


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    o, more = options()
    o.output = o.output.absolute()
    (o.output / "runs").mkdir(parents=True, exist_ok=True)
    data, encoder, seconds = prepare(o)
    first, run, saved = train_until_killed(o, train_flags(o, data, encoder, more))
    events_before = list(run.events())
    second = resume(o, run) if saved is not None else None
    events = list(run.events())
    result, plan = run.read_json("result.json"), run.read_json("plan.json")
    resumed_at = [e["text"] for e in events[len(events_before) :] if e.get("text", "").startswith("resuming")]
    checkpoints = [event["seconds"] for event in events if event["type"] == "checkpoint"]
    newest = max((run.checkpoints).glob("step_*"), key=lambda path: path.stat().st_mtime)
    seconds |= phases(events_before, first)
    memory = [event["memory_bytes"] for event in events_before if event["type"] == "step"]
    milliseconds = step_milliseconds(events)
    finished = result["steps"] == o.steps and bool(resumed_at) == bool(second)
    killed = f"; killed after the checkpoint at step {saved}" if second else ""
    report = {
        "labels": plan["labels"],
        "classifier": f"fan-in {plan['fan_in']} of {plan['width']}, {plan['head']:,} head labels, "
        f"{plan['weight_dtype']}, {plan['classifier_bytes'] / GIB:.3f} GiB",
        "steps": f"{result['steps']} of {o.steps}{killed}",
        "resumed": resumed_at[0] if resumed_at else "no",
        "finished": "yes" if finished else "NO",
        "a step": f"{milliseconds:.1f} ms (median, checkpoints not counted)" if milliseconds else "too few steps",
        "peak memory, first session": f"{max(memory) / GIB:.3f} GiB" if memory else "killed too early",
        "peak memory, last session": f"{result['peak_memory_bytes'] / GIB:.3f} GiB",
        "predicted, allowed": f"{plan['predicted_bytes'] / GIB:.3f}, {plan['budget_bytes'] / GIB:.3f} GiB",
        "notches": plan["notches"],
        "peak host memory": ", resumed ".join(f"{s.host_peak / GIB:.2f} GiB" for s in (first, second) if s),
        "checkpoint": f"{size_of(newest) / GIB:.3f} GiB, {statistics.median(checkpoints):.2f} s "
        f"(median of {len(checkpoints)})",
        "model": f"{size_of(run.model) / GIB:.3f} GiB",
        **{f"seconds: {name}": f"{value:.1f}" for name, value in seconds.items()},
    }
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{device_name()}, {packages}\n`python benchmarks/large_run.py {' '.join(sys.argv[1:])}`\n")
    print("| | |\n|---|---|")
    for name, value in report.items():
        print(f"| {name} | {value} |")
    (o.output / "report.json").write_text(json.dumps({**report, "result": result}, indent=1) + "\n")
    raise SystemExit(0 if finished else 1)


def device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
