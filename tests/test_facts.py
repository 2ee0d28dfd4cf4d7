"""What an error tells beyond its message and place: `error.facts`, by kind of failure."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, make_home, started

import tau as module

# Where a run was when it was stopped.

STOPPED = """
    import asyncio, re, signal, threading, time
    from tau import pipeline

    def spin():
        while True:
            sum(range(1000))

    async def wait():
        await asyncio.sleep(600)

    @pipeline(timeout=1.5)
    async def blocks(ctx):
        asyncio.create_task(wait(), name="waiter")
        with ctx.step("heavy") as step:
            step.rows_in, step.rows_out = 5, 3
            await asyncio.sleep(0)
            spin()

    @pipeline(timeout=1.5)
    async def awaits(ctx):
        with ctx.step("heavy"):
            await wait()

    @pipeline(timeout=1.5)
    def threaded(ctx):
        threading.Thread(target=spin, daemon=True, name="spinner").start()
        with ctx.step("heavy"):
            time.sleep(600)

    @pipeline(timeout=1.5)
    def streams(ctx):
        def batches():
            yield [{"id": 1}, {"id": 2}]
            time.sleep(600)
        ctx.load("heavy.csv", batches())

    @pipeline(timeout=1.5)
    def deaf(ctx):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with ctx.step("heavy"):
            time.sleep(600)
"""


@pytest.fixture(scope="module")
def stopping() -> Iterator[Tau]:
    for tau in started(make_home("[daemon]\nstop_grace_s = 2.5\n")):
        tau.deploy(textwrap.dedent(STOPPED))
        yield tau


def stopped(tau: Tau, name: str) -> tuple[Any, Any, dict[str, list[str]]]:
    """The run, its facts, and its stacks by name of thread or task."""
    run = tau.call("run", name=name, timeout=PATIENCE_S)
    facts = run["error"]["facts"]
    assert (run["status"], facts["limit_s"]) == ("timed_out", 1.5)
    return run, facts, {stack["name"]: stack["frames"] for stack in facts["stacks"]}


def test_a_run_that_blocks_the_event_loop_tells_the_line_and_its_step_the_rows(stopping: Tau) -> None:
    run, facts, stacks = stopped(stopping, "blocks")
    assert facts["blocked"] is True
    assert facts["blocked_at"].endswith((" while True:", " sum(range(1000))"))
    assert next(frame.partition(" ")[2] for frame in stacks["MainThread"]) == "blocks: spin()"
    assert next(frame.partition(" ")[2] for frame in stacks["waiter"]) == "wait: await asyncio.sleep(600)"
    assert 1.5 <= facts["elapsed_s"] < 4.0  # before it would have been killed
    (step,) = run["trace"]["steps"]
    assert (step["rows_in"], step["rows_out"]) == (5, 3)
    assert step["duration_ms"] > 250


def test_a_run_that_awaits_is_not_blocked_and_tells_what_it_waits_for(stopping: Tau) -> None:
    _, facts, stacks = stopped(stopping, "awaits")
    assert (facts["blocked"], "blocked_at" in facts) == (False, False), facts
    (frames,) = stacks.values()
    assert [frame.partition(" ")[2] for frame in frames][:2] == [
        "awaits: await wait()",
        "wait: await asyncio.sleep(600)",
    ]


def test_a_sync_run_has_the_stacks_of_its_threads_and_no_event_loop(stopping: Tau) -> None:
    _, facts, stacks = stopped(stopping, "threaded")
    assert "blocked" not in facts
    assert stacks["MainThread"][-1].endswith(" threaded: time.sleep(600)")
    assert " spin: " in stacks["spinner"][-1]


def test_a_stream_that_is_cut_has_the_rows_so_far(stopping: Tau) -> None:
    run = stopped(stopping, "streams")[0]
    (step,) = run["trace"]["steps"]
    assert (step["status"], step["rows_in"]) == ("cancelled", 2)


def test_a_run_that_had_to_be_killed_says_where_it_was_and_how_long_its_step_took(stopping: Tau) -> None:
    run, _, stacks = stopped(stopping, "deaf")
    (step,) = run["trace"]["steps"]
    assert [frame.partition(":")[0] for frame in stacks["MainThread"]][-1] == run["error"]["file"]
    assert stacks["MainThread"][-1].endswith(" deaf")
    assert (run["resources"]["signal"], step["status"]) == (9, "failed")
    assert 300 < step["duration_ms"] < 10_000


# What each kind of failure needs.

FAILING = """
    import os, sqlite3, urllib.request
    from tau import per_row, pipeline

    class HTTPError(Exception):
        class response:
            status_code, text, headers, url = 429, "slow down", {"Retry-After": "7"}, "http://u:p@shop/x?token=t"

    @per_row
    def cents(row):
        return {"id": row["id"], "cents": int(row["price"]) * 100}

    @per_row
    def sends(row):
        with open("sent", "a") as file:
            file.write(f"{row['id']} ")
        return {"cents": int(row["price"])}

    @per_row
    async def later(row):
        return {"id": row["id"], "cents": int(row["price"])}

    ROWS = [{"id": number, "price": "n/a" if number % 10 == 5 else "7"} for number in range(100)]

    @pipeline
    def memory(ctx):
        with ctx.step("heavy"):
            raise MemoryError

    @pipeline
    def http(ctx, url: str):
        ctx.extract(url, retries=0)

    @pipeline(retries=1)
    def http_again(ctx, url: str):
        ctx.extract(url, retries=0)

    @pipeline
    def urllib_(ctx, url: str):
        urllib.request.urlopen(url)

    @pipeline
    def library(ctx):
        try:
            raise HTTPError("too many")
        except HTTPError as problem:
            raise RuntimeError("no prices") from problem

    @pipeline
    def refused(ctx):
        ctx.extract("http://127.0.0.1:9/", retries=0)

    @pipeline
    def handled(ctx):
        try:
            raise ConnectionError("gone")
        except ConnectionError:
            {}["prices"]

    @pipeline
    def unique(ctx):
        ctx.sql("CREATE TABLE IF NOT EXISTS prices (sku, region, price, PRIMARY KEY (sku, region))", None, "sqlite:///s.db")
        ctx.load("sqlite:///s.db", [{"sku": 1, "region": "eu", "price": n} for n in range(2)], "prices")

    @pipeline
    def upsert(ctx):
        ctx.sql("CREATE TABLE IF NOT EXISTS prices (sku, region, price, PRIMARY KEY (sku, region))", None, "sqlite:///s.db")
        ctx.load("sqlite:///s.db", [{"sku": 1, "price": 2}], "prices", mode="upsert", key="sku")

    @pipeline
    def statement(ctx):
        ctx.sql("INSERT INTO nowhere VALUES (1)", None, "sqlite:///s2.db")

    @pipeline
    def locked(ctx):
        first, second = (sqlite3.connect("s3.db", timeout=0.01, isolation_level=None) for _ in range(2))
        first.execute("BEGIN IMMEDIATE")
        second.execute("BEGIN IMMEDIATE")

    @pipeline
    def row(ctx):
        ctx.transform(ROWS, [cents])

    @pipeline
    def row_handled(ctx):
        seen = []

        @per_row
        def each(row):
            seen.append(row)
            return {"cents": int(row["price"])}

        try:
            ctx.transform(ROWS, [each])
        except ValueError:
            return len(seen)

    @pipeline
    def row_sent(ctx):
        ctx.transform(ROWS, [sends])

    @pipeline
    async def row_later(ctx):
        await ctx.transform(ROWS, [later])

    @pipeline
    def row_of_stream(ctx):
        with open("rows.csv", "w") as file:
            file.write("id,price\\n" + "".join(f"{row['id']},{row['price']}\\n" for row in ROWS[6:]))
        for batch in ctx.transform(ctx.extract("rows.csv", stream=True, batch_rows=5), [cents]):
            pass

    @pipeline
    def csv(ctx):
        with open("rows.csv", "w") as file:
            file.write("id,price\\n" + "".join(f"{row['id']},{row['price']}\\n" for row in ROWS * 3))
        ctx.extract("rows.csv", types={"price": float})

    @pipeline
    def cell(ctx):
        ctx.load("sqlite:///s.db", [{"id": 1}], "cells", mode="replace")
        ctx.load("sqlite:///s.db", [{"id": n if n % 2 else str(n) + "x"} for n in range(1, 6)], "cells")

    @pipeline
    def module(ctx):
        import toml

    @pipeline
    def secret(ctx):
        ctx.secret("SHOP_KEY")

    @pipeline
    def secret_found(ctx):
        ctx.secret("SHOP_KEYS")

    @pipeline
    def check(ctx):
        rows = [1, 2, 3]
        ctx.check("as many as yesterday", len(rows) == 4)

    @pipeline
    def check_later(ctx):
        total, known = {"eu": 5}, ("us", "uk")
        ctx.check(lambda: total["eu"] in known, ("name", 1 < 2))

    @pipeline
    def check_named(ctx):
        ctx.check(("few", max(row["id"] for row in ROWS) < 9))

    @pipeline
    def check_acts(ctx):
        left = iter([1, 2])
        ctx.check("acts", next(left) == 2)

    @pipeline
    def check_iterates(ctx):
        left = iter([1, 2])
        ctx.check("iterates", sum(left) == 4)

    @pipeline
    def check_changed(ctx):
        rows = []
        ctx.check("changed", rows.append(1) is not None)

    @pipeline
    def check_secret(ctx):
        token = "abc"
        ctx.check("secret", token == "abd")
"""
STATUS = {"/503": (503, {"Retry-After": "3"}), "/404": (404, {})}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers = STATUS[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"the shop is closed" + b"." * 1_000)

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[Tau, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for tau in started(make_home()):
        tau.deploy(textwrap.dedent(FAILING))
        tau("secret", "set", "SHOP_KEYS", stdin="hidden-value")
        yield tau, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


BAD = {"position": 6, "failing": 10, "of": 100, "row": "{'id': 5, 'price': 'n/a'}"}
BAD_ROWS = [{"position": number + 1, "row": f"{{'id': {number}, 'price': 'n/a'}}"} for number in (15, 25, 35, 45, 55)]
PRICES = {"table": "prices", "primary": ["sku", "region"], "unique": []}
KEY = "`prices` has the primary key (sku, region); "
RETRY = '@pipeline(retries=3, retry_delay="1m")'
CLOSED = {"body": "the shop is closed" + "." * 282}
#: Pipeline → its params, some of its facts, a part of its hint.
TOLD: dict[str, tuple[str, Any, str]] = {
    "memory": ("", {"step": "heavy"}, "holds one batch in memory"),
    "http": ("/503?token=t", {"status": 503, "retry_after": "3", "retryable": True, "url": "/503"} | CLOSED, RETRY),
    "http_again": ("/503", {"status": 503}, "is the service well?"),
    "urllib_": ("/404", {"status": 404, "retryable": False, "url": "/404"}, "None"),
    "library": (
        "",
        {"status": 429, "retryable": True, "retry_after": "7", "body": "slow down", "url": "http://shop/x"},
        RETRY,
    ),
    "refused": ("", {"retryable": True, "url": "http://127.0.0.1:9/"}, RETRY),
    "handled": ("", None, "None"),
    "unique": ("", {**PRICES, "statement": 'INSERT INTO "prices" ("sku", "region", "price") VALUES (?, ?, ?)'}, KEY),
    "upsert": ("", PRICES, KEY + "upsert needs key=['sku', 'region']"),
    "statement": ("", {"statement": "INSERT INTO nowhere VALUES (1)"}, "check the name"),
    "locked": ("", {"retryable": True}, RETRY),
    "row": ("", {**BAD, "rows": BAD_ROWS}, "None"),
    "row_sent": ("", {"position": 6, "row": BAD["row"], "of": 6}, "None"),
    "row_later": ("", {"position": 6, "row": BAD["row"]}, "None"),
    "row_of_stream": ("", {"position": 10, "row": "{'id': '15', 'price': 'n/a'}", "failing": 1, "of": 10}, "None"),
    "csv": ("", {"column": "price", "position": 7, "cell": "'n/a'", "failing": 30, "of": 301}, "name its type"),
    "cell": (
        "",
        {"column": "id", "position": 2, "cell": "'2x'", "rows": [{"position": 4, "cell": "'4x'"}]},
        'in "cells"',
    ),
    "module": ("", {"stdlib": "tomllib"}, "Python has tomllib in its place"),
    "secret": ("", {"secret": "SHOP_KEY"}, "did you mean 'SHOP_KEYS'? `tau secret set SHOP_KEY`"),
    "check": ("", {"left": "3", "right": "4", "comparison": "3 == 4"}, "3 == 4 does not hold; the values are in"),
    "check_later": ("", {"comparison": "5 in ('us', 'uk')"}, "5 in ('us', 'uk') does not hold"),
    "check_named": ("", {"comparison": "99 < 9"}, "99 < 9 does not hold"),
    "check_acts": ("", None, "the values are in trace.checks"),
    "check_iterates": ("", None, "the values are in trace.checks"),
    "check_changed": ("", None, "the values are in trace.checks"),
    "check_secret": ("", None, "the values are in trace.checks"),
}


@pytest.mark.parametrize("name", TOLD)
def test_an_error_tells_what_its_kind_needs(failing: tuple[Tau, str], name: str) -> None:
    tau, base = failing
    path, expected, hint = TOLD[name]
    error = tau.call("run", name=name, params={"url": base + path} if path else {}, timeout=PATIENCE_S)["error"]
    facts = error["facts"]
    if expected is None:
        assert facts is None
    else:
        assert {key: str(value).removeprefix(base) if path else value for key, value in facts.items()}.items() >= {
            key: str(value) if path else value for key, value in expected.items()
        }.items()
    assert hint in str(error["hint"])
    assert (RETRY in str(error["hint"])) == (hint == RETRY)


def test_both_sides_of_a_comparison_are_among_the_values_of_its_check(failing: tuple[Tau, str]) -> None:
    (check,) = failing[0].call("run", name="check", timeout=PATIENCE_S)["trace"]["checks"]
    assert check["values"] == {"left": "3", "right": "4", "comparison": "3 == 4", "rows": "[1, 2, 3]"}


def test_other_rows_are_not_given_to_what_acts(failing: tuple[Tau, str]) -> None:
    failing[0].call("run", name="row_sent", timeout=PATIENCE_S)
    sent = (failing[0].home / "data" / "row_sent" / "sent").read_text()
    assert sent == "0 1 2 3 4 5 " * (len(sent) // 12)  # the table of kinds runs it too


class Odd:
    """Is neither equal to anything nor unequal, as an array."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError


ODD = Odd()


def test_what_reaches_further_is_told_from_what_reckons() -> None:
    def again(row: Any) -> Any:
        return again(row) if row else float(json.loads("1"))

    def sends(row: Any, send: Any = socket.create_connection) -> Any:
        return send(row)

    assert [module.is_inner(it) for it in (again, sends, print, lambda row: ODD)] == [True, False, False, False]
    assert not module.is_inner(lambda row: eval(row))
    assert not module.is_inner(lambda row: print(open, row))


def test_the_other_rows_are_tried_only_if_the_error_ends_the_run(failing: tuple[Tau, str]) -> None:
    assert failing[0].call("run", name="row_handled", timeout=PATIENCE_S)["result"] == 6


def test_where_a_secret_was_found_is_kept_with_the_attempt(failing: tuple[Tau, str]) -> None:
    tau, _ = failing
    run_id = tau.call("run", name="secret_found", timeout=PATIENCE_S)["run_id"]
    with contextlib.closing(sqlite3.connect(tau.home / "tau.db")) as db:
        (text,) = db.execute("SELECT process FROM attempts WHERE run_id = ?", (run_id,)).fetchone()
    assert json.loads(text)["secrets"] == {"SHOP_KEYS": "home"}


@pytest.mark.parametrize(("kept", "found"), [(["A_KEY"], None), ({"A_KEY": "environment"}, "environment"), ({}, "?")])
def test_an_attempt_of_an_older_daemon_has_names_of_secrets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Any, found: str | None
) -> None:
    monkeypatch.setenv("A_KEY", "hidden-value")
    process = module.Process(str(tmp_path), "stem", "r", 1, {})
    process.room = SimpleNamespace(secrets=(str(tmp_path), os.environ))
    state = {
        "position": dict(module.NOWHERE),
        "process": {"server": {}, "secrets": kept},
        "outcome": None,
        "ended": None,
    }
    process.restore(
        state | {"log_lines": 0, "log_dropped": 0, "stopping": None, "timeout": None, "circumstances": None}
    )
    assert process.state()["process"]["secrets"].get("A_KEY", "?") == found
    assert process.mask.text("hidden-value") == ("hidden-value" if found == "?" else "***")


# Bounds.


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"body": "x" * 3_000, "status": 503}, {"status": 503}),
        ({"rows": ["x" * 500] * 100, "failing": 3}, {"rows": ["x" * 500] * 3, "failing": 3}),
        ({str(number): "x" for number in range(100_000)}, 2_000),
        ({"x" * 5_000: 1}, None),
        ({}, None),
    ],
)
def test_facts_are_bounded_whatever_a_journal_says(facts: Any, kept: Any) -> None:
    made = module.fit("facts", facts, module.Mask(), "raised")
    assert len(json.dumps(made)) < 3_000 if kept == 2_000 else made == kept


def test_a_check_of_all_rows_names_those_that_fail(tau: Tau) -> None:
    rows = "[{'id': n, 'celsius': -70 if n in (17, 20) else n} for n in range(30)]"
    for condition in ("all(row['celsius'] >= -60 for row in rows)", "(row['celsius'] >= -60 for row in rows)"):
        run = tau.run_it(f"def it(ctx):\n    rows = {rows}\n    ctx.check('plausible', {condition})\n", exit=1)
        facts = run["error"]["facts"]
        assert (facts["failing"], facts["of"], [row["position"] for row in facts["rows"]]) == (2, 30, [18, 21])
        assert run["error"]["hint"].startswith("it fails for 2 of 30, first {'id': 17, 'celsius': -70}; ")


def test_a_failure_says_which_rows_it_has_added_before(tau: Tau) -> None:
    code = """
        def it(ctx):
            ctx.load("added.csv", [{"n": 1}, {"n": 2}])
            ctx.load("replaced.csv", [{"n": 1}], mode="replace")
            ctx.extract("missing.csv")
        """
    run = tau.run_it(code, exit=1)
    said = run["error"]["facts"]["rows_added"]
    assert said == ["2 to added.csv", "they stay, and another run adds them again"]
