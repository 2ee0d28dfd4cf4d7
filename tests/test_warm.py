"""Warm starts: libraries are imported once, nothing of a run is seen by the next, and whatever happens, runs go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, is_running
from shelf import WORTH_S, Shelf, descriptors, how, logged, shelf, strays
from test_environments import header, needs, wheel

import tau as module

#: A pipeline that imports the library `lib` and does some lines.
USES = "import os, time\nfrom tau import pipeline\nimport lib\n@pipeline\ndef it(ctx):\n    return lib.VERSION\n"
#: One whose runs wait for a file.
HELD = """
import os, time
from tau import pipeline
import {library}

@pipeline(name="{name}")
def it(ctx, go: str):
    ctx.log("in")
    while not os.path.exists(go):
        time.sleep(0.01)
    return {library}.VERSION
"""


@pytest.fixture
def stand() -> Iterator[Shelf]:
    """A daemon with a shelf, on which the library `lib` stands."""
    with shelf() as made:
        made.install("lib")
        yield made.start()


def test_the_first_run_is_cold_and_the_second_warm(stand: Shelf) -> None:
    stand.install("lib", "import time\ntime.sleep(0.1)\n")
    stand.deploy(USES)
    nothing = {"why": None, "import_ms": None, "memory_bytes": None, "pid": None}
    assert stand.state() == {"state": "none", "imports": ["lib"], **nothing}
    first = stand.run()
    assert (first["result"], how(first), first["resources"]["import_saved_ms"]) == ("1.0", "cold", None)
    state = stand.becomes("warm")
    assert state["import_ms"] >= 100
    assert state["memory_bytes"] > 0
    assert is_running(state["pid"])
    second = stand.run()
    assert (second["result"], how(second)) == ("1.0", "warm")
    assert second["resources"]["import_saved_ms"] >= 100
    (listed,) = stand.tau.call("status")["warm"]
    assert (listed["state"], listed["pid"], listed["imports"]) == ("warm", state["pid"], ["lib"])


def test_two_pipelines_with_the_same_imports_share_a_process(stand: Shelf) -> None:
    stand.deploy(USES)
    stand.deploy(USES.replace("def it(", "def other("), "other.py")
    pid = stand.warm()["pid"]
    assert stand.state("other")["pid"] == pid
    assert how(stand.run("other")) == "warm"
    stand.deploy(USES + "# another version\n")
    assert (how(stand.run()), stand.state()["pid"]) == ("warm", pid)


def test_a_pipeline_can_opt_out_and_one_without_libraries_needs_none(stand: Shelf) -> None:
    stand.deploy(USES.replace("@pipeline", "@pipeline(warm=False)"))
    stand.deploy(USES.replace("import lib\n", "").replace("lib.VERSION", "1").replace("it(", "bare("), "bare.py")
    for _ in range(2):
        assert (how(stand.run()), how(stand.run("bare"))) == ("cold", "cold")
    assert (stand.state()["state"], stand.state("bare")["state"]) == ("off", "none")
    assert stand.tau.call("status")["warm"] == []


def test_a_library_that_is_imported_in_a_function_or_not_at_all_changes_nothing(stand: Shelf) -> None:
    stand.install("more", "import lib\n")
    stand.deploy(
        "import lib\nfrom tau import pipeline\ntry:\n    import absent\nexcept ImportError:\n    absent = None\n"
        "@pipeline\ndef it(ctx):\n    import more\n    return [absent, more.lib is lib]\n"
    )
    stand.warm()
    for _ in range(2):
        run = stand.run()
        assert (how(run), run["result"]) == ("warm", [None, True])


def test_a_pipeline_with_an_environment_of_its_own_starts_warm_too(home: Tau) -> None:
    stand = Shelf(home).start()
    text = header(needs(wheel(home.work, "1.0", f"import time\ntime.sleep({WORTH_S})\n")))
    text += "import os, sys\nfrom tau import pipeline\nimport tinything\n@pipeline\ndef it(ctx):\n"
    text += (
        "    return [tinything.__file__, sys.prefix, sys.executable, os.environ['VIRTUAL_ENV'], os.environ['PATH']]\n"
    )
    stand.deploy(text)
    cold = stand.run()
    stand.becomes("warm")
    warm = stand.run()
    assert (how(cold), how(warm)) == ("cold", "warm")
    assert cold["result"] == warm["result"]
    assert "/environments/" in warm["result"][0]
    (listed,) = [row for row in home.call("status")["warm"] if row["imports"]]
    assert listed["environment"] in warm["result"][1]


# --- What a run leaves behind ---------------------------------------------------------------

#: All that a run can change in its process; `seen` is what it finds before it changes it.
LEAKY = """
import atexit, codecs, decimal, gc, json, locale, logging, multiprocessing, os, random, resource, secrets, signal
import socket, ssl, sys, tempfile, textwrap, threading, time, uuid, warnings
import lib
import beside
from tau import pipeline

NOW = time.monotonic_ns()
COUNT = [0]
OWN = [name for name in sys.modules if name in ("it", "beside", "later")]

def codec():
    try:
        return codecs.lookup("taucodec").name
    except LookupError:
        return None

@pipeline
def it(ctx):
    same = {
        "a counter of the file": COUNT[0],
        "a counter of a file beside it": beside.COUNT[0],
        "a counter of the library": lib.COUNT[0],
        "a library's function": lib.answer(),
        "a function of the standard library": textwrap.shorten("a b", 1, placeholder=""),
        "a registered codec": codec(),
        "a file left open": sorted(os.listdir("/proc/self/fd")),
        "a name in the library": hasattr(lib, "FILE"),
        "os.environ": sorted(os.environ),
        "sys.path": [path for path in sys.path if "/versions/" not in path],
        "sys.argv": [os.path.basename(word) for word in sys.argv],
        "sys.path_hooks": len(sys.path_hooks),
        "sys.meta_path": len(sys.meta_path),
        "modules of the file": OWN,
        "a module imported in a function": "later" in sys.modules,
        "filters of warnings": len(warnings.filters),
        "a handler of a signal": str(signal.getsignal(signal.SIGUSR1)),
        "handlers of logging": [type(one).__name__ for one in logging.getLogger().handlers],
        "the level of logging": logging.getLogger("lib").level,
        "the locale": locale.setlocale(locale.LC_ALL),
        "the precision of decimals": decimal.getcontext().prec,
        "the timeout of sockets": socket.getdefaulttimeout(),
        "the depth of recursion": sys.getrecursionlimit(),
        "the collector": gc.isenabled(),
        "the umask": oct(os.umask(0o77)),
        "the directory": os.path.basename(os.getcwd()),
        "the priority": os.nice(0),
        "a limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "threads": threading.active_count(),
        "the first thread": threading.main_thread() is threading.current_thread(),
        "children": multiprocessing.active_children(),
        "the name of the process": multiprocessing.current_process().name,
        "the main module": sys.modules["__main__"].__name__,
        "a trace": (sys.gettrace(), threading.gettrace()) == (None, None),
        "the hook of errors": sys.excepthook is sys.__excepthook__,
    }
    new = {
        "a time of the file": NOW,
        "a process": os.getpid(),
        "random.random": random.random(),
        "random.getrandbits": random.getrandbits(64),
        "random.SystemRandom": random.SystemRandom().random(),
        "uuid1": uuid.uuid1().hex,
        "uuid4": uuid.uuid4().hex,
        "secrets": secrets.token_hex(),
        "ssl": ssl.RAND_bytes(16).hex(),
        "urandom": os.urandom(16).hex(),
        "a temporary name": next(tempfile._get_candidate_names()),
    }
    COUNT[0] += 1
    beside.COUNT[0] += 1
    lib.COUNT[0] += 1
    lib.answer = lambda: 43
    textwrap.shorten = lambda *_, **__: "patched"
    codecs.register(lambda name: codecs.lookup("utf-8") if name == "taucodec" else None)
    lib.FILE = open("kept", "w")
    os.environ["LEAK"] = "1"
    os.environ.pop("HOME", None)
    sys.path.append("/leak")
    sys.path_hooks.append(lambda path: None)
    sys.meta_path.append(sys.meta_path[-1])
    import later
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("lib").setLevel(10)
    decimal.getcontext().prec = 5
    socket.setdefaulttimeout(1)
    sys.setrecursionlimit(500)
    gc.disable()
    os.chdir("/")
    os.nice(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    sys.excepthook = print
    random.seed(7)
    atexit.register(print, "at exit")
    return {"same": same, "new": new}
"""
#: What LEAKY looks at.
SAME = [line.split('"')[1] for line in LEAKY.partition("new = {")[0].splitlines() if line.startswith('        "')]
NEW = [line.split('"')[1] for line in LEAKY.partition("new = {")[2].splitlines() if line.startswith('        "')]


@pytest.fixture(scope="module")
def seen() -> Iterator[list[Any]]:
    """Four runs that change whatever they can, one cold and three warm, two of those at once."""
    with shelf() as stand:
        stand.install("lib", "COUNT = [0]\ndef answer():\n    return 42\n")
        stand.install("later")
        stand.start().deploy(LEAKY, "it.py", ("beside.py", "COUNT = [0]\n"))
        runs = [stand.run()]
        stand.becomes("warm")
        runs += [stand.run(), *stand.wait(stand.begin(count=2))]
        assert [run["status"] for run in runs] == ["success"] * 4, [run["error"] for run in runs]
        assert [how(run) for run in runs] == ["cold", "warm", "warm", "warm"]
        assert [logged(stand.tau, run) for run in runs] == [["at exit"]] * 4
        yield [run["result"] for run in runs]


@pytest.mark.parametrize("thing", SAME)
def test_what_a_run_changes_is_not_seen_by_the_next(seen: list[Any], thing: str) -> None:
    found = [result["same"][thing] for result in seen]
    assert found == found[:1] * len(found)


@pytest.mark.parametrize("thing", NEW)
def test_what_must_be_new_in_each_run_is_new(seen: list[Any], thing: str) -> None:
    found = [result["new"][thing] for result in seen]
    assert len({*found}) == len(found)


def test_a_library_that_seeds_as_numpy_does_is_seeded_anew_in_each_run(stand: Shelf) -> None:
    folder = stand.folder / "numpy"
    folder.mkdir()
    (folder / "__init__.py").write_text("from numpy import random\n")
    (folder / "random.py").write_text(
        "import random as real\nstate = real.Random(1)\ndef seed(number=None):\n    state.seed(number)\n"
    )
    stand.install("lib", "import numpy\n")
    stand.deploy(USES.replace("return lib.VERSION", "return lib.numpy.random.state.random()"))
    stand.warm()
    runs = [stand.run(), *stand.wait(stand.begin(count=3))]
    assert {how(run) for run in runs} == {"warm"}
    assert len({run["result"] for run in runs}) == len(runs)


# --- What a library does at its import ------------------------------------------------------

#: What makes a set cold: the library's text, and a word of the reason.
COLD = {
    "starts a thread": ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n", "thread"),
    "starts a thread of C": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nnumber = ctypes.c_ulong()\n"
        "assert not libc.pthread_create(ctypes.byref(number), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)\n",
        "thread",
    ),
    "keeps a file open": ("import os, tempfile\nFILE = tempfile.TemporaryFile()\n", "an open /"),
    "keeps a socket open": ("import socket\nSOCKET = socket.socketpair()\n", "socket"),
    "keeps a pipe open": ("import os\nPIPE = os.pipe()\n", "pipe"),
    "leaves a child": ("import os, signal\nif os.fork() == 0:\n    signal.pause()\n    os._exit(0)\n", "process"),
    "leaves a program": ("import subprocess\nsubprocess.Popen(['sleep', '1000'])\n", "process"),
}  # fmt: skip


@pytest.mark.parametrize("case", COLD)
def test_a_library_that_keeps_what_a_fork_would_tear_stays_cold(stand: Shelf, case: str) -> None:
    text, word = COLD[case]
    stand.install("lib", text)
    stand.deploy(USES)
    assert how(stand.run()) == "cold"
    state = stand.becomes("cold")
    assert word in state["why"]
    assert state["pid"] is None
    run = stand.run()
    assert (run["status"], run["result"], how(run)) == ("success", "1.0", "cold")
    eventually(lambda: not strays(stand.tau))


#: What is done with by the end of the import.
WARM = {
    "a file is closed again": "import tempfile\nwith tempfile.TemporaryFile() as file:\n    file.write(b'x')\n",
    "a child has ended": "import os\npid = os.fork()\nif not pid:\n    os._exit(0)\nos.waitpid(pid, 0)\n",
    "a program has ended": "import subprocess\nsubprocess.run(['true'], check=True)\n",
    "a thread has ended": "import threading\none = threading.Thread(target=print)\none.start()\none.join()\n",
    "a pool has ended": "import concurrent.futures\nwith concurrent.futures.ThreadPoolExecutor(2) as pool:\n    list(pool.map(abs, range(9)))\n",
    "a thread ends before a fork": (
        "import os, threading\nover = threading.Event()\none = threading.Thread(target=over.wait)\none.start()\n"
        "os.register_at_fork(before=lambda: (over.set(), one.join()))\n"
    ),
}


@pytest.mark.parametrize("case", WARM)
def test_a_library_that_cleans_up_is_warm(stand: Shelf, case: str) -> None:
    stand.install("lib", WARM[case])
    stand.deploy(USES)
    stand.warm()
    run = stand.run()
    assert (run["status"], run["result"], how(run)) == ("success", "1.0", "warm"), run["error"]


def test_what_a_library_prints_at_its_import_is_in_each_log(stand: Shelf) -> None:
    stand.install("lib", """
        import os, sys, warnings
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.write(1, b"to descriptor 1\\n")
        warnings.warn("this library is old", stacklevel=1)
        sys.stdout.write("half ")
    """)  # fmt: skip
    stand.deploy(USES.replace("return", "print('a line'); return"))
    cold = stand.run()
    stand.becomes("warm")
    warm = [stand.run(), stand.run()]
    assert [how(run) for run in warm] == ["warm"] * 2
    told = [sorted(logged(stand.tau, run)) for run in (cold, *warm)]
    assert told[1] == told[2] == told[0]
    assert {"to stdout", "to stderr", "to descriptor 1"} < {*told[0]}


def test_a_library_that_keeps_stdout_writes_to_each_runs_own_log(stand: Shelf) -> None:
    stand.install("lib", """
        import atexit, logging, sys
        OUT = sys.stdout
        LOG = logging.getLogger("lib")
        LOG.addHandler(logging.StreamHandler())
        atexit.register(lambda: print("bye", file=OUT))
    """)  # fmt: skip
    body = "print(ctx.run_id, file=lib.OUT); lib.LOG.warning('w ' + ctx.run_id); return"
    stand.deploy(USES.replace("return", body))
    cold = stand.run()
    stand.becomes("warm")
    runs = [cold, stand.run(), *stand.wait(stand.begin(count=3))]
    assert {how(run) for run in runs[1:]} == {"warm"}
    for run in runs:
        lines = logged(stand.tau, run)
        assert lines.count(run["run_id"]) == 1
        assert "w " + run["run_id"] in lines
        assert lines.count("bye") == 1
        assert not [other for other in runs if other is not run and other["run_id"] in "\n".join(lines)]


def test_a_library_that_hangs_when_it_is_imported_anew_leaves_its_runs_cold(stand: Shelf) -> None:
    mark = stand.tau.work / "hang"
    stand.install("lib", f"import os\nwhile os.path.exists({str(mark)!r}) and 'TAU_RUN_ID' not in os.environ:\n    time.sleep(0.01)\n")  # fmt: skip
    stand.deploy(USES)
    mark.touch()
    assert how(stand.run()) == "cold"
    pid = eventually(lambda: stand.becomes("starting")["pid"])
    assert [how(stand.run()) for _ in range(2)] == ["cold", "cold"]
    process = module.WarmProcess((None, "", ("lib",), False), Any)
    process.state, process.asked_at = "importing", time.monotonic() - module.IMPORT_S - 1
    assert "took longer than" in (process.look(True) or "")
    os.kill(pid, signal.SIGKILL)
    assert "died" in stand.becomes("cold")["why"]
    assert how(stand.run()) == "cold"


ENDS = {
    "raises": ("raise ValueError('not twice')", "not twice"),
    "exits": ("raise SystemExit(3)", ""),
    "exits at once": ("import os\n    os._exit(3)", ""),
    "is killed": ("import os\n    os.kill(os.getpid(), 9)", ""),
    "recurses": ("exec('def f(): f()\\nf()')", ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_library_that_ends_when_it_is_imported_anew_leaves_its_runs_cold(stand: Shelf, case: str) -> None:
    text, word = ENDS[case]
    mark = stand.tau.work / "end"
    stand.install(
        "lib", f"import os\nif os.path.exists({str(mark)!r}) and 'TAU_RUN_ID' not in os.environ:\n    {text}\n"
    )
    stand.deploy(USES)
    mark.touch()
    assert how(stand.run()) == "cold"
    state = stand.becomes("cold")
    assert state["why"]
    assert word in state["why"]
    run = stand.run()
    assert (run["result"], how(run)) == ("1.0", "cold")
    assert stand.tau.call("status")["task_failures"] == []


def test_a_library_that_hangs_always_cannot_be_deployed() -> None:
    with shelf("load_timeout_s = 0.5\n") as stand:
        stand.install("lib", "import time\nwhile True:\n    time.sleep(0.01)\n")
        stand.start()
        error = stand.tau("deploy", stand.tau.write(USES), exit=2)
        assert error["code"] == "load_failed"


#: What a file does before it imports a library, and a word of the reason.
BEFORE = {
    "os.environ": ("os.environ['LIB'] = '1'", "line 2"),
    "os.putenv": ("os.putenv('LIB', '1'); os.environ['LIB'] = '1'", "line 2"),
    "sys.path": ("import sys; sys.path.insert(0, '/elsewhere')", "line 2"),
    "a module of its own": ("import sys, textwrap as stub; stub.MINE = True; sys.modules['helper'] = stub", ""),
    "a patch": ("import textwrap; textwrap.MINE = True", ""),
    "a patch of a library": ("import helper; helper.MINE = True", ""),
    "a filter of warnings": ("import warnings; warnings.simplefilter('ignore')", ""),
}


@pytest.mark.parametrize("case", BEFORE)
def test_what_a_file_prepares_before_an_import_is_there_in_each_run(stand: Shelf, case: str) -> None:
    text, word = BEFORE[case]
    stand.install("helper")
    stand.install("lib", """
        import os, sys, textwrap, warnings
        import helper
        SEEN = [os.environ.get("LIB"), "/elsewhere" in sys.path, hasattr(textwrap, "MINE"), hasattr(helper, "MINE")]
        SEEN.append(len(warnings.filters))
    """)  # fmt: skip
    stand.deploy("import os\n" + text + "\n" + USES.replace("lib.VERSION", "lib.SEEN"))
    first = stand.run()
    assert first["status"] == "success", first["error"]
    state = stand.becomes("warm", "cold") if stand.state()["state"] != "none" else stand.state()
    assert word in (state["why"] or "")
    second = stand.run()
    assert second["result"] == first["result"]


def test_a_file_that_changes_the_environment_after_its_imports_is_warm(stand: Shelf) -> None:
    stand.deploy(USES.replace("@pipeline", "os.environ['AFTER'] = '1'\n@pipeline"))
    stand.warm()
    assert how(stand.run()) == "warm"


def test_a_module_beside_the_file_stays_before_a_library_of_its_name(stand: Shelf) -> None:
    stand.install("outer", "import lib\nSEEN = lib.VERSION\n")
    text = USES.replace("import lib\n", "import outer, lib\n").replace("lib.VERSION", "[lib.VERSION, outer.SEEN]")
    stand.deploy(text, "it.py", ("lib.py", "VERSION = 'beside'\n"))
    stand.deploy(text.replace("def it(", "def plain("), "plain.py")
    for name in ("it", "plain"):
        stand.run(name)
        stand.becomes("warm", "cold", name=name)
    assert stand.run("plain")["result"] == ["1.0", "1.0"]
    for _ in range(2):
        assert stand.run()["result"] == ["beside", "beside"]
    assert stand.run("plain")["result"] == ["1.0", "1.0"]


def test_a_module_that_is_named_as_a_library_of_another_pipeline_is_its_own(stand: Shelf) -> None:
    stand.install("both")
    stand.deploy("import lib, both\n" + USES)
    stand.warm()
    text = "import lib\nfrom tau import pipeline\n@pipeline\ndef other(ctx):\n    import both\n    return both.MINE\n"
    stand.deploy(text, "other.py", ("both.py", "MINE = True\n"))
    for _ in range(2):
        assert stand.run("other")["result"] is True
    stand.becomes("warm", name="other")
    assert stand.run("other")["result"] is True


# --- What happens to a warm process ---------------------------------------------------------


def hold(stand: Shelf, name: str = "it", library: str = "lib") -> None:
    """Deploys a pipeline whose runs wait, and makes it warm."""
    stand.deploy(HELD.format(name=name, library=library), f"{name}.py")
    stand.tau.go.touch()
    stand.warm(name, go=str(stand.tau.go))
    stand.tau.go.unlink()


def begin(stand: Shelf, name: str = "it", count: int = 1) -> list[str]:
    """Runs that wait, and have begun to."""
    ids = stand.begin(name, count, go=str(stand.tau.go))
    for one in ids:
        eventually(lambda one=one: stand.tau.call("logs", run_id=one)["lines"])
    return ids


def let_go(stand: Shelf, ids: list[str]) -> list[Any]:
    stand.tau.go.touch()
    return stand.wait(ids)


def test_a_killed_warm_process_harms_no_run_and_is_replaced(stand: Shelf) -> None:
    hold(stand)
    pid = stand.state()["pid"]
    ids = begin(stand, count=3)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    ids += begin(stand)
    runs = let_go(stand, ids)
    assert [(run["status"], run["result"]) for run in runs] == [("success", "1.0")] * 4
    assert [how(run) for run in runs[:3]] == ["warm"] * 3
    assert stand.becomes("warm")["pid"] != pid
    assert how(stand.run(go=str(stand.tau.go))) == "warm"
    assert stand.tau.call("status")["task_failures"] == []


def test_a_warm_process_that_is_stopped_delays_no_run_for_ever(stand: Shelf) -> None:
    """SIGSTOP is what a machine that swaps looks like."""
    stand.deploy(USES)
    pid = stand.warm()["pid"]
    os.kill(pid, signal.SIGSTOP)
    ids = stand.begin(count=2)
    try:
        eventually(lambda: stand.tau.call("status")["runs"]["success"] == 3, 20)
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)
    assert [run["status"] for run in stand.wait(ids)] == ["success"] * 2


def test_a_killed_fork_server_takes_its_warm_processes_along(stand: Shelf) -> None:
    stand.deploy(USES)
    pid = stand.warm()["pid"]
    server = next(one["pid"] for one in stand.tau.call("status")["processes"] if one["role"] == "fork server")
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    assert stand.run()["result"] == "1.0"
    stand.becomes("warm")
    assert how(stand.run()) == "warm"


def test_a_daemon_that_is_killed_finds_the_end_of_warm_runs_and_leaves_no_process(stand: Shelf) -> None:
    hold(stand)
    ids = begin(stand, count=2)
    stand.tau.kill()
    stand.tau.start()
    assert [(run["status"], how(run)) for run in let_go(stand, ids)] == [("success", "warm")] * 2
    again = stand.run(go=str(stand.tau.go))
    assert (again["status"], how(again)) == ("success", "cold")
    stand.becomes("warm")


HUNGRY = """
import lib, os
from tau import pipeline

@pipeline(memory="600M")
def it(ctx):
    kept = []
    while ctx.params.get("hungry"):
        kept.append(b"x" * (8 << 20))
    return lib.VERSION
"""


def test_a_warm_run_without_memory_fails_alone(stand: Shelf) -> None:
    stand.deploy(HUNGRY)
    pid = stand.warm()["pid"]
    run = stand.run(hungry=True)
    assert (run["status"], how(run)) == ("failed", "warm")
    assert run["error"]["type"] == "MemoryError" or "out of memory" in run["error"]["message"]
    assert stand.state()["pid"] == pid
    assert how(stand.run()) == "warm"


def test_a_warm_run_is_killed_cancelled_and_timed_out_as_a_cold_one(stand: Shelf) -> None:
    hold(stand)
    pid = stand.state()["pid"]
    killed, cancelled, late = begin(stand, count=3)
    processes = stand.tau.call("status")["processes"]
    os.kill(next(one["pid"] for one in processes if one.get("run_id") == killed), signal.SIGKILL)
    stand.tau.call("cancel", run_id=cancelled)
    text = HELD.format(name="late", library="lib")
    stand.deploy(text.replace('name="late"', 'name="late", timeout=0.3'), "late.py")
    (timed,) = stand.begin("late", go=str(stand.tau.go))
    runs = stand.wait([killed, cancelled, timed])
    assert [run["status"] for run in runs] == ["failed", "cancelled", "timed_out"]
    assert (runs[0]["error"]["kind"], runs[0]["resources"]["signal"]) == ("died", 9)
    assert [how(run) for run in runs] == ["warm"] * 3
    assert let_go(stand, [late])[0]["status"] == "success"
    assert stand.state()["pid"] == pid


def test_what_a_warm_run_leaves_behind_ends_with_it(stand: Shelf) -> None:
    stand.deploy("""
        import lib, os, subprocess
        from tau import pipeline

        @pipeline
        def it(ctx):
            plain = subprocess.Popen(["sleep", "1000"])
            apart = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!"], stdout=subprocess.PIPE)
            return [plain.pid, int(apart.stdout.readline()), os.getppid()]
    """)
    stand.warm()
    run = stand.run()
    assert how(run) == "warm"
    *left, above = run["result"]
    eventually(lambda: not any(map(is_running, left)))
    servers = [one["pid"] for one in stand.tau.call("status")["processes"] if one["role"] == "fork server"]
    assert [above] == servers
    assert is_running(stand.state()["pid"])


def test_an_error_in_a_warm_run_looks_as_in_a_cold_one(stand: Shelf) -> None:
    stand.install("lib", "def fail(number):\n    return 1 / number\n")
    stand.deploy(USES.replace("return lib.VERSION", "number = 0\n    ctx.params.get('fail') and lib.fail(number)"))
    cold = stand.run(fail=True)
    if stand.state()["state"] != "warm":
        stand.becomes("warm")
    warm = stand.run(fail=True)
    assert (how(cold), how(warm)) == ("cold", "warm")
    assert cold["error"] == warm["error"]


# --- Environments change --------------------------------------------------------------------


def test_an_upgrade_of_a_library_is_seen_by_the_next_run_and_not_by_live_ones(stand: Shelf) -> None:
    hold(stand)
    before = stand.state()["pid"]
    ids = begin(stand, count=2)
    stand.install("lib", version="2.0")
    stand.tau.go.touch()
    new = stand.run(go=str(stand.tau.go))
    assert (new["status"], new["result"]) == ("success", "2.0")
    assert [(run["status"], run["result"]) for run in stand.wait(ids)] == [("success", "1.0")] * 2
    stand.becomes("warm")
    again = stand.run(go=str(stand.tau.go))
    assert (again["result"], how(again)) == ("2.0", "warm")
    eventually(lambda: not is_running(before))


def test_a_library_that_is_gone_is_missed_by_the_next_run(stand: Shelf) -> None:
    stand.deploy(USES)
    stand.warm()
    (stand.folder / "lib.py").unlink()
    for path in stand.folder.glob("lib-*/*"):
        path.unlink()
    (stand.folder / "lib-1.0.dist-info").rmdir()
    run = stand.run()
    assert run["status"] == "failed"
    assert run["error"]["type"] == "ModuleNotFoundError"
    stand.install("lib", version="3.0")
    assert stand.run()["result"] == "3.0"


# --- Bounds ---------------------------------------------------------------------------------


def set_config(stand: Shelf, text: str) -> None:
    """Changes the daemon's settings while it runs."""
    (stand.tau.home / "tau.toml").write_text("[daemon]\nstop_grace_s = 0.5\n" + text)
    os.kill(stand.tau.pid(), signal.SIGHUP)


def several(stand: Shelf, *names: str) -> None:
    """Pipelines with a library each."""
    for name in names:
        stand.install(f"lib_{name}")
        stand.deploy(USES.replace("lib", f"lib_{name}").replace("def it(", f"def {name}("), f"{name}.py")


def test_the_least_recently_used_goes_first() -> None:
    with shelf("warm_processes = 2\n") as stand:
        stand.start()
        several(stand, "a", "b", "c")
        pids = {name: stand.warm(name)["pid"] for name in "ab"}
        assert how(stand.run("a")) == "warm"
        stand.warm("c")
        assert [stand.becomes("none", name="b")["pid"], stand.state("a")["pid"]] == [None, pids["a"]]
        eventually(lambda: not is_running(pids["b"]))
        assert len(stand.tau.call("status")["warm"]) == 2
        assert how(stand.run("b")) == "cold"
        stand.becomes("warm", name="b")


def test_one_with_a_live_run_stays() -> None:
    with shelf("warm_processes = 1\n") as stand:
        stand.install("lib")
        stand.start()
        hold(stand)
        pid = stand.state()["pid"]
        ids = begin(stand)
        several(stand, "a")
        assert how(stand.run("a")) == "cold"
        assert (how(stand.run("a")), stand.state("a")["state"]) == ("cold", "none")
        assert is_running(pid)
        assert stand.state()["pid"] == pid
        assert let_go(stand, ids)[0]["status"] == "success"
        assert how(stand.run("a")) == "cold"
        stand.becomes("warm", name="a")
        eventually(lambda: not is_running(pid))


def test_one_that_is_idle_for_long_goes() -> None:
    with shelf("warm_idle_s = 0.3\n") as stand:
        stand.install("lib")
        stand.start()
        stand.deploy(USES)
        assert how(stand.run()) == "cold"
        stand.becomes("warm", "none")
        stand.becomes("none")
        eventually(lambda: not stand.tau.call("status")["warm"])
        assert how(stand.run()) == "cold"


def test_together_they_stay_below_their_bound_of_memory() -> None:
    with shelf("warm_bytes = 60_000_000\n") as stand:
        for name in "abc":
            stand.install(f"lib_{name}", f"KEPT = b'{name}' * 40_000_000\n")
        stand.install("huge", "KEPT = b'x' * 100_000_000\n")
        stand.start()
        for name in "abc":
            stand.deploy(USES.replace("lib", f"lib_{name}").replace("def it(", f"def {name}("), f"{name}.py")
            assert stand.warm(name)["memory_bytes"] > 40_000_000
            rows = stand.tau.call("status")["warm"]
            assert sum(row["memory_bytes"] or 0 for row in rows) <= 60_000_000
        stand.deploy(USES.replace("lib", "huge").replace("def it(", "def huge_("), "huge_.py")
        assert how(stand.run("huge_")) == "cold"
        state = stand.becomes("cold", name="huge_")
        assert "warm_bytes" in state["why"]
        assert stand.run("huge_")["result"] == "1.0"


def test_settings_are_heeded_from_the_next_run_on(stand: Shelf) -> None:
    stand.deploy(USES)
    pid = stand.warm()["pid"]
    set_config(stand, "warm_processes = 0\n")
    eventually(lambda: stand.state()["state"] == "off")
    assert [how(stand.run()) for _ in range(2)] == ["cold", "cold"]
    eventually(lambda: not is_running(pid))
    assert stand.tau.call("status")["warm"] == []
    set_config(stand, "warm_processes = 1\n")
    eventually(lambda: stand.state()["state"] == "none")
    stand.warm()


def test_many_runs_at_once_are_warm_and_each_has_what_is_its_own(stand: Shelf) -> None:
    stand.deploy("import lib, os\nfrom tau import pipeline\n@pipeline\ndef it(ctx):\n    ctx.log(ctx.run_id)\n    return os.getpid()\n")  # fmt: skip
    stand.warm()
    runs = stand.wait(stand.begin(count=30))
    assert {how(run) for run in runs} == {"warm"}
    assert len({run["result"] for run in runs}) == 30
    assert all(logged(stand.tau, run) == [run["run_id"]] for run in runs)


def test_a_warm_process_holds_nothing_that_belongs_to_others(stand: Shelf) -> None:
    """No socket of the daemon, no journal, no pipe of a run: what it held would not end when they end."""
    hold(stand)
    ids = begin(stand, count=2)
    pid = stand.state()["pid"]
    held = descriptors(pid)
    assert not [path for path in held.values() if str(stand.tau.home) in path], held
    assert len(held) <= 8, held
    let_go(stand, ids)
    assert descriptors(pid) == held


def test_a_warm_process_is_killed_before_the_daemon_when_memory_runs_out(stand: Shelf) -> None:
    stand.deploy(USES)
    pid = stand.warm()["pid"]
    score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    assert score >= module.OOM_SCORE


def test_imports_wait_until_a_processor_is_idle_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    process = module.WarmProcess((None, "", ("lib",), False), Any)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for line, idle in (("0.5 0.4 0.3 2/800 1234", True), ("0.0 0.0 0.0 3/800 1234", False), ("", True)):
        monkeypatch.setattr(module, "peek", lambda path, line=line: line)
        assert process.is_idle() is idle
    monkeypatch.setattr(module, "peek", lambda path: "9.5 9.4 9.3 9/800 1234")
    process.since -= module.IDLE_WAIT_S + 1
    assert process.is_idle()


def test_generators_of_libraries_are_fresh_in_each_run(home: Tau) -> None:
    (home.work / "lib").mkdir()
    (home.work / "lib" / "dice.py").write_text("import random, time\nOWN = random.Random()\ntime.sleep(0.3)\n")
    home.environ["PYTHONPATH"] = f"{home.work / 'lib'}:{home.environ.get('PYTHONPATH', '')}"
    home.start()
    home.deploy("import dice\nfrom tau import pipeline\n@pipeline(warm=True)\ndef it(ctx): return dice.OWN.random()\n")
    results = [home("run", "it")["result"] for _ in range(5)]
    assert len({*results}) == 5
