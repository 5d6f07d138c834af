"""Connections that ask nothing, or never finish asking, are closed; a request that takes long is not."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from engine.serving.connection import Connection

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Hasty(Connection):
    SECONDS = 0.2


async def slow(scope, receive, send):
    """Answers after several looks at the connection."""
    await asyncio.sleep(5 * Hasty.SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address():
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(slow, http=Hasty, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    yield bound.getsockname()
    server.should_exit = True
    thread.join()
    bound.close()


@pytest.fixture
def connection(address):
    with socket.create_connection(address, timeout=60) as made:
        yield made


def answer(connection):
    found = b""
    while not found.endswith(b"\r\n\r\nok"):
        part = connection.recv(1000)
        assert part, found
        found += part
    return found


def drip(connection):
    """Sends a byte of a header now and then, for a minute. Raises ConnectionError when the other side closes."""
    for _ in range(600):
        connection.sendall(b"x")
        time.sleep(0.1)


def test_a_connection_without_a_request_is_closed(connection):
    assert connection.recv(1) == b""


def test_a_request_that_never_ends_to_begin_is_closed(connection):
    connection.sendall(HEAD + b"a: ")
    with pytest.raises(ConnectionError):
        drip(connection)


def test_a_request_that_takes_long_is_answered_and_the_next_one_has_no_more_time(connection):
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
    connection.sendall(HEAD + b"a: ")
    with pytest.raises(ConnectionError):
        drip(connection)
