"""The report of an evaluation: a table for people, rows for a paper in Markdown or LaTeX, a document for programs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.inference.metrics import BANDS
from engine.words import counted

# What stands side by side in a table of rows; each fits the width of a page with four cut-offs.
FAMILIES = (("P", "R", "nDCG"), ("PSP", "PSnDCG"), ("coverage", "ECE"))


@dataclass(frozen=True)
class Report:
    """metrics: of `Metrics.result()` and `Calibration.errors()` · reliability: of `Calibration.tables()`."""

    dataset: str
    split: str
    metrics: Mapping[str, float | int]
    reliability: Mapping[int, Sequence[Mapping[str, float | int]]]

    def to_json(self) -> dict[str, Any]:
        """Metrics as fractions by name, and beside them what they are of and the reliability tables."""
        return {"dataset": self.dataset, "split": self.split, **self.metrics, "reliability": dict(self.reliability)}


Table = list[list[str]]  # the first row is the head, the first column names the rows


def render(report: Report, format: str, name: str = "this model") -> str:
    """The report as text, in percent. format: table, markdown or latex · name: of the system, in its row."""
    if format == "table":  # a line a metric, which has room for all of them
        every = _metrics(report, [metric for family in FAMILIES for metric in family], "all")
        tables = [[list(column) for column in zip(*every, strict=True)]]
    else:
        tables = [_metrics(report, family, name) for family in FAMILIES]
    deepest = max(report.reliability)
    parts = [_title(report), *tables]
    parts += [f"The {deepest} most probable labels of a text, by their probability", _reliability(report, deepest)]
    if format == "latex":
        return "\n\n".join(_comment(part) if isinstance(part, str) else _latex(part) for part in parts)
    draw = _plain if format == "table" else _markdown
    return "\n\n".join(part if isinstance(part, str) else draw(part) for part in parts)


def _title(report: Report) -> str:
    metrics = report.metrics
    texts = counted(metrics["instances"], "text")
    title = f"{report.split.capitalize()} split of {' '.join(report.dataset.split())}, {texts}"
    if skipped := metrics["instances_without_labels"]:
        title += f"; {skipped:,} without labels {'is' if skipped == 1 else 'are'} left out"
    if "filtered_pairs" in metrics:
        title += f"; reciprocal filter: {counted(metrics['filtered_pairs'], 'pair')} taken out of the predictions"
    return title


def _metrics(report: Report, family: Sequence[str], name: str) -> Table:
    """A row for all labels and one for each band of frequency; a column for each metric and cut-off."""
    found = report.metrics
    cuts = sorted(report.reliability)
    columns = [f"{metric}@{k}" for metric in family for k in cuts]
    rows = [[name, *(_percent(found.get(column)) for column in columns)]]
    rows += [[band, *(_percent(found.get(f"{column}/{band}")) for column in columns)] for band in BANDS]
    return [["in %", *columns], *rows]


def _reliability(report: Report, k: int) -> Table:
    lines = [
        [
            f"{line['from']:.1f} to {line['to']:.1f}",
            f"{line['predictions']:,}",
            _percent(line["mean_probability"]),
            _percent(line["right"]),
        ]
        for line in report.reliability[k]
    ]
    return [["probability", "predictions", "mean in %", "right in %"], *lines]


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _plain(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in table)
    return "\n".join("  ".join(line) for line in lines)


def _markdown(table: Table) -> str:
    head, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([head, "|---|" + "---:|" * (len(table[0]) - 1), *rows])


def _latex(table: Table) -> str:
    head, *rows = (" & ".join(map(_escaped, row)) + r" \\" for row in table)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
    return "\n".join([begin, r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"])


def _escaped(text: str) -> str:
    return re.sub(r"([%&#_$])", r"\\\1", text)


def _comment(text: str) -> str:
    return f"% {text}"
