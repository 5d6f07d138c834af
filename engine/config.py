"""The one configuration of a run: a frozen tree of dataclasses, and how profiles and overrides make one.

Keys are written `section.key`, the same in TOML profiles, `--set`, the command line's help and
`config.json`. Precedence: built-in defaults < profile < `--set` < explicit flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from engine.errors import ConfigError

Auto = Literal["auto"]


def key(default: Any, doc: str, *, at_least: float | None = None, at_most: float | None = None) -> Any:
    """A documented field; the bounds are inclusive and hold for numbers only."""
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Run:
    seed: int = key(0, "every random choice of the run follows from it", at_least=0)
    output: str = key("runs", "folder in which the run's own folder is made")
    name: str = key("", "part of the run's id; empty: the dataset's name")


@dataclass(frozen=True)
class Data:
    path: str = key("python-api", "dataset directory, or a built-in corpus: python-api, python-stdlib")
    max_tokens: int = key(96, "longer texts are cut here", at_least=4, at_most=8192)
    validation_fraction: float = key(
        0.05, "share of train held out to choose the best model (at most 10,000 instances)", at_least=0.0, at_most=0.5
    )
    augment_with_labels: bool | Auto = key(
        "auto",
        "train on the text of every label that has one as well, with that label alone; auto: where they add at most "
        "half to the training texts, or are texts like these (there are reciprocal filters)",
    )


@dataclass(frozen=True)
class Encoder:
    name: str = key("sentence-transformers/all-MiniLM-L6-v2", "local directory or model name")
    pooling: Literal["mean", "cls"] = key("mean", "how token vectors become one feature vector")
    trainable: Literal["all", "none"] = key("all", "none: features are computed once and cached on disk")
    optimizer: Literal["adamw8bit", "adamw"] = key("adamw8bit", "for encoder, intermediate layer and local features")
    learning_rate: float = key(1e-4, "peak learning rate of the encoder", at_least=0.0)
    weight_decay: float = key(0.01, "decoupled weight decay of the encoder", at_least=0.0)
    clip_norm: float = key(1.0, "gradient clipping below the classifier; 0: none", at_least=0.0)
    dropout: float = key(0.05, "dropout on the features that the classifier reads", at_least=0.0, at_most=0.95)
    checkpointing: str = key("auto", "activation checkpointing: auto, off, or every_n (every n-th layer)")
    optimizer_in_backward: bool | Auto = key(
        "auto", "update each matrix as soon as its gradient is there: less memory, clipped one by one"
    )
    compile: bool = key(False, "compile the encoder (torch.compile): a slow start, then faster steps")
    cuda_graphs: Literal["auto", "off"] = key(
        "auto", "record the encoder's pass as CUDA graphs: short texts train several times as fast, with more memory"
    )


@dataclass(frozen=True)
class Intermediate:
    width: int = key(0, "width of a Linear + ReLU layer before the classifier; 0: none", at_least=0)
    learning_rate: float = key(1e-3, "peak learning rate of that layer", at_least=0.0)


@dataclass(frozen=True)
class Adapter:
    width: int | Auto = key(
        "auto",
        "hidden width of a residual layer, x + Linear(GELU(Linear(x))), trained on a frozen encoder's features; "
        "auto: four times their number, where neither encoder nor intermediate layer is trained; 0: none",
        at_least=0,
    )
    learning_rate: float = key(5e-4, "peak learning rate of that layer", at_least=0.0)


@dataclass(frozen=True)
class Classifier:
    fan_in: int | Literal["auto", "dense"] = key(
        "auto",
        "features that one label reads; auto: up to half of them, as memory allows, and all where labels are few",
        at_least=1,
    )
    group_size: int | Auto = key(
        "auto",
        "labels that share one set of features; auto: 16, where labels are many or the encoder is frozen 32, where "
        "memory is short 64",
        at_least=1,
        at_most=1024,
    )
    head_fraction: float | Auto = key(
        "auto",
        "share of the labels, the most frequent, kept dense; auto: 0.05, less where memory is short",
        at_least=0.0,
        at_most=1.0,
    )
    loss: Literal["bce", "squared_hinge"] = key("bce", "binary cross-entropy or squared hinge, summed over labels")
    optimizer: Literal["rowwise", "sgd", "adamw8bit"] = key("rowwise", "update rule of the classifier")
    learning_rate: float | Auto = key(
        "auto",
        "peak learning rate of a label that reads 64 features; it falls with the root of their number; auto: 0.003; "
        "where labels read words, the root of 4 / epochs times that from 4 epochs on, at least 0.003 * 1,500 / steps; "
        "where labels read a quarter of the features or fewer and nothing else, 0.006",
        at_least=0.0,
    )
    beta2: float = key(0.999, "decay of the second moment", at_least=0.0, at_most=0.999999)
    weight_decay: float = key(0.0, "decoupled weight decay of the classifier", at_least=0.0)
    weight_dtype: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = key("auto", "storage type of the weights")
    backend: Literal["auto", "torch", "triton"] = key("auto", "what computes the classifier step")
    allow_lower_fan_in: bool = key(False, "a run that keeps running out of memory may lower its fan-in")


@dataclass(frozen=True)
class Words:
    fan_in: int | Auto = key(
        "auto",
        "words (pieces of the tokenizer's vocabulary) that a label reads beside its features, head labels four times "
        "as many, with a frozen encoder up to 4,096; auto: 256, with a frozen encoder and few labels 1,024, less where "
        "memory is short; 0: none",
        at_least=0,
    )
    pairs: int | Auto = key(
        "auto",
        "pairs of neighbouring pieces, the most frequent, that are words, too, for labels that read at least 1,024; "
        "auto: 32,768 where the encoder is frozen, else none",
        at_least=0,
    )
    lead_labels: int | Auto = key(
        "auto",
        "how many of the head labels, the most frequent ones, read every word; auto: 64 where the encoder is frozen, "
        "else none",
        at_least=0,
    )
    learning_rate: float = key(
        1.5e-2,
        "peak learning rate of a label that reads 256 words; it falls with their number, for head labels of a frozen "
        "encoder to a half at the most, and not at all for labels that read every word",
        at_least=0.0,
    )
    dropout: float | Auto = key(
        "auto",
        "share of the texts of a batch that come without words, at the peak of the learning rates, which it follows; "
        "auto: 0.1 for every epoch after the first, at most 0.3, where the encoder is trained, else 0",
        at_least=0.0,
        at_most=0.95,
    )


@dataclass(frozen=True)
class Local:
    clusters: int | Auto = key(
        "auto",
        "clusters of neighbouring labels with features of their own, directions in which their labels differ; a label "
        "reads up to 64 such features; auto: 256, less for few labels, where the encoder is trained and labels read at "
        "most half of the features; 0: none",
        at_least=0,
        at_most=1024,
    )
    learning_rate: float = key(1e-4, "peak learning rate of these directions", at_least=0.0)


@dataclass(frozen=True)
class Rewire:
    method: Literal["set", "rigl", "none"] = key(
        "set", "grow connections at random, by gradient, or never; those to features of clusters are trained and stay"
    )
    interval: int = key(100, "steps between two rewirings", at_least=1)
    fraction: float = key(0.2, "share of connections replaced at first, cosine-decayed", at_least=0.0, at_most=1.0)
    stop_at: float = key(2 / 3, "no rewiring after this share of training", at_least=0.0, at_most=1.0)


@dataclass(frozen=True)
class Auxiliary:
    weight: float | Auto = key(
        "auto",
        "first weight of the meta-label loss; auto: 0.3 from 90 % sparsity, else 0",
        at_least=0.0,
        at_most=1.0,
    )
    meta_labels: int | Auto = key("auto", "number of meta-labels", at_least=2)
    stop_at: float = key(0.5, "share of training at which its weight reaches 0", at_least=0.0, at_most=1.0)


@dataclass(frozen=True)
class Training:
    epochs: int = key(10, "passes over the training set", at_least=1)
    max_steps: int = key(0, "stop after this many steps; 0: no limit", at_least=0)
    batch_size: int = key(128, "instances a step", at_least=1)
    micro_batch: int | Auto = key("auto", "instances the encoder sees at once; never changes the result", at_least=1)
    warmup_steps: int = key(200, "steps until the learning rates peak", at_least=0)
    deterministic: bool = key(False, "same bits on every run, on the GPU too")


@dataclass(frozen=True)
class Evaluation:
    k: tuple[int, ...] = key((1, 3, 5), "cut-offs of the metrics", at_least=1, at_most=1000)
    every_epochs: int = key(1, "epochs between two evaluations on validation", at_least=1)
    patience: int = key(0, "stop after this many evaluations without a better model; 0: never", at_least=0)
    propensity_a: float = key(0.55, "propensity model's A (Amazon 0.6, Wikipedia 0.5)")
    propensity_b: float = key(1.5, "propensity model's B (Amazon 2.6, Wikipedia 0.4)", at_least=0.0)
    baselines: bool = key(True, "compare with simple baselines on test sets up to 100,000 training texts")


@dataclass(frozen=True)
class Hardware:
    device: Literal["auto", "cpu", "cuda"] = key("auto", "where to train")
    memory_gib: float | Auto = key("auto", "memory to plan for, GiB; auto: what is free", at_least=0.1)
    reserve_gib: float = key(0.5, "memory left to other programs, GiB", at_least=0.0)


@dataclass(frozen=True)
class Checkpoint:
    every_minutes: float = key(10.0, "minutes between two checkpoints", at_least=0.0)
    keep: int = key(2, "checkpoints kept", at_least=2)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run does. Raises ConfigError for values that cannot work."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    intermediate: Intermediate = field(default_factory=Intermediate)
    adapter: Adapter = field(default_factory=Adapter)
    classifier: Classifier = field(default_factory=Classifier)
    words: Words = field(default_factory=Words)
    local: Local = field(default_factory=Local)
    rewire: Rewire = field(default_factory=Rewire)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    hardware: Hardware = field(default_factory=Hardware)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        for name, spec in KEYS.items():
            _check_bounds(name, self[name], spec.metadata)
        checkpointing_interval(self.encoder.checkpointing)
        if not self.evaluation.k or list(self.evaluation.k) != sorted(set(self.evaluation.k)):
            raise ConfigError(f"evaluation.k = {list(self.evaluation.k)} must be ascending, such as 1,3,5")
        micro = self.training.micro_batch
        if micro != "auto" and micro > self.training.batch_size:
            raise ConfigError(
                f"training.micro_batch = {micro} exceeds training.batch_size = {self.training.batch_size}; "
                "a step is made of micro-batches"
            )
        if self.encoder.optimizer_in_backward is True and micro not in ("auto", self.training.batch_size):
            raise ConfigError(
                "encoder.optimizer_in_backward = true needs the whole batch in one backward pass; leave "
                "training.micro_batch on auto, or set it to training.batch_size"
            )
        if self.adapter.width not in ("auto", 0) and self.encoder.trainable != "none":
            raise ConfigError(
                f"adapter.width = {self.adapter.width} is for a frozen encoder: one that is trained adapts itself; "
                "set encoder.trainable = none, or leave adapter.width on auto"
            )

    def __getitem__(self, name: str) -> Any:
        section, _, attribute = name.partition(".")
        return getattr(getattr(self, section), attribute)

    @property
    def trains_features(self) -> bool:
        """Whether encoder or intermediate layer are trained. An adapter does not count."""
        return self.encoder.trainable == "all" or self.intermediate.width > 0

    def adapter_width(self, features: int) -> int:
        """Hidden width of the adapter on an encoder's features, 0: none."""
        if self.adapter.width != "auto":
            return self.adapter.width
        return 0 if self.trains_features else 4 * features

    @property
    def slows_head_words(self) -> bool:
        """Whether the words of head labels, which read the most, move the slowest; not where the encoder is frozen and
        words have more to do."""
        return self.encoder.trainable == "all"

    def flat(self) -> dict[str, Any]:
        """{"section.key": value}, JSON-ready."""
        return {name: list(v) if isinstance(v := self[name], tuple) else v for name in KEYS}

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> RunConfig:
        """Defaults overridden by {"section.key": value or text}. Raises ConfigError naming the key."""
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in KEYS:
                raise ConfigError(f"unknown key {name!r}{_nearest(name, KEYS)}; `engine train --help` lists the keys")
            section, _, attribute = name.partition(".")
            sections.setdefault(section, {})[attribute] = _coerce(name, value)
        return cls(**{f.name: _SECTIONS[f.name](**sections.get(f.name, {})) for f in dataclasses.fields(cls)})


_SECTIONS: dict[str, type] = {
    name: kind for name, kind in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(kind)
}
KEYS: dict[str, dataclasses.Field] = {
    f"{section}.{f.name}": f for section, kind in _SECTIONS.items() for f in dataclasses.fields(kind)
}
_TYPES: dict[str, Any] = {
    f"{section}.{name}": hint
    for section, kind in _SECTIONS.items()
    for name, hint in typing.get_type_hints(kind).items()
}


def checkpointing_interval(value: str) -> int | None:
    """n of every_n, 0 for off, None for auto. Raises ConfigError."""
    if value == "auto":
        return None
    if value == "off":
        return 0
    number = value.removeprefix("every_")
    if number != value and number.isdigit() and int(number) > 0:
        return int(number)
    raise ConfigError(f"encoder.checkpointing = {value!r} must be auto, off or every_n such as every_1")


def resolve(profile: str, overrides: dict[str, Any], flags: dict[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """(configuration, {"section.key": where its value comes from}).

    profile: a built-in profile's name or the path of a TOML file. overrides: from `--set`; flags: from
    explicit flags, {"section.key": (value, flag)}.
    """
    values, origins = {}, dict.fromkeys(KEYS, "default")
    for name, value in load_profile(profile).items():
        values[name], origins[name] = value, f"profile {profile}"
    for name, value in overrides.items():
        values[name], origins[name] = value, "--set"
    for name, (value, flag) in flags.items():
        values[name], origins[name] = value, flag
    return RunConfig.from_flat(values), origins


def profile_names() -> list[str]:
    """Built-in profiles, smallest memory first."""
    names = [p.name.removesuffix(".toml") for p in resources.files("profiles").iterdir() if p.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != "cpu", int(name.removesuffix("gb")) if name != "cpu" else 0))


def profile_titles() -> dict[str, str]:
    """What each built-in profile is for, as its first line says, smallest memory first."""
    folder = resources.files("profiles")
    lines = {name: (folder / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0] for name in profile_names()}
    return {name: line.lstrip("# ").rstrip(".") for name, line in lines.items()}


def load_profile(profile: str) -> dict[str, Any]:
    """{"section.key": value} of a built-in profile or a TOML file. Raises ConfigError."""
    path = Path(profile) if profile.endswith(".toml") else resources.files("profiles") / f"{profile}.toml"
    if not path.is_file():
        names = ["auto", *profile_names()]
        raise ConfigError(
            f"unknown profile {profile!r}{_nearest(profile, names)}; there are {', '.join(names)}, or a .toml file"
        )
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path}: {error}") from error
    flat = {}
    for section, entries in tree.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"profile {path}: {section!r} stands outside a [section]")
        flat.update({f"{section}.{name}": value for name, value in entries.items()})
    return flat


def parse_assignment(text: str) -> tuple[str, str]:
    """'section.key=value' → ("section.key", "value"). Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} must be section.key=value")
    return name.strip(), value.strip()


def _coerce(name: str, value: Any) -> Any:
    """`value`, or the text that stands for it, in the type of the key."""
    hint = _TYPES[name]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        converted = _convert(option, value)
        if converted is not None:
            return converted
    raise ConfigError(f"{name} = {value!r} must be {_describe(options)}")


def _convert(option: Any, value: Any) -> Any:
    """`value` as `option`, or None if it is not one."""
    if typing.get_origin(option) is Literal:
        return value if value in typing.get_args(option) else None
    if typing.get_origin(option) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        numbers = [_convert(int, part) for part in parts]
        return None if None in numbers else tuple(numbers)
    if option is bool:
        return {"true": True, "false": False}.get(str(value).lower())
    if option is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return None
    try:
        number = option(value)
    except (TypeError, ValueError):
        return None
    return number if number == float(value) and math.isfinite(number) else None


def _describe(options: tuple[Any, ...]) -> str:
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words.extend(typing.get_args(option))
        elif typing.get_origin(option) is tuple:
            words.append("whole numbers separated by commas")
        else:
            words.append({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[option])
    return " or ".join(words)


def _check_bounds(name: str, value: Any, metadata: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, str | bool):
            continue
        low, high = metadata["at_least"], metadata["at_most"]
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ConfigError(f"{name} = {number:g} must be {bounds}")


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
