"""Reciprocal filters: what they remove is gone before the ranking is cut, and nothing else changes."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cli import main
from engine.data.label_sets import LabelSets
from engine.data.store import Dataset, DatasetWriter
from engine.inference.comparison import compare_baselines
from engine.inference.evaluation import Ranker, evaluate_rows
from engine.inference.filtering import extra_width, take_out
from engine.inference.metrics import Metrics
from engine.inference.predictor import Predictor
from engine.model.features import TokenInputs
from tiny import make_rows


def sets(rows) -> LabelSets:
    return LabelSets(np.cumsum([0, *map(len, rows)]), np.array([i for row in rows for i in sorted(row)], np.int32))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(1, 12),
    st.sampled_from([0, 2**31 - 30]),
)
def test_the_k_best_that_may_stay_in_their_order(seed, n_rows, n_labels, k, first):
    random = np.random.default_rng(seed)
    out = [set(random.permutation(n_labels)[: random.integers(0, n_labels + 1)].tolist()) for _ in range(n_rows)]
    pairs = sets([{first + label for label in row} for row in out])
    width = min(k + extra_width(pairs, np.arange(n_rows)), n_labels)
    ranking = np.stack([random.permutation(n_labels) for _ in range(n_rows)])
    label, place = take_out(first + ranking[:, :width], pairs, k)
    for row in range(n_rows):
        expected = [first + int(id) for id in ranking[row] if id not in out[row]][:k]
        there = label[row] >= 0
        assert label[row][there].tolist() == expected
        assert (first + ranking[row][place[row][there]]).tolist() == expected
        assert not there[len(expected) :].any()


def test_places_where_nothing_was_predicted_stay_empty():
    label, _ = take_out(np.array([[4, -1, 2], [-1, -1, -1]]), sets([{4}, {0}]), 2)
    assert label.tolist() == [[-1, 2], [-1, -1]]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """A dataset whose filters take two of the three labels of every third row, and of test row 0 a hundred labels."""
    folder = tmp_path_factory.mktemp("filtered") / "data"
    splits = {"train": make_rows(598, 1), "test": make_rows(100, 2)}
    with DatasetWriter(folder, "filtered", {"made": "here"}) as writer:
        for split, rows in splits.items():
            for number, (text, ids) in enumerate(rows):
                writer.add(split, str(number), text, ids)
            out = [ids[:2] if number % 3 == 1 else [] for number, (_, ids) in enumerate(rows)]
            if split == "test":
                out[0] = list(range(100))
            writer.add_filter(split, sets(out))
        writer.finish([f"label-{i}" for i in range(120)])
    return folder


TEST_PAIRS = 100 + 2 * 33


class Tokens:
    """Texts as numbers: a Predictor's tokenizer, the rows of a split."""

    def __init__(self, tokenizer, texts):
        self.ids = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in texts]

    def pad(self, rows, pad_id):
        width = max(len(self.ids[row]) for row in rows)
        ids = np.array([self.ids[row] + [pad_id] * (width - len(self.ids[row])) for row in rows])
        return ids, (np.arange(width) < np.array([len(self.ids[row]) for row in rows])[:, None]).astype(np.int64)


@pytest.fixture
def ranker(random_model, filtered):
    bundle = Predictor.load(random_model, "cpu").bundle
    test = Dataset.open(filtered).test
    inputs = TokenInputs(Tokens(bundle.tokenizer, test.texts()), 0)
    return Ranker(bundle.model, bundle.classifier, bundle.order, inputs, "cpu", test.filter)


def test_a_model_is_ranked_without_its_filtered_labels(ranker):
    batches = np.array_split(np.arange(100), 7)
    whole = next(Ranker(**{**vars(ranker), "pairs": None}).best_labels([np.arange(100)], 120))
    seen = 0
    for found in ranker.best_labels(batches, 5):
        assert found.label_BK.shape == (len(found.rows), 5)
        for row, labels, logits in zip(found.rows, found.label_BK, found.logit_BK, strict=True):
            stay = ~np.isin(whole.label_BK[row], ranker.pairs.row(row))
            assert labels.tolist() == whole.label_BK[row][stay][:5].tolist()
            np.testing.assert_allclose(logits, whole.logit_BK[row][stay][:5], atol=1e-5)
            seen += 1
    assert seen == 100


def test_filters_hold_where_batches_are_halved_for_memory(ranker, filtered, monkeypatch):
    test = Dataset.open(filtered).test

    def score():
        metrics = Metrics(frequency=np.ones(120, dtype=int), n_train=598)
        return evaluate_rows(ranker, test.labels, np.array_split(np.arange(100), 3), metrics)

    expected, topk = score(), type(ranker.classifier).topk

    def short_of_memory(self, x_BD, k):
        if len(x_BD) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return topk(self, x_BD, k)

    monkeypatch.setattr(type(ranker.classifier), "topk", short_of_memory)
    assert score() == pytest.approx(expected)
    assert expected["filtered_pairs"] == TEST_PAIRS


def test_baselines_are_measured_with_the_filter_too(filtered):
    """The most frequent label is right only where the filter does not take it away."""
    from contextlib import contextmanager

    dataset = Dataset.open(filtered)
    frequency, test = dataset.label_frequency(), dataset.test

    @contextmanager
    def stage(title, unit):
        yield lambda done, total: None

    found = compare_baselines(
        dataset, lambda: Metrics((1,), frequency=frequency, n_train=598), 1, stage, lambda text: None
    )
    order = np.argsort(-frequency, kind="stable")
    firsts = [next(id for id in order if id not in test.filter.row(row)) for row in range(100)]
    expected = np.mean([first in test.labels.row(row) for row, first in enumerate(firsts)])
    unfiltered = np.mean([order[0] in test.labels.row(row) for row in range(100)])
    assert found["most frequent labels"]["P@1"] == pytest.approx(expected)
    assert expected != unfiltered
    assert {name: result["filtered_pairs"] for name, result in found.items()} == dict.fromkeys(found, TEST_PAIRS)


def test_training_and_evaluate_apply_and_report_the_filter(filtered, tiny_flags, tmp_path, capsys):
    flags = [*tiny_flags, "--data", str(filtered), "--epochs", "6", "--set", "evaluation.baselines=true"]
    assert main(["train", *flags, "--output", str(tmp_path)]) == 0
    assert f"reciprocal filter: {TEST_PAIRS} pairs taken out of the predictions" in capsys.readouterr().out
    (run,) = tmp_path.glob("2*")
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["filtered_pairs"] == TEST_PAIRS
    assert json.loads((run / "model" / "metrics.json").read_text())["filtered_pairs"] > 0, "on validation"
    assert main(["evaluate", str(run), "--k", "1,3,5", "--json", "--output", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in result["metrics"]} == pytest.approx(result["metrics"], abs=0.02)

    import scipy.sparse as sp

    matrix, pairs = sp.load_npz(tmp_path / "out" / "predictions.npz"), Dataset.open(filtered).test.filter
    assert not any(set(matrix[row].indices) & set(pairs.row(row)) for row in range(100))
    assert set(np.diff(matrix.indptr)) == {5}

    plain = shutil.copytree(filtered, tmp_path / "plain")
    meta = json.loads((plain / "dataset.json").read_text())
    meta["files"] = {name: entry for name, entry in meta["files"].items() if "filter" not in name}
    (plain / "dataset.json").write_text(json.dumps(meta))
    assert main(["evaluate", str(run), "--k", "1,3,5", "--json", "--data", str(plain)]) == 0
    unfiltered = json.loads(capsys.readouterr().out)
    assert "filtered_pairs" not in unfiltered
    assert unfiltered["P@1"] > found["P@1"], "a right label was taken away, the true labels stay as they are"
