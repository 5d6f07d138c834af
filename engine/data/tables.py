"""Tables with text columns and a labels column: `.csv`, `.tsv`, `.jsonl`, `.parquet`, one or a train and a test file.

A split may be in parts, `train-*.parquet`, as in folders of the Hugging Face hub, where they are in `data/`.
Labels are names, in one cell with a delimiter between them (`"sports;politics"`) or as a list. A label's id is the
order of its first appearance.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data.label_cells import LIST, find_delimiter, label_names, splitter
from engine.data.layouts import LabelNames, LabelTable, Layout, Row
from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter
from engine.data.store import InstanceError
from engine.data.table_readers import Cells, TableColumns, read_csv, read_json_lines, read_parquet
from engine.data.xmc_json import join_texts

KINDS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
READERS = {"csv": read_csv, "tsv": read_csv, "jsonl": read_json_lines, "parquet": read_parquet}
_SAMPLE_ROWS = 1000  # looked at for the delimiter, or
_SAMPLE_CHARACTERS = 1 << 22  # fewer of long texts


class Tables(Layout):
    """One table, or one for training and one for testing. files: the parts of each, in order.

    kind: one of READERS, for files whose names do not say it.  folder: where the tables were looked for.
    """

    def __init__(
        self, files: dict[str, list[Path]], columns: TableColumns, kind: str | None = None, folder: Path | None = None
    ):
        self._files = files
        self.splits = {split: parts[0] for split, parts in files.items()}  # of several, the one that is read
        self._folder = folder
        self.reads = [file for parts in files.values() for file in parts]
        self._kinds = {split: kind or kind_of(file) for split, file in self.splits.items()}
        self.format = self._kinds["train"]
        self._columns = columns
        self._names = LabelNames(self.splits["train"])
        self._delimiter = columns.delimiter
        self._split: Callable[[str], list] | None = None if self._delimiter is None else splitter(self._delimiter)
        self._is_awaited = self._delimiter not in (None, "", LIST)  # given, and in no cell so far
        self._has_cells = False  # cells of labels that are text

    @classmethod
    def find(cls, source: Path, columns: TableColumns, kind: str | None = None) -> "Tables | None":
        """The tables at `source`: a file, or a folder with `train.*` and perhaps `test.*`. kind: only such ones."""
        if source.is_file():
            return cls({"train": [source]}, columns, kind) if kind or kind_of(source) else None
        found: dict[str, list[Path]] = {}
        for split in ("train", "test"):
            names = (f"{split}{ending}{packed}" for ending in KINDS for packed in ("", ".gz"))
            kinds = {name: kind_of(Path(name)) for name in names}
            files = (source / name for name, known in kinds.items() if known and kind in (None, known))
            if file := next((file for file in files if file.is_file()), None):
                found[split] = [file]
            elif parts := _parts(source, split) if kind in (None, "parquet") else []:
                found[split] = parts
        return cls(found, columns, folder=source) if "train" in found else None

    def rows(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Row]:
        if self._split is None:
            self._look_ahead(split)
        for number, (line, texts, labels, uid) in enumerate(self._cells(split, meter, problems)):
            try:
                text = texts[0].strip() if len(texts) == 1 and type(texts[0]) is str else self._joined(texts)
                if self._split is None and isinstance(labels, str):
                    self._decide([labels])
                if self._is_awaited and isinstance(labels, str) and labels.strip():
                    self._has_cells, self._is_awaited = True, self._delimiter not in labels
                yield line, str(number) if uid in (None, "") else str(uid), text, label_names(labels, self._split)
            except InstanceError as error:
                problems.add(error.kind, self.place(split, line), str(error))

    def _cells(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Cells]:
        for file in self._files[split]:
            self.splits[split] = file
            yield from READERS[self._kinds[split]](file, self._columns, meter, problems)

    def _look_ahead(self, split: str) -> None:
        """Lets the first rows decide about the delimiter. They are read on their own, and again afterwards."""
        found: list[str] = []
        characters = 0
        with closing(self._cells(split, ProgressMeter(None, []), Problems())) as cells:
            for _, texts, labels, _ in islice(cells, _SAMPLE_ROWS):
                characters += len(str(texts)) + len(str(labels))
                if isinstance(labels, str) and labels.strip():
                    found.append(labels)
                if characters >= _SAMPLE_CHARACTERS:
                    break
        if found:
            self._decide(found)

    def _decide(self, cells: list[str]) -> None:
        self._delimiter = find_delimiter(cells)
        self._split = splitter(self._delimiter)

    def _joined(self, texts: tuple[Any, ...]) -> str:
        joined = ""
        for column, text in zip(self._columns.text, texts, strict=True):
            if text is not None and not isinstance(text, str):
                raise InstanceError("wrong type", f"{column!r} is {type(text).__name__}, not a string")
            joined = join_texts(joined, (text or "").strip())
        return joined

    def label_ids(self, labels: list) -> list[int]:
        return self._names.ids(labels)

    def label_table(self, meter: ProgressMeter) -> LabelTable:
        return self._names.by_name, None

    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self._delimiter is None else {"delimiter": self._delimiter}
        if self._is_awaited and self._has_cells:
            found["unused_delimiter"] = True
        folders = {self._folder, *(file.parent for file in self.reads)} if self._folder else ()
        here = (file for folder in folders for file in folder.iterdir())
        others = sorted(file.name for file in here if kind_of(file) and file not in self.reads)
        return found | ({"not_read": others} if others else {})


def _parts(source: Path, split: str) -> list[Path]:
    """The Parquet files that a split is divided into, in order."""
    return sorted(source.glob(f"{split}-*.parquet")) or sorted((source / "data").glob(f"{split}-*.parquet"))


def kind_of(file: Path) -> str | None:
    """The kind of table that a file's name says, with a possible `.gz` left out; None for any other file."""
    packed = file.suffix == ".gz"
    kind = KINDS.get(Path(file.stem).suffix if packed else file.suffix)
    return None if packed and kind == "parquet" else kind
