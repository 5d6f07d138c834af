"""`python -m app.job FOLDER`: runs the command of a job and writes down how it ended. See `app.jobs`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Exit code of the command."""
    from engine.cli import main as engine
    from engine.progress import INTERVAL

    os.environ[INTERVAL] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped command clears away what it was making
    arguments = json.loads((folder / "job.json").read_text(encoding="utf-8"))["arguments"]
    try:
        code = engine(arguments)
    except SystemExit as stop:  # of argparse
        code = stop.code if isinstance(stop.code, int) else 2
    sys.stdout.flush()
    temporary = folder / "exit.tmp"
    temporary.write_text(str(code))
    os.replace(temporary, folder / "exit")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
