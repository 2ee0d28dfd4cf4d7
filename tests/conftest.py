"""The user: a real daemon in a temporary home, driven by the real command line and by raw lines."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import answers
import hypothesis
import pytest
from nursery import Child, Nursery, process_name

import tau as module

REPOSITORY = Path(__file__).parent.parent
for part in [*module.PACKED]:  # tests look at, and replace, what is anywhere
    module.load(part)
#: How many faults the tests make.  From 100 on, as in CI, they take every place and whole samples.
FAULTS = int(os.environ.get("TAU_FAULTS", "12"))
THOROUGH = FAULTS >= 100
#: Where random tests begin.
SEED = int(os.environ.get("TAU_SEED", "1"))
#: Neither a slow machine nor luck decides: examples are the same each time, unless TAU_SEED asks for others.
hypothesis.settings.register_profile(
    "tau", deadline=None, derandomize="TAU_SEED" not in os.environ, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
hypothesis.settings.load_profile("tau")
TAXIS = REPOSITORY.parent / "shared" / "data" / "taxis.csv"
#: What tests must not inherit from whoever runs them.
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("TAU_", "XDG_", "NO_COLOR"))}
ENVIRON["PYTHONPATH"] = str(REPOSITORY)
ENVIRON.pop("PYTHONDONTWRITEBYTECODE", None)


def python(function: str) -> list[str]:
    """The command that calls a function of tau, as the console scripts do."""
    return [sys.executable, "-P", "-W", "error", "-c", f"import sys, tau; sys.exit(tau.{function}())"]


#: How long to wait for what must come.  No test that passes takes it: a slow or busy machine is not to fail one.
PATIENCE_S = 120.0


def eventually(question: Callable[[], Any], patience: float = PATIENCE_S) -> Any:
    """The first true answer to a question; fails after *patience* seconds."""
    until = time.monotonic() + patience
    while True:
        if answer := question():
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"never came true: {question}")
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Done:
    """A finished command."""

    def __init__(self, exit: int, out: str, err: str) -> None:
        self.exit, self.out, self.err = exit, out, err

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON documents on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> Any:
        """The error on stderr."""
        return json.loads(self.err)["error"]


def pytest_configure(config: pytest.Config) -> None:
    """Packs the module's cache, which the first daemon would do otherwise, by starting anew in the midst of a test."""
    if not hasattr(config, "workerinput"):
        subprocess.run(python("pack"), env=ENVIRON, check=False)
        if config.args_source is pytest.Config.ArgsSource.ARGS:  # what is asked for by name is meant
            os.environ.setdefault("TAU_SLOW", "1")
        if os.environ.get("TAU_SLOW") == "write":
            config.pluginmanager.register(Stopwatch())


#: The functions whose tests take longest, a fifth of all tests and three quarters of the time: they are left out unless
#: TAU_SLOW=1.  TAU_SLOW=write runs all and writes the list anew, as it is on this machine.
SLOW = REPOSITORY / "tests" / "data" / "slow.txt"
#: From this many seconds a test on, on average.
SLOW_S = 0.5


class Stopwatch:
    """Writes down which functions have slow tests."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}  # function → test → seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test was set up, called, or torn down."""
        tests = self.seconds.setdefault(report.nodeid.partition("[")[0], {})
        tests[report.nodeid] = tests.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """All have ended."""
        slow = sorted(name for name, tests in self.seconds.items() if sum(tests.values()) >= SLOW_S * len(tests))
        SLOW.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three workers a core: half of a test's time is a wait for processes."""
    return 3 * (os.cpu_count() or 1)


#: Files whose tests need one Python alone.  What they put to the test is no Python's: the source as text and its
#: documents; who may do what; the shells, disk, memory, browser, service manager, other machines; what a database
#: keeps and shows.  Syntax, signals, asyncio, sqlite3, tracebacks, audit events, sockets and TLS are tried everywhere.
ONE_PYTHON = (
    *("test_backup", "test_bounds", "test_completion", "test_doctor", "test_documents", "test_executors"),
    *("test_fairness", "test_files", "test_hostile", "test_isolation", "test_keys", "test_namespace_ends"),
    *("test_namespaces", "test_quotas", "test_readme", "test_retention", "test_service", "test_settings"),
    *("test_dashboard", "test_kinds", "test_page", "test_peek", "test_shape", "test_warehouses", "test_words"),
    *("test_catalogue", "test_commits", "test_deaths", "test_failing_disk", "test_full_disk", "test_one_writer"),
    *("test_out_of_memory", "test_power_loss"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what one Python is enough for; leaves out slow tests and those of libraries, unless they are asked for."""
    slow = {*SLOW.read_text(encoding="utf-8").split()} if not os.environ.get("TAU_SLOW") else ()
    left: list[pytest.Item] = []
    chosen: list[pytest.Item] = []
    for item in items:
        if item.path.stem in ONE_PYTHON:
            item.add_marker("one_python")
        is_left = item.nodeid.partition("[")[0] in slow
        is_left |= not os.environ.get("TAU_LIBRARIES") and item.get_closest_marker("libraries") is not None
        (left if is_left else chosen).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker has tests that stand together, whose fixtures it makes once; one that has none left takes another's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection() -> None:
    """What is collected stays: to look through it for garbage, again and again, costs a fifth of the collection."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@functools.cache
def nursery() -> Nursery:
    """The process that forks for the commands of this one's tests."""
    made = Nursery(ENVIRON)
    atexit.register(made.close)
    return made


def run(
    function: str, *words: Any, cwd: Path, environ: dict[str, str], stdin: str = "", timeout: float = PATIENCE_S
) -> Done:  # fmt: skip
    """Runs a function of tau as its console script would, to the end."""
    command = list(map(str, words))
    if not nursery().can_start(environ):
        done = subprocess.run(
            [*python(function), *command], env=environ, cwd=cwd, input=stdin, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        files = [given.fileno(), out.fileno(), err.fileno()]
        code = nursery().start(function, command, files, cwd=cwd, environ=environ).wait(timeout)
        for file in (out, err):
            file.seek(0)
        return Done(code, out.read().decode(), err.read().decode())


def forked(made: Tau, program: str, *words: Any) -> tuple[Child, IO[str]]:
    """A daemon of a home that a program serves in its own way, in a process of its own; and its stdout."""
    reading, writing = os.pipe()
    with open(os.devnull, "r+b") as null:
        files = [null.fileno(), writing, null.fileno()]
        child = nursery().start(program, [*map(str, words)], files, cwd=made.work, environ=made.environ)
    os.close(writing)
    return child, open(reading)


def ways(variable: str, every: Sequence[str], metafunc: pytest.Metafunc, is_everywhere: bool = True) -> list[str]:
    """The ways in which a test is run: the first, unless it is one that is run everywhere and a variable says so.

    For `all` these are all of them, for `turns` one of them: another one for other tests.
    """
    asked = os.environ.get(variable) if is_everywhere else None
    turn = zlib.crc32(metafunc.function.__name__.encode()) % len(every) if asked == "turns" else 0
    return [*every] if asked == "all" else [every[turn]]


#: How `tau` reaches the daemon in tests of the command line: see ways().
TRANSPORTS = ("unix", "tcp", "tls", "http")
COMMAND_LINE = (
    *("test_command_line", "test_operations", "test_terminal", "test_attempts", "test_examples"),
    *("test_completion", "test_signatures", "test_environment_file"),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the command line are run over every transport that is asked for."""
    if "tau" in metafunc.fixturenames:
        chosen = ways("TAU_TRANSPORTS", TRANSPORTS, metafunc, metafunc.module.__name__ in COMMAND_LINE)
        metafunc.parametrize("shared", chosen, indirect=True, scope="session")


def free_port() -> int:
    """A TCP port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate for loopback that signs itself, and its key; skips where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = folder / "cert.pem", folder / "key.pem"
    about = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=" + ",".join(names or ("IP:127.0.0.1", "DNS:localhost")),
    ]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(["openssl", "req", *kind, "-keyout", key, "-out", cert, *about], check=True, capture_output=True)
    return cert, key


class Tau:
    """A home, its daemon and its command line."""

    def __init__(self, home: Path, config: str = "", transport: str = "unix") -> None:
        self.home = home
        self.transport, self.port = transport, 0
        self.socket = home / "tau.sock"
        self.work = home.parent / (home.name + "-work")
        self.work.mkdir()
        home.mkdir(mode=0o700)
        if config:
            (home / "tau.toml").write_text(textwrap.dedent(config), encoding="utf-8")
        self.environ = ENVIRON | {"TAU_HOME": str(home), "HOME": str(self.work)}
        if transport != "unix":
            self.listen()

    def listen(self) -> None:
        """The daemon will listen on a TCP port, and `tau` reaches it there."""
        self.port = free_port()
        self.environ["TAU_HOST"] = f"{self.transport}://127.0.0.1:{self.port}"
        if self.transport in ("tls", "https"):
            cert, key = make_certificate(self.home)
            self.environ["TAU_CA_FILE"] = str(cert)
            path = self.home / "tau.toml"
            text = path.read_text() if path.exists() else ""
            lines = f'[daemon]\ntls_cert = "{cert}"\ntls_key = "{key}"\n'
            path.write_text(text.replace("[daemon]\n", lines) if "[daemon]\n" in text else lines + text)

    def command(self, *words: Any, stdin: str = "", timeout: float = PATIENCE_S, **environ: str) -> Done:
        """Runs `tau` to its end, whatever that is."""
        done = run("main", *words, stdin=stdin, timeout=timeout, cwd=self.work, environ=self.environ | environ)
        answers.validate_output(words, done.out, done.err)
        return done

    def __call__(self, *words: Any, exit: int = 0, **more: Any) -> Any:
        """The document that `tau` prints, or the error if a failure is expected."""
        done = self.command(*words, **more)
        assert done.exit == exit, (words, done.exit, done.out, done.err)
        return done.error if done.err else done.json

    def start(self, *words: str) -> Any:
        """`taud --detach`; what it prints."""
        if self.port:
            words = (*words, "--port", str(self.port))
        done = run("taud", "--detach", *words, cwd=self.work, environ=self.environ)
        assert done.exit == 0, done.err
        answers.validate("taud", done.json)
        return done.json

    def write(self, text: str, name: str = "pipelines.py") -> Path:
        """A file in the work directory."""
        path = self.work / name
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    def deploy(self, text: str, name: str = "pipelines.py", *words: str, exit: int = 0) -> Any:
        """Deploys source text."""
        return self("deploy", self.write(text, name), *words, exit=exit)

    def deploy_it(self, text: str) -> Any:
        """Deploys text whose function `it` is to be the pipeline; over the wire, which is quicker than a process."""
        decorated = re.sub(r"^(async )?def it\(", r"@pipeline\n\g<0>", textwrap.dedent(text), flags=re.MULTILINE)
        path = self.write("from tau import pipeline\n" + decorated)
        return self.call(
            "deploy", files=[{"path": path.name, "text": path.read_text(encoding="utf-8")}], take_over=True
        )

    @property
    def go(self) -> Path:
        """The file that the runs of deploy_held() wait for."""
        return self.work / "go"

    def deploy_held(self, before: str = "pass", after: str = "pass") -> None:
        """Deploys an `it` whose runs do one line, wait for the file `go`, and do another."""
        self.go.unlink(missing_ok=True)
        wait = f"while not os.path.exists({str(self.go)!r}):\n        time.sleep(0.01)"
        self.deploy_it(f"import os, time\ndef it(ctx):\n    {before}\n    {wait}\n    {after}\n")

    def run_it(self, text: str, *words: str, exit: int = 0) -> Any:
        """Deploys such text and runs it; its document."""
        self.deploy_it(text)
        done = self.command("run", "it", *words)
        assert done.exit == exit, done.err
        return done.json

    def connect(self) -> Wire:
        """A raw connection to the daemon."""
        return Wire(str(self.socket))

    def call(self, method: str, **params: Any) -> Any:
        """The result of one request over a connection of its own."""
        with self.connect() as wire:
            return wire.call(method, **params)

    def pid(self) -> int:
        """The daemon's pid, from its lock."""
        return int(json.loads((self.home / "tau.lock").read_text())["pid"])

    def processes(self) -> list[int]:
        """The daemon, its fork server and the live runs."""
        return [one["pid"] for one in self.call("status")["processes"]]

    def kill(self) -> int:
        """kill -9 of the daemon alone; its pid."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid))
        return pid

    def stop(self) -> None:
        """No process of this home is left, and nothing of it lies about."""
        try:
            with module.Client(home=str(self.home)) as client:
                client.shut_down({"cancel": True})
        except module.Unavailable:
            pass  # nobody serves it
        eventually(lambda: not self.remains())
        shutil.rmtree(self.home)
        shutil.rmtree(self.work)

    def remains(self) -> list[int]:
        """Every process that has this home in its environment, and its daemon, which may have been forked."""
        mark, name = f"TAU_HOME={self.home}\0".encode(), process_name(str(self.home))
        try:
            found = [pid for pid in [self.pid()] if is_running(pid)]
        except (OSError, ValueError, KeyError):
            found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes() or name == (path / "comm").read_text().strip():
                    found.append(int(path.name))
            except (OSError, ValueError):
                continue
        return found


class Wire:
    """A raw connection: lines out, lines in."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)  # the path may be too long for an address
        try:
            self.socket.connect(f"/proc/self/fd/{descriptor}/{os.path.basename(path)}")
        except OSError:
            self.socket.close()
            raise
        finally:
            os.close(descriptor)
        self.file = self.socket.makefile("rb")
        self.asked: dict[Any, Any] = {}  # requests by id

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, line: Any) -> None:
        """Sends bytes as they are, anything else as a line of JSON."""
        if isinstance(line, dict):
            self.asked[repr(line.get("id"))] = line
        self.socket.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    def receive(self) -> Any:
        """The next document; None at the end."""
        line = self.file.readline()
        message = json.loads(line) if line else None
        answers.validate_message(message, self.asked)
        return message

    def ask(self, line: Any) -> Any:
        """Sends a line and returns the next."""
        self.send(line)
        return self.receive()

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request."""
        answer = self.ask({"id": 1, "method": method, "params": params})
        assert "result" in answer, answer
        return answer["result"]


@contextmanager
def served(made: Tau, *words: str, code: str = "", files: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground, after some *code* has been run in its process; with so many descriptors at most."""
    program = f"import resource, sys, tau\ntau.taud  # loads what *code* may change\n{code}\n"
    if files:
        program += f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n"
    command = [*python("taud")[:-1], program + "sys.exit(tau.taud())", *words]
    if made.port:
        command += ["--port", str(made.port)]
    with open(made.work / "taud.log", "w") as log:
        daemon = subprocess.Popen(
            command, env=made.environ, cwd=made.work, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert daemon.stdout is not None
        try:
            assert daemon.stdout.readline(), (made.work / "taud.log").read_text()
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait(PATIENCE_S)
            daemon.stdout.close()


def make_home(config: str = "", transport: str = "unix") -> Tau:
    """A home for a test, not too deep for a socket."""
    return Tau(Path(tempfile.mkdtemp(prefix="tau-test-")) / "home", config, transport)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Iterator[Tau]:
    """One daemon for all tests that leave it as they found it, reached in one of the ways there are."""
    config = "[daemon]\nstop_grace_s = 0.5\nload_timeout_s = 6.0\n"
    yield from started(make_home(config, getattr(request, "param", "unix")))


@pytest.fixture
def tau(shared: Tau) -> Iterator[Tau]:
    """A running daemon and its command line: tau("run", "hello") answers the parsed JSON.

    What a test has deployed is undeployed: another test may deploy the name from another file.  Its runs stay.
    """
    before = deployed(shared)
    yield shared
    for name in deployed(shared) - before:
        shared.call("undeploy", name=name)


def deployed(tau: Tau) -> set[str]:
    return {row["name"] for row in tau.call("list", limit=1000)["pipelines"]}


@pytest.fixture
def fresh() -> Iterator[Tau]:
    """A running daemon that the test may kill."""
    yield from started(make_home("[daemon]\nstop_grace_s = 0.5\n"))


@pytest.fixture
def home() -> Iterator[Tau]:
    """A home whose daemon the test starts itself."""
    made = make_home()
    yield made
    if made.home.exists():
        made.stop()
    made.home.parent.rmdir()


def started(made: Tau) -> Iterator[Tau]:
    """A started daemon, stopped afterwards; for fixtures."""
    with running(made):
        yield made


@contextmanager
def running(made: Tau) -> Iterator[Tau]:
    """A started daemon, stopped afterwards, also when the test fails."""
    made.start()
    try:
        yield made
    finally:
        made.stop()
        made.home.parent.rmdir()


class Context(module.PipelineContext):
    """A context without a daemon: what it is told it keeps for itself."""

    def __init__(self, folder: Path, /, **connections: str) -> None:
        self.journal = folder.with_name(f"{folder.name}.journal")
        self.journal.touch()
        job = {"run_id": "r", "pipeline": "it", "version": 1, "attempt": 1, "params": {}, "directory": str(folder)}
        job |= {"secrets": str(folder / "secrets")}
        job |= {"connections": {name: {"url": url} for name, url in connections.items()}}
        journal = module.Journal(str(self.journal), {"log_lines": 1000, "log_bytes": 1 << 20})
        super().__init__(module.Attempt(job, journal))

    def records(self, kind: str) -> list[Any]:
        """The records of a kind in the journal."""
        lines = self.journal.read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["t"] == kind]

    def close(self) -> None:
        """Nothing is open afterwards."""
        self._attempt.journal.close()
        for engine in self._around.engines.values():
            engine.dispose()


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A context in this process, in a directory of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = Context(folder)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL, one for all tests; skips where there can be none."""
    from postgres import running

    with running() as url:
        yield url
