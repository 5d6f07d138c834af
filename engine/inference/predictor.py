"""Asks a trained model for the labels of texts.

    predictor = Predictor.load("runs/20260101-120000-mine")
    for prediction in predictor.predict(["open a file in append mode"], k=5)[0]:
        print(prediction.label, prediction.probability)

`stream` does the same for any number of texts in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from engine.errors import DataError
from engine.inference.evaluation import top_labels
from engine.kernels.dispatch import resolve_backend
from engine.model.bundle import Bundle, load_bundle
from engine.planning.hardware import detect

WINDOW = 1024  # texts held at once, sorted by length among themselves
BATCH_TOKENS = 8192
# On a processor, products in 16 bits leave code in memory for every number of tokens in a batch: fewer numbers.
TOKENS_MULTIPLE = 8
LABELS_AT_ONCE = 1 << 18  # searched for a prefix
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Prediction:
    """A label of a text, with the probability that the text has it."""

    label: str
    probability: float
    label_id: int


class Predictor:
    """A loaded model. Not for use from several threads at once."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        import pyarrow.parquet as pq

        self.bundle, self.device = bundle, device
        self._names = pq.read_table(bundle.path / "labels.parquet", columns=["name"])["name"]

    @classmethod
    def load(cls, path: Path | str, device: str = "auto") -> Predictor:
        """The model in `path`: a bundle, or a run that has one. device: auto, cpu or cuda.

        Raises DataError if there is no model, EnvironmentProblem if the device is not there.
        """
        hardware = detect(device)
        backend, _ = resolve_backend("auto", hardware.device)
        bundle = load_bundle(model_folder(path), hardware.device, DTYPES[hardware.compute], backend)
        return cls(bundle, hardware.device)

    def predict(self, texts: list[str], k: int = 5) -> list[list[Prediction]]:
        """The k most probable labels of each text, best first. Raises DataError for an empty text."""
        return list(self.stream(texts, k))

    def stream(self, texts: Iterable[str], k: int = 5, window: int = WINDOW) -> Iterator[list[Prediction]]:
        """Like `predict`, one text's labels at a time in the order of the texts, `window` texts in memory.

        Texts before a bad one are predicted before its DataError is raised.
        """
        pending, number = iter(texts), 0
        while True:
            held, problem = [], None
            try:
                for text in islice(pending, window):
                    number += 1
                    if not text.strip():
                        raise DataError(f"text {number} is empty; there is nothing to predict from")
                    held.append(text)
            except DataError as error:
                problem = error
            if held:
                yield from self._predict_window(held, k)
            if problem:
                raise problem
            if not held:
                return

    def _predict_window(self, texts: list[str], k: int) -> list[list[Prediction]]:
        tokenizer, info = self.bundle.tokenizer, self.bundle.info
        ids = tokenizer(texts, truncation=True, max_length=info.max_tokens, return_attention_mask=False)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: -len(ids[i]))
        found: list[list[Prediction]] = [[]] * len(texts)
        start = 0
        while start < len(order):
            size = max(1, BATCH_TOKENS // len(ids[order[start]]))
            rows = order[start : start + size]
            for row, predictions in zip(rows, self._predict_tokens([ids[row] for row in rows], k), strict=True):
                found[row] = predictions
            start += size
        return found

    @torch.inference_mode()
    def _predict_tokens(self, ids: list[list[int]], k: int) -> list[list[Prediction]]:
        longest = -(-max(map(len, ids)) // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
        batch = self.bundle.tokenizer.pad(
            {"input_ids": ids},
            padding="max_length",
            max_length=min(longest, self.bundle.info.max_tokens),
            return_tensors="pt",
        ).to(self.device)
        inputs = (batch["input_ids"], batch["attention_mask"])
        logits_BK, position_BK = top_labels(self.bundle.model, self.bundle.classifier, inputs, k)
        probability_BK = probability(logits_BK, self.bundle.info.loss).cpu().numpy()
        label_BK = self.bundle.order.label_at[position_BK.cpu().numpy()]
        return [
            [Prediction(self.name(label), float(p), int(label)) for label, p in zip(labels, row, strict=True)]
            for labels, row in zip(label_BK, probability_BK, strict=True)
        ]

    @property
    def labels(self) -> int:
        """How many labels the model has."""
        return len(self._names)

    def find_labels(self, prefix: str, first: int, count: int) -> list[tuple[int, str]]:
        """(id, name) of the first `count` labels from id `first` on whose names begin with `prefix`.

        Safe from any thread. Looks no further than it has to.
        """
        import pyarrow.compute as pc

        found: list[tuple[int, str]] = []
        for start in range(first, len(self._names), LABELS_AT_ONCE):
            names = self._names.slice(start, LABELS_AT_ONCE)
            if prefix:
                at = pc.indices_nonzero(pc.starts_with(names, prefix))[: count - len(found)]
                found += zip((at.to_numpy() + start).tolist(), names.take(at).to_pylist(), strict=True)
            else:
                found += enumerate(names.slice(0, count - len(found)).to_pylist(), start)
            if len(found) == count:
                break
        return found

    def name(self, label_id: int | np.integer) -> str:
        """The name of a label."""
        return self._names[int(label_id)].as_py()

    def train_frequency(self, label_id: int) -> int:
        """How many training texts had a label."""
        return self._frequencies[label_id].as_py()

    @cached_property
    def _frequencies(self):
        import pyarrow.parquet as pq

        return pq.read_table(self.bundle.path / "labels.parquet", columns=["train_frequency"])["train_frequency"]


def probability(logits: torch.Tensor, loss: str) -> torch.Tensor:
    """bce: the logistic function. Squared hinge: its minimiser is 2p - 1, so p = (z + 1) / 2 within [0, 1]
    (Zhang, Annals of Statistics 2004)."""
    return logits.sigmoid() if loss == "bce" else ((logits + 1) / 2).clamp(0, 1)


def model_folder(path: Path | str) -> Path:
    """The bundle in `path`, or in the run `path`. Raises DataError."""
    path = Path(path)
    if (path / "model.json").is_file():
        return path
    for folder in (path / "model", path / "model.old"):  # the latter while a training replaces it, or died doing so
        if (folder / "model.json").is_file():
            return folder
    if (path / "status.json").is_file():
        raise DataError(f"run {path} has no model yet; one is kept after the first evaluation on validation")
    raise DataError(f"{path} is neither a model nor a run; `engine runs list` shows the runs there are")
