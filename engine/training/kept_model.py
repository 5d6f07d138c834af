"""Which model of a training is kept: the best on the validation texts, and of equal ones the last, which saw most.

The mean of P@k over the cut-offs decides: by P@1 alone a model could be kept whose other labels are half learned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from engine.runs import RunDirectory
from engine.words import counted

DIGITS = 9  # of a metric; what differs less does so by the order of a sum


def score_of(metrics: Mapping[str, float]) -> list[float]:
    """What models are compared by, the first that differs deciding: mean P@k, P at each cut-off, then nDCG at each.
    Empty without any."""
    found = [re.fullmatch(r"(P|nDCG)@(\d+)", name) for name in metrics]
    keys = sorted((match[1] != "P", int(match[2]), match[0]) for match in found if match)
    values = [0.0 if math.isnan(metrics[key]) else metrics[key] for _, _, key in keys]
    return with_mean([round(value, DIGITS) for value in values])


def with_mean(values: list[float]) -> list[float]:
    """values: P at each cut-off, then nDCG at each · returned behind the mean of the former."""
    cut_offs = len(values) // 2
    return [round(sum(values[:cut_offs]) / cut_offs, DIGITS), *values] if cut_offs else []


def kept_line(run: RunDirectory) -> str | None:
    """In words, for people: of which step the model of the run is, and why; None before the first evaluation."""
    kept = None
    for event in run.events({"eval"}):
        if event.get("best"):
            kept = event
    if kept is None:
        return None
    line = f"the model of step {kept['step']:,} (epoch {kept['epoch'] + 1})"
    metrics = kept["metrics"]
    if not metrics:
        return f"{line}, the last: there are no validation texts to choose by"
    found = ", ".join(f"{name} {value:.1%}" for name, value in metrics.items() if re.fullmatch(r"P@\d+", name))
    why = "the last of those equally good" if kept.get("tie") else "the best"
    return f"{line}, {why} on {counted(metrics['instances'], 'validation text')}: {found}"
