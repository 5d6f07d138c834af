"""Every layout goes the whole way: import, inspect, train, evaluate, export; the copy predicts the same elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.cli import main
from engine.data.store import Dataset
from tiny import make_rows

SOURCE = Path(__file__).parents[1]
TRAIN, TEST = make_rows(160, 5), make_rows(30, 6)
LABELS = 120
ASK = """
import json, sys
from engine.inference.predictor import Predictor
models, texts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for model in models:
    rows = Predictor.load(model, "cpu").predict(texts, 5)
    print(json.dumps([[(p.label, p.label_id, p.probability.hex()) for p in row] for row in rows]))
"""


def named(ids: list[int]) -> list[str]:
    return [f"label-{i}" for i in ids]


def write_table(folder: Path, kind: str) -> None:
    for split, rows in (("train", TRAIN), ("test", TEST)):
        file = folder / f"{split}.{kind}"
        if kind == "jsonl":
            lines = [json.dumps({"text": text, "labels": named(ids)}) for text, ids in rows]
        else:
            separator = "\t" if kind == "tsv" else ","
            lines = [f"text{separator}labels", *(f"{text}{separator}{';'.join(named(ids))}" for text, ids in rows)]
        file.write_text("\n".join(lines) + "\n")


def write_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, rows in (("train", TRAIN), ("test", TEST)):
        table = pa.table({"text": [text for text, _ in rows], "labels": [named(ids) for _, ids in rows]})
        pq.write_table(table, folder / f"{split}.parquet")


def write_xmc_json(folder: Path) -> None:
    for name, rows in (("trn", TRAIN), ("tst", TEST)):
        lines = [{"uid": str(n), "title": text, "target_ind": ids} for n, (text, ids) in enumerate(rows)]
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"uid": str(i), "title": f"label-{i}"} for i in range(LABELS)]
    (folder / "lbl.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n")


def write_aalto(folder: Path) -> None:
    for split, rows in (("train", TRAIN), ("test", TEST)):
        write_lines(folder / f"{split}_raw_texts.txt", [text for text, _ in rows])
        write_lines(folder / f"{split}_labels.txt", [" ".join(named(ids)) for _, ids in rows])


def write_xmc_text(folder: Path) -> None:
    for name, rows in (("trn", TRAIN), ("tst", TEST)):
        write_lines(folder / f"{name}_X.txt", [text for text, _ in rows])
        pairs = [" ".join(f"{i}:1.0" for i in ids) for _, ids in rows]
        write_lines(folder / f"{name}_X_Y.txt", [f"{len(rows)} {LABELS}", *pairs])
    write_lines(folder / "lbl_X.txt", named(range(LABELS)))


def write_pecos(folder: Path) -> None:
    for name, rows in (("trn", TRAIN), ("tst", TEST)):
        write_lines(folder / f"X.{name}.txt", [text for text, _ in rows])
        sizes = [len(ids) for _, ids in rows]
        indices = np.array([i for _, ids in rows for i in ids], np.int32)
        parts = {"format": np.array(b"csr"), "shape": np.array([len(rows), LABELS]), "data": np.ones(sum(sizes))}
        np.savez(folder / f"Y.{name}.npz", indices=indices, indptr=np.cumsum([0, *sizes]), **parts)
    write_lines(folder / "output-items.txt", named(range(LABELS)))


def write_saved(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        split: datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "labels": [named(ids) for _, ids in rows]}
        )
        for split, rows in (("train", TRAIN), ("test", TEST))
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))


LAYOUTS = {
    **{kind: lambda folder, kind=kind: write_table(folder, kind) for kind in ("csv", "tsv", "jsonl")},
    "parquet": write_parquet, "xmc-json": write_xmc_json, "aalto": write_aalto, "xmc-text": write_xmc_text,
    "pecos": write_pecos, "hub": write_saved,
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_encoder):
    """By layout: (what the run predicts, its metrics, its exported copy in another folder, the dataset)."""
    made = {}
    settings = {
        "data.max_tokens": 16, "data.validation_fraction": 0.1, "classifier.fan_in": 8, "classifier.group_size": 4,
        "training.batch_size": 32, "training.warmup_steps": 2, "rewire.interval": 3, "evaluation.baselines": "false",
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def one(layout: str):
        if layout not in made:
            root = tmp_path_factory.mktemp(layout)
            source, data, runs = root / "source", root / "data", root / "runs"
            source.mkdir()
            LAYOUTS[layout](source)
            assert main(["data", "import", str(source), "--output", str(data), "--strict"]) == 0
            assert main(["data", "inspect", str(data), "--output", str(root / "look")]) == 0
            flags = ["--profile", "cpu", "--encoder", str(tiny_encoder), "--epochs", "1", *sets]
            assert main(["train", "--data", str(data), "--output", str(runs), *flags]) == 0
            (run,) = runs.glob("2*")
            copy = tmp_path_factory.mktemp("elsewhere") / layout
            assert main(["export", str(run), "--output", str(copy), "--no-onnx"]) == 0
            made[layout] = (run, copy, data)
        return made[layout]

    return one


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_goes_the_whole_way(exported, layout, capsys):
    run, copy, data = exported(layout)
    dataset = Dataset.open(data, verify=True)
    assert list(dataset.train.texts()) == [text for text, _ in TRAIN]
    names = dataset.label_names()
    found = [{names[i] for i in dataset.test.labels.row(row)} for row in range(len(TEST))]
    assert found == [set(named(ids)) for _, ids in TEST]
    capsys.readouterr()
    printed = []
    for model in (run, copy):
        assert main(["evaluate", str(model), "--data", str(data), "--json", "--device", "cpu"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["instances"] == len(TEST)


def test_the_exported_copies_give_the_same_scores_in_another_process(exported):
    from engine.inference.predictor import Predictor

    pairs = [exported(layout)[:2] for layout in LAYOUTS]
    texts = [text for text, _ in TEST]
    copies = json.dumps([str(copy) for _, copy in pairs])
    done = subprocess.run(
        [sys.executable, "-c", ASK, copies, json.dumps(texts)], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    for line, (run, _) in zip(done.stdout.splitlines(), pairs, strict=True):
        rows = Predictor.load(run, "cpu").predict(texts, 5)
        expected = [[[p.label, p.label_id, p.probability.hex()] for p in row] for row in rows]
        assert json.loads(line) == expected
