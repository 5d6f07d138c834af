"""The browser interface as its users meet it: a real process on loopback, a real client, a real browser."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from app_process import serve, stop, words
from app_runs import make_run, save_bundle_of

from app.interface import PAGES
from engine.runs import RunDirectory

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_encoder):
    root = tmp_path_factory.mktemp("runs")
    done = make_run(root, "20260101-000000-done", "completed", 10, 10, "best at step 9", {"P@1": 0.735})
    save_bundle_of(tiny_encoder, done.model)
    make_run(root, "20260102-000000-bare", "stopped", 4, 10, "stopped on request")
    make_run(root, "20260103-000000-dead", "failed", 1, 10, "ran out of <i>memory</i>")
    # This very process writes its status, so it counts as running.
    live = make_run(root, "20260104-000000-live", "training", 250, 1000, "epoch 3 of 10")
    shutil.copytree(done.model, live.model)
    return root


@pytest.fixture(scope="module")
def address(root):
    # Settings of the environment that would open files and links if they were heeded.
    process, address = serve(root, GRADIO_ALLOWED_PATHS="/", GRADIO_SHARE="True", http_proxy="http://127.0.0.1:9")
    yield address
    stop(process)


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """The address of a server with a password and without runs."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "auth").write_text("me:hunter2:x\n")
    process, address = serve(folder / "none", "--auth", str(folder / "auth"))
    yield address
    stop(process)
    assert "hunter2" not in words(process)


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    yield client
    client.close()


def app(*options):
    command = [sys.executable, "-m", "app", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)


# Arguments


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_are_let_in_only_with_a_password(host):
    result = app("--host", host)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--auth FILE" in result.stderr


@pytest.mark.parametrize(
    "text", ["", "\n", "secret", "secret:", ":secret", "user:secret\nuser:other", "user\0:\xffx\ny"]
)
def test_a_bad_password_file_is_refused_and_not_shown(tmp_path, text):
    file = tmp_path / "auth"
    file.write_text(text, encoding="latin-1")
    result = app("--auth", str(file))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_a_bad_password_of_the_environment_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("FANIN_AUTH", "secret")
    result = app()
    assert result.returncode == 2
    assert result.stderr == (
        "python -m app: error: the environment variable FANIN_AUTH must hold exactly one line, user:password\n"
    )


def test_a_password_of_the_environment_is_asked_for(tmp_path):
    process, address = serve(tmp_path / "runs", FANIN_AUTH="me:hunter2")
    assert get(address + "config")[0] == 401
    stop(process)
    assert "hunter2" not in words(process)


@pytest.mark.parametrize(
    "options",
    [["--auth", "/nonexistent"], ["--runs", __file__], ["--port", "0"], ["--port", "70000"], ["--port", "x"], ["--x"]],
)
def test_bad_arguments_exit_with_2(options):
    result = app(*options)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_help_needs_no_gradio():
    code = """if True:
        import sys
        from app.__main__ import main
        try:
            main(["--help"])
        finally:
            assert "gradio" not in sys.modules and "torch" not in sys.modules
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "--auth FILE" in result.stdout


# Serving


def get(url, **headers):
    """(status, body), without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_client_lists_the_runs_newest_first(client):
    runs = client.predict(api_name="/runs")
    assert [(run["id"][16:], run["state"]) for run in runs] == [
        ("live", "training"),
        ("dead", "failed"),
        ("bare", "stopped"),
        ("done", "completed"),
    ]
    assert (runs[0]["step"], runs[0]["total"], runs[3]["metrics"]["P@1"]) == (250, 1000, 0.735)


def test_nothing_but_the_pages_is_served(address, root):
    config = json.loads(get(address + "config")[1])
    endpoints = {item["api_name"] for item in config["dependencies"] if item.get("api_visibility") == "public"}
    assert endpoints == {"runs", "predict"}
    assert config["analytics_enabled"] is False
    for path in ("/etc/passwd", str(root / "20260101-000000-done" / "status.json"), __file__):
        assert get(f"{address}gradio_api/file={path}")[0] in (403, 404)
    assert get(address + "monitoring")[0] >= 400
    assert get(address + "gradio_api/runs")[0] >= 400


def test_a_foreign_name_for_this_machine_is_refused(address):
    assert get(address, Host="attacker.example")[0] == 400
    assert get(address, Host="localhost")[0] == 200


def test_a_taken_port_is_named(address, root):
    port = re.search(r":(\d+)/", address)[1]
    result = app("--port", port, "--runs", str(root))
    assert result.returncode == 5
    assert len(result.stderr.splitlines()) == 1
    assert f"port {port}" in result.stderr


def test_a_password_is_asked_for(locked):
    assert get(locked + "config")[0] == 401
    assert get(locked + "gradio_api/info")[0] == 401


# In a browser


@pytest.fixture
def page(browser, address):
    """A new page at the address; afterwards, that it asked nobody else for anything and reported no error."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    hosts, errors = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address)
    yield page
    page.close()
    assert hosts - {""} == {address.split("/")[2]}
    assert errors == []


def wait_for(place, text):
    """The table also holds invisible copies of its cells, to measure them."""
    place.get_by_text(text).filter(visible=True).first.wait_for()


def open_page(page, name):
    page.get_by_role("tab", name=name).first.click()
    page.get_by_role("tab", name=name, selected=True).first.wait_for()


def test_browser_shows_runs_as_they_change(page, root):
    open_page(page, "Runs")
    table = page.locator("#runs")
    wait_for(table, "25% of 1,000")
    text = table.inner_text()
    for shown in (
        "20260101-000000-done",
        "✓ completed",
        "73.5 %",
        "✗ failed",
        "ran out of <i>memory</i>",
        "● training",
    ):
        assert shown in text
    wait_for(page.locator("#head"), "20260104-000000-live: training 25%")
    RunDirectory(root / "20260104-000000-live").status("training", 300, 1000, "epoch 4 of 10")
    wait_for(table, "30% of 1,000")


# Every visible text with its colour, what is behind it, and its size.
TEXTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (front, back) => front.slice(0, 3).map((c, i) => (c * front[3] + back[i] * (255 - front[3])) / 255);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((back, layer) => over(layer, back), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (element.closest('[disabled], [aria-hidden=true], style, script')) continue;
    const style = getComputedStyle(element), back = behind(element);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    found.push([text.slice(0, 60), over(rgba(style.color), back), back, size >= 24 || (bold && size >= 18.66)]);
  }
  return found;
}"""


def contrast(one, other):
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, address, scheme):
    """Contrast of at least 4.5, of large texts 3 (WCAG AA), on every page."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    faint = set()
    for name in PAGES:
        open_page(page, name.capitalize())
        page.wait_for_timeout(1500)
        for text, front, back, is_large in page.evaluate(TEXTS):
            ratio = contrast(front, back)
            if ratio < (3 if is_large else 4.5):
                faint.add((name, text, round(ratio, 2)))
    page.close()
    assert not faint


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    for name in PAGES:
        page.get_by_role("tab").first.wait_for()
        tab = page.get_by_role("tab", name=name.capitalize()).first
        if tab.is_visible():
            tab.click()
        else:
            page.locator(".overflow-menu > button").first.click()
            page.locator(".overflow-dropdown button", has_text=name.capitalize()).click()
        page.wait_for_timeout(700)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.close()


def test_every_control_has_a_name(page):
    for name in PAGES:
        open_page(page, name.capitalize())
        page.wait_for_timeout(500)
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button')].filter(
              e => !e.disabled && e.checkVisibility() && !(e.innerText || '').trim() && !e.ariaLabel && !e.title
                && !(e.labels && e.labels.length) && !e.getAttribute('aria-labelledby')
            ).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == [], name


def test_behind_the_password_a_page_without_runs_says_how_to_make_one(browser, locked):
    page = browser.new_page()
    page.goto(locked)
    for password in ("hunter2", "hunter2:x"):
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill(password)
        page.get_by_role("button", name="Login").click()
        if password == "hunter2":
            page.get_by_text("Incorrect Credentials").wait_for()
    open_page(page, "Runs")
    command = page.get_by_text("engine train --profile cpu --output")
    command.wait_for()
    open_page(page, "Predict")
    page.get_by_text("No finished run has a model yet").wait_for()
    make_run(Path(command.inner_text().split()[-1]), "20260101-000000-first", "completed")
    open_page(page, "Runs")
    wait_for(page.locator("#runs"), "20260101-000000-first")
    page.close()


def test_the_interface_never_loads_the_trainer(tmp_path):
    code = (
        "import sys; from pathlib import Path; from app.interface import build; from app.workspace import Workspace\n"
        f"build(Workspace(Path({str(tmp_path)!r}) / 'runs', Path({str(tmp_path)!r}) / 'datasets'))\n"
        "print([name for name in ('torch', 'transformers', 'engine.training.trainer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
