"""Pages of Parquet files are as large as their headers say, and too large ones are never unpacked."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_hostile_files import PEAK, SOURCE

from engine.data import parquet_pages
from engine.data.columns import look_at
from engine.data.importers import import_dataset
from engine.data.parquet_pages import _struct, column_pages
from engine.errors import DataError

ROWS = {"text": [f"text {i} " + "word " * 40 for i in range(3000)], "labels": [[f"l{i % 9}"] for i in range(3000)]}
KINDS = [
    {"compression": packing, "data_page_version": version, "use_dictionary": dictionary, "write_page_index": dictionary}
    for packing in ("none", "zstd")
    for version in ("1.0", "2.0")
    for dictionary in (True, False)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_the_headers_of_every_kind_of_page_are_read(tmp_path, kind, monkeypatch):
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table(ROWS), file, row_group_size=1000, data_page_size=1 << 14, **kind)
    found = column_pages(file, ["text", "labels"])
    assert list(found) == ["text", "labels.list.element"]
    metadata = pq.read_metadata(file)
    size = max(metadata.row_group(i).column(0).total_uncompressed_size for i in range(3))
    assert size - 20_000 < found["text"].largest < size, "nearly all is in one page"
    for pages in found.values():
        assert pages.is_mixed != kind["use_dictionary"]
        assert (pages.dictionary > 0) == kind["use_dictionary"]
    monkeypatch.setattr(parquet_pages, "MOST_PAGE_BYTES", 1 << 15)
    assert list(column_pages(file, ["labels", "tex"])) == ["labels.list.element"]
    with pytest.raises(DataError, match=r"t\.parquet: a page of .*; write the file again with smaller pages"):
        column_pages(file, ["text"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_small_file_with_a_page_of_many_megabytes_takes_no_memory(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    texts = ["fine", "x" * (300 << 20)]
    pq.write_table(pa.table({"text": texts, "labels": ["a", "b"]}), source / "train.parquet", compression="zstd")
    assert (source / "train.parquet").stat().st_size < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source)], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    peak, said = json.loads(done.stdout)
    assert "train.parquet: a page of 300 MiB" in said[str(source)]
    assert peak < 230 << 10, "KiB, of which the libraries take 120 MiB"
    with pytest.raises(DataError, match="a page of 300 MiB"):
        look_at(source)


@pytest.mark.parametrize(
    "header",
    [b"", b"\x15", b"\x15" + b"\xff" * 20, b"\x1b\x01", b"\x1c" * 100, b"\x19\x19" * 100, b"\x18\xff\xff\x7f", b"\x0f"],
)
def test_what_is_no_header_is_refused(header):
    with pytest.raises(ValueError, match=r"page header|without end"):
        _struct(io.BytesIO(header))


def test_a_file_whose_pages_have_no_headers_is_refused(tmp_path):
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table(ROWS), file)
    content = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(0).column(0).dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: not readable as Parquet"):
        import_dataset(file, tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_follow_the_row_group(tmp_path):
    """Texts that are all different: a dictionary is begun and given up, as writers do."""
    source = tmp_path / "source"
    source.mkdir()
    texts = [f"{i} " + "word " * 400 for i in range(100_000)]
    pq.write_table(pa.table({"text": texts, "labels": [["a"]] * len(texts)}), source / "train.parquet")
    assert pq.read_metadata(source / "train.parquet").num_row_groups == 1
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source)], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    peak, said = json.loads(done.stdout)
    assert said[str(source)] == {}
    assert peak < 250 << 10, "KiB, of which the libraries take 120 MiB, and all texts 190"
