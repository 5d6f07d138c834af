"""`engine serve`: its part of the command line. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.network import is_loopback


def add_serve(commands: Any, add_command: Callable[..., argparse.ArgumentParser], find: Callable[[Path], Path]) -> None:
    """Adds `serve` to the subparsers `commands`; add_command(subparsers, name, help, function) makes a command.

    find: the folder that a path or the id of a run means.
    """
    serve = add_command(
        commands, "serve", "answer requests for labels over HTTP", lambda options: serve_command(options, find)
    )
    serve.add_argument("model", type=Path, help="a run, or a model folder")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (127.0.0.1: this machine only); any other needs --token-file, and does not "
        "encrypt: use it on networks you trust",
    )
    serve.add_argument("--port", type=_port, default=8000, help="port to listen on (8000); 0 takes a free one")
    serve.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the token that requests have to carry"
    )
    serve.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    serve.add_argument("--threads", type=_threads, metavar="N", help="processor threads of the model (all but one)")


def serve_command(options: argparse.Namespace, find: Callable[[Path], Path]) -> None:
    """Serves until told to stop. Raises ConfigError before anything is loaded when others could ask without a token."""
    local = is_loopback(options.host)
    if not local and options.token_file is None:
        raise ConfigError(
            f"--host {options.host} lets other machines in, which needs a token: add --token-file FILE, "
            "or leave --host out and reach 127.0.0.1 through an SSH tunnel"
        )
    from engine.inference.predictor import model_folder
    from engine.serving.server import listen, read_token, serve

    token = read_token(options.token_file) if options.token_file else None
    model = model_folder(find(options.model))
    with listen(options.host, options.port) as bound:
        serve(model, bound, token, local, options.device, options.threads)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _threads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads: 1 to 1024")
    return int(text)
