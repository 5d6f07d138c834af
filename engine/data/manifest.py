"""The files of a dataset directory and `dataset.json`, which records them: names, reading, checking."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.data.arrays import open_npy
from engine.errors import DataError, reason

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SCHEMA = 1
MANIFEST = "dataset.json"
LABELS_FILE = "labels.parquet"
SPLITS = ("train", "test")
AGAIN = "import the dataset again"


def split_files(name: str) -> tuple[str, str, str]:
    """File names of a split: texts, label offsets, label ids."""
    return f"{name}.parquet", f"{name}_offsets.npy", f"{name}_ids.npy"


def filter_files(name: str) -> tuple[str, str]:
    """File names of a split's reciprocal filter: label offsets, label ids."""
    return f"{name}_filter_offsets.npy", f"{name}_filter_ids.npy"


def file_digest(file: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> tuple[dict, str]:
    """Content of `path/dataset.json`, with the parts that readers rely on checked, and the sha256 of its bytes.

    Raises DataError when there is no such dataset, or it is of another schema version or incomplete.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such dataset directory; make one with `engine data import` or `engine data demo`")
    manifest = path / MANIFEST
    try:
        content = manifest.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: not a dataset directory, it has no {MANIFEST}; `engine data import` makes one from source files"
        ) from None
    try:
        meta = json.loads(content)
        schema = meta["schema"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{manifest}: not a dataset description; {AGAIN}") from None
    if schema != SCHEMA:
        raise DataError(f"{manifest}: schema version {schema!r}, this program reads version {SCHEMA}; {AGAIN}")
    if not _is_complete(meta):
        raise DataError(f"{manifest}: incomplete dataset description; {AGAIN}")
    return meta, hashlib.sha256(content).hexdigest()


def _is_complete(meta: dict) -> bool:
    try:
        splits = meta["splits"]
        recorded = [meta["files"][file] for split in splits for file in split_files(split)]
        recorded.append(meta["files"][LABELS_FILE])
        return (
            isinstance(meta["name"], str)
            and isinstance(meta["n_labels"], int)
            and "train" in splits
            and set(splits) <= set(SPLITS)
            and all(isinstance(counts["instances"], int) for counts in splits.values())
            and all(isinstance(file["bytes"], int) and isinstance(file["sha256"], str) for file in recorded)
        )
    except (KeyError, TypeError):
        return False


def check_file(file: Path, recorded: dict, verify: bool) -> None:
    """Raises DataError unless `file` has the recorded size and, with `verify`, the recorded sha256."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{file}: missing; {AGAIN}") from None
    if size != recorded["bytes"]:
        what = "truncated" if size < recorded["bytes"] else "changed"
        raise DataError(f"{file}: {what}, {size} bytes instead of {recorded['bytes']}; {AGAIN}")
    if verify and file_digest(file) != recorded["sha256"]:
        raise DataError(f"{file}: its sha256 is not the recorded one, so it was changed or damaged; {AGAIN}")


def open_vector(file: Path, dtype: type) -> np.ndarray:
    """The vector in a `.npy` file, memory-mapped. Raises DataError when it is not one of that dtype."""
    try:
        array = open_npy(file)
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not readable ({error}); {AGAIN}") from None
    if array.dtype != dtype or array.ndim != 1:
        raise DataError(f"{file}: holds {array.dtype} {array.shape}, not a {np.dtype(dtype)} vector; {AGAIN}")
    return array


def open_parquet(file: Path) -> "pq.ParquetFile":
    """Raises DataError when `file` is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as Parquet ({reason(error)}); {AGAIN}") from None
