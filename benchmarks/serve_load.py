"""Load on `engine serve`: how long one text takes, how many requests a second it answers, whether its memory grows.

    python benchmarks/serve_load.py                     # 50,000 random labels over MiniLM
    python benchmarks/serve_load.py MODEL --seconds 600 --alone-seconds 60

Starts the server on a free port of this machine, then asks it one text at a time from 1 client and from --clients at
once, each over a connection of its own. Texts are 4 to 20 common words drawn at random.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.planning.hardware import cpu_name, usable_cores
from random_model import make_bundle

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
VOCABULARY = """a after all and append as at back by call check close code convert copy count create data date delete
each error event file find first for format from function get group if in into is key last line link list load long
make map match name new next not number object of on one open or order out page parse path print process put queue
read remove return row run save search send server set shell short show sort sound split start stop string table text
that the then time to tree type up use user value when which with word write year""".split()
SAMPLE_SECONDS = 1.0  # between two looks at the server's memory


@dataclass
class Measured:
    """One client count: seconds of every answered request, what failed, bytes of the server over time."""

    clients: int
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def row(self) -> str:
        """One row of the table."""
        times = sorted(self.times)
        p50, p95, p99 = (1000 * times[int(len(times) * share)] for share in (0.5, 0.95, 0.99))
        quarters = [self.memory[(len(self.memory) - 1) * quarter // 4] / 2**20 for quarter in range(5)]
        rate = len(times) / self.seconds
        return (
            f"{self.clients:>7} {len(times):>9,} {rate:>10.1f} {p50:>8.1f} {p95:>8.1f} {p99:>8.1f} "
            f"{len(self.errors):>7}  {' '.join(f'{mebibytes:>7,.0f}' for mebibytes in quarters)}"
        )


def client(port: int, seed: int, until: float, k: int, measured: Measured) -> None:
    """Asks until the time `until` (of time.perf_counter)."""
    rng = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.perf_counter() < until:
        body = json.dumps({"text": " ".join(rng.choices(VOCABULARY, k=rng.randint(4, 20))), "k": k})
        start = time.perf_counter()
        try:
            connection.request("POST", "/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200 or len(json.loads(content)["results"][0]["labels"]) != k:
                measured.errors.append(f"{answer.status} {content[:100]!r}")
                continue
        except (OSError, http.client.HTTPException) as error:
            measured.errors.append(repr(error))
            connection.close()
            continue
        measured.times.append(time.perf_counter() - start)


def load(port: int, server: psutil.Process, clients: int, seconds: float, k: int) -> Measured:
    """`clients` threads that ask for `seconds`."""
    measured, start = Measured(clients), time.perf_counter()
    threads = [
        threading.Thread(target=client, args=(port, seed, start + seconds, k, measured)) for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        measured.memory.append(server.memory_info().rss)
        time.sleep(SAMPLE_SECONDS)
    for thread in threads:
        thread.join()
    measured.seconds = time.perf_counter() - start
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a run or a model folder; without one, a random model is made")
    parser.add_argument("--labels", type=int, default=50_000, help="of the random model (50000)")
    parser.add_argument("--words", type=int, default=256, help="that a label of it reads beside 64 features (256)")
    parser.add_argument("--clients", type=int, default=16, help="at once (16)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (60)")
    parser.add_argument("--alone-seconds", type=float, help="of the one with 1 client (as --seconds)")
    parser.add_argument("-k", type=int, default=5, help="labels a text (5)")
    parser.add_argument("--threads", type=int, help="passed on to engine serve")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            from engine.model.sources import find_encoder

            head = options.labels // 20
            model = make_bundle(
                Path(folder) / "model", find_encoder(ENCODER), options.labels,
                head=head, fan_in=64, group_size=32, tokens=64, words=options.words,
            )  # fmt: skip
        command = [sys.executable, "-m", "engine", "serve", str(model), "--port", "0"]
        command += ["--threads", str(options.threads)] if options.threads else []
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            port = next(
                int(found[1]) for line in server.stderr if (found := re.search(r"on http://[\d.]+:(\d+)", line))
            )
            watched = psutil.Process(server.pid)
            load(port, watched, options.clients, 5.0, options.k)  # allocators and caches fill
            before = os.getloadavg()
            alone = options.alone_seconds or options.seconds
            measurements = ((1, alone), (options.clients, options.seconds))
            rows = [load(port, watched, clients, seconds, options.k) for clients, seconds in measurements]
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    print(f"{cpu_name()}, cores: {usable_cores()}, load before: {before[0]:.1f}, after: {os.getloadavg()[0]:.1f}")
    print(f"python benchmarks/serve_load.py {' '.join(sys.argv[1:])}\n")
    print("                                    ms of a request         server's resident MiB, start to end")
    print("clients  requests  requests/s      p50      p95      p99  errors    start     1/4     1/2     3/4     end")
    for measured in rows:
        print(measured.row())
        for error in measured.errors[:3]:
            print(f"  {error}")
    print(f"\nstopped with exit code {code}")
    return int(code != 0 or any(measured.errors for measured in rows))


if __name__ == "__main__":
    sys.exit(main())
