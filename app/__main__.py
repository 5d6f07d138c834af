"""`python -m app`: opens the browser interface on this machine.

Reachable from other machines only with a password: see --host and --auth.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from engine.errors import ConfigError, EngineError, EnvironmentProblem
from engine.network import is_loopback

AUTH_VARIABLE = "FANIN_AUTH"


def main(arguments: list[str] | None = None) -> int:
    """Serves until Ctrl+C and returns the exit code of the command."""
    options = _parser().parse_args(arguments)
    try:
        loopback = is_loopback(options.host)
        auth = read_auth(options.auth)
        if not loopback and auth is None:
            raise ConfigError(
                f"--host {options.host} lets other machines in, which needs a password: add --auth FILE, "
                "or leave --host out and reach 127.0.0.1 through an SSH tunnel"
            )
        for flag, folder in (("runs", options.runs), ("datasets", options.datasets), ("encoders", options.encoders)):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"--{flag} {folder} is not a folder: name the one that holds the {flag}")
        check_free(options.host, options.port)
        from app.interface import serve
        from app.workspace import Workspace

        workspace = Workspace(options.runs, options.datasets, options.encoders)
        serve(workspace, options.host, options.port, auth, loopback)
    except EngineError as error:
        print(f"python -m app: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Brings data in, plans and watches trainings, and asks their models, in the browser.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default %(default)s: this machine only); any other needs --auth, and does not "
        "encrypt: use it on networks you trust",
    )
    parser.add_argument("--port", type=_port, default=7860, help="port to listen on (default %(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default %(default)s)"
    )
    parser.add_argument(
        "--datasets",
        type=Path,
        default=Path("datasets"),
        metavar="DIR",
        help="folder of the datasets (default %(default)s)",
    )
    parser.add_argument(
        "--encoders",
        type=Path,
        default=Path("encoders"),
        metavar="DIR",
        help="folder of Hugging Face models of your own to train with (default %(default)s)",
    )
    parser.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help=f"file with one line, user:password, to ask for (or the environment variable {AUTH_VARIABLE})",
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return int(text)


def check_free(host: str, port: int) -> None:
    """Raises EnvironmentProblem when nothing can listen there. Takes milliseconds; loading the interface seconds."""
    try:
        # Whatever the host, gradio also tries the port on 127.0.0.1.
        for address in (host, "127.0.0.1"):
            family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EnvironmentProblem(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from None


def read_auth(path: Path | None) -> tuple[str, str] | None:
    """User and password from the one line `user:password` of a file, or without one from the environment; None where
    neither says any. Raises ConfigError, which never shows what it read.
    """
    if path is None:
        place, text = (
            f"the environment variable {AUTH_VARIABLE}",
            os.environ.pop(AUTH_VARIABLE, None),
        )  # nor do child processes see it
        if text is None:
            return None
    else:
        place = f"--auth {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"{place} cannot be read ({reason}): name a text file") from None
    lines = text.splitlines()
    user, _, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    if not user or not password:
        raise ConfigError(f"{place} must hold exactly one line, user:password")
    return user, password


if __name__ == "__main__":
    sys.exit(main())
