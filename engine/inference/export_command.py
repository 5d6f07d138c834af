"""`engine export`: its part of the command line. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import ConfigError


def add_export(
    commands: Any, add_command: Callable[..., argparse.ArgumentParser], find: Callable[[Path], Path]
) -> None:
    """Adds `export` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command.

    find: the folder that a path or the id of a run means.
    """
    export = add_command(
        commands, "export", "a folder with a model and its card", lambda options: export_command(options, find)
    )
    export.add_argument("model", type=Path, help="a run, or a model folder")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    export.add_argument("--name", help="title of the model card (default: of the dataset)")
    export.add_argument("--license", default="unknown", metavar="ID", help="as the hub names it (unknown)")
    export.add_argument("--no-onnx", action="store_true", help="leave out the encoder in ONNX")
    export.add_argument("--overwrite", action="store_true", help="replace the export that is there")


def export_command(options: argparse.Namespace, find: Callable[[Path], Path]) -> None:
    """Makes the folder, with ONNX where the packages for it are installed."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise ConfigError(f"--license {options.license!r} is no identifier such as apache-2.0 or cc-by-4.0")
    from engine.inference.export import export_model
    from engine.inference.onnx_features import can_export

    onnx = not options.no_onnx and can_export()
    if not onnx and not options.no_onnx:
        print("without features.onnx: the extra `onnx` is not installed", file=sys.stderr)
    export_model(find(options.model), options.output, options.name, options.license, onnx, options.overwrite)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 2**20:,.1f} MiB, described in README.md")
