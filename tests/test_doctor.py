"""The doctor finds what is wrong, names the remedy, tries everything, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually
from test_terminal import on_terminal

import tau as module

CANARY = ["canary: deploy", "canary: run", "canary: fail", "canary: retry", "canary: cancel", "canary: undeploy"]


def checks(tau: Tau, exit: int = 0) -> dict[str, Any]:
    """What the doctor says, by the name of the check."""
    document = tau.command("doctor")
    assert (document.exit, document.json["ok"]) == (exit, exit == 0), document.out
    for check in document.json["checks"]:
        assert list(check) == ["name", "status", "found", "remedy"]
        assert check["found"]
        assert bool(check["remedy"]) == (check["status"] != "pass"), check
    return {check["name"]: check for check in document.json["checks"]}


def test_without_a_daemon_everything_is_tried_in_a_home_of_its_own(home: Tau) -> None:
    found = checks(home)
    assert list(found) == [*module.CHECKS, *CANARY]
    assert (found["daemon"]["status"], found["daemon"]["remedy"]) == ("warn", "taud --detach")
    assert all("thrown away" in found[name]["found"] for name in CANARY)
    assert not (home.home / "tau.db").exists()


def test_in_a_daemon_the_canary_leaves_nothing_behind(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    run_id = fresh("run", "it")["run_id"]
    for _ in range(2):
        found = checks(fresh)
        assert {check["status"] for name, check in found.items() if name != "daemon"} == {"pass"}
        assert all("in the daemon" in found[name]["found"] for name in CANARY)
    assert [one["name"] for one in fresh("list")["pipelines"]] == ["it"]
    assert [run["run_id"] for run in fresh("runs")["runs"]] == [run_id]
    assert sum(fresh("status")["runs"].values()) == 1
    assert fresh("show", module.CANARY, exit=3)["code"] == "not_found"
    assert os.listdir(fresh.home / "data") == ["it"]
    assert fresh("errors")["total"] == fresh("errors", "--all")["total"] == 0


def test_the_canary_is_no_incident_and_leaves_nothing_in_a_namespace(fresh: Tau) -> None:
    fresh("namespace", "create", "acme")
    for words in ([], ["--namespace", "acme"]):
        assert fresh.command(*words, "doctor").exit == 0
        assert fresh(*words, "runs")["runs"] == []
        assert fresh(*words, "errors")["total"] == fresh(*words, "errors", "--all")["total"] == 0
    assert fresh("events", "--type", "incident.*", exit=8)["events"] == []


def test_an_empty_database_is_no_database(home: Tau) -> None:
    (home.home / "tau.db").touch()
    done = home.command("doctor")
    (found,) = (check for check in done.json["checks"] if check["name"] == "database")
    assert (done.exit, found["status"], "it is empty" in found["found"]) == (1, "fail", True)


def test_what_an_interrupted_doctor_left_is_not_in_the_way(fresh: Tau) -> None:
    fresh.deploy(module.CANARY_SOURCE, "canary.py")
    fresh("run", module.CANARY, "-p", "deed=succeed")
    checks(fresh)
    assert fresh("list")["pipelines"] == fresh("runs")["runs"] == []


def opened_to_all(home: Path) -> None:
    """Others may enter."""
    home.chmod(0o755)


def spoilt(home: Path) -> None:
    """The database is damaged."""
    db = home / "tau.db"
    content = bytearray(db.read_bytes())
    content[3 * 4096 : 6 * 4096] = b"\xa5" * (3 * 4096)
    db.write_bytes(content)


def no_database(home: Path) -> None:
    """It is something else."""
    (home / "tau.db").write_bytes(b"x" * 9000)


def of_the_future(home: Path) -> None:
    """The newest event has not happened yet."""
    db = sqlite3.connect(home / "tau.db")
    db.execute("UPDATE events SET at = '2999-01-01T00:00:00.000Z'")
    db.commit()
    db.close()


def misconfigured(home: Path) -> None:
    """There is no such setting."""
    (home / "tau.toml").write_text("[retention]\nrun_dayz = 3\n")


def no_socket(home: Path) -> None:
    """Something lies where the socket belongs."""
    (home / "tau.sock").write_text("")


@pytest.mark.parametrize(
    ("harm", "name", "remedy"),
    [
        (opened_to_all, "home", "chmod 700"),
        (spoilt, "database", "taud --restore"),
        (no_database, "database", "taud --restore"),
        (of_the_future, "clock", "set the clock"),
        (misconfigured, "configuration", "did you mean 'run_days'?"),
        (no_socket, "socket", "remove"),
    ],
)
def test_each_disease_is_found_and_has_a_remedy(
    home: Tau, harm: Callable[[Path], None], name: str, remedy: str
) -> None:
    home.start()
    home.deploy_it("def it(ctx): ...\n")
    home("shutdown")
    harm(home.home)
    found = checks(home, exit=1)
    assert found[name]["status"] == "fail"
    assert remedy in found[name]["remedy"]
    assert harm is not misconfigured or "tau.toml: [retention]: unknown key 'run_dayz'" in found[name]["found"]
    if harm is no_socket:
        (home.home / "tau.sock").unlink()


def test_a_warning_of_the_daemon_has_a_remedy(home: Tau) -> None:
    (home.home / "tau.toml").write_text("")
    home.start()
    (home.home / "tau.toml").write_text("nonsense")
    os.kill(home.pid(), signal.SIGHUP)
    eventually(lambda: "not read again" in str(home.call("status")["warnings"]))
    (home.home / "tau.toml").write_text("")  # else doctor stumbles over it by itself
    found = checks(home)["daemon"]
    assert found["status"] == "warn"
    told = {"start taud as a user that may do what its pipelines need, and no more", "do what it says"}
    assert set(found["remedy"].split("; ")) == (told if os.geteuid() == 0 else {"do what it says"})


def test_people_see_marks_and_remedies(home: Tau) -> None:
    home.home.chmod(0o755)
    code, screen = on_terminal(home, "doctor", NO_COLOR="1")
    assert code == 1
    assert f"✗ home             {home.home} has mode 755: others may enter\n    chmod 700 {home.home}" in screen
    assert "✓ sqlite           SQLite" in screen
    assert "! daemon           no daemon" in screen


def test_who_else_is_at_the_store_is_told_where_sqlite_could_lose_a_commit(fresh: Tau) -> None:
    path = fresh.home / "tau.db"
    assert checks(fresh)["sqlite"]["status"] == "pass"
    db = sqlite3.connect(path)
    db.execute("SELECT count(*) FROM runs").fetchone()
    assert module.find_strangers(str(path), ()) != module.find_strangers(str(path), (os.getpid(),))
    (fresh.home / ".tau.db-litestream").mkdir()
    found = checks(fresh)["sqlite"]
    db.close()
    assert found["found"].startswith(f"SQLite {sqlite3.sqlite_version}")
    if module.loses_commits(sqlite3.sqlite_version_info):
        assert (found["status"], "3.51.3" in found["remedy"]) == ("warn", True)
        assert f"process {os.getpid()} (" in found["found"]
        assert f"{path.parent}/.tau.db-litestream" in found["found"]
        assert f"process {fresh.pid} (" not in found["found"]
    else:
        assert found["status"] == "pass"


@pytest.mark.parametrize(
    ("version", "loses"),
    [
        ((3, 37, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False), ((3, 44, 7), False),
        ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False),
        ((3, 52, 0), False), ((4, 0, 0), False),
    ],
)  # fmt: skip
def test_the_sqlites_that_can_lose_a_commit_are_known(version: tuple[int, int, int], loses: bool) -> None:
    assert module.loses_commits(version) is loses


def test_a_daemon_of_another_user_is_well(fresh: Tau, monkeypatch: pytest.MonkeyPatch) -> None:
    with module.Client(home=str(fresh.home)) as client:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
        patient = module.Patient(client)
        for name in ("home", "database", "socket"):
            assert isinstance(module.finding_of(module.CHECKS[name], patient), str)
    fresh("shutdown")
    with module.Client(home=str(fresh.home)) as client:
        patient = module.Patient(client)
        told = module.finding_of(module.CHECKS["home"], patient)
        assert "belongs to uid" in told[1]


def test_a_configuration_that_the_daemon_has_not_read_is_told(home: Tau) -> None:
    home.start()
    assert checks(home)["configuration"]["status"] == "pass"
    (home.home / "tau.toml").write_text('[connections.shop]\nurl = "sqlite:///shop.db"\n')
    found = checks(home)["configuration"]
    assert (found["status"], found["remedy"]) == ("warn", "tau shutdown; taud --detach")
