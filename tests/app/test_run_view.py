"""What a page says of a run: how far it is, what happened, which of its settings are others'."""

from app_runs import make_run

from app.comparison import compare, listing
from app.history import Histories
from app.live import happenings, head
from app.pages.runs import details
from engine.runs import list_runs


def test_a_run_that_prepares_shows_how_far_it_is(tmp_path):
    run = make_run(tmp_path, "20260101-000000-a", "preparing", message="computing features: 768 of 1,536 texts")
    shown = head(*summary(tmp_path))
    assert 'aria-valuenow="50"' in shown and shown.count("Computing features: 768 of 1,536 texts") == 2
    run.status("preparing", message="starting")
    shown = head(*summary(tmp_path))
    assert "progressbar" not in shown and "Starting." in shown
    run.status("failed", message="stopped at text 3 of 5")
    assert "progressbar" not in head(*summary(tmp_path))


def test_events_are_sentences_with_the_words_of_the_trade_explained(tmp_path):
    run = make_run(tmp_path, "20260101-000000-a", "completed")
    run.event("message", text="plan      fan-in 4 of 32 <b>")
    shown = happenings(*summary(tmp_path))
    assert "plan: <abbr title=" in shown and ">fan-in</abbr> 4 of 32 &lt;b&gt;" in shown


def test_settings_of_runs_have_their_titles(tmp_path):
    for number, fan_in in enumerate((8, 16)):
        run = make_run(tmp_path, f"20260101-00000{number}-a", "completed", metrics={"P@1": 0.5})
        config = {"run.name": f"a{number}", "data.path": "<b>", "classifier.fan_in": fan_in, "training.epochs": 2}
        run.write_json("config.json", {"config": config, "origins": dict.fromkeys(config, "--set")})
    runs = list_runs(tmp_path)
    shown = compare(runs, Histories())
    assert "Fan-in (classifier.fan_in)" in shown and "Epochs (training.epochs)" not in shown
    assert '<abbr title="share of the texts' in shown and "The other 2 settings are the same" in shown
    one = details(runs[0])
    assert "Dataset (data.path)" in one and "&lt;b&gt; (--set)" in one and "run.name" not in one
    assert "<abbr title=" in listing(runs, [{}, {}])


def summary(root):
    """A run as the page Train sees it."""
    (run,) = list_runs(root)
    return run, Histories().of(run.path)
