"""Runs the HTTP interface until SIGTERM or Ctrl-C; what is in flight then is still answered."""

from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path

from engine.errors import ConfigError, EnvironmentProblem
from engine.words import counted

MOST_CONNECTIONS = 256
IDLE_SECONDS = 30  # until a connection is closed that asks nothing more; see Connection for one that never did
GRACE_SECONDS = 30  # for what is in flight at the end
SHORTEST_TOKEN = 16


def read_token(path: Path) -> str:
    """The one line of the file. Raises ConfigError, which never shows what it read."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise ConfigError(f"--token-file {path} cannot be read ({reason}): name a text file") from None
    if not re.fullmatch(r"[!-~]+", token) or len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"--token-file {path} must hold one line of at least {SHORTEST_TOKEN} characters without spaces; "
            f"`openssl rand -hex 32 > {path}` makes one"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket bound there, on which nothing is accepted yet. Raises EnvironmentProblem."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EnvironmentProblem(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from None


def serve(model: Path, bound: socket.socket, token: str | None, local: bool, device: str, threads: int | None) -> None:
    """Loads the model (see Predictor.load) and answers on the socket `bound` until a signal says to stop.

    local: only this machine can reach the socket · threads: of torch, on a processor; by default all but one, which
    the requests need.
    """
    import torch
    import uvicorn

    from engine.inference.predictor import Predictor
    from engine.planning.hardware import usable_cores
    from engine.serving.api import create_app
    from engine.serving.connection import Connection
    from engine.serving.guard import Guard

    torch.set_num_threads(threads or max(1, usable_cores() - 1))
    predictor = Predictor.load(model, device)
    predictor.predict(["the first text takes longest"], 1)
    application = Guard(create_app(predictor, token is not None), token, local)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(
                f"{counted(predictor.labels, 'label')} on {url}, described at {url}/docs; Ctrl-C stops", file=sys.stderr
            )
            sys.stderr.flush()

    host, port = bound.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = Server(
        uvicorn.Config(
            application,
            http=Connection,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    # uvicorn stops at these signals and then sends them again, to whoever handled them before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[bound])
