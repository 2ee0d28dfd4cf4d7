"""A namespace ends with all that it had, and a later one of its name begins with nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Tau, eventually, make_home, running
from test_page import Browser, open_home

import tau as module

SOURCE = """
from tau import pipeline
import os

@pipeline(schedule="0 6 * * *")
def orders(ctx, wrong: bool = False):
    with open("left", "a") as file:
        file.write("a trace")
    ctx.state["seen"] = 17
    ctx.memo("kept", lambda: 17)
    ctx.log(str(ctx.secret("TOKEN", "nothing at all"))[:7])
    if wrong:
        raise ValueError("wrong")
    return os.listdir()

@pipeline
def waits(ctx):
    import time
    time.sleep(600)
"""


def made(tau: Tau, name: str = "acme") -> str:
    """A namespace with one of everything; its key."""
    tau("namespace", "create", name)
    tau.deploy(SOURCE, "orders.py", "--namespace", name)
    tau("secret", "set", "TOKEN", "--namespace", name, stdin="a-secret-of-theirs")
    for words in ((), ("-p", "wrong=true")):
        tau.command("run", "orders", *words, TAU_NAMESPACE=name)
    tau("pause", "orders", TAU_NAMESPACE=name)
    return str(tau("key", "create", "ci", "--namespace", name)["key"])


def seen(tau: Tau, name: str = "acme") -> dict[str, Any]:
    """All that a namespace shows of itself."""
    ask = [("list", {}), ("runs", {}), ("errors", {"all": True}), ("errors", {}), ("events", {}), ("secret_list", {})]
    ask += [("lineage", {}), ("key_list", {}), ("calendar", {}), ("watch", {})]
    with module.Client(home=str(tau.home), namespace=name) as client:
        return {f"{method} {params}": client.call(method, params) for method, params in ask}


def test_a_later_namespace_of_the_same_name_sees_nothing_of_the_old(fresh: Tau) -> None:
    made(fresh)
    run_ids = [run["run_id"] for run in fresh.call("runs")["runs"] if run["pipeline"] == "acme/orders"]
    assert len(run_ids) == 2
    assert fresh("namespace", "remove", "acme", exit=5)["hint"] == "tau namespace remove acme --force"
    assert fresh("namespace", "remove", "acme", "--force")["removed_runs"] == 2
    assert fresh("namespace", "show", "acme", exit=3)["code"] == "not_found"
    fresh("namespace", "create", "acme")
    text = json.dumps(seen(fresh))
    assert [word for word in ("orders", "TOKEN", "wrong", "acme/ci", *run_ids) if word in text] == []
    for run_id in run_ids:
        assert fresh("inspect", run_id, exit=3)["code"] == "not_found"
    assert [path for path in fresh.home.rglob("*") if "acme" in path.name or path.name in (*run_ids, "left")] == []
    fresh.deploy(SOURCE, "orders.py", "--namespace", "acme")
    assert fresh("show", "acme/orders")["versions"][0]["version"] == 1
    assert fresh("state", "acme/orders")["state"] == {}
    done = fresh("run", "acme/orders")
    assert (done["result"], done["trace"]["log_tail"]) == (["left"], ["nothing"])


def test_its_keys_open_nothing_afterwards() -> None:
    with running(make_home("", "http")) as net:
        here = ("--home", net.home, "--host", f"unix://{net.home}/tau.sock")
        net("namespace", "create", "acme", *here)
        key = net("key", "create", "ci", "--namespace", "acme", *here)["key"]
        assert net("list", TAU_API_KEY=key)["pipelines"] == []
        net("namespace", "remove", "acme", *here)
        assert net("list", TAU_API_KEY=key, exit=4)["code"] == "forbidden"


def test_its_sessions_end_with_it() -> None:
    with running(open_home()) as tau:
        tau("namespace", "create", "acme")
        browser = Browser(tau)
        word = tau("open", "--print", "--namespace", "acme")["address"].partition("#word=")[2]
        assert browser.log_in(word=word)["namespace"] == "acme"
        assert "result" in browser.ask(("list", {}))[0]
        tau("namespace", "remove", "acme")
        tau("namespace", "create", "acme")
        status, refused = browser("POST", "ask", {"calls": [("list", {})]})
        assert (status, refused["error"]["code"]) == (401, "forbidden")


def test_while_a_run_goes_on_it_stays(fresh: Tau) -> None:
    made(fresh)
    run_id = fresh("run", "acme/waits", "--detach")["run_id"]
    eventually(lambda: fresh.call("inspect", run_id=run_id)["status"] == "running")
    refused = fresh("namespace", "remove", "acme", "--force", exit=5)
    assert (refused["code"], refused["hint"]) == ("conflict", f"tau cancel {run_id}")
    assert Path(fresh.home, "namespaces", "acme", "data", "orders", "left").exists()
    fresh("cancel", run_id)
    fresh("namespace", "remove", "acme", "--force")


def test_the_default_namespace_stays(fresh: Tau) -> None:
    assert fresh("namespace", "remove", "default", exit=2)["code"] == "bad_request"
    assert fresh("namespace", "create", "default", exit=5)["code"] == "conflict"
    for name in ("Acme", "a/b", "..", "-", ""):
        assert fresh("namespace", "create", "--", name, exit=2)["code"] == "bad_request"


def test_a_secret_may_have_the_name_of_a_namespace(fresh: Tau) -> None:
    """Whose name is taken by another, an admin of the default namespace does not learn."""
    fresh.deploy("from tau import pipeline\n@pipeline\ndef it(ctx):\n    return len(ctx.secret('acme'))\n")
    fresh("secret", "set", "acme", stdin="a-first-value")
    fresh("namespace", "create", "acme")
    fresh("secret", "set", "acme", "--namespace", "acme", stdin="of the namespace")
    assert fresh("run", "it")["result"] == 13
    fresh("namespace", "create", "beta")
    fresh("secret", "set", "TOKEN", "--namespace", "beta", stdin="abcdef")
    assert fresh("secret", "set", "beta", stdin="abcdef")["found"] == "home"
    found = {(row["namespace"], row["name"]) for row in fresh("secret", "list")["secrets"]}
    assert found == {("default", "acme"), ("default", "beta"), ("acme", "acme"), ("beta", "TOKEN")}
    fresh("namespace", "remove", "acme")
    assert fresh("run", "it")["result"] == 13
    fresh("secret", "set", "acme", stdin="another")
    assert fresh("run", "it")["result"] == 7
    for name in ("acme", "beta"):
        assert fresh("secret", "remove", name) == {"name": name, "changed": True, "found": None}
    assert fresh.command("run", "it").json["error"]["type"] == "MissingSecret"
