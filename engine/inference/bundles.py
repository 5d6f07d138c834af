"""Evaluates a saved model on a dataset, wherever either came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.config import RunConfig
from engine.data.builtin import folder_of
from engine.data.store import Dataset, Split
from engine.data.tokens import token_cache
from engine.errors import ConfigError, DataError
from engine.inference.calibration import Calibration
from engine.inference.evaluation import EVALUATION_TOKENS, Ranker
from engine.inference.metrics import Metrics
from engine.inference.predictor import Predictor, probability
from engine.inference.report import Report
from engine.model.features import TokenInputs, by_length
from engine.progress import bar

Keep = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Subject:
    """A model in `path` (a bundle or a run) and the split of a dataset that it is evaluated on.

    data: dataset directory or name; None: the run's own · split: train or test.

    Raises DataError if there is no such split or its labels are not the model's, ConfigError if no dataset is known.
    """

    def __init__(self, path: Path, data: str | None, split: str, device: str) -> None:
        self.path = path
        self.dataset = Dataset.open(folder_of(data or self._setting("data.path")))
        part = self.dataset.test if split == "test" else self.dataset.train
        if part is None:
            raise DataError(f"{self.dataset.path} has no {split} split")
        self.split: Split = part
        self.predictor = Predictor.load(path, device)
        names = self.dataset.label_names()
        labels = self.predictor.bundle.info.shape.labels
        if len(names) != labels or any(names[i] != self.predictor.name(i) for i in _probe(labels)):
            raise DataError(
                f"{self.dataset.path} has other labels than the model in {path}; name the dataset it was trained on"
            )

    def propensity(self) -> tuple[float, float]:
        """A and B of the run, or the defaults for a model that is no run."""
        if not self._config_file.is_file():
            defaults = RunConfig().evaluation
            return defaults.propensity_a, defaults.propensity_b
        return self._setting("evaluation.propensity_a"), self._setting("evaluation.propensity_b")

    def evaluate(self, k: tuple[int, ...], propensity: tuple[float, float], width: int = 0, keep: Keep | None = None):
        """The report for the cut-offs k. propensity: A and B · keep: gets rows, labels and probabilities of each batch,
        `width` labels a row if that is more than the last cut-off; see `engine.inference.evaluation.Found`."""
        dataset, part, bundle = self.dataset, self.split, self.predictor.bundle
        with bar("tokenizing", "texts", len(part)) as shown:
            tokens = token_cache(
                part,
                bundle.tokenizer,
                bundle.info.max_tokens,
                dataset.cache,
                progress=lambda done, total: shown.update(done - shown.n),
            )
        metrics = Metrics(
            k,
            frequency=dataset.label_frequency(),
            n_train=len(dataset.train),
            propensity_a=propensity[0],
            propensity_b=propensity[1],
        )
        calibration = Calibration(k)
        inputs = TokenInputs(tokens, bundle.tokenizer.pad_token_id or 0)
        ranker = Ranker(bundle.model, bundle.classifier, bundle.order, inputs, self.predictor.device, part.filter)
        batches = [np.sort(rows) for rows in by_length(tokens.lengths(), EVALUATION_TOKENS)]
        with bar("evaluating", "texts", len(part)) as shown:
            for found in ranker.best_labels(batches, max(*k, width)):
                truth = part.labels.select(found.rows)
                p_BK = probability(torch.from_numpy(found.logit_BK), bundle.info.loss).numpy()
                metrics.update(found.label_BK, truth.offsets, truth.ids)
                calibration.update(found.label_BK, p_BK, truth)
                if keep:
                    keep(found.rows, found.label_BK, p_BK)
                shown.update(len(found.rows))
        pairs = {} if part.filter is None else {"filtered_pairs": len(part.filter.ids)}
        values = {**metrics.result(), **calibration.errors(), **pairs}
        return Report(dataset.name, part.name, values, calibration.tables())

    @property
    def _config_file(self) -> Path:
        return self.path / "config.json"

    def _setting(self, key: str) -> Any:
        """A value of the run's configuration."""
        if not self._config_file.is_file():
            raise ConfigError(f"{self.path} is no run, so its dataset is unknown; name one with --data")
        return json.loads(self._config_file.read_text(encoding="utf-8"))["config"][key]


def _probe(labels: int) -> list[int]:
    """A thousand label ids, evenly spread."""
    return list(range(0, labels, max(1, labels // 1000)))
