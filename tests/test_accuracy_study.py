"""The study harness: every cell is a training, what is done stays, and the table compares with the reference."""

import json
import re

import accuracy
import pytest


@pytest.fixture
def study(tmp_path, tiny_encoder):
    file = tmp_path / "study.toml"
    file.write_text(f"""
        reference = "dense"
        seeds = [0, 1]
        [always]
        "encoder.name" = "{tiny_encoder}"
        "training.epochs" = 1
        "data.max_tokens" = 16
        "evaluation.baselines" = false
        [settings.dense]
        "classifier.fan_in" = "dense"
        [settings.eighth]
        "classifier.fan_in" = 4
    """)
    return file


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| tiny |")]


def test_a_grid_is_trained_once_and_its_table_compares_with_the_reference(study, tiny_dataset, tmp_path, capsys):
    command = [str(study), "--output", str(tmp_path / "out"), "--corpus", str(tiny_dataset), "--profile", "cpu"]
    assert accuracy.main([*command, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 4 cells are there" in printed and "4/4" in printed
    dense, eighth = rows(printed)
    assert (dense[1], dense[2], eighth[1], eighth[2]) == ("dense", "2", "eighth", "2")
    assert dense[3].endswith("(100.0%)") and re.fullmatch(r"[\d.]+ ± [\d.]+ \([\d.]+%\)", eighth[3])
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(cell["setting"], cell["seed"], cell["plan"]["fan_in"]) for cell in numbers} == {
        ("dense", 0, 32), ("dense", 1, 32), ("eighth", 0, 4), ("eighth", 1, 4),
    }  # fmt: skip
    assert accuracy.main(command) == 0
    again = capsys.readouterr().out
    assert "4 of 4 cells are there" in again and rows(again) == rows(printed)


def test_a_setting_that_changed_its_meaning_is_refused(study, tiny_dataset, tmp_path):
    command = [str(study), "--output", str(tmp_path / "out"), "--corpus", str(tiny_dataset), "--profile", "cpu"]
    assert accuracy.main([*command, "--seed", "0"]) == 0
    study.write_text(study.read_text().replace('"classifier.fan_in" = 4', '"classifier.fan_in" = 8'))
    with pytest.raises(accuracy.DataError, match="another name"):
        accuracy.main([*command, "--seed", "0"])


def test_a_cell_that_fails_is_named_and_the_others_are_trained(study, tiny_dataset, tmp_path, capsys):
    study.write_text(study.read_text() + '[settings.wrong]\n"training.epochs" = -1\n')
    command = [str(study), "--output", str(tmp_path / "out"), "--corpus", str(tiny_dataset), "--profile", "cpu"]
    assert accuracy.main([*command, "--seed", "0"]) == 1
    printed = capsys.readouterr().out
    assert "tiny, wrong, seed 0: failed, see" in printed
    assert [row[1] for row in rows(printed)] == ["dense", "eighth"]


def test_a_reference_that_is_no_setting_is_refused(study, tmp_path, capsys):
    study.write_text(study.read_text().replace('reference = "dense"', 'reference = "none"'))
    with pytest.raises(SystemExit, match="2"):
        accuracy.main([str(study), "--output", str(tmp_path / "out"), "--corpus", "x"])
    assert "the reference 'none' is none of the settings" in capsys.readouterr().err
