"""Verified deploys: a version becomes live only if it shows no risk and does what the last success did."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from conftest import Tau, eventually, make_home, running
from test_keys import ask, key_for

import tau as module

#: Its check would catch none of the bad fixes below.
BROKEN = """
from tau import pipeline


@pipeline(timeout="4s")
def sales(ctx):
    rows = ctx.extract("sales.csv")
    ctx.check(len(rows) > 0, name="some")
    out = [{"id": row["id"], "amount": float(row["amount"])} for row in rows]
    ctx.load("sqlite:///shop.db", out, "sales")
    return len(out)
"""
FIXED = BROKEN.replace('float(row["amount"])', 'float(row["total"])')
BUILT = "    out = [{"
LOAD = '    ctx.load("sqlite:///shop.db", out, "sales")\n'
CHECK = '    ctx.check(len(rows) > 0, name="some")\n'
COUNT = 8


class Shop:
    """A pipeline that succeeded, and has failed since a column was renamed."""

    def __init__(self, tau: Tau) -> None:
        self.tau, self.folder = tau, tau.home / "data" / "sales"
        self.folder.mkdir(parents=True)
        self.fill("amount")
        self.deploy(BROKEN)
        assert tau.call("run", name="sales")["status"] == "success"
        self.fill("total")
        self.run_id = str(tau.call("run", name="sales")["run_id"])

    def fill(self, column: str) -> None:
        rows = "".join(f"{number},{number + 76540}.5\n" for number in range(1, COUNT + 1))
        (self.folder / "sales.csv").write_text(f"id,{column}\n{rows}")

    def deploy(self, text: str, **more: Any) -> Any:
        """The answer to a deployment, or its error."""
        with self.tau.connect() as wire:
            params = {"files": [{"path": "sales.py", "text": text}], **more}
            answer = wire.ask({"id": 1, "method": "deploy", "params": params})
        return answer.get("result") or answer["error"]

    def verify(self, text: str, *allow: str, **more: Any) -> Any:
        return self.deploy(text, verify=self.run_id, allow=[*allow], **more)

    def state(self) -> Any:
        """What must not change: the live version, how many there are, and the rows that were loaded."""
        with closing(sqlite3.connect(self.folder / "shop.db")) as db:
            dump = [*db.iterdump()]
        versions = self.tau.call("versions", name="sales")
        return versions["total"], [row["version"] for row in versions["versions"] if row["live"]], dump


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    made = make_home("[daemon]\nstop_grace_s = 0.5\n")
    with running(made):
        yield Shop(made)


def edited(old: str, new: str) -> str:
    assert old in FIXED, old
    return FIXED.replace(old, new)


@pytest.mark.parametrize(
    ("text", "risk"),
    [
        (edited("    return len", "    return (len"), "unreadable"),
        (edited(LOAD, "    out = out[:1]\n" + LOAD), "rows"),
        (edited(LOAD, "    out = out[::2]\n" + LOAD), "rows"),
        (edited(LOAD, "    out = out + out\n" + LOAD), "rows"),
        (edited(LOAD, "    out = [row for row in out for _ in (1, 2)]\n" + LOAD), "rows"),
        (edited(LOAD, "    out = []\n" + LOAD), "rows"),
        (edited(LOAD, LOAD + LOAD), "load_edited"),
        (edited('float(row["total"])', 'float(row["total"]) * 0'), "blank"),
        (edited('float(row["total"])', 'float(row.get("amount", 0))'), "value_made_up"),
        (edited('float(row["total"])', "''"), ""),
        (edited('float(row["total"])', 'int(float(row["total"]))'), "columns"),
        (edited('float(row["total"])', "None"), "nulls"),
        (edited('"amount": float', '"total": float'), "columns"),
        (edited(BUILT, "    while True: pass\n" + BUILT), ""),
        (edited(CHECK, ""), "check_gone"),
        (edited("> 0", ">= 0"), "check_edited"),
        (edited('name="some"', 'name="some", severity="warn"'), "check_warns"),
        (edited(LOAD, "    try:\n    " + LOAD + "    except Exception:\n        pass\n"), "except_wider"),
        (edited("def sales", "def others"), "pipeline"),
        (edited("def sales", "def more(ctx): ...\n\n\n@pipeline\ndef sales"), "pipeline"),
        (edited(BUILT, "    ctx.secret('TOKEN')\n" + BUILT), "secret"),
        (edited(LOAD, ""), "load_gone"),
        (edited('"sales")', '"others")'), "place"),
        (edited("shop.db", "others.db"), "place"),
        (edited("from tau", "import socket\nfrom tau"), "dependency"),
        (BROKEN + "# the same\n", ""),
    ],
)
def test_a_bad_fix_never_becomes_live(shop: Shop, text: str, risk: str) -> None:
    before = shop.state()
    error = shop.verify(text)
    assert (error["code"], error["data"]["code"]) == (-32011, "unproven"), error
    assert bool(risk) == ("risks" in error["data"]), error
    assert not risk or risk in {row["risk"] for row in error["data"]["risks"]}, error
    assert shop.state() == before


@pytest.mark.parametrize(
    ("text", "allow", "risk"),
    [
        (edited(LOAD, ""), ["load_edited"], "load_gone"),
        (edited('"sales")', '"others")'), ["load_edited"], "place"),
        (edited(CHECK, ""), ["check_gone"], "checks"),
        (edited('name="some"', 'name="others"'), ["check_edited"], "checks"),
        (edited("def sales", "def others"), [*module.RISKS], ""),
        (edited(BUILT, "    import socket; socket.create_connection(('192.0.2.1', 9))\n" + BUILT), ["dependency"], ""),
    ],
)
def test_what_is_allowed_of_the_source_must_still_fit(shop: Shop, text: str, allow: list[str], risk: str) -> None:
    before = shop.state()
    error = shop.verify(text, *allow)
    assert error["data"]["code"] == "unproven", error
    assert not risk or risk in {row["risk"] for row in error["data"]["risks"]}, error
    assert shop.state() == before


def test_high_risk_is_neither_built_nor_loaded_nor_run(shop: Shop) -> None:
    made = shop.folder / "made"
    text = edited("from tau", f"import os\nopen({str(made)!r}, 'w').close()\nfrom tau")
    assert {row["risk"] for row in shop.verify(text)["data"]["risks"]} == {"dependency", "place"}
    assert not made.exists()


def test_a_good_fix_becomes_live_with_its_proof() -> None:
    with running(make_home()) as tau:
        shop = Shop(tau)
        before = shop.state()
        told = shop.verify(FIXED, dry_run=True)
        assert (told["dry_run"], told["pipelines"][0]["risks"], shop.state()) == (True, [], before)
        answer = shop.verify(FIXED, probation=3)
        (effect,) = answer["proof"]["effects"]
        assert (effect["resource"], effect["rows"]) == ("sales", COUNT)
        assert (answer["proof"]["run_id"], answer["proof"]["allowed"]) == (shop.run_id, [])
        (row, old) = tau.call("versions", name="sales")["versions"]
        assert (row["live"], row["proof"], row["probation"], old["proof"]) == (True, answer["proof"], 3, None)
        assert "76544.5" not in json.dumps(answer)  # counts, no rows
        assert tau.call("run", name="sales")["status"] == "success"
        assert tau.call("errors", name="sales")["incidents"][0]["fixed_by"] == 2


def test_what_is_meant_is_allowed_by_name() -> None:
    with running(make_home()) as tau:
        shop = Shop(tau)
        text = edited(CHECK, "")
        path = tau.write(text, "sales.py")
        error = tau("deploy", path, "--verify", shop.run_id, exit=5)
        assert error["code"] == "unproven"
        assert "check_gone" in error["message"]
        assert tau("deploy", path, "--verify", shop.run_id, "--allow", "never", exit=2)["code"] == "bad_request"
        words = ["--allow", "check_gone", "--allow", "checks"]
        done = tau("deploy", path, "--verify", shop.run_id, *words)
        assert {row["risk"] for row in done["proof"]["allowed"]} == {"check_gone", "checks"}


def test_another_secret_is_allowed_by_name() -> None:
    with running(make_home()) as tau:
        shop = Shop(tau)
        tau("secret", "set", "NEW_KEY", stdin="n" * 30)
        path = tau.write(edited(CHECK, CHECK + "    ctx.secret('NEW_KEY')\n"), "sales.py")
        assert "(secret)" in tau("deploy", path, "--verify", shop.run_id, exit=5)["message"]
        done = tau("deploy", path, "--verify", shop.run_id, "--allow", "secret")
        assert [row["risk"] for row in done["proof"]["allowed"]] == ["secret"]


def test_without_a_success_there_is_nothing_to_compare_with() -> None:
    with running(make_home()) as tau:
        (tau.home / "data" / "sales").mkdir(parents=True)
        (tau.home / "data" / "sales" / "sales.csv").write_text("id,total\n1,1\n")
        path = tau.write(BROKEN, "sales.py")
        tau("deploy", path)
        run = tau.call("run", name="sales")["run_id"]
        error = tau("deploy", tau.write(FIXED, "sales.py"), "--verify", run, exit=5)
        assert [row["risk"] for row in error["risks"]] == ["no_success"]
        assert tau("deploy", path, "--verify", run, "--allow", "no_success")["changed"]


def test_another_version_in_between_is_a_conflict() -> None:
    with running(make_home()) as tau:
        shop = Shop(tau)
        slow = edited(BUILT, "    import time; time.sleep(1.5)\n" + BUILT)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(shop.verify(slow)))
        thread.start()
        eventually(lambda: any((tau.home / "versions").glob(".staged-*")))
        shop.deploy(BROKEN + "# another\n")
        thread.join()
        assert answers[0]["data"]["code"] == "conflict", answers
        assert shop.state()[1] == [2]


def test_kill_9_in_the_midst_leaves_one_live_version() -> None:
    with running(make_home()) as tau:
        shop = Shop(tau)
        before = shop.state()
        slow = edited(BUILT, "    import time; time.sleep(3)\n" + BUILT)

        def ask() -> None:
            with pytest.raises((OSError, AttributeError)):  # the connection ends
                shop.verify(slow)

        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: any((tau.home / "versions").glob(".staged-*")))
        tau.kill()
        thread.join()
        tau.start()
        assert shop.state() == before
        eventually(lambda: not [*(tau.home / "versions").glob(".staged-*")])
        assert shop.verify(FIXED)["changed"]
        assert shop.state()[1] == [2]


def test_who_does_not_see_the_pipeline_cannot_verify_with_its_run() -> None:
    with running(make_home(transport="tcp")) as tau:
        shop = Shop(tau)
        key = key_for(tau, "narrow", "--scope", "operate", "--pipelines", "others")
        files = [{"path": "sales.py", "text": edited(CHECK, "")}]
        for method, word in (("deploy", "verify"), ("try", "like")):
            assert ask(tau, key, method, {"files": files, word: shop.run_id}) == "not_found"
