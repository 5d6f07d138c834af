"""`engine predict`: its part of the command line. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, DataError
from engine.words import counted


def add_predict(
    commands: Any,
    add_command: Callable[..., argparse.ArgumentParser],
    find: Callable[[Path], Path],
    number: Callable[[str], int],
) -> None:
    """Adds `predict` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command.

    find: the folder that a path or the id of a run means · number: a whole number above 0.
    """
    predict = add_command(commands, "predict", "top-k labels of texts", lambda options: predict_command(options, find))
    predict.add_argument("model", type=Path, help="a run, or a model folder")
    predict.add_argument("texts", nargs="*", help="texts; without any, standard input is read, one a line")
    predict.add_argument("--input", metavar="FILE", help="read texts from a .txt, .jsonl or .csv file")
    predict.add_argument("--column", default="text", help="field of a .jsonl or column of a .csv (text)")
    predict.add_argument("-k", "--top", type=number, default=5, help="labels a text (5)")
    predict.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    predict.add_argument("--json", action="store_true", help="one JSON object a text")
    predict.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --input: write one JSON object a text to this .jsonl file; the same command goes on after a stop",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace what --output names, start again")


def predict_command(options: argparse.Namespace, find: Callable[[Path], Path]) -> None:
    """Predicts to the terminal, or to a file."""
    if options.input and options.texts:
        raise ConfigError("give texts or --input, not both")
    if options.overwrite and not options.output:
        raise ConfigError("--overwrite replaces what --output names; name it")
    if options.output:
        _to_file(options, find(options.model))
    else:
        _to_terminal(options, find(options.model))


def _to_file(options: argparse.Namespace, model: Path) -> None:
    from engine.inference.batch import predict_file
    from engine.inference.predictor import Predictor

    source = Path(options.input or "-")
    if not options.input or options.input == "-":
        raise ConfigError("--output needs --input FILE: what goes on after a stop has to be read again")
    if options.output.suffix != ".jsonl":
        raise ConfigError(f"--output {options.output}: the format is JSON lines; name a file that ends in .jsonl")
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    predictor = Predictor.load(model, options.device)
    count, found = predict_file(
        predictor, source, options.column, options.top, options.output, overwrite=options.overwrite
    )
    earlier = f", {found:,} of them earlier" if found else ""
    print(f"{options.output}: labels of {counted(count, 'text')}{earlier}")


def _to_terminal(options: argparse.Namespace, model: Path) -> None:
    from engine.inference.batch import as_json
    from engine.inference.predictor import WINDOW, Predictor
    from engine.inference.texts import read_texts

    for text in options.texts:
        if not text.strip():
            raise DataError("the text is empty; there is nothing to predict from")
    source = iter(options.texts) if options.texts else read_texts(options.input or "-", options.column)
    predictor = Predictor.load(model, options.device)
    kept: list[str] = []  # texts whose predictions are still to come: one window of them

    def remembered() -> Iterator[str]:
        for text in source:
            kept.append(text)
            yield text

    typed = not options.texts and not options.input and sys.stdin.isatty()
    if typed:
        print("one text a line, Ctrl-D ends", file=sys.stderr)
    with closing(predictor.stream(remembered(), options.top, 1 if typed else WINDOW)) as found:
        for predictions in found:
            text = kept.pop(0)
            if options.json:
                print(as_json(text, predictions))
            else:
                print_predictions(text, predictions)


def print_predictions(text: str, predictions: list) -> None:
    """A text, and below it a line a label."""
    shown = " ".join(text.split())
    print(shown if len(shown) <= 100 else shown[:99] + "…")
    for prediction in predictions:
        print(f"  {prediction.probability:6.1%}  {prediction.label}")
