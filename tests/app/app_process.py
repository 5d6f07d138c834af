"""The interface as a process of its own, as its users start it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def serve(root, *options, cwd=REPOSITORY, **environment):
    """A running `python -m app` over the runs in `root`, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", str(port), "--runs", str(root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
    )
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}/" in line, line + (process.communicate()[0] or "")
    return process, f"http://127.0.0.1:{port}/"


def stop(process):
    process.terminate()
    process.wait(10)
