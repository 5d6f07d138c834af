"""`engine data`: its part of the command line, and what it prints. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import EnvironmentProblem
from engine.words import counted

FORMATS = ("csv", "tsv", "jsonl", "parquet", "xmc-json", "aalto", "xmc-text", "pecos", "hub")


def add_data(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `data` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command."""
    data = commands.add_parser("data", help="make datasets").add_subparsers(required=True, metavar="ACTION")
    load = add_command(data, "import", "make a dataset directory from files", import_command)
    load.add_argument(
        "source", type=Path, help="file (.csv, .tsv, .jsonl, .parquet), folder of a known layout, or a name on a hub"
    )
    load.add_argument("--output", type=Path, required=True, metavar="DIR", help="the dataset directory to make")
    load.add_argument("--name", help="name of the dataset (default: the source's)")
    load.add_argument("--format", choices=FORMATS, help="where the names of the files do not say it")
    load.add_argument(
        "--text-column", default="text", metavar="NAMES", help="of a table; several, joined: title,body (text)"
    )
    load.add_argument("--labels-column", default="labels", metavar="NAME", help="of a table (labels)")
    load.add_argument("--delimiter", help="between labels in one field (default: found in the first rows)")
    load.add_argument(
        "--test-fraction", type=fraction, default=0.1, metavar="F", help="held out where there is no test file (0.1)"
    )
    load.add_argument("--seed", type=seed, default=0, help="decides which texts are held out (0)")
    load.add_argument("--strict", action="store_true", help="refuse the first bad row instead of leaving it out")
    load.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")
    load.add_argument(
        "--keep-own-labels",
        action="store_true",
        help="where labels are texts like the instances, a text may be given itself",
    )
    columns = add_command(
        data, "columns", "what an import would find in files: layout, columns, first rows", look_command
    )
    columns.add_argument("source", type=Path, help="file or folder, as for import")
    columns.add_argument("--format", choices=FORMATS, help="where the names of the files do not say it")
    columns.add_argument("--rows", type=int, default=5, metavar="N", help="rows shown (5)")
    columns.add_argument("--json", action="store_true", help="print everything as JSON")
    demo = add_command(data, "demo", "make the built-in corpus: Python API finder", demo_command)
    demo.add_argument("--output", type=Path, required=True, metavar="DIR", help="the dataset directory to make")
    demo.add_argument("--scope", default="stdlib", choices=("stdlib", "installed"), help="whose docstrings (stdlib)")
    look = add_command(data, "inspect", "what is in a dataset, and what may be wrong with it", inspect_command)
    look.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    look.add_argument("--samples", type=int, default=3, metavar="N", help="rows shown of each split (3)")
    look.add_argument("--propensity", type=propensity, default=(0.55, 1.5), metavar="A,B", help="(0.55,1.5)")
    look.add_argument("--output", type=Path, metavar="DIR", help="write the report and, with matplotlib, plots")
    look.add_argument("--json", action="store_true", help="print the report as JSON")


def propensity(text: str) -> tuple[float, float]:
    """Two numbers with a comma between them, for argparse."""
    try:
        a, b = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 0.6,2.6 (Amazon)") from None
    if not (0 <= a <= 10 and 0 <= b <= 1e6):
        raise argparse.ArgumentTypeError(f"{text!r} is no propensity model, such as 0.6,2.6 (Amazon)")
    return a, b


def fraction(text: str) -> float:
    """A number from 0 to below 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to below 2**64, for argparse."""
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to below 2**64")
    return int(text)


def import_command(options: argparse.Namespace) -> None:
    """Makes the dataset and says what was decided and what was left out."""
    from engine.data.importers import import_dataset
    from engine.data.problems import REPORT, Problems
    from engine.data.table_readers import TableColumns

    columns = TableColumns(tuple(options.text_column.split(",")), options.labels_column, options.delimiter)
    problems = Problems(options.strict)
    with _progress("importing", "bytes") as progress:
        dataset = import_dataset(
            options.source,
            options.output,
            name=options.name,
            format=options.format,
            columns=columns,
            test_fraction=options.test_fraction,
            seed=options.seed,
            overwrite=options.overwrite,
            keep_own_labels=options.keep_own_labels,
            problems=problems,
            progress=progress,
        )
    _print_decisions(dataset.meta["details"], options.delimiter is None)
    if problems.kinds:
        print(f"rows left out: {sum(problems.counts().values()):,}, listed in {dataset.path / REPORT}")
        for kind, found in problems.kinds.items():
            print(f"  {found.count:,} x {kind}, first {found.first}")
    _print_dataset(dataset)


def _print_decisions(details: dict[str, Any], found_delimiter: bool) -> None:
    print(f"format {details['format']}")
    if found_delimiter and "delimiter" in details:
        shown = {"": "nothing, a field is one label", " ": "spaces", "list": "lists", "\t": "tabs"}
        delimiter = shown.get(details["delimiter"], repr(details["delimiter"]))
        print(f"between labels, as found in the first rows: {delimiter} (--delimiter changes it)")
    if details.get("unused_delimiter"):
        print(f"warning: {_unused(details['delimiter'], details['format'])}")
    if "test_fraction" in details:
        share, number = details["test_fraction"], details["seed"]
        print(f"no test file: {share:.1%} of the texts are held out for testing (--test-fraction, seed {number})")
    if details.get("label_names") == "ids":
        print("no file with label names: labels are called by their numbers")
    if details.get("repeated_labels"):
        print(f"labels that stood twice in a row and count once: {details['repeated_labels']:,}")
    if pairs := details.get("filter_pairs"):
        print(
            "reciprocal filters: " + ", ".join(f"{counted(count, 'pair')} of {split}" for split, count in pairs.items())
        )
    if own := details.get("own_labels"):
        found = ", ".join(f"{counted(count, 'pair')} of {split}" for split, count in own.items())
        print(
            "labels are texts like the instances, which hardly ever have themselves: no text is given itself "
            f"({found}; --keep-own-labels allows it)"
        )
    if unused := details.get("unused_filter_pairs"):
        print(f"reciprocal filters of rows that were left out, or are not there: {counted(unused, 'pair')}")
    if "not_read" in details:
        print(f"not read: {', '.join(details['not_read'])}")


def _unused(delimiter: str, format: str) -> str:
    """What to say of a delimiter that was given and that no field of labels has."""
    from engine.data.csv_header import SEPARATORS

    said = f"no field of labels has the --delimiter {delimiter!r}, which stands between two labels in one field, so"
    said += " every field is one label"
    if format in ("csv", "tsv") and delimiter in SEPARATORS:
        return said + "; what separates the columns is found by itself: leave --delimiter out"
    return said + "; without --delimiter it is found in the first rows"


def look_command(options: argparse.Namespace) -> None:
    """Prints what is in files that are not imported yet."""
    from engine.data.columns import look_at

    found = look_at(options.source, options.format, max(options.rows, 0))
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"format {found['format']}: " + ", ".join(f"{split} {file}" for split, file in found["splits"].items()))
    for i, column in enumerate(found["columns"]):
        print(f"  {column!r}: " + ", ".join(repr(row[i][:30]) for row in found["rows"]))


def inspect_command(options: argparse.Namespace) -> None:
    """Prints what is in a dataset; with --output also writes it."""
    from engine.data.inspection import inspect
    from engine.data.inspection_report import format_report, save_plots
    from engine.data.store import Dataset

    report = inspect(Dataset.open(options.dataset), max(options.samples, 0), *options.propensity)
    text, content = format_report(report), json.dumps(report, ensure_ascii=False)
    print(content if options.json else text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "inspection.json").write_text(content + "\n", encoding="utf-8")
        (options.output / "inspection.txt").write_text(text + "\n", encoding="utf-8")
        try:
            save_plots(report, options.output)
        except EnvironmentProblem as problem:
            print(f"engine: {problem}", file=sys.stderr)


def demo_command(options: argparse.Namespace) -> None:
    """Makes the built-in corpus, unless it is there."""
    from engine.data.python_api import ensure_python_api

    with _progress("collecting", "files") as progress:
        dataset = ensure_python_api(options.output, options.scope, progress=progress)
    _print_dataset(dataset)


@contextmanager
def _progress(title: str, unit: str):
    """A function of (done, all) that moves a progress bar."""
    from engine.progress import bar

    with bar(title, unit) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress


def _print_dataset(dataset: Any) -> None:
    test = "no test split" if dataset.test is None else counted(len(dataset.test), "test text")
    print(
        f"{dataset.path}: {counted(len(dataset.train), 'training text')}, {test}, {counted(dataset.n_labels, 'label')}"
    )
    print(f"Train on it:\n  engine train --data {dataset.path}")
