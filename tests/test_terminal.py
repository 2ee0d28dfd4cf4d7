"""What a person sees, through a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, nursery

import tau as module


def on_terminal(tau: Tau, *words: Any, columns: int = 0, **environ: str) -> tuple[int, str]:
    """Exit code and screen text of a command whose stdout and stderr are a terminal, of so many columns if it says."""
    with typed(tau, *words, columns=columns, **environ) as (child, read_until):
        screen = read_until(None)
        return child.wait(PATIENCE_S), screen


@contextmanager
def typed(tau: Tau, *words: Any, columns: int = 0, **environ: str) -> Iterator[tuple[Any, Callable[[str | None], str]]]:
    """A command on such a terminal, and a function that reads its screen until it has a pattern, or to its end."""
    ours, theirs = pty.openpty()
    if columns:
        termios.tcsetwinsize(theirs, (24, columns))
    variables = tau.environ | {"TERM": "xterm"} | environ
    child = nursery().start("main", [*map(str, words)], [theirs] * 3, cwd=tau.work, environ=variables)
    os.close(theirs)
    text = b""

    def read_until(pattern: str | None) -> str:
        nonlocal text
        while pattern is None or not re.search(pattern, text.decode(errors="replace")):
            try:
                piece = os.read(ours, 65536)
            except OSError:
                piece = b""
            if not piece:
                assert pattern is None, (pattern, text.decode())
                break
            text += piece
        return text.decode(errors="replace").replace("\r\n", "\n")

    try:
        yield child, read_until
    finally:
        os.close(ours)


STEPS = """
def it(ctx):
    with ctx.step("extract") as step:
        ctx.log("reading")
        step.rows_out = 6433
    with ctx.step("clean") as step:
        step.rows_in, step.rows_out = 6433, 6000
        with ctx.step("inner"):
            pass
    return {"rows": 6000}
"""


def test_a_run_is_shown_live_with_steps_durations_and_rows(tau: Tau) -> None:
    tau.deploy_it(STEPS)
    code, screen = on_terminal(tau, "run", "it")
    plain = re.sub(r"\x1b\[[0-9;]*[mK]|[^\n]*\r", "", screen)
    assert code == 0
    assert re.search(r"✓ extract  [\d.]+ ms  6,433 out\n", plain)
    assert re.search(r"\n  ✓ clean/inner  [\d.]+ ms\n", plain)
    assert re.search(r"✓ clean  [\d.]+ ms  6,433 in, 6,000 out\n", plain)
    assert re.search(r"it v\d+  success in [\d.]+ ms  \w{14}\n", plain)
    assert 'result  {"rows":6000}' in plain
    assert "reading" in plain
    assert "\x1b[32m" in screen


HELD = """
import os, time
def wait():
    while not os.path.exists("GO"):
        time.sleep(0.01)
"""


def held(tau: Tau, body: str) -> str:
    """Deploys an `it` that can `wait()` until the file `go` is there."""
    tau.go.unlink(missing_ok=True)
    tau.deploy_it(HELD.replace("GO", str(tau.go)) + body)
    return str(tau("run", "it", "--detach")["run_id"])


PROGRESS = """
def it(ctx):
    with ctx.step("load"):
        ctx.log("careful", level="warning")
        time.sleep(0.05)
        ctx.progress(3000, 10_000, "rows of a name that is longer than what eighty columns of a terminal can show")
        wait()
        ctx.log("done")
"""
#: What the line that is drawn anew says of a step under way.
DRAWN = r"\r\x1b\[K\x1b\[\?7l(?:\x1b\[2m)?(  \d+s  load  █{6}░{14}  3,000 of 10,000 \(30 %\)  [\d,.]+/s  \w+ left[^\x1b\r]*)"


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("words", ["run it", "wait RUN", "logs RUN --follow", "logs it --follow"])
def test_a_run_under_way_is_shown_with_one_line_that_is_drawn_anew(tau: Tau, words: str, columns: int) -> None:
    run_id = held(tau, PROGRESS)
    line = [run_id if word == "RUN" else word for word in words.split()]
    with typed(tau, *line, columns=columns) as (child, read_until):
        screen = read_until(DRAWN)
        tau.go.touch()
        screen = read_until(None)
        assert child.wait(PATIENCE_S) == 0
    assert "\x1b[33m  [load] careful\x1b[0m\n" in screen
    assert screen.count("\x1b[?7l") == screen.count("\x1b[?7h") > 0  # the terminal cuts the line, it does not wrap it
    plain = re.sub(r"\x1b\[[0-9;]*[mK]|[^\n]*\r", "", screen)
    assert re.search(r"  \[load\] done\n  ✓ load  [\d.]+ m?s\nit v\d+  success in [\d.]+ m?s", plain)
    assert "30 %" not in plain
    tau("wait", run_id)


def test_lines_of_parallel_steps_name_their_step(tau: Tau) -> None:
    tau.deploy_it(
        """
        import asyncio
        async def it(ctx):
            async def part(name):
                with ctx.step(name):
                    for n in range(2):
                        ctx.log(f"line {n}")
                        await asyncio.sleep(0.01)
            await asyncio.gather(part("left"), part("right"))
        """
    )
    screen = on_terminal(tau, "run", "it", NO_COLOR="1")[1]
    assert [screen.count(f"[{name}] line {n}\n") for name in ("left", "right") for n in (0, 1)] == [1] * 4


def test_a_run_that_waits_says_for_what(tau: Tau) -> None:
    tau.go.unlink(missing_ok=True)
    text = f"from tau import pipeline\n{HELD.replace('GO', str(tau.go))}"
    tau.deploy(f"{text}\n@pipeline(max_concurrent=1)\ndef one_at_once(ctx): wait()\n")
    first = tau("run", "one_at_once", "--detach")["run_id"]
    with typed(tau, "run", "one_at_once") as (child, read_until):
        read_until(r"\d+s  queued: held by max_concurrent=1\x1b")
        assert [tau("inspect", run)["held_by"] for run in (first, "one_at_once")] == [None, "max_concurrent=1"]
        assert re.search(r"held_by +max_concurrent=1\n", on_terminal(tau, "inspect", "one_at_once", columns=80)[1])
        tau.go.touch()
        assert "success" in read_until(None)
        assert child.wait(PATIENCE_S) == 0
    assert tau("wait", first)["status"] == "success"
    tau("undeploy", "one_at_once")


#: What the screen of `tau watch` has while a run loads, one waits for its turn, and one has failed.
WATCHED = [
    r"\x1b\[Hat +\d{4}-\d\d-\d\d [\d:]+Z",
    "daemon +version [\\d.]+, pipelines 2, open_incidents 1",
    "runs +running 1, retrying 0, queued 1",
    "live +status +elapsed +pipeline +doing",
    "running +[\\d.]+ m?s +loading +█{6}░{14}  3,000 of 10,000 ",
    "queued +[\\d.]+ m?s +loading +waits for max_concurrent=1\x1b",
    "ended +status +finished +took +pipeline +what",
    "failed +.* m?s +broken +ValueError: no luck",
    "incidents +incident +count +last +pipeline +what",
    "inc:\\w{12} +1 +.* +broken +ValueError:",
    "ticks +tick +pipeline.* +broken\x1b",
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("columns", [80, 100])
def test_what_goes_on_is_watched_on_a_screen_that_needs_no_restoring(home: Tau, columns: int, number: int) -> None:
    text = PROGRESS.replace("def it", "@pipeline(max_concurrent=1)\ndef loading")
    broken = "\n@pipeline(every='1h')\ndef broken(ctx): raise ValueError('no luck')"
    home.start()
    home.deploy(f"from tau import pipeline\n{HELD.replace('GO', str(home.go))}{text}{broken}")
    home("run", "broken", exit=1)
    _, second = (home("run", "loading", "--detach")["run_id"] for _ in range(2))
    with typed(home, "watch", columns=columns, NO_COLOR="1") as (child, read_until):
        read_until(".*".join(WATCHED).replace(".*", r"[^\0]*"))
        home.go.touch()
        screen = read_until(r"runs +running 0, retrying 0, queued 0")
        os.kill(child.pid, number)
        assert child.wait(PATIENCE_S) == (130 if number == signal.SIGINT else -signal.SIGTERM)
        screen = read_until(None)
    assert {*re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]", screen)} == {"\x1b[H", "\x1b[K", "\x1b[J"}
    assert max(len(line) for line in re.sub(r"\x1b\[[HKJ]", "", screen).splitlines()) <= columns
    document = home("watch", "--limit", "1")
    assert [len(document[key]) for key in ("live", "ended", "ticks")] == [0, 1, 1]
    assert document["ended"][0]["run_id"] == second
    assert (document["paused"], document["runs"]) == (None, {"running": 0, "retrying": 0, "queued": 0})


def test_the_reason_of_an_attempt_that_failed_is_shown(tau: Tau) -> None:
    text = "@pipeline(retries=1, retry_delay=0.5)\ndef tried_twice(ctx):\n    raise ValueError('no luck')\n"
    tau.deploy(f"from tau import pipeline\n{text}")
    screen = on_terminal(tau, "run", "tried_twice")[1]
    assert re.search(r"\x1b\[33m  attempt 1 failed: ValueError: no luck; again at \d{4}-\d\d-\d\d [\d:]+Z", screen)
    tau("undeploy", "tried_twice")


def test_a_failed_run_shows_its_error_and_place(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    with ctx.step('bad'):\n        raise ValueError('no \\x1b[31m colours')")
    code, screen = on_terminal(tau, "run", "it", NO_COLOR="1")
    assert code == 1
    assert "✗ bad" in screen
    assert "error  ValueError: no \\x1b[31m colours" in screen
    assert "       pipelines.py:5  raise ValueError" in screen
    assert "tau code it --out it-v" in screen
    assert "\x1b[31m" not in screen


def test_tables_are_aligned_and_honour_no_color(tau: Tau) -> None:
    tau.deploy_it(STEPS)
    tau("run", "it")
    code, screen = on_terminal(tau, "runs", "it", "--last", "1", NO_COLOR="1")
    head, row, *rest = screen.splitlines()
    assert head.split() == ["run_id", "pipeline", "status", "queued", "took", "version", "trigger"]
    assert row.index("success") == head.index("status")
    assert "\x1b" not in screen
    assert not rest or "of" in rest[0]
    assert on_terminal(tau, "errors", "--limit", "1")[0] == code == 0


def test_tables_fit_a_narrow_terminal(home: Tau) -> None:
    home.start()
    about = "description='What all of it is about, at a length that no terminal has room for', tags=['daily', 'money']"
    source = (
        f"from tau import pipeline\n@pipeline({about}, every='1h')\ndef orders(ctx):\n    raise ValueError('n' * 99)\n"
    )
    home.deploy(source)
    home("run", "orders", exit=1)
    home("key", "create", "dashboard", "--pipelines", "orders,customers,shipments,invoices", "--expires", "30d")
    for words in (["list"], ["runs"], ["errors"], ["errors", "--all"], ["key", "list"]):
        lines = on_terminal(home, *words, columns=80, NO_COLOR="1")[1].splitlines()
        assert len(lines) == 2, lines
        assert max(map(len, lines)) <= 80
    assert "ValueError: n" in on_terminal(home, "errors", columns=80)[1]
    wide = on_terminal(home, "list", columns=200)[1]
    assert "What all of it is about, at a length that no terminal has" in wide
    assert "daily, money" in wide


def test_a_table_is_as_narrow_as_it_must_be() -> None:
    widths = {"name": 10, "tags": 20, "description": 40}
    for room, expected in (
        (74, {"name": 10, "tags": 20, "description": 40}),
        (60, {"name": 10, "tags": 20, "description": 26}),
        (40, {"name": 10, "tags": 20}),
        (30, {"name": 10, "tags": 18}),
        (20, {"name": 10}),
        (5, {"name": 10}),
    ):
        left = dict(widths)
        module.shrink(left, room)
        assert left == expected, room


def test_what_holds_a_pipeline_is_seen_with_its_reason(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    tau("schedule", "it", "--every", "1h")
    paused = on_terminal(tau, "pause", "it", "--reason", "the source is down", NO_COLOR="1")[1]
    assert [line.split(maxsplit=1) for line in paused.splitlines()] == [
        ["pipeline", "it"],
        ["paused", "true"],
        ["reason", "the source is down"],
        ["changed", "true"],
    ]
    held, row = on_terminal(tau, "why", "it", NO_COLOR="1")[1].splitlines()[1:3]
    assert held.split() == ["held", "by", "reason", "hint"]
    assert row.split("  ")[-3:] == ["paused", "the source is down", "tau resume it"]
    screen = on_terminal(tau, "list", NO_COLOR="1")[1]
    (row,) = (line for line in screen.splitlines() if line.startswith("it "))
    assert "paused" in row.split()
    tau("resume", "it")
    tau("schedule", "it", "--clear")


def test_who_follows_another_pipeline_says_so(tau: Tau) -> None:
    tau.deploy(
        "from tau import pipeline\n@pipeline\ndef sensors(ctx): ...\n@pipeline(after='sensors')\ndef alarms(ctx): ...\n"
    )
    tau("run", "sensors")
    eventually(lambda: tau("runs", "alarms", "--status", "success")["runs"])
    screen = on_terminal(tau, "why", "alarms", NO_COLOR="1")[1]
    assert "It runs after the next success of: sensors (sensors: last success)." in " ".join(screen.split())
    assert re.search(r"held +by +reason +waiting_for\n +upstream +sensors: last success +sensors\n", screen)
    (row,) = (line for line in on_terminal(tau, "list", NO_COLOR="1")[1].splitlines() if line.startswith("alarms "))
    assert "after sensors" in row
    tau("undeploy", "alarms")


def test_environments_are_listed_with_the_daemon_that_is_spoken_to(home: Tau) -> None:
    assert f"daemon  host unix://{home.socket}, from home\n" in on_terminal(home, "env", "list", NO_COLOR="1")[1]
    home("env", "add", "far", "http://127.0.0.1:9")
    screen = on_terminal(home, "--env", "far", "env", "list", NO_COLOR="1")[1]
    assert re.search(r"^daemon +env far, host http://127.0.0.1:9, from --env$", screen, re.MULTILINE)


def test_nested_values_are_words(home: Tau) -> None:
    home.start()
    screen = on_terminal(home, "status")[1]
    assert re.search(r"^processes +role daemon, pid \d+; role fork server, pid \d+$", screen, re.MULTILINE)
    assert re.search(r"^slots +total 10, used 0$", screen, re.MULTILINE)
    assert re.search(r"^storage +free [\d.]+ [GT]B$", screen, re.MULTILINE)
    assert re.search(r"^uptime +[\d.]+s$", screen, re.MULTILINE)
    assert "executors" not in screen
    assert "{" not in screen


def test_json_on_a_terminal_is_compact_on_request(tau: Tau) -> None:
    tau.deploy_it(STEPS)
    assert '\n  "operations": ' in on_terminal(tau, "schema")[1]
    for words, environ in ((["list", "--json"], {}), (["list"], {"TAU_OUTPUT": "json"})):
        assert on_terminal(tau, *words, **environ)[1].startswith('{"pipelines":[')


def test_code_is_bare_and_logs_are_lines(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    ctx.log('\\x1b]0;title\\x07 and text', level='warning', rows=3)")
    tau("run", "it")
    assert on_terminal(tau, "code", "it")[1].startswith("from tau import pipeline\n")
    screen = on_terminal(tau, "logs", "it", NO_COLOR="1")[1]
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}Z warning \\x1b\]0;title\\x07 and text rows=3\n", screen)


def test_a_file_that_does_not_load_is_shown_with_its_line(tau: Tau) -> None:
    code, screen = on_terminal(tau, "deploy", tau.write("def it(ctx)\n    return 1\n", "broken.py"))
    assert code == 2
    told = [
        "error: broken.py does not load, line 1: SyntaxError: expected ':'",
        "       def it(ctx)",
        " hint: mend the file",
    ]
    assert screen.splitlines() == told


def test_a_mistake_in_another_file_is_shown_where_it_is(tau: Tau) -> None:
    (tau.work / "shop").mkdir()
    tau.write("from tau import pipeline\nimport rules\n@pipeline\ndef erring(ctx): ...\n", "shop/main.py")
    for text, line, code in (
        ("x = 1\n\ndef x(:\n", 3, "def x(:"),
        ("\n" * 8 + "raise KeyError('x')", 9, "raise KeyError('x')"),
    ):
        tau.write(text, "shop/rules.py").write_text(text)
        error = tau("deploy", "shop", exit=2)
        assert error["message"].startswith(f"main.py does not load, rules.py line {line}: ")
        assert (error["file"], error["line"], error["source_line"]) == ("rules.py", line, code)


def test_why_a_run_waits_for_its_next_attempt_is_shown(tau: Tau) -> None:
    tau.deploy(
        "from tau import pipeline\n@pipeline(retries=1, retry_delay='1h')\ndef waits(ctx): raise KeyError('x')\n"
    )
    run_id = tau("run", "waits", "--detach")["run_id"]
    eventually(lambda: tau("inspect", run_id)["status"] == "retrying")
    assert "KeyError: 'x'" in on_terminal(tau, "inspect", run_id)[1]
    tau("cancel", run_id)


def test_lines_that_are_gone_are_told(fresh: Tau) -> None:
    lines = module.LOG_TAIL + 20_000
    fresh.run_it(f"def it(ctx):\n    for i in range({lines}): ctx.log(str(i))")
    assert re.search(r"dropped +[1-9]", on_terminal(fresh, "logs", "it")[1])
    fresh.run_it("def it(ctx): ...")
    assert "no lines: " in on_terminal(fresh, "logs", "it")[1]


def test_rows_without_values_are_shown(tau: Tau) -> None:
    text = "def it(ctx):\n    rows = ctx.transform([{'last': None}], [lambda rows: rows])\n    1 / 0"
    tau.run_it(text, exit=1)
    assert re.search(r"last +other|last\n", on_terminal(tau, "inspect", "it", NO_COLOR="1")[1])
    tau.run_it("def it(ctx):\n    return {'additionalProperties': 1}")
    assert on_terminal(tau, "run", "it")[0] == 0
    tau.run_it("def it(ctx, properties=None): ...", "-p", 'properties={"type": "Point"}')
    assert on_terminal(tau, "inspect", "it")[0] == 0


def test_commands_that_are_told_speak_to_the_same_daemon(home: Tau) -> None:
    home.start()
    home("namespace", "create", "acme")
    away = {"TAU_HOME": str(home.work / "elsewhere")}
    path = home.write(
        "from tau import pipeline\n@pipeline\ndef one(ctx): 1 / 0\n@pipeline\ndef two(ctx): ...\n", "one.py"
    )
    words = ("--home", str(home.home), "--namespace", "acme")
    home(*words, "deploy", path, **away)
    told = home(*words, "run", "one", exit=1, **away)["next"][0]
    assert told.startswith(shlex.join(["tau", *words, "code"]))
    assert len(home(*shlex.split(told)[1:], **away)["written"]) == 1
    more = home(*words, "list", "--limit", "1", **away)["truncated"]["get"]
    assert len(home(*shlex.split(more)[1:], **away)["pipelines"]) == 2
    assert home(*words, "run", "nobody", exit=3, **away)["hint"] == f"`{shlex.join(['tau', *words, 'list'])}` shows all"


def test_risks_are_shown(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef risky(ctx): ctx.check(True)\n", "risky.py")
    path = tau.write("from tau import pipeline\n@pipeline\ndef risky(ctx): ...\n", "risky.py")
    for words in (["deploy", path, "--dry-run"], ["deploy", path], ["diff", "risky", "--versions", "1", "2"]):
        code, screen = on_terminal(tau, *words)
        shown = re.search(r"risks .*what.*\n +check_gone +risky.py +3 +a check", screen)
        assert (code, bool(shown)) == (0, words[-1] != path), screen


def test_who_interrupts_a_run_is_told_that_it_goes_on(tau: Tau) -> None:
    # A signal just before a blocking call is handled after it, so lines keep coming.
    tau.deploy_it("import time\ndef it(ctx):\n    while True:\n        ctx.log('begun')\n        time.sleep(0.1)")
    with typed(tau, "run", "it") as (child, read_until):
        read_until("begun")
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(PATIENCE_S) == 130
        screen = read_until(None)
    run_id = screen.split()[1]
    assert screen.endswith(f"\n{run_id} goes on\nnext  tau wait {run_id}\n      tau cancel {run_id}\n")
    assert tau("cancel", run_id)["changed"] is True


def test_who_interrupts_a_trial_is_told_that_it_was_stopped(home: Tau) -> None:
    text = "import time\nfrom tau import pipeline\n@pipeline\ndef it(ctx):\n    ctx.log('begun')\n    time.sleep(60)\n"
    with typed(home, "try", home.write(text), "--timeout", "50", TMPDIR=str(home.work)) as (child, read_until):
        read_until("begun")
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(PATIENCE_S) == 130
        screen = read_until(None)
    assert screen.endswith(f"\nthe trial was stopped\nnext  tau try {home.work}/pipelines.py --timeout 50\n")
    assert "goes on" not in screen
    assert [*home.work.glob("tau-try-*")] == []


def test_an_error_is_two_lines_of_text(tau: Tau) -> None:
    code, screen = on_terminal(tau, "show", "nothing_like_it")
    assert code == 3
    assert screen == "error: no pipeline named 'nothing_like_it'\n hint: `tau list` shows all\n"


@pytest.mark.parametrize(
    "words", [["status"], ["version"], ["pause", "it"], ["resume", "it"], ["run", "it", "--detach"]]
)
def test_small_answers_are_pairs(tau: Tau, words: list[str]) -> None:
    tau.deploy_it(STEPS)
    code, screen = on_terminal(tau, *words)
    assert code == 0
    assert not screen.startswith("{")
    assert all(re.match(r"\w+ +\S", line) for line in screen.splitlines())


def test_nothing_to_list_is_said(home: Tau) -> None:
    home.start()
    assert on_terminal(home, "list")[1].startswith("no pipelines: `tau init` writes")
    assert on_terminal(home, "errors")[1] == "no incidents: no failed run is kept\n"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        *(("duration_ms", 0.04, "0.0 ms"), ("duration_ms", 999.9, "999.9 ms"), ("took_ms", 3200, "3.2 s")),
        *(
            ("ms", 303_000, "5m3s"),
            ("uptime_s", 2.5, "2.5s"),
            ("every_s", 5400, "1h30m"),
            ("uptime_s", 86_401.5, "1d1s"),
        ),
        *(("free_bytes", 0, "0 B"), ("free_bytes", 999, "999 B"), ("bytes", 21_000_000, "21.0 MB")),
        *(
            ("bytes", 3 * 10**16, "30000.0 TB"),
            ("free_bytes", None, "-"),
            ("sent_at", 5, "5"),
            ("sent_at", "now", "now"),
        ),
        *(("paused", True, "true"), ("seconds_ms", True, "true"), ("pid", 12345, "12345")),
    ],
)
def test_values_read_well(key: str, value: Any, text: str) -> None:
    assert module.spoken(value, key) == text


SHOWN = """
from tau import pipeline

@pipeline(description="Paid orders of a day", tags=["daily"], every="1h")
def shown(ctx, day: str = "today", rows: int = 3):
    with ctx.step("extract") as step:
        step.rows_out = 6433
        with ctx.step("inner"):
            ctx.log("reading")
    ctx.check(rows > 2)
    ctx.metric("rows", 6433)
    row = {"id": 2, "amuont": 7}
    try:
        return row["amount"]
    except KeyError as missing:
        raise ValueError("no amount") from missing
"""
T = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
#: A command → what its screen has, in this order, between other text.
SCREENS = {
    "deploy shown.py": ["changed +false", "pipelines +name +version +changed +next", f"shown +1 +false +{T}"],
    "check shown.py": ["ok +true", f"pipelines +name .*next.*\n +shown +.* {T}"],
    "list": ["name +version +last +last_run +next", rf"shown +1 +failed +{T} +{T}"],
    "runs shown": ["run_id +pipeline +status +queued +took", rf"\w{{14}} +shown +failed +{T} +[\d.]+ ms"],
    "errors": ["incident +status +count +last +pipeline +what", rf"inc:\w{{12}} +open +\d+ +{T} +shown +ValueError"],
    "errors --all": ["run_id +pipeline +finished +where", rf"\w{{14}} +shown +{T} +shown.py:15"],
    "show shown": [
        "name +shown",
        "description +Paid orders of a day",
        "params +name +accepts +default\n +day +string +today\n +rows +integer +3",
        "schedule +source decorator, every 1h,",
        "versions +version +deployed +entry +actor\n +1 ",
        r"last_run +run_id \w{14}, status failed",
    ],
    "versions shown": ["version +live +deployed +entry +actor +runs", f"1 +true +{T} +shown.py .*[1-9]"],
    "deploy shown.py --dry-run --schedule @daily": ["changed +shown schedule: cron - → @daily", "dry_run +true"],
    "schedule shown": ["every +1h", f"next +{T}", f"ticks +local +tick.*\n.* {T} +false"],
    "ticks --every 5m": ["kind +interval", f"ticks +local +tick.*\n.* {T} +false"],
    "why shown": [r"answer +Its last run is ", f"\\({T}\\)"],
    "status": [r"uptime +[\w.]+\n", r"slots +total 10, used 0", r"storage +free [\d.]+ [MGT]B"],
    "inspect shown": [
        r"shown v1  failed in [\d.]+ ms  \w{14}\n",
        '\nparams +{"day":"monday"}',
        f"queued +{T}",
        r"resources +cpu [\d.]+ ms, max_rss [\d.]+ MB",
        r"steps +✓ extract  [\d.]+ ms  6,433 out\n +✓ inner  [\d.]+ ms\n",
        "checks +✓ rows > 2\n",
        "metrics +rows 6433\n",
        "log +reading\n",
        "error +ValueError: no amount\n +shown.py:15  raise ValueError",
        "day = 'monday'\n",
        "row = {'id': 2, 'amuont': 7}\n",
        "because of KeyError: 'amount'\n +shown.py:13  return row",
        r"next +tau code shown --out shown-v1/",
    ],
    "logs shown": [r"\d\d:\d\d:\d\d\.\d{3}Z info    \[extract/inner\] reading\n"],
    "doctor": ["✓ home +/", "✓ canary: run +"],
    "--help": [
        "usage: tau COMMAND",
        "\n  tau cancel      Cancel a run\n",
        "\n  tau key         create, list, revoke\n",
    ],
}


@pytest.fixture(scope="module")
def screens(shared: Tau) -> Iterator[Tau]:
    shared.deploy(SHOWN, "shown.py")
    shared.command("run", "shown", "-p", "day=monday")
    yield shared
    shared("undeploy", "shown")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("words", SCREENS)
def test_a_screen_has_what_it_must_and_fits(screens: Tau, words: str, columns: int) -> None:
    code, screen = on_terminal(screens, *words.split(), columns=columns, NO_COLOR="1")
    assert code == 0
    assert re.search(".*".join(SCREENS[words]), screen, re.DOTALL), screen
    for line in screen.splitlines():
        assert len(line) <= columns or " tau " in line or words == "doctor", line


def test_what_people_see_goes_into_a_pipe_on_request(screens: Tau) -> None:
    done = screens.command("inspect", "shown", "--text")
    assert re.search(".*".join(SCREENS["inspect shown"]), done.out, re.DOTALL)
    assert "\x1b" not in done.out
    events = screens.command("run", "shown", "-p", "day=monday", "--text").out
    assert re.match(r"shown  \w{14}\n  \[extract/inner\] reading\n  ✓ extract/inner", events)
    assert screens.command("code", "shown", "--text").out == SHOWN.lstrip()


def test_times_are_those_of_the_terminal(screens: Tau) -> None:
    queued = {}
    for zone in ("UTC", "Asia/Tokyo"):
        screen = on_terminal(screens, "inspect", "shown", TZ=zone, NO_COLOR="1")[1]
        (queued[zone],) = re.findall(r"queued +(\S+ \S+)\n", screen)
    assert re.fullmatch(T, queued["UTC"])
    there = module.datetime.datetime.fromisoformat(f"{queued['Asia/Tokyo']}+09:00")
    assert there == module.datetime.datetime.fromisoformat(queued["UTC"])


def test_a_pipeline_without_a_schedule_says_so(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    assert tau("schedule", "it")["hint"] == "it has no schedule; `tau schedule it '0 6 * * *'` makes one"
    assert "hint " in on_terminal(tau, "schedule", "it")[1]


#: What names, messages and data may hold: sequences for a terminal, marks of direction and of no width, a shell's signs.
EVIL = "a\x1b]0;T\x07\x1b[2J\x9b2J\u202e\u200b\u2066\x7f\r\n'\"`touch HOME`;touch $HOME;$(touch HOME)&-x"
SOURCE = f"""
from tau import pipeline

class Quiet(Exception): ...

Evil = type({EVIL!a}, (Exception,), {{}})

@pipeline(description={EVIL!a}, tags=[{EVIL!a}])
def evil(ctx, fail: bool = True):
    with ctx.step({EVIL!a}) as step:
        ctx.log({EVIL!a}, **{{{EVIL!a}: {EVIL!a}}})
        ctx.progress(1, 2, {EVIL!a})
        print({EVIL!a})
        if fail:
            raise Evil({EVIL!a})
    return {{{EVIL!a}: {EVIL!a}}}
"""
#: Commands whose answer has such text, with their exit codes; `file` is the path of SOURCE.
EVIL_VIEWS = {
    ("deploy", "file"): 0,
    ("check", "file"): 0,
    ("try", "file"): 1,
    ("run", "evil"): 1,
    ("run", "evil", "-p", "fail=false"): 0,
    ("inspect", "evil"): 0,
    ("logs", "evil"): 0,
    ("logs", "evil", "--follow"): 0,
    ("errors",): 0,
    ("errors", "--limit", "1"): 0,
    ("runs", "evil"): 0,
    ("list",): 0,
    ("show", "evil"): 0,
    ("schedule", "evil"): 0,
    ("code", "evil"): 0,
    ("code", "evil", "--raw"): 0,
    ("why", "evil"): 0,
    ("status",): 0,
    ("show", EVIL): 3,
    ("backfill", "evil", "--from", EVIL): 2,
    ("--env", EVIL, "list"): 3,
    ("--host", EVIL, "list"): 2,
    ("run", "evil", "--params", EVIL): 2,
    ("deploy", EVIL): 2,
    (EVIL,): 2,
    ("run", f"--{EVIL.partition(' ')[0]}"): 2,
}


@pytest.fixture(scope="module")
def evil(shared: Tau) -> Iterator[Tau]:
    """A daemon that has a pipeline in a file with such a name, and texts of its kind wherever there can be any."""
    shared.deploy(SOURCE + f"# {EVIL.replace(chr(13), '').replace(chr(10), '')}", f"{EVIL}.py")
    shared.command("run", "evil")
    shared("pause", "evil", "--reason", EVIL)
    yield shared
    shared("resume", "evil")
    shared("undeploy", "evil")


def words_of(evil: Tau, view: tuple[str, ...]) -> list[str]:
    return [f"{evil.work}/{EVIL}.py" if word == "file" else word for word in view]


@pytest.mark.parametrize("as_json", [False, True], ids=["people", "json"])
@pytest.mark.parametrize("view", EVIL_VIEWS, ids=lambda view: " ".join(view).partition("a\x1b")[0])
def test_no_text_drives_a_terminal(evil: Tau, view: tuple[str, ...], as_json: bool) -> None:
    where = {"TAU_OUTPUT": "json"} if as_json else {}
    code, screen = on_terminal(evil, *words_of(evil, view), TMPDIR=str(evil.work), **where)
    assert code == EVIL_VIEWS[view], screen
    ours = re.sub(r"\x1b\[((0|1|2|31|32|33|36)?m|\?7[lh])|\r\x1b\[K", "", screen)  # ?7: whether lines wrap
    assert [letter for letter in ours if not letter.isprintable() and letter not in "\t\n"] == []
    if as_json and "--raw" not in view:
        assert [json.loads(line) for line in ours.splitlines()]
        assert "\x1b" not in screen


@pytest.mark.parametrize("view", EVIL_VIEWS, ids=lambda view: " ".join(view).partition("a\x1b")[0])
def test_in_a_pipe_text_is_as_it_was(evil: Tau, view: tuple[str, ...]) -> None:
    done = evil.command(*words_of(evil, view), TMPDIR=str(evil.work))
    said = done.out + done.err
    assert done.exit == EVIL_VIEWS[view]
    if "--raw" in view:
        assert said == (evil.work / f"{EVIL}.py").read_text().removesuffix("\n") + "\n"
    else:
        documents = [json.loads(line) for line in said.splitlines()]
        assert ("touch HOME" in said) <= any(EVIL in text for text in texts_in(documents))


def texts_in(value: Any) -> Iterator[str]:
    """All texts of a document, its keys too."""
    if isinstance(value, dict):
        yield from (text for item in value.items() for text in texts_in(list(item)))
    elif isinstance(value, list):
        yield from (text for item in value for text in texts_in(item))
    elif isinstance(value, str):
        yield value


def test_no_text_drives_the_terminal_of_who_reads_the_log(home: Tau) -> None:
    home.start()
    (home.home / "tau.toml").write_text(f"[daemon]\n{json.dumps(EVIL)} = 1\n")
    os.kill(home.pid(), signal.SIGHUP)
    eventually(lambda: "unknown key" in (home.home / "taud.log").read_text())
    log = (home.home / "taud.log").read_bytes().decode()
    assert r"a\x1b]0;T\x07" in log
    assert [letter for letter in log if not letter.isprintable() and letter != "\n"] == []


def commands_in(document: Any) -> Iterator[str]:
    """The commands that an answer tells to run."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        if isinstance(value, dict | list):
            yield from commands_in(value)
        elif isinstance(value, str) and value.startswith("tau ") and (key in ("get", "hint") or isinstance(key, int)):
            yield value


def read_by_shell(command: str, folder: Path) -> list[str]:
    """The words that `tau` gets from a shell that is given the command, in an empty directory."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "bin" / "tau").write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {folder}/words\n")
    (folder / "bin" / "tau").chmod(0o700)
    environ = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder / "empty")}
    subprocess.run(["sh", "-c", command], cwd=folder / "empty", env=environ, check=True, timeout=PATIENCE_S)
    assert os.listdir(folder / "empty") == []
    return (folder / "words").read_bytes().decode().split("\0")[:-1]


@pytest.mark.parametrize("name", [EVIL, "-x y';touch $HOME;`touch HOME`\"&"], ids=["unprintable", "printable"])
def test_a_shell_reads_every_command_that_is_told_as_it_is_meant(evil: Tau, name: str, tmp_path: Path) -> None:
    file = evil.write(SOURCE.replace("def evil", "def told"), f"{name}.py")
    evil("deploy", "--", file.name)
    evil("schedule", "told", "--every", "1h", "--disable")
    answers = [
        evil("run", "told", "-p", f"text={name}", exit=2),
        evil("run", "told", exit=1),
        evil("run", "told", exit=1),
    ]
    answers += [
        evil("runs", "told", "--last", "1"),
        evil("logs", "told", "--tail", "1"),
        evil("errors", "--limit", "1"),
    ]
    answers += [evil("why", "told"), evil("inspect", "told"), evil("try", "--name", "told", "--", file.name, exit=1)]
    answers += [evil("backfill", "told", "--from", "2026-01-01 06:00", "--limit", "1", "--dry-run")]
    answers += [evil("code", "told", f"--out={name}")]
    commands = [*dict.fromkeys(commands_in(answers))]
    assert len(commands) > 7
    for command in commands:
        words = read_by_shell(command, tmp_path)
        assert ["tau", *words] == shlex.split(command)
        done = evil.command(*words, TMPDIR=str(tmp_path))
        assert done.exit in (0, 1), (command, done.err)
    evil("undeploy", "told")
