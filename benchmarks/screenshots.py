"""Pictures of every page of the interface, in light, in dark and on a phone, for the README.

    python benchmarks/screenshots.py --runs runs --datasets datasets --output docs/screenshots

Starts the interface over runs and datasets that are there (the README's first command makes a run of the built-in
corpus; two runs make the comparison), drives it with headless Chromium, and writes `<page>-<look>.png`, each below
200 KiB. Needs playwright and a Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOOKS = {"light": ("light", 1280, 800), "dark": ("dark", 1280, 800), "phone": ("light", 390, 844)}
LARGEST = 200 * 1024  # bytes
COLOURS = 128
TEXT = "open a file and append some text to it"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    parser.add_argument("--dataset", default="Python API finder, standard library", help="shown on the page Data")
    parser.add_argument("--output", type=Path, default=Path("docs/screenshots"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with interface(options.runs, options.datasets) as (address, _), sync_playwright() as playwright:
        browser = chromium(playwright)
        for look, (scheme, width, height) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(address)
            for name, prepare in PAGES.items():
                open_page(page, name.capitalize())
                prepare(page, options)
                page.wait_for_timeout(1500)
                page.evaluate("document.activeElement.blur()")
                save(page.screenshot(), options.output / f"{name}-{look}.png")
            page.close()
        browser.close()


@contextmanager
def interface(runs: Path, datasets: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of an interface over these folders, at a free port, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "--port", str(port), "--runs", str(runs), "--datasets", str(datasets)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_for(address)
        yield address, server.pid
    finally:
        server.terminate()
        server.wait()


def chromium(playwright: Any) -> Any:
    """A browser without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)))
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])


def wait_for(address: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the interface did not start")


def open_page(page, name: str) -> None:
    """By its tab, or on a narrow screen by the menu of those that found no place."""
    page.evaluate("window.scrollTo(0, 0)")
    page.get_by_role("tab").first.wait_for()
    tab = page.get_by_role("tab", name=name, exact=True).first
    if not tab.is_visible():
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.click()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).filter(visible=True).first.click()
    page.get_by_role("option", name=re.compile(option)).first.click()


def data(page, options) -> None:
    choose(page, "Dataset", f"^{re.escape(options.dataset)}")
    page.locator("#pages .columns").first.wait_for(timeout=180_000)
    if page.locator("#upload").is_visible():  # the form is open until there is a dataset of one's own
        page.locator("#bring").get_by_role("button", name="Bring your own").click()


def plan(page, options) -> None:
    choose(page, "Dataset", "number of labels")
    page.get_by_role("spinbutton", name="Number of labels").fill("2812281")
    choose(page, "Plan for", "^8 ?GB")
    choose(page, "Encoder", "bert-base-uncased$")
    page.get_by_text("Why", exact=True).wait_for()


def train(page, options) -> None:
    page.locator("#run-head .chip").first.wait_for()
    if page.get_by_role("button", name="Start training").is_visible():
        page.get_by_role("button", name="New training").click()


def runs(page, options) -> None:
    names = page.locator("[data-run]")
    names.first.wait_for()
    for i in range(min(2, names.count())):
        names.nth(i).click()
        page.wait_for_timeout(700)


def predict(page, options) -> None:
    page.get_by_label("Text to label").fill(TEXT)
    page.locator("#answer button").first.wait_for(timeout=60_000)
    page.locator("#answer button").first.click()


def system(page, options) -> None:
    page.get_by_text("What was looked at").wait_for(timeout=120_000)


PAGES = {"data": data, "plan": plan, "train": train, "runs": runs, "predict": predict, "system": system}


def save(png: bytes, file: Path) -> None:
    """Fewer colours: these pictures have few."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(file, optimize=True)
    size = file.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{file} has {size:,} bytes, more than {LARGEST:,}")
    print(f"{file}  {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
