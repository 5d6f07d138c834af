"""`engine evaluate`: what it prints, what it writes, and that the two and the predictions agree."""

import json
import math
import re

import numpy as np
import pytest
import scipy.sparse as sp

from engine.cli import main
from engine.data.store import Dataset
from engine.inference.report import Report, render


@pytest.fixture(scope="module")
def trained(tiny_flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    more = ["--set", "evaluation.propensity_a=0.6", "--set", "evaluation.propensity_b=2.6"]
    assert main(["train", *tiny_flags, *more, "--epochs", "8", "--output", str(root)]) == 0
    (run,) = root.glob("2*")
    return run


def evaluated(capsys, *arguments):
    """What the command prints."""
    assert main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_everything_the_field_reports_is_there(trained, capsys):
    found = json.loads(evaluated(capsys, trained, "--json"))
    cuts = (1, 3, 5, 10)
    for metric in ("P", "R", "nDCG", "PSP", "PSnDCG", "coverage"):
        for k in cuts:
            for band in ("", "/head", "/torso", "/tail"):
                assert 0 <= found[f"{metric}@{k}{band}"] <= 1
    assert all(0 <= found[f"ECE@{k}"] <= 1 for k in cuts)
    assert list(found["reliability"]) == [str(k) for k in cuts]
    for k in cuts:
        assert sum(line["predictions"] for line in found["reliability"][str(k)]) == k * found["instances"]
    assert (found["dataset"], found["split"], found["instances"]) == ("tiny", "test", 100)


def test_a_folder_has_the_report_and_the_predictions_it_is_of(trained, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "evaluation"
    printed = json.loads(evaluated(capsys, trained, "--json", "--output", out, "--top", "12"))
    assert sorted(file.name for file in out.iterdir()) == ["metrics.json", "predictions.npz", "table.md", "table.tex"]
    assert json.loads((out / "metrics.json").read_text()) == printed
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]

    matrix, truth = sp.load_npz(out / "predictions.npz"), Dataset.open(tiny_dataset).test.labels
    assert matrix.shape == (100, 120)
    assert set(np.diff(matrix.indptr)) == {12}
    hits = {k: [] for k in (1, 3, 5, 10)}
    for row in range(100):
        best = matrix[row].indices[np.argsort(-matrix[row].data, kind="stable")]
        for k, values in hits.items():
            values.append(np.isin(best[:k], truth.row(row)).sum() / k)
    for k, values in hits.items():
        assert np.mean(values) == pytest.approx(printed[f"P@{k}"], abs=1e-3)  # ties may be ranked otherwise


def test_the_propensities_are_those_of_the_run_unless_others_are_given(trained, tiny_dataset, capsys):
    own = json.loads(evaluated(capsys, trained, "--json"))
    same = json.loads(evaluated(capsys, trained, "--json", "--propensity", "0.6,2.6"))
    other = json.loads(evaluated(capsys, trained, "--json", "--propensity", "0.55,1.5"))
    model = json.loads(evaluated(capsys, trained / "model", "--data", tiny_dataset, "--json"))
    assert own == same
    assert other == model
    assert own["PSP@5"] != other["PSP@5"]
    assert own["P@5"] == other["P@5"]


def test_rows_for_a_paper(trained, capsys):
    values = json.loads(evaluated(capsys, trained, "--json", "--k", "1,5"))
    shown = {form: evaluated(capsys, trained, "--k", "1,5", "--format", form) for form in ("markdown", "latex")}
    p1, p5 = (f"{100 * values[key]:.2f}" for key in ("P@1", "P@5"))
    assert f"| this model | {p1} | {p5} |" in shown["markdown"]
    assert "| in % | P@1 | P@5 | R@1 | R@5 | nDCG@1 | nDCG@5 |\n|---|---:|" in shown["markdown"]
    assert f"this model & {p1} & {p5} & " in shown["latex"]
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", shown["latex"], re.DOTALL):
        assert {line.count("&") for line in block[1].splitlines() if "&" in line} == {len(block[0]) - 1}
    outside = re.sub(r"\\begin.*?\\end\{tabular\}", "", shown["latex"], flags=re.DOTALL)
    assert all(line.startswith("%") for line in outside.splitlines() if line)
    table = evaluated(capsys, trained, "--k", "1,5")
    assert re.search(rf"^P@5 +{p5} ", table, re.MULTILINE)
    assert "Test split of tiny, 100 texts" in table


def test_unknown_values_and_awkward_names_are_shown_safely():
    nothing = {f"{metric}@1": math.nan for metric in ("P", "R", "nDCG", "PSP", "PSnDCG", "coverage", "ECE")}
    line = {"from": 0.0, "to": 1.0, "predictions": 0, "mean_probability": math.nan, "right": math.nan}
    metrics = nothing | {"instances": 0, "instances_without_labels": 3, "filtered_pairs": 1234}
    report = Report("50% of\nthem", "test", metrics, {1: [line]})
    assert "| this model | - | - | - |" in render(report, "markdown")
    latex = render(report, "latex", name="R&D_50%")
    assert r"R\&D\_50\% & - & - & - \\" in latex
    assert latex.startswith(
        "% Test split of 50% of them, 0 texts; 3 without labels are left out; reciprocal filter: 1,234"
    )


def fails(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("engine: ")]
    return line


def test_only_an_evaluation_is_replaced_and_only_on_request(trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert main(["evaluate", str(trained), "--output", str(out)]) == 0
    assert f"written to {out}: metrics.json, table.md, table.tex, predictions.npz" in capsys.readouterr().err
    assert "replace it with --overwrite" in fails(capsys, trained, "--output", out)
    (out / "table.md").write_text("changed")
    evaluated(capsys, trained, "--output", out, "--overwrite")
    assert (out / "table.md").read_text() != "changed"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "metrics.json").write_text("{}")
    assert "is no evaluation, so --overwrite would not replace it either" in fails(
        capsys, trained, "--output", mine, "--overwrite"
    )
    assert [file.name for file in mine.iterdir()] == ["metrics.json"]


def test_flags_that_make_no_sense_are_refused(trained, capsys):
    assert "give one" in fails(capsys, trained, "--json", "--format", "latex")
    assert "--top is about what --output names" in fails(capsys, trained, "--top", "5")
    assert "--overwrite is about what --output names" in fails(capsys, trained, "--overwrite")
    assert "must be ascending" in fails(capsys, trained, "--k", "5,1")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(trained), "--propensity", "x"])


def test_a_failure_leaves_no_folder(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("engine.inference.prediction_dump.SPARE_BYTES", 2**62)
    assert main(["evaluate", str(trained), "--output", str(tmp_path / "out")]) == 5
    assert "MiB are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_cut_offs_than_labels(trained, tmp_path, capsys):
    found = json.loads(evaluated(capsys, trained, "--k", "1,200", "--json", "--output", tmp_path / "out"))
    assert found["R@200"] == 1.0
    assert sp.load_npz(tmp_path / "out" / "predictions.npz").nnz == 100 * 120
