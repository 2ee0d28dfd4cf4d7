"""One daemon per home; a killed one loses nothing; its files are for its owner alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import ENVIRON, PATIENCE_S, THOROUGH, Tau, eventually, free_port, is_running, python, run, served

import tau as module

WAITING = """
    import time
    from pathlib import Path
    def it(ctx):
        with ctx.step("before"):
            ctx.log("in")
        with open("runs", "a") as file:
            file.write(ctx.run_id + "\\n")
        with ctx.step("waiting"):
            while not Path("go").exists():
                time.sleep(0.01)
        for number in range(100):
            ctx.log(f"line {number}")
        return "done"
"""


def test_detach_prints_pid_and_socket_when_it_is_ready(home: Tau) -> None:
    ready = home.start()
    assert ready["changed"] is True
    assert ready["socket"] == str(home.socket)
    assert is_running(ready["pid"])
    again = home.start()
    assert (again["changed"], again["pid"], again["socket"]) == (False, ready["pid"], ready["socket"])


def test_a_daemon_has_no_file_of_who_starts_it(home: Tau) -> None:
    """A lock that a script holds, say: it would never be free again."""
    ours, theirs = os.pipe()
    words = [*python("taud"), "--detach"]
    subprocess.run(words, env=home.environ, pass_fds=[theirs], check=True, capture_output=True, timeout=PATIENCE_S)
    os.close(theirs)
    ready, _, _ = select.select([ours], [], [], PATIENCE_S)
    assert (ready, os.read(ours, 1)) == ([ours], b"")
    os.close(ours)


def test_a_daemon_whose_socket_is_gone_is_told_how_to_end(home: Tau) -> None:
    pid = home.start()["pid"]
    home.socket.unlink()
    error = run("taud", "--detach", cwd=home.work, environ=home.environ).error
    assert error["hint"] == f"kill {pid}; taud --detach"
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_running(pid))


def test_a_second_daemon_is_refused_and_told_the_owner(home: Tau) -> None:
    pid = home.start()["pid"]
    second = subprocess.run(python("taud"), env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 5
    error = json.loads(second.stderr.splitlines()[-1])["error"]
    assert (error["code"], error["pid"]) == ("conflict", pid)
    assert home.call("status")["pid"] == pid


def test_of_simultaneous_starts_exactly_one_serves(home: Tau) -> None:
    starts = [
        subprocess.Popen([*python("taud"), "--detach"], env=home.environ, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = [json.loads(start.communicate(timeout=PATIENCE_S)[0] or "null") for start in starts]
    pid = home.call("status")["pid"]
    assert {answer["pid"] for answer in answers} == {pid}
    assert [answer["changed"] for answer in answers].count(True) == 1
    assert {start.returncode for start in starts} == {0}


def test_a_word_that_taud_does_not_know_is_bad_usage(home: Tau) -> None:
    done = run("taud", "--foo", cwd=home.work, environ=home.environ)
    assert (done.exit, done.error["code"]) == (2, "bad_request")


def test_hints_about_another_home_name_it(home: Tau) -> None:
    home.start("--port", str(free_port()))
    elsewhere = home.environ | {"TAU_HOME": str(home.work / "other")}
    for words in (("--port", str(free_port())), ("--host", "0.0.0.0", "--port", "1")):
        done = run("taud", "--detach", "--home", home.home, *words, cwd=home.work, environ=elsewhere)
        assert (done.exit, done.error["code"]) == (5, "conflict")
        assert done.error["hint"].startswith(f"tau --home {home.home} shutdown; taud --detach --home {home.home} ")


def test_a_run_survives_kill_9_of_the_daemon_with_its_whole_trace(fresh: Tau) -> None:
    fresh.deploy_it(WAITING)
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    fresh.kill()
    assert fresh("status", exit=6)["code"] == "unavailable"
    fresh.start()
    assert fresh("inspect", run_id)["status"] == "running"
    (fresh.home / "data/it/go").touch()
    run = fresh("wait", run_id)
    assert (run["status"], run["result"]) == ("success", "done")
    assert [step["status"] for step in run["trace"]["steps"]] == ["success", "success"]
    messages = [line["message"] for line in fresh("logs", run_id)["lines"]]
    assert messages == ["in", *(f"line {number}" for number in range(100))]
    assert (fresh.home / "data/it/runs").read_text().split() == [run_id]


def test_a_run_that_ends_without_a_daemon_gets_its_true_verdict(fresh: Tau) -> None:
    fresh.deploy_it(WAITING)
    good = fresh("run", "it", "--detach")["run_id"]
    bad = fresh.deploy(
        "from tau import pipeline\n@pipeline\ndef bad(ctx):\n    import time\n    ctx.log('in')\n    time.sleep(0.3)\n    1 / 0",
        "bad.py",
    )
    bad = fresh("run", "bad", "--detach")["run_id"]
    for run_id in (good, bad):
        eventually(lambda run_id=run_id: fresh.call("logs", run_id=run_id)["lines"])
    fresh.kill()
    (fresh.home / "data/it/go").touch()
    eventually(lambda: len(fresh.remains()) == 0)  # the fork server ends with its last child
    fresh.start()
    assert fresh("wait", good)["trace"]["log_lines"] == 101
    assert fresh("wait", bad, exit=1)["error"]["type"] == "ZeroDivisionError"
    assert not list((fresh.home / "runs").iterdir())


def test_a_run_acknowledged_right_before_kill_9_happens_once(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    with open('runs', 'a') as file:\n        file.write(ctx.run_id + '\\n')\n")
    acknowledged = []
    for _ in range(12 if THOROUGH else 4):
        with fresh.connect() as wire:
            acknowledged += [wire.call("run", name="it", wait=False)["run_id"] for _ in range(3)]
            fresh.kill()
        fresh.start()
    runs = fresh("wait", *acknowledged)["runs"]
    assert {run["status"] for run in runs} == {"success"}
    happened = (fresh.home / "data/it/runs").read_text().split()
    assert sorted(happened) == sorted(acknowledged)


def test_a_run_that_daemon_after_daemon_could_not_start_happens_once(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    with open('runs', 'a') as file:\n        file.write(ctx.run_id + '\\n')\n")

    def freeze() -> int:
        server = next(one["pid"] for one in fresh.call("status")["processes"] if one["role"] == "fork server")
        os.kill(server, signal.SIGSTOP)
        return int(server)

    frozen = [freeze()]
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh("inspect", run_id)["status"] == "running")
    for _ in range(3):
        fresh.kill()
        fresh.start()
        frozen.append(freeze())
    fresh.kill()
    fresh.start()
    for server in frozen:
        os.kill(server, signal.SIGCONT)  # each finds that its permission has been taken away
    assert fresh("wait", run_id)["status"] == "success"
    eventually(lambda: not any(map(is_running, frozen)))
    assert (fresh.home / "data/it/runs").read_text().split() == [run_id]


@pytest.mark.parametrize(
    ("boot", "claimed", "status", "times"),
    [(module.boot_id(), False, "success", 2), (module.boot_id(), True, "success", 2), ("another", False, "lost", 1)],
    ids=["this boot", "claimed by a daemon that was killed", "another"],
)
def test_an_unborn_run_is_started_again_only_if_nothing_can_have_started_it(
    fresh: Tau, boot: str, claimed: bool, status: str, times: int
) -> None:
    """What a daemon leaves that was killed between its commit and the fork server's first look, or the next daemon
    between its claim and its commit.

    After a reboot the journal that is missing may have been there, and gone with the power before it was synced.
    """
    fresh.deploy_it("def it(ctx):\n    with open('runs', 'a') as file:\n        file.write(ctx.run_id + '\\n')\n")
    done = fresh("run", "it")["run_id"]
    fresh.kill()
    eventually(lambda: not fresh.remains())
    db = sqlite3.connect(fresh.home / "tau.db")
    with db:
        db.execute("UPDATE runs SET status = 'running', result = NULL WHERE run_id = ?", (done,))
        db.execute(
            "UPDATE attempts SET ended = NULL, process = ?, position = ?",
            (
                json.dumps({"server": {"pid": 1, "started": "0", "boot": boot}}),
                '{"journal":0,"stdout":0,"stderr":0,"n":0}',
            ),
        )
        (stem,) = db.execute("SELECT journal FROM attempts").fetchone()
    db.close()
    if claimed:
        assert module.revoke_start(module.Process(str(fresh.home / "runs"), stem, done, 1, {}))
    fresh.start()
    assert fresh.call("wait", run_id=[done])["status"] == status
    assert (fresh.home / "data/it/runs").read_text().split() == [done] * times


def test_sigterm_leaves_live_runs_to_the_next_daemon(fresh: Tau) -> None:
    fresh.deploy_it(WAITING)
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    waiting = subprocess.Popen([*python("main"), "wait", run_id], env=fresh.environ, stdout=subprocess.PIPE, text=True)
    eventually(lambda: fresh.call("status")["connections"] == 2)
    pid = fresh.pid()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_running(pid), 4.0)
    fresh.start()
    (fresh.home / "data/it/go").touch()
    out, _ = waiting.communicate(timeout=PATIENCE_S)  # the client came back by itself
    assert json.loads(out)["status"] == "success"
    assert waiting.returncode == 0


def test_an_upgrade_under_a_live_run_and_the_way_back(fresh: Tau, tmp_path: Path) -> None:
    fresh.deploy_it(WAITING)
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    old, new = len(module.MIGRATIONS), len(module.MIGRATIONS) + 1
    source = Path(module.__file__).read_text(encoding="utf-8")
    source = source.replace(f'__version__ = "{module.__version__}"', '__version__ = "99.0"')
    source = source.replace("MIGRATIONS = (", "MIGRATIONS: tuple[str, ...] = (", 1)
    more = '\nMIGRATIONS += ("CREATE TABLE more (x INTEGER) STRICT",)\n'
    place = source.index("#: Columns that hold JSON text")
    (tmp_path / "tau.py").write_text(source[:place] + more + source[place:], encoding="utf-8")
    path = fresh.environ["PYTHONPATH"]

    fresh("shutdown")
    fresh.environ["PYTHONPATH"] = str(tmp_path)
    fresh.start()
    assert fresh("version")["daemon"] == "99.0"
    assert fresh("inspect", run_id)["status"] == "running"
    (fresh.home / "data/it/go").touch()
    assert fresh("wait", run_id)["result"] == "done"
    assert [len(fresh("logs", run_id)["lines"]), fresh("run", "it")["status"]] == [101, "success"]
    fresh("shutdown")

    fresh.environ["PYTHONPATH"] = path
    refused = subprocess.run(python("taud"), env=fresh.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    error = json.loads(refused.stderr.splitlines()[-1])["error"]
    copy = f"{fresh.home}/tau.db.before-v{new}"
    assert f"schema {new}, not {old}" in error["message"]
    assert f"`taud --restore {copy} --replace`" in error["hint"]
    back = [*python("taud"), "--json", "--restore", copy, "--replace"]
    assert subprocess.run(back, env=fresh.environ, capture_output=True, timeout=PATIENCE_S).returncode == 0
    fresh.start()
    run = fresh("inspect", run_id)  # it was live when the copy was made, and its journal is gone
    assert (run["status"], "what became of it" in run["error"]["message"]) == ("lost", True)
    assert fresh("run", "it")["status"] == "success"


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a newer Tau of the same schema is, compiled: clients wait 30 s for the next daemon."""
    folder = tmp_path_factory.mktemp("newer")
    source = Path(module.__file__).read_text(encoding="utf-8")
    source = source.replace(f'__version__ = "{module.__version__}"', '__version__ = "99.0"')
    (folder / "tau.py").write_text(source, encoding="utf-8")
    subprocess.run(python("pack"), env=ENVIRON | {"PYTHONPATH": str(folder)}, check=False)
    return folder


@pytest.mark.parametrize("way", ["SIGTERM", "--drain 60", "--drain 0.1"])
def test_an_upgrade_while_runs_are_live_and_queued(home: Tau, newer: Path, way: str) -> None:
    """What the README says about upgrading, with a newer Tau of the same schema."""
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 2\n")
    home.start()
    home.deploy_it(WAITING.replace('Path("go")', 'Path(ctx.params["go"])'))
    early, late, *queued = (home("run", "it", "-p", f"go={go}", "--detach")["run_id"] for go in "abccc")
    for run_id in (early, late):
        eventually(lambda run_id=run_id: home.call("logs", run_id=run_id)["lines"])
    words = [*python("main"), "wait", late, *queued]
    waiting = subprocess.Popen(words, env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    eventually(lambda: home.call("status")["connections"] >= 2)
    home("backup")
    pid = home.pid()
    if way == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    else:
        words = [*python("main"), "shutdown", *way.split()]
        stopping = subprocess.Popen(words, env=home.environ, stdout=subprocess.PIPE, text=True)
        if way == "--drain 60":
            eventually(lambda: home.call("status")["stopping"])
            (home.home / "data/it/a").touch()  # this one ends meanwhile; nothing takes its place
            assert home("wait", early)["status"] == "success"
            assert home.call("status")["slots"]["used"] == 1
            (home.home / "data/it/b").touch()
        told = json.loads(stopping.communicate(timeout=PATIENCE_S)[0])
        assert told["live_runs"] == (0 if way == "--drain 60" else 2)
    eventually(lambda: not is_running(pid))

    home.environ["PYTHONPATH"] = str(newer)
    home.start()
    assert home("version")["daemon"] == "99.0"
    states = [home("inspect", run_id)["status"] for run_id in (early, late)]
    assert states == (["success"] * 2 if way == "--drain 60" else ["running"] * 2)
    for go in "abc":
        (home.home / "data/it" / go).touch()
    told = json.loads(
        waiting.communicate(timeout=PATIENCE_S)[0]
    )  # a client of the old version, which came back by itself
    assert [run["status"] for run in told["runs"]] == ["success"] * 4
    assert home("wait", early)["result"] == "done"
    ran = (home.home / "data/it/runs").read_text().split()
    assert sorted(ran) == sorted([early, late, *queued])
    assert [home("inspect", run_id)["trace"]["log_lines"] for run_id in ran] == [101] * 5
    if way == "--drain 60":
        assert json.loads(home.command("doctor").out)["ok"]


def test_shutdown_can_wait_for_runs_or_cancel_them(fresh: Tau) -> None:
    fresh.deploy_it(WAITING)
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    draining = subprocess.Popen(
        [*python("main"), "shutdown", "--drain", "30"], env=fresh.environ, stdout=subprocess.PIPE
    )
    eventually(lambda: fresh.call("status")["stopping"])
    with fresh.connect() as wire:
        refused = wire.ask({"id": 1, "method": "run", "params": {"name": "it", "wait": False}})["error"]["data"]
        assert (refused["code"], refused["retryable"]) == ("unavailable", True)
    (fresh.home / "data/it/go").touch()
    draining.communicate(timeout=PATIENCE_S)
    fresh.start()
    assert fresh("inspect", run_id)["status"] == "success"
    (fresh.home / "data/it/go").unlink()
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    fresh("shutdown", "--cancel")
    eventually(lambda: not fresh.remains())
    fresh.start()
    assert fresh("inspect", run_id)["status"] == "cancelled"


def test_everything_in_the_home_is_for_its_owner_alone(home: Tau) -> None:
    os.umask(0)
    try:
        home.home.chmod(0o777)
        home.start()
    finally:
        os.umask(0o022)
    home.deploy_it("def it(ctx):\n    open('made', 'w').close()\n    print('x')")
    home("run", "it")
    for path in [home.home, *home.home.rglob("*")]:
        assert path.lstat().st_mode & 0o077 == 0 or path.name == "made", path  # it has the mode that its run gave it


@pytest.mark.parametrize("what", ["stale", "link", "file", "live"])
def test_only_a_stale_socket_is_replaced(home: Tau, what: str) -> None:
    other = socket.socket(socket.AF_UNIX)
    if what == "file":
        home.socket.touch()
    elif what == "link":
        home.socket.symlink_to("/run/nowhere.sock")
    else:
        other.bind(str(home.socket))
        if what == "live":
            other.listen()
    done = subprocess.run(
        [*python("taud"), "--detach"], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    other.close()
    if what == "stale":
        assert done.returncode == 0
        assert home.call("ping")
    else:
        assert done.returncode == 5, done.stderr
        assert json.loads(done.stderr)["error"]["code"] == "conflict"


def test_a_home_too_deep_for_a_socket_address_works(home: Tau) -> None:
    deep = home.home / ("deep" * 20) / ("er" * 20)
    environ = home.environ | {"TAU_HOME": str(deep)}
    started = subprocess.run(
        [*python("taud"), "--detach"], env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["addresses"] == [f"unix://{deep}/tau.sock"]
    answer = subprocess.run(
        [*python("main"), "shutdown"], env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert answer.returncode == 0, answer.stderr


def test_closed_standard_descriptors_do_no_harm(home: Tau) -> None:
    command = " ".join(f"'{word}'" for word in python("taud"))
    subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&- &"], env=home.environ, timeout=PATIENCE_S, check=True)
    eventually(lambda: home.command("status").exit == 0)
    home.deploy_it("def it(ctx):\n    return 1")
    assert home("run", "it")["result"] == 1


def test_a_home_of_somebody_else_is_refused(home: Tau) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    os.chown(home.home, 65534, -1)
    done = subprocess.run(python("taud"), env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (4, "forbidden")


def test_another_user_cannot_speak_to_it(home: Tau) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    home.start()
    for path in (home.home.parent, home.home, home.socket):
        path.chmod(0o777)  # even if somebody opened every door
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"id":1,"method":"list"}\\n\'); print(s.recv(9999).decode())'
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, home.socket], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert json.loads(done.stdout)["error"]["data"]["code"] == "forbidden"


def test_a_group_may_be_admitted(home: Tau) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a socket to a group")
    home.home.joinpath("tau.toml").write_text("[daemon]\ngroup = 'games'\n")
    home.home.parent.chmod(0o755)
    home.start()
    assert (home.home.stat().st_mode & 0o777, home.socket.stat().st_mode & 0o777) == (0o750, 0o660)
    code = (
        "import os, socket, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"id":1,"method":"list"}\\n\'); print(s.recv(9999).decode())'
    )
    gid = str(home.socket.stat().st_gid)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, home.socket, gid], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert json.loads(done.stdout)["result"]["total"] == 0


def test_the_environment_of_a_run_has_no_key_of_the_daemon(home: Tau) -> None:
    home.environ |= {"TAU_API_KEY": "k", "TAU_API_KEY_FILE": "f", "NOTIFY_SOCKET": "n", "LISTEN_FDS": "0", "MINE": "m"}
    home.start()
    text = "import os\ndef it(ctx):\n    open('seen', 'w').write('\\0'.join(f'{k}={v}' for k, v in os.environ.items())); open('block', 'w').write(open('/proc/self/environ').read())"
    home.run_it(text)
    seen, block = ((home.home / "data/it" / name).read_text() for name in ("seen", "block"))
    environ = dict(line.split("=", 1) for line in seen.split("\0"))
    assert not {"TAU_API_KEY", "TAU_API_KEY_FILE", "NOTIFY_SOCKET", "LISTEN_FDS"} & set(environ)
    assert "TAU_API_KEY" not in block
    assert environ["MINE"] == "m"
    assert len(environ["TAU_RUN_ID"]) == 14


def test_tcp_on_loopback_takes_the_key_of_the_home(home: Tau) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    home.start("--port", port)
    key = (home.home / "key").read_text().strip()
    assert (home.home / "key").stat().st_mode & 0o777 == 0o600
    for host in (f"tcp://127.0.0.1:{port}", f"localhost:{port}"):
        assert home("--host", host, "status")["pid"]
    assert home("--host", f"127.0.0.1:{port}", "status", TAU_API_KEY="wrong", exit=4)["code"] == "forbidden"
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        hello = b'{"id":2,"method":"hello","params":{"api_key":"' + key.encode() + b'"}}\n'
        stranger.sendall(b'{"id":1,"method":"list"}\n' + hello)
        answers = stranger.makefile().read().splitlines()
    assert len(answers) == 1
    assert "error" in json.loads(answers[0])


@pytest.mark.parametrize("line", [b"[" * 70 + b"]" * 70, b"[]", b"{}", b'[{"method":"hello"}]', b'{"method":"hello"}'])
def test_a_stranger_says_one_line_whatever_it_is(home: Tau, line: bytes) -> None:
    port = free_port()
    home.start("--port", str(port))
    key = (home.home / "key").read_bytes().strip()
    with socket.create_connection(("127.0.0.1", port), 10) as stranger:
        stranger.sendall(line + b'\n{"id":2,"method":"hello","params":{"api_key":"%b"}}\n' % key)
        answers = stranger.makefile().read().splitlines()
    assert ["error" in json.loads(answer) for answer in answers] == [True]


def test_a_public_address_without_a_configured_key_is_forbidden(home: Tau) -> None:
    done = subprocess.run(
        [*python("taud"), "--host", "0.0.0.0"], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]["code"]) == (4, "forbidden")


def test_a_configured_key_opens_tcp_and_is_nowhere_to_be_found(home: Tau) -> None:
    key = "k" * 20 + "ey" * 10
    (home.home / "tau.toml").write_text(f"[auth]\napi_key = '{key}'\n[daemon]\nlog_level = 'debug'\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    home.start("--port", port)
    host = f"tcp://127.0.0.1:{port}"
    assert home("--host", host, "status", exit=4)["code"] == "forbidden"
    home.deploy_it("def it(ctx):\n    import os\n    return 'TAU_API_KEY' in os.environ")
    assert home("--host", host, "run", "it", TAU_API_KEY=key)["result"] is False
    (home.home / "tau.toml").unlink()
    assert not [path for path in home.home.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    home("shutdown")
    started = subprocess.run(
        [*python("taud"), "--detach", "--host", "0.0.0.0", "--port", port],
        env=home.environ | {"TAU_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert started.returncode == 0, started.stderr
    assert any("not encrypted" in warning for warning in home.call("status")["warnings"])


def test_a_database_of_a_newer_tau_is_refused_untouched(home: Tau) -> None:
    db = sqlite3.connect(home.home / "tau.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = (home.home / "tau.db").read_bytes()
    done = subprocess.run(python("taud"), env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]["code"]) == (5, "conflict")
    assert (home.home / "tau.db").read_bytes() == before


def test_what_is_no_database_is_refused(home: Tau) -> None:
    (home.home / "tau.db").write_bytes(b"this is no database" * 1000)
    done = subprocess.run(python("taud"), env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]["code"]) == (5, "conflict")


def test_sources_that_a_crash_left_are_swept(home: Tau) -> None:
    left = home.home / "versions" / ".staged-x"
    left.mkdir(parents=True)
    home.start()
    eventually(lambda: not left.exists())


def test_a_cancel_of_an_unborn_run_is_not_forgotten(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    open('ran', 'w').close()\n")
    roles = {one["role"]: one["pid"] for one in fresh.call("status")["processes"]}
    os.kill(roles["fork server"], signal.SIGSTOP)
    run_id = fresh("run", "it", "--detach")["run_id"]
    with fresh.connect() as wire:
        wire.send({"id": 1, "method": "cancel", "params": {"run_id": run_id}})
        db = sqlite3.connect(f"file:{fresh.home}/tau.db?mode=ro", uri=True)
        eventually(lambda: db.execute("SELECT stopping FROM attempts").fetchone() == ("cancelled",))
        db.close()
        fresh.kill()
    os.kill(roles["fork server"], signal.SIGKILL)
    fresh.start()
    assert fresh("wait", run_id, exit=1)["status"] == "cancelled"
    assert not (fresh.home / "data/it/ran").exists()


def test_draining_admits_nothing_new_and_a_signal_ends_it(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n")
    home.start()
    home.deploy_it(WAITING)
    live, queued = (home("run", "it", "--detach")["run_id"] for _ in range(2))
    eventually(lambda: home.call("logs", run_id=live)["lines"])
    with home.connect() as wire:
        wire.send({"id": 1, "method": "shutdown", "params": {"drain": 60}})
        eventually(lambda: home.call("status")["stopping"])
        (home.home / "data/it/go").touch()
        assert wire.receive()["result"]["live_runs"] == 0
    eventually(lambda: not home.socket.exists())
    db = sqlite3.connect(home.home / "tau.db")
    assert dict(db.execute("SELECT run_id, status FROM runs")) == {live: "success", queued: "queued"}
    db.close()
    (home.home / "data/it/go").unlink()
    pid = home.start()["pid"]
    eventually(lambda: home.call("logs", run_id=queued)["lines"])
    with home.connect() as wire:
        wire.send({"id": 1, "method": "shutdown", "params": {"drain": 60}})
        eventually(lambda: home.call("status")["stopping"])
    os.kill(pid, signal.SIGTERM)  # the client has gone, and the drain with it
    eventually(lambda: not is_running(pid), 4.0)
    assert not home.socket.exists()
    home.start()
    (home.home / "data/it/go").touch()
    assert home("wait", queued)["status"] == "success"


def test_a_home_for_a_group_stays_so_when_a_second_daemon_is_refused(home: Tau) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a socket to a group")
    (home.home / "tau.toml").write_text("[daemon]\ngroup = 'games'\n")
    home.start()
    assert home.start()["changed"] is False
    assert home.home.stat().st_mode & 0o777 == 0o750


def test_a_key_that_is_none_opens_nothing(home: Tau) -> None:
    (home.home / "key").touch()
    done = subprocess.run(
        [*python("taud"), "--port", "1"], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]["code"]) == (4, "forbidden")


def test_an_idle_daemon_does_nothing(fresh: Tau) -> None:
    def switches() -> list[int]:
        """How often each process has gone to sleep, that is, how often it was awake."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts]

    fresh.run_it("def it(ctx):\n    return 1")
    pids = fresh.processes()
    eventually(lambda: not list((fresh.home / "runs").iterdir()))
    until = time.monotonic() + 0.5
    eventually(lambda: time.monotonic() > until)  # the watcher's last look is over
    before, until = switches(), time.monotonic() + 1.0
    eventually(lambda: time.monotonic() > until)
    assert switches() == before


def test_an_idle_daemon_has_loaded_only_what_it_needs(home: Tau) -> None:
    """Each of these would cost every daemon memory: decimal alone is half a MiB."""
    subprocess.run([*python("taud"), "--detach"], env=home.environ, check=True, capture_output=True, timeout=PATIENCE_S)
    home.run_it("def it(ctx):\n    return 1")
    needless = ("_csv", "_decimal", "_ssl", "_zoneinfo")
    for pid in home.processes():
        loaded = re.findall(r"/(_\w+)\.cpython-", Path(f"/proc/{pid}/maps").read_text())
        assert [name for name in needless if name in loaded] == []


def test_a_lock_that_outlives_its_daemon_for_a_moment_is_waited_for(home: Tau) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = home.home / "tau.lock"
    path.write_text(json.dumps({"pid": dead.pid, "socket": "gone"}))
    with path.open() as held:  # as a child does that its killed parent was just starting
        fcntl.flock(held, fcntl.LOCK_EX)
        release = threading.Timer(0.3, held.close)
        release.start()
        assert home.start()["changed"] is True
        release.join()


SLOW_TO_EXIT = """
import time
real = tau.Daemon.close
async def close(self):
    await real(self)
    time.sleep(1)
tau.Daemon.close = close
"""


def test_who_has_seen_the_end_can_start_the_next_daemon(home: Tau) -> None:
    with served(home, code=SLOW_TO_EXIT) as daemon:
        home("shutdown")
        started = home.start()
        assert (started["changed"], started["pid"] != daemon.pid) == (True, True)
        assert home("status")["pid"] == started["pid"]
        daemon.wait(PATIENCE_S)
