"""Who may do what over the network: keys, their scopes, what they see, and when they end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, THOROUGH, TRANSPORTS, Tau, eventually, free_port, make_home, python, running

import tau as module

SOURCE = """
from tau import pipeline

@pipeline
def etl_a(ctx):
    ctx.log("a")

@pipeline
def etl_b(ctx):
    raise ValueError("b")

@pipeline(after=["etl_a"])
def foreign(ctx):
    raise KeyError("secret")

@pipeline(after=["foreign"])
def etl_after(ctx):
    pass
"""
#: A request that would do something, for every operation; what is in braces is filled in for the caller's own
#: pipeline and for another one.
REQUESTS: dict[str, dict[str, Any]] = {
    "deploy": {"files": [{"path": "x.py", "text": "from tau import pipeline\n@pipeline\ndef {name}(ctx): ...\n"}]},
    "check": {"files": [{"path": "x.py", "text": "from tau import pipeline\n@pipeline\ndef {name}(ctx): ...\n"}]},
    "undeploy": {"name": "{name}"},
    "list": {},
    "show": {"name": "{name}"},
    "lineage": {"name": "{name}"},
    "code": {"name": "{name}"},
    "peek": {"place": "sqlite:///{name}.db", "in_": "{name}"},
    "versions": {"name": "{name}"},
    "rollback": {"name": "{name}", "to": 1},
    "run": {"name": "{name}", "wait": False},
    "try": {
        "files": [{"path": "x.py", "text": "from tau import pipeline\n@pipeline\ndef {name}(ctx): ...\n"}],
        "like": "{run}",
    },
    "wait": {"run_id": ["{run}"]},
    "retry": {"run_id": "{run}", "wait": False},
    "cancel": {"run_id": "{run}"},
    "runs": {"name": "{name}"},
    "inspect": {"run_id": "{run}"},
    "diff": {"name": "{name}", "versions": [1, 1]},
    "logs": {"name": "{name}"},
    "errors": {},
    "events": {},
    "status": {},
    "watch": {},
    "calendar": {},
    "state": {"name": "{name}", "set": {"seen": 1}},
    "ticks": {"expr": "0 6 * * *"},
    "schedule": {"name": "{name}", "every": 3600},
    "claim": {"incident": "{run}"},
    "heal": {"name": "{name}"},
    "create": {"name": "{name}", "intent": "anything"},
    "why": {"name": "{name}"},
    "backfill": {"name": "{name}", "from_": "2026-01-01"},
    "pause": {"name": "{name}"},
    "resume": {"name": "{name}"},
    "version": {},
    "prune": {"dry_run": True},
    "backup": {},
    "shutdown": {},
    "schema": {},
    "secret_set": {"name": "A_SECRET", "value": "of no use"},
    "secret_remove": {"name": "A_SECRET"},
    "secret_list": {},
    "open": {},
    "namespace_create": {"name": "other"},
    "namespace_set": {"name": "default", "max_queued": 1},
    "namespace_list": {},
    "namespace_show": {},
    "namespace_remove": {"name": "other"},
    "namespace_audit": {"asks": "acme", "owns": "other"},
    "key_create": {"name": "another"},
    "notify_list": {},
    "notify_test": {"name": "agent"},
    "notify_retry": {"id": "msg_1_0f3c9d1e2b4a"},
    "key_list": {},
    "key_revoke": {"name": "another"},
}


def fill(value: Any, **words: str) -> Any:
    """A request's params with the words in their places."""
    if isinstance(value, dict):
        return {key.rstrip("_"): fill(one, **words) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, **words) for one in value]
    for name, word in words.items():
        value = value.replace("{" + name + "}", word) if isinstance(value, str) else value
    return value


@pytest.fixture(scope="module", params=TRANSPORTS[1:] if THOROUGH else TRANSPORTS[2:])
def net(request: pytest.FixtureRequest) -> Iterator[Tau]:
    """A daemon with four pipelines, each of which has run, reached over the network."""
    with running(make_home("", request.param)) as made:
        made.deploy(SOURCE)
        for name in ("etl_a", "etl_b", "foreign"):
            made.command("run", name)
        eventually(lambda made=made: not made.call("status")["slots"]["used"])
        yield made


def ask(net: Tau, key: str, method: str, params: dict[str, Any]) -> Any:
    """The result of one request with a key, or the code of its error."""
    environ = {"TAU_API_KEY": key, "TAU_CA_FILE": net.environ.get("TAU_CA_FILE", "")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        with module.Client(net.environ["TAU_HOST"]) as client:
            try:
                return client.call(method, params)
            except module.TauError as problem:
                return problem.code


def key_for(net: Tau, name: str, *words: str) -> str:
    """A new key."""
    net.call("key_revoke", name=name) if name in names(net) else None
    return str(net("--home", net.home, "key", "create", name, *words)["key"])


def names(net: Tau) -> list[str]:
    """Of all keys."""
    return [one["name"] for one in net.call("key_list")["keys"]]


def ledger(net: Tau) -> list[tuple[str, str, str]]:
    """Type, actor and data of every fact."""
    db = sqlite3.connect(f"file:{net.home}/tau.db?mode=ro", uri=True)
    rows = db.execute("SELECT type, actor, data FROM events ORDER BY seq").fetchall()
    db.close()
    return [tuple(row) for row in rows]


def test_every_operation_has_a_request_here() -> None:
    assert set(REQUESTS) == set(module.OPERATIONS)


def test_a_read_key_cannot_write_by_any_operation(net: Tau) -> None:
    key = key_for(net, "reader", "--scope", "read")
    run_id = net.call("runs", name="etl_a")["runs"][0]["run_id"]
    before = [fact for fact in ledger(net) if not fact[0].startswith("key.")]
    for method, chosen in module.OPERATIONS.items():
        answer = ask(net, key, method, fill(REQUESTS[method], name="etl_a", run=run_id))
        if chosen.effect == "reads" and chosen.scope == "read":
            assert isinstance(answer, dict), (method, answer)
        else:
            assert answer == "forbidden", method
    assert [fact for fact in ledger(net) if not fact[0].startswith("key.")] == before


def test_what_operators_and_admins_may_do_is_one_table() -> None:
    scopes = {name: one.scope for name, one in module.OPERATIONS.items()}
    assert {name for name, scope in scopes.items() if scope == "admin"} == {
        *("prune", "backup", "shutdown", "key_create", "key_list", "key_revoke", "secret_set", "secret_remove"),
        *("notify_test", "notify_retry", "namespace_create", "namespace_set", "namespace_remove"),
        "namespace_audit",
    }
    assert all(scope == "operate" for name, scope in scopes.items() if name in ("deploy", "run", "undeploy", "pause"))


def test_an_operator_cannot_administer(net: Tau) -> None:
    key = key_for(net, "operator")
    for method, chosen in module.OPERATIONS.items():
        if chosen.scope == "admin":
            assert ask(net, key, method, fill(REQUESTS[method], name="etl_a", run="x")) == "forbidden", method
    assert ask(net, key, "run", {"name": "etl_a"})["status"] == "success"


def test_a_scoped_key_cannot_see_or_touch_other_pipelines(net: Tau) -> None:
    key = key_for(net, "etl", "--pipelines", "etl_*, nothing")
    theirs = net.call("runs", name="foreign")["runs"][0]["run_id"]
    eventually(lambda: not net.call("status")["slots"]["used"])  # what came after the runs of another test has ended
    before = [fact for fact in ledger(net) if not fact[0].startswith("key.")]
    for method, chosen in module.OPERATIONS.items():
        params = fill(REQUESTS[method], name="foreign", run=theirs)
        answer = ask(net, key, method, params)
        if chosen.scope == "admin":
            assert answer == "forbidden", method
        elif chosen.sifts and not {"name", "in", "like"} & params.keys():
            assert answer == "forbidden" if method == "deploy" else isinstance(answer, dict), (method, answer)
            if method != "check":
                assert "foreign" not in json.dumps(answer).replace('"foreign"]', ""), (method, answer)
            assert theirs not in json.dumps(answer), method
        else:
            assert answer in ("not_found", "forbidden"), (method, answer)
    assert [fact for fact in ledger(net) if not fact[0].startswith("key.")] == before


def test_a_scoped_key_works_with_its_own(net: Tau) -> None:
    key = key_for(net, "etl", "--pipelines", "etl_*")
    own = net.call("runs", name="etl_b")["runs"][0]["run_id"]
    assert [one["name"] for one in ask(net, key, "list", {})["pipelines"]] == ["etl_a", "etl_after", "etl_b"]
    assert {one["pipeline"] for one in ask(net, key, "runs", {})["runs"]} == {"etl_a", "etl_b"}
    for kind, params in (("incidents", {}), ("errors", {"all": True})):
        assert {one["pipeline"] for one in ask(net, key, "errors", params)[kind]} == {"etl_b"}
    limited = ask(net, key, "runs", {"limit": 1})
    assert limited["truncated"]["total"] == len(ask(net, key, "runs", {})["runs"])
    assert ask(net, key, "errors", {"limit": 1}).get("truncated", {"total": 1})["total"] >= 1
    assert ask(net, key, "inspect", {"name": "etl_b"})["run_id"] == own
    assert ask(net, key, "inspect", {"name": own})["pipeline"] == "etl_b"
    assert ask(net, key, "show", {"name": "etl_a"})["downstream"] == []
    assert ask(net, key, "show", {"name": "etl_after"})["upstream"] == []
    assert "foreign" not in json.dumps(ask(net, key, "show", {"name": "etl_after"}))
    assert ask(net, key, "why", {"name": "etl_after"})["upstream"] == []
    assert ask(net, key, "pause", {"all": True}) == "forbidden"
    assert ask(net, key, "status", {})["pipelines"] == 3
    text = "from tau import pipeline\n@pipeline(after=['foreign'])\ndef etl_new(ctx): ...\n"
    assert ask(net, key, "deploy", {"files": [{"path": "x.py", "text": text}]}) == "bad_request"
    for name in ("foreign", "foreig"):
        checked = ask(net, key, "check", {"files": [{"path": "x.py", "text": text.replace("foreign", name)}]})
        assert checked["error"]["message"] == f"'etl_new' comes after '{name}': no such pipeline"
        assert checked["error"]["hint"] == f"deploy '{name}' first, or with it"
    text = "from tau import pipeline\n@pipeline\ndef etl_a(ctx): ...\n@pipeline\ndef mine(ctx): ...\n"
    assert ask(net, key, "deploy", {"files": [{"path": "x.py", "text": text}]}) == "forbidden"
    for word in (net.call("runs", name="foreign")["runs"][0]["run_id"], "foreign", "foreig", "0", "1"):
        for method in ("inspect", "logs"):
            assert ask(net, key, method, {"name": word}) in ("not_found", "bad_request")


def test_what_a_scoped_key_is_told_names_nothing_it_does_not_see(net: Tau) -> None:
    key = key_for(net, "etl", "--pipelines", "fo*n_*")
    for method in ("show", "run", "inspect", "undeploy"):
        done = net.command(method, "foreign_", TAU_API_KEY=key)
        assert done.exit in (0, 3)
        assert "'foreign'" not in done.err
    prefix = net.call("runs", name="foreign")["runs"][0]["run_id"][:3]
    done = net.command("inspect", prefix, TAU_API_KEY=key)
    assert done.error["code"] in ("not_found", "bad_request")
    assert net.call("runs", name="foreign")["runs"][0]["run_id"] not in done.err


#: Files of a folder that hold pipelines of two owners: a key for `vis_*` sees only some of them.
SHARED = {
    "vis_one.py": "@pipeline(every='1h', overlap='queue')\ndef vis_one(ctx):\n    ctx.log('one')\n",
    "vis_end.py": "@pipeline(after=['wis_orders'])\ndef vis_end(ctx):\n    raise ValueError\n",
    "wis_orders.py": "@pipeline(after=['vis_one'])\ndef wis_orders(ctx): ...\n",
    "helper.txt": "",
}
CIRCLE = "from tau import pipeline\n@pipeline(after=['vis_end'])\ndef vis_one(ctx): ...\n"
UNKNOWN = "from tau import pipeline\n@pipeline(after=['vis_orders'])\ndef vis_new(ctx): ...\n"


def with_key(net: Tau, key: str, method: str, params: dict[str, Any]) -> Any:
    """The result of one request or its error, with all events."""
    events: list[Any] = []
    with open_lines(net, key) as client:
        try:
            return {"result": client.call(method, params, events.append), "events": events}
        except module.TauError as problem:
            return {"error": problem.to_json(), "events": events}


def test_nothing_that_a_scoped_key_is_answered_names_a_pipeline_it_does_not_see(net: Tau) -> None:
    head = "from tau import pipeline\n"
    files = [{"path": path, "text": text and head + text} for path, text in SHARED.items()]
    net.call("deploy", files=files)
    key = key_for(net, "vis", "--pipelines", "vis_*")
    net.call("run", name="vis_one")
    eventually(lambda: net.call("runs", name="vis_end")["runs"] and not net.call("status")["slots"]["used"])
    theirs = net.call("runs", name="wis_orders")["runs"][0]["run_id"]
    requests = [(method, fill(params, name="vis_one", run=theirs)) for method, params in REQUESTS.items()]
    for name in ("vis_end", "vis_orders", "vis_orderss", "wis_orders"):  # two of these exist
        subjects = [(method, params) for method, params in REQUESTS.items() if "{name}" in params.values()]
        requests += [(method, fill(params, name=name)) for method, params in subjects if method != "undeploy"]
        requests += [("inspect", {"name": name}), ("undeploy", {"name": name.replace("vis_end", "vis_ends")})]
    requests += [("code", {"name": "vis_one", "file": file}) for file in ("vis_orders.py", "wis_orders.py")]
    for text in (CIRCLE, UNKNOWN):
        requests += [(method, {"files": [{"path": "x.py", "text": text}]}) for method in ("check", "deploy")]
    requests += [("logs", {"name": "vis_end", "follow": True}), ("run", {"name": "vis_end", "follow": True})]
    for method, params in requests:
        answer = with_key(net, key, method, params)
        answer.get("result", {}).pop("source", None)  # its own text may say after what it comes
        asked, told = json.dumps(params), json.dumps(answer)
        assert theirs not in told or theirs in asked, told
        if "wis_orders" in asked:  # what is hidden is as if it did not exist
            missing = with_key(net, key, method, json.loads(asked.replace("wis_orders", "wis_orderz")))
            told = told.replace("wis_orders", "wis_orderz")
            assert told == json.dumps(missing)
        assert "wis_orders" not in told, (method, params)
    circle = with_key(net, key, "deploy", {"files": [{"path": "x.py", "text": CIRCLE}]})["error"]["message"]
    shown = circle.rpartition(": ")[2].split(" → ")
    assert ("".join(shown[1:]) in "vis_end…vis_one" * 2, shown[0]) == (True, shown[-1])
    assert with_key(net, key, "code", {"name": "vis_end"})["result"]["files"] == [
        "helper.txt",
        "vis_end.py",
        "vis_one.py",
    ]
    for name in ("vis_one", "vis_end", "wis_orders"):
        net.call("undeploy", name=name)


def test_live_runs_of_others_are_not_shown(net: Tau) -> None:
    net.deploy("from tau import pipeline\nimport time\n@pipeline\ndef slow(ctx):\n    time.sleep(60)\n", "slow.py")
    run_id = net.call("run", name="slow", wait=False)["run_id"]
    eventually(lambda: run_id in json.dumps(net.call("status")))
    key = key_for(net, "etl", "--pipelines", "etl_*")
    assert run_id not in json.dumps(ask(net, key, "status", {}))
    assert ask(net, key, "cancel", {"run_id": run_id}) == "not_found"
    net.call("cancel", run_id=run_id)
    net.call("undeploy", name="slow")


def test_what_is_done_with_a_key_is_recorded_under_its_name(net: Tau) -> None:
    key = key_for(net, "deployer")
    assert ask(net, key, "run", {"name": "etl_b"})["status"] == "failed"  # nothing comes after it
    queued = [actor for kind, actor, _ in ledger(net) if kind == "run.queued"]
    assert queued[-1] == "deployer"
    (row,) = [one for one in net.call("key_list")["keys"] if one["name"] == "deployer"]
    eventually(lambda: [one["used_at"] for one in net.call("key_list")["keys"] if one["name"] == "deployer"] != [None])
    assert (row["scope"], row["status"], row["actor"]) == ("operate", "live", net.work.owner())


def test_a_revoked_key_opens_nothing_and_whoever_came_with_it_is_out(net: Tau) -> None:
    key = key_for(net, "leaver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAU_API_KEY", key)
        patch.setenv("TAU_CA_FILE", net.environ.get("TAU_CA_FILE", ""))
        with module.Client(net.environ["TAU_HOST"]) as client:
            client.call("list", {})
            assert net.call("key_revoke", name="leaver") == {"name": "leaver", "changed": True}
            assert net.call("key_revoke", name="leaver") == {"name": "leaver", "changed": False}
            with pytest.raises(module.Unavailable):
                client.call("undeploy", {"name": "nothing"})
    assert ask(net, key, "list", {}) == "forbidden"
    assert net.command("--home", net.home, "key", "revoke", "leavr").error["hint"].startswith("did you mean 'leaver'?")


def test_an_expired_key_says_so(net: Tau) -> None:
    key = key_for(net, "brief", "--expires", "1")
    db = sqlite3.connect(net.home / "tau.db", timeout=10)
    eventually(lambda: ask(net, key, "list", {}) == "forbidden")
    db.close()
    done = net.command("list", TAU_API_KEY=key)
    assert (done.exit, "expired at" in done.error["message"]) == (4, True)
    assert [one["status"] for one in net.call("key_list")["keys"] if one["name"] == "brief"] == ["expired"]


def open_lines(net: Tau, key: str) -> Any:
    """A connection of a client that has come in with a key, by whatever transport it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAU_API_KEY", key)
        patch.setenv("TAU_CA_FILE", net.environ.get("TAU_CA_FILE", ""))
        client = module.Client(net.environ["TAU_HOST"])
        client.call("version", {})
    return client


GATED = """
from pathlib import Path
import time
from tau import pipeline

@pipeline
def gated(ctx):
    ctx.log("begun")
    while not Path("go").exists():
        time.sleep(0.01)
    ctx.log("ended")
"""


def test_a_followed_request_ends_with_its_key(net: Tau) -> None:
    net.deploy(GATED, "gated.py")
    key = key_for(net, "short", "--expires", "2")
    events: list[Any] = []

    def on_event(event: Any) -> None:
        events.append(event)
        if event.get("message") == "begun":
            eventually(lambda: ask(net, key, "list", {}) == "forbidden")
            (net.home / "data/gated/go").touch()

    with open_lines(net, key) as client, pytest.raises(module.Forbidden, match="expired at"):
        client.call("run", {"name": "gated", "follow": True}, on_event)
    assert events
    assert "ended" not in [event.get("message") for event in events]
    net.call("undeploy", name="gated")


def test_who_revokes_its_own_key_is_answered_and_out(net: Tau) -> None:
    with open_lines(net, key_for(net, "own", "--scope", "admin")) as client:
        assert client.call("key_revoke", {"name": "own"})["changed"] is True
        with pytest.raises(module.Forbidden):
            client.call("key_create", {"name": "again"})
    assert "again" not in names(net)


def test_a_configured_key_that_is_replaced_opens_nothing_and_whoever_came_with_it_is_out(home: Tau) -> None:
    config, keys = home.home / "tau.toml", [module.new_key() for _ in range(2)]
    config.write_text(f'[auth]\napi_key = "{keys[0]}"\n')
    home.environ["TAU_HOST"] = json.loads(start(home).stdout)["addresses"][1]
    assert home("key", "create", "stays", TAU_API_KEY=keys[0])["name"] == "stays"
    with open_lines(home, keys[0]) as old:
        pid = old.call("status", {})["pid"]
        config.write_text(f'[auth]\napi_key = "{keys[1]}"\n')
        os.kill(pid, signal.SIGHUP)
        eventually(lambda: ask(home, keys[1], "list", {})["total"] == 0)
        with pytest.raises(module.TauError):
            old.call("undeploy", {"name": "nothing"})
    assert ask(home, keys[0], "list", {}) == "forbidden"


def test_no_key_is_anywhere_but_where_it_was_printed(net: Tau) -> None:
    key = key_for(net, "printed")
    ask(net, key, "list", {})
    ask(net, key + "x", "list", {})
    secret = key.encode()
    found = [path for path in net.home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert not found
    assert key not in json.dumps(net.call("key_list"))
    assert hashlib.sha256(secret).hexdigest() not in json.dumps(net.call("key_list"))
    commands = [module.read_bytes(str(path)) or b"" for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in commands if secret in line]


def test_wrong_keys_are_recorded_but_not_each(net: Tau) -> None:
    for _ in range(4):
        assert net.command("list", TAU_API_KEY="wrong" * 10).exit == 4
    eventually(lambda: "auth.failed" in [kind for kind, _, _ in ledger(net)])
    facts = [json.loads(data) for kind, _, data in ledger(net) if kind == "auth.failed"]
    assert facts[0]["address"] == "127.0.0.1"
    assert len(facts) <= 2
    assert "wrong" not in json.dumps(facts)


def test_many_wrong_keys_are_answered_late_and_recorded_once(tmp_path: Path) -> None:
    store, key = Written(), module.new_key()
    keys = module.Keys(str(tmp_path), store)
    keys.configure(module.configured_keys({"api_key": key, "api_key_file": "", "api_key_hash": ""}), public=True)

    async def attack() -> float:
        wrong = [keys.admit("wrong", f"address {number}") for number in range(1000)]
        assert {type(one) for one in await asyncio.gather(*wrong, return_exceptions=True)} == {module.Forbidden}
        began = time.monotonic()
        assert (await keys.admit(key, "address 1")).scope == "admin"  # others do not suffer
        return time.monotonic() - began

    assert asyncio.run(attack()) < module.WRONG_KEY_S
    assert keys.failures == 1000
    assert store.facts == [("auth.failed", None, None, {"address": "address 0", "failures_in_all": 1})]


class Written:
    """A store that has no keys and knows what was to be written."""

    def __init__(self) -> None:
        self.ask, self.event, self.metrics = self, "event", module.Metrics()
        self.facts: list[Any] = []

    def rows(self, question: str) -> list[Any]:
        """Those that were created."""
        return []

    async def write(self, work: Any, *fact: Any) -> None:
        """Something is to be written."""
        self.facts.append(fact)


MALFORMED = {
    ("x", "--scope", "root"): "bad_request",
    ("a b",): "bad_request",
    ("key",): "bad_request",
    ("x", "--scope", "admin", "--pipelines", "etl_*"): "bad_request",
    ("x", "--expires", "tomorrow"): "bad_request",
    ("x", "--pipelines", ""): "bad_request",
    ("x", "--pipelines", " , "): "bad_request",
    ("taken",): "conflict",
}


@pytest.mark.parametrize("words", MALFORMED)
def test_bad_keys_are_refused(tau: Tau, words: tuple[str, ...]) -> None:
    if "taken" not in names(tau):
        tau.call("key_create", name="taken")
    done = tau.command("key", "create", *words)
    assert done.error["code"] == MALFORMED[words]
    assert done.error["hint"]


def start(made: Tau, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Tries to start a daemon that listens on a port."""
    command = [*python("taud"), "--detach", "--port", str(free_port()), *words]
    environ = made.environ | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def refusal_of(done: subprocess.CompletedProcess[str]) -> str:
    """The code of the error."""
    return str(json.loads(done.stderr.splitlines()[-1])["error"]["code"])


def test_a_key_may_be_configured_as_text_file_or_hash(home: Tau) -> None:
    key = module.new_key()
    file = home.work / "key"
    file.write_text(key + "\n")
    file.chmod(0o644)
    home.home.parent.chmod(0o755)
    (home.home / "tau.toml").write_text(f'[auth]\napi_key_file = "{file}"\n')
    assert refusal_of(start(home)) == "forbidden"
    file.chmod(0o600)
    digest = hashlib.sha256(key.encode()).hexdigest()
    for line in (f'api_key_file = "{file}"', f'api_key_hash = "{digest}"', f'api_key = "{key}"'):
        (home.home / "tau.toml").write_text(f"[auth]\n{line}\n")
        (home.home / "tau.toml").chmod(0o600)
        done = start(home)
        host = json.loads(done.stdout)["addresses"][1]
        assert home("--host", host, "list", TAU_API_KEY=key)["total"] == 0
        assert home("--host", host, "list", exit=4)["code"] == "forbidden"
        home("shutdown")


@pytest.mark.parametrize(
    "line",
    ['api_key = "your-secret-key"', 'api_key_hash = "abc"', 'api_key_file = "/nowhere"', 'api_key_file = "/dev/null"'],
)
def test_a_key_that_could_be_guessed_is_refused(home: Tau, line: str) -> None:
    (home.home / "tau.toml").write_text(f"[auth]\n{line}\n")
    assert refusal_of(start(home)) == "bad_request"


def test_a_configuration_that_everybody_can_read_may_hold_no_key(home: Tau) -> None:
    config = home.home / "tau.toml"
    config.write_text(f'[auth]\napi_key = "{module.new_key()}"\n')
    config.chmod(0o644)
    assert start(home).returncode == 0  # nobody gets there
    home("shutdown")
    home.home.parent.chmod(0o755)
    home.home.chmod(0o755)
    assert refusal_of(start(home)) == "forbidden"


def test_a_created_key_is_enough_to_listen_everywhere(home: Tau) -> None:
    assert refusal_of(start(home, "--host", "0.0.0.0,::")) == "forbidden"
    home.start()
    key = home("key", "create", "ci")["key"]
    home("shutdown")
    done = start(home, "--host", "0.0.0.0,::")
    addresses = json.loads(done.stdout)["addresses"]
    assert [one.rpartition(":")[0] for one in addresses[1:]] == ["tcp://0.0.0.0", "tcp://[::]"]
    port = addresses[1].rpartition(":")[2]
    for host in (f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}", f"http://[::1]:{port}"):
        assert home("--host", host, "list", TAU_API_KEY=key)["total"] == 0


def test_whoever_is_refused_reads_how_to_show_a_key(home: Tau) -> None:
    port = free_port()
    home.start("--port", str(port))
    for scheme in ("tcp", "http"):
        refused = home("--host", f"{scheme}://127.0.0.1:{port}", "list", TAU_API_KEY="x" * 40, exit=4)
        assert refused["message"] == "the key is not right"
        assert all(word in refused["hint"] for word in ("tau key create", "TAU_API_KEY", "tau env add", "Bearer KEY"))
