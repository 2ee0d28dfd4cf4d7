"""The asking side: errors as their own classes, repetition only where it can do no harm."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau

import tau as module


@contextmanager
def fake(home: Path, answer: Callable[[int, bytes], bytes]) -> Iterator[list[bytes]]:
    """A listener at a home's socket that answers the first line of each connection, then closes it."""
    asked: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "tau.sock"))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                asked.append(lines.readline())
                connection.sendall(answer(len(asked), asked[-1]))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(line: bytes, **members: Any) -> bytes:
    """A response to the request on *line*."""
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], **members}).encode() + b"\n"


def test_errors_come_back_as_their_own_classes(tau: Tau) -> None:
    with module.Client(home=str(tau.home)) as client:
        with pytest.raises(module.NotFound) as refused:
            client.call("show", {"name": "nothing"})
        assert refused.value.hint
        with pytest.raises(module.UnknownMethod):
            client.call("nothing", {})
        assert client.call("status", {})["pid"] == tau.pid()


def test_a_lost_read_is_repeated_and_a_lost_write_is_not(home: Tau) -> None:
    def second_time(count: int, line: bytes) -> bytes:
        return b"" if count == 1 else reply(line, result={"count": count})

    for method, params, expected in (
        ("status", {}, 2),
        ("run", {"name": "x", "key": "k"}, 2),
        ("run", {"name": "x"}, None),
        ("undeploy", {"name": "x"}, None),
    ):
        with fake(home.home, second_time) as asked, module.Client(home=str(home.home)) as client:
            if expected is None:
                with pytest.raises(module.Unavailable):
                    client.call(method, params)
                assert len(asked) == 1
            else:
                assert client.call(method, params)["count"] == expected
        home.socket.unlink()


def test_repeated_requests_do_not_repeat_their_events(home: Tau) -> None:
    def event(seq: int) -> bytes:
        return json.dumps({"method": "event", "params": {"request": 0, "seq": seq, "type": "log"}}).encode() + b"\n"

    def lost_after_two(count: int, line: bytes) -> bytes:
        number = json.loads(line)["id"]
        events = b"".join(event(seq) for seq in range(1, 3 if count == 1 else 5)).replace(
            b'"request": 0', b'"request": %d' % number
        )
        return events if count == 1 else events + reply(line, result={})

    seen: list[int] = []
    with fake(home.home, lost_after_two), module.Client(home=str(home.home)) as client:
        client.call("logs", {"name": "x", "follow": True}, lambda one: seen.append(one["seq"]))
    home.socket.unlink()
    assert seen == [1, 2, 3, 4]


def test_what_answers_may_be_no_tau(home: Tau) -> None:
    with fake(home.home, lambda count, line: b"HTTP/1.1 400 Bad Request\r\n"):
        error = home("undeploy", "x", exit=6)
    home.socket.unlink()
    assert "not a Tau daemon" in error["message"]


def test_why_there_is_no_daemon_is_told_apart(home: Tau) -> None:
    assert "there is no socket" in home("status", exit=6)["message"]
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(home.socket))
    stale.close()
    assert "no daemon listens" in home("status", exit=6)["message"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert f"127.0.0.1:{port}" in home("--host", f"127.0.0.1:{port}", "status", exit=6)["message"]
    assert home("--host", "tcp://no.such.host.invalid:1", "status", exit=6)["code"] == "unavailable"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("unix:///a/b.sock", ("unix", "", 0, "/a/b.sock")),
        ("tcp://h:1", ("tcp", "h", 1, "")),
        ("tcp://h", ("tcp", "h", 8400, "")),
        ("tls://h", ("tls", "h", 8400, "")),
        ("h:1", ("tcp", "h", 1, "")),
        ("http://localhost:8400/", ("http", "localhost", 8400, "")),
        ("http://h", ("http", "h", 80, "")),
        ("https://tau.example.com", ("https", "tau.example.com", 443, "")),
        ("https://example.com/behind/tau/", ("https", "example.com", 443, "/behind/tau")),
        ("tcp://[::1]:8400", ("tcp", "::1", 8400, "")),
        ("https://[::1]", ("https", "::1", 443, "")),
    ],
)
def test_addresses(text: str, parsed: tuple[str, str, int, str]) -> None:
    address = module.Address(text)
    assert (address.scheme, address.host, address.port, address.path) == parsed
