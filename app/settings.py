"""The settings of a new training as a page shows them: an empty field leaves the choice to the profile."""

from __future__ import annotations

import re
import types
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
    "adapter": "Adapter: a small layer behind an encoder that is not trained",
    "classifier": "Classifier: the last layer, with the labels",
    "words": "Words of the text that a label reads beside its features",
    "local": "Local features: directions of a cluster of labels",
    "rewire": "Rewiring: how the sparse pattern changes",
    "auxiliary": "Auxiliary objective: groups of labels as a first target",
    "training": "Training",
    "evaluation": "Evaluation",
    "hardware": "Hardware",
    "checkpoint": "Checkpoints",
}
TITLES = {
    "run.seed": "Seed",
    "data.max_tokens": "Longest text, in tokens",
    "data.validation_fraction": "Share held back for validation",
    "data.augment_with_labels": "Learn from the texts of labels",
    "encoder.name": "Encoder",
    "encoder.pooling": "From words to a text",
    "encoder.trainable": "Train the encoder",
    "encoder.optimizer": "Optimizer",
    "encoder.learning_rate": "Learning rate",
    "encoder.weight_decay": "Pull of weights to zero",
    "encoder.clip_norm": "Largest gradient",
    "encoder.dropout": "Features hidden at random",
    "encoder.checkpointing": "Compute activations again",
    "encoder.optimizer_in_backward": "Update part by part",
    "encoder.compile": "Compile the encoder",
    "encoder.cuda_graphs": "Record the encoder's pass",
    "intermediate.width": "Features of the layer",
    "intermediate.learning_rate": "Learning rate",
    "adapter.width": "Size",
    "adapter.learning_rate": "Learning rate",
    "classifier.fan_in": "Fan-in",
    "classifier.group_size": "Labels in a group",
    "classifier.head_fraction": "Share of head labels",
    "classifier.loss": "Loss",
    "classifier.optimizer": "Optimizer",
    "classifier.learning_rate": "Learning rate",
    "classifier.beta2": "Memory of the optimizer (beta 2)",
    "classifier.weight_decay": "Pull of weights to zero",
    "classifier.weight_dtype": "Format of the weights",
    "classifier.backend": "Computed by",
    "classifier.allow_lower_fan_in": "Lower fan-in when memory runs out",
    "words.fan_in": "Words a label reads",
    "words.pairs": "Pairs among the words",
    "words.lead_labels": "Labels that read every word",
    "words.learning_rate": "Learning rate",
    "words.dropout": "Texts without words",
    "local.clusters": "Clusters with features of their own",
    "local.learning_rate": "Learning rate",
    "rewire.method": "How new connections are found",
    "rewire.interval": "Steps from one to the next",
    "rewire.fraction": "Share of connections replaced",
    "rewire.stop_at": "Ends after this share of the training",
    "auxiliary.weight": "Weight at the start",
    "auxiliary.meta_labels": "Number of groups",
    "auxiliary.stop_at": "Ends after this share of the training",
    "training.epochs": "Epochs",
    "training.max_steps": "Most steps",
    "training.batch_size": "Batch size",
    "training.micro_batch": "Texts at once (micro-batch)",
    "training.warmup_steps": "Steps of warming up",
    "training.deterministic": "Same bits every time",
    "evaluation.k": "Best labels that are scored",
    "evaluation.every_epochs": "Epochs from one validation to the next",
    "evaluation.patience": "Patience",
    "evaluation.propensity_a": "Propensity A",
    "evaluation.propensity_b": "Propensity B",
    "evaluation.baselines": "Compare with simple methods",
    "hardware.device": "Device",
    "hardware.memory_gib": "Memory to plan for, in GiB",
    "hardware.reserve_gib": "Memory left to other programs, in GiB",
    "checkpoint.every_minutes": "Minutes from one to the next",
    "checkpoint.keep": "Checkpoints kept",
}
WORDS = {
    "run.seed": "every random choice follows from this number",
    "data.max_tokens": "a token is about three quarters of a word; longer texts are cut",
    "data.validation_fraction": "of the training texts; the model that does best on them is kept; 10,000 at most",
    "data.augment_with_labels": "a label's own text is a training text, too; auto: where few, or like your texts",
    "encoder.name": "the name of a Hugging Face model; of your own, that of its folder among the encoders",
    "encoder.pooling": "mean: the average of what is known of its words; cls: what the encoder says of the whole",
    "encoder.trainable": "yes: better, needs a graphics card; no: texts are encoded once, fast on a processor",
    "encoder.optimizer": "what moves the weights; adamw8bit takes about a quarter of the memory of adamw",
    "encoder.learning_rate": "how far one step may move the weights; it rises to this and falls again",
    "encoder.weight_decay": "keeps weights from growing, so that texts are not learned by heart; 0: none",
    "encoder.clip_norm": "steps that would go further are shortened, against jumps; 0: no limit",
    "encoder.dropout": "this share of them, in training only, so that labels do not rely on a few",
    "encoder.checkpointing": "less memory, slower; off, every_1: all layers, every_2: half; auto: as memory asks for",
    "encoder.optimizer_in_backward": "each matrix as soon as its gradient is there: less memory",
    "encoder.compile": "a slow start, then faster steps on a graphics card",
    "encoder.cuda_graphs": "a graphics card starts it as a whole: short texts train several times as fast",
    "intermediate.width": "it stands before the classifier and can give it more features; 0: no such layer",
    "intermediate.learning_rate": "how far one step may move the weights of this layer",
    "adapter.width": "numbers between its two layers; auto: four a feature if the encoder stays as it is; 0: none",
    "adapter.learning_rate": "how far one step may move the weights of this layer",
    "classifier.fan_in": "features that each label reads; more is more accurate and takes more memory; auto: what fits",
    "classifier.group_size": "they read the same features; more is faster, 1: every label has its own; or auto",
    "classifier.head_fraction": "the most frequent, which read every feature; auto: 0.05, less where memory is short",
    "classifier.loss": "what counts as wrong; bce: probabilities that are off; squared_hinge: labels on the wrong side",
    "classifier.optimizer": "what moves the weights; rowwise remembers a number a label, sgd nothing, adamw8bit most",
    "classifier.learning_rate": "how far a step may move the weights of a label with 64 features; auto: at most 0.006",
    "classifier.beta2": "the closer to 1, the longer it remembers how large gradients were",
    "classifier.weight_decay": "keeps weights from growing, so that texts are not learned by heart; 0: none",
    "classifier.weight_dtype": "fewer bits take less memory; auto: what the device computes best",
    "classifier.backend": "triton: programs for graphics cards; torch: runs everywhere; auto: the faster of what works",
    "classifier.allow_lower_fan_in": "otherwise the training ends there, with advice",
    "words.fan_in": "exact words, which the encoder blurs; auto: 256, where labels are few 1,024; 0: none",
    "words.pairs": "neighbouring pieces that count as a word; auto: 32,768 where the encoder stays as it is",
    "words.lead_labels": "of the most frequent labels; auto: 64 where the encoder stays as it is",
    "words.learning_rate": "how far one step may move the weights of a label with 256 words; less with more",
    "words.dropout": "share of a step's texts, less as rates fall; auto: up to 0.3 if the encoder is trained, else 0",
    "local.clusters": "in which their labels differ most; auto: 256, few labels fewer; 0: none",
    "local.learning_rate": "how far one step may move these directions",
    "rewire.method": "set: at random; rigl: where they would help most now; none: connections stay as they are",
    "rewire.interval": "each time, the weakest connections of a label make room for new ones",
    "rewire.fraction": "at first; later ever fewer",
    "rewire.stop_at": "then the connections stay as they are; 1: never",
    "auxiliary.weight": "how much it counts beside the labels; auto: 0.3 from 90 % sparse on, otherwise 0",
    "auxiliary.meta_labels": "of similar labels, told apart before the labels are; or auto",
    "auxiliary.stop_at": "from there on only the labels count",
    "training.epochs": "how often every text is seen",
    "training.max_steps": "the training ends after them, whatever the epochs; 0: no limit",
    "training.batch_size": "texts a step",
    "training.micro_batch": "fewer take less memory and change no result; or auto",
    "training.warmup_steps": "until then, steps grow longer",
    "training.deterministic": "the same settings give exactly the same model; slower on a graphics card",
    "evaluation.k": "1,3,5: P@1, P@3 and P@5, the share of right ones among the first, three and five best",
    "evaluation.every_epochs": "a validation takes time; it says which model is the best so far",
    "evaluation.patience": "the training ends after so many validations without a better model; 0: never",
    "evaluation.propensity_a": "of PSP@k, a score in which rare labels count more; Amazon 0.6, Wikipedia 0.5",
    "evaluation.propensity_b": "of PSP@k as well; Amazon 2.6, Wikipedia 0.4",
    "evaluation.baselines": "the most frequent labels, and those of similar texts; up to 100,000 training texts",
    "hardware.device": "cuda: the graphics card; cpu: the processor; auto: the card if there is one",
    "hardware.memory_gib": "auto: what is free",
    "hardware.reserve_gib": "the screen, the browser, and whatever else runs meanwhile",
    "checkpoint.every_minutes": "a crash loses what came after the last one",
    "checkpoint.keep": "of those saved while training; older ones are deleted",
}
YES_NO = {"true": "yes", "false": "no", "all": "yes", "none": "no"}


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

    def choices(self, usual: str) -> list[tuple[str, str]]:
        """(text, value) of what it can be. usual: the choice of the profile, which stands for an empty value."""
        names = YES_NO if set(self.options) <= {*YES_NO, "auto"} else {}
        said = [(names.get(option, option), option) for option in self.options]
        return [(f"as the profile says ({names.get(usual, usual)})", ""), *said]


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


def named(key: str) -> str:
    """A key of the configuration behind its title."""
    return f"{'Dataset' if key == 'data.path' else _title(key)} ({key})"


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
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words: list[str] = []
    for kind in kinds:
        if kind is bool:
            words += ["true", "false"]
        elif typing.get_origin(kind) is typing.Literal:
            words += map(str, typing.get_args(kind))
        else:
            return ()
    return tuple(words)
