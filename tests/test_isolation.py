"""What a namespace's runs can reach: by the daemon's socket, on an executor of its own, and as a system user."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, is_running, make_home, started

import tau as module

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who a socket's peer is")
#: In a run: what the daemon answers, or the code of its error.
ASK = """
import json, os, socket, subprocess, sys
from tau import pipeline

def ask(method, **params):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(os.environ.get("TAU_HOME", "/") + "/tau.sock")
        peer.sendall(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\\n")
        answer = json.loads(peer.makefile().readline())
    return answer.get("result") or answer["error"]["data"]["code"]
"""
ELSEWHERE = '[executors.far]\ncommand = ["env"]\n[executors.other]\ncommand = ["env"]\n'


@pytest.fixture
def daemon() -> Iterator[Tau]:
    for tau in started(make_home(ELSEWHERE + f"[executors.mute]\ncommand = ['{sys.executable}', '-c', 'exit(3)']\n")):
        tau("namespace", "create", "acme")
        tau("namespace", "create", "rival")
        yield tau


def result_of(tau: Tau, text: str, *words: str, exit: int = 0) -> Any:
    """What the one pipeline `it` of a text returns; its error, if it is to fail."""
    tau.deploy(ASK + text, "it.py", *words)
    run = tau.command("run", "it", *words)
    assert run.exit == exit, (run.out, run.err)
    return run.json["error" if exit else "result"]


CALLS = """
@pipeline
def it(ctx):
    escaped = "import it, json; print(json.dumps([p['name'] for p in it.ask('list')['pipelines']]))"
    child = subprocess.run([sys.executable, "-c", escaped], start_new_session=True, capture_output=True,
                           env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)})
    return {
        "sees": [row["name"] for row in ask("list")["pipelines"]],
        "own": ask("show", name="it")["name"],
        "foreign": ask("show", name="rival/secretive"),
        "missing": ask("show", name="rival/nothing"),
        "shutdown": ask("shutdown"),
        "secret": ask("secret_set", name="TOKEN_A", value="0123456789"),
        "key": ask("key_create", name="more", scope="admin"),
        "namespace": ask("namespace_create", name="mine"),
        "deploys": ask("deploy", files=[{"path": "other.py", "text": OTHER}])["pipelines"][0]["name"],
        "runs": ask("run", name="other")["status"],
        "child": json.loads(child.stdout),
    }

OTHER = "from tau import pipeline\\n@pipeline\\ndef other(ctx): pass\\n"
"""


def test_a_run_acts_on_the_socket_as_its_namespace_may(daemon: Tau) -> None:
    """Its own it sees and runs; nobody else's exists; what needs an admin is refused; a child in a session of its
    own is still the run's."""
    daemon.deploy(ASK + "@pipeline\ndef secretive(ctx): pass\n", "s.py", "--namespace", "rival")
    told = result_of(daemon, CALLS, "--namespace", "acme")
    assert told.pop("foreign") == told.pop("missing") == "not_found"
    assert (told.pop("sees"), told.pop("own"), told.pop("child")) == (["acme/it"], "acme/it", ["acme/it"])
    assert (told.pop("deploys"), told.pop("runs")) == ("acme/other", "success")
    assert {*told.values()} == {"forbidden"}, told
    run_id = daemon.call("runs", name="acme/it")["runs"][0]["run_id"]
    deployed = daemon.call("events", type="pipeline.deployed")["events"]
    assert [row["actor"] for row in deployed if row["pipeline"] == "acme/other"] == [f"run {run_id}"]
    assert daemon.call("namespace_list")["namespaces"][-1]["name"] == "rival"  # `mine` is not there


def test_a_run_of_the_default_namespace_is_no_admin(daemon: Tau) -> None:
    daemon.deploy(ASK + "@pipeline\ndef secretive(ctx): pass\n", "s.py", "--namespace", "rival")
    told = result_of(daemon, CALLS)
    assert (told["sees"], told["foreign"], told["shutdown"]) == (["it"], "not_found", "forbidden")


def test_what_is_only_loaded_or_rehearsed_may_read(daemon: Tau) -> None:
    """A file that is loaded for a deployment looks, and changes nothing."""
    text = f"{ASK}\ntold = [ask('list')['pipelines'], ask('run', name='it'), ask('undeploy', name='it')]\n"
    text += "@pipeline(description=json.dumps(told))\ndef it(ctx): pass\n"
    daemon.deploy(text, "it.py", "--namespace", "acme")
    assert daemon.call("show", name="acme/it")["description"] == '[[], "forbidden", "forbidden"]'


def test_a_run_keeps_its_place_when_the_daemon_is_another(daemon: Tau) -> None:
    """A daemon that adopts a run knows it on its socket."""
    text = "    while not os.path.exists('go'): time.sleep(0.01)\n    return ask('shutdown')\n"
    daemon.deploy(ASK + f"import time\n@pipeline\ndef it(ctx):\n    ctx.log('on')\n{text}", "it.py")
    run_id = daemon("run", "it", "--detach")["run_id"]
    eventually(lambda: daemon.call("logs", run_id=run_id)["lines"])
    daemon.kill()
    daemon.start()
    (daemon.home / "data" / "it" / "go").touch()
    assert daemon("wait", run_id)["result"] == "forbidden"


HERE = "@pipeline\ndef it(ctx): return __file__\n"


def test_all_runs_of_a_namespace_are_on_its_executor(daemon: Tau) -> None:
    """Whatever the pipeline says, or who runs it; a file that names another is refused; its files load there too."""
    daemon.deploy(ASK + HERE, "it.py", "--namespace", "acme")
    daemon("namespace", "set", "acme", "--executor", "far")
    assert (run := daemon("run", "acme/it"))["executor"] == "far"
    assert "/tau-run-" in run["result"]
    for words in (("--executor", "other"), ("--executor", "local")):
        error = daemon("run", "acme/it", *words, exit=2)
        assert "all runs of this namespace run on executor 'far'" in error["message"]
    text = ASK + HERE.replace("@pipeline", "@pipeline(executor='other')")
    assert "on executor 'far'" in daemon.deploy(text, "it.py", "--namespace", "acme", exit=2)["message"]
    daemon("namespace", "set", "acme", "--executor", "mute")
    assert "'mute'" in daemon.deploy(ASK + HERE + "#", "it.py", "--namespace", "acme", exit=2)["message"]
    daemon("namespace", "set", "acme", "--executor", "")
    assert daemon("run", "acme/it", "--executor", "other")["status"] == "success"
    assert "no executor 'none'" in daemon("namespace", "set", "acme", "--executor", "none", exit=2)["message"]


#: Users of the system that no daemon of a test is, and that can start no other process meanwhile.
USERS = ("games", "news")
THIRD = "man"
needs_users = pytest.mark.skipif(
    not {*USERS, THIRD} <= {one.pw_name for one in pwd.getpwall()}, reason="this machine lacks Debian's users"
)


def hardened(config: str) -> Iterator[Tau]:
    """A daemon of root with a namespace for each user, whose home is where others may pass by."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp(prefix="tau-isolation-"))
    folder.chmod(0o755)
    try:
        for tau in started(Tau(folder / "home", f"[daemon]\nstop_grace_s = 0.5\n{config}\n{ELSEWHERE}")):
            for user in USERS:
                done = tau.command("namespace", "create", user, "--user", user)
                if done.exit and "Python 3.11" in done.err:
                    pytest.skip("other users find no Python 3.11 or newer on this machine")
                assert done.exit == 0, done.err
            yield tau
            shutil.rmtree(f"{tau.home}.namespaces")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hard() -> Iterator[Tau]:
    yield from hardened("")


@pytest.fixture
def grouped() -> Iterator[Tau]:
    """The same, with a socket that is open to a group which one of the users is in."""
    yield from hardened('group = "games"')


@needs_users
def test_a_run_of_a_hard_namespace_works(hard: Tau) -> None:
    """As its user, in a directory that stays, with its secrets, memos, params and its log."""
    hard("secret", "set", "TOKEN_A", "--namespace", "games", stdin="open sesame")
    text = """
@pipeline(retries=1)
def it(ctx, day="today"):
    print("printed")
    with open("kept", "a") as file:
        file.write("x")
    memo = ctx.memo("once", lambda: ctx.attempt)
    if ctx.attempt == 1:
        raise ValueError("once more")
    return [os.getuid(), os.getcwd(), open("kept").read(), day, len(ctx.secret("TOKEN_A")), memo]
"""
    uid = pwd.getpwnam("games").pw_uid
    place = f"{hard.home}.namespaces/games/data/it"
    assert result_of(hard, text, "--namespace", "games") == [uid, place, "xx", "today", 11, 1]
    run = hard("run", "games/it", "-p", "day=later")
    assert run["result"] == [uid, place, "xxxx", "later", 11, 1]
    printed = [line["message"] for line in hard("logs", "games/it")["lines"]]
    assert "printed" in printed


HOSTILE = """
import ctypes, glob, shutil, signal, stat

@pipeline
def it(ctx, home, victim, secretive, relay, setuid):
    def attempt(deed, *words):
        try:
            return f"DONE: {deed(*words)!r}"[:300]
        except (OSError, ValueError) as problem:
            return type(problem).__name__

    def memory(pid):
        with open(f"/proc/{pid}/mem", "rb") as file:
            return file.read(1)

    def connect(path):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)

    def as_root(*words):
        said = subprocess.run(words, capture_output=True, text=True)
        return "0" if "uid=0" in said.stdout or "euid=0" in said.stdout else int("no, " + said.stdout + said.stderr)

    place = os.path.dirname(os.path.dirname(os.getcwd()))
    deeds = {
        "home": (os.listdir, home),
        "store": (open, f"{home}/tau.db"),
        "key": (open, f"{home}/key"),
        "socket": (connect, f"{home}/tau.sock"),
        "secrets": (os.listdir, f"{home}/secrets"),
        "journals": (os.listdir, f"{home}/runs"),
        "places": (os.listdir, os.path.dirname(place)),
        "place of the other": (os.listdir, secretive),
        "data of the other": (open, f"{secretive}/data/victim/diary"),
        "other's own": (os.listdir, f"{secretive}/own"),
        "link to my data": (os.symlink, home, f"{place}/data/fresh"),
        "rename of my data": (os.rename, f"{place}/data/it", f"{place}/data/that"),
        "environment of the other": (open, f"/proc/{victim}/environ"),
        "memory of the other": (memory, victim),
        "files of the other": (os.listdir, f"/proc/{victim}/fd"),
        "directory of the other": (os.listdir, f"/proc/{victim}/cwd"),
        "signal to the other": (os.kill, victim, signal.SIGKILL),
        "signal to its group": (os.killpg, victim, signal.SIGKILL),
        "environment of the relay": (open, f"/proc/{relay}/environ"),
        "memory of the relay": (memory, relay),
        "signal to the relay": (os.kill, relay, signal.SIGKILL),
        "signal to the fork server": (os.kill, os.getppid() and int(open(f"/proc/{relay}/stat").read().split()[3]), 9),
        "root": (os.setuid, 0),
        "another user": (os.setresuid, 9, 9, 9),
        "groups": (os.setgroups, [0]),
        "setuid file": (as_root, setuid),
        "root of its own": (os.chroot, "/tmp"),
    }
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    beyond = [path for path in glob.glob("/proc/self/fd/*") if os.path.exists(path) and
              os.path.realpath(path).startswith((home + "/", secretive)) and os.access(path, os.R_OK)]
    return {
        "tried": {name: attempt(*deed) for name, deed in deeds.items()},
        "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
        "new privileges": status["NoNewPrivs"],
        "groups": os.getgroups(), "ids": [os.getresuid(), os.getresgid()],
        "variables": [name for name in os.environ if name.startswith("TAU_")], "umask": os.umask(0o077),
        "environment": open("/proc/self/environ").read().count("ONLY_OURS"), "open": beyond,
    }
"""
#: The run of the other namespace, which waits to be found.
VICTIM = """
import time

@pipeline
def victim(ctx):
    with open("diary", "w") as file:
        file.write("dear diary")
    ctx.log(str(os.getpid()))
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


@needs_users
def test_a_hostile_run_reaches_nothing_of_others(hard: Tau) -> None:
    """Not the home, the store, the socket, the other's processes, data and secrets, not root by a setuid file."""
    shown = Path(shutil.copy("/usr/bin/id", hard.home.parent / "id"))
    shown.chmod(0o4755)
    hard.deploy(ASK + VICTIM, "victim.py", "--namespace", "news")
    run_id = hard("run", "news/victim", "--detach")["run_id"]
    lines = eventually(lambda: hard.call("logs", run_id=run_id)["lines"])
    (relay,) = (one["pid"] for one in hard.call("status")["processes"] if one.get("run_id") == run_id)
    given = {"home": str(hard.home), "victim": int(lines[0]["message"]), "secretive": f"{hard.home}.namespaces/news"}
    given |= {"relay": relay, "setuid": str(shown)}
    hard.deploy(ASK + HOSTILE, "it.py", "--namespace", "games")
    told = hard("run", "games/it", "--params", json.dumps(given))["result"]
    assert told.pop("tried") == dict.fromkeys(told_names(), "PermissionError") | {"setuid file": "ValueError"}
    games = pwd.getpwnam("games")
    assert {*told.pop("capabilities")} == {"0" * 16}
    assert told == {
        "new privileges": "1",
        "groups": os.getgrouplist("games", games.pw_gid),
        "ids": [[games.pw_uid] * 3, [games.pw_gid] * 3],
        "variables": ["TAU_RUN_ID"],
        "umask": 0o077,
        "environment": 0,
        "open": [],
    }
    shown.unlink()
    Path(f"{hard.home}.namespaces/news/data/victim/go").touch()
    assert hard("wait", run_id)["status"] == "success"


def told_names() -> list[str]:
    """What the hostile run tries."""
    return re.findall(r'^ {8}"([^"]+)": \(', HOSTILE, re.MULTILINE)


@needs_users
def test_a_user_that_is_in_the_group_of_the_socket_is_no_admin(grouped: Tau) -> None:
    text = """
@pipeline
def it(ctx, home):
    os.environ["TAU_HOME"] = home
    return [os.access(f"{home}/tau.sock", os.W_OK), ask("list")]
"""
    grouped.deploy(ASK + text, "it.py", "--namespace", "games")
    assert grouped("run", "games/it", "-p", f"home={grouped.home}")["result"] == [True, "forbidden"]


STUBBORN = """
import resource, signal, time

@pipeline
def it(ctx, deed, mark=0):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    pids = [os.getpid()]
    child = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    if mark:
        resource.setrlimit(10, (mark, resource.RLIM_INFINITY))
    pids.append(subprocess.Popen([sys.executable, "-c", child]).pid)
    ctx.log(" ".join(map(str, pids)))
    while not os.path.exists("go"):
        time.sleep(0.01)
    os.kill(os.getppid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[deed])
    time.sleep(600)
"""


@needs_users
@pytest.mark.parametrize("deed", ["nothing", "kill", "stop"])
def test_a_run_that_will_not_end_is_ended(hard: Tau, deed: str) -> None:
    """It ignores signals, has a child in a session of its own, and kills or stops who watches over it."""
    hard.deploy(ASK + STUBBORN, "it.py", "--namespace", "games")
    run_id = hard("run", "games/it", "--detach", "-p", f"deed={deed}")["run_id"]
    lines = eventually(lambda: hard.call("logs", run_id=run_id)["lines"])
    pids = [int(pid) for pid in lines[0]["message"].split()]
    if deed != "nothing":
        Path(f"{hard.home}.namespaces/games/data/it/go").touch()
    if deed == "nothing":  # another daemon adopts it
        hard.kill()
        hard.start()
    if deed != "kill":
        hard("cancel", run_id)
    run = hard("wait", run_id, exit=1)
    assert run["status"] == ("lost" if deed == "kill" else "cancelled"), run
    eventually(lambda: not any(map(is_running, pids)))


@needs_users
def test_what_a_run_leaves_cannot_pretend_to_be_of_another(hard: Tau) -> None:
    """It ends with its run, although it has the mark of one of another namespace that is live."""
    hard.deploy(ASK + VICTIM, "victim.py", "--namespace", "news")
    victim = hard("run", "news/victim", "--detach")["run_id"]
    eventually(lambda: hard.call("logs", run_id=victim)["lines"])
    (relay,) = (one["pid"] for one in hard.call("status")["processes"] if one.get("run_id") == victim)
    mark = module.mark_of(relay)
    assert mark > relay
    hard.deploy(ASK + STUBBORN, "it.py", "--namespace", "games")
    run_id = hard("run", "games/it", "--detach", "-p", "deed=kill", "-p", f"mark={mark}")["run_id"]
    lines = eventually(lambda: hard.call("logs", run_id=run_id)["lines"])
    pids = [int(pid) for pid in lines[0]["message"].split()]
    Path(f"{hard.home}.namespaces/games/data/it/go").touch()
    assert hard("wait", run_id, exit=1)["status"] == "lost"
    eventually(lambda: not any(map(is_running, pids)))
    assert hard.call("inspect", run_id=victim)["status"] == "running"


@needs_users
def test_a_time_limit_holds_for_a_run_that_stops_who_watches_over_it(hard: Tau) -> None:
    text = STUBBORN.replace("@pipeline", "@pipeline(timeout=1)").replace('not os.path.exists("go")', "False")
    hard.deploy(ASK + text, "it.py", "--namespace", "games")
    assert hard("run", "games/it", "-p", "deed=stop", exit=1)["status"] == "timed_out"


@needs_users
def test_files_are_loaded_rehearsed_and_looked_at_as_the_user(hard: Tau) -> None:
    """Code that a deployment loads cannot do more than a run; a rehearsal and a look see the data of the user."""
    text = """
@pipeline(description=f"{os.getuid()} {os.access(HOME, os.R_OK)}")
def it(ctx):
    with open("rows.csv", "w") as file:
        file.write("a\\n1\\n")
"""
    hard.deploy(f"{ASK}HOME = {str(hard.home)!r}\n{text}", "it.py", "--namespace", "games")
    uid = pwd.getpwnam("games").pw_uid
    assert hard.call("show", name="games/it")["description"] == f"{uid} False"
    assert hard("run", "games/it")["status"] == "success"
    looked = hard("peek", "rows.csv", "--in", "games/it")
    assert looked["row_count"] == 1
    tried = hard("try", hard.write(f"{ASK}HOME = '/'\n{text.replace('1', '2')}", "it.py"), "--namespace", "games")
    assert tried["status"] == "success", tried
    assert Path(f"{hard.home}.namespaces/games/data/it/rows.csv").read_text() == "a\n1\n"


@needs_users
def test_what_a_user_lacks_is_said(hard: Tau) -> None:
    """No such user, root, one that another namespace has, dependencies, data of others; nothing of it is left."""
    for words, said in (
        (("create", "more", "--user", "nobody-here"), "this machine has no user 'nobody-here'"),
        (("create", "more", "--user", "root"), "must not be root"),
        (("create", "more", "--user", "games"), "'games' is the user of namespace 'games'"),
        (("set", "default", "--user", THIRD), "the default namespace, and one with an executor"),
        (("set", "games", "--executor", "far"), "one with an executor"),
    ):
        assert said in hard("namespace", *words, exit=5 if "is the user" in said else 2)["message"]
    header = "# /// script\n# dependencies = ['six']\n# ///\n"
    error = hard.deploy(header + ASK + HERE, "it.py", "--namespace", "games", exit=2)
    assert "does not install the file's dependencies for a system user" in error["message"]
    hard("namespace", "create", "soft")
    hard.deploy(ASK + HERE, "it.py", "--namespace", "soft")
    hard("run", "soft/it")
    assert "has data that is not of user 'man'" in hard("namespace", "set", "soft", "--user", THIRD, exit=2)["message"]
    hard("namespace", "remove", "games")
    assert not Path(f"{hard.home}.namespaces/games").exists()


@needs_users
def test_a_home_that_others_cannot_pass_by_is_said(daemon: Tau) -> None:
    """At creation: as root what stands in the way, else that root is needed."""
    try:
        error = daemon("namespace", "create", "hard", "--user", "games", exit=2)
    finally:
        shutil.rmtree(f"{daemon.home}.namespaces", ignore_errors=True)
    said = "does not reach" if os.geteuid() == 0 else "only a taud that is root"
    assert said in error["message"]


@needs_users
def test_a_user_that_is_lost_is_a_warning_and_a_failed_run(hard: Tau) -> None:
    """A daemon that begins where a user does not reach its place any more says so, and so does doctor."""
    hard.deploy(ASK + HERE, "it.py", "--namespace", "games")
    hard("shutdown")
    hard.home.parent.chmod(0o700)
    hard.start()
    (warning,) = (text for text in hard.call("status")["warnings"] if "games" in text)
    assert warning.startswith("namespace 'games': user 'games' does not reach")
    assert warning in hard.command("doctor").out
    error = hard("run", "games/it", exit=1)["error"]
    assert "Permission denied" in error["message"]


@needs_users
def test_data_that_is_in_the_way_stays(hard: Tau) -> None:
    """A home that was put together by hand may have a directory where the link to the user's place should be."""
    hard.deploy(ASK + HERE, "it.py", "--namespace", "games")
    link = hard.home / "namespaces" / "games"
    link.unlink()
    (link / "data" / "it").mkdir(parents=True)
    (link / "data" / "it" / "kept").write_text("kept")
    error = hard("run", "games/it", exit=1)["error"]
    assert "games cannot be made: Directory not empty" in error["message"]
    error = hard.deploy(ASK + HERE + "#", "it.py", "--namespace", "games", exit=2)
    assert "games cannot be made: Directory not empty" in error["message"]
    assert (link / "data" / "it" / "kept").read_text() == "kept"
    assert [one for one in hard.call("status")["processes"] if one["role"] == "load"] == []
    shutil.rmtree(link)
    assert hard("run", "games/it")["status"] == "success"
