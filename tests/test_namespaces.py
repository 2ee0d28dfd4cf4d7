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
from test_page import Browser

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
Ask = Callable[..., str]


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
        tau.deploy("from tau import pipeline\n@pipeline\ndef plain_orders(ctx): ...\n", "plain.py")
        tau("run", "plain_orders")
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


def test_the_audit_changes_nothing_and_tells_what_is_both_teams(home: Tau) -> None:
    load = f"ctx.load('{home.work}/shared.csv', [{{'a': 1}}], mode='replace')"
    shared = f"from tau import pipeline\n@pipeline\ndef orders(ctx): {load}\n"
    with served(home):
        home("namespace", "create", "acme")
        for name in ("acme", "default"):
            home("secret", "set", f"{name}/API_KEY", stdin=f"of {name}")
            home.deploy(shared, "orders.py", "--namespace", name)
            home("run", "orders", "--namespace", name)
        before = home.call("events")["next"]
        for pair in (("acme", "default"), ("default", "acme")):
            assert home.command("namespace", "audit", *pair).json["leaks"] == []
        assert home.call("events")["next"] == before
        assert {row["found"] for row in home("secret", "list")["secrets"]} == {"home"}


def test_a_namespace_that_is_not_there_is_told_like_any_word(teams: Teams) -> None:
    assert teams.tau("--namespace", "acm", "list", exit=3)["hint"].startswith("did you mean 'acme'?")
    told = teams.tau("list", TAU_NAMESPACE="nobody", exit=3)
    assert told["hint"] == "leave out --namespace and TAU_NAMESPACE"


def test_here_is_an_executor_of_a_namespace(home: Tau) -> None:
    with served(home):
        home("namespace", "create", "acme", "--executor", "local")
        home(
            "--namespace", "acme", "deploy", home.write("from tau import pipeline\n@pipeline\ndef it(ctx): return 1\n")
        )
        assert home("run", "acme/it")["result"] == 1


def test_the_audit_knows_every_kind_of_word() -> None:
    nameless = {"EnvironmentName", "FilePath", "Duration", "Size", "Json", "Texts", "list[int]", "list[str]"}
    nameless |= {kind for kind, schema in module.KINDS.items() if schema["type"] in ("integer", "number", "boolean")}
    assert set(module.WORDS_OF) | nameless == set(module.KINDS)
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


def test_a_key_of_another_namespace_cannot_be_revoked(teams: Teams) -> None:
    with teams.by_http(teams.keys["acme"]["admin"]) as ask:
        for name in (f"orca/{MARK}_read", "orca/nobody"):
            told = json.loads(ask("key_revoke", {"name": name}))["error"]
            assert told["message"] == f"no key named '{name}'"
        assert json.loads(ask("key_list", {}))["result"]["total"] == 3
    with teams.by_http(teams.keys["orca"]["read"]) as ask:
        assert json.loads(ask("version", {}))["result"]


def test_no_code_runs_as_that_of_another_namespace(teams: Teams) -> None:
    mark = teams.tau.work / "loaded"
    text = (
        f"from pathlib import Path\nfrom tau import pipeline\nPath({str(mark)!r}).touch()\n@pipeline\ndef it(ctx): ..."
    )
    with teams.by_http(teams.keys["acme"]["operate"]) as ask:
        for name in (f"orca/{MARK}_orders", "orca/new", "nobody/new"):
            told = json.loads(ask("deploy", {"files": [{"path": "it.py", "text": text}], "name": name}))["error"]
            assert told["message"] == f"'acme/own_operate' is for namespace acme, not '{name}'"
            assert not mark.exists()
        ask("check", {"files": [{"path": "it.py", "text": text}]})
        assert mark.exists()


def test_a_word_for_a_namespace_opens_none(teams: Teams) -> None:
    with socket.create_connection(("127.0.0.1", teams.tau.port), PATIENCE_S) as line:
        told = []
        for name in ("orca", "orcz", "default"):
            ask = teams.by_lines(line, {"namespace": name})
            told.append(ask("hello", {"api_key": teams.keys["acme"]["admin"]}) if not told else "")
            told.append(ask("list", {}).replace(name, "…"))
        assert told[1] == told[3] == told[5]
        assert json.loads(told[1])["error"]["data"]["code"] == "not_found"


def test_the_command_for_the_rest_of_a_list_has_whole_names(teams: Teams) -> None:
    assert "`tau runs acme/own_after`" in teams.of("acme", "runs", name="own_after", status="success")["hint"]


def test_an_idempotency_key_is_a_word_of_one_namespace(teams: Teams) -> None:
    with teams.by_tcp(teams.keys["acme"]["operate"]) as ask:
        told = ask("run", {"name": "own_orders", "key": f"{MARK}-1", "wait": True})
        teams.check(told, f"{MARK}-1")
        assert "deduplicated" not in told


def test_the_ledger_tells_a_namespace_its_own(teams: Teams) -> None:
    with teams.by_tcp(teams.keys["acme"]["admin"]) as ask:
        for params in ({}, {"since": 0}, {"since": 1, "limit": 1000}, {"type": "key.*,secret.*,run.*,namespace.*"}):
            told = ask("events", params)
            teams.check(told)
            names = {event["pipeline"] for event in json.loads(told)["result"]["events"]}
            assert names <= {"acme/own_orders", "acme/own_after"}


def test_completion_tells_a_namespace_its_own(teams: Teams) -> None:
    address = {"TAU_HOST": f"tcp://127.0.0.1:{teams.tau.port}", "TAU_API_KEY": teams.keys["acme"]["admin"]}
    for words in (
        ("run", ""),
        ("inspect", "--run", ""),
        ("key", "revoke", ""),
        ("namespace", "show", ""),
        ("logs", ""),
    ):
        done = teams.tau.command("__complete", *words, **address)
        assert done.out
        teams.check(done.out)
    for words in (("run", f"orca/{MARK[:3]}"), ("run", MARK[:3]), ("namespace", "show", "or")):
        assert teams.tau.command("__complete", *words, **address).out == ""


def test_the_figures_for_prometheus_are_of_one_namespace(teams: Teams) -> None:
    def figures(key: str) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", teams.tau.port, timeout=PATIENCE_S)) as peer:
            peer.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
            return peer.getresponse().read().decode()

    own = figures(teams.keys["acme"]["read"])
    teams.check(own)
    assert 'tau_pipelines{namespace="acme"} 2' in own
    assert 'tau_runs_finished_total{namespace="acme",status="failed"}' in own
    assert 'namespace="default"' not in own
    assert "tau_events_total" not in own  # which counts the events of all
    every = figures((teams.tau.home / "key").read_text().strip())
    for name in ("acme", "orca", "default"):
        assert f'tau_queue_length{{namespace="{name}"}} 0' in every
    assert 'tau_pipelines{namespace="orca"} 2' in every


def test_the_page_is_of_one_namespace(teams: Teams) -> None:
    def session(**given: str) -> Browser:
        browser = Browser(teams.tau)
        about = browser.log_in(**given)
        assert about["namespace"] == "acme"
        return browser

    word = teams.tau("open", "--print", "--namespace", "acme")["address"].partition("#word=")[2]
    for browser in (session(word=word), session(key=teams.keys["acme"]["read"])):
        asked: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ("list", "runs", "errors", "watch", "status")]
        asked += [("calendar", {}), ("lineage", {}), ("secret_list", {}), ("notify_list", {}), ("events", {"since": 0})]
        answers = browser.ask(*asked)
        assert all("result" in answer for answer in answers)
        teams.check(json.dumps(answers))
        told = browser.ask(("inspect", {"name": f"orca/{MARK}_orders"}), ("inspect", {"name": f"orca/{MARK}_orderz"}))
        assert json.dumps(told[0]).replace("_orders", "_orderz") == json.dumps(told[1])
        first = teams.of("acme", "events", since=0)["events"][0]["seq"]
        with browser.stream(since=first - 1) as events:
            for _ in range(5):
                teams.check(json.dumps(next(events)))


def test_the_tools_of_an_agent_are_of_one_namespace(teams: Teams) -> None:
    def tools(key: str) -> dict[str, Any]:
        with teams.by_http(key, "/mcp") as post:
            told = post("tools/list", {}, **{"MCP-Protocol-Version": "2025-11-25"})
        return {tool["name"]: tool for tool in json.loads(told)["result"]["tools"]}

    own = tools(teams.keys["acme"]["operate"])
    teams.check(json.dumps(own))
    assert [name for name in own if name.startswith("run_")] == ["run_own_orders"]
    every = tools((teams.tau.home / "key").read_text().strip())
    assert [name for name in every if name.startswith("run_")] == ["run_acme.own_orders", f"run_orca.{MARK}_orders"]
    for key, name in ((teams.keys["acme"]["operate"], "run_own_orders"), ("", "run_acme.own_orders")):
        with teams.by_http(key or (teams.tau.home / "key").read_text().strip(), "/mcp") as post:
            about = {"name": name, "arguments": {}}
            told = post("tools/call", about, **{"MCP-Protocol-Version": "2025-11-25"})
            assert '\\"pipeline\\":\\"acme/own_orders\\",\\"version\\":1,\\"status\\":\\"success\\"' in told


def test_a_namespace_is_told_of_the_daemon_what_concerns_it(teams: Teams) -> None:
    with teams.by_http(teams.keys["acme"]["admin"]) as ask:
        told = json.loads(ask("status", {}))["result"]
    assert told["connections"] == 1
    assert told["scheduler"]["schedules"] == 1
    assert (told["pipelines"], told["start_latency"]["count"]) == (2, 0)
    assert teams.tau("status")["scheduler"]["schedules"] == 2


def test_a_key_without_a_namespace_is_good_for_the_default_one_only(teams: Teams) -> None:
    for scope in ("operate", "admin"):
        key = teams.tau("key", "create", f"plain-{scope}", "--scope", scope)["key"]
        with teams.by_http(key) as ask:
            assert [row["name"] for row in json.loads(ask("list", {}))["result"]["pipelines"]] == ["plain_orders"]
            for method, params in (("shutdown", {}), ("prune", {}), ("namespace_create", {"name": "more"})):
                assert json.loads(ask(method, params))["error"]["data"]["code"] == "forbidden"
            teams.check(ask("namespace_list", {}) + ask("status", {}) + ask("events", {"since": 0}))
            assert json.loads(ask("inspect", {"name": teams.ids[0]}))["error"]["data"]["code"] == "not_found"


HELD = """
import time
from pathlib import Path
from tau import pipeline

@pipeline
def {mark}_held(ctx):
    while not Path({go!r}).exists():
        time.sleep(0.01)
"""


def test_who_holds_the_slot_is_not_told() -> None:
    made = make_home("[scheduler]\nmax_concurrent = 1\n[daemon]\nstop_grace_s = 0.5\n")
    with running(made):
        for name, mark in (("acme", "own"), ("orca", MARK)):
            made("namespace", "create", name)
            made.deploy(HELD.format(mark=mark, go=str(made.go)), f"{mark}.py", "--namespace", name)
        theirs = made("run", f"orca/{MARK}_held", "--detach")["run_id"]
        made("run", f"orca/{MARK}_held", "--detach")
        own = made("run", "acme/own_held", "--detach")["run_id"]
        eventually(lambda: made("inspect", theirs)["status"] == "running")
        for words in (("why", "own_held"), ("inspect", own), ("status",), ("watch",), ("calendar",), ("runs",)):
            told = made.command(*words, "--namespace", "acme").out
            assert told
            for word in (MARK, "orca", theirs):
                assert word not in told
        status = made("status", "--namespace", "acme")
        assert (status["queued"], status["slots"]["used"]) == (1, 0)
        assert [row["role"] for row in status["processes"]] == ["daemon", "fork server"]
        assert made("inspect", own, "--namespace", "acme")["held_by"] == "[scheduler] max_concurrent=1"
        made.go.touch()
        assert made("wait", own)["status"] == "success"


UP = "from tau import pipeline\n@pipeline({options})\ndef orders(ctx):\n    ctx.load('o.jsonl', [{{'a': 1}}])\n    return 7\n"
DOWN = """
from tau import pipeline

@pipeline(after=["{after}"])
def report(ctx):
    return ctx.upstream
"""


def test_a_chain_leads_to_another_namespace_where_both_say_so(home: Tau) -> None:
    with served(home):
        for name in ("acme", "orca", "third"):
            home("namespace", "create", name)
        home.deploy(UP.format(options=""), "up.py", "--namespace", "orca")
        down = home.write(DOWN.format(after="orca/orders"), "down.py")
        refused = home("deploy", down, "--namespace", "acme", exit=2)
        missing = home("deploy", home.write(DOWN.format(after="orca/orderz")), "--namespace", "acme", exit=2)
        assert json.dumps(refused).replace("orders", "orderz") == json.dumps(missing)
        assert home("deploy", down, "--name", "acme/report", exit=2)["message"] == refused["message"]  # an admin too

        home.deploy(UP.format(options="share=['acme']"), "up.py", "--namespace", "orca")
        assert home("deploy", down, "--namespace", "third", exit=2)["code"] == "bad_request"
        home("deploy", down, "--namespace", "acme")
        first = home("run", "orca/orders")["run_id"]
        eventually(lambda: home("runs", "acme/report")["total"] == 1 and not home("status")["slots"]["used"])
        assert home("inspect", "acme/report")["result"] == {"orca/orders": {"run_id": first, "result": 7}}
        assert home("show", "report", "--namespace", "acme")["upstream"] == ["orca/orders"]
        assert home("why", "report", "--namespace", "acme")["upstream"] == [{"pipeline": "orca/orders", "run_id": None}]
        assert home("list", "--namespace", "acme")["pipelines"][0]["upstream"] == ["orca/orders"]
        assert home("show", "orders", "--namespace", "orca")["downstream"] == ["acme/report"]
        writes = home("lineage", "--namespace", "acme")["lineage"][0]["writes"]
        assert [use["pipeline"] for use in writes] == ["orca/orders"]
        assert home("lineage", "--namespace", "third")["lineage"] == []
        assert home("inspect", first, "--namespace", "acme", exit=3)["code"] == "not_found"  # the chain is all

        home.deploy(UP.format(options=""), "up.py", "--namespace", "orca")
        home("run", "orca/orders")
        assert home("runs", "acme/report")["total"] == 1
        assert home("show", "report", "--namespace", "acme")["upstream"] == []
        assert home("lineage", "--namespace", "acme")["lineage"] == []


@pytest.mark.parametrize("share", ["'Acme'", "['acme', '']", "3", "['a/b']"])
def test_a_share_names_namespaces(home: Tau, share: str) -> None:
    with served(home):
        refused = home.deploy(UP.format(options=f"share={share}"), exit=2)
        assert "@pipeline(share=…)" in refused["message"]


def test_a_pipeline_shares_with_all(home: Tau) -> None:
    with served(home):
        home("namespace", "create", "acme")
        home.deploy(UP.format(options="share='*'"), "up.py")
        home.deploy(DOWN.format(after="default/orders"), "down.py", "--namespace", "acme")
        home("run", "orders")
        eventually(lambda: home("runs", "acme/report")["runs"])
        done = eventually(lambda: (it := home("inspect", "acme/report"))["status"] == "success" and it)
        assert [*done["result"]] == ["default/orders"]


def test_a_namespace_that_is_refused_is_not_made(fresh: Tau) -> None:
    for option in (("--connection", "nowhere"), ("--executor", "nowhere")):
        assert "'nowhere'" in fresh("namespace", "create", "acme", *option, exit=2)["message"]
        assert "acme" not in {row["name"] for row in fresh("namespace", "list")["namespaces"]}
