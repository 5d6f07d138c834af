"""Plots of a study: what share of the dense layer each setting keeps, and how they learn.

    python benchmarks/accuracy_plots.py benchmarks/results/accuracy-h100.json --output docs

Reads what `benchmarks/accuracy.py` leaves in results.json: corpus, setting, seed, metrics, validation of every cell.
Writes accuracy-share.png and accuracy-epochs.png. Needs matplotlib (`pip install -e '.[plots]'`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

METRICS = ("P@1", "P@3", "P@5", "PSP@5")
COLORS = {"dense": "#444444", "auto": "#1f77b4", "64-features": "#2a9d4a", "32-features": "#d1762b"}
REFERENCE = "dense"


def shares(cells: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    corpora = list(dict.fromkeys(cell["corpus"] for cell in cells))
    settings = [name for name in COLORS if name != REFERENCE]
    figure, axes = plt.subplots(1, len(METRICS), figsize=(12, 3.4), sharey=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, setting in enumerate(settings):
            for row, corpus in enumerate(corpora):
                dense = mean(values(cells, corpus, REFERENCE, metric))
                found = [100 * value / dense for value in values(cells, corpus, setting, metric)]
                if not found:
                    continue
                height = row + (place - 1) * 0.22
                axis.plot(found, [height] * len(found), "o", color=COLORS[setting], markersize=4, alpha=0.6)
                label = setting if row == 0 else None
                axis.plot(mean(found), height, "|", color=COLORS[setting], markersize=13, label=label)
        axis.axvline(100, color=COLORS[REFERENCE], linewidth=0.8)
        axis.set_title(metric, fontsize=10)
        axis.set_xlabel("% of dense", fontsize=9)
        axis.grid(axis="x", linewidth=0.3)
    axes[0].set_yticks(range(len(corpora)), corpora)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="lower left", ncols=len(settings))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)


def epochs(cells: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    corpora = list(dict.fromkeys(cell["corpus"] for cell in cells))
    figure, axes = plt.subplots(1, len(corpora), figsize=(12, 3.2))
    for axis, corpus in zip(axes, corpora, strict=True):
        named = set()
        for cell in cells:
            if cell["corpus"] == corpus:
                curve = [100 * point["P@1"] for point in cell["validation"]]
                setting = cell["setting"]
                label = None if setting in named else setting
                axis.plot(range(1, len(curve) + 1), curve, color=COLORS[setting], linewidth=0.9, label=label)
                named.add(setting)
        found = [100 * point["P@1"] for cell in cells if cell["corpus"] == corpus for point in cell["validation"]]
        axis.set_ylim(max(max(found) - 12, min(found) - 0.5), max(found) + 0.5)
        axis.set_title(corpus, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(linewidth=0.3)
    axes[0].set_ylabel("P@1 on validation texts, %", fontsize=9)
    axes[0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def values(cells: list[dict], corpus: str, setting: str, metric: str) -> list[float]:
    return [cell["metrics"][metric] for cell in cells if (cell["corpus"], cell["setting"]) == (corpus, setting)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    cells = [cell for cell in json.loads(options.results.read_text())["cells"] if cell["setting"] in COLORS]
    shares(cells, options.output / "accuracy-share.png")
    epochs(cells, options.output / "accuracy-epochs.png")


if __name__ == "__main__":
    main()
