"""Probation: a version that fails as the one before did not goes, and that one comes back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

from conftest import Tau

HEAD = "from tau import pipeline\n@pipeline\ndef tried(ctx, day: str = 'mon'):\n"
OLD = HEAD + "    raise ValueError('old')\n"
NEW = HEAD + "    if day == 'sun': raise TypeError('new')\n    if day == 'sat': raise ValueError('old')\n"


def live(tau: Tau) -> int:
    return int(tau.call("show", name="tried")["version"])


def ledger(tau: Tau, kind: str) -> list[Any]:
    """The data of the events of a type."""
    with closing(sqlite3.connect(tau.home / "tau.db")) as db:
        rows = db.execute("SELECT data FROM events WHERE pipeline = 'tried' AND type = ? ORDER BY seq", (kind,))
        return [json.loads(data) for (data,) in rows]


def ends(tau: Tau, day: str) -> Any:
    """The end of a run on this day."""
    return tau.call("run", name="tried", params={"day": day}, wait=True)


def begin(tau: Tau, *words: Any) -> str:
    """A version that fails, and one on probation that has mended that; the incident that this one has closed."""
    tau.deploy(OLD, "tried.py")
    ends(tau, "mon")
    tau.deploy(NEW, "tried.py", *words)
    ends(tau, "mon")
    (incident,) = tau.call("errors", name="tried")["incidents"]
    assert (incident["status"], incident["fixed_by"]) == ("closed", live(tau))
    return str(incident["incident"])


def test_a_version_that_fails_anew_goes_and_what_it_had_mended_is_open_again(fresh: Tau) -> None:
    mended = begin(fresh, "--probation", 3)
    run = ends(fresh, "sun")
    assert (run["status"], live(fresh)) == ("failed", 1)
    (back,) = ledger(fresh, "pipeline.rolled_back")
    (incident,) = (row for row in fresh.call("errors", name="tried")["incidents"] if row["incident"] != mended)
    assert {key: back[key] for key in ("version", "previous", "run_id", "incident", "reopened", "type")} == {
        "version": 1,
        "previous": 2,
        "run_id": run["run_id"],
        "incident": incident["incident"],
        "reopened": [mended],
        "type": "TypeError",
    }
    (opened,) = ledger(fresh, "incident.reopened")
    assert (opened["incident"], opened["run_id"], opened["version"]) == (mended, run["run_id"], 2)
    assert {row["status"] for row in fresh.call("errors", name="tried")["incidents"]} == {"open"}


def test_probation_survives_a_restart(home: Tau) -> None:
    home.start()
    begin(home, "--probation", 3)
    home.kill()
    home.start()
    ends(home, "sun")
    assert live(home) == 1


def test_probation_ends_after_so_many_runs(fresh: Tau) -> None:
    begin(fresh, "--probation", 2)
    (row, _) = fresh.call("versions", name="tried")["versions"]
    assert row["probation"] == 1
    ends(fresh, "mon")
    ends(fresh, "sun")
    assert live(fresh) == 2
    assert ledger(fresh, "pipeline.rolled_back") == []


def test_what_failed_before_too_is_no_reason_to_go_back(fresh: Tau) -> None:
    begin(fresh, "--probation", 9)
    ends(fresh, "sat")
    assert live(fresh) == 2


def test_a_deployment_in_between_ends_probation(fresh: Tau) -> None:
    begin(fresh, "--probation", 9)
    fresh.deploy(NEW + "    # by hand\n", "tried.py")
    ends(fresh, "sun")
    assert live(fresh) == 3
    fresh("rollback", "tried", "--to", 2)
    ends(fresh, "sun")
    assert live(fresh) == 2


def test_the_same_deployment_again_leaves_or_renews_probation(fresh: Tau) -> None:
    begin(fresh, "--probation", 2)
    for words, left in (((), 1), (("--probation", 5), 5)):
        assert fresh.deploy(NEW, "tried.py", *words)["changed"] is False
        assert fresh.call("versions", name="tried")["versions"][0]["probation"] == left
    ends(fresh, "sun")
    assert live(fresh) == 1


def test_what_has_stood_the_test_is_not_on_probation_again(fresh: Tau) -> None:
    begin(fresh)
    assert fresh.deploy(NEW, "tried.py", "--probation", "2")["changed"] is False
    ends(fresh, "sun")
    assert live(fresh) == 2


def test_a_run_that_never_began_says_nothing_of_a_version(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n")
    home.start()
    old, new = (text.replace("@pipeline", "@pipeline(queue_timeout=0.05)") for text in (OLD, NEW))
    home.deploy(old, "tried.py")
    ends(home, "mon")
    home.deploy(new, "tried.py", "--probation", 3)
    home.deploy_held()
    held = home("run", "it", "--detach")["run_id"]
    run = ends(home, "mon")
    assert (run["status"], run["started_at"]) == ("timed_out", None)
    assert live(home) == 2
    assert home.call("versions", name="tried")["versions"][0]["probation"] == 3
    home.go.touch()
    home("wait", held)


def test_without_a_version_before_there_is_no_probation(fresh: Tau) -> None:
    error = fresh.deploy(OLD, "tried.py", "--probation", 1, exit=2)
    assert "no version that could come back" in error["message"]
    assert fresh.call("list")["pipelines"] == []


def test_a_version_that_cannot_come_back_is_told(fresh: Tau) -> None:
    begin(fresh, "--probation", 3)
    with closing(sqlite3.connect(fresh.home / "tau.db")) as db:
        db.execute("UPDATE versions SET options = json_set(options, '$.environment', 'gone') WHERE version = 1")
        db.commit()
    ends(fresh, "sun")
    assert live(fresh) == 2
    (failed,) = ledger(fresh, "probation.failed")
    assert "environment of version 1 is gone" in failed["problem"]
