"""Odd surroundings: signals, a lost terminal, an empty environment, a network disk, clients that stop reading."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, is_running, python, run, running, served

import tau as module

QUICK = "from tau import pipeline\n@pipeline\ndef quick(ctx):\n    return len(ctx.params.get('blob', ''))\n"


def in_terminal(tau: Tau) -> tuple[subprocess.Popen[bytes], int]:
    """A daemon in the foreground of a terminal of its own, and the other end of that terminal."""
    ours, theirs = pty.openpty()

    def control() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    files: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    daemon = subprocess.Popen(python("taud"), env=tau.environ, cwd=tau.work, preexec_fn=control, **files)
    os.close(theirs)
    return daemon, ours


def read_until(terminal: int, word: bytes) -> None:
    """Reads what is shown until a word is among it."""
    shown = b""
    while word not in shown:
        shown += os.read(terminal, 4096)


def test_hangups_broken_pipes_and_a_closed_terminal_end_no_daemon(home: Tau) -> None:
    daemon, terminal = in_terminal(home)
    read_until(terminal, b"socket")
    for number in (signal.SIGHUP, signal.SIGPIPE):
        daemon.send_signal(number)
    home.deploy(QUICK)
    os.close(terminal)  # the kernel sends SIGHUP, and its log has no place any more
    server = home.processes()[1]
    os.kill(server, signal.SIGKILL)  # which it would like to tell
    eventually(lambda: not is_running(server))
    assert home("run", "quick")["status"] == "success"
    assert home.call("status")["pid"] == daemon.pid
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE_S) == 0


def test_ctrl_c_in_its_terminal_ends_the_daemon_and_no_run(home: Tau) -> None:
    daemon, terminal = in_terminal(home)
    read_until(terminal, b"socket")
    home.deploy_it("import time\ndef it(ctx):\n    ctx.log('in')\n    time.sleep(300)")
    live = home("run", "it", "--detach")["run_id"]
    eventually(lambda: home.call("logs", run_id=live)["lines"])
    os.write(terminal, b"\x03")
    assert daemon.wait(PATIENCE_S) in (0, 130)
    os.close(terminal)
    home.start()
    assert home("inspect", live)["status"] == "running"


def test_a_second_signal_ends_a_daemon_that_cannot_stop(home: Tau) -> None:
    home.start()
    home.deploy(QUICK)
    pid = home.pid()
    db = sqlite3.connect(home.home / "tau.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")  # its last word cannot be written
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not reachable(home))
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_running(pid), 3.0)
    db.close()
    assert home.start()["changed"] is True
    assert home("run", "quick")["status"] == "success"


def reachable(tau: Tau) -> bool:
    """Whether anybody listens."""
    try:
        with tau.connect():
            return True
    except OSError:
        return False


def test_an_empty_environment_and_a_directory_that_cannot_be_written_will_do(home: Tau) -> None:
    environ = {"PYTHONPATH": home.environ["PYTHONPATH"], "LANG": "C", "LC_ALL": "C"}
    where: dict[str, Any] = {"env": environ, "cwd": "/proc", "capture_output": True, "timeout": 60}
    started = subprocess.run([*python("taud"), "--home", home.home, "--detach"], **where)
    assert started.returncode == 0, started.stderr
    home.deploy("# élève\n" + QUICK)
    told = subprocess.run(
        [*python("main"), "run", "quick", "-p", "blob=éé"], **where | {"env": environ | {"TAU_HOME": str(home.home)}}
    )
    assert json.loads(told.stdout)["result"] == 2
    subprocess.run([*python("main"), "shutdown"], **where | {"env": environ | {"TAU_HOME": str(home.home)}})
    eventually(lambda: not home.socket.exists())


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_first_files_of_a_daemon_do_not_become_its_outputs(home: Tau, closed: str) -> None:
    command = " ".join(f"'{word}'" for word in python("taud"))
    subprocess.run(["sh", "-c", f"{command} {closed} &"], env=home.environ, timeout=PATIENCE_S, check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    eventually(lambda: reachable(home))
    home.deploy("import os, sys\n" + QUICK.replace("return ", "print('out')\n    os.write(2, b'err\\n')\n    return "))
    run = home("run", "quick")
    assert sorted(line["message"] for line in home("logs", run["run_id"])["lines"]) == ["err", "out"]
    for number in (0, 1, 2):
        assert "/dev/" in os.readlink(f"/proc/{home.pid()}/fd/{number}")


def test_a_home_on_a_network_disk_is_warned_of(home: Tau) -> None:
    code = "import sys, tau\ntau.NETWORKS = (tau.file_system(sys.argv.pop()),)\nsys.exit(tau.taud())"
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-c", code, home.home], env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert daemon.stdout is not None
    assert daemon.stdout.readline()
    kind = module.file_system(str(home.home))
    assert (
        f"the home is on {kind}, where locks cannot be trusted: keep it on a local disk" in home("status")["warnings"]
    )
    daemon.send_signal(signal.SIGTERM)
    assert "cannot be trusted" in daemon.communicate(timeout=PATIENCE_S)[1]


def test_a_file_system_is_known_by_the_longest_mount(tmp_path: Path) -> None:
    assert module.file_system("/proc/self") == "proc"
    assert module.file_system(str(tmp_path)) == module.file_system(str(tmp_path / "not" / "there"))


def test_a_client_that_stops_reading_does_not_let_the_log_of_the_database_grow(home: Tau) -> None:
    home.start()
    home.deploy(
        "from tau import pipeline\n@pipeline\ndef chatty(ctx):\n    for n in range(9000):\n        ctx.log('x' * 90)\n"
    )
    home.deploy(QUICK, "quick.py")
    chatty = home("run", "chatty")["run_id"]
    log, blob = home.home / "tau.db-wal", "x" * 200_000

    def write(megabytes: int) -> None:
        for _ in range(megabytes * 5 // 2):  # what a run is given is written, and again as it begins
            assert home.call("run", name="quick", params={"blob": blob})["status"] == "success"

    with home.connect() as stuck:
        for number in range(5):
            stuck.send({"id": number, "method": "logs", "params": {"run_id": chatty, "tail": 9000}})
        stuck.send({"id": 9, "method": "logs", "params": {"run_id": chatty, "tail": 9000, "follow": True}})
        write(24)
        assert log.stat().st_size < 12 << 20
        reader = sqlite3.connect(home.home / "tau.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchone()
        before = log.stat().st_size
        write(12)
        assert log.stat().st_size > before + (6 << 20)  # as it would, if what is read for a client were held
        reader.close()


#: What no store could keep as it is → how it is refused, at the edge.
BEYOND = [
    (b'{"name":"quick","params":{"n":9223372036854775808}}', "parse_error", "9223372036854775808 is out of range"),
    (b'{"name":"quick","params":{"n":-9223372036854775809}}', "parse_error", "is out of range"),
    (b'{"name":"quick","params":{"n":' + b"9" * 400 + b"}}", "parse_error", "is out of range"),
    (b'{"name":"quick","params":{"n":NaN}}', "parse_error", "NaN is not JSON"),
    (b'{"name":"quick","params":{"n":1e999}}', "parse_error", "1e999 is out of range"),
    (b'{"name":"quick","params":{"s":"\\ud800"}}', "parse_error", "surrogates not allowed"),
    (b'{"name":"quick","timeout":1e400}', "parse_error", "is out of range"),
    (b'{"name":"quick","params":{"blob":"' + b"x" * (1 << 20) + b'"}}', "bad_request", "params are larger than"),
]


@pytest.mark.parametrize(("params", "code", "message"), BEYOND, ids=range(len(BEYOND)))
def test_what_the_store_could_not_keep_makes_no_run(tau: Tau, params: bytes, code: str, message: str) -> None:
    tau.deploy(QUICK)
    before = tau.call("status")["runs"]
    with tau.connect() as wire:
        error = wire.ask(b'{"id":1,"method":"run","params":' + params + b"}\n")["error"]
    assert (error["data"]["code"], message in error["message"]) == (code, True), error
    assert tau.call("status")["runs"] == before


def test_what_the_store_can_keep_comes_back_as_it_was(tau: Tau) -> None:
    tau.deploy(QUICK)
    params = {"low": -(2**63), "high": 2**63 - 1, "nul\0": "\0", "tiny": 5e-324, "😀": "\x7f\u2028"}
    run_id = tau.call("run", name="quick", params=params)["run_id"]
    assert tau("inspect", run_id)["params"] == params


def test_root_is_warned_and_served(tau: Tau) -> None:
    warned = any(text.startswith("taud runs as root, and so does every pipeline") for text in tau("status")["warnings"])
    assert warned == (os.geteuid() == 0)


#: Uses what takes descriptors in a run: secrets, forks, processes, memos, a target, an event loop.
BUSY = """
import asyncio, os, subprocess
from tau import pipeline

@pipeline
async def busy(ctx):
    ctx.secret("TOKEN")
    with ctx.step("children"):
        if (pid := os.fork()) == 0:
            ctx.log("from a fork")
            os._exit(0)
        os.waitpid(pid, 0)
        subprocess.run(["echo", "from a process"], check=True)
    await asyncio.to_thread(ctx.load, "sqlite:///busy.db", [{"n": 1}], "numbers")
    return await ctx.memo("sum", sum, [1, 2])
"""


def stays_busy(tau: Tau) -> None:
    """More than a dozen such runs at once succeed, and all else goes on."""
    (tau.home / "secrets").mkdir(mode=0o700, exist_ok=True)
    (tau.home / "secrets" / "TOKEN").touch(0o600)
    (tau.home / "secrets" / "TOKEN").write_text("as long as a secret is")
    tau.deploy(BUSY, "busy.py")
    runs = [tau.call("run", name="busy", wait=False)["run_id"] for _ in range(15)]
    for ended in tau.call("wait", run_id=runs)["runs"]:
        assert (ended["status"], ended["result"]) == ("success", 3), ended["error"]
    lines = sorted(line["message"] for line in tau.call("logs", run_id=runs[0])["lines"])
    assert lines == ["from a fork", "from a process"]
    assert tau.call("backup", file=f"{tau.work}/all.backup")["file"]
    assert tau.command("check", tau.work / "busy.py").json["ok"]
    assert tau.command("logs", runs[0], "--follow").exit == 0


def test_80_descriptors_are_enough_for_a_daemon_and_79_are_refused(home: Tau) -> None:
    with served(home, files=80):
        stays_busy(home)
    with pytest.raises(AssertionError, match="taud may open only 79 files; it needs 80"), served(home, files=79):
        pass


def test_a_run_that_may_open_few_files_can_still_say_how_it_ended(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[limits]\nopen_files = 32\n")
    home.start()
    stays_busy(home)
    error = home.run_it("def it(ctx):\n    return [open('/dev/null') for _ in range(99)]", exit=1)["error"]
    assert (error["type"], "Too many open files" in error["message"]) == ("OSError", True)


#: What means something to a shell, a URL, a format or a terminal.
ODD = "sp ace\nline 'q\"uo%20te%s?mode=rw#sh;a&b$HOME\x1b]0;x\x07\\[x]{y}~é☃"
#: An interpreter to which the names of files are ASCII.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_home_may_have_any_name_in_utf8(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = Tau(tmp_path_factory.mktemp("odd") / ODD)
    with running(made):
        stays_busy(made)
        assert made("try", made.work / "busy.py", TMPDIR=str(made.work), exit=0)["result"] == 3
        assert made.command("doctor").json["ok"]
        made("shutdown")
        eventually(lambda: not made.socket.exists())
        words = ("--restore", made.work / "all.backup", "--replace")
        assert run("taud", *words, cwd=made.work, environ=made.environ).exit == 0
        made.start()
        assert made("run", "busy")["result"] == 3


def refusal(tau: Tau, function: str, *words: Any, **environ: str) -> str:
    """The message with which a command is refused."""
    done = run(function, *words, cwd=tau.work, environ=tau.environ | environ)
    assert (done.exit, done.error["code"], bool(done.error["hint"])) == (2, "bad_request", True)
    return str(done.error["message"])


def test_what_is_not_utf8_is_refused_by_name(home: Tau) -> None:
    odd = os.fsdecode(b"caf\xe9")
    assert "names of files must be UTF-8: the encoding is utf-8, the home" in refusal(
        home, "taud", "--detach", TAU_HOME=f"{home.home}/{odd}"
    )
    assert "names of files must be UTF-8: the encoding is ascii" in refusal(home, "taud", "--detach", **ASCII)
    home.start()
    (home.work / f"{odd}.py").write_text(QUICK)
    assert "not UTF-8: b'" in refusal(home, "main", "deploy", home.work / f"{odd}.py")
    home.deploy(QUICK)
    for words in (
        ("quick", "-p", f"x={odd}"),
        ("quick", "--params", json.dumps({"x": odd}, ensure_ascii=False)),
        (odd,),
    ):
        assert "utf-8" in refusal(home, "main", "run", *words).lower()


def test_a_client_in_ascii_sends_what_it_was_given(home: Tau) -> None:
    home.start()
    (home.work / "é☃.py").write_text(QUICK)
    assert home("deploy", "é☃.py", **ASCII)["changed"]
    assert home("code", "quick", **ASCII)["entry"] == "é☃.py"
    for words in (("-p", "blob=é☃"), ("--params", '{"blob":"é☃"}')):
        assert home("run", "quick", *words, **ASCII)["result"] == 2
