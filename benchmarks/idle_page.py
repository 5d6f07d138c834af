"""What an open page costs while nothing goes on, page by page: shares of a core of the server and of a browser.

    python benchmarks/idle_page.py [--seconds 30] [--runs runs] [--datasets datasets]

Prints a table in Markdown. Needs playwright and a Chromium or Chrome; the processor time is that of Linux's /proc.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from screenshots import chromium, interface

from app.interface import PAGES

SETTLE_SECONDS = 12  # after a page was opened


def processor_seconds(processes: list[psutil.Process]) -> dict[int, float]:
    """By process id, of those that are still there."""
    found = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system
    return found


def share(processes: list[psutil.Process], before: dict[int, float], seconds: float) -> float:
    return sum(now - before.get(pid, 0.0) for pid, now in processor_seconds(processes).items()) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="looked at each page")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with interface(options.runs, options.datasets) as (address, pid), sync_playwright() as playwright:
        browser = chromium(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        time.sleep(SETTLE_SECONDS)
        print(f"{platform.machine()}, gradio {version('gradio')}, Chromium {browser.version}\n")
        print("| page | server | browser |\n|---|---|---|")
        for name in PAGES:
            page.get_by_role("tab", name=name.capitalize()).click()
            time.sleep(SETTLE_SECONDS)
            shown = [each for each in psutil.Process().children(recursive=True) if "chrom" in each.name()]
            server = [psutil.Process(pid)]
            before, began = processor_seconds([*server, *shown]), time.monotonic()
            time.sleep(options.seconds)
            seconds = time.monotonic() - began
            served, drawn = share(server, before, seconds), share(shown, before, seconds)
            print(f"| {name.capitalize()} | {served:.1%} | {drawn:.1%} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
