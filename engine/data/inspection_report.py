"""The report of `engine.data.inspection` as text for a terminal, and as plots."""

from pathlib import Path
from typing import Any

from engine.errors import EnvironmentProblem
from engine.words import counted

_BAR = 40  # columns of the longest bar


def format_report(report: dict[str, Any], width: int = 110) -> str:
    """Counts, what may be wrong, histograms and sample rows; lines of at most `width` columns."""
    lines = [f"{report['name']}: {counted(report['labels'], 'label')}, {report['path']}", ""]
    lines.append(
        f"{'':<8}{'texts':>12}{'repeated':>12}{'no label':>12}{'labels/text':>13}{'most':>8}{'characters':>24}"
    )
    for name, split in report["splits"].items():
        labels, size = split["labels_per_text"], split["characters"]
        characters = f"{size['lowest']:,}-{size['highest']:,}, median {size['median']:,.0f}"
        lines.append(
            f"{name:<8}{split['texts']:>12,}{split['repeated_texts']:>12,}{split['without_labels']:>12,}"
            f"{labels['mean']:>13.1f}{labels['highest']:>8,}  {characters:>22}"
        )
    lines += ["", *_findings(report), ""]
    lines += _bars("labels by how often they occur in training", report["frequency"]["histogram"], "labels")
    train = report["splits"]["train"]
    lines += _bars("training texts by their characters", train["characters"]["histogram"], "texts")
    lines += _bars("training texts by their labels", train["labels_per_text"]["histogram"], "texts")
    lines.append("samples")
    for sample in report["samples"]:
        row = _printable(f"{sample['split']} {sample['uid']}: {sample['text']}")
        more = f" and {sample['more_labels']:,} more" if sample["more_labels"] else ""
        lines.append(_cut(f"  {row}", width))
        lines.append(_cut(f"    -> {_printable('; '.join(sample['labels'])) or 'no label'}", width - len(more)) + more)
    return "\n".join(lines)


def _findings(report: dict[str, Any]) -> list[str]:
    """One line for each thing a person should know."""
    frequency, only = report["frequency"], report["only_in_test"]
    found = [f"labels seen once in training: {_share(frequency['once'], report['labels'])}"]
    most = _printable(", ".join(f"{name} ({count:,})" for name, count in frequency["most_frequent"]))
    found.append(_cut(f"most frequent: {most}", 110))
    if "test" in report["splits"]:
        tested = report["splits"]["test"]["texts"]
        found.append(f"test texts that are training texts too: {_share(report['overlap'], tested)}")
        examples = f", such as {_printable(', '.join(only['examples']))}" if only["examples"] else ""
        found.append(_cut(f"labels only in the test set: {_share(only['labels'], report['labels'])}{examples}", 110))
    else:
        found.append("no test split")
    found.append(f"labels that no text has: {_share(report['nowhere'], report['labels'])}")
    if span := report["propensity"]:
        model = f"A = {span['a']:g}, B = {span['b']:g}"
        found.append(
            f"propensity of the rarest to the most frequent label: {span['lowest']:.2f} to"
            f" {span['highest']:.2f} ({model})"
        )
    return found


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"


def _printable(text: str) -> str:
    """One line that cannot steer the terminal."""
    return "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _range(lowest: int, highest: int) -> str:
    return f"{lowest:,}" if lowest >= highest else f"{lowest:,}-{highest:,}"


def _bars(title: str, histogram: list[list[int]], what: str) -> list[str]:
    """A histogram of horizontal bars. Leading empty bins are left out."""
    first = next((i for i, (_, _, count) in enumerate(histogram) if count), 0)
    longest = max((count for _, _, count in histogram), default=0)
    lines = [title]
    for lowest, highest, count in histogram[first:]:
        bar = "█" * max(round(_BAR * count / longest), 1 if count else 0)
        lines.append(f"  {_range(lowest, highest):>19} {count:>12,} {what}  {bar}".rstrip())
    return [*lines, ""]


def save_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draws the histograms as PNG files in `folder`; returns them. Raises EnvironmentProblem without matplotlib."""
    plots = {"label-frequency": ("occurrences in training", "labels", {"": report["frequency"]["histogram"]})}
    for key, title in (("characters", "characters"), ("labels_per_text", "labels")):
        parts = {name: split[key]["histogram"] for name, split in report["splits"].items()}
        plots[f"text-{key.replace('_', '-')}"] = (title, "texts", parts)
    files = []
    for name, (x_label, y_label, parts) in plots.items():
        files.append(folder / f"{name}.png")
        draw(report["name"], x_label, y_label, parts).savefig(files[-1], dpi=120)
    return files


def draw(title: str, x_label: str, y_label: str, parts: dict[str, list[list[int]]]) -> Any:
    """A matplotlib figure of the histograms `parts`, side by side. Leading empty bins are left out."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem(
            "the plots need matplotlib; `pip install 'fanin[plots]'` brings it, everything else is written"
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, yscale="symlog")
    axes.set_title(title, parse_math=False)  # a name may have dollars in it
    widest = max(parts.values(), key=len)
    first = min(next((i for i, bin in enumerate(bins) if bin[2]), 0) for bins in parts.values())
    for i, (part, histogram) in enumerate(parts.items()):
        positions = [bin + (i - (len(parts) - 1) / 2) * 0.8 / len(parts) for bin in range(first, len(histogram))]
        axes.bar(positions, [count for _, _, count in histogram[first:]], 0.8 / len(parts), label=part)
    ranges = [_range(low, high) for low, high, _ in widest[first:]]
    axes.set_xticks(range(first, len(widest)), ranges, rotation=45, ha="right")
    axes.set_xlim(first - 0.6, len(widest) - 0.4)
    if len(parts) > 1:
        axes.legend()
    return figure
