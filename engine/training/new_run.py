"""A run before it trains: the folder with its settings, from which any process can begin. Imports no torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.config import RunConfig
from engine.errors import ConfigError, DataError
from engine.runs import RunDirectory

MAY_CHANGE = ("classifier.allow_lower_fan_in", "encoder.cuda_graphs")  # when a run is resumed
UNSTARTED = "made, not started yet"  # message of a run that no process has begun
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "numpy", "fanin")


def create_run(config: RunConfig, profile: str, origins: dict[str, str]) -> RunDirectory:
    """Makes a run directory with config.json; `engine train --resume` of it begins at the beginning.

    origins: {key: where its value comes from}, as `engine.config.resolve` tells. The state is `stopped`, as no process
    has the run; paths are stored absolute, so that it can be started from any folder. Raises ConfigError if
    run.output takes no folder.
    """
    config = _with_absolute_paths(config)
    name = config.run.name or Path(config.data.path).name
    try:
        run = RunDirectory.create(Path(config.run.output), name, "stopped", UNSTARTED)
    except OSError as error:
        raise ConfigError(
            f"run.output = {config.run.output}: no folder can be made there ({error.strerror})"
        ) from error
    versions = {package: _version(package) for package in PACKAGES}
    run.write_json(
        "config.json", {"profile": profile, "config": config.flat(), "origins": origins, "versions": versions}
    )
    return run


def read_config(run: RunDirectory) -> tuple[RunConfig, str]:
    """(configuration, profile) that the run was made with. Raises DataError, ConfigError."""
    stored = run.read_json("config.json")
    try:
        values, profile = stored["config"], stored["profile"]
    except (KeyError, TypeError):
        raise DataError(f"{run.path / 'config.json'} is damaged: restore it or start a new run") from None
    return RunConfig.from_flat(values), profile


def with_changes(config: RunConfig, changes: dict[str, Any], where: Path) -> RunConfig:
    """`config` of the run in `where` with what a resumed run may change taken from {"section.key": value}.

    Raises ConfigError that names the other keys, if there are some whose value is not the run's: the result would be
    neither of the two runs'.
    """
    changed = RunConfig.from_flat({**config.flat(), **changes})
    refuse_changes(config, changed, where)
    return RunConfig.from_flat({**config.flat(), **{key: changed[key] for key in MAY_CHANGE}})


def refuse_changes(before: RunConfig, after: RunConfig, where: Path) -> None:
    """Raises ConfigError if `after` is no way to go on with what is in `where`, made with `before`."""
    old, new = before.flat(), after.flat()
    changed = [f"{key} ({old[key]} → {new[key]})" for key in old if old[key] != new[key] and key not in MAY_CHANGE]
    if changed:
        raise ConfigError(
            f"{where} was started with other settings: {', '.join(changed)}; resume without them or start a new run"
        )


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    from engine.data.builtin import BUILT_IN

    values = config.flat()
    if config.data.path not in BUILT_IN:
        values["data.path"] = str(Path(config.data.path).absolute())
    if Path(config.encoder.name).expanduser().is_dir():
        values["encoder.name"] = str(Path(config.encoder.name).expanduser().absolute())
    return RunConfig.from_flat(values)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source folder, not installed
        return "unknown"
