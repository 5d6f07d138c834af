"""Predictions of a whole file: in order, complete or not there, and going on where they stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli import main
from engine.inference.predictor import WINDOW, Predictor
from random_model import make_bundle

SOURCE = Path(__file__).parents[2]
COUNT = 2 * WINDOW + 300


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [f"{'open the ' * (i % 5 + 1)}{['tree', 'mail', 'date'][i % 3]} {i}" for i in range(COUNT)]
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("".join(row + "\n" for row in rows))
    return file


def arguments(model, texts, output, *more):
    return ["predict", str(model), "--input", str(texts), "--output", str(output), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def complete(random_model, texts, tmp_path_factory):
    """What comes out when nothing interrupts it."""
    output = tmp_path_factory.mktemp("complete") / "out.jsonl"
    assert main(arguments(random_model, texts, output)) == 0
    return output


@pytest.fixture(scope="module")
def mark(random_model, texts, tmp_path_factory):
    """What a process that was killed leaves beside its predictions."""
    output = tmp_path_factory.mktemp("killed") / "out.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments(random_model, texts, output)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    file = output.parent / "out.jsonl.partial.json"
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not output.exists()
    return file.read_bytes()


def killed(output, mark, written):
    """The two files that a killed process leaves, of which it had `written` bytes of predictions."""
    (output.parent / (output.name + ".partial")).write_bytes(written)
    (output.parent / (output.name + ".partial.json")).write_bytes(mark)


def refused(capsys, *command):
    assert main(list(command)) == 2
    return capsys.readouterr().err


def test_lines_are_those_of_the_predictor_in_the_order_of_the_texts(random_model, texts, complete):
    rows = [json.loads(line) for line in complete.read_text().splitlines()]
    assert [row["text"] for row in rows] == texts.read_text().splitlines()
    predictor = Predictor.load(random_model, "cpu")
    for i in (0, WINDOW - 1, WINDOW, COUNT - 1):
        (expected,) = predictor.predict([rows[i]["text"]], 5)
        assert [label["label"] for label in rows[i]["labels"]] == [p.label for p in expected]
    assert [file.name for file in complete.parent.iterdir()] == [complete.name]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_a_killed_prediction_goes_on_to_the_same_bytes(random_model, texts, complete, mark, tmp_path, capsys, share):
    output = tmp_path / "out.jsonl"
    killed(output, mark, complete.read_bytes()[: int(share * complete.stat().st_size)])
    assert main(arguments(random_model, texts, output)) == 0
    assert output.read_bytes() == complete.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [output.name]
    assert ("of them earlier" in capsys.readouterr().out) == (share > 0.3)


def test_what_a_power_failure_left_is_done_again(random_model, texts, complete, mark, tmp_path):
    output = tmp_path / "out.jsonl"
    whole = b"".join(complete.read_bytes().splitlines(keepends=True)[:WINDOW])
    killed(output, mark, whole + b"\0" * 5000 + b"\n{}\n")
    assert main(arguments(random_model, texts, output)) == 0
    assert output.read_bytes() == complete.read_bytes()


def test_ctrl_c_keeps_what_is_done(random_model, texts, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text(texts.read_text() * 60)
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments(random_model, many, output)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    partial = tmp_path / "out.jsonl.partial"
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors
    assert partial.exists() and not output.exists()


@pytest.mark.parametrize("what", ["-k", "input", "model"])
def test_another_question_does_not_go_on_with_it(
    random_model, tiny_encoder, texts, complete, mark, tmp_path, capsys, what
):
    output = tmp_path / "out.jsonl"
    killed(output, mark, complete.read_bytes()[:50_000])
    other = {"-k": ["-k", "3"], "input": [], "model": []}[what]
    source = texts
    if what == "input":
        source = tmp_path / "other.txt"
        source.write_text(texts.read_text().replace("tree 0", "date 0"))
    model = make_bundle(tmp_path / "other", tiny_encoder, 121) if what == "model" else random_model
    error = refused(capsys, *arguments(model, source, output, *other))
    assert f"was begun with another {what}; --overwrite starts again" in error
    assert (tmp_path / "out.jsonl.partial").stat().st_size == 50_000
    assert main(arguments(model, source, output, *other, "--overwrite")) == 0
    assert len(output.read_text().splitlines()) == COUNT


def test_what_is_there_is_replaced_only_when_asked(random_model, texts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    output.write_text("mine\n")
    assert "--overwrite" in refused(capsys, *arguments(random_model, texts, output))
    assert output.read_text() == "mine\n"
    assert main(arguments(random_model, texts, output, "--overwrite")) == 0
    assert len(output.read_text().splitlines()) == COUNT


def test_the_input_is_never_the_output(random_model, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "open the file"}\n')
    refused(capsys, *arguments(random_model, file, file, "--overwrite"))
    assert file.read_text() == '{"text": "open the file"}\n'


def test_two_processes_do_not_write_the_same_file(random_model, texts, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out.jsonl.partial").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        error = refused(capsys, *arguments(random_model, texts, tmp_path / "out.jsonl"))
    assert "another process is writing" in error


def test_a_bad_text_is_named_before_anything_is_predicted(random_model, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    assert main(arguments(random_model, tmp_path / "bad.jsonl", tmp_path / "out.jsonl")) == 3
    assert "bad.jsonl:2: half a character" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["bad.jsonl"]


def test_arguments_that_do_not_fit_together(random_model, texts, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out.jsonl")]
    assert "--output needs --input" in refused(capsys, "predict", str(random_model), "a text", *output)
    assert "ends in .jsonl" in refused(capsys, *arguments(random_model, texts, tmp_path / "out.csv"))
    assert "name it" in refused(capsys, "predict", str(random_model), "a text", "--overwrite")


PEAK = """
import resource, sys
from engine.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_file(random_model, texts, tmp_path):
    def peak(count):
        file = tmp_path / f"{count}.txt"
        file.write_text("open the file into a tree\n" * count)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments(random_model, file, tmp_path / f"{count}.jsonl")],
            cwd=SOURCE, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout.split()[-1])

    assert peak(12_000) < peak(2_000) + 30_000  # KiB
