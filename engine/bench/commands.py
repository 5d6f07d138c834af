"""`engine bench ...`: the measurements' part of the command line. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.bench.shapes import ENCODERS, SHAPES, Shape, encoder_width, shape_named
from engine.config import RunConfig, parse_assignment
from engine.errors import ConfigError

DEFAULT_SHAPE = "amazon-670k"
NUMBERS = {
    "labels": "number of labels",
    "width": "features that the classifier can read",
    "batch": "instances a step",
    "fan_in": "features a label reads",
    "group_size": "labels that share their features",
}


def add_bench(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `bench` to the subparsers `commands`; add_command(subparsers, name, help, function) makes one command."""
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    actions = bench.add_subparsers(required=True, metavar="ACTION")
    head = add_command(actions, "head", "one step of the classifier, beside dense ones", head_command)
    _add_shape(head)
    head.add_argument("--optimizer", default="rowwise", choices=("rowwise", "sgd"))
    head.add_argument("--loss", default="bce", choices=("bce", "squared_hinge"))
    _add_measuring(head)
    pipeline = add_command(actions, "pipeline", "a whole training step and its memory", pipeline_command)
    _add_shape(pipeline)
    pipeline.add_argument("--encoder", metavar="NAME", help=f"architecture: {', '.join(ENCODERS)}")
    pipeline.add_argument("--tokens", type=int, metavar="N", help="tokens a text")
    pipeline.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of `engine train`")
    pipeline.add_argument("--memory-gib", type=float, metavar="X", help="cap of the device memory")
    pipeline.add_argument("--no-checkpoint", action="store_true", help="save nothing; the disk is not touched")
    _add_measuring(pipeline)


def _add_shape(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shape", help=f"{', '.join(SHAPES)} ({DEFAULT_SHAPE}); the numbers below change it")
    for name, text in NUMBERS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    command.add_argument("--head-fraction", type=float, metavar="X", help="share of the labels that is dense")


def _add_measuring(command: argparse.ArgumentParser) -> None:
    kinds = ("auto", "bf16", "fp16", "fp32", "fp8")
    command.add_argument("--dtype", default="auto", choices=kinds, help="of the sparse weights")
    command.add_argument("--backend", default="auto", choices=("auto", "torch", "triton"), help="of the sparse layers")
    command.add_argument("--deterministic", action="store_true", help="same bits on every run, on the GPU too")
    command.add_argument("--repeats", type=int, metavar="N", help="steps timed (as many as fill a second)")
    command.add_argument("--only", metavar="NAMES", help="some of ours,g1,elmo,renee (all)")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    command.add_argument("--output", type=Path, metavar="FILE", help="also write the result to this file, as JSON")
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def head_command(options: argparse.Namespace) -> None:
    shape = chosen_shape(options)
    check_output(options.output)
    from engine.bench.head import HeadOptions, bench_head
    from engine.bench.measure import format_measurements, machine_line

    names = ("dtype", "optimizer", "loss", "backend", "deterministic", "repeats", "device")
    how = {name: getattr(options, name) for name in names}
    result = bench_head(
        shape, HeadOptions(**how, **only_of(options)), lambda text: print(text, file=sys.stderr, flush=True)
    )
    heading = [machine_line(result["machine"]), options.command_line]
    heading.append(
        f"{shape.name}: {shape.labels:,} labels, {shape.width} features, batch {shape.batch}, fan-in {shape.fan_in}"
    )
    heading.append(f"sparse steps: {result['options']['backend']}")
    table = format_measurements(result["variants"], result["options"]["device"])
    write_result({"command": options.command_line, **result}, "\n".join([*heading, "", table]), options)


def pipeline_command(options: argparse.Namespace) -> None:
    shape = chosen_shape(options)
    check_output(options.output)
    config = {
        "classifier.weight_dtype": options.dtype,
        "classifier.backend": options.backend,
        "training.deterministic": options.deterministic,
        **dict(parse_assignment(text) for text in options.set),
    }
    RunConfig.from_flat(config)  # wrong keys are refused before anything is made
    from engine.bench.measure import format_measurements, machine_line
    from engine.bench.pipeline import PipelineOptions, bench_pipeline

    how = PipelineOptions(
        config, repeats=options.repeats, device=options.device, memory_gib=options.memory_gib,
        saves=not options.no_checkpoint, **only_of(options),
    )  # fmt: skip
    result = bench_pipeline(shape, how, tell)
    heading = [machine_line(result["machine"]), options.command_line]
    heading.append(
        f"{shape.name}: {shape.labels:,} labels, {shape.encoder}, {shape.tokens} tokens, batch {shape.batch}, "
        f"fan-in {shape.fan_in}"
    )
    table = format_measurements(result["variants"], "cuda" if result["machine"]["gpu"] else "cpu")
    write_result({"command": options.command_line, **result}, "\n".join([*heading, "", table]), options)


def tell(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def only_of(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    return {} if options.only is None else {"only": tuple(name.strip() for name in options.only.split(","))}


def chosen_shape(options: argparse.Namespace) -> Shape:
    """The named shape with the numbers that were given in its place. Raises ConfigError."""
    shape = shape_named(options.shape or DEFAULT_SHAPE)
    given = {name: getattr(options, name, None) for name in (*NUMBERS, "head_fraction", "encoder", "tokens")}
    changed = {name: value for name, value in given.items() if value is not None}
    if changed.get("encoder"):
        changed["width"] = encoder_width(changed["encoder"])
    return replace(shape, **changed, name=f"{shape.name}, changed") if changed else shape


def check_output(path: Path | None) -> None:
    """Raises ConfigError for a file that cannot be written, before anything is measured."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it first")


def write_result(result: dict[str, Any], text: str, options: argparse.Namespace) -> None:
    """To standard output as `text` or as JSON, and to the file of --output as JSON."""
    from engine.runs import json_ready

    result = {**result, "variants": [measurement.to_json() for measurement in result["variants"]]}
    if options.output:
        options.output.write_text(json.dumps(json_ready(result), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(json_ready(result), ensure_ascii=False) if options.json else text)
