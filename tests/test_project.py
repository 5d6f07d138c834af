"""The project as a stranger meets it: clean code, a README whose commands exist, one layering."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import build_parser
from engine.config import KEYS, RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FLOORS = {
    "app": 6, "engine.__main__": 6, "engine.cli": 5,
    "engine.bench": 4, "engine.serving": 4, "engine.training": 4, "engine.inference": 3, "engine.planning": 3,
    "engine.model": 2, "engine.data": 2,
    "engine.kernels": 1, "engine.config": 1, "engine.runs": 1, "engine.turns": 1, "engine.progress": 1,
    "engine.files": 0, "engine.network": 0, "engine.tensorfile": 0, "engine.errors": 0,
    "engine.peak_memory": 0, "engine.words": 0,
}  # fmt: skip


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_clean(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def floor(module: str) -> int | None:
    names = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return FLOORS[max(names, key=len)] if names else None


def test_imports_point_down():
    wrong = []
    for path in [*ROOT.glob("engine/**/*.py"), *ROOT.glob("app/**/*.py")]:
        own = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and floor(node.module) is not None:
                if floor(own) is not None and floor(node.module) > floor(own):
                    wrong.append(f"{own} imports {node.module}")
    assert wrong == []


def test_continuous_integration_runs_the_readmes_second_command():
    first, second = re.findall(r"```bash\n(.+)\n```", README)[:2]
    assert first.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert first.endswith("engine train")
    assert second in (ROOT / ".ci" / "run").read_text()


def test_every_command_in_the_readme_parses():
    blocks = re.findall(r"```bash\n(.+?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("engine ")]
    lines += [
        c.replace("...", "").replace("[", "").replace("]", "")
        for c in re.findall(r"^\| `(engine [^`]+)`", README, re.M)
    ]
    assert len(lines) > 5
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])


def test_defaults_in_the_readme_are_the_defaults():
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `?([^`|]+?)`? \|", README, re.M)
    assert len(rows) >= 5
    defaults = RunConfig().flat()
    for key, shown in rows:
        assert key in KEYS
        assert shown == str(defaults[key]).removeprefix("sentence-transformers/")


def test_no_pickle_and_no_remote_code():
    for path in [*ROOT.glob("engine/**/*.py"), *ROOT.glob("app/**/*.py")]:
        text = path.read_text()
        assert not re.search(
            r"import pickle|torch\.load\(|trust_remote_code=True|shell=True|weights_only=False", text
        ), path


def test_the_readme_shows_what_the_program_prints():
    from engine.inference.metrics import format_table

    keys = [f"{metric}@{k}" for metric in ("P", "R", "nDCG", "PSP") for k in (1, 3, 5)]
    keys += [f"{metric}/{band}" for metric in ("P@1", "R@5") for band in ("head", "torso", "tail")]
    shown = README[README.index("Test set, ") :]
    rows = [line for line in shown.split("P@1 is")[0].splitlines() if line[:4] in ("this", "most", "TF-I")]
    values = {
        name: [float(v) for v in re.findall(r"[\d.]+", line[22:])]
        for name, line in ((r[:22].strip(), r) for r in rows[:3])
    }
    columns = shown.splitlines()[1].split()[2:]
    result = {name: dict(zip(columns, (v / 100 for v in row), strict=True)) for name, row in values.items()}
    bands = shown.split("\n\n")[1].splitlines()
    band_columns = bands[0].split()[2:]
    for line in bands[1:4]:
        numbers = [float(v) / 100 for v in re.findall(r"[\d.]+", line[22:])]
        result[line[:22].strip()] |= dict(zip(band_columns, numbers, strict=True))
    assert set(columns) | set(band_columns) <= set(keys)
    assert format_table(result) in README


def test_the_readme_shows_what_an_evaluation_prints():
    from engine.inference.report import Report, render

    shown = README[README.index("Test split of ") :].split("\n```")[0]
    title, table, _, reliability = shown.split("\n\n")
    dataset, instances = re.fullmatch(r"Test split of (\S+), ([\d,]+) texts", title).groups()
    metrics = {"instances": int(instances.replace(",", "")), "instances_without_labels": 0}
    for line in table.splitlines()[1:]:
        key, *values = line.split()
        for band, value in zip(("", "/head", "/torso", "/tail"), values, strict=True):
            metrics |= {} if value == "-" else {key + band: float(value) / 100}
    lines = [re.split(r" {2,}", line) for line in reliability.splitlines()[1:]]
    bins = [
        {
            "from": float(span.split()[0]), "to": float(span.split()[2]), "predictions": int(count.replace(",", "")),
            "mean_probability": float(mean) / 100, "right": float(right) / 100,
        }
        for span, count, mean, right in lines
    ]  # fmt: skip
    cuts = sorted({int(re.search(r"@(\d+)", key)[1]) for key in metrics if "@" in key})
    assert render(Report(dataset, "test", metrics, dict.fromkeys(cuts, bins)), "table") == shown
