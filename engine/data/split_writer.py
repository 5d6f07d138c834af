"""Writes the files of one split: texts as Parquet, label sets as CSR. A second thread compresses and writes."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from engine.data.arrays import NpyAppender
from engine.data.manifest import split_files

_WRITE_ROWS = 8192  # a row group is written when it has this many rows or
_WRITE_BYTES = 4 << 20  # this much text; twice that is in memory
_WRITE_IDS = 1 << 18  # or this many label ids


class SplitWriter:
    """The three growing files of one split. An error of the second thread is raised by a later call."""

    def __init__(self, folder: Path, name: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts, offsets, ids = (folder / file for file in split_files(name))
        self.name = name
        self.instances = self.positives = self.unlabelled = 0
        self.max_id = -1
        self._schema = pa.schema([("uid", pa.string()), ("text", pa.string())])
        # Texts hardly repeat, and nothing searches them: dictionaries and statistics would cost more than they give.
        self._texts = pq.ParquetWriter(
            texts, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._offsets = NpyAppender(offsets, np.int64)
        self._ids = NpyAppender(ids, np.int32)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        self._clear()

    def _clear(self) -> None:
        self._uid_buffer: list[str] = []
        self._text_buffer: list[str] = []
        self._id_buffer: list[int] = []
        self._end_buffer: list[int] = []
        self._bytes = 0

    def add(self, uid: str, text: str, size: int, ids: list[int]) -> None:
        """Appends an instance. size: its bytes of UTF-8.  ids: sorted and distinct."""
        self.instances += 1
        self.positives += len(ids)
        if ids:
            if ids[-1] > self.max_id:
                self.max_id = ids[-1]
            self._id_buffer += ids
        else:
            self.unlabelled += 1
        self._uid_buffer.append(uid)
        self._text_buffer.append(text)
        self._end_buffer.append(self.positives)
        self._bytes += size
        if self._bytes >= _WRITE_BYTES or len(self._text_buffer) >= _WRITE_ROWS or len(self._id_buffer) >= _WRITE_IDS:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._text_buffer:
            full = (self._uid_buffer, self._text_buffer, self._id_buffer, self._end_buffer)
            self._writing = self._thread.submit(self._write, *full)
            self._clear()

    def _wait(self) -> None:
        """Until the row group before this one is written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, uids: list[str], texts: list[str], ids: list[int], ends: list[int]) -> None:
        import pyarrow as pa

        self._texts.write_table(pa.table([uids, texts], schema=self._schema))
        self._ids.append(np.array(ids, dtype=np.int32))
        self._offsets.append(np.array(ends, dtype=np.int64))

    def close(self) -> None:
        """Writes what is buffered and completes the files."""
        self._flush()
        self._wait()
        self.discard()

    def discard(self) -> None:
        """Closes the files without what is still buffered. Closing twice does nothing."""
        with ExitStack() as files:  # all of them, also when one fails
            files.callback(self._texts.close)
            files.callback(self._offsets.close)
            files.callback(self._ids.close)
            files.callback(self._thread.shutdown)

    def summary(self) -> dict[str, int]:
        """Counts, as they stand in `dataset.json`."""
        return {"instances": self.instances, "positives": self.positives, "unlabelled": self.unlabelled}
