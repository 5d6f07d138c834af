"""The study harness: every cell is a training, what is done stays, and the table compares with the reference."""

import contextlib
import io
import json
import re
import shutil

import accuracy
import pytest

STUDY = """
    reference = "dense"
    seeds = [0, 1]
    [always]
    "encoder.name" = "{encoder}"
    "training.epochs" = 1
    "data.max_tokens" = 16
    "evaluation.baselines" = false
    [settings.dense]
    "classifier.fan_in" = "dense"
    [settings.eighth]
    "classifier.fan_in" = 4
"""


@pytest.fixture
def study(tmp_path, tiny_encoder):
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(encoder=tiny_encoder))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder, tiny_dataset):
    """(the options of a study, what it printed, its folder), trained once."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY.format(encoder=tiny_encoder))
    options = ["--corpus", str(tiny_dataset), "--profile", "cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = accuracy.main([str(folder / "study.toml"), "--output", str(folder / "out"), *options, "--jobs", "2"])
    assert code == 0
    return options, printed.getvalue(), folder / "out"


@pytest.fixture
def command(trained, study, tmp_path):
    """Of the study when all of it has been trained."""
    options, _, out = trained
    shutil.copytree(out, tmp_path / "out")
    return [str(study), "--output", str(tmp_path / "out"), *options]


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| tiny |")]


def test_a_grid_is_trained_once_and_its_table_compares_with_the_reference(trained, command, tmp_path, capsys):
    _, first, out = trained
    assert "0 of 4 cells are there" in first and "4/4" in first
    runs = sorted((tmp_path / "out").rglob("result.json"))
    before = [file.stat().st_mtime_ns for file in runs]
    assert accuracy.main(command) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 cells are there" in printed
    assert sorted((tmp_path / "out").rglob("result.json")) == runs
    assert [file.stat().st_mtime_ns for file in runs] == before and len(before) == 4
    assert rows(printed) == rows(first)
    dense, eighth = rows(printed)
    assert (dense[1], dense[2], eighth[1], eighth[2]) == ("dense", "2", "eighth", "2")
    assert dense[3].endswith("(100.0%)") and re.fullmatch(r"[\d.]+ ± [\d.]+ \([\d.]+%\)", eighth[3])
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert numbers == json.loads((out / "results.json").read_text())
    assert {(cell["setting"], cell["seed"], cell["plan"]["fan_in"]) for cell in numbers} == {
        ("dense", 0, 32), ("dense", 1, 32), ("eighth", 0, 4), ("eighth", 1, 4),
    }  # fmt: skip


def test_a_setting_that_changed_its_meaning_is_refused(study, command):
    study.write_text(study.read_text().replace('"classifier.fan_in" = 4', '"classifier.fan_in" = 8'))
    with pytest.raises(accuracy.DataError, match="another name"):
        accuracy.main([*command, "--seed", "0"])


def test_a_cell_that_fails_is_named_and_the_others_are_trained(study, command, capsys):
    more = '[settings.wrong]\n"training.epochs" = -1\n[settings.quarter]\n"classifier.fan_in" = 8\n'
    study.write_text(study.read_text() + more)
    assert accuracy.main([*command, "--seed", "0"]) == 1
    printed = capsys.readouterr().out
    assert "2 of 4 cells are there" in printed and "tiny, wrong, seed 0: failed, see" in printed
    assert [row[1] for row in rows(printed)] == ["dense", "eighth", "quarter"]


def test_a_reference_that_is_no_setting_is_refused(study, tmp_path, capsys):
    study.write_text(study.read_text().replace('reference = "dense"', 'reference = "none"'))
    with pytest.raises(SystemExit, match="2"):
        accuracy.main([str(study), "--output", str(tmp_path / "out"), "--corpus", "x"])
    assert "the reference 'none' is none of the settings" in capsys.readouterr().err
