"""The ledger as it is told: in order, each event once, to whom it concerns, whatever happens to the daemon."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, THOROUGH, Tau, eventually, python, run
from test_keys import ask, key_for, net
from test_retention import NOW, TERMS, Past, told
from test_terminal import on_terminal

import tau as module

__all__ = ["net"]

PIPELINES = """
from tau import pipeline

@pipeline
def good(ctx):
    pass

@pipeline(after=["good"])
def bad(ctx):
    raise ValueError("as planned")
"""


@pytest.fixture
def ran(fresh: Tau) -> Tau:
    """A daemon in which `good` has succeeded, and `bad` failed after it."""
    fresh.deploy(PIPELINES)
    fresh.call("run", name="good")
    eventually(lambda: fresh.call("errors")["total"])
    return fresh


def types(answer: Any) -> list[str]:
    return [event["type"] for event in answer["events"]]


def test_the_ledger_is_read_in_pages_and_each_event_is_in_one(ran: Tau) -> None:
    whole = ran("events")
    assert [*whole["events"][0]] == "seq at type pipeline run_id scheduled_for actor reason data".split()
    assert whole["next"] == whole["events"][-1]["seq"]
    seen, page = [], {"next": 0, "more": True}
    while "more" in page:
        page = ran("events", "--since", page["next"], "--limit", 2)
        seen += page["events"]
        assert page.get("hint") == (
            f"`tau events --since {page['next']} --limit 2` tells the next" if "more" in page else None
        )
    assert (seen, page["next"]) == (whole["events"], whole["next"])
    assert ran("events", "--limit", 2) == {"events": seen[-2:], "next": whole["next"]}


def test_nothing_new_is_exit_8_and_says_how_to_wait(ran: Tau) -> None:
    last = ran("events")["next"]
    for words in ((), ("--wait", "0.01s"), ("--pipeline", "good"), ("--fields", "next")):
        answer = ran("events", "--since", last, *words, exit=8)
        assert answer["next"] == last
    answer = ran("events", "--since", last, "--type", "run.*", exit=8)
    assert answer["hint"] == f"`tau events --since {last} --type 'run.*' --wait 60` tells the next"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("run.failed", ["run.finished"]),
        ("run.succeeded", ["run.finished"]),
        ("run.lost", []),
        ("run.finished", ["run.finished", "run.finished"]),
        ("run.f*,incident.*", ["run.finished", "run.finished", "incident.opened"]),
        ("pipeline.deployed, *.opened", ["pipeline.deployed", "pipeline.deployed", "incident.opened"]),
    ],
)
def test_types_of_events_are_chosen_by_patterns(ran: Tau, asked: str, found: list[str]) -> None:
    assert types(ran.call("events", type=asked)) == found
    assert {event["pipeline"] for event in ran.call("events", pipeline="bad")["events"]} == {"bad"}


@pytest.mark.parametrize("asked", ["run.success", "incident", "", "run.failed,", "*" * 1000, ",".join(["*"] * 1000)])
def test_a_type_that_no_event_has_is_refused_with_those_there_are(tau: Tau, asked: str) -> None:
    problem = tau("events", "--type", asked, exit=2)
    assert problem["code"] == "bad_request"
    assert all(name in problem["hint"] for name in ("run.failed", "run.succeeded", "incident.opened"))


def test_every_event_that_is_written_has_a_known_type() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    written = re.findall(r'event\(\s*"([a-z_.]+)"|store\.event,\s*"([a-z_.]+)"|"(tick\.[a-z]+)"', source)
    assert {name for names in written for name in names if "." in name} <= {*module.EVENT_TYPES}
    assert len(written) > 30


def test_whoever_waits_is_woken_by_the_first_new_event_that_is_meant(ran: Tau) -> None:
    with ran.connect() as waiting, ran.connect() as later:
        waiting.send({"id": 1, "method": "events", "params": {"wait": 60, "type": "run.failed"}})
        later.send({"id": 1, "method": "events", "params": {"since": ran("events")["next"], "follow": True}})
        assert waiting.ask({"id": 2, "method": "ping"})["id"] == 2
        run_id = ran("run", "bad", exit=1)["run_id"]
        (event,) = waiting.receive()["result"]["events"]
        assert (event["run_id"], event["data"]["status"]) == (run_id, "failed")
        assert later.receive()["result"]["events"][0]["type"] == "run.queued"


def test_a_key_is_told_what_concerns_its_pipelines_and_its_cursor_goes_on(net: Tau) -> None:
    own, reader = (key_for(net, *words) for words in (("own", "--pipelines", "bad"), ("reader", "--scope", "read")))
    net.deploy(PIPELINES, "chain.py")
    net.call("pause", name="bad")
    net.call("run", name="good")
    eventually(lambda: "chain.skipped" in types(net.call("events", pipeline="bad")))
    before = ask(net, own, "events", {"since": 0})
    assert types(before) == ["pipeline.deployed", "pipeline.paused", "schedule.changed", "chain.skipped"]
    assert before["events"][-1]["data"] == {"reason": "paused", "upstream": {}}
    assert ask(net, reader, "events", {"pipeline": "bad"})["events"][-1]["data"]["upstream"].keys() == {"good"}
    net.call("run", name="good")
    nothing = ask(net, own, "events", {"since": before["next"], "type": "run.failed"})
    assert (nothing["events"], nothing["next"] > before["next"]) == ([], True)
    net.call("pause", all=True)
    net.call("resume", all=True)
    assert types(ask(net, own, "events", {}))[-2:] == ["pipeline.paused", "pipeline.resumed"]
    assert "key.created" in types(net.call("events", since=0, limit=10_000))
    assert not {*types(ask(net, reader, "events", {"since": 0, "limit": 10_000}))} & {*module.SECRET_EVENTS}
    assert ask(net, reader, "events", {"type": "key.*"}) == "bad_request"
    for name in ("good", "bad"):
        net.call("undeploy", name=name)


def test_a_cursor_before_what_is_deleted_is_told_what_is_kept(tmp_path: Path) -> None:
    def fill(past: Past) -> None:
        past.event(400, "store.copied")
        past.run(91)
        past.event(400, "store.copied")
        past.event(1, "store.copied")
        past.run(2)
        past.event(1, "store.copied")

    async def story(store: module.Store, retention: module.Retention, filled: None) -> None:
        def look(since: int) -> tuple[list[int], Any]:
            answer = store.ask.events(since, 100, None, [*module.EVENT_TYPES, "run.success"], None)
            assert answer["next"] == store.ask.last_event()
            return [event["seq"] for event in answer["events"]][:2], answer.get("first")

        assert (look(0), look(5)) == (([1, 2], None), ([6, 7], None))
        await retention.prune(TERMS, NOW, "me")
        assert (look(0), look(4)) == (([1, 6], 6), ([6, 7], 6))
        assert (look(5), look(6)) == (([6, 7], None), ([7, 9], None))
        assert look(1000) == ([], 6)  # a cursor of another ledger

    told(tmp_path, fill, story)


def test_of_events_before_an_upgrade_nobody_knows_whether_they_are_all() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(";".join(module.MIGRATIONS[:3]))
    past = Past(db)
    for _ in range(3):
        past.event(1, "store.copied")
    module.upgrade(db, 3)
    answers = [module.Questions(db).events(since, 10, None, ["store.copied"], None) for since in (2, 3)]
    assert [(len(answer["events"]), answer.get("first")) for answer in answers] == [(1, 4), (0, None)]
    db.close()


def test_a_restore_gives_no_number_a_second_time(ran: Tau) -> None:
    ran("backup", "saved.tau")
    ran.call("run", name="good")
    cursor = ran("events")["next"]
    ran("shutdown")
    eventually(lambda: not ran.remains())
    done = run("taud", "--restore", ran.work / "saved.tau", "--replace", cwd=ran.work, environ=ran.environ)
    assert done.exit == 0, done.err
    ran.start()
    after = ran("events", "--since", cursor)
    assert ("gap" in after, types(after)[0]) == (False, "store.restored")


def test_people_read_events_as_lines(ran: Tau) -> None:
    code, screen = on_terminal(ran, "events", "--type", "run.failed", NO_COLOR="1")
    assert code == 0
    assert re.search(r"run\.finished +bad  \w{14}  taud  status=failed .*as planned", screen)


def test_who_follows_is_told_each_event_once_over_restarts_until_ctrl_c(ran: Tau) -> None:
    seen: list[Any] = []
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
    command = [*python("main"), "events", "--follow", "--type", "run.finished"]
    follower = subprocess.Popen(command, env=ran.environ, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ignored)
    assert follower.stdout is not None
    reading = threading.Thread(target=lambda: seen.extend(map(json.loads, follower.stdout or ())))
    reading.start()
    eventually(lambda: len(seen) == 2)
    for _ in range(2):
        ran.call("run", name="good")
        ran.kill()
        ran.start()
    eventually(lambda: len(seen) == len(ran.call("events", type="run.finished")["events"]) >= 6)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(PATIENCE_S) == 130
    reading.join(PATIENCE_S)
    follower.stdout.close()
    assert seen == ran.call("events", type="run.finished")["events"]


def test_who_waits_from_now_on_asks_with_a_cursor_which_a_restart_does_not_move() -> None:
    asked: list[Any] = []

    class Listener(module.Client):
        def __init__(self) -> None: ...

        def call(self, method: str, params: Any, on_event: Any = None) -> Any:
            asked.append(params)
            return {"events": [], "next": 7}

    module.ask_for_events(Listener(), "events", {"wait": 60.0, "type": "run.*"}, module.View(["--json"], {}))
    assert asked == [{"limit": 1}, {"wait": 60.0, "type": "run.*", "since": 7}]


class Reader(threading.Thread):
    """A client that waits for events with its cursor, connects again when the daemon is gone, and keeps all it got."""

    def __init__(self, tau: Tau, about: dict[str, Any]) -> None:
        super().__init__()
        self.tau, self.about, self.seen, self.next, self.until = tau, about, list[int](), 0, 2**53

    def run(self) -> None:
        while self.next < self.until:
            try:
                with self.tau.connect() as wire:
                    while self.next < self.until:
                        page = wire.call("events", since=self.next, wait=1, limit=7, **self.about)
                        assert "gap" not in page
                        self.next = page["next"]
                        self.seen += [event["seq"] for event in page["events"]]
            except (OSError, TypeError, ValueError):
                time.sleep(0.02)  # the daemon is gone just now


def test_fifty_clients_see_each_of_their_events_once_while_the_daemon_is_killed(fresh: Tau) -> None:
    names = [f"p{number}" for number in range(5)]
    fresh.deploy("from tau import pipeline\n" + "".join(f"@pipeline\ndef {name}(ctx): ...\n" for name in names))
    abouts = [{}, {"type": "run.succeeded"}, *({"pipeline": name} for name in names)]
    readers = [Reader(fresh, abouts[number % len(abouts)]) for number in range(50)]
    for reader in readers:
        reader.start()
    for turn in range(8 if THOROUGH else 2):
        with fresh.connect() as wire:
            for number in range(20):
                wire.send({"id": number, "method": "run", "params": {"name": names[number % 5], "wait": turn % 2 == 1}})
            wire.receive()
            fresh.kill()
        fresh.start()
    eventually(lambda: not {*fresh.call("status")["runs"]} - {*module.MOVES} and not fresh.call("watch")["live"])
    last = fresh("events")["next"]
    for reader in readers:
        reader.until = last
    for reader in readers:
        reader.join(PATIENCE_S)
    db = sqlite3.connect(f"file:{fresh.home}/tau.db?mode=ro", uri=True)
    ledger = [
        (seq, name, kind) for seq, name, kind in db.execute("SELECT seq, pipeline, type FROM events ORDER BY seq")
    ]
    db.close()
    for reader in readers:
        name, kind = reader.about.get("pipeline"), "type" in reader.about and "run.finished"
        wanted = [seq for seq, its, what in ledger if name in (None, its) and kind in (False, what) and seq <= last]
        assert reader.seen == wanted, reader.about
