"""The settings of a new training as a page shows them: an empty field leaves the choice to the profile."""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from typing import Any

from engine.config import KEYS, RunConfig, load_profile, profile_names, resolve
from engine.errors import ConfigError

MAIN = (
    "training.epochs", "classifier.fan_in", "training.batch_size", "encoder.trainable", "data.max_tokens",
    "encoder.name",
)  # fmt: skip
HIDDEN = ("run.output", "run.name", "data.path")  # chosen otherwise
PAGE = "the page"  # as the origin of a value
SECTIONS = {
    "run": "Run",
    "data": "Data",
    "encoder": "Encoder: the network that reads the texts",
    "intermediate": "A layer between encoder and classifier",
    "classifier": "Classifier: the last layer, with the labels",
    "rewire": "Rewiring: how the sparse pattern changes",
    "auxiliary": "Auxiliary objective: groups of labels as a first target",
    "training": "Training",
    "evaluation": "Evaluation",
    "hardware": "Hardware",
    "checkpoint": "Checkpoints",
}
TITLES = {
    "training.epochs": "Epochs",
    "classifier.fan_in": "Fan-in",
    "training.batch_size": "Batch size",
    "encoder.trainable": "Train the encoder",
    "encoder.name": "Encoder",
    "data.max_tokens": "Longest text, in tokens",
}
WORDS = {
    "training.epochs": "how often every text is seen",
    "classifier.fan_in": "features that each label reads; more is more accurate and takes more memory; auto: what fits",
    "training.batch_size": "texts a step",
    "encoder.trainable": "all: better, needs a graphics card; none: texts are encoded once, fast on a processor",
    "encoder.name": "a folder with a Hugging Face model, or the name of one",
    "data.max_tokens": "a token is about three quarters of a word; longer texts are cut",
}


@dataclass(frozen=True)
class Setting:
    """One key of the configuration. options: what it can be, empty for free text."""

    key: str
    title: str
    words: str
    options: tuple[str, ...]

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]


def settings() -> list[Setting]:
    """All that a page offers, those of MAIN first."""
    names = [*MAIN, *(key for key in KEYS if key not in MAIN + HIDDEN)]
    return [Setting(key, _title(key), WORDS.get(key, KEYS[key].metadata["doc"]), _options(key)) for key in names]


def profile_choices(here: str | None) -> list[tuple[str, str]]:
    """(text, value) of the memory profiles; here: that of this machine, None while it is not known."""
    return [(f"this machine ({here})" if here else "this machine (still looking at it)", "auto")] + [
        (name, name) for name in profile_names()
    ]


def shown(value: Any) -> str:
    """A value of the configuration as a person would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def defaults(profile: str) -> dict[str, str]:
    """What an empty field means with that profile."""
    config, _ = resolve(profile, {}, {})
    return {key: shown(value) for key, value in config.flat().items()}


def problem(profile: str, key: str, text: str) -> str:
    """What is wrong with one value on its own; nothing if it can be."""
    if not text.strip():
        return ""
    try:
        RunConfig.from_flat({**load_profile(profile), key: text.strip()})
    except ConfigError as error:
        return str(error).removeprefix(f"{key} = ")
    return ""


def in_words(text: str) -> str:
    """A sentence of the engine with the titles of settings for their keys; `key=value`, to be typed, stays."""
    return _KEY.sub(lambda found: f"“{_title(found[0])}”", text)


def configuration(
    profile: str, given: dict[str, str], always: dict[str, Any]
) -> tuple[RunConfig, dict[str, str], dict[str, str]]:
    """(configuration, origins, what was given). given: text by key, empty for the profile's choice · always: values
    that no profile changes. Raises ConfigError for what cannot work together.
    """
    filled = {key: text.strip() for key, text in given.items() if text and text.strip()}
    flags = {key: (value, PAGE) for key, value in (filled | always).items()}
    config, origins = resolve(profile, {}, flags)
    return config, origins, filled


def command(profile: str, given: dict[str, str], always: dict[str, Any]) -> str:
    """The command line that does the same."""
    import shlex

    flags = {"data.path": "--data", "run.name": "--name", "run.output": "--output"}
    words = ["engine", "train", *(["--profile", profile] if profile else [])]
    for key, value in always.items():
        words += [flags[key], str(value)] if key in flags else ["--set", f"{key}={shown(value)}"]
    for key, value in given.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _title(key: str) -> str:
    return TITLES.get(key) or key.partition(".")[2].replace("_", " ").capitalize()


_KEY = re.compile(rf"(?<![\w./])(?:{'|'.join(map(re.escape, KEYS))})(?![\w=])")


def _options(key: str) -> tuple[str, ...]:
    """The words that a key can be, if it can be nothing else."""
    section, _, name = key.partition(".")
    hint = typing.get_type_hints(typing.get_type_hints(RunConfig)[section])[name]
    if hint is bool:
        return ("true", "false")
    if typing.get_origin(hint) is typing.Literal:
        return tuple(map(str, typing.get_args(hint)))
    return ()
