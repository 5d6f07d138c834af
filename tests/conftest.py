"""A tiny encoder made from a configuration, a tiny corpus, a home directory that is not the user's, and a browser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from random_model import make_bundle
from tiny import make_encoder, make_rows, write_dataset

BROWSER_PATIENCE = 120_000  # ms: a busy machine is slow, not wrong
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

os.environ["COLUMNS"] = "110"  # of the terminal, whatever it is
os.environ["OMP_NUM_THREADS"] = "1"  # tiny matrices: more threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may reach the network


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's home or the working folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.chdir(home)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps one precision a process; every test may choose its own."""
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """600 training texts, of which two have no label; 100 test texts; 120 labels."""
    train = [*make_rows(598, 1), ("the quick graph", []), ("a slow queue", [])]
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", train, make_rows(100, 2))


@pytest.fixture(scope="session")
def random_model(tiny_encoder, tmp_path_factory) -> Path:
    """A model bundle of 120 labels that was never trained."""
    return make_bundle(tmp_path_factory.mktemp("random") / "model", tiny_encoder, 120)


@pytest.fixture(scope="session")
def tiny_flags(tiny_encoder, tiny_dataset) -> list[str]:
    """Arguments of `engine train` that make a run of seconds."""
    settings = {
        "data.max_tokens": 16, "data.validation_fraction": 0.1, "classifier.fan_in": 8, "classifier.group_size": 4,
        "training.batch_size": 32, "training.warmup_steps": 5, "rewire.interval": 7, "evaluation.baselines": "false",
        "classifier.learning_rate": 0.02,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--profile", "cpu", "--data", str(tiny_dataset), "--encoder", str(tiny_encoder), "--epochs", "4", *sets]


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window. Where CI lacks one, the tests fail; elsewhere they are skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = "no Chromium or Chrome on this machine" if found is None else ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        make = browser.new_page

        def new_page(**settings):
            page = make(**settings)
            page.set_default_timeout(BROWSER_PATIENCE)
            return page

        browser.new_page = new_page
        yield browser
        browser.close()
