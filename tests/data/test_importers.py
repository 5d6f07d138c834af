import gzip
import json
from pathlib import Path

import pytest

from engine.data import sourcefiles
from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.data.store import Dataset
from engine.data.xmc_json import join_texts
from engine.errors import ConfigError, DataError

LABELS = [{"uid": "l0", "title": "zero"}, {"uid": "l1", "title": ""}, {"uid": "l2", "title": "two", "content": "More."}]
TRAIN = [
    {"uid": "a", "title": "First", "content": "its content", "target_ind": [2, 0, 2], "target_rel": [1.0, 1.0, 1.0]},
    {"uid": "b", "title": "Second!", "content": "", "target_ind": [], "target_rel": []},
]
TEST = [{"uid": "c", "title": "", "content": "Only content", "target_ind": [1], "target_rel": [1.0]}]


def _write(file: Path, lines: list, packed: bool = False) -> None:
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    if packed:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, lines in (("trn", TRAIN), ("tst", TEST), ("lbl", LABELS)):
        _write(folder / f"{name}.json", lines)
    return folder


def _refused(source: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        import_dataset(source, source.parent / "out", problems=Problems(strict=True))
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in source.parent.iterdir()] == [source.name], "an import that fails leaves nothing"


@pytest.mark.parametrize("packed", [False, True])
def test_the_repository_layout_is_imported(source, tmp_path, packed):
    if packed:
        for name, lines in (("trn", TRAIN), ("tst", TEST), ("lbl", LABELS)):
            (source / f"{name}.json").unlink()
            _write(source / f"{name}.json", lines, packed)
    dataset = import_dataset(source, tmp_path / "out")
    assert list(dataset.train.texts()) == ["First. its content", "Second!"]
    assert list(dataset.train.uids()) == ["a", "b"]
    assert [dataset.train.labels.row(i).tolist() for i in (0, 1)] == [[0, 2], []]
    assert list(dataset.test.texts()) == ["Only content"]
    assert dataset.label_names() == ["zero", "l1", "two"]
    assert dataset.label_texts() == ["zero", None, "two. More."], "a title is a text, a uid is none"
    assert dataset.name == "corpus"
    assert set(dataset.meta["sources"]) == {f"{part}.json{'.gz' * packed}" for part in ("trn", "tst", "lbl")}
    Dataset.open(tmp_path / "out", verify=True)


def test_the_test_file_may_be_missing(source, tmp_path):
    (source / "tst.json").unlink()
    assert import_dataset(source, tmp_path / "out", name="mine", test_fraction=0).test is None
    assert Dataset.open(tmp_path / "out").name == "mine"


def test_progress_ends_with_all_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sourcefiles, "_REPORT_BYTES", 1)
    seen = []
    import_dataset(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert seen[-1][0] == seen[-1][1] > 0


def test_an_existing_output_is_kept(source, tmp_path):
    import_dataset(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="there is a dataset already"):
        import_dataset(source, tmp_path / "out")
    assert len(import_dataset(source, tmp_path / "out", overwrite=True).train) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"uid": "x", ', "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[1, 2]", "a JSON list"),
        (b'{"uid": "x", "title": "caf\xe9"}', r"byte 0xe9 at position 27 of the line is not UTF-8"),
        ({"title": "t", "target_ind": [0]}, "'uid' is missing"),
        ({"uid": "x", "target_ind": [0]}, "neither 'title' nor 'content'; found the keys 'uid', 'target_ind'"),
        ({"a\nb" + "c" * 99: 1}, r"found the keys 'a\\nbc{36}'…$"),
        ({"uid": "x", "title": "t"}, "'target_ind' is missing"),
        ({"uid": "x", "title": "t", "target_ind": [0.5]}, "'target_ind' is not a list of whole numbers"),
        ({"uid": "x", "title": "t", "target_ind": "0 1"}, "'target_ind' is not a list of whole numbers"),
        ({"uid": "x", "title": ["t"], "target_ind": [0]}, "'title' is list, not a string"),
        ({"uid": "x", "title": " ", "content": "", "target_ind": [0]}, "empty text"),
        ({"uid": "x", "title": "a\ud800", "target_ind": [0]}, "lone surrogate"),
        ({"uid": "x", "title": "t", "target_ind": [3]}, r"label id 3 is outside 0\.\.2"),
        ({"uid": "x", "title": "t", "target_ind": [-1]}, r"label id -1 is outside 0\.\.2"),
        ({"uid": "x", "title": "t", "target_ind": [0, 1], "target_rel": [1.0]}, "not lists of the same length"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(source, line, message):
    _write(source / "trn.json", [*TRAIN, b"", line])
    _refused(source, rf"trn\.json:4: .*{message}")


def test_a_bad_label_line_is_named(source):
    _write(source / "lbl.json", [*LABELS, {"title": ""}])
    _refused(source, r"lbl\.json:4: 'uid' is missing")


def test_a_byte_order_mark_is_skipped(source, tmp_path):
    _write(source / "trn.json", [b"\xef\xbb\xbf" + json.dumps(TRAIN[0]).encode()])
    assert len(import_dataset(source, tmp_path / "out").train) == 1


def test_a_truncated_archive_is_named(source):
    lines = [TRAIN[0] | {"uid": str(number), "title": str(number**5)} for number in range(2000)]
    (source / "trn.json").unlink()
    _write(source / "trn.json", lines, packed=True)
    file = source / "trn.json.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    _refused(source, r"trn\.json\.gz:\d{3,}: the archive ends too early")


@pytest.mark.parametrize("content", [b"not an archive at all", gzip.compress(b"x" * 5000)[:20] + b"\xff" * 200])
def test_a_damaged_archive_is_named(source, content):
    (source / "trn.json").rename(source / "trn.json.gz")
    (source / "trn.json.gz").write_bytes(content)
    _refused(source, r"trn\.json\.gz:1: damaged gzip archive")


def test_a_bomb_is_not_unpacked(source, monkeypatch):
    monkeypatch.setattr(sourcefiles, "_RATIO_GRACE_BYTES", 1 << 20)
    monkeypatch.setattr(sourcefiles, "_REPORT_BYTES", 1 << 16)
    (source / "trn.json").unlink()
    _write(source / "trn.json", [b" " * 1000] * 20_000, packed=True)
    _refused(source, r"trn\.json\.gz:\d+: decompresses to over 200 times its size")


def test_an_endless_file_is_refused(source, monkeypatch):
    monkeypatch.setattr(sourcefiles, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(sourcefiles, "_REPORT_BYTES", 1)
    _refused(source, r"lbl\.json:3: more than .* GiB of text")


def test_an_endless_line_is_refused(source, monkeypatch):
    monkeypatch.setattr(sourcefiles, "MAX_LINE_BYTES", 45)
    _refused(source, r"lbl\.json:3: line longer than")


def test_an_unknown_layout_says_what_is_accepted_and_what_was_found(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    _refused(folder, "accepted: one .csv.*a folder with trn.json.*found: nothing")
    (folder / "data.xml").write_text("<x/>")
    _refused(folder, r"found: data\.xml")
    with pytest.raises(DataError, match=r"found: data\.xml"):
        import_dataset(folder / "data.xml", tmp_path / "out")
    with pytest.raises(DataError, match="no such file or folder"):
        import_dataset(tmp_path / "nowhere", tmp_path / "out")


def test_the_label_file_must_be_there(source):
    (source / "lbl.json").unlink()
    _refused(source, r"no lbl\.json or lbl\.json\.gz")


@pytest.mark.parametrize(
    ("title", "content", "text"),
    [("A", "b", "A. b"), ("A?", "b", "A? b"), ("A", "", "A"), ("", "b", "b"), ("", "", "")],
)
def test_title_and_content_become_two_sentences(title, content, text):
    assert join_texts(title, content) == text
