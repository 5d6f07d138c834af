"""`engine serve` as its clients meet it: a real process on loopback, asked over HTTP."""

import http.client
import json
import os
import signal
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cli import main
from engine.inference.predictor import Predictor
from served import running

TOKEN = "0123456789abcdef-secret"


def ask(port, method, path, body=None, **headers):
    """(status, decoded body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, content, names)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_one_text_and_many_give_what_the_predictor_gives(port, random_model):
    texts = ["open the file", "sort a tree", "the quick graph of a slow queue"]
    expected = [[(p.label, p.label_id) for p in row] for row in Predictor.load(random_model, "cpu").predict(texts, 3)]
    status, answer = ask(port, "POST", "/predict", {"text": texts, "k": 3})
    assert status == 200
    found = [[(label["label"], label["id"]) for label in result["labels"]] for result in answer["results"]]
    assert found == expected
    status, answer = ask(port, "POST", "/predict", {"text": texts[1], "k": 3})
    assert [[(label["label"], label["id"]) for label in r["labels"]] for r in answer["results"]] == expected[1:2]


def test_a_threshold_leaves_out_less_probable_labels(port):
    everything = ask(port, "POST", "/predict", {"text": "open the file", "k": 100})[1]["results"][0]["labels"]
    middle = everything[10]["probability"]
    above = ask(port, "POST", "/predict", {"text": "open the file", "k": 100, "threshold": middle})[1]
    assert [label["id"] for label in above["results"][0]["labels"]] == [label["id"] for label in everything[:11]]
    assert ask(port, "POST", "/predict", {"text": "open the file", "threshold": 1})[1] == {"results": [{"labels": []}]}


def test_labels_by_prefix_come_in_pages(port):
    found, after = [], -1
    while after is not None:
        status, page = ask(port, "GET", f"/labels?prefix=label-1&limit=7&after={after}")
        assert status == 200
        assert len(page["labels"]) <= 7
        found += [label["name"] for label in page["labels"]]
        after = page["next"]
    assert found == [f"label-{i}" for i in range(120) if str(i).startswith("1")]
    assert ask(port, "GET", "/labels?prefix=nothing")[1] == {"labels": [], "next": None}
    assert len(ask(port, "GET", "/labels")[1]["labels"]) == 20


def test_a_label_by_its_id(port):
    assert ask(port, "GET", "/labels/119") == (200, {"id": 119, "name": "label-119"})
    assert ask(port, "GET", "/labels/120")[0] == 404
    assert ask(port, "GET", "/labels/..%2f..%2fetc%2fpasswd")[0] in (404, 422)


def test_health_and_the_description_of_the_interface(port):
    assert ask(port, "GET", "/health") == (200, {"status": "ok", "waiting": 0})
    paths = ask(port, "GET", "/openapi.json")[1]["paths"]
    assert set(paths) == {"/predict", "/labels", "/labels/{id}", "/health"}


REFUSED = {
    "no text": ({"k": 3}, 422),
    "a blank text": ({"text": " \u2003\n"}, 422),
    "a blank text in a list": ({"text": ["a", "\x1c"]}, 422),
    "no texts": ({"text": []}, 422),
    "too many texts": ({"text": ["a"] * 257}, 422),
    "too many characters": ({"text": "a" * 20_001}, 422),
    "k of 0": ({"text": "a", "k": 0}, 422),
    "k too large": ({"text": "a", "k": 101}, 422),
    "a threshold above 1": ({"text": "a", "threshold": 1.5}, 422),
    "a threshold that is no number": (b'{"text": "a", "threshold": NaN}', 422),
    "something unknown": ({"text": "a", "path": "/etc/passwd"}, 422),
    "half a character": (b'{"text": "\\ud800"}', 422),
    "half a character as a name": (b'{"text": "a", "\\udfff": 1}', 422),
    "no JSON": (b"{", 422),
    "no UTF-8": (b'{"text": "\xff"}', 400),
    "very deep JSON": (b"[" * 100_000, 400),
    "a very long number": (b'{"text": "a", "k": ' + b"9" * 10_000 + b"}", 400),
    "a large body": (b" " * (2**20 + 1), 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_reason(port, name):
    body, expected = REFUSED[name]
    status, answer = ask(port, "POST", "/predict", body)
    assert status in ({expected, 422} if expected == 400 else {expected}), answer
    assert isinstance(answer["detail"], str)
    assert ask(port, "POST", "/predict", {"text": "open the file"})[0] == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
questions = st.fixed_dictionaries(
    {"text": st.text(max_size=60) | st.lists(st.text(max_size=60), max_size=4) | json_values},
    optional={"k": st.integers(-2, 120) | json_values, "threshold": st.floats() | json_values},
)


@settings(max_examples=150, deadline=None)
@given(questions | json_values)
def test_no_question_makes_the_server_fail(port, question):
    status, answer = ask(port, "POST", "/predict", json.dumps(question).encode())
    assert status in (200, 400, 422), answer


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(port, body):
    assert ask(port, "POST", "/predict", body)[0] in (400, 422)


def test_a_body_in_chunks_that_grows_too_large_is_refused(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        connection.sendall(head)
        connection.sendall(17 * piece + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_page_of_another_name_cannot_ask(port):
    assert ask(port, "POST", "/predict", {"text": "a"}, host="evil.example:80")[0] == 421
    assert ask(port, "POST", "/predict", {"text": "a"}, host=f"localhost:{port}")[0] == 200


def test_concurrent_clients_each_get_their_own_answer(port, random_model):
    texts = [f"{verb} the {topic}" for verb in ("open", "sort", "copy", "merge") for topic in ("file", "tree", "mail")]
    expected = dict(zip(texts, Predictor.load(random_model, "cpu").predict(texts, 2), strict=True))
    wrong = []

    def client(text):
        for _ in range(10):
            status, answer = ask(port, "POST", "/predict", {"text": text, "k": 2})
            ids = [label["id"] for label in answer["results"][0]["labels"]]
            if status != 200 or ids != [p.label_id for p in expected[text]]:
                wrong.append((text, answer))

    threads = [threading.Thread(target=client, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_the_token_opens_the_model(random_model, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    with running(random_model, "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")) as (_, port):
        for header in (
            {},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": TOKEN},
            {"authorization": "Bearer"},
        ):
            assert ask(port, "POST", "/predict", {"text": "a"}, **header)[0] == 401
            assert ask(port, "GET", "/labels", **header)[0] == 401
        assert ask(port, "POST", "/predict", {"text": "open"}, authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(port, "GET", "/health")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_in_flight(random_model, number):
    with running(random_model) as (process, port):
        answers = []
        body = {"text": ["open the file into a tree " * 10] * 256, "k": 100}
        client = threading.Thread(target=lambda: answers.append(ask(port, "POST", "/predict", body)[0]))
        client.start()
        while not ask(port, "GET", "/health")[1]["waiting"]:
            assert client.is_alive()
        os.kill(process.pid, number)
        client.join()
        assert process.wait(60) == 0
        assert answers == [200]
        assert "Traceback" not in process.stderr.read()


BAD_TOKENS = {"short": "abc", "two lines": f"{TOKEN}\n{TOKEN}", "empty": "", "not ASCII": "ü" * 20}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_tokens_that_protect_nothing_are_refused(random_model, tmp_path, capsys, name):
    (tmp_path / "token").write_text(BAD_TOKENS[name])
    assert main(["serve", str(random_model), "--token-file", str(tmp_path / "token")]) == 2
    error = capsys.readouterr().err
    assert "--token-file" in error
    assert TOKEN not in error


def test_other_machines_need_a_token(random_model, capsys):
    for host in ("0.0.0.0", "::", "example.org"):
        assert main(["serve", str(random_model), "--host", host]) == 2
        assert "needs a token: add --token-file FILE" in capsys.readouterr().err


def test_a_port_in_use_is_named(random_model, port, capsys):
    assert main(["serve", str(random_model), "--port", str(port)]) == 5
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 3
    assert "neither a model nor a run" in capsys.readouterr().err
