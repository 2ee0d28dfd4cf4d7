"""How long one question may take: whoever asks much, slowly, or for what is never read, costs the others nothing."""

from __future__ import annotations

import ast
import asyncio
import difflib
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ENVIRON, Tau, eventually, make_home, python, served
from test_keys import REQUESTS, fill
from test_shape import place, tree

import tau as module

PIPELINES = """
    from tau import pipeline
    @pipeline(schedule="0 6 * * *")
    def it(ctx):
        for number in range(2000):
            ctx.log(f"{number:04000}")
"""
#: An operation that never ends, one that tells who has no turn left, and bounds as the request says.
SPIES = """
@tau.sifts
@tau.reads
async def forever(call, actor: "str" = ""):
    call.actor = actor or call.actor
    return await call.beside(endless)

def endless(call):
    call.ask.rows("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

@tau.sifts
@tau.reads
async def taken(call):
    names = [name for name, turns in call.daemon.turns.each.items() if turns.locked()]
    return {"names": names, "busy": sum(len(peer.busy) for peer in call.daemon.connections) - 1}

@tau.sifts
@tau.reads
async def bound(call, operation: "str", bounds: "Json"):
    before = dict(tau.OPERATIONS[operation].bounds)
    tau.OPERATIONS[operation].bounds |= bounds
    return before

@tau.sifts
@tau.reads
async def answered(call, operation: "str"):
    tally = call.daemon.store.metrics.tallies["tau_request_duration_seconds"].get(f'method="{operation}"')
    return {"count": sum(tally.counts) if tally else 0}
"""


@pytest.fixture(scope="module")
def spied() -> Iterator[Tau]:
    """A daemon with those operations, and a pipeline that has run."""
    made = make_home()
    with served(made, code=SPIES):
        made.deploy(PIPELINES)
        made("run", "it")
        yield made
        made.stop()
    made.home.parent.rmdir()


def params_of(spied: Tau, method: str) -> Any:
    """Params for an operation that it would take."""
    run = spied.call("runs", name="it")["runs"][0]["run_id"]
    return fill(REQUESTS[method], name="it", run=run)


QUESTIONS = [name for name, entry in module.OPERATIONS.items() if entry.is_question]
#: Operations that ask beside the loop when they have done their own work.
ASKING = ("wait", "logs", "schedule", "backfill", "check", "diff")


def test_each_operation_declares_what_it_may_take(spied: Tau) -> None:
    entries = {row["name"]: row for row in spied.call("schema")["operations"]}
    for method in module.OPERATIONS:
        assert entries[method]["bounds"].keys() == {"seconds", "rows", "bytes"}, method
        asks = entries[method]["effect"] == "reads"
        assert not asks or method in (*QUESTIONS, *ASKING, "status", "peek", "events", "open", "namespace_audit"), (
            method
        )


@pytest.mark.parametrize("bounds", [{"seconds": -1.0}, {"bytes": 1}])
@pytest.mark.parametrize("method", [*QUESTIONS, "wait", "logs"])
def test_what_takes_too_long_or_is_too_large_is_refused_with_a_way_to_ask_for_less(
    spied: Tau, method: str, bounds: dict[str, Any]
) -> None:
    params, line = params_of(spied, method), {"id": 1, "method": method}
    before = spied.call("bound", operation=method, bounds=bounds)
    with spied.connect() as wire:
        answer = wire.ask({**line, "params": params})
        spied.call("bound", operation=method, bounds=before)
        assert answer["error"]["data"]["code"] == "too_much", answer
        assert answer["error"]["data"]["hint"]
        assert "result" in wire.ask({**line, "params": params})


@pytest.mark.parametrize("method", ["list", "runs", "errors", "logs", "inspect"])
def test_no_more_rows_are_read_than_may_be(spied: Tau, method: str) -> None:
    params = params_of(spied, method)
    before = spied.call("bound", operation=method, bounds={"rows": 0})
    with spied.connect() as wire:
        answer = wire.ask({"id": 1, "method": method, "params": params})
    spied.call("bound", operation=method, bounds=before)
    assert method == "errors" or "0 rows" in answer["error"]["message"], answer  # nothing has failed


def test_whoever_leaves_is_not_worked_for_any_more(spied: Tau) -> None:
    spied.call("bound", operation="forever", bounds={"seconds": 600.0})
    crowd = [spied.connect() for _ in range(20)]
    for wire in crowd:
        wire.send({"id": 1, "method": "forever", "params": {"actor": "greedy"}})
    eventually(lambda: spied.call("taken") == {"names": ["greedy"], "busy": 20})
    assert spied.call("list")  # a turn is left for others
    for wire in crowd:
        wire.__exit__()
    eventually(lambda: spied.call("taken") == {"names": [], "busy": 0})
    assert spied.call("list")


def test_a_query_that_takes_too_long_is_interrupted(spied: Tau) -> None:
    spied.call("bound", operation="forever", bounds={"seconds": 0.05})
    with spied.connect() as wire:
        assert wire.ask({"id": 1, "method": "forever"})["error"]["data"]["code"] == "too_much"


def test_answers_that_nobody_reads_are_not_made(spied: Tau) -> None:
    """Each of them has eight megabytes: a peer gets those that were begun before the first was there, and no more."""
    before = spied.call("answered", operation="logs")["count"]
    crowd = [spied.connect() for _ in range(3)]
    for wire in crowd:
        wire.send(b'{"id":1,"method":"logs","params":{"name":"it","tail":2000}}\n' * 50)
    eventually(lambda: spied.call("answered", operation="logs")["count"] >= before + 3)
    eventually(lambda: not spied.call("taken")["names"])
    assert spied.call("answered", operation="logs")["count"] <= before + 6
    assert [len(crowd[0].receive()["result"]["lines"]) for _ in range(4)] == [2000] * 4  # who reads gets more
    for wire in crowd:
        wire.__exit__()


def test_a_run_that_is_named_often_is_looked_at_once(spied: Tau) -> None:
    run_id = spied.call("runs", name="it")["runs"][0]["run_id"]
    answer = spied.call("wait", run_id=[run_id] * 1000)
    assert [run["run_id"] for run in answer["runs"]] == [run_id]


def test_few_files_are_loaded_at_once(spied: Tau) -> None:
    at_once = spied.work / "loads"
    mark = f"open({str(at_once)!r}, 'a').write"
    text = f"import time\n{mark}('+')\ntime.sleep(0.05)\nfrom tau import pipeline\n@pipeline\ndef one(ctx): ...\n{mark}('-')\n"
    request = {"id": 1, "method": "check", "params": {"files": [{"path": "one.py", "text": text}]}}
    crowd = [spied.connect() for _ in range(12)]
    for wire in crowd:
        wire.send(request)
    assert all(wire.receive()["result"]["ok"] for wire in crowd)
    for wire in crowd:
        wire.__exit__()
    now = most = 0
    for letter in at_once.read_text():
        now += 1 if letter == "+" else -1
        most = max(most, now)
    assert 0 < most <= (os.cpu_count() or 1) + 1


def test_what_a_loaded_file_leaves_is_removed_beside_the_loop(home: Tau) -> None:
    code = """
import os, threading
remove_tree = tau.remove_tree
def remove(path):
    if os.path.isdir(path) and threading.current_thread() is threading.main_thread():
        open("on the loop", "a").write(path)
    remove_tree(path)
tau.remove_tree = remove
"""
    with served(home, code=code):
        home.deploy_it("import os\nfor n in range(9):\n    os.mkdir(str(n))\ndef it(ctx):\n    return 1\n")
        eventually(lambda: [name for name in os.listdir(home.home / "versions") if name.startswith(".")] == [])
    assert not (home.work / "on the loop").exists()


# Counting.


def test_the_document_of_many_steps_reads_few_of_them() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    module.upgrade(db, 0)
    db.execute("PRAGMA foreign_keys = OFF")
    columns = "run_id, attempt, step, parent, name, path, status, started_at, n"
    rows = ((n, None if n % 5_000 == 1 else n - (n - 1) % 5_000, n) for n in range(1, 20_001))
    db.executemany(f"INSERT INTO steps ({columns}) VALUES ('r', 1, ?, ?, 's', 's', 'success', '', ?)", rows)
    asked = module.BoundedQuestions(db, module.Budget({"seconds": 60.0, "rows": 2_100, "bytes": 1 << 20}))
    some = [row["step"] for row in asked.rows(module.SOME_STEPS, run_id="r", attempt=1, most=1_000)]
    assert some == [*range(1, 1_001), 15_001, *range(19_001, 20_001)]
    with pytest.raises(module.TooMuch):
        asked.rows(module.SOME_STEPS, run_id="r", attempt=1, most=-1)
    db.close()


def test_a_hint_compares_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    ratio = difflib.SequenceMatcher.ratio
    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", lambda self: compared.append(1) or ratio(self))
    names = [f"orders_{number:05}" for number in range(8_000)]
    assert "orders_00123" in module.did_you_mean("ordres_00123", names)
    assert len(compared) <= 40  # twice each


def test_many_who_wait_for_a_run_cost_a_change_of_it_one_query() -> None:
    class Asked:
        """A store that counts the questions for one run's status."""

        count, status = 0, "running"

        @property
        def ask(self) -> Asked:
            return self

        def status_of(self, run_id: str) -> str:
            self.count += 1
            return self.status

        def value(self, question: str, run_id: str) -> str:
            return self.status_of(run_id)

    async def play() -> None:
        store: Any = Asked()
        feed = module.Feed(store)
        waiting = [asyncio.ensure_future(feed.finished("r")) for _ in range(500)]
        await asyncio.sleep(0)
        store.count = 0
        for _ in range(10):
            feed.changed("r")
            await asyncio.sleep(0)
        assert store.count == 10
        store.status = "success"
        feed.changed("r")
        await asyncio.gather(*waiting)

    asyncio.run(play())


def test_those_who_follow_a_run_share_its_pages() -> None:
    class Asked:
        """Counts the pages that are read: three events, one a page."""

        count = 0

        def story(self, run_id: str, after: int) -> list[Any]:
            self.count += 1
            return [{"seq": after + 1}] if after < 3 else []

    asked: Any = Asked()
    store: Any = None
    feed = module.Feed(store)
    for _ in range(100):
        assert [feed.page(asked, "r", after) for after in range(3)] == [[{"seq": 1}], [{"seq": 2}], [{"seq": 3}]]
    assert asked.count == 3
    assert [feed.page(asked, "r", 3), feed.page(asked, "r", 3)] == [[], []]  # what may still come is asked for
    assert asked.count == 5
    for number in range(100):
        feed.page(asked, str(number), 0)
    assert len(feed.pages) == module.PAGES_KEPT


# Regular expressions.

#: Function that reads what outsiders send → its worst text, a megabyte of it.
WORST: dict[str, str] = {
    "read_header": "tau.read_header('# /// script\\n' + '# /// a\\n' * 130_000 + 'x', 'x.py')",
    "admits": "tau.admits('>=' + ' ' * N + '1' * N + '.1' * N, (3, 11, 0))",
    "Head": "tau.Head(b'GET / HTTP/1.1\\r\\na:' + b' ' * N + b'\\0')",
    "parse_key": "tau.parse_key('a' * N + 'é', 'it')",
    "parse_size": "tau.parse_size('1' * N + 'x')",
    "parse_duration": "tau.parse_duration('1' * N + 'x', 'it')",
    "local_time": "tau.local_time('2026-01-01T00:00:0' * N)",
    "parse_time": "tau.parse_time('2026-01-01T' + '0' * N, tau.Zone('UTC'))",
    "error_fingerprint": "tau.error_fingerprint({'type': 'E', 'message': 'a' * N, 'step': '1' * N, 'frames': []})",
    "place_name": "tau.place_name('postgresql://' + ':1' * N, '/')",
    "check_name": "tau.check_name('a' * N + '!')",
    "find_entries": "tau.find_entries({'a.py': b'@' + b'a.' * N, 'b.py': b' ' * N}, ['a.py', 'b.py'], None)",
    "secrets_asked": "tau.secrets_asked({'a.py': b'.secret(' + b' ' * N + b'name=' + b' ' * N + b'#' + b'\\n ' * N})",
    "zone_hint": "tau.zone_hint('A' * N + '!')",
    "split_cron": "tau.split_cron('* ' * N)",
    "retry": "tau.re.fullmatch('[0-9]{1,9}', '1' * N)",
    "fault_stacks": "tau.fault_stacks([b'Current thread', b'File \"/versions/0/' * (N // 18)])",
    "Facts": "tau.Facts({'a.py': b'x = \"' + b'a.' * (N // 3) + b'\"'})",
    "decode": "tau.decode(b'[' * N)",
    "to_micros": "tau.to_micros('.' + '0' * N + 'x')",
    "has_form": "tau.has_form(tau.VALUES['base64'], 'A' * N + '!')",
    "did_you_mean": "tau.did_you_mean('a' * N, ['a' * N] * 10)",
    "blanks": "tau.re.search(tau.SQLITE_NUMBER_LINE, ' \\n' * N + '1' * N + ' ' * N + 'x')",
}


@pytest.mark.parametrize("name", WORST)
def test_no_text_takes_more_than_linear_time(name: str) -> None:
    """A quadratic one would take a thousand times the CPU time that there is."""
    code = (
        "import resource, tau\nN = 1 << 20\nresource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        f"try:\n    {WORST[name]}\nexcept (tau.TauError, ValueError):\n    pass\nprint('ended')"
    )
    done = subprocess.run([*python("main")[:-1], code], env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.stdout == "ended\n", done.stderr


#: What is no pattern that a function of the daemon has.
OTHERS = ("read_header", "decode", "did_you_mean", "blanks")
#: What has patterns that go through a text once, or see few characters of it.
SHORT = {"spell_field", "word_of_nobody", "cron_hint", "Operation", "Connection", "risk_of", "Dashboard"}
SHORT |= {"Process", "Case"}
#: What reads only what the owner of the daemon has written, or a program that they have chosen.
TRUSTED = {
    "pack",
    "mark_of",  # what the kernel says
    "read_secret",
    "secret_list",
    "secret_path",
    "secrets_below",
    "shapes",
    "spellings",
    "Address",
    "ServiceManager",
    "unit_text",
    "configured_keys",
    "Venvs",
    "packages_in",
    *("Recipient", "Outbox", "exchange", "signature"),  # URLs and keys of [notify]
    *("filled", "pipeline_api", "tree_of"),  # the source of Tau itself
}


def test_each_pattern_of_the_daemon_is_tried() -> None:
    users = {
        node.name
        for node in tree().body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and place(node.lineno)[0] in ("I", "III", "IV", "VI")
        and re.search(r"\bre\.(?!escape)[a-z]+\(", ast.unparse(node))
    }
    assert users - SHORT - TRUSTED == {name for name in WORST if name not in OTHERS}
