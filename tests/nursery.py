"""A process that has `tau` imported and forks for each `tau` and `taud` that a test starts.

An interpreter of its own for each would cost most of the tests' time.  What is forked has the descriptors, the
directory, the variables and the words that it is given, and ends as the console script would.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: A request is one message: its words and variables, then the four descriptors.
MESSAGE_BYTES = 1 << 20
#: What an interpreter reads when it starts: a process that is given these gets one of its own.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_")


class Nursery:
    """The other end: starts the process, asks it for children."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        self.control, self.environ = ours, environ
        words = [sys.executable, "-P", "-W", "error", __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(words, env=environ, pass_fds=[theirs.fileno()])
        theirs.close()

    def can_start(self, environ: Mapping[str, str]) -> bool:
        """Whether an interpreter with these variables would be like the one that is there."""
        changed = {name for name in environ.keys() | self.environ.keys() if environ.get(name) != self.environ.get(name)}
        return not any(name.startswith(READ_AT_START) for name in changed)

    def start(
        self, function: str, words: Sequence[str], files: Sequence[int], *, cwd: Path, environ: Mapping[str, str]
    ) -> Child:
        """`tau.function()`, or a program that is given instead, in a process of its own with these descriptors."""
        reading, writing = os.pipe()
        try:
            request = {"function": function, "words": [*words], "cwd": str(cwd), "environ": dict(environ)}
            socket.send_fds(self.control, [json.dumps(request).encode()], [*files, writing])
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return Child(reading)

    def close(self) -> None:
        """The process ends; its children do not."""
        self.control.close()
        self.process.wait()


class Child:
    """A process that the nursery has started."""

    def __init__(self, reading: int) -> None:
        self.report = open(reading, "rb", buffering=0)  # noqa: SIM115 (closed by poll)
        self.code: int | None = None
        self.lock = threading.Lock()  # one thread may wait while another asks
        self.pid = int.from_bytes(self.report.read(4), "little")
        assert self.pid, "the nursery has ended"

    def wait(self, timeout: float) -> int:
        """Its exit code, negative for a signal; TimeoutError if it does not end in time, and then it is killed."""
        with contextlib.suppress(ValueError):  # another thread has read how it ended
            select.select([self.report], [], [], timeout)
        if (code := self.poll()) is None:
            os.kill(self.pid, 9)
            self.report.close()
            raise TimeoutError(f"process {self.pid} has not ended after {timeout} s")
        return code

    def poll(self) -> int | None:
        """Its exit code, or None while it lives."""
        with self.lock:
            if self.code is None and select.select([self.report], [], [], 0)[0]:
                self.code = int.from_bytes(self.report.read(4), "little", signed=True)
                self.report.close()
            return self.code

    def send_signal(self, number: int) -> None:
        """Signals it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def tend(control: socket.socket) -> None:
    """Forks when asked to, and reports how each child ended, until nobody asks any more."""
    living: dict[int, tuple[int, int]] = {}  # pidfd → pid, where to report
    while True:
        for ready in select.select([control, *living], [], [])[0]:
            if ready is not control:
                pid, report = living.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(report, code.to_bytes(4, "little", signed=True))
                os.close(ready)
                os.close(report)
                continue
            message, files, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                become(json.loads(message), files)
            for number in files[:3]:
                os.close(number)
            os.write(files[3], pid.to_bytes(4, "little"))
            living[os.pidfd_open(pid)] = pid, files[3]


def become(request: dict[str, Any], files: Sequence[int]) -> None:
    """Is the process that was asked for, to its end."""
    code = 120
    try:
        stand_on(dict(enumerate(files[:3])))
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        time.tzset()
        import tau

        name_process(request["environ"].get("TAU_HOME", ""))
        tau.start_python = functools.partial(fork_part, tau.start_python)  # type: ignore[assignment]
        code = finish(request["function"], request["words"])
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def stand_on(files: Mapping[int, int]) -> None:
    """These are the standard descriptors, there are no others, and the streams are as a new interpreter has them."""
    for number, file in files.items():
        os.dup2(file, number)
    os.closerange(3, 1024)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def finish(function: str, words: Sequence[str]) -> int:
    """The exit code of `tau.function()`, or of a program's text; it may also end this process by itself."""
    import tau

    sys.argv = ["-c", *words]
    if function not in ("main", "fork_server"):
        getattr(tau, "fork_server")  # noqa: B009 (its part is loaded now, for the process that is forked later)
    try:
        code: Any = getattr(tau, function)() if function.isidentifier() else exec(function, {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


def process_name(home: str) -> str:
    """What the processes of a home are called that are forked: the kernel shows no variables of theirs."""
    return "tau" + hashlib.sha256(home.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def name_process(home: str) -> None:
    Path("/proc/self/comm").write_text(process_name(home))


def fork_part(
    start_python: Callable[..., int],
    function: str,
    words: Sequence[str],
    files: Mapping[int, int],
    environ: Mapping[str, str],
    *python: str,
) -> int:
    """The daemon that `taud --detach` asks for, or its fork server, as if it were a new interpreter."""
    import tau

    if function not in ("taud", "fork_server"):
        return start_python(function, words, files, environ, *python)
    with warnings.catch_warnings(action="ignore"):  # a daemon has threads; its fork server is to have none
        if pid := os.fork():
            return pid
    code = 120
    try:
        if function == "fork_server":
            tau.start_python = start_python
            # To copy fewer pages pays off for a daemon that starts more runs than one of a test does.
            tau.settle_pages = functools.partial(tau.warm_up, 1)
            sys.warnoptions.clear()  # what a run does is not ours: -W error is for `tau` and `taud`
            warnings.resetwarnings()
            warnings.simplefilter("ignore")
        stand_on({0: os.open(os.devnull, os.O_RDWR), 1: 1, 2: 2} | dict(files))
        os.environ.clear()
        os.environ.update(environ)
        code = finish(function, words)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


#: What `tau` and `taud` import when they need it.
MODULES = (
    *("argparse", "asyncio", "base64", "bisect", "croniter", "ctypes", "datetime", "difflib", "fcntl", "fnmatch"),
    *("hashlib", "hmac", "importlib.util", "inspect", "logging", "queue", "random", "re", "resource", "shlex"),
    *("shutil", "signal", "sqlite3", "struct", "tempfile", "threading", "tomllib", "urllib.parse", "uuid", "zlib"),
    *("zoneinfo", "tau"),
)

if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    import tau

    for part in [*tau.PACKED]:  # else each child would; that each loads what it needs is shown by test_packed
        tau.load(part)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with socket.socket(fileno=int(sys.argv[1])) as end:
        tend(end)
