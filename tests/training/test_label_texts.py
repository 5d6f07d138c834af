"""Label texts as training instances: what is trained on them, and what they leave alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_runs_end_to_end import TRAINABLE, assert_same_bits, train

from engine.cli import main
from engine.config import RunConfig
from engine.data import label_texts
from engine.data.label_sets import LabelSets
from engine.data.label_texts import LabelTexts, are_trained_on
from engine.data.store import Dataset, DatasetWriter
from engine.planning.hardware import detect
from engine.runs import RunDirectory
from engine.training.prepare import gather
from engine.training.reporter import Reporter
from tiny import FILLER, TOPICS, VERBS, make_rows

AUGMENT = ["--set", "data.augment_with_labels=true"]
PLAIN = ["--set", "data.augment_with_labels=false"]
WITHOUT_TEXT = (3, 15, 119)


def label_text(label: int) -> str:
    """Words that tell the label, as in the texts."""
    if label < 20:
        return (TOPICS + VERBS)[label]
    return f"{VERBS[label % 10]} {TOPICS[(label - 20) // 10]}"


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory) -> Path:
    """300 training texts that never have the labels of the topic `queue`; 100 test texts; 117 of 120 labels have a
    text, one more has nothing but spaces."""
    folder = tmp_path_factory.mktemp("labelled") / "texts"
    train_rows = [row for row in make_rows(400, 1) if 9 not in row[1]][:300]
    with DatasetWriter(folder, "texts", {"made": "here"}) as writer:
        for split, rows in (("train", [*train_rows, ("the quick graph", [])]), ("test", make_rows(100, 2))):
            for number, (text, ids) in enumerate(rows):
                writer.add(split, str(number), text, ids)
        texts = [None if label in WITHOUT_TEXT else label_text(label) for label in range(120)]
        texts[WITHOUT_TEXT[1]] = " \t"
        writer.finish([f"label-{i}" for i in range(120)], texts)
    return folder


def material(dataset: Path, encoder: Path, tmp_path: Path, **settings):
    flat = {"data.path": str(dataset), "encoder.name": str(encoder), "data.max_tokens": 16}
    config = RunConfig.from_flat(flat | {"data.validation_fraction": 0.1} | settings)
    run = RunDirectory.create(tmp_path / "runs", "material")
    return gather(config, detect("cpu"), Dataset.open(dataset), Reporter(run))


@pytest.mark.parametrize("trainable", ["none", "all"])
def test_every_label_text_is_an_instance_with_that_label_alone(with_texts, tiny_encoder, tmp_path, trainable):
    settings = {"encoder.trainable": trainable}
    plain = material(with_texts, tiny_encoder, tmp_path, **settings, **{"data.augment_with_labels": False})
    more = material(with_texts, tiny_encoder, tmp_path, **settings, **{"data.augment_with_labels": True})
    added = more.train_rows[len(plain.train_rows) :]
    expected = [label for label in range(120) if label not in WITHOUT_TEXT]
    assert [more.labels.select(np.array([row])).ids.tolist() for row in added] == [[label] for label in expected]
    assert added.min() == len(more.dataset.train)
    np.testing.assert_array_equal(more.train_rows[: len(plain.train_rows)], plain.train_rows)
    np.testing.assert_array_equal(more.validation_rows, plain.validation_rows)
    np.testing.assert_array_equal(more.label_frequency, plain.label_frequency)

    mixed = np.array([added[5], 0, added[0], 7, added[-1]])
    rows = more.labels.select(mixed)
    assert [rows.row(i).tolist() for i in (0, 2, 4)] == [[expected[5]], [expected[0]], [expected[-1]]]
    assert [rows.row(i).tolist() for i in (1, 3)] == [plain.labels.row(i).tolist() for i in (0, 7)]
    read, alone = more.train_inputs(mixed), [more.train_inputs(mixed[i : i + 1]) for i in range(5)]
    for number, single in enumerate(alone):
        for together, own in zip(read, single, strict=True):
            width = own.shape[1]
            assert together[number, :width].equal(own[0])
            assert not together[number, width:].any()  # the padding
    if trainable == "all":
        ids = more.tokenizer(label_text(expected[5]))["input_ids"]
        assert read[0][0, : len(ids)].tolist() == ids


def test_a_text_that_is_a_label_has_it_and_the_text_of_the_label_is_not_trained_on_twice(tiny_encoder, tmp_path):
    rows = [(label_text(label), [(label + 1) % 120]) for label in range(60)]
    with DatasetWriter(tmp_path / "own", "own", {"made": "here"}) as writer:
        for number, (text, ids) in enumerate(rows):
            writer.add("train", str(number), text, ids)
        sets = LabelSets(np.arange(61), np.arange(60, dtype=np.int32))
        writer.finish(
            map(str, range(120)), map(label_text, range(120)), looks=lambda _: writer.add_filter("train", sets)
        )
    found = material(tmp_path / "own", tiny_encoder, tmp_path)  # by itself: the labels are texts like the instances
    train, validation = found.train_rows[found.train_rows < 60], found.validation_rows
    assert sorted([*train, *validation]) == list(range(60))
    labels = found.labels.select(train)
    assert [labels.row(i).tolist() for i in range(len(train))] == [sorted({n, (n + 1) % 120}) for n in train.tolist()]
    alone = found.train_rows[len(train) :] - 60
    assert set(alone.tolist()) == {*validation.tolist(), *range(60, 120)}
    plain = material(tmp_path / "own", tiny_encoder, tmp_path, **{"data.augment_with_labels": False})
    np.testing.assert_array_equal(plain.train_rows, train)
    assert plain.labels.select(train[:1]).ids.tolist() == [(train[0] + 1) % 120]


def test_by_itself_they_are_trained_on_where_they_add_at_most_half(with_texts, monkeypatch):
    dataset = Dataset.open(with_texts)
    assert are_trained_on(dataset, "auto")
    for share, expected in ((117.5 / 301, True), (116.5 / 301, False)):
        monkeypatch.setattr(label_texts, "MOST_ADDED", share)
        assert are_trained_on(dataset, "auto") is expected
        assert are_trained_on(dataset, True)
    monkeypatch.setattr(label_texts, "MOST_ADDED", 1.0)
    assert not are_trained_on(dataset, False)


def test_labels_that_no_training_text_has_are_learned_from_their_own(with_texts, tiny_encoder, tmp_path, capsys):
    flags = ["--profile", "cpu", "--data", str(with_texts), "--encoder", str(tiny_encoder), "--epochs", "40"]
    for key, value in {
        "data.max_tokens": 16, "classifier.fan_in": 16, "classifier.group_size": 4, "training.batch_size": 32,
        "training.warmup_steps": 5, "evaluation.baselines": "false", "classifier.learning_rate": 0.02,
    }.items():  # fmt: skip
        flags += ["--set", f"{key}={value}"]
    found = {}
    for name, more in (("plain", PLAIN), ("augmented", AUGMENT)):
        run = train(flags, tmp_path / name, "--json", *more)
        capsys.readouterr()
        assert main(["predict", str(run), "--json", "-k", "3", *(f"queue {word}" for word in ("", *FILLER[:4]))]) == 0
        answers = map(json.loads, capsys.readouterr().out.splitlines())
        found[name] = sum("label-9" in [label["label"] for label in answer["labels"]] for answer in answers)
        assert json.loads((run / "result.json").read_text())["metrics"]["instances"] == 100
    assert found["plain"] == 0
    assert found["augmented"] > 0
    assert "the texts of 117 labels are trained on, too" in (run / "log.txt").read_text()


@pytest.mark.parametrize("more", [[], TRAINABLE], ids=["frozen", "trainable"])
def test_the_same_seed_gives_the_same_bits_also_after_a_stop(with_texts, tiny_flags, tmp_path, more, monkeypatch):
    flags = [*tiny_flags, *AUGMENT, *more, "--data", str(with_texts)]
    whole = train(flags, tmp_path / "whole")
    assert_same_bits(whole, train(flags, tmp_path / "again"))

    from engine.training.trainer import Trainer

    log, asked = Trainer._log, []

    def stop_once(self, *values):
        log(self, *values)
        if not asked:
            asked.append(self.run.request_stop())

    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    monkeypatch.setattr(Trainer, "_log", stop_once)
    assert main(["train", *flags, "--output", str(tmp_path / "stopped")]) == 75
    (run,) = (tmp_path / "stopped").glob("2*")
    status = json.loads((run / "status.json").read_text())
    assert 0 < status["step"] < status["total"]
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_bits(whole, run)


def test_a_dataset_without_label_texts_is_refused_before_there_is_a_run(tiny_flags, tiny_dataset, tmp_path, capsys):
    assert main(["train", *tiny_flags, *AUGMENT, "--output", str(tmp_path / "runs")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("engine: ")]
    assert f"data.augment_with_labels = true, but no label of {tiny_dataset} has a text" in line
    assert not (tmp_path / "runs").exists()


def test_texts_are_streamed_and_keyed_by_the_file(with_texts, tmp_path):
    texts = LabelTexts.of(Dataset.open(with_texts))
    assert list(texts.texts()) == [label_text(label) for label in texts.ids]
    assert len(texts) == len(texts.labels) == 117
    copy = shutil.copytree(with_texts, tmp_path / "copy")
    assert LabelTexts.of(Dataset.open(copy)).digest == texts.digest
