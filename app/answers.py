"""What a model answers: asking it, and its answers, their training texts and the same question in code as HTML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from app.html import escape, note, percent
from app.models import Answer, Models
from app.snippets import snippets
from engine.cli import EXAMPLES
from engine.data.builtin import BUILT_IN, folder_of
from engine.data.lookup import label_name, texts_with
from engine.data.store import Dataset
from engine.errors import ConfigError, DataError
from engine.runs import RunDirectory

MOST_LABELS = 50
LONGEST_TEXT = 20_000
MOST_TEXTS = 5  # of a label
SHOWN_CHARACTERS = 600  # of a training text
EXAMPLE_TEXTS, LONGEST_EXAMPLE, SEARCHED = 3, 160, 200


def ask(models: Models, run_id: str | None, text: str, k: float, threshold: float = 0.0) -> list[Answer]:
    """The k likeliest labels with at least that probability, the likeliest first. Raises EngineError."""
    if not run_id:
        raise ConfigError("choose a run first")
    if not text.strip():
        raise ConfigError("type a text first")
    k = max(1, min(int(k), MOST_LABELS))
    return [a for a in models.predict(run_id, text[:LONGEST_TEXT], k) if a.probability >= threshold]


def by_name(answers: Sequence[Answer]) -> dict[str, float]:
    """Label -> probability; labels of one name are told apart by their numbers."""
    found: dict[str, float] = {}
    for answer in answers:
        name = answer.label if answer.label not in found else f"{answer.label} (no. {answer.label_id})"
        found[name] = answer.probability
    return found


def bars(answers: Sequence[Answer], threshold: float) -> str:
    """A button for each label, as long as it is likely."""
    if not answers:
        return note(f"no label has a probability of {percent(threshold, 0)} or more; lower the threshold")
    rows = "".join(
        f'<li><button type="button" class="answer" data-label="{a.label_id}" aria-pressed="false">'
        f'<span class="label">{escape(a.label)}</span><span class="value">{percent(a.probability)}</span>'
        f'<span class="track"><span style="width:{100 * a.probability:.2f}%"></span></span>'
        f'<span class="frequency">{_frequency(a.train_frequency)}</span></button></li>'
        for a in answers
    )
    hint = note("choose a label to see texts that it was learned from")
    return f'<ol class="answers" aria-label="Likeliest labels">{rows}</ol>{hint}'


# The label of a bar that is pressed goes to the server.
CHOOSE_LABEL = """
element.addEventListener('click', (event) => {
  const bar = event.target.closest('button[data-label]');
  if (!bar) return;
  element.querySelectorAll('button[data-label]').forEach((other) => other.setAttribute('aria-pressed', other === bar));
  trigger('select', {label: Number(bar.dataset.label)});
});
"""


def training_texts(run: RunDirectory, label_id: int) -> tuple[str, list[str]]:
    """(name of the label, at most MOST_TEXTS training texts that have it), from the dataset that the run learned from.

    Raises DataError if that is not there any more, or is another by now.
    """
    path = _data(run)
    try:
        dataset = Dataset.open(folder_of(path))
    except DataError:
        raise DataError(f"the dataset {path}, which this model has learned from, is not there any more") from None
    name = label_name(dataset, label_id)
    if name is None or dataset.n_labels != run.read_json("plan.json").get("labels"):
        raise DataError(f"the dataset {path} has changed since this model learned from it")
    return name, texts_with(dataset.train, label_id, MOST_TEXTS)


def training_list(name: str, texts: Sequence[str]) -> str:
    if not texts:
        return note(f"no training text has the label {name}")
    items = "".join(f"<li>{escape(_short(text))}</li>" for text in texts)
    return f'<h3 class="head">Training texts with the label {escape(name)}</h3><ul class="texts">{items}</ul>'


def example_texts(run: RunDirectory) -> list[str]:
    """Texts to try: questions for a built-in corpus, or else short ones of the test set. None if that is gone."""
    try:
        path = _data(run)
        if path in BUILT_IN:
            return list(EXAMPLES)
        dataset = Dataset.open(folder_of(path))
        found = list((dataset.test or dataset.train).texts(0, SEARCHED))
    except DataError:
        return []
    return ([text for text in found if len(text) <= LONGEST_EXAMPLE] or found)[:EXAMPLE_TEXTS]


def example_buttons(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    buttons = "".join(
        f'<button type="button" class="example" data-example="{i}">{escape(_short(text, LONGEST_EXAMPLE))}</button>'
        for i, text in enumerate(texts)
    )
    return f'<p class="note">Try one of these:</p><div class="examples">{buttons}</div>'


CHOOSE_EXAMPLE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('select', {example: Number(button.dataset.example)});
});
"""


def code(address: str, password: bool, run: Path, text: str, k: int, threshold: float) -> str:
    """The same question from Python, on the command line and over HTTP."""
    login = ', auth=("user", "password")' if password else ""
    python = (
        "from gradio_client import Client\n\n"
        f'client = Client("{address}"{login})\n'
        f"found = client.predict(\n    run={run.name!r},\n    text={text!r},\n    k={k},\n"
        f"    threshold={threshold:g},\n"
        '    api_name="/predict",\n)\nfor label, probability in found.items():\n    print(label, probability)'
    )
    question = json.dumps({"text": text, "k": k, "threshold": threshold}, ensure_ascii=False)
    curl = (
        f"{shlex.join(['engine', 'serve', str(run)])} &\n"
        f"curl http://127.0.0.1:8000/predict -H 'Content-Type: application/json' \\\n  -d {shlex.quote(question)}"
    )
    word = f" {text}" if text.startswith("-") else text  # no option
    command = shlex.join(["engine", "predict", str(run), word, "-k", str(k)])
    titled = [("On the command line", command), ("From Python, while this page is served", python)]
    return snippets([*titled, ("Over HTTP, from a server of its own", curl)])


def _data(run: RunDirectory) -> str:
    """`data.path` of a run."""
    try:
        return run.read_json("config.json")["config"]["data.path"]
    except (KeyError, TypeError):
        raise DataError(f"{run.id} does not say what it has learned from") from None


def _frequency(count: int) -> str:
    return "in no training text" if not count else f"in {count:,} training text{'s' * (count != 1)}"


def _short(text: str, most: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
