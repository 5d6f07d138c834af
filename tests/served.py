"""Servers of models, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1]


@contextmanager
def running(model, *options):
    """(process, port) of a server on a free port; killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "serve", str(model), "--port", "0", "--device", "cpu", *options],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+?:(\d+),", line):
                yield process, int(found[1])
                return
        pytest.fail("the server ended: " + "".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
