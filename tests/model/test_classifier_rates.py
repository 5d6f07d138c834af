"""The learning rates of labels that read different numbers of columns."""

from types import SimpleNamespace

import pytest
import torch

from engine.config import resolve
from engine.kernels import reference
from engine.kernels.layer import StepOptions
from engine.model.classifier import Classifier, ClassifierShape, ClassifierStep


@pytest.mark.parametrize(
    ("fan_in", "words", "rate", "word_rate"),
    [(64, 256, 1.0, 1.0), (16, 128, 2.0, 2.0), (128, 64, 0.5**0.5, 4.0), (128, 16, 0.5**0.5, 4.0)],
)
def test_rates_fall_with_the_root_of_the_features_and_the_number_of_words(fan_in, words, rate, word_rate):
    given = []
    backend = SimpleNamespace(step=lambda layer, x_BD, positives, dx_BD, options: given.append(options))
    shape = ClassifierShape(100, 20, 256, fan_in, 16, words=words, head_words=4 * words, vocabulary=2000)
    classifier = Classifier.new(shape, reference, "cpu", seed=0)
    classifier.backend = backend
    classifier.step(torch.zeros(2, 2256), None, StepOptions(learning_rate=0.2, word_learning_rate=0.6))
    head, tail = given
    assert (tail.learning_rate, tail.word_learning_rate) == pytest.approx((0.2 * rate, 0.6 * word_rate))
    assert (head.learning_rate, head.word_learning_rate) == pytest.approx((0.1, 0.6 * 256 / max(64, 4 * words)))


@pytest.mark.parametrize(("head_words", "expected"), [(512, 0.3), (1900, 0.3), (256, 0.6)])
def test_words_of_head_labels_may_have_the_rate_of_512_at_the_least(head_words, expected):
    given = []
    shape = ClassifierShape(100, 20, 256, 64, 16, words=128, head_words=head_words, vocabulary=2000)
    classifier = Classifier.new(shape, reference, "cpu", seed=0)
    classifier.backend = SimpleNamespace(step=lambda layer, x_BD, positives, dx_BD, options: given.append(options))
    begun = ClassifierStep.new(torch.zeros(2, 2256), 256)
    classifier.go_on(begun, torch.zeros(2, 2256), None, StepOptions(word_learning_rate=0.6), slows_head_words=False)
    assert [options.word_learning_rate for options in given] == [expected, 1.2]


@pytest.mark.parametrize("slows_head_words", [True, False])
def test_words_of_labels_that_read_all_have_the_rate_of_256(slows_head_words):
    given = []
    shape = ClassifierShape(100, 20, 256, 64, 16, words=128, head_words=512, vocabulary=2000, lead=5)
    classifier = Classifier.new(shape, reference, "cpu", seed=0)
    classifier.backend = SimpleNamespace(step=lambda layer, x_BD, positives, dx_BD, options: given.append(options))
    begun = ClassifierStep.new(torch.zeros(2, 2256), 256)
    options = StepOptions(learning_rate=0.2, word_learning_rate=0.6)
    classifier.go_on(begun, torch.zeros(2, 2256), None, options, slows_head_words)
    assert [options.word_learning_rate for options in given] == [0.6, 0.3, 1.2]
    assert [options.learning_rate for options in given] == [0.1, 0.1, 0.2]


@pytest.mark.parametrize("part", range(3))
def test_a_bias_that_is_not_finite_is_noticed(part):
    shape = ClassifierShape(100, 20, 256, 64, 16, words=128, head_words=512, vocabulary=2000, lead=5)
    classifier = Classifier.new(shape, reference, "cpu", seed=0)
    assert classifier.is_finite()
    classifier.layers[part].bias[3] = float("nan")
    assert not classifier.is_finite()


def test_where_all_labels_are_dense_their_words_are_slow_all_the_same():
    given = []
    shape = ClassifierShape(100, 100, 256, 256, 16, head_words=512, vocabulary=2000)
    classifier = Classifier.new(shape, reference, "cpu", seed=0)
    classifier.backend = SimpleNamespace(step=lambda layer, x_BD, positives, dx_BD, options: given.append(options))
    begun = ClassifierStep.new(torch.zeros(2, 2256), 256)
    classifier.go_on(begun, torch.zeros(2, 2256), None, StepOptions(word_learning_rate=0.6), slows_head_words=False)
    assert [options.word_learning_rate for options in given] == [0.3]


@pytest.mark.parametrize(("trainable", "expected"), [("all", True), ("none", False)])
def test_they_have_it_where_the_encoder_is_frozen(trainable, expected):
    config, _ = resolve("8gb", {"encoder.trainable": trainable}, {})
    assert config.slows_head_words is expected
