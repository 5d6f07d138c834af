"""`engine predict --input FILE --output FILE` on a million texts: killed on the way, gone on with, and checked.

    python benchmarks/batch_predict.py [--texts 1000000] [--labels 10000] [--kill-at 0.3 0.6]

The model is random, over a random BERT of two layers with the tokenizer of MiniLM. Texts are 4 to 20 common words, each
with its number in front, so that the order can be checked. Memory is looked at once a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from engine.planning.hardware import cpu_name, usable_cores
from every_corpus import SOURCE, make_encoder
from random_model import make_bundle
from serve_load import VOCABULARY


def write_texts(file: Path, count: int) -> None:
    """One text a line."""
    rng = random.Random(0)
    with file.open("w") as stream:
        for number in range(count):
            stream.write(f"{number} {' '.join(rng.choices(VOCABULARY, k=rng.randint(4, 20)))}\n")


def predict(model: Path, texts: Path, output: Path, kill_at: int | None) -> tuple[float, list[int], str]:
    """(seconds, resident bytes over time, what it printed) of one process, killed when `kill_at` bytes are written."""
    command = [sys.executable, "-m", "engine", "predict", str(model), "--input", str(texts), "--output", str(output)]
    partial, start, memory = output.with_name(output.name + ".partial"), time.perf_counter(), []
    log = output.with_name("log.txt")
    with log.open("w") as stream, subprocess.Popen(
        command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    ) as process:  # fmt: skip
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            memory.append(watched.memory_info().rss)
            if kill_at is not None and partial.exists() and partial.stat().st_size >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(1.0)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit code {process.returncode}: {log.read_text()[-2000:]}")
    return time.perf_counter() - start, memory, log.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--kill-at", type=float, nargs="*", default=[0.3, 0.6], help="shares of the output (0.3 0.6)")
    options = parser.parse_args()
    print(f"{cpu_name()}, cores: {usable_cores()}, load before: {os.getloadavg()[0]:.1f}")
    print(f"python benchmarks/batch_predict.py {' '.join(sys.argv[1:])}\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encoder = make_encoder(root / "encoder", 32)
        model = make_bundle(root / "made" / "model", encoder, options.labels, fan_in=16, group_size=32, tokens=32)
        texts, output = root / "texts.txt", root / "out.jsonl"
        write_texts(texts, options.texts)
        size = 300 * options.texts  # bytes of the output, roughly
        print("process         seconds  resident MiB: start     1/4     1/2     3/4     end  peak")
        for kill_at in [*(int(share * size) for share in options.kill_at), None]:
            seconds, memory, said = predict(model, texts, output, kill_at)
            shown = [memory[(len(memory) - 1) * quarter // 4] / 2**20 for quarter in range(5)]
            name = "to the end" if kill_at is None else "killed"
            values = " ".join(f"{value:>7,.0f}" for value in shown)
            print(f"{name:<14}{seconds:>9,.0f}          {values}  {max(memory) / 2**20:,.0f}", flush=True)
        print("\n" + "\n".join(line for line in said.splitlines()[-3:]))
        with texts.open() as asked, output.open() as found:
            for number, (text, line) in enumerate(zip(asked, found, strict=True), start=1):
                row = json.loads(line)
                assert row["text"] == text.rstrip("\n") and len(row["labels"]) == 5, number
        print(f"{number:,} texts, each with 5 labels, in the order of the input")


if __name__ == "__main__":
    main()
