"""The JSON lines of the extreme classification repository: `trn.json`, `tst.json`, `lbl.json`, each perhaps `.gz`.

One object a line: `uid`, `title`, `content`, `target_ind` (label ids), `target_rel` in `trn.json` and `tst.json`;
`uid`, `title` and perhaps `content` in `lbl.json`, whose n-th line is label n. A text is the title and the content.
`filter_labels_train.txt` and `filter_labels_test.txt` hold reciprocal filters (`engine.data.filters`).
"""

from collections.abc import Iterator
from itertools import tee
from pathlib import Path

from engine.data.filters import find_filters
from engine.data.layouts import LabelTable, Layout, Row, ids_in_range
from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter, find_file, read_objects, shown
from engine.data.store import InstanceError
from engine.errors import DataError


class XmcJson(Layout):
    """Label ids are the lines of `lbl.json`, which is read twice, once only to count: there can be too many to keep."""

    format = "xmc-json"

    @classmethod
    def find(cls, source: Path) -> "XmcJson | None":
        """The layout in the folder `source`. Raises DataError when `lbl.json` is missing beside `trn.json`."""
        found = {split: find_file(source, [f"{part}.json"]) for split, part in (("train", "trn"), ("test", "tst"))}
        if found["train"] is None:
            return None
        labels = find_file(source, ["lbl.json"])
        if labels is None:
            raise DataError(f"{source}: no lbl.json or lbl.json.gz beside {found['train'].name}; it names the labels")
        splits = {split: file for split, file in found.items() if file}
        return cls(splits, labels, find_filters(source, splits))

    def __init__(self, splits: dict[str, Path], labels: Path, filters: dict[str, Path]):
        self.splits = splits
        self.filters = filters
        self.reads = [labels, *splits.values(), *filters.values(), labels]
        self._labels = labels
        self._n_labels = -1

    def rows(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Row]:
        if self._n_labels < 0:
            # A line that is left out would move all labels after it.
            self._n_labels = sum(1 for _ in read_objects(self._labels, meter, Problems(strict=True)))
        for line, instance in read_objects(self.splits[split], meter, problems):
            try:
                yield line, *_instance(instance)
            except InstanceError as error:
                problems.add(error.kind, self.place(split, line), str(error))

    def label_ids(self, labels: list) -> list[int]:
        return ids_in_range(labels, self._n_labels, "the lines of the label file")

    def label_table(self, meter: ProgressMeter) -> LabelTable:
        # The writer takes turns between names and texts, so little waits in between.
        names, again = tee(self._named(meter))
        return (name for name, _ in names), (text for _, text in again)

    def _named(self, meter: ProgressMeter) -> Iterator[tuple[str, str | None]]:
        """Name and text of every label. A label without title and content is called by its uid and has no text."""
        for line, label in read_objects(self._labels, meter, Problems(strict=True)):
            try:
                title, content = _string(label, "title"), _string(label, "content")
                yield title or _uid(label), join_texts(title, content) or None
            except InstanceError as error:
                raise DataError(f"{self._labels}:{line}: {error}") from None


def _instance(instance: dict) -> tuple[str, str, list[int]]:
    """uid, text, label ids."""
    if "title" not in instance and "content" not in instance:
        raise InstanceError("missing key", f"neither 'title' nor 'content'; found the keys {shown(instance)}")
    text = join_texts(_string(instance, "title"), _string(instance, "content"))
    ids = instance.get("target_ind")
    if not isinstance(ids, list) or not all(type(label) is int for label in ids):
        problem = "is missing" if ids is None else "is not a list of whole numbers"
        raise InstanceError("wrong label ids", f"'target_ind' {problem}")
    relevances = instance.get("target_rel", ids)
    if not isinstance(relevances, list) or len(relevances) != len(ids):
        raise InstanceError("wrong label ids", "'target_ind' and 'target_rel' are not lists of the same length")
    return _uid(instance), text, ids


def _string(item: dict, key: str) -> str:
    value = item.get(key) or ""
    if not isinstance(value, str):
        raise InstanceError("wrong type", f"{key!r} is {type(value).__name__}, not a string")
    return value.strip()


def _uid(item: dict) -> str:
    uid = item.get("uid")
    if not isinstance(uid, str | int):
        raise InstanceError("missing key", "'uid' is missing or not a string")
    return str(uid)


def join_texts(title: str, content: str) -> str:
    """Title and content as one text: two sentences, whether or not the title ends like one."""
    if not title or not content:
        return title or content
    return f"{title} {content}" if title[-1] in ".!?:;…" else f"{title}. {content}"
