"""An import that is killed leaves no half-made dataset, and the next one cleans up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.data.importers import import_dataset
from engine.data.output_folder import sweep

SOURCE = Path(__file__).parents[2]


IMPORT = """
import sys, time
from engine.data.importers import import_dataset
import_dataset(*sys.argv[1:], test_fraction=0, progress=lambda done, total: time.sleep(600))
"""


@pytest.fixture
def killed(tmp_path) -> Path:
    """A folder in which an import was killed when it had read its input."""
    (tmp_path / "input.csv").write_text("text,labels\nfine,a\n")
    command = [sys.executable, "-c", IMPORT, str(tmp_path / "input.csv"), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=SOURCE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out.tmp-*/train.parquet")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob("out.tmp-*"))) == 1
    return tmp_path


def test_nothing_is_left_of_a_killed_import_after_the_next(killed):
    dataset = import_dataset(killed / "input.csv", killed / "out", test_fraction=0)
    assert len(dataset.train) == 1
    assert sorted(entry.name for entry in killed.iterdir()) == ["input.csv", "out"]


def test_what_a_running_import_makes_is_not_swept(tmp_path):
    mine = tmp_path / f"out.tmp-{os.getpid()}-0123abcd"
    mine.mkdir()
    sweep(tmp_path / "out")
    assert mine.exists()


def test_a_folder_of_a_process_whose_number_was_given_away_is_swept(tmp_path):
    old = tmp_path / f"out.tmp-{os.getpid()}-0123abcd"
    old.mkdir()
    os.utime(old, (1, 1))
    sweep(tmp_path / "out")
    assert not old.exists()


def test_a_dataset_whose_replacement_was_killed_comes_back(make_dataset, tmp_path):
    dataset = make_dataset([("a", [1])])
    dataset.path.rename(tmp_path / "made.old-999999999-0123abcd")
    sweep(dataset.path)
    assert (dataset.path / "dataset.json").is_file()


def half_made(folder: Path, name: str, age: float, *files: str) -> Path:
    """What a process that is gone left, `age` seconds ago."""
    made = folder / f"{name}.tmp-999999999-0123abcd"
    made.mkdir()
    for file in files:
        (made / file).write_text("")
    for written in [*made.iterdir(), made]:
        os.utime(written, (time.time() - age,) * 2)
    return made


def test_forgotten_imports_of_other_names_are_swept_by_the_next_into_the_folder(tmp_path, make_dataset):
    forgotten = half_made(tmp_path, "other", 4000, "train.parquet", "train_ids.npy", "import-problems.jsonl")
    make_dataset([("a", [1])])
    assert not forgotten.exists()


def test_what_may_be_somebody_elses_is_not_swept(tmp_path, make_dataset):
    fresh = half_made(tmp_path, "fresh", 100, "train.parquet")
    foreign = half_made(tmp_path, "foreign", 4000, "train.parquet", "letter.txt")
    link = tmp_path / "link.tmp-999999999-0123abcd"
    link.symlink_to(foreign)
    make_dataset([("a", [1])])
    assert fresh.exists() and (foreign / "letter.txt").exists() and link.is_symlink()


def test_other_folders_are_not_swept(tmp_path):
    for name in ("out.tmp", "out.tmp-1-x", "other.tmp-999999999-0123abcd", "out.tmp-999999999-0123abcd.bak"):
        (tmp_path / name).mkdir()
    sweep(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 4
