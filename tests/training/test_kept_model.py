"""Which model of a training is kept, that people are told, and when training stops early."""

import json

import pytest
from test_runs_end_to_end import train

from engine.cli import main
from engine.runs import RunDirectory
from engine.training.kept_model import kept_line, score_of
from engine.training.trainer import Progress

RATES = [f"{part}.learning_rate=1e-30" for part in ("classifier", "adapter", "words")]
STILL = [*(f"--set={rate}" for rate in RATES), "--set", "rewire.method=none"]  # every evaluation is the same


def metrics(p1: float, p3: float, ndcg3: float) -> dict:
    return {"P@1": p1, "nDCG@1": p1, "P@3": p3, "nDCG@3": ndcg3, "P@1/head": 0.9, "PSP@3": 0.9, "instances": 4}


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (metrics(0.6, 0.1, 0.9), metrics(0.4, 0.5, 0.1)),  # more right in the mean
        (metrics(0.4, 0.5, 0.9), metrics(0.5, 0.4, 0.1)),
        (metrics(0.5, 0.3, 0.4), metrics(0.5, 0.3, 0.5)),
        (metrics(float("nan"), 0.3, 0.4), metrics(0.1, 0.3, 0.5)),
    ],
)
def test_the_mean_precision_decides_and_where_it_is_equal_the_metrics_one_by_one(worse, better):
    assert score_of(worse) < score_of(better)


def test_sums_in_another_order_are_equal():
    assert score_of(metrics(0.1 + 0.2, 0.3, 0.4)) == score_of(metrics(0.3, 0.3, 0.4))


def test_of_equal_models_the_last_is_kept(tiny_flags, tmp_path, capsys):
    run = train(tiny_flags, tmp_path, *STILL)
    kept = [(event["best"], event["tie"]) for event in RunDirectory(run).events(["eval"])]
    assert kept == [(True, False), (True, True), (True, True), (True, True)]
    result = json.loads((run / "result.json").read_text())
    assert result["model_step"] == result["steps"] == json.loads((run / "model" / "model.json").read_text())["step"]
    words = (
        f"the model of step {result['steps']} (epoch 4), the last of those equally good on 60 validation texts: P@1 "
    )
    assert f"kept      {words}" in (run / "log.txt").read_text()
    capsys.readouterr()
    assert main(["runs", "show", str(run)]) == 0
    assert f"kept: {words}" in capsys.readouterr().out


def test_patience_ends_a_training_whose_models_are_equal(tiny_flags, tmp_path):
    run = train(tiny_flags, tmp_path, *STILL, "--epochs", "9", "--set", "evaluation.patience=2")
    assert len(list(RunDirectory(run).events(["eval"]))) == 3
    assert "stopping early" in (run / "log.txt").read_text()


def test_without_validation_texts_the_last_model_is_kept(tiny_flags, tmp_path):
    flags = ["--set", "data.validation_fraction=0", "--set", "evaluation.patience=1"]
    run = train(tiny_flags, tmp_path, *flags)
    found = kept_line(RunDirectory(run))
    assert found.endswith("(epoch 4), the last: there are no validation texts to choose by")


def test_nothing_is_said_before_the_first_evaluation(tmp_path):
    assert kept_line(RunDirectory.create(tmp_path)) is None


def test_what_a_checkpoint_holds_comes_back():
    progress = Progress(step=7, best=score_of(metrics(0.5, 1 / 3, 0.4)), evaluations_since_best=2)
    assert Progress.from_json(json.loads(json.dumps(vars(progress)))) == progress


def test_scores_of_an_older_checkpoint_are_compared_by_their_mean():
    score = score_of(metrics(0.5, 0.3, 0.4))
    assert Progress.from_json(vars(Progress()) | {"best": score[1:]}).best == score
    assert Progress.from_json(vars(Progress())).best == []


def test_p1_alone_of_an_older_checkpoint_is_beaten():
    assert Progress.from_json(vars(Progress()) | {"best": 0.5}).best < score_of(metrics(0.1, 0, 0))
