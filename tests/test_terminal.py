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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, nursery, python

import tau as module


def on_terminal(tau: Tau, *words: Any, columns: int = 0, **environ: str) -> tuple[int, str]:
    """Exit code and screen text of a command whose stdout and stderr are a terminal, of so many columns if it says."""
    ours, theirs = pty.openpty()
    if columns:
        termios.tcsetwinsize(theirs, (24, columns))
    variables = tau.environ | {"TERM": "xterm"} | environ
    child = nursery().start("main", [*map(str, words)], [theirs] * 3, cwd=tau.work, environ=variables)
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
    return child.wait(30), text.decode().replace("\r\n", "\n")


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
    view = module.View(["--json"])
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
    ("code", "evil", "--file", EVIL): 3,
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
    ours = re.sub(r"\x1b\[(0|1|2|31|32|33|36)?m|\r\x1b\[K", "", screen)
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
    subprocess.run(["sh", "-c", command], cwd=folder / "empty", env=environ, check=True, timeout=30)
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
    commands = [*dict.fromkeys(commands_in(answers))]
    assert len(commands) > 10
    for command in commands:
        words = read_by_shell(command, tmp_path)
        assert ["tau", *words] == shlex.split(command)
        done = evil.command(*words, TMPDIR=str(tmp_path))
        assert done.exit in (0, 1), (command, done.err)
    evil("undeploy", "told")
