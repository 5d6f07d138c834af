"""The whole way of every corpus: import, inspect, train, evaluate, export, and ask the exported copy elsewhere.

    python benchmarks/every_corpus.py FOLDER...                # each a source that `engine data import` reads
    python benchmarks/every_corpus.py FOLDER... --work DIR     # keeps what was made

Every step is a process of its own. The encoder is a random BERT of two layers with the tokenizer of MiniLM: the run
shows that each step takes what the one before made, its scores mean nothing. The exported copy is moved to another
folder, the run it comes from is renamed, and the copy has to give the very same labels and probabilities. A table in
Markdown on standard output; exit code 1 when a step fails or a score differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
TOKENIZER = "sentence-transformers/all-MiniLM-L6-v2"
ASKED = 2000  # test texts

# Labels and probabilities, in full, of the texts in a file of JSON lines.
ASK = """
import json, sys
from engine.inference.predictor import Predictor
predictor = Predictor.load(sys.argv[1], "cpu")
texts = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
for row in predictor.stream(texts, 5):
    print(json.dumps([(p.label, p.label_id, p.probability.hex()) for p in row]))
"""


def make_encoder(folder: Path, width: int = 64) -> Path:
    """A random BERT in `folder`, with the tokenizer of MiniLM."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from engine.model.sources import find_encoder

    tokenizer = AutoTokenizer.from_pretrained(find_encoder(TOKENIZER))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(step: str, *arguments: str, log: Path) -> tuple[str, float]:
    """(standard output, seconds) of `python *arguments`. Raises SystemExit when it fails."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    with log.open("a") as file:
        file.write(f"$ {' '.join(arguments)}\n{done.stdout[:20_000]}\n{done.stderr}\n")
    if done.returncode or "Traceback" in done.stderr:
        raise SystemExit(f"{step} failed with exit code {done.returncode}, see {log}\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - start


def whole_way(source: Path, encoder: Path, work: Path, trainable: str) -> list[str]:
    """The cells of one row: what the corpus is, seconds of each step, and whether the scores are the same."""
    data, log = work / "data", work / "log.txt"
    engine = ("-m", "engine")
    seconds = []

    def step(name: str, *arguments: str) -> str:
        output, took = run(name, *arguments, log=log)
        seconds.append(f"{took:,.0f}")
        return output

    step("import", *engine, "data", "import", str(source), "--output", str(data), "--strict")
    step("inspect", *engine, "data", "inspect", str(data), "--output", str(work / "look"))
    flags = ["--profile", "cpu", "--encoder", str(encoder), "--epochs", "1", "--output", str(work / "runs")]
    for setting in ("data.max_tokens=32", f"encoder.trainable={trainable}", "evaluation.baselines=false"):
        flags += ["--set", setting]
    step("train", *engine, "train", "--data", str(data), *flags)
    (trained,) = (work / "runs").glob("2*")
    metrics = json.loads(step("evaluate", *engine, "evaluate", str(trained), "--json"))
    step("export", *engine, "export", str(trained), "--output", str(work / "exported"))

    from engine.data.store import Dataset

    dataset = Dataset.open(data)
    questions = work / "questions.jsonl"
    texts = islice((dataset.test or dataset.train).texts(), ASKED)
    questions.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    before = step("predict", "-c", ASK, str(trained), str(questions))
    shutil.move(work / "exported", work / "elsewhere" / "copy")
    trained.rename(trained.with_name("gone"))
    after = step("predict from the copy", "-c", ASK, str(work / "elsewhere" / "copy"), str(questions))
    copy = ("evaluate", str(work / "elsewhere" / "copy"), "--data", str(data), "--json")
    same = before == after and json.loads(step("evaluate the copy", *engine, *copy)) == metrics
    sizes = (len(dataset.train), len(dataset.test or ()), dataset.n_labels)
    counts = [f"{size:,}" for size in sizes]
    return [source.name, *counts, *seconds, f"{100 * metrics['P@1']:.1f}", "identical" if same else "DIFFERENT"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what is made there")
    parser.add_argument("--trainable", default="all", choices=("all", "none"), help="the encoder's layers (all)")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(SOURCE))
    steps = ("import", "inspect", "train", "evaluate", "export", "predict", "copy", "evaluate copy")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| corpus | train | test | labels | " + " | ".join(f"{name} s" for name in steps) + " | P@1 | scores |")
    print("|" + "---|" * (len(steps) + 6))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        root = options.work or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        encoder = make_encoder(root / "encoder")
        for source in options.sources:
            work = root / source.name
            (work / "elsewhere").mkdir(parents=True)
            cells = whole_way(source, encoder, work, options.trainable)
            print("| " + " | ".join(cells) + " |", flush=True)
            failed |= cells[-1] != "identical"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
