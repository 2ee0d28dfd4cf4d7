"""The asking side: errors as their own classes, repetition only where it can do no harm."""

from __future__ import annotations

import concurrent.futures
import json
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, free_port

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


def test_the_hint_starts_the_daemon_that_was_asked_for(home: Tau) -> None:
    assert home("status", exit=6)["hint"] == "taud --detach"
    assert home("--home", home.home, "status", exit=6)["hint"] == "taud --detach"
    other = home.work / "another home"
    for words in (["--home", other], ["--host", f"unix://{other}/tau.sock"]):
        assert home(*words, "status", exit=6)["hint"] == f"taud --home '{other}' --detach"


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


@pytest.mark.parametrize(
    "text",
    ["", "h", "tcp://", "tcp://h:0", "tcp://h:65536", "tcp://h:x", "tcp://h/path", "ftp://h", "https://h?x", "h h:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(module.BadRequest, match="is not an address"):
        module.Address(text)


@pytest.mark.parametrize("text", ["https://me:s3cret@h", "me:s3cret@h:1", "tcp://me:s3/cret@h:1"])
def test_the_password_of_an_address_is_not_repeated(text: str) -> None:
    with pytest.raises(module.BadRequest, match="…@h") as refused:
        module.Address(text)
    assert "cret" not in str(refused.value)


@contextmanager
def speaking(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP listener that treats each connection so, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            connection.settimeout(PATIENCE_S)
            try:
                answer(connection)
            except OSError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in kept:
            connection.close()


def saying(text: bytes) -> Callable[[socket.socket], None]:
    """Reads something, says something and closes."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(text)
        connection.close()

    return answer


def nothing(connection: socket.socket) -> None:
    """Reads and is silent."""
    connection.recv(1 << 16)


def page(status: str, *headers: str, body: str = "") -> bytes:
    """A response of HTTP."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body]).encode()


FORBIDDEN = '{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"m","data":{"code":"forbidden","hint":"h"}}}\n'
#: what answers, by which scheme it is asked → exit code, error code, reason
ANSWERS: dict[str, tuple[str, Callable[[socket.socket], None], int, str, str | None]] = {
    "a mail server": ("tcp", saying(b"220 mail ESMTP\r\n"), 6, "unavailable", "not_a_tau"),
    "a web server": ("tcp", saying(page("400 Bad Request")), 6, "unavailable", "not_a_tau"),
    "nobody": ("tcp", saying(b""), 6, "unavailable", "lost"),
    "silence": ("tcp", nothing, 6, "unavailable", "silent"),
    "silence on the web": ("http", nothing, 6, "unavailable", "silent"),
    "a newer daemon": (
        *("tcp", saying(b'{"id":0,"result":{"protocol":2,"version":"9.9"}}\n')),
        *(5, "conflict", "version_mismatch"),
    ),
    "a newer daemon on the web": (
        "http",
        saying(page("200 OK", "Tau-Protocol: 2", body="{}")),
        5,
        "conflict",
        "version_mismatch",
    ),
    "another web site": ("http", saying(page("200 OK", body="<html>")), 6, "unavailable", "not_a_tau"),
    "a page that is not there": ("http", saying(page("404 Not Found")), 6, "unavailable", "not_a_tau"),
    "a proxy without a daemon": ("http", saying(page("502 Bad Gateway", body="<html>")), 6, "unavailable", "gateway"),
    "a redirection": (
        "http",
        saying(page("301 Moved", "Location: https://tau.example.com/rpc")),
        6,
        "unavailable",
        "moved",
    ),
    "a redirection into the shell": (
        *("http", saying(page("301 Moved", "Location: https://x/;touch $HOME"))),
        *(6, "unavailable", "moved"),
    ),
    "lines where HTTP is meant": ("http", saying(b'{"id":0}\n'), 6, "unavailable", "not_a_tau"),
    "a wrong key": ("http", saying(page("401 Unauthorized", "Tau-Protocol: 1", body=FORBIDDEN)), 4, "forbidden", None),
    "half an answer": (
        "http",
        saying(page("200 OK", "Tau-Protocol: 1")[:-4] + b"9\r\n\r\n{"),
        6,
        "unavailable",
        "lost",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_answers_is_told_apart(home: Tau, name: str) -> None:
    scheme, answer, code, error_code, reason = ANSWERS[name]
    with speaking(answer) as port:
        error = home("--host", f"{scheme}://127.0.0.1:{port}", "undeploy", "x", exit=code, TAU_TIMEOUT_S="0.2")
    assert (error["code"], error.get("reason")) == (error_code, reason)
    assert error["hint"]
    if name == "a redirection":
        assert error["hint"] == "--host https://tau.example.com"
    if name == "a redirection into the shell":
        assert error["hint"] == "--host 'https://x/;touch $HOME'"


def test_a_method_that_a_daemon_of_another_version_lacks_is_said_to_be_one(home: Tau) -> None:
    def older(count: int, line: bytes) -> bytes:
        refused = {"code": -32601, "message": "no method 'status'", "data": {"code": "method_not_found", "hint": ""}}
        if json.loads(line)["method"] == "ping":
            return reply(line, result={"protocol": 1, "version": "0.0.1"})
        return (
            reply(line, error=refused)
            + json.dumps({"jsonrpc": "2.0", "id": 2, "result": {"protocol": 1, "version": "0.0.1"}}).encode()
            + b"\n"
        )

    with fake(home.home, older):
        error = home("undeploy", "x", exit=5)
    home.socket.unlink()
    assert error["reason"] == "version_mismatch"
    assert "0.0.1" in error["message"]


def test_a_client_that_was_interrupted_works_on(tau: Tau) -> None:
    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    tau.deploy_held()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with module.Client(home=str(tau.home)) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                client.call("run", {"name": "it"})
            assert client.call("cancel", {"run_id": "it"})["status"] == "cancelled"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_client_can_be_given_to_a_process(tau: Tau) -> None:
    with module.Client(home=str(tau.home)) as client:
        client.call("version", {})
        with pickle.loads(pickle.dumps(client)) as other:
            assert other.call("version", {}) == client.call("version", {})


def test_threads_take_turns_with_a_client(tau: Tau) -> None:
    with module.Client(home=str(tau.home)) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        methods = ["status", "version", "list"] * 20
        answers = [*pool.map(lambda method: client.call(method, {}), methods)]
    keys = {"status": "queued", "version": "protocol", "list": "pipelines"}
    assert all(keys[method] in answer for method, answer in zip(methods, answers, strict=True))


def test_a_daemon_that_works_long_is_not_given_up(tau: Tau) -> None:
    tau.deploy_held()
    waiting = threading.Timer(0.7, tau.go.touch)
    waiting.start()
    assert tau("run", "it", TAU_TIMEOUT_S="0.1")["status"] == "success"
    waiting.join()


def test_a_key_in_the_clear_to_another_machine_is_a_warning(home: Tau) -> None:
    addresses = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    address = next((one for one in addresses if not one.startswith("127.")), None)
    if address is None:
        pytest.skip("this machine has no address but those of loopback")
    key = module.new_key()
    (home.home / "tau.toml").write_text(f'[auth]\napi_key = "{key}"\n')
    started = home.start("--host", str(address), "--port", str(free_port()))
    done = home.command("list", TAU_HOST=started["addresses"][1], TAU_API_KEY=key)
    assert done.json["total"] == 0
    assert "in the clear" in json.loads(done.err)["warning"]["message"]
    assert key not in done.err


def test_a_timeout_that_is_none_is_refused(tau: Tau) -> None:
    assert tau("list", exit=2, TAU_TIMEOUT_S="soon")["code"] == "bad_request"
