"""Lines that no honest client sends: each gets its error, and the daemon serves on."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, Wire, eventually, free_port, served

import tau as module

#: line → (JSON-RPC code, code in data); after these the connection goes on
REFUSED = {
    "an unknown method": (b'{"id":1,"method":"frobnicate"}', -32601, "method_not_found"),
    "a number": (b"17", -32600, "invalid_request"),
    "an empty batch": (b"[]", -32600, "invalid_request"),
    "no method": (b'{"id":1}', -32600, "invalid_request"),
    "a method that is no string": (b'{"id":1,"method":7}', -32600, "invalid_request"),
    "another jsonrpc": (b'{"jsonrpc":"1.0","id":1,"method":"status"}', -32600, "invalid_request"),
    "an id that is an object": (b'{"id":{},"method":"status"}', -32600, "invalid_request"),
    "params that are a list": (b'{"id":1,"method":"status","params":[]}', -32602, "bad_request"),
    "an unknown argument": (b'{"id":1,"method":"status","params":{"x":1}}', -32602, "bad_request"),
    "a missing argument": (b'{"id":1,"method":"show"}', -32602, "bad_request"),
    "a wrong type": (b'{"id":1,"method":"show","params":{"name":7}}', -32602, "bad_request"),
    "a bool for an int": (b'{"id":1,"method":"list","params":{"limit":true}}', -32602, "bad_request"),
    "deep nesting": (
        b'{"id":1,"method":"status","params":' + b'{"a":' * 70 + b"1" + b"}" * 71,
        -32600,
        "invalid_request",
    ),
    "very deep nesting": (b"[" * 200_000 + b"]" * 200_000, -32600, "invalid_request"),
    "an unknown pipeline": (b'{"id":1,"method":"run","params":{"name":"nope"}}', -32004, "not_found"),
}

#: after these it is closed: the place in the stream is lost
CLOSED = {
    "no JSON": b"hello there",
    "HTTP": b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "invalid UTF-8": b'{"id":1,"method":"\xff\xfe"}',
    "UTF-16": '{"id":1,"method":"status"}'.encode("utf-16").replace(b"\n", b" "),
    "NaN": b'{"id":1,"method":"run","params":{"name":"x","params":{"a":NaN}}}',
    "infinity by overflow": b'{"id":1,"method":"run","params":{"name":"x","params":{"a":1e999}}}',
    "an integer of 5,000 digits": b'{"id":' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"id":1,"method":"run","params":{"name":"\\ud800"}}',
    "half a document": b'{"id":1,"method":',
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused_and_the_connection_goes_on(tau: Tau, name: str) -> None:
    line, number, code = REFUSED[name]
    with tau.connect() as wire:
        error = wire.ask(line + b"\n")["error"]
        assert (error["code"], error["data"]["code"]) == (number, code)
        assert isinstance(error["data"]["hint"], str)
        assert wire.call("ping")["protocol"] == module.PROTOCOL


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_not_json_ends_the_connection(tau: Tau, name: str) -> None:
    with tau.connect() as wire:
        wire.send(CLOSED[name] + b'\n{"id":2,"method":"ping"}\n')
        answer = wire.receive()
        assert answer["error"]["code"] == -32700
        assert answer["id"] is None
        assert wire.receive() is None
    assert tau.call("ping")


def test_a_line_of_20_mb_is_refused_without_being_kept(tau: Tau) -> None:
    with tau.connect() as wire:
        for _ in range(20):
            wire.send(b"x" * (1 << 20))  # thrown away, so that the error arrives
        assert wire.receive()["error"]["code"] == -32600
    assert tau.call("ping")


def test_half_a_line_and_a_close_cost_nothing(tau: Tau) -> None:
    before = tau.call("status")["connections"]
    for _ in range(20):
        with tau.connect() as wire:
            wire.send(b'{"id":1,"method":"sta')
    eventually(lambda: tau.call("status")["connections"] <= before)


def test_200_idle_connections_disturb_nobody(tau: Tau) -> None:
    wires = [tau.connect() for _ in range(200)]
    assert tau.call("status")["connections"] >= 200
    for wire in wires:
        wire.__exit__()
    eventually(lambda: tau.call("status")["connections"] == 1)


def test_requests_may_be_pipelined_and_answers_carry_their_id(tau: Tau) -> None:
    with tau.connect() as wire:
        wire.send(b"".join(b'{"id":%d,"method":"ping"}\n' % number for number in range(1000)))
        assert sorted(wire.receive()["id"] for _ in range(1000)) == list(range(1000))


def test_a_batch_is_answered_as_an_array_without_its_notifications(tau: Tau) -> None:
    with tau.connect() as wire:
        answers = wire.ask([{"id": 1, "method": "ping"}, {"method": "ping"}, {"id": "b", "method": "nope"}, 5])
        assert [answer["id"] for answer in answers] == [1, "b", None]
        assert [("error" in answer) for answer in answers] == [False, True, True]


def test_a_notification_is_answered_by_nothing(tau: Tau) -> None:
    with tau.connect() as wire:
        wire.send({"method": "ping"})
        wire.send({"method": "frobnicate"})
        assert wire.ask({"id": 3, "method": "ping"})["id"] == 3


def test_ids_are_given_back_as_they_came(tau: Tau) -> None:
    with tau.connect() as wire:
        for number in (0, -1, "x" * 10_000, 1.5, None):
            assert wire.ask({"id": number, "method": "ping"})["id"] == number


def test_a_peer_that_has_said_all_still_gets_its_answers(tau: Tau) -> None:
    with tau.connect() as wire:
        wire.send(b'{"id":1,"method":"status"}\n{"id":2,"method":"ping"}\n')
        wire.socket.shutdown(1)
        assert {wire.receive()["id"], wire.receive()["id"]} == {1, 2}
        assert wire.receive() is None


def test_clients_that_die_waiting_are_let_go(tau: Tau) -> None:
    tau.deploy_held()
    run_id = tau("run", "it", "--detach")["run_id"]
    for _ in range(20):
        with tau.connect() as wire:
            wire.send({"id": 1, "method": "wait", "params": {"run_id": run_id}})
    eventually(lambda: tau.call("status")["connections"] == 1)
    with tau.connect() as wire:  # one that has only said all it has to say is not let go
        wire.send({"id": 1, "method": "wait", "params": {"run_id": run_id}})
        wire.socket.shutdown(1)
        tau.go.touch()
        assert wire.receive()["result"]["status"] == "success"


def test_many_waits_do_not_keep_a_cancel_on_the_same_connection_waiting(tau: Tau) -> None:
    tau.deploy_it("import time\ndef it(ctx):\n    time.sleep(600)")
    run_id = tau("run", "it", "--detach")["run_id"]
    with tau.connect() as wire:
        for number in range(100):
            wire.send({"id": number, "method": "wait", "params": {"run_id": run_id}})
        wire.send({"id": "cancel", "method": "cancel", "params": {"run_id": run_id}})
        answers = [wire.receive() for _ in range(101)]
    assert {answer["result"]["status"] for answer in answers} == {"cancelled"}


def test_long_words_are_not_repeated_or_compared(tau: Tau) -> None:
    for line in (
        {"id": 1, "method": "m" * 1_000_000},
        {"id": 1, "method": "show", "params": {"n" * 1_000_000: 1}},
        {"id": 1, "method": "show", "params": {"name": "n" * 1_000_000}},
    ):
        with tau.connect() as wire:
            assert len(json.dumps(wire.ask(line))) < 2_000


@pytest.mark.parametrize("document", [{"a": [1, None, True, "ü\u2028"]}, [], "text", 1.5, 2**62])
def test_what_is_encoded_is_decoded_again(document: Any) -> None:
    line = module.encode(document)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert module.decode(line[:-1]) == document == json.loads(line)


def test_depth_is_counted_without_recursion() -> None:
    document: list[Any] = []
    for _ in range(100_000):
        document = [document]
    assert module.depth(document) == 100_001
    while document:  # and taken apart without recursion too
        document = document.pop()


def test_a_request_must_be_finished_in_time(home: Tau) -> None:
    with served(home, code="tau.PATIENCE_S = 0.2"), home.connect() as slow, home.connect() as idle:
        slow.send(b'{"id":1,"meth')
        assert slow.receive() is None  # closed
        assert idle.call("ping")["protocol"] == module.PROTOCOL  # to be silent between requests is no offence


def test_a_reader_must_read(home: Tau) -> None:
    with served(home, code="tau.PATIENCE_S = 0.2"), home.connect() as lazy:
        lazy.socket.setblocking(False)
        request = json.dumps({"id": 1, "method": "schema"}).encode() + b"\n"
        with suppress(BlockingIOError):
            for _ in range(2_000):
                lazy.send(request)
        eventually(lambda: home.call("status")["connections"] == 1)
        pid = int(json.loads((home.home / "tau.lock").read_text())["pid"])
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 150 << 20


def ask_anyway(wire: Wire) -> Any:
    """What comes back from a connection that may have been closed already."""
    with suppress(BrokenPipeError):
        wire.send({"id": 1, "method": "ping"})
    return wire.receive()


def test_where_descriptors_are_few_peers_have_fewer(home: Tau) -> None:
    home.port = free_port()
    with served(home, files=160), home.connect() as first:
        assert first.call("status")["connections"] == 1
        home.deploy_it("def it(ctx):\n    return 1")
        crowd = [home.connect() for _ in range(100)]
        assert sum("error" in ask_anyway(wire) for wire in crowd) >= 70
        strangers = [socket.create_connection(("127.0.0.1", home.port), 10) for _ in range(100)]
        assert first.call("run", name="it")["status"] == "success"  # there is room for its own work
        for peer in strangers:
            peer.close()
        for wire in crowd:
            wire.__exit__()
        eventually(lambda: home.command("list").exit == 0)
    assert "Traceback" not in (home.work / "taud.log").read_text()


def test_a_daemon_with_many_connections_stops_without_a_word(home: Tau) -> None:
    with served(home, "--log-level", "warning") as daemon:
        home.deploy_it("import time\ndef it(ctx):\n    time.sleep(60)")
        wires = [home.connect() for _ in range(200)]
        for wire in wires:
            wire.send({"id": 1, "method": "run", "params": {"name": "it"}})
        eventually(lambda: home.call("status")["queued"] >= 150)
        assert home("shutdown", "--cancel")["stopping"] is True
        assert daemon.wait(PATIENCE_S) == 0
        for wire in wires:
            wire.__exit__()
    warning = "taud runs as root"
    lines = [line for line in (home.work / "taud.log").read_text().splitlines() if warning not in line]
    assert lines == []


def test_versions_of_deploys_at_the_same_time_are_distinct_and_dense(fresh: Tau) -> None:
    wires = [fresh.connect() for _ in range(12)]
    for number, wire in enumerate(wires):
        text = f"from tau import pipeline\n@pipeline\ndef it(ctx):\n    return {number}\n"
        wire.send({"id": number, "method": "deploy", "params": {"files": [{"path": "x.py", "text": text}]}})
    answers = [wire.receive()["result"]["pipelines"][0]["version"] for wire in wires]
    for wire in wires:
        wire.__exit__()
    assert sorted(answers) == list(range(1, 13))
    assert fresh("run", "it")["result"] == answers.index(12)
