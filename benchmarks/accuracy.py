"""Accuracy of many settings on many corpora with many seeds: every cell of the grid is a normal training.

    python benchmarks/accuracy.py benchmarks/studies/sparse.toml --output study --corpus datasets/mine [--jobs 4]

The study names the settings: keys of the configuration, as `--set` takes them, in [settings.NAME], those of all in
[always], and the setting that the others are compared with in `reference`. Several cells may share one GPU (--jobs).
Finished cells are kept: what was stopped, or failed, goes on when the same command is given again. Prints a table in
Markdown; `results.json` in the output folder holds every number. Ends with 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from engine.config import parse_assignment
from engine.errors import DataError
from engine.runs import RunDirectory, list_runs

METRICS = ("P@1", "P@3", "P@5", "PSP@5")
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """One training. folder: holds its run · values: of the configuration, by key."""

    corpus: str
    setting: str
    seed: int
    folder: Path
    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{Path(self.corpus).name}, {self.setting}, seed {self.seed}"

    def run(self) -> RunDirectory | None:
        """Its run, if it has begun. Raises DataError when that has another configuration."""
        found = next(iter(list_runs(self.folder)), None)
        if found is None:
            return None
        run = RunDirectory(found.path)
        given = json.loads((self.folder / "cell.json").read_text())
        if given != dict(self.values):
            raise DataError(f"{self.folder} holds {given}: give the setting another name, or the study another folder")
        return run

    def result(self) -> dict[str, Any] | None:
        """What `engine train --json` prints, if it is done, with its plan and the metrics after each epoch."""
        run = self.run()
        if run is None or not (run.path / "result.json").exists():
            return None
        curve = [event["metrics"] for event in run.events({"eval"})]
        return run.read_json("result.json") | {"plan": run.read_json("plan.json"), "validation": curve}

    def command(self, profile: str) -> list[str]:
        run = self.run()
        if run is not None:
            return ["train", "--resume", str(run.path)]
        flags = ["train", "--data", self.corpus, "--output", str(self.folder), "--seed", str(self.seed)]
        return [*flags, "--profile", profile, *(word for pair in self.values for word in ("--set", "=".join(pair)))]


class Study:
    """A grid of cells and the processes that train them."""

    def __init__(self, cells: list[Cell], profile: str):
        self.cells, self.profile = cells, profile
        self.running: set[subprocess.Popen] = set()
        self.stopping = False
        self.environment = dict(os.environ)

    def train(self, jobs: int) -> list[str]:
        """Trains what is not trained yet, so many at a time. Returns the names of the cells that failed.

        They share the processors: where each had a thread for all of them, a dozen hardly got on.
        """
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        left = [cell for cell in self.cells if cell.result() is None]
        print(f"{len(self.cells) - len(left)} of {len(self.cells)} cells are there", flush=True)
        failed, began = [], time.monotonic()
        with ThreadPoolExecutor(jobs) as pool:
            tasks = {pool.submit(self._train, cell): cell for cell in left}
            for done, task in enumerate(as_completed(tasks), 1):
                cell, fine = tasks[task], task.result()
                if self.stopping:
                    continue
                rest = (time.monotonic() - began) / done * (len(left) - done) / 60
                found = "P@1 {:.1%}".format(cell.result()["metrics"]["P@1"]) if fine else f"failed, see {cell.folder}"
                print(f"{done}/{len(left)} {cell.name}: {found}; about {rest:,.0f} min left", flush=True)
                failed += [] if fine else [cell.name]
        return failed

    def stop(self, *_: Any) -> None:
        """Lets every training save itself; the same command goes on with them."""
        self.stopping = True
        for process in list(self.running):
            process.terminate()

    def _train(self, cell: Cell) -> bool:
        if self.stopping:
            return False
        cell.folder.mkdir(parents=True, exist_ok=True)
        command = cell.command(self.profile)
        (cell.folder / "cell.json").write_text(json.dumps(dict(cell.values)))
        with (cell.folder / "output.txt").open("a") as output:
            program = [sys.executable, "-m", "engine", *command]
            process = subprocess.Popen(program, stdout=output, stderr=output, env=self.environment)
            self.running.add(process)
            fine = process.wait() == 0
            self.running.discard(process)
        return fine and cell.result() is not None


def cells_of(study: dict[str, Any], corpora: list[str], seeds: list[int], output: Path) -> list[Cell]:
    """The grid. Cells of one corpus are far from each other: they would wait for the same features."""
    always = study.get("always", {})
    return [
        Cell(corpus, setting, seed, output / Path(corpus).name / setting / f"seed-{seed}", _texts(always | values))
        for seed, (setting, values), corpus in product(seeds, study["settings"].items(), corpora)
    ]


def _texts(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in values.items())


def table(cells: list[Cell], reference: str | None) -> Iterator[str]:
    """Lines of Markdown: mean over seeds ± standard deviation, and in brackets the share of the reference."""
    share = f", of *{reference}*" if reference else ""
    yield f"| corpus | setting | seeds | {' | '.join(METRICS)} | steps | training s | peak MiB |"
    yield "|---|---|---|" + "---|" * (len(METRICS) + 3)
    results: dict[tuple[str, str], list[dict]] = {}
    for cell in cells:
        if (result := cell.result()) is not None:
            results.setdefault((cell.corpus, cell.setting), []).append(result)
    for (corpus, setting), found in results.items():
        against = results.get((corpus, reference or ""), [])
        numbers = [_number([r["metrics"][m] for r in found], [r["metrics"][m] for r in against]) for m in METRICS]
        steps = "/".join(sorted({f"{r['steps']:,}" for r in found}))
        seconds, peak = (
            statistics.mean(r[key] or 0 for r in found) for key in ("training_seconds", "peak_memory_bytes")
        )
        row = [Path(corpus).name, setting, str(len(found)), *numbers, steps, f"{seconds:,.0f}", f"{peak / MIB:,.0f}"]
        yield f"| {' | '.join(row)} |"
    yield f"\nMean over the seeds ± standard deviation, in %{share} in brackets."


def _number(values: list[float], against: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {100 * statistics.stdev(values):.1f}"
    return f"{text} ({statistics.mean(values) / statistics.mean(against):.1%})" if against else text


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="TOML file with the settings")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--corpus", nargs="+", help="datasets instead of those of the study")
    parser.add_argument("--seed", nargs="+", type=int, help="seeds instead of those of the study")
    parser.add_argument("--profile", default="auto")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="for all cells, as the study's [always]"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only-table", action="store_true", help="train nothing, print what is there")
    given = parser.parse_args(arguments)
    study = tomllib.loads(given.study.read_text())
    corpora, seeds = given.corpus or study.get("corpora"), given.seed or study.get("seeds", [0])
    if not corpora:
        parser.error("the study names no corpora: give --corpus")
    if (reference := study.get("reference")) not in (None, *study["settings"]):
        parser.error(f"the reference {reference!r} is none of the settings")
    study["always"] = dict(parse_assignment(text) for text in given.set) | study.get("always", {})
    cells = cells_of(study, corpora, seeds, given.output)
    grid = Study(cells, given.profile)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, grid.stop)
    failed = [] if given.only_table else grid.train(given.jobs)
    lines = list(table(cells, reference))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print("\n".join([f"\n{platform.machine()}, {packages}; `{given.study.name}`, profile {given.profile}\n", *lines]))
    numbers = [
        {"corpus": cell.corpus, "setting": cell.setting, "seed": cell.seed, "values": dict(cell.values), **result}
        for cell in cells
        if (result := cell.result()) is not None
    ]
    (given.output / "results.json").write_text(json.dumps(numbers, indent=1))
    return 1 if failed or grid.stopping else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
