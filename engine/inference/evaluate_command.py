"""`engine evaluate`: its part of the command line. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import RunConfig
from engine.data.commands import propensity
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.inference.bundles import Subject
    from engine.inference.report import Report

FORMATS = ("table", "markdown", "latex")
FILES = ("metrics.json", "table.md", "table.tex", "predictions.npz")  # in the folder of --output


def add_evaluate(
    commands: Any,
    add_command: Callable[..., argparse.ArgumentParser],
    find: Callable[[Path], Path],
    number: Callable[[str], int],
) -> None:
    """Adds `evaluate` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command.

    find: the folder that a path or the id of a run means · number: a whole number above 0.
    """
    evaluate = add_command(
        commands,
        "evaluate",
        "metrics of a model on a dataset's test split",
        lambda options: evaluate_command(options, find),
    )
    evaluate.add_argument("model", type=Path, help="a run, or a model folder")
    evaluate.add_argument("--data", metavar="DIR", help="dataset directory (default: the run's own)")
    evaluate.add_argument("--split", default="test", choices=("test", "train"))
    evaluate.add_argument("--k", default="1,3,5,10", help="cut-offs (1,3,5,10)")
    evaluate.add_argument("--propensity", type=propensity, metavar="A,B", help="(the run's own, else 0.55,1.5)")
    evaluate.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    evaluate.add_argument("--format", default="table", choices=FORMATS, help="for people, or rows for a paper (table)")
    evaluate.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help=f"also write {', '.join(FILES)}")
    evaluate.add_argument("--top", type=number, metavar="N", help="labels a row in predictions.npz (the last cut-off)")
    evaluate.add_argument("--overwrite", action="store_true", help="replace the evaluation that is in --output")


def evaluate_command(options: argparse.Namespace, find: Callable[[Path], Path]) -> None:
    """Evaluates, prints the report, and writes it where that is asked for."""
    k = RunConfig.from_flat({"evaluation.k": options.k}).evaluation.k
    if options.json and options.format != "table":
        raise ConfigError("--json and --format are two ways to print the same; give one")
    for flag, given in (("--top", options.top), ("--overwrite", options.overwrite)):
        if given and not options.output:
            raise ConfigError(f"{flag} is about what --output names; name it")
    if options.output:
        _check_output(options.output, options.overwrite)
    from engine.inference.bundles import Subject
    from engine.inference.report import render
    from engine.runs import json_ready

    subject = Subject(find(options.model), options.data, options.split, options.device)
    constants = options.propensity or subject.propensity()
    if options.output:
        report = _to_folder(subject, k, constants, options.top or k[-1], options.output)
    else:
        report = subject.evaluate(k, constants)
    if options.json:
        print(json.dumps(json_ready(report.to_json()), ensure_ascii=False))
    else:
        print(render(report, options.format))
    if options.output:
        print(f"\nwritten to {options.output}: {', '.join(FILES)}", file=sys.stderr)


def _check_output(output: Path, overwrite: bool) -> None:
    """Raises ConfigError unless an evaluation may be put at `output`. Only an evaluation is ever replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / FILES[0]).is_file() or not (output / FILES[-1]).is_file():
        raise ConfigError(
            f"{output} exists and is no evaluation, so --overwrite would not replace it either; name another --output, "
            "which may be a new or an empty folder"
        )
    if not overwrite:
        raise ConfigError(f"{output} has an evaluation already; name another --output, or replace it with --overwrite")


def _to_folder(subject: Subject, k: tuple[int, ...], constants: tuple[float, float], top: int, output: Path) -> Report:
    """Evaluates into the folder `output`, which is complete or not there."""
    import shutil

    from engine.data.output_folder import move_into_place, sibling, sweep
    from engine.inference.prediction_dump import PredictionDump
    from engine.inference.report import render
    from engine.runs import json_ready

    sweep(output)
    fresh = sibling(output, "tmp")
    fresh.mkdir(parents=True)
    try:
        dump = PredictionDump(fresh, len(subject.split), subject.dataset.n_labels, top)
        report = subject.evaluate(k, constants, top, dump.add)
        dump.save(fresh / FILES[-1])
        contents = (
            json.dumps(json_ready(report.to_json()), indent=1, ensure_ascii=False),
            render(report, "markdown"),
            render(report, "latex"),
        )
        for name, content in zip(FILES, contents, strict=False):
            (fresh / name).write_text(content + "\n", encoding="utf-8")
        move_into_place(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return report
