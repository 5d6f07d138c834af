"""The command line: its surface, its errors (one line, the right exit code), and the commands around a run."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import build_parser, main
from engine.runs import RunDirectory
from tiny import make_rows, write_dataset

SOURCE = Path(__file__).parents[1]


def surface(parser, prefix="engine"):
    """{command: its options and arguments}"""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= surface(child, f"{prefix} {name}")
            return found
    names = [(a.option_strings or [a.dest])[-1] for a in parser._actions if a.dest != "help"]
    return {prefix: sorted(names)}


def test_surface_changes_only_on_purpose():
    assert surface(build_parser()) == {
        "engine train": sorted(
            "--allow-lower-fan-in --debug --profile --data --encoder --output --name --seed --epochs --max-steps "
            "--batch-size --fan-in --device --set --resume --queue --dry-run --json".split()
        ),
        "engine plan": sorted(
            "--batch-size --data --debug --encoder --json --labels --profile --set --tokens --vram".split()
        ),
        "engine predict": sorted(
            "--column --debug --device --input --json --output --overwrite --top model texts".split()
        ),
        "engine evaluate": sorted(
            "--data --debug --device --format --json --k --output --overwrite --propensity --split --top model".split()
        ),
        "engine data import": sorted(
            "--debug --delimiter --format --keep-own-labels --labels-column --name --output --overwrite --seed "
            "--strict --test-fraction --text-column source".split()
        ),
        "engine data inspect": sorted("--debug --json --output --propensity --samples dataset".split()),
        "engine data columns": ["--debug", "--format", "--json", "--rows", "source"],
        "engine data demo": ["--debug", "--output", "--scope"],
        "engine bench head": sorted(
            "--backend --batch --debug --deterministic --device --dtype --fan-in --group-size --head-fraction --json "
            "--labels --loss --only --optimizer --output --repeats --shape --width".split()
        ),
        "engine bench pipeline": sorted(
            "--backend --batch --debug --deterministic --device --dtype --encoder --fan-in --group-size "
            "--head-fraction --json --labels --memory-gib --no-checkpoint --only --output --repeats --set --shape "
            "--tokens --width".split()
        ),
        "engine doctor": ["--debug", "--device", "--json"],
        "engine export": ["--debug", "--license", "--name", "--no-onnx", "--output", "--overwrite", "model"],
        "engine serve": ["--debug", "--device", "--host", "--port", "--threads", "--token-file", "model"],
        "engine runs list": ["--debug", "--json", "--runs"],
        "engine runs show": ["--debug", "--json", "run_path"],
        "engine runs stop": ["--debug", "run_path"],
        "engine runs delete": ["--debug", "--yes", "run_path"],
    }


def test_help_answers_without_loading_torch():
    code = "import sys; from engine.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def fails(capsys, code, *arguments):
    """Runs the command, which must fail with `code`; returns its one line of error."""
    assert main(list(arguments)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("engine: ")]
    assert len(lines) == 1
    return lines[0]


def test_missing_dataset(tiny_flags, tmp_path, capsys):
    missing = tmp_path / "nowhere"
    runs = tmp_path / "runs"
    assert str(missing) in fails(capsys, 3, "train", *tiny_flags, "--output", str(runs), "--data", str(missing))
    assert not runs.exists()


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_damaged_dataset(tiny_flags, tmp_path, capsys, damage):
    folder = write_dataset(tmp_path / "data", make_rows(50, 1), make_rows(10, 2))
    file = folder / "train_ids.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-3] if damage == "truncated" else content)
    error = fails(capsys, 3, "train", *tiny_flags, "--output", str(tmp_path / "runs"), "--data", str(folder))
    assert "train_ids.npy" in error


def test_dataset_without_a_single_label(tiny_flags, tmp_path, capsys):
    folder = write_dataset(tmp_path / "data", [("the quick file", [])], make_rows(10, 2))
    error = fails(capsys, 3, "train", *tiny_flags, "--output", str(tmp_path / "runs"), "--data", str(folder))
    assert "no training text has a label" in error


def test_encoder_that_is_nowhere(tiny_flags, tmp_path, capsys):
    error = fails(capsys, 2, "train", *tiny_flags, "--output", str(tmp_path), "--encoder", "nobody/nothing")
    assert "'nobody/nothing' is no local directory, not in the Hugging Face cache" in error
    assert "--encoder" in error


def test_encoder_directory_without_weights(tiny_flags, tiny_encoder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((tiny_encoder / "config.json").read_text())
    error = fails(capsys, 2, "train", *tiny_flags, "--output", str(tmp_path / "runs"), "--encoder", str(tmp_path))
    assert "only safetensors are loaded" in error


def test_fan_in_above_the_features(tiny_flags, tmp_path, capsys):
    error = fails(capsys, 2, "train", *tiny_flags, "--output", str(tmp_path), "--fan-in", "33")
    assert "classifier.fan_in = 33 exceeds the 32 features" in error


def test_more_tokens_than_positions(tiny_flags, tmp_path, capsys):
    error = fails(capsys, 2, "train", *tiny_flags, "--output", str(tmp_path), "--set", "data.max_tokens=65")
    assert "exceeds the encoder's 64 positions" in error


def test_no_gpu(tiny_flags, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "train with --device cpu" in fails(
        capsys, 5, "train", *tiny_flags, "--output", str(tmp_path), "--device", "cuda"
    )


def test_a_classifier_larger_than_the_memory(tiny_flags, tmp_path, capsys):
    flags = [*tiny_flags, "--output", str(tmp_path), "--set", "hardware.memory_gib=0.6"]
    error = fails(capsys, 4, "train", *flags)
    assert "0.10 GiB may be taken" in error
    assert "hardware.memory_gib=" in error


@pytest.fixture(scope="module")
def trained(tiny_flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    assert main(["train", *tiny_flags, "--output", str(root), "--name", "mine"]) == 0
    (run,) = root.glob("2*")
    return run


def test_result_on_the_terminal(tiny_flags, tmp_path, capsys):
    flags = [*tiny_flags, "--set", "evaluation.baselines=true", "--epochs", "12", "--output", str(tmp_path)]
    assert main(["train", *flags]) == 0
    out = capsys.readouterr().out
    for expected in ("this model", "most frequent labels", "TF-IDF neighbours", "P@1 is", "engine predict ", "label-"):
        assert expected in out


def test_runs_list_show_and_stop(trained, capsys):
    assert main(["runs", "list", "--runs", str(trained.parent)]) == 0
    out = capsys.readouterr().out
    assert trained.name in out
    assert "completed" in out
    assert main(["runs", "list", "--runs", str(trained.parent), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["labels"] == 120
    assert listed["profile"] == "cpu"
    assert main(["runs", "show", str(trained)]) == 0
    out = capsys.readouterr().out
    assert " MiB, predicted " in out
    assert "fan-in 8 of 32" in out
    assert "training.batch_size = 32  (--set)" in out
    assert "there is nothing to stop" in fails(capsys, 2, "runs", "stop", str(trained))
    assert "there is no run" in fails(capsys, 2, "runs", "show", str(trained.parent / "other"))
    assert "is completed" in fails(capsys, 2, "train", "--resume", str(trained))


def test_a_run_is_deleted_only_when_somebody_says_so(tmp_path, capsys, monkeypatch):
    run = RunDirectory.create(tmp_path, "mine", "stopped")
    assert "add --yes" in fails(capsys, 2, "runs", "delete", str(run.path))
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["runs", "delete", str(run.path)]) == 0
    assert "nothing was deleted" in capsys.readouterr().out
    assert run.path.exists()
    monkeypatch.chdir(run.path)
    assert main(["runs", "delete", ".", "--yes"]) == 0
    assert f"{run.path} is deleted" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_no_runs_says_how_to_make_one(tmp_path, capsys):
    assert main(["runs", "list", "--runs", str(tmp_path)]) == 0
    assert "`engine train` makes one" in capsys.readouterr().out


def test_evaluate_gives_the_metrics_of_the_run(trained, tiny_dataset, capsys):
    expected = json.loads((trained / "result.json").read_text())["metrics"]
    assert main(["evaluate", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.02)
    assert main(["evaluate", str(trained / "model"), "--data", str(tiny_dataset), "--k", "1,10"]) == 0
    assert "P@10" in capsys.readouterr().out
    assert "name one with --data" in fails(capsys, 2, "evaluate", str(trained / "model"))


def test_evaluate_refuses_another_datasets_labels(trained, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", make_rows(20, 1), make_rows(5, 2), labels=121)
    assert "has other labels" in fails(capsys, 3, "evaluate", str(trained), "--data", str(other))


def test_predict_texts_as_table_and_as_json(trained, capsys):
    assert main(["predict", str(trained), "open the file", "sort a tree", "-k", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "open the file"
    assert len(out) == 8
    assert main(["predict", str(trained), "open the file", "--json", "-k", "2"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["text"] == "open the file"
    assert len(row["labels"]) == 2
    assert 0 <= row["labels"][1]["probability"] <= row["labels"][0]["probability"] <= 1


def test_predict_reads_standard_input(trained):
    done = subprocess.run(
        [sys.executable, "-m", "engine", "predict", str(trained), "--json"],
        input="open the file\nsort a tree\n", cwd=SOURCE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["open the file", "sort a tree"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_predict_reads_files(trained, tmp_path, capsys, suffix):
    texts = ["open the file", 'a "quoted", tree'] if suffix != ".txt" else ["open the file", "a tree"]
    file = tmp_path / f"texts{suffix}"
    quoted = '"a ""quoted"", tree"'
    file.write_text(
        {
            ".txt": "open the file\na tree\n",
            ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
            ".csv": f"id,text\n1,open the file\n2,{quoted}\n",
        }[suffix]
    )
    assert main(["predict", str(trained), "--input", str(file), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts


BAD_INPUT = {
    "empty.txt": (b"open the file\n\n", "empty.txt:2: empty text"),
    "bytes.txt": (b"open the file\n\xff\xfe\n", "bytes.txt:2: byte 0xff is not UTF-8"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: not JSON"),
    "other.jsonl": (b'{"title": "a"}\n', "other.jsonl:1: no field 'text'"),
    "other.csv": (b"id,title\n1,a\n", "other.csv:1: no column 'text' among 'id', 'title'"),
    "texts.xlsx": (b"", "cannot read .xlsx"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_predict_names_file_and_line_of_bad_input(trained, tmp_path, capsys, name):
    content, expected = BAD_INPUT[name]
    (tmp_path / name).write_bytes(content)
    assert expected in fails(capsys, 3, "predict", str(trained), "--input", str(tmp_path / name))


def test_predict_refuses_empty_texts_and_folders_without_a_model(trained, tmp_path, capsys):
    assert "the text is empty" in fails(capsys, 3, "predict", str(trained), " ")
    assert "neither a model nor a run" in fails(capsys, 3, "predict", str(tmp_path), "a text")
    assert "no such file" in fails(capsys, 3, "predict", str(trained), "--input", str(tmp_path / "no.txt"))


def test_unexpected_errors_exit_1_and_traceback_only_with_debug(trained, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained / "model", copy)
    (copy / "labels.parquet").write_bytes(b"not parquet")
    assert main(["predict", str(copy), "a text"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["predict", str(copy), "a text", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


XMC = {  # title and label of the one training instance
    "a label outside the range": b'"title": "a title", "content": "", "target_ind": [2], "target_rel": [1.0]',
    "a byte that is not UTF-8": b'"title": "a \xff title", "content": "", "target_ind": [0], "target_rel": [1.0]',
    "an empty text": b'"title": "", "content": " ", "target_ind": [0], "target_rel": [1.0]',
    "no JSON": b'"title": ',
}


@pytest.mark.parametrize("name", XMC)
def test_import_names_file_and_line(tmp_path, capsys, name):
    (tmp_path / "lbl.json").write_text('{"uid": "0", "title": "one"}\n{"uid": "1", "title": "two"}\n')
    (tmp_path / "trn.json").write_bytes(b'{"uid": "1", ' + XMC[name] + b"}\n")
    (tmp_path / "tst.json").write_bytes(b"")
    output = tmp_path / "out"
    assert "trn.json:1" in fails(capsys, 3, "data", "import", str(tmp_path), "--output", str(output))
    assert not output.exists()


def test_import_and_train_from_csv(tmp_path, tiny_encoder, capsys):
    rows = make_rows(200, 3)
    lines = [f'"{text}","{";".join(f"tag {label}" for label in labels)}"' for text, labels in rows]
    (tmp_path / "mine.csv").write_text("text,labels\n" + "\n".join(lines) + "\n")
    assert main(["data", "import", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "data")]) == 0
    assert "engine train --data" in capsys.readouterr().out
    flags = ["--profile", "cpu", "--data", str(tmp_path / "data"), "--encoder", str(tiny_encoder), "--epochs", "2"]
    assert main(["train", *flags, "--set", "data.max_tokens=16", "--output", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "this model" in out
    assert "tag " in out


def test_texts_may_stand_behind_options(trained, capsys):
    assert main(["predict", str(trained), "-k", "2", "open the file", "--json", "sort a tree"]) == 0
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["text"] for row in rows] == ["open the file", "sort a tree"]
    assert "give texts or --input" in fails(capsys, 2, "predict", str(trained), "--input", "f.csv", "a text")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(trained), "a text", "--nonsense"])


def test_what_came_before_a_bad_line_is_predicted(trained, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("open the file\n\nsort a tree\n")
    assert main(["predict", str(trained), "--input", str(tmp_path / "texts.txt"), "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["text"] == "open the file"
    assert "texts.txt:2: empty text" in captured.err


def test_a_run_is_also_found_by_its_id(trained, capsys, monkeypatch):
    (trained.parent.parent / "runs").symlink_to(trained.parent)
    monkeypatch.chdir(trained.parent.parent)
    assert main(["runs", "show", trained.name]) == 0
    assert main(["predict", trained.name, "open the file"]) == 0


def test_dry_run_of_a_resume_trains_nothing(trained, capsys):
    assert main(["train", "--resume", str(trained), "--dry-run"]) == 0
    shown = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 2}
    assert shown["training.batch_size"] == "32"


def test_what_cannot_work_is_refused_before_there_is_a_run(tiny_flags, tmp_path, capsys):
    runs = ["--output", str(tmp_path / "runs")]
    assert "exceeds the 32 features" in fails(capsys, 2, "train", *tiny_flags, *runs, "--fan-in", "33")
    assert "no local directory" in fails(capsys, 2, "train", *tiny_flags, *runs, "--encoder", "nobody/nothing")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    assert "run.output" in fails(capsys, 2, "train", *tiny_flags, "--output", str(tmp_path / "file"))


def test_import_says_what_it_decided_and_left_out(tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text("title,body,tags\n" + "".join(f"Title {i},body,a;b\n" for i in range(100)) + ",,a\nshort\n")
    flags = ["--text-column", "title,body", "--labels-column", "tags", "--test-fraction", "0.2"]
    assert main(["data", "import", str(file), "--output", str(tmp_path / "out"), *flags]) == 0
    out = capsys.readouterr().out
    for expected in (
        "format csv",
        "between labels, as found in the first rows: ';' (--delimiter changes it)",
        "20.0% of the texts are held out",
        "rows left out: 2, listed in ",
        f"1 x empty text, first {file}:102: empty text",
        f"1 x wrong number of cells, first {file}:103: 1 cell, but the header has 3",
        "2 labels",
        f"engine train --data {tmp_path / 'out'}",
    ):
        assert expected in out
    error = fails(capsys, 3, "data", "import", str(file), "--output", str(tmp_path / "strict"), "--strict", *flags)
    assert f"{file}:102: empty text" in error
    assert not (tmp_path / "strict").exists()


def test_import_names_the_columns_it_found(tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("body,tags\nx,y\n")
    error = fails(capsys, 3, "data", "import", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "out"))
    assert "mine.csv:1: no column 'text'; found 'body', 'tags'; name the columns with --text-column" in error


def test_formats_of_the_command_are_those_that_are_read():
    from engine.data import commands, importers

    assert commands.FORMATS == importers.FORMATS
