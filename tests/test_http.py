"""The other tongue of the TCP port: what a proxy, a browser, curl and an attacker may say in HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import answers
import pytest
from conftest import PATIENCE_S, Tau, eventually, make_home, served, started

import tau as module


@pytest.fixture(scope="module")
def web() -> Iterator[Tau]:
    """A daemon that listens on TCP."""
    yield from started(make_home("[daemon]\nstop_grace_s = 0.5\n", "http"))


def key_of(web: Tau) -> str:
    """The key of the home."""
    return (web.home / "key").read_text().strip()


def say(web: Tau, *pieces: bytes, end: bool = False) -> bytes:
    """Everything that comes back on one connection, until the daemon closes it."""
    with socket.create_connection(("127.0.0.1", web.port), 20) as peer:
        for piece in pieces:
            peer.sendall(piece)
        if end:
            peer.shutdown(socket.SHUT_WR)
        found = b""
        while piece := peer.recv(1 << 16):
            found += piece
    return found


def post(web: Tau, body: bytes, *headers: str, version: str = "1.1", key: str | None = None) -> bytes:
    """A request, with the headers that every request needs."""
    lines = [f"POST /rpc HTTP/{version}", "Host: tau", f"Authorization: Bearer {key or key_of(web)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connect(web: Tau) -> http.client.HTTPConnection:
    """The library's own client."""
    return http.client.HTTPConnection("127.0.0.1", web.port, timeout=PATIENCE_S)


def ask(web: Tau, document: Any, **headers: str) -> tuple[int, list[Any]]:
    """The status and the documents of one request."""
    connection = connect(web)
    try:
        connection.request("POST", "/rpc", json.dumps(document), {"Authorization": f"Bearer {key_of(web)}", **headers})
        response = connection.getresponse()
        documents = [json.loads(line) for line in response.read().splitlines() if line.strip()]
    finally:
        connection.close()
    for one in documents:
        for message in one if isinstance(one, list) else [one]:
            asked = document if isinstance(document, list) else [document]
            answers.validate_message(message, {repr(request.get("id")): request for request in asked})
    return response.status, documents


def test_a_document_is_answered_by_a_document(web: Tau) -> None:
    status, (answer,) = ask(web, {"id": 7, "method": "version"})
    assert (status, answer["id"], answer["result"]["version"]) == (200, 7, module.__version__)
    status, (answer,) = ask(web, {"id": "x", "method": "show", "params": {"name": "nothing"}})
    assert (status, answer["id"], answer["error"]["data"]["code"]) == (200, "x", "not_found")


def test_a_batch_is_answered_by_a_batch_and_a_notification_by_nothing(web: Tau) -> None:
    status, (batch,) = ask(web, [{"id": 1, "method": "ping"}, {"method": "ping"}, {"id": 2, "method": "ping"}])
    assert (status, sorted(one["id"] for one in batch)) == (200, [1, 2])
    assert ask(web, {"method": "ping"}) == (204, [])


def test_followed_requests_come_in_pieces(web: Tau) -> None:
    web.deploy_it("def it(ctx):\n    ctx.log('one')\n    ctx.log('two')\n    return 3")
    status, lines = ask(web, {"id": 1, "method": "run", "params": {"name": "it", "follow": True}})
    logged = [one["params"]["message"] for one in lines[:-1] if one["params"]["type"] == "log"]
    assert (status, logged, lines[-1]["result"]["result"]) == (200, ["one", "two"], 3)


def test_one_connection_carries_many_requests(web: Tau) -> None:
    connection = connect(web)
    headers = {"Authorization": f"Bearer {key_of(web)}"}
    for number in range(5):
        connection.request("POST", "/rpc", json.dumps({"id": number, "method": "ping"}), headers)
        assert json.loads(connection.getresponse().read())["id"] == number
    connection.close()
    answers = say(
        web, post(web, b"{}", "Content-Length: 2") * 3 + post(web, b"{}", "Content-Length: 2", "Connection: close")
    )
    assert answers.count(b"HTTP/1.1 200 OK") == 4


def test_old_clients_get_no_chunks(web: Tau) -> None:
    body = b'{"id":1,"method":"run","params":{"name":"it","follow":true}}'
    web.deploy_it("def it(ctx):\n    ctx.log('one')\n    return 3")
    answer = say(web, post(web, body, f"Content-Length: {len(body)}", version="1.0"))
    head, _, lines = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert json.loads(lines.splitlines()[-1])["result"]["result"] == 3


def test_a_large_body_is_asked_for_first(web: Tau) -> None:
    body = json.dumps({"id": 1, "method": "ping", "params": {"x": "y" * 100_000}}).encode()
    with socket.create_connection(("127.0.0.1", web.port), 20) as peer:
        peer.sendall(post(web, b"", f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"))
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body)
        assert b"200 OK" in peer.makefile("rb").read()


def test_curl_works(web: Tau) -> None:
    word = ["curl", "-sS", "-H", f"Authorization: Bearer {key_of(web)}", f"http://127.0.0.1:{web.port}/rpc"]
    done = subprocess.run(
        [*word, "-d", '{"id":1,"method":"status"}'], capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert json.loads(done.stdout)["result"]["pid"] == web.pid()


def test_health_is_for_everybody_and_metrics_are_not(web: Tau) -> None:
    for path, text in (("/healthz", b"ok\n"), ("/readyz", b"ready\n")):
        for method, expected in (("GET", text), ("HEAD", b"")):
            connection = connect(web)
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, expected)
            connection.close()
    assert b" 401 " in say(web, b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
    assert b" 401 " in say(web, b"GET /anything HTTP/1.1\r\nHost: t\r\n\r\n")


def test_a_refusal_of_head_has_a_length_and_no_body(web: Tau) -> None:
    answer = say(web, b"HEAD /nowhere HTTP/1.1\r\nHost: tau\r\nAuthorization: Bearer wrong\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Content-Length: " in answer
    assert answer.endswith(b"\r\n\r\n")


def metrics(web: Tau) -> dict[str, float]:
    """Every sample by its name and labels; fails for a line that Prometheus would not read."""
    connection = connect(web)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key_of(web)}"})
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples, types = {}, {}
    for line in response.read().decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            name, value = line.rsplit(" ", 1)
            family = name.partition("{")[0]
            assert family in types or family.rpartition("_")[0] in types, line
            samples[name] = float(value)
    connection.close()
    return samples


def test_metrics_count_what_happens(web: Tau) -> None:
    before = metrics(web)
    web.run_it("def it(ctx):\n    return 1")
    web.run_it("def it(ctx):\n    raise ValueError", exit=1)
    web("show", "nothing", exit=3)
    after = metrics(web)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert more('tau_runs_finished_total{namespace="default",status="success"}') == 1
    assert more('tau_runs_finished_total{namespace="default",status="failed"}') == 1
    assert more('tau_runs{namespace="default",status="success"}') == 1
    assert more("tau_run_duration_seconds_count") == 2
    assert more("tau_run_wait_seconds_count") == 2
    assert more('tau_run_duration_seconds_bucket{le="+Inf"}') == 2
    assert more('tau_request_duration_seconds_count{method="run"}') == 2
    assert more('tau_request_errors_total{method="show",code="not_found"}') == 1
    assert after["process_resident_memory_bytes"] > 1 << 20
    web("schedule", "it", "* * * * * *")
    eventually(lambda: metrics(web)["tau_schedule_lateness_seconds_count"] >= 1)
    web("schedule", "it", "--clear")
    web("undeploy", "it")
    ask(web, {"id": 1, "method": "no" * 500})
    assert not [name for name in metrics(web) if "nono" in name]


def test_not_ready_is_said_with_its_reason(web: Tau) -> None:
    made = make_home("[scheduler]\nmax_queued = 0\n", "http")
    made.start()
    answer = say(made, b"GET /readyz HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    made.stop()
    made.home.parent.rmdir()
    assert b" 503 " in answer
    assert b"the queue is full" in answer


LOUD = "def it(ctx):\n    for n in range(400):\n        ctx.log(f'{n:010000}')"


def logs_told(web: Tau) -> float:
    """How many logs have been told so far."""
    return metrics(web).get('tau_request_duration_seconds_count{method="logs"}', 0.0)


def test_whoever_does_not_read_lines_gets_no_more_of_them(web: Tau) -> None:
    web.run_it(LOUD)
    before = logs_told(web)
    with web.connect() as greedy:
        greedy.send(b'{"id":1,"method":"logs","params":{"name":"it"}}\n' * 60)
        eventually(lambda: logs_told(web) > before)
        assert logs_told(web) - before < 6
        answers = [greedy.receive() for _ in range(60)]
    assert [len(answer["result"]["lines"]) for answer in answers] == [200] * 60


def test_a_batch_has_no_more_answers_than_fit_into_a_line(web: Tau) -> None:
    web.run_it(LOUD)
    batch = [{"id": n, "method": "logs", "params": {"name": "it", "tail": 400}} for n in range(60)]
    _, (answers,) = ask(web, batch)
    told = [one for one in answers if "result" in one]
    refused = [one["error"]["data"]["code"] for one in answers if "error" in one]
    assert 2 <= len(told) <= 4  # four megabytes each, two at a time
    assert refused == ["too_much"] * (60 - len(told))
    assert sorted(one["id"] for one in answers) == [*range(60)]


def test_a_stranger_gets_one_page_and_a_goodbye(web: Tau) -> None:
    answer = say(web, b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer


def open_door(web: Tau) -> http.client.HTTPConnection:
    """A connection that has shown its key."""
    connection = connect(web)
    ask_for_metrics(connection, web)
    pings(connection)
    return connection


def ask_for_metrics(connection: http.client.HTTPConnection, web: Tau) -> None:
    """Asks; the answer is not read."""
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key_of(web)}"})


def pings(connection: http.client.HTTPConnection) -> float:
    """How many pings had been answered when the metrics were."""
    lines = connection.getresponse().read().decode().splitlines()
    found = [line for line in lines if line.startswith('tau_request_duration_seconds_count{method="ping"}')]
    return float(found[0].split()[-1]) if found else 0.0


def pings_before_others(web: Tau, first: bytes) -> tuple[float, http.client.HTTPConnection]:
    """How many pings are answered before another peer has its turn, if one has sent all this at once, and the one."""
    greedy, other = open_door(web), open_door(web)
    ask_for_metrics(other, web)
    before = pings(other)
    os.kill(web.pid(), signal.SIGSTOP)  # so that it finds both at once
    try:
        greedy.sock.sendall(first)
        ask_for_metrics(other, web)
    finally:
        os.kill(web.pid(), signal.SIGCONT)
    answered = pings(other) - before
    other.close()
    return answered, greedy


PING = b'{"id":1,"method":"ping"}'


def test_whoever_sends_many_requests_at_once_leaves_others_their_turn(web: Tau) -> None:
    answered, greedy = pings_before_others(web, post(web, PING, f"Content-Length: {len(PING)}") * 1000)
    greedy.close()
    assert answered < 100


def test_whoever_does_not_read_pages_gets_no_more_of_them(web: Tau) -> None:
    page = f"GET /metrics HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key_of(web)}\r\n\r\n".encode()
    body = post(web, PING, f"Content-Length: {len(PING)}", "Connection: close")
    answered, greedy = pings_before_others(web, page * 300 + body)
    assert answered == 0
    with greedy.sock.makefile("rb") as answers:
        assert answers.read().endswith(b"}\n")  # the ping's, which is last
    greedy.close()


SMUGGLED = {
    "two lengths": (b"{}", ["Content-Length: 2", "Content-Length: 3"], 400),
    "the same length twice": (b"{}", ["Content-Length: 2", "Content-Length: 2"], 400),
    "a list of lengths": (b"{}", ["Content-Length: 2, 2"], 400),
    "length and chunks": (b"0\r\n\r\n", ["Content-Length: 2", "Transfer-Encoding: chunked"], 400),
    "chunks and length": (b"0\r\n\r\n", ["Transfer-Encoding: chunked", "Content-Length: 2"], 400),
    "two codings": (b"0\r\n\r\n", ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], 400),
    "chunks": (b'5\r\n{"id"\r\n0\r\n\r\n', ["Transfer-Encoding: chunked"], 411),
    "an odd coding": (b"0\r\n\r\n", ["Transfer-Encoding: xchunked"], 411),
    "a list of codings": (b"0\r\n\r\n", ["Transfer-Encoding: gzip, chunked"], 411),
    "an empty length": (b"", ["Content-Length:"], 400),
    "a signed length": (b"{}", ["Content-Length: +2"], 400),
    "a length in hex": (b"{}", ["Content-Length: 0x2"], 400),
    "a huge length": (b"", ["Content-Length: 99999999999"], 413),
    "a larger length": (b"", [f"Content-Length: {module.LINE_BYTES_MAX + 1}"], 413),
    "a folded header": (b"{}", ["X: a", " b: c", "Content-Length: 2"], 400),
    "a space before the colon": (b"{}", ["Content-Length : 2"], 400),
    "an empty name": (b"{}", [": x", "Content-Length: 2"], 400),
    "a bare return": (b"{}", ["X: a\rContent-Length: 2"], 400),
    "a bare newline": (b"{}", ["X: a\nContent-Length: 2"], 400),
    "a NUL": (b"{}", ["X: a\0b", "Content-Length: 2"], 400),
    "two hosts": (b"{}", ["Host: other", "Content-Length: 2"], 400),
    "a long header": (b"{}", ["X: " + "y" * 20_000], 431),
    "a page of the web": (b"{}", ["Origin: http://evil.example", "Content-Length: 2"], 403),
    "great expectations": (b"{}", ["Expect: 200-ok", "Content-Length: 2"], 417),
    "a body that is no JSON": (b"hi", ["Content-Length: 2"], 400),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_what_two_readers_could_read_differently_is_refused(web: Tau, name: str) -> None:
    body, headers, status = SMUGGLED[name]
    deploy = post(web, b'{"id":1,"method":"deploy"}', "Content-Length: 26")
    answer = say(web, post(web, body, *headers) + deploy)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert answer.count(b"HTTP/1.1 ") == 1  # nothing after it is read
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["data"]["hint"]


def test_the_answer_to_head_has_no_body_whatever_it_is(web: Tau) -> None:
    for line in (b"HEAD /metrics", b"HEAD /nothing", b"HEAD /healthz"):
        answer = say(web, line + b" HTTP/1.1\r\nHost: t\r\nContent-Type: x\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n"), answer
        assert b"\r\nContent-Length: " in answer


def test_an_old_client_is_not_told_to_continue(web: Tau) -> None:
    headers = [f"Content-Length: {len(PING)}", "Expect: 100-continue"]
    assert say(web, post(web, PING, *headers, version="1.0")).startswith(b"HTTP/1.1 200 OK")


REQUEST_LINES = {
    b"GARBAGE\r\n\r\n": 400,
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n": 400,
    b"GET /healthz HTTP/2.0\r\nHost: t\r\n\r\n": 400,
    b"GET  /healthz HTTP/1.1\r\nHost: t\r\n\r\n": 400,
    b"GET http://t/healthz HTTP/1.1\r\nHost: t\r\n\r\n": 400,
    b"GET /healthz HTTP/1.1\r\n\r\n": 400,
    b"POST /healthz HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n": 405,
    b"GET /healthz HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello": 400,
    b"DELETE /rpc HTTP/1.1\r\nHost: t\r\n\r\n": 401,
    b"GET /healthz HTTP/1.1\r\nHost: t\r\nX: " + b"y" * 20_000 + b"\r\n\r\n": 431,
    b"A" * 40_000: 431,
}


@pytest.mark.parametrize("line", REQUEST_LINES)
def test_odd_requests_get_their_status(web: Tau, line: bytes) -> None:
    answer = say(web, line)
    assert answer.startswith(f"HTTP/1.1 {REQUEST_LINES[line]} ".encode()), answer[:300]


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0", b"\xff" * 100, b'"text"\n']
)
def test_what_is_no_tongue_at_all_is_told_so_at_once(web: Tau, garbage: bytes) -> None:
    assert json.loads(say(web, garbage))["error"]["data"]["code"] == "bad_request"


def test_with_a_key_pages_are_told_apart(web: Tau) -> None:
    authorized = f"Host: t\r\nAuthorization: Bearer {key_of(web)}\r\n\r\n".encode()
    for line, status in ((b"GET /nothing", 404), (b"GET /rpc", 405), (b"PUT /metrics", 405)):
        assert f" {status} ".encode() in say(web, line + b" HTTP/1.1\r\n" + authorized)
    assert b"200 OK" in say(web, b"GET /healthz?x=1 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")


def test_a_web_page_cannot_reach_a_later_line(web: Tau) -> None:
    deploy = (
        b'{"id":1,"method":"hello","params":{"api_key":"%b"}}\n{"id":2,"method":"shutdown"}\n' % key_of(web).encode()
    )
    request = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\n"
    answer = say(web, request + b"Content-Length: %d\r\n\r\n" % len(deploy) + deploy)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "forbidden"
    assert web("status")["stopping"] is False


def test_a_long_wait_gives_signs_of_life() -> None:
    made = make_home("", "http")
    with served(made, code="tau.PULSE_S = 0.05"):
        wait_through_pulses(made)
    made.stop()
    made.home.parent.rmdir()


def test_a_stranger_must_show_its_key_in_time_and_may_be_silent_then() -> None:
    made = make_home("", "http")
    with served(made, code="tau.HELLO_S = 0.3"), closing(open_door(made)) as known:
        for said in (b"", b"P", b'{"id":', b"POST /rpc HTTP/1.1\r\nX: "):
            with socket.create_connection(("127.0.0.1", made.port), 20) as stranger:
                stranger.sendall(said)
                assert stranger.recv(1) == b""
        ask_for_metrics(known, made)
        assert pings(known) == 0
    made.stop()
    made.home.parent.rmdir()


def wait_through_pulses(made: Tau) -> None:
    """Runs something that takes longer than some pulses."""
    made.deploy_held(after="return 5")
    body = b'{"id":1,"method":"run","params":{"name":"it"}}'
    with socket.create_connection(("127.0.0.1", made.port), 20) as peer:
        peer.sendall(post(made, body, f"Content-Length: {len(body)}", "Connection: close"))
        file = peer.makefile("rb")
        while file.readline() != b"\r\n":
            pass
        assert [file.readline() for _ in range(3)] == [b"1\r\n", b"\n", b"\r\n"]
        made.go.touch()
        assert b'"result":5' in file.read()


def test_a_client_that_goes_leaves_nothing(web: Tau) -> None:
    web.deploy_held()
    body = b'{"id":1,"method":"run","params":{"name":"it"}}'
    before = web.call("status")["connections"]
    peers = [socket.create_connection(("127.0.0.1", web.port), 20) for _ in range(5)]
    for peer in peers:
        peer.sendall(post(web, body, f"Content-Length: {len(body)}"))
    eventually(lambda: web.call("status")["slots"]["used"] == 5)
    for peer in peers:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    eventually(lambda: web.call("status")["connections"] == before)
    web.go.touch()
    eventually(lambda: web.call("status")["slots"]["used"] == 0)


def test_a_daemon_that_stops_tells_those_who_wait(fresh_web: Tau) -> None:
    fresh_web.deploy_held()
    body = b'{"id":1,"method":"run","params":{"name":"it"}}'
    with socket.create_connection(("127.0.0.1", fresh_web.port), 20) as peer:
        peer.sendall(post(fresh_web, body, f"Content-Length: {len(body)}"))
        eventually(lambda: fresh_web.call("status")["slots"]["used"] == 1)
        fresh_web("--home", fresh_web.home, "shutdown")
        answer = peer.makefile("rb").read()
    assert b'"unavailable"' in answer
    fresh_web.go.touch()


@pytest.fixture
def fresh_web() -> Iterator[Tau]:
    """A daemon that the test may stop."""
    yield from started(make_home("", "http"))
