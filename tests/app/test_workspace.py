"""What a page may name: things in the folders of the interface, by id."""

import pytest

from app.workspace import Workspace
from engine.errors import ConfigError


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for folder in ("mine/org", "encoders/own", "encoders/no-model"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("mine/org", "mine", "encoders/own"):
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path / "runs", tmp_path / "datasets", tmp_path / "encoders")


def test_an_encoder_is_one_of_the_folder_or_a_name_on_the_hub(workspace):
    assert workspace.encoder("own") == str(workspace.encoders / "own")
    for name in ("google-bert/bert-base-uncased", "bert-base-uncased", "BAAI/bge-small-en-v1.5", "no-model"):
        assert workspace.encoder(name) == name


@pytest.mark.parametrize(
    "path",
    ["/etc", "~", "..", "../encoders/own", "encoders/own", "mine/org", "mine", "own/", "./own", "a/b/c", "C:\\x"],
)
def test_no_other_folder_is_an_encoder(workspace, path):
    with pytest.raises(ConfigError, match="by the name of its folder in"):
        workspace.encoder(path)
