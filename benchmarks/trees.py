"""Linear trees on TF-IDF, the tools that people use without a GPU, on a dataset directory and with the same metrics.

    pip install omikuji
    python benchmarks/trees.py datasets/mine [--settings parabel bonsai]

omikuji with three trees, as Parabel (Prabhu et al. 2018; its defaults) and as Bonsai (Khandagale et al. 2020), on
unigrams and bigrams that at least two texts have. Prints rows of a table in Markdown: P@k and PSP@k in percent, seconds
of training, peak resident size of this process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from engine.data.store import Dataset
from engine.inference.metrics import Metrics

FEWEST_TEXTS, MOST_WORDS = 2, 1_000_000
BEAM, K = 10, 5


def write_examples(path: Path, words_NV: csr_matrix, labels, n_labels: int) -> None:
    """The text format of the extreme classification repository."""
    with path.open("w") as file:
        file.write(f"{words_NV.shape[0]} {words_NV.shape[1]} {n_labels}\n")
        for row in range(words_NV.shape[0]):
            span = slice(words_NV.indptr[row], words_NV.indptr[row + 1])
            pairs = zip(words_NV.indices[span], words_NV.data[span], strict=True)
            ids = labels.ids[labels.offsets[row] : labels.offsets[row + 1]]
            words = " ".join(f"{word}:{value:.5f}" for word, value in pairs)
            file.write(f"{','.join(map(str, ids))} {words}\n")


def predicted(model, words_NV: csr_matrix) -> np.ndarray:
    """int64 [N, K], best first, -1 where there are fewer."""
    found = np.full((words_NV.shape[0], K), -1, dtype=np.int64)
    for row in range(len(found)):
        span = slice(words_NV.indptr[row], words_NV.indptr[row + 1])
        pairs = [(int(w), float(v)) for w, v in zip(words_NV.indices[span], words_NV.data[span], strict=True)]
        best = [label for label, _ in model.predict(pairs, beam_size=BEAM, top_k=K)]
        found[row, : len(best)] = best
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--settings", nargs="+", choices=("parabel", "bonsai"), default=["parabel", "bonsai"])
    options = parser.parse_args()
    import omikuji

    dataset = Dataset.open(options.dataset)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=FEWEST_TEXTS, max_features=MOST_WORDS, sublinear_tf=True, dtype=np.float32
    )
    train_NV = vectorizer.fit_transform(dataset.train.texts()).tocsr()
    test_NV = vectorizer.transform(dataset.test.texts()).tocsr()
    labels = dataset.test.labels
    print(f"omikuji {version('omikuji')}, {train_NV.shape[1]:,} unigrams and bigrams\n")
    print("| dataset | settings | P@1 | P@3 | P@5 | PSP@1 | PSP@3 | PSP@5 | s | MiB |\n|" + "---|" * 10)
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "train.txt"
        write_examples(examples, train_NV, dataset.train.labels, dataset.n_labels)
        for name in options.settings:
            how = omikuji.Model.default_hyper_param()
            if name == "bonsai":  # the numbers are Annif's
                how.cluster_balanced, how.cluster_k, how.max_depth = False, 100, 3
            started = time.monotonic()
            model = omikuji.Model.train_on_data(str(examples), how)
            seconds = time.monotonic() - started
            metrics = Metrics((1, 3, 5), frequency=dataset.label_frequency(), n_train=len(dataset.train))
            metrics.update(predicted(model, test_NV), labels.offsets, labels.ids)
            found = metrics.result()
            numbers = " | ".join(f"{100 * found[f'{metric}@{k}']:.1f}" for metric in ("P", "PSP") for k in (1, 3, 5))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {options.dataset.name} | {name} | {numbers} | {seconds:,.0f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
