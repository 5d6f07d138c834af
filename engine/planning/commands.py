"""`engine plan`: what a training would take, on this machine or, without loading torch, on one that is not here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from engine.config import RunConfig, parse_assignment, resolve
from engine.errors import ConfigError
from engine.planning.hardware import auto_profile, detect
from engine.planning.planner import Problem, make_plan
from engine.planning.problems import named_hardware, problem_for
from engine.planning.report import format_plan, larger_plans, reasons

FLAGS = {
    "encoder": "encoder.name",
    "tokens": "data.max_tokens",
    "batch_size": "training.batch_size",
    "data": "data.path",
}


def add_plan(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `plan` to the subparsers; add_command(subparsers, name, help, function) makes one command."""
    plan = add_command(commands, "plan", "what fits in memory, and why; trains nothing", plan_command)
    plan.add_argument("--labels", metavar="N", help="number of labels; without it those of --data")
    plan.add_argument("--data", metavar="DIR", help="dataset directory, or a built-in corpus")
    plan.add_argument("--vram", metavar="GIB", help="memory of a card that need not be here (default: this machine)")
    plan.add_argument("--encoder", metavar="NAME", help="a common encoder, or a directory with config.json")
    plan.add_argument("--tokens", metavar="N", help="tokens of the longest text")
    plan.add_argument("--batch-size", metavar="N", help="instances a step")
    plan.add_argument(
        "--profile", help="memory tier, such as 8gb: its settings and its memory (default: this machine's)"
    )
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of `engine train`")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")


def plan_command(options: argparse.Namespace) -> None:
    problem = problem_of(options)
    plan = make_plan(problem)
    if options.json:
        more = {"reasons": reasons(problem, plan), "larger": larger_plans(problem, plan)}
        print(json.dumps({**plan.to_json(), **more}, ensure_ascii=False))
    else:
        print(format_plan(problem, plan))


def problem_of(options: argparse.Namespace) -> Problem:
    """What the options ask to plan for. Raises ConfigError for what cannot be."""
    given = {key: getattr(options, flag) for flag, key in FLAGS.items()}
    flags = {key: (value, "") for key, value in given.items() if value is not None}
    if options.vram is not None:
        flags["hardware.memory_gib"] = (_number(options.vram, float, "--vram"), "--vram")
    overrides = dict(parse_assignment(text) for text in options.set)
    profile, is_here = options.profile, False
    if profile == "auto" or (profile is None and options.vram is None and "hardware.memory_gib" not in overrides):
        profile, is_here = auto_profile(), True
    config = resolve(profile, overrides, flags)[0] if profile else _without_profile(overrides, flags)
    if options.labels is not None:
        labels = _number(options.labels, int, "--labels")
    elif options.data:
        from engine.data.builtin import folder_of
        from engine.data.store import Dataset

        labels = Dataset.open(folder_of(options.data)).n_labels
    else:
        raise ConfigError("engine plan needs --labels N, or --data DIR with a dataset")
    hardware = detect(config.hardware.device) if is_here else named_hardware(config, profile)
    return problem_for(config, hardware, labels)


def _without_profile(overrides: dict[str, Any], flags: dict[str, Any]) -> RunConfig:
    return RunConfig.from_flat(overrides | {key: value for key, (value, _) in flags.items()})


def _number(text: str, kind: type, flag: str) -> Any:
    """A number above 0. Raises ConfigError."""
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        words = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{flag} {text} must be {words} above 0")
    return value
