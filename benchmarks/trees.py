"""Linear trees on TF-IDF, the tools that people use without a GPU, on a dataset directory and with the same metrics.

    pip install omikuji libpecos napkinxc
    python benchmarks/trees.py datasets/mine [--settings parabel bonsai xr-linear napkinxc]

omikuji with three trees, as Parabel (Prabhu et al. 2018; its defaults) and as Bonsai (Khandagale et al. 2020);
XR-Linear of PECOS (Yu et al. 2022) and the PLT of napkinXC (Jasinska-Kobus et al. 2020) with one tree, by their
defaults. All on unigrams and bigrams that at least two texts have. Prints rows of a table in Markdown: P@k and PSP@k in
percent, seconds of training, peak resident size of this process so far.

libpecos 1.2 needs numpy below 2, which this project does not want, but works with: an environment of its own for it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from engine.data.label_sets import LabelSets
from engine.data.store import Dataset
from engine.inference.filtering import extra_width, filtered
from engine.inference.metrics import Metrics

FEWEST_TEXTS, MOST_WORDS = 2, 1_000_000
BEAM, K = 10, 5
BLOCK = 4096

Ranker = Callable[[csr_matrix, int], np.ndarray]  # (words, k) → int64 [N, k], best first, -1 where there are fewer
Trainer = Callable[[csr_matrix, LabelSets, int, Path], Ranker]  # (words, labels, number of labels, scratch folder)


def omikuji_trees(bonsai: bool) -> Trainer:
    def train(words_NV: csr_matrix, labels: LabelSets, n_labels: int, folder: Path) -> Ranker:
        import omikuji

        how = omikuji.Model.default_hyper_param()
        if bonsai:  # the numbers are Annif's
            how.cluster_balanced, how.cluster_k, how.max_depth = False, 100, 3
        write_examples(folder / "train.txt", words_NV, labels, n_labels)
        model = omikuji.Model.train_on_data(str(folder / "train.txt"), how)

        def rank(words_NV: csr_matrix, k: int) -> np.ndarray:
            rows = (words_NV[row] for row in range(words_NV.shape[0]))
            pairs = (list(zip(row.indices.tolist(), row.data.tolist(), strict=True)) for row in rows)
            return as_array(([label for label, _ in model.predict(p, beam_size=BEAM, top_k=k)] for p in pairs), k)

        return rank

    return train


def write_examples(path: Path, words_NV: csr_matrix, labels: LabelSets, n_labels: int) -> None:
    """The text format of the extreme classification repository, without the texts that have no word: none is read."""
    rows = np.flatnonzero(np.diff(words_NV.indptr))
    with path.open("w") as file:
        file.write(f"{len(rows)} {words_NV.shape[1]} {n_labels}\n")
        for row in rows:
            span = slice(words_NV.indptr[row], words_NV.indptr[row + 1])
            pairs = zip(words_NV.indices[span], words_NV.data[span], strict=True)
            ids = labels.ids[labels.offsets[row] : labels.offsets[row + 1]]
            words = " ".join(f"{word}:{value:.5f}" for word, value in pairs)
            file.write(f"{','.join(map(str, ids))} {words}\n")


def xr_linear(words_NV: csr_matrix, labels: LabelSets, n_labels: int, folder: Path) -> Ranker:
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    ones = np.ones(len(labels.ids), np.float32)
    labels_NL = csr_matrix((ones, labels.ids, labels.offsets), shape=(words_NV.shape[0], n_labels))
    clusters = Indexer.gen(LabelEmbeddingFactory.create(labels_NL, words_NV, method="pifa"))
    model = XLinearModel.train(words_NV, labels_NL, C=clusters)

    def rank(words_NV: csr_matrix, k: int) -> np.ndarray:
        found = model.predict(words_NV, beam_size=BEAM, only_topk=k)
        spans = (slice(found.indptr[row], found.indptr[row + 1]) for row in range(found.shape[0]))
        return as_array((found.indices[s][np.argsort(-found.data[s], kind="stable")] for s in spans), k)

    return rank


def napkin(words_NV: csr_matrix, labels: LabelSets, n_labels: int, folder: Path) -> Ranker:
    from napkinxc.models import PLT

    model = PLT(str(folder / "plt"))
    spans = zip(labels.offsets[:-1], labels.offsets[1:], strict=True)
    model.fit(words_NV, [labels.ids[first:last].tolist() for first, last in spans])
    return lambda words_NV, k: as_array(model.predict(words_NV, top_k=k), k)


def as_array(rows, k: int) -> np.ndarray:
    """Lists of labels as int64 [N, k], filled up with -1."""
    rows = [list(row)[:k] for row in rows]
    return np.array([row + [-1] * (k - len(row)) for row in rows], dtype=np.int64).reshape(-1, k)


SETTINGS: dict[str, Trainer] = {
    "parabel": omikuji_trees(bonsai=False),
    "bonsai": omikuji_trees(bonsai=True),
    "xr-linear": xr_linear,
    "napkinxc": napkin,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = parser.parse_args()
    dataset = Dataset.open(options.dataset)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=FEWEST_TEXTS, max_features=MOST_WORDS, sublinear_tf=True, dtype=np.float32
    )
    train_NV = vectorizer.fit_transform(dataset.train.texts()).tocsr()
    test_NV = vectorizer.transform(dataset.test.texts()).tocsr()
    train_NV.sort_indices()
    test_NV.sort_indices()
    test, rows = dataset.test, np.arange(test_NV.shape[0])
    wanted = K + extra_width(test.filter, rows)
    print(f"{train_NV.shape[1]:,} unigrams and bigrams\n")
    print("| dataset | settings | P@1 | P@3 | P@5 | PSP@1 | PSP@3 | PSP@5 | s | MiB |\n|" + "---|" * 10)
    for name in options.settings:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            rank = SETTINGS[name](train_NV, dataset.train.labels, dataset.n_labels, Path(folder))
            seconds = time.monotonic() - started
            found = (rank(test_NV[first : first + BLOCK], wanted) for first in range(0, len(rows), BLOCK))
            metrics = Metrics((1, 3, 5), frequency=dataset.label_frequency(), n_train=len(dataset.train))
            metrics.update(np.concatenate(list(filtered(found, test.filter, K))), test.labels.offsets, test.labels.ids)
        values = metrics.result()
        numbers = " | ".join(f"{100 * values[f'{metric}@{k}']:.1f}" for metric in ("P", "PSP") for k in (1, 3, 5))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {options.dataset.name} | {name} | {numbers} | {seconds:,.0f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
