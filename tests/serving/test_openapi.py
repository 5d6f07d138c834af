"""The description of the interface: a page that needs no network, and a server that does what it says."""

import http.client
import re
import subprocess
import sys

import pytest


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("content-type"), content


def test_the_page_needs_nothing_from_elsewhere(port):
    status, kind, page = get(port, "/docs")
    assert status == 200 and kind.startswith("text/html")
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page) == ["openapi.json"]
    assert "http:" not in page and "https:" not in page and "url(" not in page
    for words in ("POST /predict", "GET /labels/{id}", "GET /health", "(up to 256)", "leave out labels", "422"):
        assert words in page


def test_a_browser_shows_the_page(port, browser):
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/docs")
    assert page.locator("h2").first.inner_text() == "POST /predict"
    page.locator("summary").first.click()
    assert page.locator("details pre").first.is_visible()
    page.close()
    assert {url.partition("?")[0] for url in asked} <= {f"http://127.0.0.1:{port}/{p}" for p in ("docs", "favicon.ico")}


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_schemathesis_finds_no_error(port, tmp_path):
    """Requests made from the description, valid ones and others, alone and one after another."""
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", CHECKS,
        "--max-examples", "30", "--seed", "1", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Tested: 4" in done.stdout
