"""Several teams on one daemon: nothing that one is answered tells of another."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, make_home, running, served

import tau as module

#: Written in every name, text and row of orca, and nowhere else.
MARK = "walrus"
SOURCE = """
from tau import pipeline

@pipeline(description="{mark} tells", tags=["{mark}_tag"], expose=True, every="1h")
def {mark}_orders(ctx):
    ctx.log("{mark} says")
    ctx.secret("{upper}_TOKEN", "none")
    ctx.load("{mark}_out.jsonl", [{{"{mark}_column": "{mark} cell"}}])
    return "{mark} result"

@pipeline(after=["{mark}_orders"])
def {mark}_after(ctx):
    assert ctx.upstream["{mark}_orders"]["result"] == "{mark} result"
    raise ValueError("{mark} fails")
"""
CONFIG = """
[daemon]
stop_grace_s = 0.5
[notify.walrus_hook]
command = ["true"]
namespace = "orca"
[executors.far]
command = ["env", "TOKEN=hidden"]
[namespaces.orca.connections.walrus_shop]
url = "sqlite:////walrus/shop.db"
"""
#: Asks as acme: a request's method and params, the answer's bytes.
Ask = Callable[[str, dict[str, Any]], str]


class Teams:
    """A daemon on which acme and orca have the same, each under its own names; and their keys."""

    def __init__(self, tau: Tau) -> None:
        self.tau, self.keys = tau, dict[str, dict[str, str]]()
        for name, mark in (("acme", "own"), ("orca", MARK)):
            tau("namespace", "create", name)
            for scope in module.SCOPES:
                words = ("--scope", scope, "--namespace", name)
                self.keys.setdefault(name, {})[scope] = tau("key", "create", f"{mark}_{scope}", *words)["key"]
            tau("secret", "set", f"{mark.upper()}_TOKEN", "--namespace", name, stdin=f"{mark} secret")
            tau.deploy(SOURCE.format(mark=mark, upper=mark.upper()), f"{mark}.py", "--namespace", name)
            tau("run", f"{name}/{mark}_orders", "--key", f"{mark}-1")
            eventually(lambda name=name: self.of(name, "errors")["incidents"])
        eventually(lambda: not tau.call("status")["slots"]["used"])
        self.ids = [row["run_id"] for row in self.of("orca", "runs")["runs"]]
        self.ids += [row["incident"] for row in self.of("orca", "errors")["incidents"]]

    def of(self, namespace: str, method: str, **params: Any) -> Any:
        """What the daemon's admin is answered within a namespace."""
        with self.tau.connect() as wire:
            answer = wire.ask({"id": 1, "method": method, "params": params, "namespace": namespace})
            return answer.get("result", answer)

    def check(self, told: str, asked: str = "") -> None:
        """Nothing of orca is there, except what was asked."""
        for word in (MARK, MARK.upper(), "orca", *self.ids):
            assert word not in told or word in asked, (word, asked, told)

    @contextmanager
    def by_socket(self, key: str) -> Iterator[Ask]:
        """By lines on the socket, where acme is a word of the request."""
        with self.tau.connect() as wire:
            yield self.by_lines(wire.socket, {"namespace": "acme"})

    @contextmanager
    def by_tcp(self, key: str) -> Iterator[Ask]:
        with socket.create_connection(("127.0.0.1", self.tau.port), PATIENCE_S) as line:
            ask = self.by_lines(line, {})
            ask("hello", {"api_key": key})
            yield ask

    def by_lines(self, line: socket.socket, more: dict[str, Any]) -> Ask:
        file = line.makefile("rb")

        def ask(method: str, params: dict[str, Any]) -> str:
            line.sendall(json.dumps({"id": 1, "method": method, "params": params} | more).encode() + b"\n")
            return file.readline().decode()

        return ask

    @contextmanager
    def by_http(self, key: str, path: str = "/rpc") -> Iterator[Ask]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.tau.port, timeout=PATIENCE_S)) as peer:

            def ask(method: str, params: dict[str, Any], **headers: str) -> str:
                body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
                peer.request("POST", path, body, {"Authorization": f"Bearer {key}"} | headers)
                return peer.getresponse().read().decode()

            yield ask

    @contextmanager
    def by_mcp(self, key: str) -> Iterator[Ask]:
        """By the tools of an agent; what only a shell's words can say is one."""
        with self.by_http(key, "/mcp") as post:

            def ask(method: str, params: dict[str, Any]) -> str:
                entry = module.OPERATIONS[method]
                tool = method if method in module.TOOLS else "look" if entry.effect == "reads" else "change"
                given = params if method in module.TOOLS else {"command": entry.line(params)}
                about = {"name": tool, "arguments": given}
                headers = {"MCP-Protocol-Version": "2025-11-25"}
                answer = json.loads(post("tools/call", about, **headers))
                text: str = answer["result"]["content"][0]["text"] if "result" in answer else json.dumps(answer)
                return "\n".join(text.split("\n")[1:-1]) if text.startswith("<data") else text

            yield ask


@pytest.fixture(scope="module")
def teams() -> Iterator[Teams]:
    made = make_home(CONFIG, "tcp")
    made.environ.pop("TAU_HOST")
    with running(made):
        yield Teams(made)


def test_the_audit_finds_nothing(teams: Teams) -> None:
    before = teams.tau.call("events")["next"]
    for asks, owns in (("acme", "orca"), ("default", "orca"), ("acme", "default")):
        found = teams.tau("namespace", "audit", asks, owns)
        assert found["leaks"] == []
        assert [row["operation"] for row in found["matrix"]] == [it.words for it in module.OPERATIONS.values()]
        told = {verdict for row in found["matrix"] for kind, verdict in row.items() if kind != "operation"}
        assert told == {"refused", "nothing"}
    assert teams.tau.call("events")["next"] == before  # it has changed nothing


def test_the_audit_knows_every_kind_of_word() -> None:
    assert set(module.WORDS_OF) | set(module.NAMELESS) == set(module.KINDS)
    words = {it.name for it in module.OPERATIONS.values() if it.effect != "reads" and it.sifts}
    assert words - set(module.SPARED) == {"key_revoke"}  # whose word is one of those that see() makes whole


def test_one_namespace_is_not_audited_against_itself(teams: Teams) -> None:
    assert teams.tau("namespace", "audit", "acme", "acme", exit=2)["message"] == "a namespace sees what is its own"
    assert teams.tau("namespace", "audit", "acme", "none", exit=3)["code"] == "not_found"


#: What a careless author might do → the operation that the audit names.
CARELESS = {
    "everybody sees all": ("tau.Caller.sees = lambda self, name: True", "show"),
    "a key of another": ("tau.see; tau.see = lambda call, arguments: arguments", "key revoke"),
    "an answer with names": (
        "def stray(call): return {'names': call.ask.known_names()}\n"
        "stray.__annotations__ = {}\ntau.sifts(tau.reads(stray))",
        "stray",
    ),
    "a word that is not sifted": (
        "def stray(call, word): return call.ask.run(word)\n"
        "stray.__annotations__ = {'word': 'str'}\ntau.sifts(tau.reads(stray))",
        "stray",
    ),
    "a write without a look": (
        "async def stray(call, run_id): return {}\n"
        "stray.__annotations__ = {'run_id': 'list[RunId]'}\ntau.writes(stray)",
        "stray",
    ),
}


@pytest.mark.parametrize("fault", CARELESS)
def test_the_audit_finds_what_is_not_scoped(home: Tau, fault: str) -> None:
    code, operation = CARELESS[fault]
    with served(home, code=code):
        for name in ("acme", "orca"):
            home("namespace", "create", name)
        home("key", "create", "ci", "--namespace", "orca")
        home.deploy(SOURCE.format(mark=MARK, upper="X"), "orca.py", "--namespace", "orca")
        home("run", f"orca/{MARK}_orders")
        found = home("namespace", "audit", "acme", "orca", exit=1)
        assert not found["ok"]
        assert operation in {leak["operation"] for leak in found["leaks"]}


WAYS = ("by_socket", "by_tcp", "by_http", "by_mcp")


@pytest.mark.parametrize("way", WAYS)
def test_foreign_and_missing_give_the_same_bytes(teams: Teams, way: str) -> None:
    words = teams.tau("namespace", "audit", "acme", "orca")["words"]
    tried = set()
    with getattr(teams, way)(teams.keys["acme"]["admin"]) as ask:
        for entry, kind, given, like in module.audited_calls("acme/own_orders", words):
            named = next((name for name in given if given[name] != like[name]), "")
            is_refused = named and entry.arguments[named].kind not in ("str", "list[Json]")
            if not (entry.effect == "reads" or entry.name in module.SPARED or is_refused):
                continue  # it would do something in acme
            if way == "by_mcp" and entry.name not in module.TOOLS and not module.is_for_models(entry):
                continue
            told, missing = (ask(entry.name, each) for each in (given, like))
            word, nobody = words.get(kind, ""), module.word_of_nobody(words.get(kind, ""))
            if named:
                assert told.replace(str(word), "…") == missing.replace(str(nobody), "…"), (entry.name, given)
            teams.check(told.replace(str(word), ""), json.dumps(given))
            tried.add((entry.name, kind))
    assert len(tried) > 150
    assert {kind for _, kind in tried} == {"asked", *words}
