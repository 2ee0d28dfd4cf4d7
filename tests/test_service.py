"""taud as a service: started by the first connection, watched, reloaded, stopped; runs survive all of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, REPOSITORY, Tau, eventually, is_running, python
from test_daemon import WAITING

import tau as module

#: So long may a daemon be silent: the watchdog is promised less than half a second, the machine may be busy.
SILENCE_S = 3.0
#: Becomes the service's process: the sockets at descriptor 3 and on, and a word to whom they belong.
LAUNCH = """
import fcntl, os, resource, sys
given = [int(word) for word in sys.argv[1].split(",") if word]
copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 64) for number in given]
for number in given:
    os.set_inheritable(number, False)
for place, number in enumerate(copies, 3):
    os.dup2(number, place)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
mine = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given)), "WATCHDOG_PID": str(os.getpid())}
os.execve(sys.argv[2], sys.argv[2:], mine | dict(os.environ))
"""


def launch(tau: Tau, given: Sequence[Any], *words: str, **environ: str) -> subprocess.Popen[bytes]:
    """A taud that has been handed these sockets; what it logs is in the file `log` of the work directory."""
    numbers = [one if isinstance(one, int) else one.fileno() for one in given]
    with (tau.work / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, ",".join(map(str, numbers)), *python("taud"), *words],
            env=tau.environ | environ,
            cwd=tau.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=numbers,
        )


def unix_listener(path: Path) -> socket.socket:
    """A listening Unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(100)
    return listener


class Supervisor(threading.Thread):
    """What systemd does for a service: it holds the socket, starts on demand, listens, watches, restarts."""

    def __init__(
        self,
        tau: Tau,
        given: Sequence[socket.socket] | None = None,
        *,
        watchdog_s: float = 0.0,
        abstract: bool = False,
        restart: bool = True,
        **environ: str,
    ) -> None:
        super().__init__()
        self.tau, self.restart, self.watchdog_s = tau, restart, watchdog_s
        self.path = tau.work / "service.sock"
        self.host = f"unix://{self.path}"
        self.given = [unix_listener(self.path)] if given is None else given
        name = f"@{tau.work}" if abstract else str(tau.work / "notify")
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(name.replace("@", "\0"))
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.environ = {"NOTIFY_SOCKET": name, **environ}
        if watchdog_s:
            self.environ.setdefault("WATCHDOG_USEC", str(int(watchdog_s * 1e6)))
        self.said: list[tuple[int, dict[str, str]]] = []  # every notification, with the pid that sent it
        self.exits: list[int] = []  # how each daemon ended
        self.silent: list[int] = []  # daemons that did not ping in time
        self.process: subprocess.Popen[bytes] | None = None
        self.alive_at: float | None = None  # when it was last heard of; None before it is ready
        self.closing = False

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing = True
        self.join()
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        for one in (*self.given, self.channel):
            one.close()

    def run(self) -> None:
        """Until it is closed."""
        while not self.closing:
            idle = [] if self.process else self.given
            ready, _, _ = select.select([self.channel, *idle], [], [], 0.02)
            if self.channel in ready:
                self.hear()
            elif ready:
                self.launch()
            self.watch()

    def launch(self) -> None:
        """A daemon is on its way."""
        self.alive_at = None
        self.process = launch(self.tau, self.given, **self.environ)

    def hear(self) -> None:
        """One notification."""
        text, (ancillary, *_), *_ = self.channel.recvmsg(4096, socket.CMSG_SPACE(12))
        sender = struct.unpack("3i", ancillary[2])[0]
        words = dict(line.split("=", 1) for line in text.decode().split("\n"))
        self.said.append((sender, words))
        if {"READY", "WATCHDOG"} & words.keys():
            self.alive_at = time.monotonic()

    def watch(self) -> None:
        """A daemon that has ended is noticed, one that is silent is killed; after a failure comes another."""
        if self.process is None:
            return
        code = self.process.poll()
        if code is not None:
            self.exits.append(code)
            self.process = None
            if code and self.restart:
                self.launch()
        elif self.watchdog_s and self.alive_at is not None and time.monotonic() > self.alive_at + SILENCE_S:
            again = self.process.pid in self.silent
            self.silent += [] if again else [self.process.pid]
            self.process.send_signal(signal.SIGKILL if again else signal.SIGABRT)
            self.alive_at += SILENCE_S

    def heard(self, name: str) -> list[str]:
        """What was told under a name, oldest first."""
        return [words[name] for _, words in self.said if name in words]

    @property
    def log(self) -> str:
        """All that the daemons have logged."""
        return (self.tau.work / "log").read_text()


def begin_waiting_run(tau: Tau) -> str:
    """A live run that has said its first word."""
    tau.deploy_it(WAITING)
    run_id: str = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    return run_id


def assert_run_is_whole(tau: Tau, run_id: str) -> None:
    """The run goes on to its end, has happened once, and nothing of it is missing."""
    (tau.home / "data/it/go").touch()
    run = tau("wait", run_id)
    assert (run["status"], run["result"], run["trace"]["log_lines"]) == ("success", "done", 101)
    assert (tau.home / "data/it/runs").read_text().split() == [run_id]


# Under a service manager.


def test_systemd_socket_activate_starts_it_upon_the_first_command(home: Tau) -> None:
    if not shutil.which("systemd-socket-activate"):
        pytest.skip("systemd-socket-activate is not installed")
    path = home.work / "service.sock"
    passed = [f"--setenv={name}" for name in ("TAU_HOME", "PYTHONPATH", "HOME")]
    with (home.work / "log").open("wb") as log:
        activator = subprocess.Popen(
            ["systemd-socket-activate", f"--listen={path}", *passed, *python("taud")],
            env=home.environ,
            cwd=home.work,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        eventually(lambda: "Listening on" in (home.work / "log").read_text())
        assert not home.socket.exists()
        assert home("list", TAU_HOST=f"unix://{path}")["pipelines"] == []
        assert home.pid() == activator.pid  # it has become taud
        assert home.call("status")["addresses"] == [f"unix://{home.socket}", f"unix://{path}"]
    finally:
        activator.terminate()
        activator.wait(PATIENCE_S)
    assert path.exists()


def test_the_first_command_starts_it_and_killing_it_loses_nothing(home: Tau) -> None:
    with Supervisor(home, restart=False) as service:
        assert not home.socket.exists()
        assert home("list", TAU_HOST=service.host)["pipelines"] == []
        run_id = begin_waiting_run(home)
        pids = [home.kill()]
        for _ in range(2):
            listed = home("list", TAU_HOST=service.host)["pipelines"]  # waits in the socket for the next daemon
            assert [one["name"] for one in listed] == ["it"]
            pids.append(home.kill())
        assert home("inspect", run_id, TAU_HOST=service.host)["status"] == "running"
        assert_run_is_whole(home, run_id)
        assert len({*pids, home.pid()}) == 4
        eventually(lambda: len(service.heard("READY")) == 4)


def test_a_frozen_daemon_stops_pinging_and_is_replaced_while_its_run_goes_on(home: Tau) -> None:
    with Supervisor(home, watchdog_s=0.4) as service:
        home("status", TAU_HOST=service.host)
        run_id = begin_waiting_run(home)
        eventually(lambda: len(service.heard("WATCHDOG")) > 3)
        assert service.exits == []
        frozen = home.pid()
        os.kill(frozen, signal.SIGSTOP)
        eventually(lambda: service.exits)
        assert (service.silent, service.exits) == ([frozen], [-signal.SIGKILL])
        assert home("inspect", run_id, TAU_HOST=service.host)["status"] == "running"
        assert_run_is_whole(home, run_id)
        pid = home.pid()
        eventually(lambda: [sender for sender, words in service.said if "WATCHDOG" in words].count(pid) > 1)


def test_a_blocked_event_loop_stops_pinging_and_says_where_it_is(home: Tau) -> None:
    config = Path(f"/dev/shm/{home.home.parent.name}.toml")  # only a file in /dev may be one that lets its reader wait
    config.touch()
    with Supervisor(home, watchdog_s=0.4, restart=False, TAU_CONFIG=str(config)) as service:
        home("status", TAU_HOST=service.host)
        config.unlink()
        os.mkfifo(config)
        blocked = home.pid()
        os.kill(blocked, signal.SIGHUP)
        eventually(lambda: service.exits)
        assert (service.silent, service.exits) == ([blocked], [-signal.SIGABRT])
        assert "in read_config" in service.log
        config.unlink()
        config.touch()
        assert home("status", TAU_HOST=service.host)["pid"] != blocked
    config.unlink()


@pytest.mark.parametrize("abstract", [False, True])
def test_it_tells_that_it_is_ready_and_that_it_stops(home: Tau, abstract: bool) -> None:
    with Supervisor(home, abstract=abstract) as service:
        home("list", TAU_HOST=service.host)
        eventually(lambda: service.heard("READY") == ["1"])
        run_id = begin_waiting_run(home)
        pid = home.pid()
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: service.exits)
        assert service.exits == [0]
        assert service.heard("STOPPING") == ["1"]
        assert {sender for sender, _ in service.said} == {pid}
        assert (home.socket.exists(), service.path.exists()) == (False, True)
        assert home("inspect", run_id, TAU_HOST=service.host)["status"] == "running"  # by another daemon
        assert_run_is_whole(home, run_id)


def test_a_watchdog_that_watches_another_process_gets_no_ping(home: Tau) -> None:
    with Supervisor(home, WATCHDOG_USEC="1000", WATCHDOG_PID="1") as service:
        home("list", TAU_HOST=service.host)
        home("shutdown")
        eventually(lambda: service.exits == [0])
        assert service.heard("STOPPING") == ["1"]
        assert service.heard("WATCHDOG") == []


def test_a_service_manager_that_does_not_listen_does_no_harm(home: Tau) -> None:
    home.environ |= {"NOTIFY_SOCKET": str(home.work / "nowhere"), "WATCHDOG_USEC": "100000"}
    running = launch(home, [])
    eventually(lambda: "cannot notify" in (home.work / "log").read_text())
    assert home("list")["pipelines"] == []
    home("shutdown")
    assert running.wait(PATIENCE_S) == 0


def test_what_is_meant_for_this_process_is_taken_out_of_the_environment(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "LISTEN_FDS": "1", "WATCHDOG_USEC": "1", "HOME": "/"}
        manager = module.ServiceManager(environ)
        assert environ == {"HOME": "/"}
        manager.tell(RELOADING=1, MONOTONIC_USEC=2)
        assert channel.recv(999) == b"RELOADING=1\nMONOTONIC_USEC=2"


# Reloading.


def test_sighup_reads_the_configuration_again(home: Tau) -> None:
    config = home.home / "tau.toml"
    config.write_text("[daemon]\nlog_level = 'warning'\n")
    with Supervisor(home) as service:
        home("list", TAU_HOST=service.host)
        home.deploy_it("def it(ctx):\n    return ctx.sql('SELECT 1 AS x', connection='shop')")
        assert home.command("run", "it").exit == 1

        def reload(text: str) -> Any:
            config.write_text(text)
            before = len(service.heard("READY"))
            os.kill(home.pid(), signal.SIGHUP)
            eventually(lambda: len(service.heard("READY")) == before + 1)
            names = [name for _, words in service.said for name in words if name in ("READY", "RELOADING")]
            assert names[-2:] == ["RELOADING", "READY"]
            return home("status", TAU_HOST=service.host)

        shop = f"[connections.shop]\nurl = 'sqlite:///{home.work}/shop.db'\n"
        shop += shop.replace("[", "[namespaces.acme.")
        home("namespace", "create", "acme")
        home("--namespace", "acme", "deploy", home.work / "pipelines.py")
        status = reload(f"[daemon]\nlog_level = 'debug'\n[scheduler]\nmax_concurrent = 3\n{shop}")
        assert all(usec.isdigit() for usec in service.heard("MONOTONIC_USEC"))
        assert "the configuration is read again; after a restart max_concurrent will hold too" in service.log
        assert status["slots"]["total"] == 10
        assert home("run", "it")["result"] == home("run", "acme/it")["result"] == [{"x": 1}]

        status = reload("[daemon]\nlog_level = 'error'\nprot = 1\n")
        told = f"the configuration was not read again: {config}: [daemon]: unknown key 'prot'; did you mean 'port'?"
        assert any(text.startswith(told) for text in status["warnings"])
        assert told in service.log
        assert home("run", "it")["result"] == [{"x": 1}]

        status = reload("[daemon]\nlog_level = 'warning'\n")
        assert not [text for text in status["warnings"] if "configuration" in text]
        read = service.log.count("is read again")
        reload("[daemon]\nlog_level = 'warning'\n")
        assert service.log.count("is read again") == read


def test_a_flag_holds_over_a_configuration_that_is_read_again(home: Tau) -> None:
    running = launch(home, [], "--log-level", "debug")
    eventually(lambda: "serves" in (home.work / "log").read_text())
    (home.home / "tau.toml").write_text("[daemon]\nlog_level = 'error'\n")
    eventually(lambda: signal_bits(running.pid, "SigCgt") & 1 << signal.SIGHUP - 1)
    running.send_signal(signal.SIGHUP)
    eventually(lambda: "the configuration is read again" in (home.work / "log").read_text())
    assert home("status")["config"] == str(home.home / "tau.toml")
    home("shutdown")
    assert running.wait(PATIENCE_S) == 0


def signal_bits(pid: int, name: str) -> int:
    """A set of signals in /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"\n{name}:")[2].split()[0], 16)


def test_a_terminal_that_closes_does_not_end_it(home: Tau) -> None:
    ours, theirs = pty.openpty()
    code = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs), *python("taud")], env=home.environ, pass_fds=[theirs]
    )
    os.close(theirs)
    eventually(lambda: b"addresses" in os.read(ours, 4096))
    (home.home / "tau.toml").write_text("nonsense")
    os.close(ours)
    eventually(lambda: any("not read again" in text for text in home.call("status")["warnings"]))
    assert home.run_it("def it(ctx):\n    return 1")["result"] == 1
    assert home.pid() == running.pid
    home("shutdown")
    running.wait(PATIENCE_S)


# Sockets that are handed over.


def test_the_socket_of_the_home_may_be_handed_over_and_is_never_removed(home: Tau) -> None:
    with Supervisor(home, [unix_listener(home.socket)]) as service:
        inode = home.socket.stat().st_ino
        assert home("status")["addresses"] == [f"unix://{home.socket}"]
        home("shutdown")
        eventually(lambda: service.exits == [0])
        assert (home.socket.stat().st_ino, oct(home.socket.stat().st_mode & 0o777)) == (inode, "0o755")
        assert home("list")["pipelines"] == []
        home.kill()
        assert home("list")["pipelines"] == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_tcp_socket_that_is_handed_over_wants_the_key(home: Tau, address: str) -> None:
    try:
        listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    port = listener.getsockname()[1]
    host = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
    with Supervisor(home, [listener, unix_listener(home.work / "service.sock")]) as service:
        home("list", TAU_HOST=service.host)
        assert sorted(home("status", TAU_HOST=host)["addresses"]) == sorted(
            [f"unix://{home.socket}", host, service.host]
        )
        assert home("list", TAU_HOST=host, TAU_API_KEY="wrong", exit=4)["code"] == "forbidden"
        assert home("shutdown", TAU_HOST=host)["stopping"] is True


def one_end() -> socket.socket:
    """A socket that is connected, as one of Accept=yes is."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


REFUSED: dict[str, tuple[Callable[[], Any], int, str]] = {
    "datagrams": (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), 5, "Operation not supported"),
    "unbound": (lambda: socket.socket(socket.AF_UNIX), 5, "Invalid argument"),
    "connected": (one_end, 5, "Invalid argument"),
    "file": (lambda: os.open("/dev/null", os.O_RDONLY), 5, "Socket operation on non-socket"),
    "public": (lambda: socket.create_server(("0.0.0.0", 0)), 4, "without a configured key"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused(home: Tau, what: str) -> None:
    make, code, message = REFUSED[what]
    given = make()
    running = launch(home, [given])
    assert running.wait(PATIENCE_S) == code
    os.close(given) if isinstance(given, int) else given.close()
    error = json.loads((home.work / "log").read_text().splitlines()[-1])["error"]
    assert message in error["message"]
    assert error["hint"]
    assert not home.socket.exists()


def test_sockets_that_are_meant_for_another_process_are_let_alone(home: Tau) -> None:
    home.environ |= {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    home.start()
    assert home.call("status")["addresses"] == [f"unix://{home.socket}"]


def test_no_child_has_a_socket_or_a_variable_of_the_service_manager(home: Tau) -> None:
    given = [unix_listener(home.work / "service.sock"), socket.create_server(("127.0.0.1", 0))]
    names = {f"socket:[{os.fstat(one.fileno()).st_ino}]" for one in given}

    def held(pid: int) -> set[str]:
        """Those of the sockets that a process has."""
        found = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(os.readlink(path))
            except FileNotFoundError:
                continue  # closed meanwhile
        return names & found

    with Supervisor(home, given, watchdog_s=5.0) as service:
        home("list", TAU_HOST=service.host)
        run_id = begin_waiting_run(home)
        daemon, *others = home.processes()
        assert held(daemon) == names
        assert len(others) == 2
        for pid in others:
            assert held(pid) == set()
            assert not re.search(rb"NOTIFY_|LISTEN_|WATCHDOG_", Path(f"/proc/{pid}/environ").read_bytes())
        assert_run_is_whole(home, run_id)
        home("shutdown")
        eventually(lambda: service.exits == [0])
        eventually(lambda: not home.remains())
        assert launch(home, given, "--detach", NOTIFY_SOCKET="/n", WATCHDOG_USEC="1").wait(30) == 0
        for pid in home.processes():
            assert held(pid) == set()
            assert not re.search(rb"NOTIFY_|LISTEN_|WATCHDOG_", Path(f"/proc/{pid}/environ").read_bytes())


# Directories.


def test_the_runtime_directory_has_a_socket_too(home: Tau) -> None:
    folder = home.work / "run"
    folder.mkdir()
    home.environ["RUNTIME_DIRECTORY"] = f"{folder}:{home.work}"
    home.start()
    assert home("status", TAU_HOST=f"unix://{folder}/tau.sock")["addresses"] == [
        f"unix://{home.socket}",
        f"unix://{folder}/tau.sock",
    ]
    pid = home.pid()
    home("shutdown")
    eventually(lambda: not is_running(pid))
    assert list(folder.iterdir()) == []
    with Supervisor(home, [unix_listener(folder / "tau.sock")]) as service:
        host = f"unix://{folder}/tau.sock"
        assert home("status", TAU_HOST=host)["addresses"] == [f"unix://{home.socket}", host]
        home("shutdown")
        eventually(lambda: service.exits == [0])
        assert (folder / "tau.sock").exists()


def test_a_runtime_directory_of_whoever_started_us_is_not_ours(home: Tau) -> None:
    home.environ |= {"RUNTIME_DIRECTORY": str(home.work), "SYSTEMD_EXEC_PID": str(os.getpid())}
    home.start()
    assert home.call("status")["addresses"] == [f"unix://{home.socket}"]


# The journal.


@pytest.mark.parametrize("journal", [True, False])
def test_in_the_journal_each_line_has_its_priority(home: Tau, journal: bool) -> None:
    with (home.work / "log").open("ab") as log:
        found = os.fstat(log.fileno())
    named = f"{found.st_dev}:{found.st_ino if journal else 1}"
    running = launch(home, [], "--log-level", "debug", JOURNAL_STREAM=named)
    eventually(lambda: (home.home / "tau.lock").exists() and (home.home / "tau.lock").read_text())
    server = next(one["pid"] for one in home.call("status")["processes"] if one["role"] == "fork server")
    os.kill(server, signal.SIGKILL)
    eventually(lambda: "the fork server died" in (home.work / "log").read_text())
    assert launch(home, [], JOURNAL_STREAM=named).wait(30) == 5  # refused: it serves already
    home("shutdown")
    running.wait(PATIENCE_S)
    lines = (home.work / "log").read_text().splitlines()
    found_priorities = {
        text: [line[:3] for line in lines if text in line]
        for text in ("taud runs as root", f"{module.__version__} serves /", "the fork server died", '{"error":')
    }
    expected = {
        "taud runs as root": "<4>",
        f"{module.__version__} serves /": "<6>",
        "the fork server died": "<3>",
        '{"error":': "<3>",
    }
    for text, priorities in found_priorities.items():
        if text != "taud runs as root" or os.geteuid() == 0:
            assert priorities
            assert all((one == expected[text]) is journal for one in priorities), text
    assert not journal or not [line for line in lines if re.search(r"\d\d:\d\d:\d\d,\d", line)]


def test_in_the_journal_each_line_of_a_traceback_has_its_priority(tmp_path: Path) -> None:
    code = "import logging, tau\ntau.set_up_log('info')\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('a\\nb')"
    path = tmp_path / "log"
    with path.open("wb") as log:
        found = os.fstat(log.fileno())
        environ = {"PYTHONPATH": str(REPOSITORY), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([*python("main")[:-1], code], env=environ, stderr=log, timeout=PATIENCE_S, check=True)
    lines = path.read_text().splitlines()
    assert len(lines) > 4
    assert all(line.startswith("<3>") for line in lines)


# The units.


@pytest.fixture
def taud(tmp_path: Path) -> Path:
    """An executable as pip installs one."""
    path = tmp_path / "a folder" / "bin" / "taud"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable} -P\nimport sys\nimport tau\nsys.exit(tau.taud())\n")
    path.chmod(0o755)
    return path


def printed(taud: Path, *words: str, exit: int = 0) -> str:
    """What `taud --print-unit` prints, or the error."""
    environ = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [taud, "--print-unit", *words], env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == exit, done.stderr
    return done.stdout or done.stderr


@pytest.mark.parametrize("kind", ["service", "user"])
def test_the_printed_unit_starts_the_taud_that_prints_it(taud: Path, kind: str) -> None:
    assert f'ExecStart="{taud}"' in printed(taud, kind).splitlines()
    assert kind != "service" or printed(taud) == printed(taud, kind)


def test_a_unit_that_there_is_not_is_refused(taud: Path) -> None:
    assert json.loads(printed(taud, "sokcet", exit=2))["error"]["hint"].startswith("did you mean 'socket'?")


def analyze(*words: Any, **environ: str) -> str:
    """What systemd-analyze says, and that it has nothing to complain of."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", *map(str, words)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_systemd_accepts_the_units(taud: Path, tmp_path: Path) -> None:
    for kind, name in (("service", "taud.service"), ("socket", "taud.socket"), ("user", "user/taud.service")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(printed(taud, kind))
    analyze("verify", "--man=no", tmp_path / "taud.service", tmp_path / "taud.socket")
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    analyze("verify", "--man=no", "--user", tmp_path / "user/taud.service", **runtime)


def test_the_service_is_exposed_no_more_than_its_pipelines_need(taud: Path, tmp_path: Path) -> None:
    (tmp_path / "taud.service").write_text(printed(taud))
    found = analyze("security", "--offline=true", "--threshold=40", tmp_path / "taud.service")
    assert re.search(r"Overall exposure level for taud.service: [0-4]\.\d OK", found)


def test_a_restart_takes_nothing_from_live_runs() -> None:
    """These would: a stop of the unit kills the runs, or removes what they have in use."""
    for kind in ("service", "user"):
        lines = module.unit_text(kind, "/taud").splitlines()
        assert {"KillMode=process", "Type=notify", "WatchdogSec=30", "Restart=on-failure"} <= {*lines}
        assert not [line for line in lines if re.match("PrivateTmp|RemoveIPC|DynamicUser|ExecStopPost", line)]
    assert "RuntimeDirectoryPreserve=yes" in module.unit_text("service", "/taud").splitlines()


def test_every_word_of_the_readme_about_units_prints_one(taud: Path) -> None:
    text = (REPOSITORY / "README.md").read_text()
    kinds = re.findall(r"taud --print-unit ?(\w*)", text)
    assert {*kinds} >= {"service", "socket", "user"}
    for kind in {*kinds} - {""}:
        assert printed(taud, kind).count("[Install]") == 1


# Under systemd itself.

#: The first process of namespaces of their own: a /run of its own, and below it a systemd that serves one user.
MANAGER = """
mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/user/0
export XDG_RUNTIME_DIR=/run/user/0
/lib/systemd/systemd --user --unit=default.target --log-target=null >/dev/null 2>&1 &
wait
"""
#: What the manager of a user cannot do, or cannot do in a container.
BEYOND = r"(User|Group|ProtectKernelTunables|ProtectKernelLogs|WantedBy|Also|SocketUser|SocketGroup)="
SLICES = ("app.slice", "background.slice", "init.scope", "session.slice")


class Systemd:
    """A systemd of one's own that has the system's units, as far as it can."""

    def __init__(self, tau: Tau, taud: Path) -> None:
        self.tau = tau
        units = tau.work / ".config/systemd/user"
        units.mkdir(parents=True)
        for kind in ("service", "socket"):
            kept = [line for line in printed(taud, kind).splitlines() if not re.match(BEYOND, line)]
            text = "\n".join(kept).replace("/run/tau/", "%t/tau/")
            (units / f"taud.{kind}").write_text(re.sub("(?m)^(Watchdog|TimeoutAbort)Sec=.*", r"\1Sec=2", text) + "\n")
        more = [f"Environment={name}={tau.environ[name]}" for name in ("TAU_HOME", "PYTHONPATH", "HOME")]
        (units / "taud.service.d").mkdir()
        (units / "taud.service.d/test.conf").write_text("\n".join(["[Service]", *more]))
        self.slices = {*self.find_slices()}
        self.first = 0
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", MANAGER],
            env=tau.environ,
        )

    def __enter__(self) -> Systemd:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.first = int(eventually(lambda: children.read_text().split())[0])
        eventually(lambda: self("systemctl", "--user", "is-active", "default.target").returncode == 0)
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()  # and with it all that is in the namespaces
        self.process.wait(PATIENCE_S)
        eventually(lambda: not self.tau.remains())
        for path in {*self.find_slices()} - self.slices:
            for folder, _, _ in os.walk(path, topdown=False):
                eventually(lambda folder=folder: remove_group(folder))

    def find_slices(self) -> list[Path]:
        """The control groups that such a systemd makes for itself."""
        root = Path("/sys/fs/cgroup")
        return [path for name in SLICES for where in ("", "*/") for path in root.glob(where + name)]

    def __call__(self, *words: Any) -> subprocess.CompletedProcess[str]:
        """A command in the namespaces."""
        return subprocess.run(
            ["nsenter", "--target", str(self.first), "--mount", "--pid", *map(str, words)],
            env=self.tau.environ | {"XDG_RUNTIME_DIR": "/run/user/0"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def systemctl(self, *words: str) -> str:
        """What `systemctl` prints."""
        done = self("systemctl", "--user", "--no-pager", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def main_pid(self) -> int:
        """The daemon's pid there; 0 if there is none."""
        return int(self.systemctl("show", "--property=MainPID", "--value", "taud"))

    def status(self) -> Any:
        """What `tau status` answers through the socket of the socket unit."""
        done = self(*python("main"), "--host", "unix:///run/user/0/tau/tau.sock", "status")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def remove_group(path: str) -> bool:
    """Whether a control group is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_under_systemd_itself(home: Tau, taud: Path) -> None:
    if "TAU_SYSTEMD" not in os.environ:
        pytest.skip("starts a systemd in namespaces of its own; TAU_SYSTEMD=1 does")
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "systemctl"))):
        pytest.skip("needs root, unshare, nsenter and systemd")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make namespaces")
    with Systemd(home, taud) as systemd:
        systemd.systemctl("start", "taud.socket")
        assert systemd.main_pid() == 0
        assert systemd.status()["pid"] == systemd.main_pid()  # the first command has started it
        run_id = begin_waiting_run(home)

        (home.home / "tau.toml").write_text("[daemon]\nlog_level = 'debug'\n")
        before = systemd.main_pid()
        systemd.systemctl("reload", "taud")  # returns when it is ready again
        assert (systemd.main_pid(), systemd.status()["config"]) == (before, str(home.home / "tau.toml"))

        systemd.systemctl("restart", "taud")
        assert systemd.main_pid() not in (0, before)
        assert systemd.status()["slots"]["used"] == 1

        frozen = systemd.main_pid()
        assert systemd("kill", "-STOP", frozen).returncode == 0
        eventually(lambda: systemd.main_pid() not in (0, frozen))  # the watchdog has killed it
        assert systemd.systemctl("show", "--property=NRestarts", "--value", "taud").strip() == "1"
        assert systemd.status()["slots"]["used"] == 1

        systemd.systemctl("stop", "taud")
        assert systemd.main_pid() == 0
        assert not home.socket.exists()
        assert systemd.status()["slots"]["used"] == 1  # its socket is still there, and starts it again
        assert_run_is_whole(home, run_id)
