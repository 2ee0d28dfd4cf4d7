"""What a shell offers when Tab is pressed: the words themselves, and in real shells."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Tau, eventually, python
from hypothesis import given
from hypothesis import strategies as st

import tau as module

TWO = """
from tau import pipeline

@pipeline(description="Paid orders")
def tabbed_one(ctx): ...

@pipeline
def tabbed_two(ctx): ...
"""


def offered(tau: Tau, *words: str, **environ: str) -> list[str]:
    """The words that are offered for the last one."""
    done = tau.command("__complete", *words, **environ)
    assert (done.exit, done.err) == (0, ""), words
    return [line.partition("\t")[0] for line in done.out.splitlines()]


def test_commands_and_groups_are_offered(home: Tau) -> None:
    assert set(offered(home, "")) == {words.partition(" ")[0] for words in module.SHELL_COMMANDS}
    assert offered(home, "re") == ["retry", "resume"]
    assert offered(home, "--json", "--home", "/h", "statu") == ["status"]
    assert offered(home, "help", "statu") == ["status"]
    assert offered(home, "help", "auth") == offered(home, "--json", "help", "auth") == ["authoring"]
    assert "authoring" not in offered(home, "")
    assert set(module.TOPICS) | {"run", "key"} <= {*offered(home, "help", "")}
    assert sorted(offered(home, "env", "")) == ["add", "list", "remove", "show", "use"]
    assert offered(home, "help", "env", "li") == ["list"]
    assert offered(home, "nonsense", "") == offered(home, "env", "nonsense", "") == offered(home, "status", "") == []
    assert offered(home) == offered(home, "")


def test_every_option_is_offered_once(home: Tau) -> None:
    for words, entry in module.SHELL_COMMANDS.items():
        found = offered(home, *words.split(), "-")
        known = {flag for one in entry.arguments.values() if not one.positional for flag in one.flags}
        assert set(found) == {flag for flag in known if flag.startswith("--")} | {*module.COMMON, "--help"}, words
        assert len(found) == len(set(found))
    assert offered(home, "logs", "x", "--level", "info", "--l") == []
    assert offered(home, "run", "x", "-p", "a=1", "--pa") == ["--params"]
    assert offered(home, "runs", "--last", "3", "--l") == []
    assert offered(home, "--e") == ["--env"]


def test_choices_are_offered_wherever_they_stand(home: Tau) -> None:
    assert offered(home, "logs", "--level", "") == ["debug", "info", "warning", "error"]
    assert offered(home, "logs", "--level=w") == ["--level=warning"]
    assert offered(home, "logs", "--level", "=", "w") == ["warning"]  # as bash breaks it
    assert offered(home, "logs", "--level", "=") == ["debug", "info", "warning", "error"]
    assert offered(home, "schedule", "x", "--overlap", "c") == ["cancel_running"]
    assert offered(home, "backfill", "x", "--only", "") == ["missing", "failed", "all"]
    assert offered(home, "runs", "--status", "t") == ["timed_out"]
    assert offered(home, "completion", "") == ["bash", "zsh", "fish"]
    assert offered(home, "logs", "x", "--tail", "") == offered(home, "run", "x", "--key", "") == []


def test_choices_are_what_the_daemon_takes(tau: Tau) -> None:
    tau.deploy(TWO)
    commands: dict[str, list[list[str]]] = {
        "status": [["runs"]],
        "trigger": [["runs"]],
        "level": [["logs", "tabbed_one"]],
        "misfire": [["schedule", "tabbed_one", "0 6 * * *"]],
        "overlap": [["schedule", "tabbed_one", "0 6 * * *"]],
        "only": [["backfill", "tabbed_one", "--from", "2026-01-01", "--to", "2026-01-02", "--dry-run"]],
    }
    tau("run", "tabbed_one")
    tau("schedule", "tabbed_one", "0 6 * * *")
    for name in {*module.CHOICES} - {"shell", "scope", "topic"}:
        for words in commands[name]:
            for choice in module.CHOICES[name]:
                assert tau.command(*words, f"--{name}", choice).exit == 0, (words, choice)
            assert tau(*words, f"--{name}", "bogus", exit=2)["code"] == "bad_request"
    tau("schedule", "tabbed_one", "--clear")


def test_paths_are_left_to_the_shell(home: Tau) -> None:
    for words in (["deploy", ""], ["check", "x"], ["try", ""], ["deploy", "x.py", "--include", ""], ["--home", ""]):
        assert offered(home, *words) == [":files"], words
    assert offered(home, "deploy", "x.py", "--include", "a", "b") == [":files"]
    assert offered(home, "deploy", "x.py", "--include=") == [":files"]
    assert offered(home, "deploy", "x.py", "--include", "a", "--en") == ["--entry", "--env"]
    assert offered(home, "deploy", "x.py", "--name", "") == offered(home, "deploy", "x.py", "") == []


def test_pipelines_runs_and_environments_are_asked_for(tau: Tau) -> None:
    tau.deploy(TWO)
    mine, other = tau("run", "tabbed_one")["run_id"], tau("run", "tabbed_two")["run_id"]
    for command in ("run", "show", "code", "runs", "inspect", "logs", "why", "schedule", "pause", "undeploy"):
        assert offered(tau, command, "tabbed") == ["tabbed_one", "tabbed_two"], command
    assert offered(tau, "run", "--detach", "--key", "k", "tabbed_o") == ["tabbed_one"]
    assert "Paid orders" in tau.command("__complete", "run", "tabbed_o").out
    assert mine in offered(tau, "logs", "tabbed_one", "--run", "")
    assert other not in offered(tau, "logs", "tabbed_one", "--run", "")
    for command in ("retry", "cancel", "wait"):
        assert {mine, other} <= set(offered(tau, command, ""))
    assert mine in offered(tau, "wait", other, mine[:5])
    assert offered(tau, "retry", other, "") == []
    tau("env", "add", "here", f"unix://{tau.socket}")
    try:
        assert (
            offered(tau, "--env", "")
            == offered(tau, "list", "--env", "h")
            == offered(tau, "env", "use", "")
            == ["here"]
        )
        assert offered(tau, "run", "--env=") == ["--env=here"]
        assert offered(tau, "--env", "here", "run", "tabbed", TAU_HOME="/nowhere") == ["tabbed_one", "tabbed_two"]
        assert offered(tau, "env", "add", "") == []
    finally:
        tau("env", "remove", "here")


def test_what_is_wrong_is_not_told_and_nothing_is_written(home: Tau) -> None:
    for environ in ({}, {"TAU_HOST": "nonsense"}, {"TAU_ENV": "missing"}, {"TAU_HOST": "tcp://127.0.0.1:1"}):
        assert offered(home, "run", "", **environ) == []
        assert offered(home, "inspect", "--run", "", **environ) == []
    (home.work / ".config/tau").mkdir(parents=True)
    (home.work / ".config/tau/environments.toml").write_text("[a")
    assert offered(home, "--env", "") == []
    assert list(home.home.iterdir()) == []
    assert [path.name for path in home.work.rglob("*")] == [".config", "tau", "environments.toml"]


def test_a_daemon_cannot_put_commands_into_the_line(home: Tau) -> None:
    names = ["fine", "x;touch HOME", "$(touch HOME)", "a\x1b]0;T\x07", "two words", "line\nbreak", 5]
    rows = [{"name": name, "description": "\x1b]0;T\x07"} for name in names]
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"pipelines": rows}}
    daemon = socket.socket(socket.AF_UNIX)
    daemon.bind(str(home.socket))
    daemon.listen()

    def serve() -> None:
        peer, _ = daemon.accept()
        peer.recv(4096)
        peer.sendall(json.dumps(answer).encode() + b"\n")
        peer.close()

    with daemon:
        thread = threading.Thread(target=serve)
        thread.start()
        done = home.command("__complete", "run", "")
        thread.join()
    home.socket.unlink()
    assert done.out == "fine\t\\x1b]0;T\\x07\n"


def test_a_daemon_that_does_not_answer_is_not_waited_for(home: Tau) -> None:
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(home.socket))
    silent.listen()
    try:
        done = home.command("__complete", "run", "")  # or the command would time out
        assert (done.exit, done.out, done.err) == (-signal.SIGALRM, "", "")
    finally:
        silent.close()
        home.socket.unlink()


def test_the_script_is_printed_for_each_shell(home: Tau) -> None:
    for shell in module.SHELLS:
        assert "__complete" in home.command("completion", shell).out
    assert home("completion", "tcsh", exit=2)["hint"].endswith("one of bash, zsh, fish")


@pytest.fixture
def shell(tau: Tau) -> Iterator[Tau]:
    """A daemon with two pipelines, and `tau` as a program on the path of a shell."""
    tau.deploy(TWO)
    folder = tau.work / "bin"
    folder.mkdir()
    quoted = " ".join(f"'{word}'" for word in python("main"))
    (folder / "tau").write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    (folder / "tau").chmod(0o755)
    for name in module.SHELLS:
        (tau.work / f"script.{name}").write_text(tau.command("completion", name).out)
    (tau.work / "orders.py").touch()
    (tau.work / "a folder").mkdir()
    yield tau
    for name in ("bin", "a folder"):
        shutil.rmtree(tau.work / name)
    for path in [*tau.work.glob("script.*"), tau.work / "orders.py"]:
        path.unlink()


def environ_of(tau: Tau) -> dict[str, str]:
    """The environment of a shell that finds `tau`."""
    return tau.environ | {"PATH": f"{tau.work / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}


def said_by(tau: Tau, program: str, *words: str) -> list[str]:
    """The lines that a shell prints."""
    done = subprocess.run(
        [program, *words], env=environ_of(tau), cwd=tau.work, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


BASH = """
source script.bash; complete -p tau >/dev/null || exit 1
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_tau tau 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
IN_BASH = {
    "tau statu": ["status"],
    "tau run tabbed": ["tabbed_one", "tabbed_two"],
    "tau logs --level = w": ["warning"],
    "tau env li": ["list"],
    "tau deploy o": ["orders.py"],
    "tau deploy a": ["a folder"],
    "tau deploy x --include =": None,
    'tau schedule "0 6 * * *" --ov': ["--overlap"],
    "tau run nothing-like-it": [""],
}


@pytest.mark.parametrize("line", IN_BASH)
def test_bash_completes(shell: Tau, line: str) -> None:
    found = said_by(shell, "bash", "--norc", "-c", BASH.format(words=line))
    expected = IN_BASH[line]
    assert found == expected if expected is not None else "orders.py" in found


def on_tab(tau: Tau, command: list[str], setup: str, typed: str, expected: str) -> None:
    """Types into an interactive shell, presses Tab and waits until it has completed the word."""
    child, screen = pty.fork()
    if child == 0:
        os.chdir(tau.work)
        os.execvpe(command[0], command, environ_of(tau) | {"PS1": "> ", "TERM": "xterm"})
    seen = ""

    def shows(pattern: str) -> bool:
        nonlocal seen
        while select.select([screen], [], [], 0.05)[0]:
            try:
                seen += os.read(screen, 65536).decode(errors="replace")
            except OSError:
                break
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
        return re.search(pattern, plain) is not None

    try:
        os.write(screen, f"{setup}; echo rea''dy\n".encode())
        eventually(lambda: shows(r"ready\r"))
        eventually(lambda: shows(r"ready\r[^>]*> "))
        seen = ""
        os.write(screen, f"{typed}\t".encode())
        eventually(lambda: shows(re.escape(expected)))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(screen)


def test_bash_completes_when_tab_is_pressed(shell: Tau) -> None:
    bash = ["bash", "--norc", "--noprofile", "-i"]
    on_tab(shell, bash, "source script.bash", "tau run tabbed_o", "tau run tabbed_one ")
    on_tab(shell, bash, "source script.bash", "tau deploy a", "tau deploy a\\ folder/")
    on_tab(shell, bash, "source script.bash", "tau logs --level=w", "tau logs --level=warning ")


def installed(program: str) -> str:
    """The path of a shell; skips where it is not installed."""
    if (path := shutil.which(program)) is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("tau run tabbed_o", "tau run tabbed_one "),
        ("tau env li", "tau env list "),
        ("tau logs --level=w", "tau logs --level=warning "),
        ("tau deploy ord", "tau deploy orders.py "),
        ("tau statu", "tau status "),
    ],
)
def test_zsh_completes_when_tab_is_pressed(shell: Tau, typed: str, expected: str) -> None:
    zsh = [installed("zsh"), "-f", "-i"]
    setup = "autoload -Uz compinit && compinit -u -D; source ./script.zsh; unsetopt prompt_cr prompt_sp"
    on_tab(shell, zsh, setup, typed, expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tau run tabbed", ["tabbed_one", "tabbed_two"]),
        ("tau env li", ["list"]),
        ("tau env ", ["add", "list", "remove", "show", "use"]),
        ("tau logs --level=w", ["--level=warning"]),
        ("tau deploy ord", ["orders.py"]),
        ("tau statu", ["status"]),
    ],
)
def test_fish_completes(shell: Tau, line: str, expected: list[str]) -> None:
    fish = installed("fish")
    found = said_by(shell, fish, "--no-config", "-c", f"source script.fish; complete -C '{line}'")
    assert sorted(one.partition("\t")[0] for one in found) == expected


WORDS = [
    "",
    "-",
    "--",
    "=",
    "--=x",
    "--env",
    "--run",
    "-p",
    "run",
    "logs",
    "env",
    "add",
    "help",
    "x",
    "--include",
    "deploy",
]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
def test_no_line_is_too_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    for name in ("TAU_HOME", "HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    try:
        offers = module.offers_for(words)
    except module.TauError:
        return
    assert all(word == ":files" or word.startswith("" if words[-1] == "=" else words[-1]) for word, _ in offers)
