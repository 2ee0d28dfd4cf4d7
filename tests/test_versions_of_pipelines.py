"""Versions of a pipeline: what differs between them, which is live, and their files."""

from __future__ import annotations

import base64
import os
import shlex
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Tau, make_home, running
from test_client import fake, reply
from test_keys import ask, key_for

import tau as module

MANY = b"".join(b"%d\n" % number for number in range(10_000))


@pytest.mark.parametrize(
    ("before", "now", "diff"),
    [
        (b"a\nb\n", b"a\nb\n", ""),
        (b"a\nb\n", b"a\nc\n", "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"),
        (None, b"a\n", "--- /dev/null\n+++ b/x.py\n@@ -0,0 +1 @@\n+a\n"),
        (b"a\n", None, "--- a/x.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"),
        (None, b"", "/dev/null and b/x.py differ\n"),
        (b"a", b"b\n", "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n"),
        (b"\xff", b"\xfe\xff", "a/x.py and b/x.py differ\n"),
        (MANY, MANY + b"x", "a/x.py and b/x.py differ\n"),
    ],
)
def test_files_are_compared(before: bytes | None, now: bytes | None, diff: str) -> None:
    files = [{} if content is None else {"x.py": content} for content in (before, now)]
    assert module.compare_sources(*files) == diff


def test_a_long_difference_is_cut_and_says_how_much() -> None:
    diff = module.compare_sources({}, {f"{number}.py": b"x\n" * 3000 for number in range(10)})
    assert 20_000 < len(diff) < 20_100
    assert diff.endswith(" more characters\n")


def test_a_file_that_only_differs_takes_no_diff_from_others() -> None:
    long = [b"".join(b"%d%c\n" % (line, side) for line in range(3001)) for side in b"ab"]
    sides = [{"a.sql": long[n], "b.py": b"x = %d\n" % n} for n in range(2)]
    diff = module.compare_sources(*sides)
    assert diff == "a/a.sql and b/a.sql differ\n--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n-x = 0\n+x = 1\n"
    same = b"".join(b"%d\n" % line for line in range(9, 384))
    sides = [{f"{n}.py": b"%d\n" % side + same for n in range(10)} for side in range(2)]
    assert module.compare_sources(*sides).count("\n+1\n") == 10


def source(number: int, head: str = "", body: str = "") -> str:
    """A pipeline whose versions differ in a line."""
    return f"from tau import pipeline\n\n@pipeline{head}\ndef turned(ctx, day: str = 'mon'):\n    {body}\n    return {number}\n"


def send(tau: Tau, text: str, **more: Any) -> Any:
    """The deployment of a text over the wire; the error if there is one."""
    with tau.connect() as wire:
        params = {"files": [{"path": "turned.py", "text": text}], **more}
        answer = wire.ask({"id": 1, "method": "deploy", "params": params})
    return answer.get("result") or answer["error"]


def ledger(tau: Tau, kind: str) -> list[tuple[str, str | None]]:
    """Who did what of a kind, and why."""
    db = sqlite3.connect(tau.home / "tau.db")
    rows = db.execute("SELECT actor, reason FROM events WHERE type = ? ORDER BY seq", (kind,)).fetchall()
    db.close()
    return rows


def numbers(tau: Tau, *keys: str) -> list[Any]:
    return [tuple(row[key] for key in keys) for row in tau.call("versions", name="turned")["versions"]]


def test_a_rollback_moves_the_live_version_and_what_depends_on_it(fresh: Tau) -> None:
    for number, head in enumerate(('(schedule="0 1 * * *")', '(schedule="0 2 * * *", after=["other"])', ""), 1):
        send(fresh, source(number, head) + "\n@pipeline\ndef other(ctx): ...\n")
    back = fresh("rollback", "turned", "--reason", "version 3 has no schedule")
    assert back == {"name": "turned", "version": 2, "previous": 3, "changed": True, "next": ["tau run turned"]}
    shown = fresh("show", "turned")
    assert (shown["version"], shown["schedule"]["cron"], shown["upstream"]) == (2, "0 2 * * *", ["other"])
    assert fresh("run", "turned")["result"] == 2
    assert ledger(fresh, "pipeline.rolled_back")[0][1] == "version 3 has no schedule"
    assert fresh("rollback", "turned", "--to", "2")["changed"] is False

    fresh("schedule", "turned", "0 7 * * *")
    assert fresh("rollback", "turned")["version"] == 1
    shown = fresh("show", "turned")
    assert (shown["schedule"]["cron"], shown["upstream"]) == ("0 7 * * *", [])  # the command line's stays

    assert send(fresh, source(3))["pipelines"][0]["version"] == 4  # not 2 and not 3, which had the same source
    assert fresh("rollback", "turned")["version"] == 1  # what it replaced, not what came before its number
    assert numbers(fresh, "version", "live") == [(4, False), (3, False), (2, False), (1, True)]
    missing = fresh("rollback", "turned", exit=3)
    assert (missing["versions"], missing["hint"]) == ([4, 3, 2, 1], "tau versions turned")
    assert "no version 9; its versions are 4, 3, 2, 1" in fresh("rollback", "turned", "--to", "9", exit=3)["message"]
    fresh("undeploy", "turned")
    assert fresh("rollback", "turned", exit=3)["message"] == "pipeline 'turned' was undeployed"


def test_a_rollback_into_a_circle_of_chains_is_refused(fresh: Tau) -> None:
    other = "\n@pipeline(after=[{}])\ndef other(ctx): ...\n"
    send(fresh, source(1, '(after=["other"])') + other.format(""))
    send(fresh, source(2) + other.format(""))
    send(fresh, source(3) + other.format('"turned"'))
    assert "in a circle" in fresh("rollback", "turned", "--to", "1", exit=2)["message"]
    assert fresh("show", "turned")["version"] == 3


def test_versions_say_who_why_what_and_how_it_went(fresh: Tau) -> None:
    fresh("deploy", fresh.write(source(1), "turned.py"), "--reason", "the first")
    fresh("run", "turned")
    fresh("deploy", fresh.write(source(2, body="ctx.log('more')\n    raise KeyError"), "turned.py"))
    fresh("run", "turned", exit=1)
    new, old = fresh("versions", "turned")["versions"]
    assert {"version": 1, "live": False, "reason": "the first", "entry": "turned.py"}.items() <= old.items()
    assert [(row["runs"], row["last_status"]) for row in (old, new)] == [(1, "success"), (1, "failed")]
    assert (new["live"], new["reason"]) == (True, None)
    assert "truncated" in fresh("versions", "turned", "--limit", "1")


def test_a_deployment_expects_the_version_that_it_was_made_from(fresh: Tau) -> None:
    assert send(fresh, source(1), expect=1)["data"]["live"] == 0
    assert send(fresh, source(1), expect=0)["pipelines"][0]["changed"] is True
    send(fresh, source(2), expect=1)
    refused = fresh("deploy", fresh.write(source(9), "turned.py"), "--expect", "1", exit=5)
    assert (refused["code"], refused["live"], refused["hint"]) == (
        "conflict",
        2,
        "take its changes into yours, then --expect 2",
    )
    assert "-    return 1\n+    return 2\n" in refused["diff"]
    assert send(fresh, source(9), expect=7, dry_run=True)["data"]["live"] == 2
    assert "several pipelines" in send(fresh, source(1) + "@pipeline\ndef more(ctx): ...\n", expect=2)["message"]
    assert numbers(fresh, "version") == [(2,), (1,)]


def test_a_dry_run_tells_what_would_change_and_changes_nothing(fresh: Tau) -> None:
    secret = "ctx.secret('TURNED_KEY')"
    first = send(fresh, source(1, '(schedule="0 1 * * *")', secret), dry_run=True)
    (row,) = first["pipelines"]
    assert (row["version"], row["changed"], row["secrets"]) == (1, True, {"TURNED_KEY": [None, True]})
    assert row["schedule"] == {"cron": [None, "0 1 * * *"]}
    assert row["code"].startswith("--- /dev/null\n+++ b/turned.py\n")
    assert "turned" not in str(fresh.call("list"))

    path = fresh.write(source(1) + "@pipeline\ndef leaves(ctx): ...\n", "turned.py")
    fresh("deploy", path)
    moved = fresh.write(source(2, "(retries=2)", secret).replace("'mon'", "'tue'"), "moved.py")
    assert fresh("deploy", moved, "--dry-run", exit=5)["previously"] == {"turned": str(path)}  # as a deployment is
    (row,) = (answer := fresh("deploy", moved, "--dry-run", "--take-over"))["pipelines"]
    assert answer["previously"] == {"turned": str(path)}
    day = [{"type": "string", "default": text} for text in ("mon", "tue")]
    assert (row["options"], row["params"]) == ({"entry": ["turned.py", "moved.py"], "retries": [0, 2]}, {"day": day})
    assert "+++ b/moved.py" in row["code"]
    fresh.write(source(1), "turned.py")
    answer = fresh("deploy", path, "--dry-run", "--schedule", "@daily")
    assert (answer["no_longer_in_file"], answer["pipelines"][0]["schedule"]) == (["leaves"], {"cron": [None, "@daily"]})
    assert "circle" in send(fresh, source(1, '(after=["turned"])'), dry_run=True, take_over=True)["message"]
    assert numbers(fresh, "version") == [(1,)]
    fresh.write(source(1) + "@pipeline\ndef leaves(ctx): ...\n", "turned.py")
    assert [row["changed"] for row in fresh("deploy", path, "--dry-run")["pipelines"]] == [False, False]


def test_every_write_takes_a_reason_and_the_ledger_keeps_it(fresh: Tau) -> None:
    send(fresh, source(1, body="__import__('time').sleep(60)"), reason="a" * 600)
    run = fresh("run", "turned", "--detach", "--reason", "to see")["run_id"]
    fresh("cancel", run, "--reason", "seen")
    fresh("pause", "turned", "--reason", "enough")
    fresh("resume", "turned")
    kinds = (
        "pipeline.deployed",
        "run.queued",
        "run.cancelling",
        "pipeline.paused",
        "pipeline.resumed",
        "daemon.stopping",
    )
    fresh("shutdown", "--reason", "done")
    reasons = [[reason for _, reason in ledger(fresh, kind)] for kind in kinds]
    assert reasons == [["a" * 499 + "…"], ["to see"], ["seen"], ["enough"], [None], ["done"]]
    asked = {name: "reason" in entry.arguments for name, entry in module.OPERATIONS.items()}
    assert asked == {name: entry.effect != "reads" for name, entry in module.OPERATIONS.items()}


def test_twenty_clients_at_once_get_honest_answers(fresh: Tau) -> None:
    send(fresh, source(0), expect=0)
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda number: send(fresh, source(number), expect=1), range(1, 21))]
        won = [number for number, answer in enumerate(answers, 1) if "pipelines" in answer]
        assert [answer["data"]["live"] for answer in answers if "data" in answer] == [2] * 19
        assert fresh("run", "turned")["result"] == won[0]

        def act(number: int) -> Any:
            if number % 4 == 0:
                return fresh.call("rollback", name="turned", to=1 + number % 2)
            if number % 4 == 1:
                return fresh.call("run", name="turned", key="only one")
            return send(fresh, source(100 + number))

        answers = [*pool.map(act, range(20))]
    runs = {answer["run_id"]: answer for answer in answers if "run_id" in answer}
    assert len(runs) == 1
    made = sorted(answer["pipelines"][0]["version"] for answer in answers if "pipelines" in answer)
    assert made == [*range(3, 13)]  # each its own, without a gap
    assert [version for (version,) in numbers(fresh, "version")] == [*range(12, 0, -1)]
    for version in (3, 12):
        answer = next(it for it in answers if it.get("pipelines", [{}])[0].get("version") == version)
        text = fresh.call("code", name="turned", version=version)["source"]
        assert text == source(100 + answers.index(answer))


def test_the_files_of_a_version_are_written_and_deploy_again(fresh: Tau) -> None:
    (fresh.work / "shop" / "sql").mkdir(parents=True)
    files = {"main.py": source(1) + "\nimport rules\n", "rules.py": "A = 1\n", "sql/all.sql": "SELECT 1"}
    for path, text in files.items():
        (fresh.work / "shop" / path).write_text(text)
    (fresh.work / "shop" / "odd.bin").write_bytes(b"\xff\0")
    fresh("deploy", "shop")
    answer = fresh("code", "turned", "--out", "a b")
    assert sorted(answer["written"]) == [f"a b/{path}" for path in ("main.py", "odd.bin", "rules.py", "sql/all.sql")]
    assert {path: (fresh.work / "a b" / path).read_text() for path in files} == files
    assert (fresh.work / "a b" / "odd.bin").read_bytes() == b"\xff\0"
    assert stat.S_IMODE((fresh.work / "a b" / "main.py").stat().st_mode) == 0o666 & ~current_umask()
    assert fresh("code", "turned", "--out", "a b")["written"] == []
    (command,) = answer["next"]
    assert command == "tau deploy 'a b' --entry main.py --name turned --take-over"
    assert fresh(*shlex.split(command)[1:])["changed"] is False
    (fresh.work / "a b" / "main.py").write_text(source(2))
    assert fresh(*shlex.split(command)[1:])["pipelines"][0]["version"] == 2

    differs = fresh("code", "turned", "--version", "1", "--out", "a b", exit=5)
    assert differs["message"] == "these are there and differ: a b/main.py"
    assert "return 2" in (fresh.work / "a b" / "main.py").read_text()
    assert fresh("code", "turned", "--version", "1", "--out", "a b", "--force")["written"] == ["a b/main.py"]
    assert fresh("code", "turned", "--out", "")["next"][0].startswith("tau deploy . --entry main.py")
    assert fresh("versions", "turner", exit=3)["hint"] == "did you mean 'turned'? `tau list` shows all"
    assert "return 1" in (fresh.work / "a b" / "main.py").read_text()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_package_is_written_and_deploys_again(fresh: Tau) -> None:
    (fresh.work / "shop").mkdir()
    (fresh.work / "shop" / "__init__.py").write_text("")
    (fresh.work / "shop" / "rules.py").write_text("A = 1\n")
    (fresh.work / "shop" / "main.py").write_text("from . import rules\n" + source(1))
    fresh("deploy", "shop", "--entry", "main.py", "--name", "renamed")
    (command,) = fresh("code", "renamed", "--out", "fix")["next"]
    assert command == "tau deploy fix --entry shop/main.py --name renamed --take-over"
    assert fresh(*shlex.split(command)[1:])["pipelines"][0] | {"changed": False} in [
        {"name": "renamed", "version": 1, "changed": False, "next_at": None}
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/x",
        "../x",
        "a/../../x",
        "",
        ".",
        "a//b",
        "a\0b",
        None,
        "linked/x",
        "link",
        "folder",
        "file/x",
        "pipe",
        "y\udcff/..",
        ".git/config",
        "a/.vscode/tasks.json",
    ],
)
def test_a_daemon_cannot_choose_where_files_go(home: Tau, path: Any) -> None:
    out = home.work / "out"
    (out / "folder").mkdir(parents=True)
    (home.work / "outside").mkdir()
    (out / "linked").symlink_to(home.work / "outside")
    (out / "link").symlink_to(home.work / "outside" / "x")
    (out / "file").write_text("")
    os.mkfifo(out / "pipe")
    before = sorted(home.work.rglob("*"))
    files = [{"path": "new.py", "base64": ""}, {"path": path, "base64": base64.b64encode(b"evil").decode()}]
    with fake(home.home, lambda count, line: reply(line, result={"entry": "new.py", "version": 1, "files": files})):
        done = home.command("code", "x", "--out", out, "--force")
    assert (done.exit, done.error["code"]) in [(2, "bad_request"), (5, "conflict")], done
    assert sorted(home.work.rglob("*")) == before


def test_the_largest_deployment_comes_back(fresh: Tau) -> None:
    (fresh.work / "big").mkdir()
    fresh.write(source(1), "big/main.py")
    data = os.urandom((5 << 20) - 1000)
    (fresh.work / "big" / "data").write_bytes(data)
    fresh("deploy", "big")
    assert fresh("code", "turned", "--out", "out")["written"] == ["out/data", "out/main.py"]
    assert (fresh.work / "out" / "data").read_bytes() == data


@pytest.mark.parametrize("files", [None, "x", [1], [{"path": "x"}], [{"path": "x", "base64": "?"}]])
def test_a_daemon_that_sends_no_files_is_told_apart(home: Tau, files: Any) -> None:
    with fake(home.home, lambda count, line: reply(line, result={"entry": "x", "files": files})):
        assert home("code", "x", "--out", "out", exit=2)["code"] == "bad_request"
    assert not (home.work / "out").exists()


def test_a_version_without_its_environment_does_not_come_back(fresh: Tau) -> None:
    send(fresh, source(1))
    send(fresh, source(2))
    fresh.kill()
    with sqlite3.connect(fresh.home / "tau.db") as db:
        db.execute("UPDATE versions SET options = json_set(options, '$.environment', 'gone') WHERE version = 1")
    db.close()
    fresh.start()
    gone = fresh("rollback", "turned", exit=5)
    assert gone["hint"] == "tau code turned --version 1 --out turned-v1"
    assert fresh(*shlex.split(gone["hint"])[1:])["written"] == ["turned-v1/turned.py"]
    assert fresh("show", "turned")["version"] == 2


def test_a_key_sees_nothing_of_files_that_are_of_other_pipelines_only() -> None:
    with running(make_home("", "tcp")) as net:
        for number in (1, 2):
            hidden = f"from tau import pipeline\n@pipeline\ndef hidden(ctx): return {number} * 77\n"
            files = [{"path": "turned.py", "text": source(number)}, {"path": "hidden.py", "text": hidden}]
            net.call("deploy", files=files)
        key = key_for(net, "narrow", "--pipelines", "turned")
        mine = {"files": [{"path": "turned.py", "text": source(3)}]}
        answers = [
            ask(net, key, "versions", {"name": "turned"}),
            ask(net, key, "code", {"name": "turned", "out": ""}),
            ask(net, key, "deploy", mine | {"dry_run": True}),
            ask(net, key, "rollback", {"name": "turned"}),
        ]
        path = net.write(source(3), "turned.py")
        refused = net("deploy", path, "--expect", "2", exit=5, TAU_API_KEY=key)
        assert "+    return 1" in refused["diff"]
        assert "hidden" not in str([*answers, refused])
        assert ask(net, key, "rollback", {"name": "hidden"}) == "not_found"
