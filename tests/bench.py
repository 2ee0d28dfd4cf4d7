"""Measures Tau's figures, each against a floor measured in the same run.

    python tests/bench.py [FIGURE ...]

Prints one JSON line per figure and then a table.  Needs an installed `tau` (its console script is timed);
takes under five minutes; leaves nothing behind.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attacks import ATTACKS

import tau

BIN = Path(sys.executable).parent
#: What a run or a command must not inherit from whoever measures.
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("TAU_", "PYTHONDONTWRITEBYTECODE"))}

PIPELINES = """
import os, time
from tau import per_row, pipeline

@pipeline
async def noop(ctx):
    return time.monotonic_ns()

@pipeline
def sleeper(ctx):
    time.sleep(ctx.params["seconds"])

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@pipeline
def steps(ctx):
    began = time.perf_counter()
    for _ in range(1000):
        with ctx.step("s"):
            pass
    per_step = (time.perf_counter() - began) / 1000
    began = time.perf_counter()
    for _ in range(40):
        with ctx.step("fib"):
            fib(10)
    forty = time.perf_counter() - began
    loop = time.perf_counter()
    for _ in range(1000):
        time.perf_counter()
    return {"step_us": per_step * 1e6, "forty_ms": forty * 1e3,
            "floor_us": (time.perf_counter() - loop) * 1e3}

@pipeline
def work(ctx):
    traced, plain = [], []
    for _ in range(5):
        began = time.perf_counter()
        with ctx.step("fib"):
            fib(28)
        traced.append(time.perf_counter() - began)
        began = time.perf_counter()
        fib(28)
        plain.append(time.perf_counter() - began)
    return {"traced_ms": min(traced) * 1e3, "plain_ms": min(plain) * 1e3}

@pipeline
def chatty(ctx):
    lines = ctx.params["lines"]
    began = time.perf_counter()
    for i in range(lines):
        ctx.log(f"line {i} of a run that has much to say")
    logged = time.perf_counter() - began
    began = time.perf_counter()
    with open("lines.txt", "w", buffering=1) as file:
        for i in range(lines):
            file.write(f"line {i} of a run that has much to say\\n")
    return {"logged_ms": logged * 1e3, "written_ms": (time.perf_counter() - began) * 1e3}

@pipeline
def talker(ctx):
    for i in range(10_000):
        ctx.log(f"line {i} of a run that has much to say", number=i)
        if i % 100 == 99:
            time.sleep(0.05)

@pipeline
def blocker(ctx):
    while True:
        pass

def cents(row):
    return {"id": int(row["id"]), "day": row["day"], "store": row["store"],
            "cents": round(float(row["amount"]) * 100)}

@pipeline
def streamed(ctx, path: str):
    rows = ctx.extract(path, stream=True)
    return ctx.load("sqlite:///streamed.db", ctx.transform(rows, [per_row(cents)]), "sales", mode="replace")

@pipeline
def at_once(ctx, path: str):
    import csv, sqlite3  # not above: the start of each run is measured too
    ours, plain = [], []
    for number in range(3):
        began = time.perf_counter()
        with open(path, newline="") as file:
            made = [cents(row) for row in list(csv.DictReader(file))]
        db = sqlite3.connect(f"plain{number}.db")
        with db:
            db.execute("CREATE TABLE sales (id INTEGER, day TEXT, store TEXT, cents INTEGER)")
            db.executemany("INSERT INTO sales VALUES (:id, :day, :store, :cents)", made)
        db.close()
        del made
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        ctx.load(f"sqlite:///ours{number}.db", ctx.transform(ctx.extract(path), [per_row(cents)]), "sales")
        ours.append(time.perf_counter() - began)
    return {"ours_s": min(ours), "plain_s": min(plain)}

@pipeline
async def printer(ctx):
    for i in range(100_000):
        print("a line of text that nobody asked for", i)
"""


class Daemon:
    """A taud in a temporary home, and one connection to it."""

    def __init__(self, home: str, config: str = "") -> None:
        self.home = home
        Path(home, "tau.toml").write_text(config, encoding="utf-8")
        subprocess.run([BIN / "taud", "--home", home, "--detach"], check=True, env=ENVIRON, stdout=subprocess.DEVNULL)
        self.client = tau.Client(home=home)
        source = Path(home, "bench_pipelines.py")
        source.write_text(textwrap.dedent(PIPELINES), encoding="utf-8")
        files = [{"path": source.name, "text": source.read_text(encoding="utf-8")}]
        self.client.call("deploy", {"files": files})

    def run(self, name: str, **params: Any) -> dict[str, Any]:
        """A run's document, when it is over."""
        document = self.client.call("run", {"name": name, "params": params})
        if document["status"] != "success":
            raise RuntimeError(json.dumps(document, indent=1))
        return document

    def stop(self) -> None:
        """The daemon and all runs are gone."""
        self.client.shut_down({"cancel": True})
        self.client.close()


@contextmanager
def daemon(config: str = "") -> Iterator[Daemon]:
    """A fresh daemon for one figure."""
    home = tempfile.mkdtemp(prefix="tau-bench-")
    try:
        running = Daemon(home, config)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def floor_script(code: str) -> float:
    """What a script of ours prints, run by a bare interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, env=ENVIRON, capture_output=True, text=True
    )
    return float(done.stdout)


def percentile(values: list[float], share: float) -> float:
    """The value that *share* of all are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def timed_command(command: list[Any], home: str) -> tuple[float, float]:
    """Wall and CPU milliseconds of a whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRON | {"TAU_HOME": home}, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1e3, cpu * 1e3


def status_command() -> Iterator[dict[str, Any]]:
    """`tau status` as a whole command, in turn with the bare interpreter."""
    with daemon() as running:
        pairs = []
        for _ in range(31):
            ours = timed_command([BIN / "tau", "status"], running.home)
            floor = timed_command([sys.executable, "-c", "pass"], running.home)
            pairs.append((ours, floor))
    for index, kind in ((0, "wall"), (1, "cpu")):
        ours = statistics.median(pair[0][index] for pair in pairs[1:])
        floor = statistics.median(pair[1][index] for pair in pairs[1:])
        yield figure(f"tau status, {kind}", ours, "ms", floor, ours / floor, "<= 3", ours / floor <= 3)


def first_line() -> Iterator[dict[str, Any]]:
    """From the request on an open socket to the first line of user code.

    The floor is the fork of an interpreter that has asyncio loaded, as a run needs it.
    """
    floor = floor_script("""
        import asyncio, os, time
        times = []
        for _ in range(200):
            read, write = os.pipe()
            began = time.monotonic_ns()
            pid = os.fork()
            if not pid:
                os.write(write, b"%d" % time.monotonic_ns())
                os._exit(0)
            times.append((int(os.read(read, 99)) - began) / 1e6)
            os.waitpid(pid, 0); os.close(read); os.close(write)
        print(sorted(times)[100])
    """)
    with daemon() as running:
        times = []
        for _ in range(200):
            began = time.monotonic_ns()
            times.append((running.run("noop")["result"] - began) / 1e6)
    ours = statistics.median(times[20:])
    yield figure("request to first line", ours, "ms", floor, ours / floor, "<= 3", ours / floor <= 3)
    yield figure("request to first line, quiet", ours, "ms", None, None, "<= 3 ms", ours <= 3)


FORKS = """
    import asyncio, os, time
    async def noop(): pass
    def child():
        asyncio.run(noop())
        os._exit(0)
    began, count, live = time.perf_counter(), 600, 0
    for _ in range(count):
        if live == 2:
            os.wait(); live -= 1
        if not os.fork():
            child()
        live += 1
    while live:
        os.wait(); live -= 1
    print(count / (time.perf_counter() - began))
"""


def throughput() -> Iterator[dict[str, Any]]:
    """Durable isolated runs per second, ten at once, in turn with the floor: two forks with asyncio at once."""
    rates, floors = [], []
    with daemon() as running:
        for count in (100, 600, 600, 600):
            floors.append(floor_script(FORKS))
            rates.append(rate_of(running, "noop", count))
    ours, floor = statistics.median(rates[1:]), statistics.median(floors[1:])
    yield figure("runs per second", ours, "/s", floor, ours / floor, ">= 0.5", ours / floor >= 0.5)
    yield figure("runs per second, quiet", ours, "/s", None, None, ">= 300", ours >= 300)


#: What is imported at module level, the modules it needs, the packages of an environment of its own, and options.
IMPORTS = (
    ("import pandas", "pandas", "", ""),
    ("import sqlalchemy, psycopg", "sqlalchemy psycopg", "", ""),
    ("import pyarrow, duckdb", "pyarrow duckdb", "", ""),
    ("import polars", "", "polars", "warm=True"),  # it leaves a thread that its runs can do without
)


def warm_starts() -> Iterator[dict[str, Any]]:
    """From the request to the first line of a pipeline that imports libraries, cold and warm; the floor is a bare one's."""
    for imports, needed, packages, asked in IMPORTS:
        if all(map(importlib.util.find_spec, needed.split())):
            with daemon("[daemon]\nload_timeout_s = 60\n") as running:
                yield from warm_start(running, imports, packages, asked)


def warm_start(running: Daemon, imports: str, packages: str, asked: str) -> Iterator[dict[str, Any]]:
    """The figures of one set of imports."""
    for name, options in (("cold", "warm=False"), ("library", asked)):
        text = f"# /// script\n# dependencies = ['{packages}']\n# ///\n" if packages else ""
        text += f"import time\nfrom tau import pipeline\n{imports}\n@pipeline(name={name!r}, {options})\n"
        text += "async def it(ctx):\n    return time.monotonic_ns()\n"
        running.client.call("deploy", {"files": [{"path": f"{name}.py", "text": text}]})
    title = imports.removeprefix("import ") + " (own environment)" * bool(packages)
    cold = statistics.median(until_first_line(running, "cold") for _ in range(5))
    until_first_line(running, "library")
    until = time.monotonic() + 30
    while (state := running.client.call("show", {"name": "library"})["warm"])["state"] != "warm":
        if time.monotonic() > until or state["state"] == "cold":
            yield figure(f"{title}: stays {state['state']}, {state['why']}", cold, "ms", None, None, "warm", False)
            return
        time.sleep(0.05)
    first, *more = (until_first_line(running, "library") for _ in range(60))
    bare = statistics.median([until_first_line(running, "noop") for _ in range(60)][10:])
    tenth = statistics.median(more[8:])
    yield figure(f"{title}, cold", cold, "ms", bare, cold / bare, "-", True)
    yield figure(f"{title}, first warm", first, "ms", bare, first / bare, "-", True)
    yield figure(f"{title}, tenth warm", tenth, "ms", bare, tenth / bare, "<= 2", tenth / bare <= 2)
    yield figure(f"{title}, sooner", cold / tenth, "times", None, None, ">= 20", cold / tenth >= 20)
    size = state["memory_bytes"] / 1e6
    yield figure(f"{title}, memory", size, "MB", None, None, "-", True)
    if imports == "import pandas":
        rates = {name: [rate_of(running, name) for _ in range(3)] for name in ("library", "noop")}
        ours, floor = (statistics.median(rates[name]) for name in rates)
        yield figure(f"{title}, runs per second", ours, "/s", floor, ours / floor, ">= 0.5", ours / floor >= 0.5)


def until_first_line(running: Daemon, name: str) -> float:
    """Milliseconds from a request to what the run says is now."""
    began = time.monotonic_ns()
    took: float = (running.run(name)["result"] - began) / 1e6
    return took


def rate_of(running: Daemon, name: str, count: int = 300) -> float:
    """Runs per second, ten at once."""
    done, began = running.client.call("status", {})["runs"]["success"], time.perf_counter()
    pipelined(running, count, name)
    while running.client.call("status", {})["runs"]["success"] < done + count:
        time.sleep(0.02)
    return count / (time.perf_counter() - began)


def pipelined(running: Daemon, count: int, name: str) -> list[str]:
    """The ids of *count* runs, asked for in one go and all acknowledged."""
    line = {"jsonrpc": "2.0", "method": "run", "params": {"name": name, "wait": False}}
    ask = b"".join(tau.encode({**line, "id": number}) for number in range(count))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(running.home, "tau.sock"))
        sender = threading.Thread(target=connection.sendall, args=(ask,))
        sender.start()
        with connection.makefile("rb") as answers:
            ids = [json.loads(answers.readline())["result"]["run_id"] for _ in range(count)]
        sender.join()
    return ids


def acknowledgements() -> Iterator[dict[str, Any]]:
    """Durable `run --detach` answers per second on one connection, while all slots are taken."""
    with daemon("[scheduler]\nmax_concurrent = 1\n") as running:
        running.client.call("run", {"name": "sleeper", "params": {"seconds": 60}, "wait": False})
        pipelined(running, 500, "noop")
        began = time.perf_counter()
        pipelined(running, 10_000, "noop")
        rate = 10_000 / (time.perf_counter() - began)
    yield figure("detached runs acknowledged", rate, "/s", None, None, ">= 5000", rate >= 5000)


def from_the_shell() -> Iterator[dict[str, Any]]:
    """`tau run noop`, from the start of the command to the first line of user code."""
    with daemon() as running:
        pairs = []
        for _ in range(31):
            began = time.monotonic_ns()
            done = subprocess.run(
                [BIN / "tau", "run", "noop"], env=ENVIRON | {"TAU_HOME": running.home}, check=True, capture_output=True
            )
            ours = (json.loads(done.stdout)["result"] - began) / 1e6
            pairs.append((ours, timed_command([sys.executable, "-c", "pass"], running.home)[0]))
    ours, floor = (statistics.median(pair[i] for pair in pairs[1:]) for i in (0, 1))
    yield figure("tau run to first line", ours, "ms", floor, ours / floor, "<= 4", ours / floor <= 4)


def steps() -> Iterator[dict[str, Any]]:
    """What a step costs the run."""
    with daemon() as running:
        results = [running.run("steps")["result"] for _ in range(7)]
        best = min(results, key=lambda one: one["step_us"])
        step, floor, forty = best["step_us"], best["floor_us"], min(one["forty_ms"] for one in results)
        worked = [running.run("work")["result"] for _ in range(5)]
        traced, plain = (min(one[name] for one in worked) for name in ("traced_ms", "plain_ms"))
    yield figure("a traced step", step, "us", floor, step / floor, "<= 40 us", step <= 40)
    yield figure("40 steps of fib(10)", forty, "ms", None, None, "<= 5 ms", forty <= 5)
    ratio = traced / plain
    yield figure("long steps against plain Python", traced, "ms", plain, ratio, "<= 1.02", ratio <= 1.02)


def idle() -> Iterator[dict[str, Any]]:
    """Memory and CPU of a daemon that has nothing to do."""
    bare = subprocess.Popen(
        [sys.executable, "-c", "import asyncio, sqlite3, sys; print(flush=True); sys.stdin.read()"],
        env=ENVIRON,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with bare, daemon() as running:
        assert bare.stdout is not None
        bare.stdout.readline()
        running.run("noop")
        time.sleep(11)  # the child that is forked ahead of the next run has gone
        floor = memory(bare.pid)
        pids = [one["pid"] for one in running.client.call("status", {})["processes"]]
        ours = sum(map(memory, pids))
        before, began = sum(map(cpu_seconds, pids)), time.perf_counter()
        time.sleep(5)
        share = (sum(map(cpu_seconds, pids)) - before) / (time.perf_counter() - began) * 100
        bare.terminate()
    yield figure("idle memory (PSS)", ours / 1024, "MiB", floor / 1024, ours / floor, "<= 2", ours / floor <= 2)
    yield figure("idle CPU", share, "% of a core", None, None, "< 0.2", share < 0.2)


def memory(pid: int) -> float:
    """Proportional set size of a process, KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    raise RuntimeError(f"no PSS of {pid}")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def logging() -> Iterator[dict[str, Any]]:
    """A run that logs 100,000 lines, and what the daemon's other clients notice of it."""
    with daemon("[limits]\nlog_lines = 200_000\nlog_bytes = 100_000_000\n") as running:
        results: list[dict[str, Any]] = []
        latencies = meanwhile(running, lambda: results.append(run_apart(running, "chatty", {"lines": 100_000})))
        result = results[0]["result"]
        assert results[0]["trace"]["log_lines"] == 100_000
    ours, floor = result["logged_ms"], result["written_ms"]
    yield figure("100,000 log lines", ours, "ms", floor, ours / floor, "<= 3", ours / floor <= 3)
    p99 = percentile(latencies, 0.99)
    yield figure("status meanwhile, p99", p99, "ms", None, None, "<= 20 ms", p99 <= 20)


def hostile() -> Iterator[dict[str, Any]]:
    """How fast `status` answers while runs misbehave."""
    for name in ("blocker", "printer"):
        with daemon() as running:

            def misbehave(name: str = name, running: Daemon = running) -> None:
                if name == "printer":
                    run_apart(running, name, {})
                    return
                with tau.Client(home=running.home) as other:
                    run = other.call("run", {"name": name, "timeout": 3.0})
                    other.call("cancel", {"run_id": run["run_id"]})

            p99 = percentile(meanwhile(running, misbehave), 0.99)
        yield figure(f"status beside a {name}, p99", p99, "ms", None, None, "<= 20 ms", p99 <= 20)


def questioned() -> Iterator[dict[str, Any]]:
    """How fast `status` answers one caller while another asks long questions, and what the daemon has grown by then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with daemon(f"[daemon]\nport = {port}\n") as running:
        running.run("chatty", lines=10_000)
        run_id = running.run("noop")["run_id"]
        key = Path(running.home, "key").read_text(encoding="utf-8").strip()
        before = resident(running)
        asked = (
            ("ticks", {"expr": "0 0 * 2 1#5", "limit": 1000}, 1, 20),
            ("wait", {"run_id": [run_id] * 1000}, 250, 1),
            ("show", {"name": "noobs"}, 50, 4),
            ("logs", {"name": "chatty", "tail": 10_000}, 50, 3),
        )
        for method, params, requests, peers in asked:

            def ask(line: tuple[str, Any, int, int] = (method, params, requests, peers)) -> None:
                question_from_afar(port, key, *line)

            p99 = percentile(meanwhile(running, ask), 0.99)
            yield figure(f"status beside {requests * peers} {method}, p99", p99, "ms", None, None, "<= 50", p99 <= 50)
        time.sleep(1)
        grown = (resident(running) - before) / 1e6
    yield figure("memory grown by long questions", grown, "MB", None, None, "<= 50 MB", grown <= 50)


def question_from_afar(port: int, key: str, method: str, params: Any, requests: int, peers: int) -> None:
    """Asks for much over a few connections of the key's holder, reads nothing for some seconds, and leaves."""
    line = tau.encode({"id": 1, "method": method, "params": params})
    hello = tau.encode({"id": 0, "method": "hello", "params": {"api_key": key}})
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(peers)]
    for peer in crowd:
        peer.setblocking(False)
        with suppress(BlockingIOError):
            peer.send(hello + line * requests)
    time.sleep(4)
    for peer in crowd:
        peer.close()


#: Seven tabs: each listens to the stream, and asks once a second for what a screen shows.
TABS = """
import http.client, json, sys, threading, time
port, key = sys.argv[1:]

def send(method, path, cookie="", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    headers = {"Origin": f"http://127.0.0.1:{port}", "Cookie": cookie}
    connection.request(method, path, body and json.dumps(body), headers)
    return connection.getresponse()

def listen(cookie):
    for _ in send("GET", "/stream", cookie):
        pass

def look(cookie):
    while True:
        send("POST", "/ask", cookie, {"calls": [["status", {}], ["watch", {}], ["runs", {"limit": 50}]]}).read()
        time.sleep(1)

for _ in range(7):
    cookie = send("POST", "/login", body={"key": key}).headers["Set-Cookie"].partition(";")[0]
    for work in (listen, look):
        threading.Thread(target=work, args=(cookie,), daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


def watched() -> Iterator[dict[str, Any]]:
    """How fast `status` answers while seven tabs of the dashboard are open, 50 runs are live and others come and go."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with daemon(f"[daemon]\nport = {port}\n[scheduler]\nmax_concurrent = 60\n") as running:
        key = Path(running.home, "key").read_text(encoding="utf-8").strip()
        for _ in range(50):
            running.client.call("run", {"name": "sleeper", "params": {"seconds": 300}, "wait": False})
        tabs = subprocess.Popen(
            [sys.executable, "-c", TABS, str(port), key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRON
        )
        with tabs:
            assert tabs.stdout is not None
            tabs.stdout.readline()
            p99 = percentile(meanwhile(running, lambda: [run_apart(running, "noop", {}) for _ in range(100)]), 0.99)
            tabs.terminate()
    yield figure("status beside 7 tabs, p99", p99, "ms", None, None, "<= 20 ms", p99 <= 20)


def attacked() -> Iterator[dict[str, Any]]:
    """How fast the network's port answers others while it is attacked, and what the daemon has grown by afterwards."""
    for scheme in ("tcp", "tls"):
        with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            config = f"[daemon]\nport = {port}\n"
            if scheme == "tls":
                cert, key = certificate(folder)
                config += f'tls_cert = "{cert}"\ntls_key = "{key}"\n'
                os.environ["TAU_CA_FILE"] = cert
            with daemon(config) as running:
                yield from under_attack(running, scheme, port)


def under_attack(running: Daemon, scheme: str, port: int) -> Iterator[dict[str, Any]]:
    """Latencies over one connection that is open, and over a new one for each question."""
    before = resident(running)
    old, new, failed = [], [], 0
    with tau.Client(f"{scheme}://127.0.0.1:{port}", running.home) as legitimate:
        legitimate.call("status", {})
        for name in ATTACKS:
            attacker = subprocess.Popen([sys.executable, Path(__file__).parent / "attacks.py", name, str(port)])
            while attacker.poll() is None:
                old.append(timed(lambda: legitimate.call("status", {})))
                try:
                    new.append(timed(lambda: ask_anew(scheme, port, running.home)))
                except tau.TauError:
                    failed += 1
                time.sleep(0.005)
    grown = (resident(running) - before) / 1e6
    for kind, times in (("an open", old), ("a new", new)):
        p99 = percentile(times, 0.99)
        yield figure(f"{scheme} attacked: {kind} connection, p99", p99, "ms", None, None, "<= 50 ms", p99 <= 50)
    share = 100 * failed / max(len(new) + failed, 1)
    yield figure(f"{scheme} attacked: connections refused", share, "%", None, None, "0 %", failed == 0)
    yield figure(f"{scheme} attacked: memory grown", grown, "MB", None, None, "<= 100 MB", grown <= 100)


def ask_anew(scheme: str, port: int, home: str) -> None:
    """One question over a connection of its own."""
    with tau.Client(f"{scheme}://127.0.0.1:{port}", home) as client:
        client.call("status", {})


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that something took."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def resident(running: Daemon) -> int:
    """Bytes of memory that the daemon has."""
    pid = running.client.call("status", {})["pid"]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def certificate(folder: str) -> tuple[str, str]:
    """A certificate for loopback that signs itself, and its key."""
    cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", *kind, *about, "-keyout", key, "-out", cert], check=True, stderr=subprocess.DEVNULL
    )
    return cert, key


def run_apart(running: Daemon, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """A run's document, over a connection of its own."""
    with tau.Client(home=running.home) as other:
        return other.call("run", {"name": name, "params": params})


STATUS: list[tuple[str, dict[str, Any]]] = [("status", {})]


def meanwhile(
    running: Daemon, work: Callable[[], object], questions: list[tuple[str, dict[str, Any]]] = STATUS
) -> list[float]:
    """Milliseconds that questions took, one after the other, while *work* was done elsewhere."""
    worker = threading.Thread(target=work)
    worker.start()
    times = []
    while worker.is_alive():
        method, params = questions[len(times) % len(questions)]
        began = time.perf_counter()
        running.client.call(method, params)
        times.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.005)
    worker.join()
    return times


def rows() -> Iterator[dict[str, Any]]:
    """A million rows from CSV through a function of each into SQLite: memory as a stream, time all at once."""
    with tempfile.TemporaryDirectory() as folder, daemon() as running:
        path = os.path.join(folder, "sales.csv")
        with open(path, "w", encoding="utf-8") as file:
            file.write("id,day,store,amount,note\n")
            for i in range(1_000_000):
                file.write(f"{i},2026-01-{i % 28 + 1:02},store {i % 97},{i % 1000}.{i % 100:02},note {i}\n")
        streamed = run_apart(running, "streamed", {"path": path})
        timed = run_apart(running, "at_once", {"path": path})["result"]
    assert streamed["result"] == 1_000_000, streamed
    peak = streamed["resources"]["max_rss_bytes"] / 1e6
    yield figure("1,000,000 rows as a stream", peak, "MB", None, None, "<= 150 MB", peak <= 150)
    ratio = timed["ours_s"] / timed["plain_s"]
    met = ratio <= 1.5
    yield figure("1,000,000 rows at once", timed["ours_s"], "s", timed["plain_s"], ratio, "<= 1.5", met)


def million() -> Iterator[dict[str, Any]]:
    """Questions to a daemon that remembers a million runs."""
    count = 1_000_000
    with daemon() as running:
        running.run("noop")
        running.client.shut_down({})
        running.client.close()
        fill(os.path.join(running.home, "tau.db"), count)
        began = time.perf_counter()
        restarted = Daemon(running.home)
        ready = time.perf_counter() - began
        running.client = restarted.client
        some = running.client.call("runs", {"name": "noop", "limit": 50})["runs"]
        questions = {
            "inspect": [{"run_id": run["run_id"]} for run in some],
            "runs": [{"name": "noop"}, {"name": "noop", "status": "failed"}, {}],
            "list": [{}],
            "errors": [{"all": True}, {}],
            "status": [{}],
            "why": [{"name": "noop"}],
        }
        for method, asked in questions.items():
            times = []
            for number in range(400):
                began = time.perf_counter()
                running.client.call(method, asked[number % len(asked)])
                times.append((time.perf_counter() - began) * 1e3)
            p99 = percentile(times, 0.99)
            yield figure(f"1,000,000 runs: {method}, p99", p99, "ms", None, None, "<= 5 ms", p99 <= 5)
        yield figure("1,000,000 runs: start", ready * 1e3, "ms", None, None, "<= 1000 ms", ready <= 1)
        yield from halve(running, [(method, one) for method, asked in questions.items() for one in asked[:3]])


def halve(running: Daemon, questions: list[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The older half of a million runs is removed: how fast, and how long the slowest answer takes meanwhile."""
    (newest,) = running.client.call("runs", {"name": "noop", "limit": 1})["runs"]
    age = time.time() - (tau.read_id(newest["run_id"]) >> 25) / 1000 + 500
    answers: list[dict[str, Any]] = []

    def prune() -> None:
        with tau.Client(home=running.home) as other:
            answers.append(other.call("prune", {"older_than": age}))

    began = time.perf_counter()
    times = meanwhile(running, prune, questions)
    rate = answers[0]["runs"] / (time.perf_counter() - began)
    if not 490_000 < answers[0]["runs"] < 510_000:
        raise RuntimeError(json.dumps(answers[0]))
    yield figure("1,000,000 runs: prune of half", rate, "/s", None, None, "-", True)
    slowest, p99 = max(times), percentile(times, 0.99)
    yield figure("answers meanwhile, p99", p99, "ms", None, None, "<= 50 ms", p99 <= 50)
    yield figure("answers meanwhile, slowest", slowest, "ms", None, None, "<= 50 ms", slowest <= 50)
    share = answers[0]["bytes_after"] / answers[0]["bytes_before"]
    yield figure("the file after it", 100 * share, "%", None, None, "<= 60 %", share <= 0.6)


def fill(path: str, count: int, apart_ms: int = 1) -> None:
    """Finished runs, as many as *count*, as if they had been run."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    (run,) = db.execute("SELECT max(run_id) FROM runs").fetchone()
    last = tau.read_id(run)
    names = [name for (name,) in db.execute("SELECT name FROM pragma_table_info('runs')")]
    row = dict(zip(names, db.execute("SELECT * FROM runs WHERE run_id = ?", (run,)).fetchone(), strict=True))
    error = json.dumps(tau.bare_error("exception", "ValueError", "as planned"))

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(count, 0, -1):
            bad = number % 50 == 0
            status, text = ("failed", error) if bad else ("success", None)
            yield {
                **row,
                "run_id": tau.spell_id(last - (number * apart_ms << 25)),
                "finished_at": tau.rfc3339(((last >> 25) - number * apart_ms) / 1000),
                "key": None,
                "status": status,
                "error": text,
            }

    with db:
        marks = ", ".join(f":{name}" for name in names)
        db.executemany(f"INSERT INTO runs VALUES ({marks})", rows())
    db.close()


def ten_thousand() -> Iterator[dict[str, Any]]:
    """10,000 schedules that are due in the same second: when all are queued, and `status` meanwhile."""
    count = 10_000
    with daemon("[scheduler]\nmax_concurrent = 2\n") as running:
        running.client.shut_down({})
        running.client.close()
        due = int(time.time()) + 6
        crowd(os.path.join(running.home, "tau.db"), count, due)
        running.client = Daemon(running.home, "[scheduler]\nmax_concurrent = 2\n").client
        time.sleep(max(due - 0.5 - time.time(), 0))
        times, runs = [], 0
        while runs < count and time.time() < due + 60:
            began = time.perf_counter()
            runs = sum(running.client.call("status", {})["runs"].values())
            times.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.002)
        took = time.time() - due
    yield figure("10,000 schedules due: all queued", took, "s", None, None, "<= 2 s", took <= 2)
    p99 = percentile(times, 0.99)
    yield figure("status meanwhile, p99", p99, "ms", None, None, "<= 100 ms", p99 <= 100)


def crowd(path: str, count: int, due: int) -> None:
    """Pipelines like `noop`, as many as *count*, whose schedules (of a hundred kinds) are due at one instant."""
    db = sqlite3.connect(path)
    moment = time.gmtime(due)
    with db:
        for table, column in (("pipelines", "name"), ("versions", "pipeline"), ("schedules", "pipeline")):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != column]
            row = db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {column} = 'noop'").fetchone()
            rows = ((f"crowd-{number:05}", *row) for number in range(count))
            marks = ", ".join("?" * (len(columns) + 1))
            db.executemany(f"INSERT INTO {table} ({column}, {', '.join(columns)}) VALUES ({marks})", rows)
        times = {"watermark_at": tau.rfc3339(due - 1), "next_at": tau.rfc3339(due), "due_at": tau.rfc3339(due)}
        for kind in range(100):
            second = f"{moment.tm_sec},{(moment.tm_sec + kind) % 60}"
            cron = f"{moment.tm_min} {moment.tm_hour} 1-31 1-{12 - kind % 2} * {second}"
            options = json.dumps(tau.SCHEDULE_OPTIONS | {"cron": cron})
            values = {**times, "options": options, "kind": kind}
            db.execute(
                "UPDATE schedules SET options = :options, watermark_at = :watermark_at, next_at = :next_at,"
                " due_at = :due_at WHERE pipeline LIKE 'crowd-%' AND substr(pipeline, 10) + 0 = :kind",
                values,
            )
    db.close()


def every_second() -> Iterator[dict[str, Any]]:
    """An interval of one second for a minute: how late user code begins."""
    with daemon() as running:
        running.client.call("schedule", {"name": "noop", "every": 1})
        time.sleep(61)
        running.client.call("schedule", {"name": "noop", "disable": True})
        runs = running.client.call("runs", {"name": "noop", "limit": 60})["runs"]
    late = [(instant(run["started_at"]) - instant(run["scheduled_for"])) * 1e3 for run in runs]
    whole = len(runs) == 60 and len({run["scheduled_for"] for run in runs}) == 60
    median, p99 = statistics.median(late), percentile(late, 0.99)
    yield figure("--every 1: lateness, median", median, "ms", None, None, "< 20 ms, 60 runs", whole and median < 20)
    yield figure("--every 1: lateness, p99", p99, "ms", None, None, "< 100 ms", p99 < 100)


#: Says in a page when its picture was complete, and for how long it did not draw.
WATCHER = """
new MutationObserver(() => {
  if (!window.complete && document.querySelector("[data-key='Latest events'] tbody tr"))
    requestAnimationFrame(() => { window.complete ??= performance.now(); });
}).observe(document, {childList: true, subtree: true});
let last = performance.now();
window.pause = 0;
requestAnimationFrame(function beat(at) { window.pause = Math.max(window.pause, at - last); last = at; requestAnimationFrame(beat); });
"""


EVENTS = "[data-key='Latest events'] tbody tr >> nth=0"


def dashboard() -> Iterator[dict[str, Any]]:
    """The dashboard in headless Chromium: 100,000 runs of 200 pipelines, 50 of them live, and 10,000 lines followed."""
    from playwright.sync_api import Page, sync_playwright  # not for the other figures

    port, found = free_port(), dict[str, Any]()

    def look() -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            context = browser.new_context()
            context.add_init_script(WATCHER)
            page = context.new_page()
            with tau.Client(home=running.home) as client:
                page.goto(client.call("open", {})["address"])
            page.locator(EVENTS).wait_for()
            found["loads"] = [load(page) for _ in range(9)]
            requests = "performance.getEntriesByType('resource').filter((e) => e.name.endsWith('ask')).length"
            found["asked"] = page.evaluate(requests)
            others = [context.new_page() for _ in range(6)]
            for other in others:
                other.goto(f"http://127.0.0.1:{port}/")
            page.bring_to_front()
            with tau.Client(home=running.home) as client:
                run = client.call("run", {"name": "talker", "wait": False})["run_id"]
            page.goto(f"http://127.0.0.1:{port}/#/run/{run}")
            page.locator(".log p").first.wait_for()
            page.evaluate("window.pause = 0")
            last = "document.querySelector('.log').lastElementChild.lastElementChild.textContent"
            while "line 9999 of" not in page.evaluate(last):  # to look for it in all lines would take more time
                page.wait_for_timeout(200)
            found["pause"] = page.evaluate("window.pause")
            browser.close()

    def load(page: Page) -> float:
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(EVENTS).wait_for()
        drawn = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(window.complete))))"
        return float(page.evaluate(drawn))

    with daemon(f"[scheduler]\nmax_concurrent = 52\n[daemon]\nport = {port}\n") as running:
        running.run("noop")
        running.client.call("schedule", {"name": "noop", "expr": "0 6 * * *"})
        running.client.shut_down({})
        running.client.close()
        store = os.path.join(running.home, "tau.db")
        fill(store, 100_000, 12_000)
        crowd(store, 196, int(time.time()) + 86_400)
        spread(store)
        subprocess.run([BIN / "taud", "--home", running.home, "--detach"], check=True, stdout=subprocess.DEVNULL)
        running.client = tau.Client(home=running.home)
        for _ in range(50):
            running.client.call("run", {"name": "sleeper", "params": {"seconds": 600}, "wait": False})
        times = meanwhile(running, look)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            size = len(answer.read())
    slow, p99 = statistics.median(found["loads"]), percentile(times, 0.99)
    yield figure("dashboard: overview complete", slow, "ms", None, None, "<= 300 ms", slow <= 300)
    yield figure("dashboard: its requests", found["asked"], "", None, None, "1", found["asked"] == 1)
    yield figure("dashboard: the page", size / 1e3, "kB", None, None, "< 60 kB", size < 60_000)
    yield figure(
        "10,000 lines followed: longest frame", found["pause"], "ms", None, None, "<= 100", found["pause"] <= 100
    )
    yield figure("status meanwhile, p99", p99, "ms", None, None, "<= 20 ms", p99 <= 20)


def spread(path: str) -> None:
    """Gives the runs of `noop` to the pipelines like it, in turn."""
    db = sqlite3.connect(path)
    with db:
        ids = [run_id for (run_id,) in db.execute("SELECT run_id FROM runs")]
        names = [name for (name,) in db.execute("SELECT name FROM pipelines WHERE name LIKE 'crowd-%'")]
        pairs = ((names[number % len(names)], run_id) for number, run_id in enumerate(ids))
        db.executemany("UPDATE runs SET pipeline = ? WHERE run_id = ?", pairs)
    db.close()


def free_port() -> int:
    """A TCP port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def instant(text: str) -> float:
    """A time of the wire as seconds since the epoch."""
    return datetime.datetime.fromisoformat(text).timestamp()


def figure(
    name: str, value: float, unit: str, floor: float | None, ratio: float | None, goal: str, met: bool
) -> dict[str, Any]:
    """One figure as a JSON line."""
    line = {"figure": name, "value": value, "unit": unit, "floor": floor, "ratio": ratio, "goal": goal, "met": met}
    rounded = {key: round(item, 3) if isinstance(item, float) else item for key, item in line.items()}
    print(json.dumps(rounded), flush=True)
    return rounded


FIGURES = (
    status_command,
    first_line,
    throughput,
    warm_starts,
    acknowledgements,
    from_the_shell,
    steps,
    idle,
    logging,
    hostile,
    questioned,
    watched,
    attacked,
    rows,
    million,
    ten_thousand,
    every_second,
    dashboard,
)


def main(wanted: list[str]) -> int:
    """Measures all figures, or those named; 0 if every goal is met."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    lines = [line for one in FIGURES if not wanted or one.__name__ in wanted for line in one()]
    print(f"\n{'figure':<36} {'value':>12} {'floor':>10} {'ratio':>7}  goal")
    for line in lines:
        value = f"{line['value']:,.2f} {line['unit'][:4]}"
        floor = "" if line["floor"] is None else f"{line['floor']:,.2f}"
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}x"
        mark = "" if line["met"] else "   MISSED"
        print(f"{line['figure']:<36} {value:>12} {floor:>10} {ratio:>7}  {line['goal']}{mark}")
    print(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
