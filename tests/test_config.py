"""Precedence, origins, and refusal of what cannot work."""

import json

import pytest

from engine.cli import main
from engine.config import KEYS, RunConfig, load_profile, profile_names, resolve
from engine.errors import ConfigError


def test_defaults_are_overridden_by_profile_then_set_then_flag(tmp_path):
    profile = tmp_path / "mine.toml"
    profile.write_text('[training]\nepochs = 3\nbatch_size = 64\n[data]\nmax_tokens = 32\n[run]\nname = "p"\n')
    overrides = {"training.batch_size": "16", "data.max_tokens": "48"}
    config, origins = resolve(str(profile), overrides, {"data.max_tokens": ("64", "--max-tokens")})
    assert (config.training.epochs, config.training.batch_size, config.data.max_tokens) == (3, 16, 64)
    assert config.evaluation.k == (1, 3, 5)
    assert origins["evaluation.k"] == "default"
    assert origins["training.epochs"] == f"profile {profile}"
    assert origins["training.batch_size"] == "--set"
    assert origins["data.max_tokens"] == "--max-tokens"


def test_every_built_in_profile_is_a_valid_configuration():
    assert profile_names() == ["cpu", "4gb", "6gb", "8gb", "12gb", "16gb", "24gb"]
    for name in profile_names():
        config, _ = resolve(name, {}, {})
        assert config.hardware.memory_gib == ("auto" if name == "cpu" else float(name.removesuffix("gb")))


def test_flat_form_round_trips():
    config, _ = resolve("cpu", {"classifier.fan_in": "64", "evaluation.k": "1,5,10"}, {})
    assert RunConfig.from_flat(json.loads(json.dumps(config.flat()))) == config


BAD = {
    "clasifier.fan_in=3": "did you mean 'classifier.fan_in'?",
    "classifier.fan_in=0": "classifier.fan_in = 0 must be at least 1",
    "classifier.fan_in=-4": "classifier.fan_in = -4 must be at least 1",
    "classifier.fan_in=many": "must be a whole number or auto or dense",
    "classifier.loss=hinge": "must be bce or squared_hinge",
    "training.epochs=1.5": "must be a whole number",
    "training.deterministic=perhaps": "must be true or false",
    "encoder.dropout=2": "must be between 0 and 0.95",
    "encoder.checkpointing=every_0": "must be auto, off or every_n",
    "evaluation.k=5,1": "must be ascending",
    "evaluation.k=a": "must be whole numbers separated by commas",
    "classifier.learning_rate=nan": "must be a number",
    "training.micro_batch=4096": "exceeds training.batch_size",
    "nonsense": "must be section.key=value",
}


@pytest.mark.parametrize("assignment", BAD)
def test_bad_settings_are_one_line_and_exit_2(assignment, capsys):
    assert main(["train", "--profile", "cpu", "--dry-run", "--set", assignment]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert BAD[assignment] in error


def test_unknown_profile_names_the_nearest(capsys):
    assert main(["train", "--profile", "8g"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "did you mean '8gb'?" in error


def test_profile_file_with_an_error_is_named(tmp_path):
    (tmp_path / "bad.toml").write_text("[training\n")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_profile(str(tmp_path / "bad.toml"))
    (tmp_path / "flat.toml").write_text("epochs = 3\n")
    with pytest.raises(ConfigError, match=r"outside a \[section\]"):
        load_profile(str(tmp_path / "flat.toml"))


def test_dry_run_prints_every_value_with_its_origin(capsys):
    assert main(["train", "--profile", "cpu", "--dry-run", "--epochs", "3", "--set", "classifier.fan_in=64"]) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == set(KEYS)
    assert rows["training.epochs"] == ["3", "--epochs"]
    assert rows["classifier.fan_in"] == ["64", "--set"]
    assert rows["encoder.trainable"] == ["none", "profile cpu"]
    assert rows["classifier.loss"] == ["bce", "default"]


def test_every_key_is_documented_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert [key for key in KEYS if key not in text] == []
