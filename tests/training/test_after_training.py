"""What a run holds when it loads its best model to test it: nothing that was trained, which may fill the device."""

import gc

from test_runs_end_to_end import TRAINABLE, train

import engine.training.run
from engine.model.classifier import Classifier


def test_the_trained_classifier_is_gone_before_the_best_model_is_loaded(tiny_flags, tmp_path, monkeypatch):
    alive, load = [], engine.training.run.load_bundle

    def looking(*arguments):
        alive.append(sum(type(thing) is Classifier for thing in gc.get_objects()))
        return load(*arguments)

    gc.collect()
    before = sum(type(thing) is Classifier for thing in gc.get_objects())
    monkeypatch.setattr(engine.training.run, "load_bundle", looking)
    train([*tiny_flags, *TRAINABLE], tmp_path)
    assert alive == [before]
