"""What a person wants planned: from the controls of the page to a problem for the planner, and to command lines."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

from engine.config import RunConfig, profile_names, resolve
from engine.errors import ConfigError
from engine.planning.hardware import GIB, TOLERANCE_GIB, Hardware
from engine.planning.planner import Problem
from engine.planning.problems import named_hardware, problem_for

HERE, CUSTOM, CPU = "here", "custom", "cpu"  # beside the names of the built-in profiles
MEMORY = "hardware.memory_gib"
PLAN_FLAGS = {"encoder.name": "--encoder", "data.max_tokens": "--tokens", "training.batch_size": "--batch-size"}
TRAIN_FLAGS = {
    "encoder.name": "--encoder",
    "training.batch_size": "--batch-size",
    "classifier.fan_in": "--fan-in",
    "hardware.device": "--device",
}


@dataclass(frozen=True)
class Wishes:
    """data: `data.path` of a dataset, None without one · card: HERE, CUSTOM with memory_gib, CPU, or a profile's
    name · fan_in: as of `classifier.fan_in` · trained: whether the encoder is · reserve_gib: for other programs.
    """

    labels: float | None
    data: str | None
    card: str
    memory_gib: float | None
    encoder: str
    tokens: float
    batch_size: float
    fan_in: str
    trained: bool
    reserve_gib: float

    @property
    def settings(self) -> dict[str, Any]:
        """Configuration keys that the controls stand for, the card excepted."""
        return {
            "encoder.name": self.encoder.strip(),
            "data.max_tokens": int(self.tokens),
            "training.batch_size": int(self.batch_size),
            "classifier.fan_in": self.fan_in if self.fan_in in ("auto", "dense") else int(self.fan_in),
            "encoder.trainable": "all" if self.trained else "none",
            "hardware.reserve_gib": float(self.reserve_gib),
        }

    def problem(self, here: Hardware | None, profile_here: str | None) -> Problem:
        """here: this machine, None while it is not known; profile_here: the built-in profile for it.

        Raises ConfigError.
        """
        if not self.labels or self.labels < 1 or self.labels != int(self.labels):
            raise ConfigError("the number of labels must be a whole number above 0")
        if not self.encoder or not self.encoder.strip():
            raise ConfigError("choose an encoder, or type the name of one")
        profile = self.profile(profile_here)
        values = self.settings | self._card_settings()
        config = resolve(profile, {}, {key: (value, "") for key, value in values.items()})[0]
        if self.card != HERE:
            hardware = named_hardware(config, profile)
        elif here is None:
            raise ConfigError("this machine is not known yet; choose another card to plan for meanwhile")
        else:
            hardware = here
        return problem_for(config, hardware, int(self.labels), folders=False)

    def profile(self, profile_here: str | None) -> str:
        """The built-in profile that the card stands for."""
        if self.card == HERE:
            return profile_here or CPU
        return _profile_within(self.memory_gib or 0.0) if self.card == CUSTOM else self.card

    def plan_command(self, profile_here: str | None) -> str:
        """`engine plan` with these settings."""
        words = ["--data", self.data] if self.data else ["--labels", str(int(self.labels or 0))]
        if self.card == CUSTOM:
            words += ["--vram", f"{self.memory_gib or 0:g}"]
        elif self.card != HERE:
            words += ["--profile", self.card]
        without_memory = {key: value for key, value in self._changes(profile_here).items() if key != MEMORY}
        return shlex.join(["engine", "plan", *words, *_options(without_memory, PLAN_FLAGS)])

    def train_command(self, profile_here: str | None, runs: str) -> str:
        """`engine train` with these settings. runs: folder of the runs."""
        words = [] if self.card == HERE else ["--profile", self.profile(profile_here)]
        words += ["--data", self.data or "DATASET"]
        if runs != RunConfig().run.output:
            words += ["--output", runs]
        return shlex.join(["engine", "train", *words, *_options(self._changes(profile_here), TRAIN_FLAGS)])

    def overrides(self, here: Hardware | None, profile_here: str | None) -> dict[str, Any]:
        """What training on this machine has to set, and the `profile` beside it, to be as planned. A card that this
        machine does not have cannot be among it."""
        memory = 0.0 if self.card in (HERE, CPU) else self.problem(here, profile_here).config[MEMORY]
        has_it = here is not None and here.device == "cuda" and memory <= here.memory_bytes / GIB + TOLERANCE_GIB
        if self.card == CPU or (memory and has_it):
            return {"profile": self.profile(profile_here), **self._changes(profile_here)}
        return {"profile": "auto", **replace(self, card=HERE)._changes(profile_here)}

    def _card_settings(self) -> dict[str, Any]:
        if self.card == CPU:
            return {"hardware.device": "cpu"}
        return {MEMORY: self.memory_gib or 0.0} if self.card == CUSTOM else {}

    def _changes(self, profile_here: str | None) -> dict[str, Any]:
        """Settings that the profile does not make by itself."""
        usual = resolve(self.profile(profile_here), {}, {})[0]
        return {key: value for key, value in (self.settings | self._card_settings()).items() if usual[key] != value}


def _profile_within(memory_gib: float) -> str:
    """The built-in profile of the largest card with no more memory than that, or of the smallest card."""
    names = [name for name in profile_names() if name != CPU]
    return max((name for name in names if float(name[:-2]) <= memory_gib), key=names.index, default=names[0])


def _options(changes: dict[str, Any], flags: dict[str, str]) -> list[str]:
    words = []
    for key, value in changes.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words += [flags[key], text] if key in flags else ["--set", f"{key}={text}"]
    return words
