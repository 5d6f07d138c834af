"""Evaluates a saved model on a dataset, wherever either came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from engine.config import Evaluation
from engine.data.builtin import folder_of
from engine.data.store import Dataset
from engine.data.tokens import token_cache
from engine.errors import ConfigError, DataError
from engine.inference.evaluation import EVALUATION_TOKENS, evaluate_rows
from engine.inference.metrics import Metrics
from engine.inference.predictor import Predictor
from engine.model.features import TokenInputs, by_length
from engine.progress import bar


def evaluate_bundle(path: Path, data: str | None, split: str, evaluation: Evaluation, device: str) -> dict[str, float]:
    """Metrics of the model in `path` (a bundle or a run) on a split of the dataset `data`, or of the run's own.

    Raises DataError if the dataset's labels are not the model's, ConfigError if no dataset is known.
    """
    dataset = Dataset.open(Path(data) if data else _dataset_of(path))
    predictor = Predictor.load(path, device)
    bundle = predictor.bundle
    names = dataset.label_names()
    if len(names) != bundle.info.shape.labels or any(names[i] != predictor.name(i) for i in _probe(len(names))):
        raise DataError(f"{dataset.path} has other labels than the model in {path}; name the dataset it was trained on")
    part = dataset.test if split == "test" else dataset.train
    if part is None:
        raise DataError(f"{dataset.path} has no {split} split")
    with bar("tokenizing", "texts", len(part)) as shown:
        tokens = token_cache(
            part,
            bundle.tokenizer,
            bundle.info.max_tokens,
            dataset.cache,
            progress=lambda done, total: shown.update(done - shown.n),
        )
    metrics = Metrics(
        evaluation.k,
        frequency=dataset.label_frequency(),
        n_train=len(dataset.train),
        propensity_a=evaluation.propensity_a,
        propensity_b=evaluation.propensity_b,
    )
    with bar("evaluating", "texts", len(part)) as shown:
        return evaluate_rows(
            bundle.model,
            bundle.classifier,
            bundle.order,
            TokenInputs(tokens, bundle.tokenizer.pad_token_id or 0),
            part.labels,
            [np.sort(rows) for rows in by_length(tokens.lengths(), EVALUATION_TOKENS)],
            metrics,
            device=predictor.device,
            progress=shown.update,
        )


def _dataset_of(path: Path) -> Path:
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is no run, so its dataset is unknown; name one with --data")
    return folder_of(json.loads(file.read_text())["config"]["data.path"])


def _probe(labels: int) -> list[int]:
    """A thousand label ids, evenly spread."""
    return list(range(0, labels, max(1, labels // 1000)))
