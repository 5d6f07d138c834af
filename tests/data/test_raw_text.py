"""Texts in one file, labels in another: Aalto, the repository's sparse text, PECOS."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine.data import npz_csr
from engine.data.importers import import_dataset
from engine.data.npz_csr import NpzCsr
from engine.data.problems import Problems
from engine.errors import DataError

ROWS = [[1, 0], [], [2]]


def write_npz(file: Path, rows: list[list[int]], columns: int, **changes) -> None:
    """What `scipy.sparse.save_npz` writes, with some arrays changed."""
    arrays = {
        "indices": np.array([column for row in rows for column in row], dtype=np.int32),
        "indptr": np.cumsum([0, *map(len, rows)]).astype(np.int32),
        "format": np.array(b"csr"),
        "shape": np.array([len(rows), columns]),
        "data": np.ones(sum(map(len, rows)), dtype=np.float32),
    }
    np.savez_compressed(file, **{name: value for name, value in (arrays | changes).items() if value is not None})


@pytest.fixture
def pecos(tmp_path) -> Path:
    folder = tmp_path / "pecos"
    folder.mkdir()
    (folder / "X.trn.txt").write_text("one\ntwo\nthree\n")
    (folder / "X.tst.txt").write_text("four\n")
    (folder / "output-items.txt").write_text("zero\nfirst\n\n")
    write_npz(folder / "Y.trn.npz", ROWS, 3)
    write_npz(folder / "Y.tst.npz", [[1]], 3)
    return folder


@pytest.fixture
def sparse(tmp_path) -> Path:
    folder = tmp_path / "sparse"
    (folder / "raw_data").mkdir(parents=True)
    (folder / "trn_X_Y.txt").write_text("3 3\n1:1.0 0:1.0 1:1.0\n\n2:1 0:0.0\n")
    (folder / "tst_X_Y.txt").write_text("1 3\n1\n")
    (folder / "raw_data" / "train.raw.txt.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    (folder / "tst_X.txt").write_text("four")
    return folder


@pytest.fixture
def aalto(tmp_path) -> Path:
    folder = tmp_path / "aalto"
    folder.mkdir()
    (folder / "train_raw_texts.txt").write_text("one\ntwo\nthree\n")
    (folder / "train_labels.txt").write_text("b a b\n\nd\n")
    (folder / "test_raw_texts.txt").write_text("four\n")
    (folder / "test_labels.txt").write_text("c\n")
    return folder


def strictly(source: Path, **settings):
    return import_dataset(source, source.parent / "out", problems=Problems(strict=True), **settings)


def _rows(split) -> list[list[int]]:
    return [split.labels.row(i).tolist() for i in range(len(split))]


def test_a_pecos_folder_is_imported(pecos):
    dataset = strictly(pecos)
    assert list(dataset.train.texts()) == ["one", "two", "three"]
    assert (_rows(dataset.train), _rows(dataset.test)) == ([[0, 1], [], [2]], [[1]])
    assert dataset.label_names() == ["zero", "first", "2"], "a label without a name is called by its number"
    assert dataset.label_texts() == ["zero", "first", None]
    assert set(dataset.meta["sources"]) == {"X.trn.txt", "X.tst.txt", "Y.trn.npz", "Y.tst.npz", "output-items.txt"}


def test_sparse_text_is_imported(sparse):
    dataset = strictly(sparse)
    assert list(dataset.train.uids()) == ["0", "1", "2"]
    assert (_rows(dataset.train), _rows(dataset.test)) == ([[0, 1], [], [2]], [[1]])
    assert dataset.label_names() == ["0", "1", "2"]
    assert dataset.meta["details"]["label_names"] == "ids"
    assert dataset.meta["details"]["repeated_labels"] == 1


def test_aalto_texts_have_the_sorted_names_of_both_files_as_labels(aalto):
    dataset = strictly(aalto)
    assert dataset.label_names() == ["a", "b", "c", "d"]
    assert (_rows(dataset.train), _rows(dataset.test)) == ([[0, 1], [], [3]], [[2]])


def test_scipy_writes_what_is_read(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    matrix = scipy_sparse.random(50, 20, 0.2, "csr", rng=np.random.default_rng(1))
    for compressed in (False, True):
        scipy_sparse.save_npz(tmp_path / "y.npz", matrix, compressed=compressed)
        assert [sorted(row) for row in NpzCsr(tmp_path / "y.npz")] == [sorted(row.indices) for row in matrix]


@pytest.mark.parametrize("row", ["5:1", "-1:1", "x:1", "1:nan", "1:x", "1:1,2:1", "9999999999999999999999:1"])
def test_a_bad_row_of_sparse_text_is_left_out_alone(sparse, row):
    (sparse / "trn_X_Y.txt").write_text(f"3 3\n0:1\n{row}\n2:1\n")
    problems = Problems()
    dataset = import_dataset(sparse, sparse.parent / "out", problems=problems)
    assert (list(dataset.train.texts()), _rows(dataset.train)) == (["one", "three"], [[0], [2]])
    assert sum(problems.counts().values()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array(b"csc")}, "format b'csc', not csr"),
        ({"indptr": None}, "no 'indptr'; found"),
        ({"indptr": np.array([0, 2, 1, 3])}, "offsets of rows .* decrease"),
        ({"indptr": np.array([0, 2, 2, 2])}, "offsets end at 2, but there are 3 values"),
        ({"indptr": np.array([0, 2, 2, 4])}, "end behind the 3 values"),
        ({"indptr": np.array([1, 2, 2, 3])}, "begin with 1"),
        ({"indptr": np.array([0, 3])}, "do not make a matrix"),
        ({"shape": np.array([2, 3])}, "do not make a matrix"),
        ({"shape": np.array([3, -3])}, "not the shape"),
        ({"shape": np.array([3, 2**40])}, "different numbers of labels"),
        ({"shape": np.array([3, 4])}, "different numbers of labels"),
        ({"indices": np.array([0.0, 1.0, 2.0])}, "'indices' is float64"),
        ({"data": np.array([[1, 2, 3]])}, "'data' is int64"),
        ({"data": np.ones(2)}, "do not make a matrix"),
    ],
)
def test_a_matrix_that_is_none_is_refused(pecos, changes, message):
    write_npz(pecos / "Y.trn.npz", ROWS, 3, **changes)
    with pytest.raises(DataError, match=rf"Y\.trn\.npz.*{message}") as caught:
        strictly(pecos)
    assert "\n" not in str(caught.value)


def test_objects_in_a_matrix_are_never_loaded(pecos):
    arrays = {"format": np.array(b"csr"), "shape": np.array([3, 3]), "indptr": np.array([0, 2, 2, 3])}
    np.savez(pecos / "Y.trn.npz", **arrays, indices=np.array([0, 1, print], dtype=object), data=np.ones(3))
    with pytest.raises(DataError, match="'indices' is object"):
        strictly(pecos)


def test_a_header_that_claims_more_than_there_is_takes_no_memory(pecos):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i4", "fortran_order": False, "shape": (10**15,)})
    file = pecos / "Y.trn.npz"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | {"indices.npy": buffer.getvalue()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="'indices' says 1000000000000000 values, but has fewer"):
        strictly(pecos)


@pytest.mark.parametrize("cut", [1, 100, 400])
def test_a_damaged_archive_is_refused(pecos, cut):
    content = (pecos / "Y.trn.npz").read_bytes()
    (pecos / "Y.trn.npz").write_bytes(content[:-cut])
    with pytest.raises(DataError, match=r"Y\.trn\.npz: damaged or not a \.npz file"):
        strictly(pecos)


@pytest.mark.parametrize("column", [-1, 3])
def test_a_label_outside_the_matrix_is_a_problem_of_its_row(pecos, column):
    write_npz(pecos / "Y.trn.npz", [[0], [column], [2]], 3)
    problems = Problems()
    dataset = import_dataset(pecos, pecos.parent / "out", problems=problems)
    assert _rows(dataset.train) == [[0], [2]]
    assert problems.counts() == {"label id outside": 1}


def test_zeros_are_no_labels(pecos):
    write_npz(pecos / "Y.trn.npz", ROWS, 3, data=np.array([0, 0.0, 2.0]))
    assert _rows(strictly(pecos).train) == [[], [], [2]]


def test_a_row_with_a_nan_is_a_problem(pecos):
    write_npz(pecos / "Y.trn.npz", ROWS, 3, data=np.array([1, np.nan, 2.0]))
    problems = Problems()
    dataset = import_dataset(pecos, pecos.parent / "out", problems=problems)
    assert (list(dataset.train.texts()), _rows(dataset.train)) == (["two", "three"], [[], [2]])
    assert problems.first() == f"{pecos / 'Y.trn.npz'}:1: a value of the row is NaN"


def test_rows_that_do_not_match_the_texts_are_refused(pecos, sparse, aalto):
    (pecos / "X.trn.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"Y\.trn\.npz: has a row 3, but .*X\.trn\.txt ends before it"):
        strictly(pecos)
    (sparse / "tst_X.txt").write_text("four\nfive\n")
    with pytest.raises(DataError, match=r"tst_X\.txt: has a row 2, but .*tst_X_Y\.txt ends before it"):
        strictly(sparse)
    (aalto / "train_labels.txt").write_text("b a b\n")
    with pytest.raises(DataError, match=r"train_raw_texts\.txt: has a row 2, but"):
        strictly(aalto)


def test_a_header_with_features_is_refused(sparse):
    (sparse / "trn_X_Y.txt").write_text("3 100 3\n")
    with pytest.raises(DataError, match=r"trn_X_Y\.txt:1: the header is '3 100 3'"):
        strictly(sparse)


def test_more_labels_than_can_be_trained_are_refused(sparse):
    (sparse / "tst_X_Y.txt").unlink()
    (sparse / "trn_X_Y.txt").write_text("3 999999999999\n\n\n\n")
    with pytest.raises(DataError, match=r"trn_X_Y\.txt: says that there are 999,999,999,999 labels"):
        strictly(sparse)


def test_a_row_of_more_labels_than_any_text_has_is_refused(pecos, monkeypatch):
    monkeypatch.setattr(npz_csr, "_MAX_ROW", 1)
    with pytest.raises(DataError, match=r"Y\.trn\.npz: row 0 has 2 values"):
        strictly(pecos)


def test_missing_texts_are_named(aalto):
    (aalto / "test_raw_texts.txt").unlink()
    with pytest.raises(DataError, match=r"no test_raw_texts\.txt beside test_labels\.txt"):
        strictly(aalto)


def test_too_few_names_are_refused(pecos):
    (pecos / "output-items.txt").write_text("zero\n")
    with pytest.raises(DataError, match=r"output-items\.txt: 1 names for 3 labels"):
        strictly(pecos)


def test_without_test_files_texts_are_held_out(aalto):
    (aalto / "test_labels.txt").unlink()
    texts = [f"text {number}" for number in range(1000)]
    (aalto / "train_raw_texts.txt").write_text("\n".join(texts))
    (aalto / "train_labels.txt").write_text("a\n" * 1000)
    dataset = strictly(aalto, test_fraction=0.3, seed=5)
    assert 250 < len(dataset.test) < 350
    assert {*dataset.train.texts(), *dataset.test.texts()} == set(texts)
    assert dataset.meta["details"] | {"test_fraction": 0.3, "seed": 5} == dataset.meta["details"]
    assert dataset.meta["details"]["not_read"] == ["test_raw_texts.txt"]
