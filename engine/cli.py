"""The command line: parse, call, print. Results go to standard output, progress and logs to standard error.

Heavy imports happen inside the commands, so that `engine --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.bench.commands import add_bench
from engine.config import KEYS, RunConfig, parse_assignment, resolve
from engine.data.commands import add_data
from engine.errors import ConfigError, EngineError
from engine.inference.evaluate_command import add_evaluate
from engine.inference.export_command import add_export
from engine.inference.predict_command import add_predict, print_predictions
from engine.planning.commands import add_plan
from engine.planning.doctor_command import add_doctor
from engine.serving.commands import add_serve
from engine.words import counted

INTERRUPTED = 130
# Flags that stand for a configuration key.
FLAGS = {
    "data": ("data.path", "dataset directory or built-in corpus (python-api, python-stdlib)"),
    "encoder": ("encoder.name", "local directory or model name"),
    "output": ("run.output", "folder in which the run's folder is made"),
    "name": ("run.name", "part of the run's id"),
    "seed": ("run.seed", "seed of everything random"),
    "epochs": ("training.epochs", "passes over the training set"),
    "max-steps": ("training.max_steps", "stop after this many steps"),
    "batch-size": ("training.batch_size", "instances a step"),
    "fan-in": ("classifier.fan_in", "features a label reads: a number, auto or dense"),
    "device": ("hardware.device", "auto, cpu or cuda"),
}
EXAMPLES = (
    "open a file and append some text to it",
    "parse a date written as a string",
    "run a command in the shell and read what it prints",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code (see engine.errors)."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # Texts may stand behind the options; argparse takes positional arguments only in one run.
    if rest and options.command == "predict" and not any(text.startswith("-") for text in rest):
        options.texts += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.own_process = arguments is None
    options.command_line = shlex.join(["engine", *(sys.argv[1:] if arguments is None else arguments)])
    # Harmless on a CPU, and nothing a user could act on.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # The tokenizers' threads work in this process alone; no process is forked while they do.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except EngineError as error:
        if options.debug:
            traceback.print_exc()
        label = "" if error.exit_code == 75 else "error: "
        print(f"engine: {label}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("engine: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output left
        return 0
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(
            f"engine: unexpected {type(error).__name__}: {error}; this is a defect, --debug shows where",
            file=sys.stderr,
        )
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command-line surface."""
    parser = argparse.ArgumentParser(
        prog="engine",
        description="Trains text classifiers with very many labels and asks them. `engine train` alone trains on a "
        "built-in corpus; `engine train --data DIR` on yours, which `engine data import` makes.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    defaults = RunConfig().flat()
    keys = "\n".join(f"  {name:<30}{field.metadata['doc']} ({defaults[name]})" for name, field in KEYS.items())
    train = _command(
        commands, "train", "train a classifier", train_command, epilog=f"configuration keys (defaults):\n{keys}"
    )
    train.add_argument("--profile", help="memory tier: auto (default), cpu, 4gb ... 24gb, or a TOML file")
    for flag, (key, text) in FLAGS.items():
        train.add_argument(f"--{flag}", help=f"{text} ({key})")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any configuration key")
    train.add_argument(
        "--allow-lower-fan-in", action="store_true", help="lower the fan-in of a run that keeps running out of memory"
    )
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with a stopped run")
    train.add_argument(
        "--queue", action="store_true", help="wait until no other run in the same folder trains; the oldest is next"
    )
    train.add_argument("--dry-run", action="store_true", help="print every value with its origin, train nothing")
    train.add_argument("--json", action="store_true", help="print the result as JSON")

    add_plan(commands, _command)
    add_predict(commands, _command, _existing, positive_number)
    add_evaluate(commands, _command, _existing, positive_number)

    runs = commands.add_parser("runs", help="list, show, stop and delete runs").add_subparsers(
        required=True, metavar="ACTION"
    )
    listing = _command(runs, "list", "all runs, newest first", list_command)
    listing.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (runs)")
    listing.add_argument("--json", action="store_true")
    show = _command(runs, "show", "one run: state, settings, memory, metrics", show_command)
    show.add_argument("run_path", metavar="RUN", type=Path)
    show.add_argument("--json", action="store_true")
    stop = _command(runs, "stop", "ask a run to save itself and stop", stop_command)
    stop.add_argument("run_path", metavar="RUN", type=Path)
    delete = _command(runs, "delete", "remove a run with its checkpoints and its model", delete_command)
    delete.add_argument("run_path", metavar="RUN", type=Path)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    add_data(commands, _command)
    add_export(commands, _command, _existing)
    add_serve(commands, _command, _existing)
    add_doctor(commands, _command)
    add_bench(commands, _command)
    return parser


def _command(commands: Any, name: str, text: str, run: Callable, epilog: str | None = None) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    parser.set_defaults(run=run)
    return parser


def positive_number(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _existing(path: Path) -> Path:
    """The path, or the run of that id in the folder where runs are made by default."""
    default = Path(RunConfig().run.output) / path
    return default if not path.exists() and default.exists() else path


def _print_json(value: Any) -> None:
    """One line of strict JSON."""
    from engine.runs import json_ready

    print(json.dumps(json_ready(value), ensure_ascii=False))


def train_command(options: argparse.Namespace) -> None:
    given = {flag: getattr(options, flag.replace("-", "_")) for flag in FLAGS}
    flags = {FLAGS[flag][0]: (value, f"--{flag}") for flag, value in given.items() if value is not None}
    if options.allow_lower_fan_in:
        flags["classifier.allow_lower_fan_in"] = (True, "--allow-lower-fan-in")
    overrides = dict(parse_assignment(text) for text in options.set)
    if options.resume:
        from engine.config import load_profile
        from engine.runs import RunDirectory
        from engine.training.session import resume

        profile = load_profile(options.profile) if options.profile and options.profile != "auto" else {}
        changes = {**profile, **overrides, **{key: value for key, (value, _) in flags.items()}}
        path = _existing(options.resume)
        if options.dry_run:
            stored = RunDirectory.open(path).read_json("config.json")
            _print_configuration(RunConfig.from_flat(stored["config"]), stored["origins"], options.json)
            return
        training = resume(path, changes, options.queue)
    else:
        profile = options.profile or "auto"
        if profile == "auto":
            from engine.planning.hardware import auto_profile

            on_cpu = (options.device or overrides.get("hardware.device")) == "cpu"
            device = "cpu" if on_cpu else "auto"
            profile = auto_profile(device, lambda text: print(text, file=sys.stderr), alone=options.queue)
        config, origins = resolve(profile, overrides, flags)
        if options.dry_run:
            _print_configuration(config, origins, options.json)
            return
        from engine.training.session import create_checked_run, resume

        path = create_checked_run(config, profile, origins).path
        if options.queue and options.own_process:
            # A new program in this process: the one that made the run has loaded torch and may hold memory of the GPU.
            flags = [flag for flag in ("--queue", "--json", "--debug") if getattr(options, flag.removeprefix("--"))]
            os.execv(sys.executable, [sys.executable, "-m", "engine", "train", "--resume", str(path), *flags])
        training = resume(path, {}, options.queue)
    with training as (run, result):
        if options.json:
            _print_json({"run": run.path, **result})
        else:
            _print_result(run, result)


def _print_configuration(config: RunConfig, origins: Mapping[str, str], as_json: bool) -> None:
    values = config.flat()
    if as_json:
        _print_json({key: {"value": value, "origin": origins[key]} for key, value in values.items()})
        return
    shown = {key: ",".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in values.items()}
    shown = {key: str(values[key]).lower() if isinstance(values[key], bool) else text for key, text in shown.items()}
    for key, text in shown.items():
        print(f"{key:<30}{text:<42}{origins[key]}")


def _print_result(run: Any, result: dict[str, Any]) -> None:
    from engine.inference.metrics import format_table
    from engine.inference.predictor import Predictor

    if result["metrics"]:
        print(f"\nTest set, {counted(result['metrics']['instances'], 'text')}")
        print(format_table({"this model": result["metrics"], **result["baselines"]}))
        mine = result["metrics"]["P@1"]
        for name, metrics in result["baselines"].items():
            ahead = mine - metrics["P@1"]
            side = "above" if ahead > 0 else "BELOW" if ahead < 0 else "from"
            print(f"P@1 is {100 * abs(ahead):.1f} points {side} {name}")
    print(
        f"\n{counted(result['steps'], 'step')} in {result['training_seconds']:,.0f} s "
        f"({result['instances_per_second']:,.0f} instances/s), {result['wall_seconds']:,.0f} s in all; "
        f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    texts = _example_texts(run)
    print(f'\nAsk it:\n  engine predict {run.path} "{EXAMPLES[0] if texts == EXAMPLES else "your text"}"\n')
    predictor = Predictor.load(run.path)
    for text, predictions in zip(texts, predictor.predict(list(texts), 5), strict=True):
        print_predictions(text, predictions)


def _example_texts(run: Any) -> tuple[str, ...]:
    """Questions for a built-in corpus, else the first texts of the test split."""
    from engine.data.builtin import BUILT_IN
    from engine.data.store import Dataset

    path = run.read_json("config.json")["config"]["data.path"]
    if path in BUILT_IN:
        return EXAMPLES
    dataset = Dataset.open(Path(path))
    return tuple((dataset.test or dataset.train).texts(0, 3))


def list_command(options: argparse.Namespace) -> None:
    from engine.runs import list_runs

    runs = list_runs(options.runs)
    if options.json:
        keys = ("id", "state", "step", "total", "profile", "fan_in", "labels", "metrics", "message")
        _print_json([{key: getattr(run, key) for key in keys} for run in runs])
        return
    if not runs:
        print(f"no runs in {options.runs}; `engine train` makes one")
        return
    print(f"{'run':<44}{'state':<11}{'step':>17}  {'labels':>11}  {'fan-in':>6}  {'P@1':>6}")
    for run in runs:
        p1 = f"{run.metrics['P@1']:.1%}" if "P@1" in run.metrics else ""
        labels = f"{run.labels:,}" if run.labels else ""
        steps = f"{run.step:,}/{run.total:,}"
        print(f"{run.id:<44}{run.state:<11}{steps:>17}  {labels:>11}  {run.fan_in or '':>6}  {p1:>6}")


def show_command(options: argparse.Namespace) -> None:
    from engine.inference.metrics import format_table
    from engine.planning.planner import Plan
    from engine.planning.report import classifier_words, memory_line
    from engine.runs import RunDirectory
    from engine.training.kept_model import kept_line

    run = RunDirectory.open(_existing(options.run_path))
    status = run.current_status()
    files = {name: run.read_json(name) for name in ("plan.json", "result.json") if (run.path / name).is_file()}
    plan, result = files.get("plan.json", {}), files.get("result.json", {})
    if options.json:
        _print_json({"status": status, "plan": plan, "result": result})
        return
    print(f"{run.path}: {status['state']}, step {status['step']:,} of {status['total']:,}")
    if status["message"]:
        print(f"  {status['message']}")
    if status["state"] == "stopped":
        print(f"  go on with `engine train --resume {run.path}`")
    if plan:
        print(f"  {counted(plan['labels'], 'label')}: {classifier_words(Plan.from_json(plan))}, on {plan['device']}")
    changed = {k: v for k, v in run.read_json("config.json")["origins"].items() if v != "default"}
    values = run.read_json("config.json")["config"]
    for key, origin in changed.items():
        print(f"  {key} = {values[key]}  ({origin})")
    if kept := kept_line(run):
        print(f"  kept: {kept}")
    if result.get("metrics"):
        print(format_table({"this model": result["metrics"], **result["baselines"]}))
    if result:
        memory = memory_line(plan.get("predicted_bytes"), result["peak_memory_bytes"])
        print(f"{memory}; {result['wall_seconds']:,.0f} s")
    elif plan.get("predicted_bytes"):
        print(f"predicted peak memory {plan['predicted_bytes'] / 2**20:,.0f} MiB")


def stop_command(options: argparse.Namespace) -> None:
    from engine.runs import ACTIVE_STATES, RunDirectory

    run = RunDirectory.open(_existing(options.run_path))
    state = run.state()
    if state not in ACTIVE_STATES:
        raise ConfigError(f"{run.path} is {state}; there is nothing to stop")
    run.request_stop()
    does = "leave the queue" if state == "queued" else "save itself and stop"
    print(f"{run.path} will {does}; go on with `engine train --resume {run.path}`")


def delete_command(options: argparse.Namespace) -> None:
    from engine.runs import RunDirectory, delete_run

    path = Path(os.path.abspath(RunDirectory.open(_existing(options.run_path)).path))
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody is there to confirm that {path} shall be deleted: add --yes")
        if input(f"delete {path} with its checkpoints and its model? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    delete_run(path.parent, path.name)
    print(f"{path} is deleted")
