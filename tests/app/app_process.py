"""The interface as a process of its own, as its users start it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def serve(root, *options, port=None, cwd=REPOSITORY, **environment):
    """A running `python -m app` over the runs in `root`, and its address; at a free port unless one is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    output = tempfile.TemporaryFile("a+")  # noqa: SIM115 - open as long as the process
    paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", str(port), "--runs", str(root), *options],
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
    )
    process.output = output
    address = f"http://127.0.0.1:{port}/"
    while address not in words(process):
        assert process.poll() is None, words(process)
        time.sleep(0.1)
    return process, address


def words(process):
    """What the interface has printed so far."""
    process.output.seek(0)
    return process.output.read()


def stop(process):
    process.terminate()
    process.wait(10)
    unforeseen = [text for text in words(process).split("Traceback")[1:] if "gr.Error(" not in text]
    assert not unforeseen, unforeseen[0]
