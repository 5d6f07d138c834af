"""Speed and memory of `engine data import` on a generated file: lines a second, highest resident memory.

    python benchmarks/import_speed.py [--lines 2000000] [--line-bytes 1500] [--format csv jsonl] [--folder DIR]

A table in Markdown on standard output. The file has quoted fields with separators and quotes in them, words of a
natural frequency, and five labels a line.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

SENTENCES = 20_000


def rows(lines: int, line_bytes: int, labels: int) -> Iterator[tuple[str, str, str]]:
    """uid, text, labels of each line."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("etaoinshrdlu"), size)) for size in random.integers(2, 11, 30_000)]
    drawn = (random.pareto(1.0, (SENTENCES, 9)) * 20).astype(np.int64) % len(words)
    sentences = [" ".join(words[word] for word in sentence) for sentence in drawn.tolist()]
    sentences = [f'He said "{s}", then left' if i % 7 == 0 else s for i, s in enumerate(sentences)]
    parts = max(1, round((line_bytes - 50) / (sum(map(len, sentences)) / len(sentences) + 2)))
    for start in range(0, lines, 10_000):
        count = min(10_000, lines - start)
        texts = random.integers(0, SENTENCES, (count, parts)).tolist()
        ids = ((random.pareto(0.6, (count, 5)) * 10).astype(np.int64) % labels).tolist()
        for row in range(count):
            text = ". ".join(sentences[part] for part in texts[row])
            yield f"u{start + row}", text, ";".join(f"label-{number}" for number in ids[row])


def write(file: Path, kind: str, lines: int, line_bytes: int, labels: int) -> None:
    """Writes `file` of the kind csv, csv.gz, jsonl or parquet."""
    content = rows(lines, line_bytes, labels)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in ("uid", "text", "labels")])
        with pq.ParquetWriter(file, schema, compression="zstd") as table:
            while part := list(islice(content, 50_000)):
                table.write_table(pa.table([list(column) for column in zip(*part, strict=True)], schema=schema))
        return
    with gzip.open(file, "wt", 1, newline="") if kind == "csv.gz" else open(file, "w", newline="") as stream:
        if kind == "jsonl":
            for uid, text, labelled in content:
                stream.write(json.dumps({"uid": uid, "text": text, "labels": labelled.split(";")}) + "\n")
        else:
            table = csv.writer(stream)
            table.writerow(["uid", "text", "labels"])
            table.writerows(content)


def measure(file: Path, output: Path) -> tuple[float, float, float]:
    """Seconds of an import in a process of its own, those of all its threads, and the MiB it had at most."""
    command = [sys.executable, "-m", "engine", "data", "import", str(file), "--output", str(output), "--overwrite"]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--strict"], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        raise SystemExit(f"the import failed with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--line-bytes", type=int, nargs="+", default=[1500])
    parser.add_argument("--labels", type=int, default=500_000)
    parser.add_argument("--format", nargs="+", default=["csv"], choices=("csv", "csv.gz", "jsonl", "parquet"))
    parser.add_argument("--folder", type=Path, help="where the file and the dataset go (default: a temporary folder)")
    options = parser.parse_args()
    import pyarrow

    print(f"{platform.machine()}, Python {platform.python_version()}, pyarrow {pyarrow.__version__}")
    print(f"`python benchmarks/import_speed.py {' '.join(sys.argv[1:])}`\n")
    print("| file | lines | MB | seconds | processor s | lines/s | MB/s | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.format:
        for line_bytes in options.line_bytes:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                file = Path(folder) / f"made.{kind}"
                made = (file, kind, options.lines, line_bytes, options.labels)
                # In a process of its own: what this one has in memory would count as the import's.
                writer = multiprocessing.get_context("spawn").Process(target=write, args=made)
                writer.start()
                writer.join()
                seconds, processor_seconds, peak = measure(file, Path(folder) / "dataset")
                size = file.stat().st_size / 1e6
                cells = (options.lines, size, seconds, processor_seconds, options.lines / seconds, size / seconds, peak)
                print(f"| {kind} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
