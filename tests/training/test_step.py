"""A step around the classifier: what computes the features is exchangeable, and texts may come without words."""

import numpy as np
import pytest
import torch

from engine.config import RunConfig
from engine.kernels import reference
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead, load_encoder
from engine.model.features import FeatureModel, TokenInputs
from engine.model.recompute import seed_dropout
from engine.model.words import Words
from engine.training.optimizers import make_optimizer
from engine.training.schedules import Length
from engine.training.step import Batch, TrainingStep

LABELS, VOCABULARY, TEXTS = 40, 37, 64
CPU = torch.device("cpu")


def new_step(tiny_encoder, words: bool, length: Length | None = None, **settings) -> TrainingStep:
    torch.manual_seed(0)
    encoder = load_encoder(tiny_encoder, "mean", torch.float32)
    idf = torch.ones(VOCABULARY)
    idf[:5] = 0.0
    model = FeatureModel(encoder, FeatureHead(encoder.width, 0, 0.1), Words(idf) if words else None)
    config = RunConfig.from_flat({"training.batch_size": TEXTS, **settings})
    shape = ClassifierShape(LABELS, 8, 32, 16, 8, words=4 * words, head_words=8 * words, vocabulary=VOCABULARY * words)
    classifier = Classifier.new(shape, reference, CPU, 0)
    optimizer = make_optimizer(model, config, CPU, torch.float32, False, False)
    return TrainingStep(config, TEXTS, model.train(), classifier, optimizer, length=length)


def batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(5, 25, (TEXTS, 12)))
    mask = torch.from_numpy((np.arange(12) < rng.integers(2, 13, (TEXTS, 1))).astype(np.int64))
    return Batch((ids * mask, mask), np.arange(TEXTS + 1), rng.integers(0, LABELS, TEXTS))


class StandIn:
    """What GraphedPass does, kernel by kernel."""

    def __init__(self, step: TrainingStep) -> None:
        self.model, self.places, self.passes = step.model, step.optimizer.keep_gradients(), 0

    def features(self, inputs, seed):
        seed_dropout(seed, CPU)
        self.x_BD = self.model(inputs).float()
        return self.x_BD.detach()

    def backward(self, gradient_BD):
        self.passes += 1
        parameters = [parameter for parameter, _ in self.places]
        found = torch.autograd.grad(self.x_BD, parameters, gradient_BD, allow_unused=True)
        for (_, place), gradient in zip(self.places, found, strict=True):
            if gradient is not None:
                place.copy_(gradient)


def assert_same(one: TrainingStep, other: TrainingStep) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for name, tensor in one.classifier.tensors().items():
        torch.testing.assert_close(tensor, other.classifier.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("words", [False, True])
def test_recorded_passes_train_as_others_do(tiny_encoder, words):
    usual, recorded = new_step(tiny_encoder, words), new_step(tiny_encoder, words)
    recorded.graphs = StandIn(recorded)
    for number in range(1, 4):
        one, other = usual(batch(), number, 10, 1.0, True), recorded(batch(), number, 10, 1.0, True)
        torch.testing.assert_close(one.loss, other.loss)
    assert recorded.graphs.passes == 3
    assert_same(usual, recorded)


def test_a_step_that_runs_out_of_memory_goes_on_without_recorded_passes(tiny_encoder):
    usual, recorded = new_step(tiny_encoder, True), new_step(tiny_encoder, True)
    recorded.graphs = StandIn(recorded)

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    said = []

    def lower(problem):
        said.append(problem)
        recorded.graphs = None
        recorded.optimizer.drop_gradients()

    recorded.graphs.backward, recorded.lower = fail, lower
    one, other = usual(batch(), 1, 10, 1.0, True), recorded(batch(), 1, 10, 1.0, True)
    torch.testing.assert_close(one.loss, other.loss)
    assert said == ["CUDA out of memory. Tried to allocate 2.00 GiB."]
    assert_same(usual, recorded)


def test_a_share_of_the_texts_comes_without_words_another_in_every_step(tiny_encoder):
    step = new_step(tiny_encoder, True, **{"words.dropout": 0.4})
    words = [step(batch(), number, 10, 1.0, False).read_BX[:, 32:] for number in (1, 2, 1)]
    without = [(part == 0).all(1) for part in words]
    assert all(10 < int(part.sum()) < 42 for part in without)
    assert torch.equal(without[0], without[2]) and not torch.equal(without[0], without[1])
    whole = new_step(tiny_encoder, True, **{"words.dropout": 0.0})(batch(), 1, 10, 1.0, False).read_BX[:, 32:]
    assert torch.equal(words[0][~without[0]], whole[~without[0]])


def test_texts_without_words_become_fewer_as_learning_rates_fall(tiny_encoder):
    step = new_step(tiny_encoder, True, **{"words.dropout": 0.5})
    words = [step(batch(), 1, 10, factor, False).read_BX[:, 32:] for factor in (1.0, 0.5, 0.01)]
    many, fewer, none = [(part == 0).all(1) for part in words]
    assert 20 < int(many.sum()) < 44 and 6 < int(fewer.sum()) < 28 and int(none.sum()) < 3
    assert not bool((fewer & ~many).any())


def test_words_are_taken_away_by_themselves_and_only_where_there_are_any(tiny_encoder):
    without = (new_step(tiny_encoder, True)(batch(), 1, 10, 1.0, False).read_BX[:, 32:] == 0).all(1)
    assert 6 < int(without.sum()) < 34
    assert new_step(tiny_encoder, False)(batch(), 1, 10, 1.0, False).read_BX.shape == (TEXTS, 32)


def test_features_move_by_the_rate_of_the_epochs(tiny_encoder):
    def moved(epochs):
        step = new_step(tiny_encoder, True, Length(epochs * 10**6, 10**6), **{"words.dropout": 0.0})
        before = [layer.weight[:, : layer.features].clone() for layer in step.classifier.layers]
        step(batch(), 1, 10, 1.0, False)
        after = [layer.weight[:, : layer.features] for layer in step.classifier.layers]
        return torch.cat([(new - old).flatten() for new, old in zip(after, before, strict=True)])

    assert moved(4).abs().max() > 1e-3
    torch.testing.assert_close(moved(16) * 2, moved(4), rtol=1e-3, atol=1e-6)


def test_rates_and_texts_without_words_depend_on_whether_there_are_words(tiny_encoder):
    length = Length(16 * 10**6, 10**6)
    with_words, without = (new_step(tiny_encoder, words, length) for words in (True, False))
    assert (with_words.classifier_rate, with_words.texts_without_words) == (1.5e-3, 0.3)
    assert (without.classifier_rate, without.texts_without_words) == (3e-3, 0.0)
    said = "classifier 0.0015, words 0.015, encoder 0.0001 at the peak; 30% of the texts without words"
    assert with_words.rates_line() == said
    assert without.rates_line() == "classifier 0.003, encoder 0.0001 at the peak"


def test_texts_are_filled_up_to_the_lengths_asked_for():
    class Tokens:
        def pad(self, rows, pad_id):
            return np.full((len(rows), 5), 7), np.ones((len(rows), 5), dtype=np.int64)

    ids, mask = TokenInputs(Tokens(), 3, length=lambda tokens: tokens + 2)(np.arange(4))
    assert ids.shape == mask.shape == (4, 7)
    assert (ids[:, 5:] == 3).all() and (mask[:, 5:] == 0).all() and (ids[:, :5] == 7).all() and (mask[:, :5] == 1).all()


def test_texts_of_a_frozen_encoder_are_never_taken_in_parts(tiny_encoder):
    """Its features are there: parts would draw their dropout anew, and save nothing."""
    rng = torch.Generator().manual_seed(0)
    inputs = (torch.randn(TEXTS, 32, generator=rng),)
    given = Batch(inputs, batch().offsets, batch().positions)
    found = []
    for micro_batch in (TEXTS, 8):
        step = new_step(tiny_encoder, words=False)
        step.model.encoder = None
        step.model.head.add_adapter(64)
        torch.manual_seed(1)
        torch.nn.init.normal_(step.model.head.adapter.down.weight)
        step.optimizer = make_optimizer(step.model, step.config, CPU, torch.float32, False, False)
        step.micro_batch = micro_batch
        for number in range(1, 4):
            step(given, number, 10, 1.0, False)
        found.append([*(p.detach().clone() for p in step.model.head.parameters()), step.classifier.layers[-1].weight])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][2].abs().sum() > 0, "the adapter's last layer has moved"
