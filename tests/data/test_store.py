import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import manifest, split_writer, store
from engine.data.label_sets import LabelSets
from engine.data.store import Dataset, DatasetWriter
from engine.errors import ConfigError, DataError, EnvironmentProblem

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
INSTANCES = st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 9), max_size=12)), min_size=1, max_size=30)


def _names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _write_until(folder, error: BaseException) -> None:
    with DatasetWriter(folder / "d", "d", {}) as writer:
        writer.add("train", "0", "text", [1])
        raise error


def _rewrite_manifest(dataset: Dataset, **changes) -> None:
    file = dataset.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=INSTANCES, test=INSTANCES)
def test_what_is_written_is_read_back(make_dataset, train, test):
    made = make_dataset(train, test, overwrite=True)
    dataset = Dataset.open(made.path, verify=True)
    for split, rows in ((dataset.train, train), (dataset.test, test)):
        assert list(split.texts()) == [text for text, _ in rows]
        assert list(split.uids()) == [f"{split.name}-{number}" for number in range(len(rows))]
        assert [split.labels.row(i).tolist() for i in range(len(split))] == [sorted(set(ids)) for _, ids in rows]
    expected = np.bincount([label for _, ids in train for label in set(ids)], minlength=10)
    assert dataset.label_frequency().tolist() == expected.tolist() == dataset.train.labels.counts(10).tolist()


def test_the_same_content_gives_the_same_digest(make_dataset, tmp_path):
    first, again = (make_dataset([("a text", [1])], path=tmp_path / name) for name in ("one", "two"))
    other = make_dataset([("a text", [2])], path=tmp_path / "three")
    assert first.digest == again.digest != other.digest


def test_label_names_and_texts_have_the_order_of_the_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_LABEL_ROWS", 2)
    with DatasetWriter(tmp_path / "d", "d", {}) as writer:
        writer.add("train", "0", "text", [4])
        dataset = writer.finish((f"n{i}" for i in range(5)), (f"t{i}" if i % 2 else None for i in range(5)))
    assert dataset.label_names() == ["n0", "n1", "n2", "n3", "n4"]
    assert dataset.label_texts() == [None, "t1", None, "t3", None]
    assert dataset.label_frequency().tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("texts", [["only one"], ["one", "two", "three"]])
def test_every_label_has_a_text_or_none_has(tmp_path, texts):
    with DatasetWriter(tmp_path / "d", "d", {}) as writer:
        writer.add("train", "0", "text", [0])
        with pytest.raises(DataError, match="label"):
            writer.finish(["a", "b"], texts)


@pytest.mark.parametrize("rows_per_group", [1, 3, 7, 100])
def test_any_range_of_texts_can_be_streamed(make_dataset, monkeypatch, rows_per_group):
    monkeypatch.setattr(split_writer, "_WRITE_ROWS", rows_per_group)
    monkeypatch.setattr(store, "_READ_ROWS", 2)
    dataset = make_dataset([(f"text {i}", []) for i in range(20)])
    for start, stop in [(0, None), (5, 6), (0, 20), (7, 7), (19, 50), (20, None), (3, 15)]:
        assert list(dataset.train.texts(start, stop)) == [f"text {i}" for i in range(20)][start:stop]


def test_a_large_text_closes_its_row_group(make_dataset, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(split_writer, "_WRITE_BYTES", 1000)
    dataset = make_dataset([("x" * 400, [])] * 9)
    metadata = pq.ParquetFile(dataset.train.path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3]


def test_label_sets_are_memory_mapped(make_dataset):
    labels = make_dataset([("a", [1, 2])]).train.labels
    assert isinstance(labels.ids.base, np.memmap)
    assert labels.ids.dtype == np.int32
    assert labels.offsets.dtype == np.int64


def test_select_takes_rows_in_any_order_and_number():
    labels = LabelSets(np.array([0, 2, 2, 5]), np.array([3, 7, 0, 1, 9], dtype=np.int32))
    chosen = labels.select(np.array([2, 0, 1, 2]))
    assert [chosen.row(i).tolist() for i in range(4)] == [[0, 1, 9], [3, 7], [], [0, 1, 9]]
    assert chosen.ids.dtype == np.int32
    assert len(labels.select(np.array([], dtype=np.int64))) == 0


def test_duplicate_labels_are_counted_once(make_dataset):
    dataset = make_dataset([("a text", [5, 1, 5, 5, 1])])
    assert dataset.train.labels.row(0).tolist() == [1, 5]
    assert dataset.meta["splits"]["train"] == {"instances": 1, "positives": 2, "unlabelled": 0}


def test_an_instance_without_labels_is_kept_and_counted(make_dataset):
    dataset = make_dataset([("with", [1]), ("without", [])])
    assert len(dataset.train) == 2
    assert dataset.train.labels.sizes().tolist() == [1, 0]
    assert dataset.meta["splits"]["train"]["unlabelled"] == 1


def test_a_dataset_may_have_no_test_split(make_dataset):
    assert make_dataset([("a", [1])]).test is None


@pytest.mark.parametrize("text", ["", "  \n\t", "\u2003"])
def test_an_empty_text_is_refused_with_its_place(make_dataset, text):
    with pytest.raises(DataError, match=r"train instance 1 \(uid 'train-1'\): empty text"):
        make_dataset([("fine", [1]), (text, [1])])


def test_a_lone_surrogate_is_refused_with_its_place(make_dataset):
    with pytest.raises(DataError, match=r"train instance 0 .*character 3 is a lone surrogate"):
        make_dataset([("abc\ud800", [1])])


def test_a_nul_in_a_text_is_kept(make_dataset):
    assert list(make_dataset([("a\0b", [1])]).train.texts()) == ["a\0b"]


@pytest.mark.parametrize("ids", [[-1, 3], [3, 2**31]])
def test_a_label_id_that_no_dataset_can_hold_is_refused(make_dataset, ids):
    with pytest.raises(DataError, match=r"label id .* is outside"):
        make_dataset([("text", ids)])


def test_a_label_id_without_a_name_is_refused(make_dataset, tmp_path):
    with pytest.raises(DataError, match="label id 10, but there are 10 names"):
        make_dataset([("text", [10])], labels=10)
    assert _names(tmp_path) == []


def test_a_dataset_without_train_instances_is_refused(make_dataset, tmp_path):
    with pytest.raises(DataError, match="no train instances"):
        make_dataset([], test=[("text", [1])])
    assert _names(tmp_path) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_writer_leaves_nothing(tmp_path, stop):
    with pytest.raises(stop):
        _write_until(tmp_path, stop())
    assert _names(tmp_path) == []


def test_a_writer_that_is_not_finished_leaves_nothing(tmp_path):
    with DatasetWriter(tmp_path / "d", "d", {}) as writer:
        writer.add("train", "0", "text", [1])
    assert _names(tmp_path) == []


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no space left"):
        _write_until(tmp_path, OSError(28, "No space left on device"))
    assert _names(tmp_path) == []


def test_a_dataset_is_replaced_only_when_asked(make_dataset, tmp_path):
    make_dataset([("old", [1])])
    with pytest.raises(ConfigError, match="there is a dataset already"):
        make_dataset([("new", [1])])
    assert list(make_dataset([("new", [1])], overwrite=True).train.texts()) == ["new"]
    assert _names(tmp_path) == ["made"]


def test_a_failed_replacement_keeps_the_old_dataset(make_dataset, tmp_path):
    old = make_dataset([("old", [1])])
    with pytest.raises(DataError):
        make_dataset([("", [1])], overwrite=True)
    assert Dataset.open(old.path, verify=True).digest == old.digest
    assert _names(tmp_path) == ["made"]


def test_a_folder_that_is_no_dataset_is_never_replaced(make_dataset, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "precious.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not a dataset"):
        make_dataset([("new", [1])], overwrite=True)
    assert (tmp_path / "made" / "precious.txt").read_text() == "keep"


def test_an_empty_folder_may_become_a_dataset(make_dataset, tmp_path):
    (tmp_path / "made").mkdir()
    assert len(make_dataset([("new", [1])]).train) == 1


def test_a_missing_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"no such dataset directory; make one with `engine data import`"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no dataset\.json"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}', "\udcff"])
def test_a_damaged_description_is_refused(make_dataset, content):
    dataset = make_dataset([("a", [1])])
    (dataset.path / "dataset.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=r"dataset\.json: not a dataset description"):
        Dataset.open(dataset.path)


@pytest.mark.parametrize(
    "changes", [{"files": {}}, {"splits": {}}, {"splits": []}, {"n_labels": "many"}, {"splits": {"train": {}}}]
)
def test_an_incomplete_description_is_refused(make_dataset, changes):
    dataset = make_dataset([("a", [1])])
    _rewrite_manifest(dataset, **changes)
    with pytest.raises(DataError, match="incomplete dataset description"):
        Dataset.open(dataset.path)


def test_another_schema_version_is_refused(make_dataset):
    dataset = make_dataset([("a", [1])])
    _rewrite_manifest(dataset, schema=99)
    with pytest.raises(DataError, match="schema version 99, this program reads version 1"):
        Dataset.open(dataset.path)


FILES = ["train.parquet", "train_offsets.npy", "train_ids.npy", "labels.parquet"]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_or_truncated_file_is_named(make_dataset, file):
    dataset = make_dataset([("a", [1])])
    path = dataset.path / file
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"{file}: truncated, \d+ bytes instead of \d+"):
        Dataset.open(dataset.path)
    path.unlink()
    with pytest.raises(DataError, match=f"{file}: missing"):
        Dataset.open(dataset.path)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_found_when_verifying(make_dataset, file):
    dataset = make_dataset([("a text", [1, 2])])
    path = dataset.path / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{file}: .*(sha256|not readable)"):
        Dataset.open(dataset.path, verify=True)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0, 10, 3], "label id 10 is outside 0..9"), ([1, 0, 3], "not sorted"), ([2, 2, 3], "repeats a label")],
)
def test_wrong_label_sets_are_found_when_verifying(make_dataset, ids, message):
    dataset = make_dataset([("a", [0, 1]), ("b", [3])])
    file = dataset.path / "train_ids.npy"
    np.save(file, np.array(ids, dtype=np.int32))
    recorded = dataset.meta["files"] | {file.name: {"bytes": file.stat().st_size, "sha256": manifest.file_digest(file)}}
    _rewrite_manifest(dataset, files=recorded)
    with pytest.raises(DataError, match=message):
        Dataset.open(dataset.path, verify=True)


def test_inconsistent_offsets_are_refused(make_dataset):
    dataset = make_dataset([("a", [0, 1]), ("b", [3])])
    file = dataset.path / "train_offsets.npy"
    np.save(file, np.array([0, 2, 9]))
    with pytest.raises(DataError, match="does not describe 2 label sets over 3 ids"):
        Dataset.open(dataset.path)


def test_problems_are_found_across_slice_borders(monkeypatch):
    from engine.data import label_sets

    monkeypatch.setattr(label_sets, "_SLICE", 2)
    fine = LabelSets(np.array([0, 3, 3, 5]), np.array([1, 4, 6, 0, 2], dtype=np.int32))
    assert fine.problem(7) is None
    assert "sorted" in LabelSets(np.array([0, 4, 4, 5]), fine.ids).problem(7)
    assert "decrease" in LabelSets(np.array([0, 3, 2, 5]), fine.ids).problem(7)
    assert "outside 0..5" in fine.problem(6)
    assert fine.counts(7).tolist() == [1, 1, 1, 0, 1, 0, 1]


def test_a_streamed_split_needs_little_memory(tmp_path):
    import tracemalloc

    with DatasetWriter(tmp_path / "d", "d", {}) as writer:
        tracemalloc.start()
        for number in range(40_000):
            writer.add("train", str(number), f"{number} " + "word " * 100, [number % 50])
        dataset = writer.finish(str(i) for i in range(50))
    assert sum(len(text) for text in dataset.train.texts()) > 20e6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14e6, f"{peak / 1e6:.1f} MB for 20 MB of text"
