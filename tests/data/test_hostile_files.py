"""Files that are damaged or made to do harm: an import refuses them in one line or takes what is good in them.

Every layout is damaged in every way: cut, changed, repeated, replaced by other bytes, packed, packed badly, a folder
where a file should be. Nothing is written outside the output folder, and memory stays what it is.
"""

import gzip
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.data.importers import import_dataset
from engine.data.npz_csr import NpzCsr
from engine.data.store import Dataset
from engine.errors import DataError

SOURCE = Path(__file__).parents[2]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def header(text: bytes) -> bytes:
    """A `.npy` file of nothing but a header that says `text`."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


MATRIX = {
    "indices": npy(np.array([1, 0, 2], np.int32)),
    "indptr": npy(np.array([0, 2, 2, 3], np.int32)),
    "format": npy(np.array(b"csr")),
    "shape": npy(np.array([3, 3])),
    "data": npy(np.ones(3, np.float32)),
}


def npz(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", "three"], "labels": [["a", "b"], [], None]}), buffer)
    return buffer.getvalue()


JSON_LINE = b'{"uid": "a", "title": "One", "target_ind": [0], "target_rel": [1.0]}\n'
SOURCES = {
    "csv": {"train.csv": b'text,labels\none,a;b\n"two, or\nthree",c\n', "test.csv": b"text,labels\nfour,a\n"},
    "tsv": {"train.tsv": b"text\tlabels\none\ta|b\ntwo\tc\n"},
    "jsonl": {"train.jsonl": b'{"text": "one", "labels": ["a", 7]}\n{"text": "two", "labels": "b;c", "uid": 3}\n'},
    "parquet": {"train.parquet": parquet()},
    "xmc-json": {
        "trn.json": 2 * JSON_LINE, "tst.json": JSON_LINE, "lbl.json": b'{"uid": "l", "title": "t"}\n' * 2,
        "filter_labels_train.txt": b"0 0\n1 1\n", "filter_labels_test.txt": b"",
    },
    "aalto": {
        "train_raw_texts.txt": b"one\ntwo\n", "train_labels.txt": b"a b\nc\n",
        "test_raw_texts.txt": b"x\n", "test_labels.txt": b"a\n", "filter_labels_train.txt": b"0 1\n",
    },
    "xmc-text": {
        "trn_X_Y.txt": b"3 3\n0:1 1:0.5\n\n2:1\n", "trn_X.txt": b"one\ntwo\nthree\n", "lbl_X.txt": b"a\nb\nc\n",
        "filter_labels_train.txt": b"0 1\n",
    },
    "pecos": {
        "X.trn.txt": b"one\ntwo\nthree\n", "Y.trn.npz": npz(MATRIX), "X.tst.txt": b"one\ntwo\nthree\n",
        "Y.tst.npz": npz(MATRIX, zipfile.ZIP_STORED), "output-items.txt": b"a\nb\nc\n",
    },
}  # fmt: skip
# What such files trip over.
HARD = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"\xc2\x85", b"\xe2\x80\xa8", b"\xd9\xa3", b"\xc2\xb2 3\n",
    b"-1:1 ", b"1:nan ", b"1e999", b"9" * 400, b"0:1,1:1 ", b"NaN", b"Infinity", b"[" * 3000, b"{}", b"[1]\n",
    b"null\n", b'"\\ud800"', b"-1 0\n", b"0 -1\n", b"99999999999999999999 0\n", b"true",
    b"\x1f\x8b", b"PAR1", b"PK\x03\x04",
]  # fmt: skip
PLACES = st.floats(0, 1)
CHANGES = st.one_of(
    st.tuples(st.just("insert"), PLACES, st.sampled_from(HARD) | st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("change"), PLACES, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("cut"), PLACES),
    st.tuples(st.just("drop"), PLACES, st.integers(1, 20)),
    st.tuples(st.just("replace"), st.lists(st.sampled_from(HARD), max_size=4).map(b"".join)),
)


def changed(content: bytes, change: tuple) -> bytes:
    how, *rest = change
    if how == "replace":
        return rest[0]
    at = round(rest[0] * len(content))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + rest[1] + content[at:]
    size = rest[1] if how == "drop" else len(rest[1])
    return content[:at] + (b"" if how == "drop" else rest[1]) + content[at + size :]


@st.composite
def damages(draw):
    """For each damaged file: its place among the files, what happens to it, and how it is packed."""
    number = st.integers(0, 4)
    packed = st.sampled_from(["no"] * 6 + ["gz", "cut gz", "changed gz", "folder", "missing"])
    return draw(st.lists(st.tuples(number, st.lists(CHANGES, max_size=3), packed, PLACES), min_size=1, max_size=2))


def write_damaged(folder: Path, files: dict[str, bytes], damage: list) -> None:
    content = dict(files)
    for number, changes, packed, place in damage:
        name = list(files)[number % len(files)]
        if name not in content:
            continue
        for change in changes:
            content[name] = changed(content[name], change)
        if packed in ("folder", "missing"):
            del content[name]
            if packed == "folder":
                (folder / name).mkdir()
        elif packed != "no":
            stream = gzip.compress(content.pop(name), mtime=0)
            if packed != "gz":
                stream = changed(stream, ("cut", place) if packed == "cut gz" else ("change", place, b"\x55\xaa"))
            content[f"{name}.gz"] = stream
    for name, written in content.items():
        (folder / name).write_bytes(written)


@pytest.mark.parametrize("layout", SOURCES)
def test_damaged_files_are_refused_in_one_line_or_imported_in_part(tmp_path, layout):
    import_dataset(make(tmp_path / "whole", SOURCES[layout]), tmp_path / "whole-out", test_fraction=0)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @example(damage=[])
    @given(damage=damages())
    def check(damage):
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        folder = make(root / "source", {})
        write_damaged(folder, SOURCES[layout], damage)
        before = sorted(folder.rglob("*"))
        said = ""
        try:
            import_dataset(folder, root / "out", test_fraction=0)
            Dataset.open(root / "out", verify=True)
        except DataError as error:
            said = str(error)
        assert "\n" not in said
        assert (root / "out").exists() == (not said)
        assert sorted(folder.rglob("*")) == before
        assert {entry.name for entry in root.iterdir()} <= {"source", "out"}

    check()


def make(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


HEADERS = [
    b"", b"(", b"{}", b"[" * 9999, b"\xff\xfe", b"\x00" * 9, b"{'descr':'<i4','fortran_order':False,'shape':(-1,)}",
    b"{'descr':'|O','fortran_order':False,'shape':(3,)}", b"{'descr':'<U0','fortran_order':False,'shape':(10**9,)}",
    b"{'descr':'|V0','fortran_order':False,'shape':(4,)}", b"{'descr':'<i4\n','fortran_order':False,'shape':(3,)}",
    b"{'descr':',,','fortran_order':False,'shape':(4,)}", b"{'descr':'<i4','fortran_order':False,'shape':(True,)}",
    b"{'descr':'<i4','fortran_order':False,'shape':(" + b"9" * 99 + b",)}",
]  # fmt: skip
VECTORS = [
    np.array([2**63], np.uint64), np.array([0, 2**63, 2**64 - 1, 3], np.uint64), np.array([-1]), np.array([]),
    np.array([[1, 2, 3]]), np.array(["x"]), np.array([np.nan, np.inf, 1.0]), np.array(5),
    np.array([True, False, True]), np.zeros(3, ">i8"), np.array([0, -1, 1, 3]), np.array([2**62, 2**62]),
    np.array([2**64 - 1] * 2, np.uint64),
    np.zeros(3, "M8[s]"), np.zeros(3, [("a", "i4")]), np.zeros(2, "V8"), np.array(b"x" * 99),
    np.zeros(3, np.longdouble),
]  # fmt: skip
PARTS = st.sampled_from([header(text) for text in HEADERS] + [npy(vector) for vector in VECTORS]) | st.binary(
    max_size=40
)
PACKINGS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.dictionaries(st.sampled_from(sorted(MATRIX)), PARTS, max_size=2),
    packing=st.sampled_from(PACKINGS),
    changes=st.lists(st.tuples(st.just("change"), PLACES, st.binary(min_size=1, max_size=2)), max_size=3),
)
def test_no_matrix_makes_the_reader_fail(tmp_path, parts, packing, changes):
    content = npz(MATRIX | parts, packing)
    for change in changes:
        content = changed(content, change)
    (tmp_path / "y.npz").write_bytes(content)
    rows, said = [], ""
    try:
        rows = list(NpzCsr(tmp_path / "y.npz"))
    except DataError as error:
        said = str(error)
    assert all(isinstance(column, int) for row in rows if row is not None for column in row)
    assert "\n" not in said


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "trn.json", "trn_X_Y.txt", "Y.trn.npz"])
def test_an_empty_file_is_named(tmp_path, name):
    others = {"trn.json": "lbl.json", "trn_X_Y.txt": "trn_X.txt", "Y.trn.npz": "X.trn.txt"}
    files = {file: b"" for file in (name, others.get(name)) if file}
    with pytest.raises(DataError, match=r"train|trn"):
        import_dataset(make(tmp_path / "source", files), tmp_path / "out")


def test_names_that_steer_the_terminal_are_not_printed(tmp_path):
    (tmp_path / "evil\x1b[2J\nname").write_text("")
    with pytest.raises(DataError, match="found: evil") as caught:
        import_dataset(tmp_path, tmp_path / "out")
    assert str(caught.value).isprintable()


def test_filters_beside_labels_without_numbers_are_not_read(tmp_path):
    dataset = import_dataset(make(tmp_path / "source", SOURCES["aalto"]), tmp_path / "out")
    assert dataset.train.filter is None


PEAK = r"""
import json, re, sys
from pathlib import Path
from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.errors import DataError
said = {}
for source in sys.argv[1:]:
    problems = Problems()
    try:
        import_dataset(source, source + ".out", test_fraction=0, problems=problems)
        said[source] = problems.counts()
    except DataError as error:
        said[source] = str(error)
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([int(peak[1]), said]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_line_of_many_megabytes_takes_no_memory(tmp_path):
    size = 120 << 20

    def with_hole(folder: str, name: str, before: bytes, after: bytes, **others: bytes) -> str:
        made = make(tmp_path / folder, others)
        with open(made / name, "wb") as stream:  # a file with a hole: it takes no room on the disk
            stream.write(before)
            stream.seek(size, 1)
            stream.write(after)
        return str(made)

    sources = [
        with_hole("csv", "train.csv", b"text,labels\none,a\n", b",a\nlast,b\n"),
        with_hole("jsonl", "train.jsonl", SOURCES["jsonl"]["train.jsonl"] + b'{"text": "', b'"}\n'),
        with_hole("aalto", "train_raw_texts.txt", b"one\n", b"\nlast\n", **{"train_labels.txt": b"a\nb\nc\n"}),
        with_hole("labels", "train_labels.txt", b"a\n", b"\nc\n", **{"train_raw_texts.txt": b"one\ntwo\nlast\n"}),
    ]
    packed = make(tmp_path / "packed", {})
    with gzip.open(packed / "train.csv.gz", "wb", 1) as stream:
        stream.write(b"text,labels\none,a\n")
        for _ in range(size >> 20):
            stream.write(b"x" * (1 << 20))
    sources.append(str(packed))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *sources], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    peak, said = json.loads(done.stdout)
    assert [said[source] for source in sources[:4]] == [{"line too long": 1}] * 4
    assert "decompresses to over 200 times its size" in said[str(packed)]
    assert peak < 230 << 10, "KiB, of which the libraries take 120 MiB"


def test_label_names_of_a_wrong_column_do_not_fill_the_memory(tmp_path, monkeypatch):
    from engine.data import layouts

    monkeypatch.setattr(layouts, "most_name_bytes", lambda: 10_000)
    rows = "".join(f"text {number},{'long name ' * 20}{number}\n" for number in range(200))
    (tmp_path / "t.csv").write_text("text,labels\n" + rows)
    with pytest.raises(DataError, match=r"t\.csv: the names of \d+ different labels take more.*--labels-column"):
        import_dataset(tmp_path / "t.csv", tmp_path / "out")
    lines = "".join(f"{'n' * 100}{number}\n" for number in range(200))
    folder = make(tmp_path / "aalto", {"train_raw_texts.txt": b"a\n" * 200, "train_labels.txt": lines.encode()})
    with pytest.raises(DataError, match=r"train_labels\.txt: the names of \d+ different labels take more"):
        import_dataset(folder, tmp_path / "out")
