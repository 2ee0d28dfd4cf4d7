"""What a person sees, through a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import termios
from typing import Any

import pytest
from conftest import Tau, python

import tau as module


def on_terminal(tau: Tau, *words: Any, columns: int = 0, **environ: str) -> tuple[int, str]:
    """Exit code and screen text of a command whose stdout and stderr are a terminal, of so many columns if it says."""
    ours, theirs = pty.openpty()
    if columns:
        termios.tcsetwinsize(theirs, (24, columns))
    child = subprocess.Popen(
        [*python("main"), *map(str, words)],
        env=tau.environ | {"TERM": "xterm"} | environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tau.work,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            piece = b""
        if not piece:
            break
        text += piece
    os.close(ours)
    return child.wait(timeout=30), text.decode().replace("\r\n", "\n")


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
    assert re.search(r"    ✓ inner  [\d.]+ ms\n", plain)
    assert re.search(r"✓ clean  [\d.]+ ms  6,433 in, 6,000 out\n", plain)
    assert re.search(r"it v\d+  success in [\d.]+ ms  \w{14}\n", plain)
    assert 'result  {"rows":6000}' in plain
    assert "reading" in plain
    assert "\x1b[32m" in screen


def test_progress_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = module.View(as_json=True)
    for done in (1, 2):
        view.live({"type": "progress", "step": "load", "done": done, "total": 2, "message": ""})
    view.live({"type": "log", "message": "loaded", "fields": None})
    assert capsys.readouterr().out == "  1 of 2 (50 %)\r\x1b[K  2 of 2 (100 %)\n    loaded\n"


def test_a_failed_run_shows_its_error_and_place(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    with ctx.step('bad'):\n        raise ValueError('no \\x1b[31m colours')")
    code, screen = on_terminal(tau, "run", "it", NO_COLOR="1")
    assert code == 1
    assert "✗ bad" in screen
    assert "error   ValueError: no \\x1b[31m colours" in screen
    assert "pipelines.py:5  raise ValueError" in screen
    assert "next    tau logs it --run" in screen
    assert "\x1b[31m" not in screen


def test_tables_are_aligned_and_honour_no_color(tau: Tau) -> None:
    tau.deploy_it(STEPS)
    tau("run", "it")
    code, screen = on_terminal(tau, "runs", "it", "--last", "1", NO_COLOR="1")
    head, row, *rest = screen.splitlines()
    assert head.split() == [module.HEADINGS.get(column, column) for column in module.FACES["runs"][1].split()]
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
    for words in (["list"], ["runs"], ["errors"], ["key", "list"]):
        lines = on_terminal(home, *words, columns=80, NO_COLOR="1")[1].splitlines()
        assert len(lines) == 2, lines
        assert max(map(len, lines)) <= 80
    assert "ValueError: n" in on_terminal(home, "errors", columns=80)[1]
    assert "What all of" in on_terminal(home, "list", columns=100)[1]
    wide = on_terminal(home, "list", columns=200)[1]
    assert "What all of it is about, at a length that no terminal has" in wide
    assert "daily, money" in wide


def test_a_table_is_as_narrow_as_it_must_be() -> None:
    widths = {"name": 10, "tags": 20, "description": 40}
    for room, expected in (
        (74, {"name": 10, "tags": 20, "description": 40}),
        (60, {"name": 10, "tags": 20, "description": 26}),
        (40, {"name": 10, "tags": 14, "description": 12}),
        (30, {"name": 10, "description": 18}),
        (20, {"name": 10}),
        (5, {"name": 10}),
    ):
        left = dict(widths)
        module.shrink(left, room)
        assert left == expected, room


def test_what_holds_a_pipeline_is_seen_with_its_reason(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    tau("schedule", "it", "--every", "1h")
    tau("pause", "it", "--reason", "the source is down")
    assert "held by paused (the source is down)  tau resume it" in on_terminal(tau, "why", "it")[1]
    screen = on_terminal(tau, "list", NO_COLOR="1")[1]
    (row,) = (line for line in screen.splitlines() if line.startswith("it "))
    assert "paused" in row.split()
    tau("resume", "it")
    tau("schedule", "it", "--clear")


def test_environments_are_listed_with_the_daemon_that_is_spoken_to(home: Tau) -> None:
    assert on_terminal(home, "env", "list", NO_COLOR="1") == (
        0,
        f"no environments\ncommands speak to: unix://{home.socket} (home)\n",
    )
    home("env", "add", "far", "http://127.0.0.1:9")
    screen = on_terminal(home, "--env", "far", "env", "list", NO_COLOR="1")[1]
    assert screen.endswith("commands speak to: http://127.0.0.1:9 (--env)\n")


def test_nested_values_are_words(home: Tau) -> None:
    home.start()
    screen = on_terminal(home, "status")[1]
    assert re.search(r"^processes +role daemon, pid \d+; role fork server, pid \d+$", screen, re.MULTILINE)
    assert re.search(r"^slots +total 10, used 0$", screen, re.MULTILINE)
    assert re.search(r"^executors +-$", screen, re.MULTILINE)
    assert "{" not in screen


def test_json_on_a_terminal_is_indented_for_inspect_and_compact_on_request(tau: Tau) -> None:
    tau.deploy_it(STEPS)
    tau("run", "it")
    assert '\n  "run_id": ' in on_terminal(tau, "inspect", "it")[1]
    for words, environ in ((["list", "--json"], {}), (["list"], {"TAU_OUTPUT": "json"})):
        assert on_terminal(tau, *words, **environ)[1].startswith('{"pipelines":[')


def test_code_is_bare_and_logs_are_lines(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    ctx.log('\\x1b]0;title\\x07 and text', level='warning', rows=3)")
    tau("run", "it")
    assert on_terminal(tau, "code", "it")[1].startswith("from tau import pipeline\n")
    screen = on_terminal(tau, "logs", "it", NO_COLOR="1")[1]
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} warning \\x1b\]0;title\\x07 and text rows=3\n", screen)


def test_a_file_that_does_not_load_is_shown_with_its_line(tau: Tau) -> None:
    code, screen = on_terminal(tau, "deploy", tau.write("def it(ctx)\n    return 1\n", "broken.py"))
    assert code == 2
    told = [
        "error: broken.py does not load, line 1: SyntaxError: expected ':'",
        "       def it(ctx)",
        " hint: mend the file",
    ]
    assert screen.splitlines() == told


def test_who_interrupts_a_run_is_told_that_it_goes_on(tau: Tau) -> None:
    # A signal just before a blocking call is handled after it, so lines keep coming.
    tau.deploy_it("import time\ndef it(ctx):\n    while True:\n        ctx.log('begun')\n        time.sleep(0.1)")
    ours, theirs = pty.openpty()
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
    child = subprocess.Popen(
        [*python("main"), "run", "it"], env=tau.environ, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tau.work
    )
    signal.signal(signal.SIGINT, ignored)
    os.close(theirs)
    screen = b""
    try:
        while b"begun" not in screen:
            screen += os.read(ours, 65536)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130
    finally:
        child.kill()
        child.wait()
    while b"tau cancel" not in screen:
        screen += os.read(ours, 65536)
    os.close(ours)
    run_id = screen.split()[1].decode()
    told = f"\n{run_id} goes on\nnext    tau wait {run_id}\nnext    tau cancel {run_id}\n"
    assert screen.decode().replace("\r\n", "\n").endswith(told)
    assert tau("cancel", run_id)["changed"] is True


def test_an_error_is_two_lines_of_text(tau: Tau) -> None:
    code, screen = on_terminal(tau, "show", "nothing_like_it")
    assert code == 3
    assert screen == "error: no pipeline named 'nothing_like_it'\n hint: `tau list` shows all\n"


@pytest.mark.parametrize("words", [["status"], ["version"], ["deploy", "pipelines.py"], ["run", "it", "--detach"]])
def test_small_answers_are_pairs(tau: Tau, words: list[str]) -> None:
    tau.deploy_it(STEPS)
    code, screen = on_terminal(tau, *words)
    assert code == 0
    assert not screen.startswith("{")
    assert all(re.match(r"\w+ +\S", line) for line in screen.splitlines())


def test_nothing_to_list_is_said(home: Tau) -> None:
    home.start()
    assert on_terminal(home, "list")[1] == "no pipelines\n"


@pytest.mark.parametrize(
    ("millis", "text"), [(0.04, "0.0 ms"), (999.9, "999.9 ms"), (3200, "3.2 s"), (303_000, "5m3s")]
)
def test_durations_read_well(millis: float, text: str) -> None:
    assert module.duration(millis) == text
