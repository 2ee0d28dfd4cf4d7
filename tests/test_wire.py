"""Lines that no honest client sends: each gets its error, and the daemon serves on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Tau, eventually

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
    tau.deploy_it(
        "import time\nfrom pathlib import Path\ndef it(ctx):\n    while not Path('go').exists():\n        time.sleep(0.01)"
    )
    run_id = tau("run", "it", "--detach")["run_id"]
    for _ in range(20):
        with tau.connect() as wire:
            wire.send({"id": 1, "method": "wait", "params": {"run_id": run_id}})
    eventually(lambda: tau.call("status")["connections"] == 1)
    with tau.connect() as wire:  # one that has only said all it has to say is not let go
        wire.send({"id": 1, "method": "wait", "params": {"run_id": run_id}})
        wire.socket.shutdown(1)
        (tau.home / "data/it/go").touch()
        assert wire.receive()["result"]["status"] == "success"
    (tau.home / "data/it/go").unlink()


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
