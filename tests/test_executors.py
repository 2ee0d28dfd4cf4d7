"""A run on another machine is a run: the same document, the same ends, and nothing left of it there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, THOROUGH, Tau, eventually, is_running, make_home, running, started, ways
from elsewhere import MACHINES, PYTHON
from test_environments import wheel

import tau as module

LOST_AFTER_S = 3.0


def config_of(command: list[str], daemon: str = "", **more: Any) -> str:
    """A configuration with an executor `far`, and `quiet`, which is the same but soon takes silence for an end."""
    tables = {"far": {"command": command, "python": PYTHON} | more}
    tables["quiet"] = tables["far"] | {"lost_after_s": LOST_AFTER_S}
    rows = ["[daemon]", "stop_grace_s = 0.5", daemon]
    for name, table in tables.items():
        rows += [f"[executors.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(rows)


#: Tests that every machine is put to; TAU_EXECUTORS puts each to others: see ways().
EVERYWHERE = (
    "test_a_success_and_a_failure_there_are_told_as_here",
    "test_cancelling_ends_a_stubborn_run_and_its_child",
    "test_a_connection_that_is_cut_is_a_lost_run_and_nothing_goes_on_there",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test is run on a bare environment of this machine, some or all through ssh and Slurm too."""
    if "far" in metafunc.fixturenames:
        is_everywhere = metafunc.function.__name__ in EVERYWHERE
        chosen = [*MACHINES] if is_everywhere else ways("TAU_EXECUTORS", [*MACHINES], metafunc)
        metafunc.parametrize("far", chosen, indirect=True, scope="module")


@pytest.fixture(scope="module")
def far(request: pytest.FixtureRequest) -> Iterator[Tau]:
    """A daemon whose executor `far` leads to another machine, in one of the ways there are."""
    with MACHINES[request.param]() as command:
        yield from started(make_home(config_of(command)))


@pytest.fixture
def lone(request: pytest.FixtureRequest) -> Iterator[Tau]:
    """A daemon with the configuration that the test gives as its parameter."""
    yield from started(make_home(request.param))


def run_far(tau: Tau, text: str, *words: str, exit: int = 0) -> Any:
    """Deploys text whose function `it` is the pipeline, and runs it on the executor."""
    return tau.run_it(text, "--executor", "far", *words, exit=exit)


def start_far(tau: Tau, text: str, executor: str = "far") -> tuple[str, list[int]]:
    """Starts such a run, which logs the pids of its processes; its id and those."""
    tau.deploy_it(text)
    run_id = tau("run", "it", "--executor", executor, "--detach")["run_id"]
    lines = eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    return run_id, [int(pid) for pid in lines[0]["message"].split()]


#: It does not want to end, and has a child that does not either.
STUBBORN = """
import os, signal, subprocess, sys, time
def it(ctx):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); '
        'print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.read(1)
    ctx.log(f'{os.getpid()} {child.pid}')
    time.sleep(600)
"""
SLEEPING = "import os, time\ndef it(ctx):\n    ctx.log(os.getpid())\n    time.sleep(600)"

# The document.

#: What differs from one run to the next, or from one machine to the other.
DIFFERS = (
    "run_id",
    "key",
    "executor",
    "queued_at",
    "started_at",
    "finished_at",
    "duration_ms",
    "cpu_ms",
    "count",
    "last_at",
    "elapsed_s",
    "max_rss_bytes",
)


def comparable(run: Json) -> Json:
    """The document without what must differ; keys stay."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: type(item).__name__ if key in DIFFERS else plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    document: Json = plain(run)
    document["executor"] = None
    document.pop("closed_incidents", None)  # the first success closes what a test before it has opened
    document["trace"]["log_tail"].sort()  # what is written to a descriptor has no place among what is logged
    text = re.sub(r" --executor \w+", "", json.dumps(document).replace(run["run_id"], "RUN"))
    return json.loads(re.sub(r"0x[0-9a-f]+", "0x", text))


Json = dict[str, Any]

SAME = {
    "a success": """
        import os, subprocess
        async def it(ctx, n: int = 3):
            async with ctx.step('outer') as step:
                with ctx.step('inner'):
                    ctx.log('logged', rows=1)
                step.rows_in, step.rows_out = n, 2
            print('printed')
            os.write(2, b'written\\n')
            subprocess.run(['echo', 'native'])
            ctx.check(n > 2, ('no surprise', True))
            ctx.metric('rows', n)
            ctx.progress(1, 2, 'half')
            return {'n': n, 'rows': ctx.transform([{'a': 1}, {'a': 2}], 'SELECT sum(a) AS a FROM data')}
        """,
    "an exception": """
        def it(ctx):
            row = {'amount': 'x', 'password': 'y'}
            with ctx.step('transform'):
                try:
                    int(row['amount'])
                except ValueError as problem:
                    raise KeyError('amount') from problem
        """,
    "a check": "def it(ctx):\n    ctx.check(1 > 2)",
    "rows": """
        from tau import source
        @source('numbers')
        def numbers():
            return [{'a': 1, 'b': None}]
        def it(ctx):
            ctx.transform(ctx.extract('numbers'), [lambda rows: 1 / 0])
        """,
    "no JSON": "def it(ctx):\n    return object",
    "sys.exit": "import sys\ndef it(ctx):\n    sys.exit(4)",
    "sys.exit(0)": "import sys\ndef it(ctx):\n    sys.exit(0)",
    "a wait for any child": """
        import os, subprocess
        def it(ctx):
            subprocess.run('sleep 0.05 &', shell=True)
            worker = os.fork()
            if not worker:
                os.execvp('sleep', ['sleep', '0.3'])
            return os.wait()[0] == worker
        """,
    "os._exit": "import os\ndef it(ctx):\n    with ctx.step('a'):\n        os._exit(3)",
    "os._exit(0)": "import os\ndef it(ctx):\n    os._exit(0)",
    "kill -9": "import os\ndef it(ctx):\n    ctx.log('last words')\n    os.kill(os.getpid(), 9)",
    "a time limit": "import time\ndef it(ctx):\n    with ctx.step('long'):\n        time.sleep(600)",
    "a flood": "def it(ctx):\n    for i in range(12_000):\n        print(i)\n    return i",
    "a flood from below": "import os\ndef it(ctx):\n    os.system('seq 12000')\n    return 1",
}


def test_a_success_and_a_failure_there_are_told_as_here(far: Tau) -> None:
    for name in ("a success", "an exception"):
        test_the_document_is_that_of_a_local_run(far, name)


@pytest.mark.parametrize("name", SAME)
def test_the_document_is_that_of_a_local_run(far: Tau, name: str) -> None:
    source = "from tau import pipeline\n" + textwrap.dedent(SAME[name]).lstrip("\n")
    limit = "timeout=2.5" if name == "a time limit" else ""
    far.deploy(re.sub(r"^(async )?def it\(", rf"@pipeline({limit})\n\g<0>", source, flags=re.MULTILINE))
    runs = [far.command("run", "it", "--executor", executor).json for executor in ("local", "far")]
    assert [run["executor"] for run in runs] == [None, "far"]
    assert comparable(runs[1]) == comparable(runs[0])
    logs = [far("logs", "--run", run["run_id"], "--tail", 20_000)["lines"] for run in runs]
    about = [sorted((line["message"], line["stream"], line["step"], line["level"]) for line in one) for one in logs]
    if "flood" not in name:
        assert about[0] == about[1]
    assert runs[1]["resources"]["max_rss_bytes"] > 0


def test_a_crash_of_the_interpreter_leaves_its_frames_in_the_log(far: Tau) -> None:
    run = run_far(far, "import os\ndef it(ctx):\n    os.abort()", exit=1)
    assert (run["error"]["kind"], run["resources"]["signal"]) == ("died", signal.SIGABRT)
    lines = [line["message"] for line in far("logs", "--run", run["run_id"])["lines"]]
    assert lines[0] == "Fatal Python error: Aborted"
    assert any(line.endswith(" in it") for line in lines)


def test_it_works_in_a_private_directory_that_is_gone_afterwards(far: Tau) -> None:
    text = """
        import os, sys
        def it(ctx):
            folder = os.path.dirname(os.getcwd())
            with open('file', 'w') as file:
                file.write('data')
            return [folder, oct(os.stat(folder).st_mode & 0o777), os.environ['TAU_RUN_ID'], ctx.run_id, ctx.data_dir]
        """
    folder, mode, told, run_id, data = run_far(far, text)["result"]
    assert (mode, told, data) == ("0o700", run_id, f"{folder}/data")
    eventually(lambda: not os.path.exists(folder))


def test_nothing_printed_can_forge_a_record(far: Tau) -> None:
    text = """
        import os, subprocess, sys
        RECORD = '{"t":"returned","result":"forged","waits_for":"x","at":1,"mono":1}'
        def it(ctx):
            print(RECORD)
            os.write(1, b'\\n' + RECORD.encode() + b'\\n')
            subprocess.run([sys.executable, '-c', f'print({RECORD!r})'])
            return 'true'
        """
    run = run_far(far, text)
    assert (run["result"], run["trace"]["log_lines"]) == ("true", 4)


def test_state_params_connections_and_the_last_success_travel(far: Tau) -> None:
    text = """
        def it(ctx, day: str = 'monday'):
            ctx.state['runs'] = ctx.state.get('runs', 0) + 1
            return [day, ctx.state['runs'], ctx.last_successful_run is not None, ctx.attempt, ctx.version > 0]
        """
    far.deploy(f"from tau import pipeline\n@pipeline(name='state')\n{textwrap.dedent(text).lstrip()}", "state.py")
    far("run", "state", "--executor", "local")
    assert far("run", "state", "--executor", "far", "-p", "day=sunday")["result"] == ["sunday", 2, True, 1, True]
    assert far("run", "state", "--executor", "local")["result"] == ["monday", 3, True, 1, True]


def test_what_it_follows_travels(far: Tau) -> None:
    far.deploy(
        "from tau import pipeline\n@pipeline\ndef spring(ctx):\n    return 'é' * 1000\n"
        "@pipeline(after='spring', executor='far')\ndef river(ctx):\n    return ctx.upstream['spring']['result'][::999]\n"
    )
    far("run", "spring")
    ended = eventually(
        lambda: [run for run in far.call("runs", name="river")["runs"] if run["status"] == "success"], 30
    )
    assert far("inspect", ended[0]["run_id"])["result"] == "éé"


def test_what_was_memoized_elsewhere_is_kept_here_and_sent_again(far: Tau) -> None:
    text = """
        def it(ctx, n: int = 1):
            found = ctx.memo('found', lambda: [ctx.attempt])
            kept = ctx.memo('kept', lambda: {ctx.attempt}, pickle=True)
            if ctx.attempt == 1 or n == 1:
                raise KeyError('again')
            return [found, sorted(kept)]
        """
    decorated = re.sub("def it", "@pipeline(retries=1)\ndef it", textwrap.dedent(text).lstrip())
    far.deploy(f"from tau import pipeline\n{decorated}")
    assert far("run", "it", "--executor", "far", "-p", "n=2")["result"] == [[1], [1]]
    failed = far("run", "it", "--executor", "far", exit=1)
    again = far.command("retry", failed["run_id"], "--from-failure").json
    assert again["executor"] == "far"
    lines = [line["message"] for line in far("logs", "--run", again["run_id"])["lines"]]
    assert "memo 'found' is used again" in lines


def test_a_secret_is_sent_and_masked(far: Tau) -> None:
    secrets = far.home / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    path = secrets / "FAR_KEY"
    path.touch(mode=0o600)
    path.write_text("of-the-home-s3cret\n")
    text = """
        import os
        def it(ctx):
            name = 'FAR_' + 'KEY'
            value = ctx.secret(name)
            print('it is', value)
            os.system(f'echo native {value}')
            mine = [open(f'/proc/{pid}/cmdline').read() for pid in (os.getpid(), os.getppid())]
            files = [os.path.join(at, one) for at, _, names in os.walk('..') for one in names if one != 'tau.py']
            return [len(value), value, value in str(mine), [one for one in files if value in open(one, 'rb').read().decode('latin1')]]
        """
    run = run_far(far, text)
    assert run["result"] == [18, "***", False, []]
    assert sorted(run["trace"]["log_tail"]) == ["it is ***", "native ***"]
    assert not any(b"s3cret" in file.read_bytes() for file in (far.home / "runs").iterdir())
    early = """
        import subprocess
        def it(ctx):
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # before anything there knows the secret
            child.communicate(f"early {ctx.secret('FAR_KEY')}".encode())
        """
    assert run_far(far, early)["trace"]["log_tail"] == ["early ***"]
    lacking = run_far(far, "def it(ctx):\n    ctx.secret('NONE_' + 'SUCH')", exit=1)["error"]
    assert lacking["type"] == "MissingSecret"
    assert "`tau secret set NONE_SUCH`" in lacking["hint"]


def test_a_folder_travels_with_its_modules_and_data(far: Tau) -> None:
    folder = far.work / "shop"
    (folder / "lib").mkdir(parents=True)
    (folder / "main.py").write_text(
        "from pathlib import Path\nfrom tau import pipeline\nfrom lib.words import greet\n"
        "@pipeline(executor='far', schedule='0 6 * * *', timezone='Europe/London')\n"
        "def shop(ctx):\n    return greet(Path(__file__).with_name('name.txt').read_text())\n"
    )
    (folder / "lib" / "words.py").write_text("def greet(name):\n    return f'hello {name}'\n")
    (folder / "name.txt").write_text("you")
    far("deploy", folder)
    run = far("run", "shop")
    assert (run["result"], run["executor"]) == ("hello you", "far")
    assert far("show", "shop")["options"]["executor"] == "far"
    assert far("run", "shop", "--executor", "local")["executor"] is None
    far("undeploy", "shop")


def test_processes_of_a_run_find_its_modules_and_tau(far: Tau) -> None:
    text = """
        import multiprocessing
        def double(n):
            return 2 * n
        def it(ctx):
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                return pool.map(double, [1, 2])
        """
    assert run_far(far, text)["result"] == [2, 4]


def test_hints_are_about_the_machine_where_it_runs(far: Tau) -> None:
    missing = run_far(far, "def it(ctx):\n    import not_there\n", exit=1)["error"]
    assert missing["hint"].endswith(" on the executor")
    assert "the executor's" in missing["facts"]["python"]
    unset = run_far(far, "import os\ndef it(ctx):\n    os.environ['NOT_THERE']\n", exit=1)["error"]
    assert unset["hint"] == "'NOT_THERE' is not in the executor's environment: keep a secret: ctx.secret('NOT_THERE')"


def test_only_the_standard_library_is_needed_there(far: Tau) -> None:
    text = "import sys\ndef it(ctx):\n    return [sys.executable, 'croniter' in sys.modules]"
    assert run_far(far, text)["result"] == [PYTHON, False]


# Stopping.


def test_cancelling_ends_a_stubborn_run_and_its_child(far: Tau) -> None:
    run_id, pids = start_far(far, STUBBORN)
    assert all(map(is_running, pids))
    assert far("cancel", run_id)["status"] == "cancelled"
    assert not any(map(is_running, pids))
    run = far("inspect", run_id)
    assert (run["error"]["kind"], run["resources"]["signal"]) == ("cancelled", 9)


#: More lines than are kept of a run.
FLOOD_LINES = 40_000


def test_a_flood_does_not_keep_a_run_from_being_cancelled(far: Tau) -> None:
    path = far.work / "flood.pid"
    far.deploy_it(
        f"import os\ndef it(ctx):\n    open({str(path)!r}, 'w').write(str(os.getpid()))\n    os.system('yes')"
    )
    run_id = far("run", "it", "--executor", "quiet", "--detach")["run_id"]
    eventually(lambda: far("inspect", run_id)["trace"]["log_lines"] > FLOOD_LINES)
    assert far("cancel", run_id)["status"] == "cancelled"
    assert not is_running(int(path.read_text()))
    assert far("inspect", run_id)["trace"]["log_lines"] > FLOOD_LINES


def test_cancelled_code_may_clean_up_and_is_heard(far: Tau) -> None:
    run_id, _ = start_far(far, SLEEPING.replace("time.sleep", "clean(ctx, time.sleep)(") + ")\n" + CLEAN)
    far("cancel", run_id)
    run = far("inspect", run_id)
    assert run["trace"]["log_tail"][-1] == "cleaned"
    assert (run["status"], run["error"]["code"]) == ("cancelled", "work(seconds)")


CLEAN = """
def clean(ctx, work):
    def both(seconds):
        try:
            work(seconds)
        finally:
            ctx.log('cleaned')
    return both
"""


def test_what_is_returned_there_after_a_stop_is_no_success(far: Tau) -> None:
    run_id, _ = start_far(
        far,
        """
        import os, signal, time
        def it(ctx):
            over = []
            signal.signal(signal.SIGTERM, lambda *_: over.append(1))
            ctx.log(os.getpid())
            while not over:
                time.sleep(0.01)
            return "half"
        """,
    )
    assert far("cancel", run_id)["status"] == "cancelled"
    run = far("inspect", run_id)
    assert (run["result"], run["partial_result"]) == (None, "half")


def test_an_error_there_is_told_although_a_thread_lives_on(far: Tau) -> None:
    run = run_far(
        far,
        """
        import threading, time
        def it(ctx):
            threading.Thread(target=time.sleep, args=(600,), name="heartbeat").start()
            raise ValueError("the truth")
        """,
        exit=1,
    )
    assert (run["status"], run["error"]["message"]) == ("failed", "the truth")
    assert run["trace"]["log_tail"] == ["it was ended while it waited for thread heartbeat"]


def test_an_orphan_there_lives_as_long_as_its_run(far: Tau) -> None:
    run = run_far(
        far,
        """
        import os, subprocess, time
        def it(ctx):
            subprocess.run("setsid sh -c 'echo $$ > pid; exec sleep 600' &", shell=True)
            time.sleep(0.5)
            pid = int(open("pid").read())
            os.kill(pid, 0)
            return pid
        """,
    )
    assert not is_running(run["result"])


def test_cancelling_by_force_leaves_nothing(far: Tau) -> None:
    run_id, pids = start_far(far, STUBBORN)
    assert far("cancel", run_id, "--force")["status"] == "cancelled"
    eventually(lambda: not any(map(is_running, pids)))


def test_a_scheduler_that_takes_its_place_back_is_obeyed(far: Tau) -> None:
    text = "import os, time\ndef it(ctx):\n    ctx.log(os.getppid())\n    ctx.log(os.getcwd())\n    time.sleep(600)"
    run_id, (supervisor,) = start_far(far, text)
    os.kill(supervisor, signal.SIGTERM)
    run = far("wait", run_id, exit=1)
    assert (run["status"], run["error"]["type"], run["error"]["code"]) == ("failed", "Stopped", "time.sleep(600)")
    eventually(lambda: not os.path.exists(os.path.dirname(run["trace"]["log_tail"][1])))


# The daemon goes, the run stays.


def test_a_later_daemon_adopts_the_run(far: Tau) -> None:
    text = """
        import os, time
        def it(ctx):
            ctx.log(os.getpid())
            while not os.path.exists(GO):
                time.sleep(0.01)
            return 'done'
        """
    go = far.work / "go"
    run_id, _ = start_far(far, textwrap.dedent(text).replace("GO", repr(str(go))))
    far.kill()
    far.start()
    eventually(lambda: [one for one in far("status")["processes"] if one.get("executor") == "far"])
    go.touch()
    assert far("wait", run_id)["result"] == "done"
    go.unlink()
    run_id, (pid,) = start_far(far, textwrap.dedent(text).replace("GO", repr(str(go))))
    far.kill()
    go.touch()
    eventually(lambda: not is_running(pid))
    far.start()
    run = far("wait", run_id)
    assert (run["status"], run["result"], run["resources"]["exit_code"]) == ("success", "done", 0)
    go.unlink()


# The connection goes.


def command_of(tau: Tau, run_id: str) -> int:
    """The pid of the executor's command for a run."""
    relay = next(one["pid"] for one in tau("status")["processes"] if one.get("run_id") == run_id)
    return int(Path(f"/proc/{relay}/task/{relay}/children").read_text().split()[0])


def test_a_connection_that_is_cut_is_a_lost_run_and_nothing_goes_on_there(far: Tau) -> None:
    run_id, pids = start_far(far, STUBBORN)
    os.kill(command_of(far, run_id), signal.SIGKILL)
    run = far("wait", run_id, exit=1)
    assert (run["status"], run["error"]["kind"], run["error"]["type"]) == ("lost", "lost", "ConnectionLost")
    assert run["error"]["message"] == "the connection to executor 'far' was lost; its command was killed by SIGKILL"
    eventually(lambda: not any(map(is_running, pids)))


def test_a_relay_that_is_killed_takes_the_run_with_it(far: Tau) -> None:
    run_id, pids = start_far(far, STUBBORN)
    os.kill(next(one["pid"] for one in far("status")["processes"] if one.get("run_id") == run_id), signal.SIGKILL)
    assert far("wait", run_id, exit=1)["status"] == "lost"
    eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("lone", [config_of(["sh", "-c", 'trap "" TERM; "$@"', "sh"])], indirect=True)
def test_how_a_run_ends_that_its_killed_relay_takes_with_it_is_not_its_own_end(lone: Tau) -> None:
    run_id, _ = start_far(lone, SLEEPING)
    os.kill(next(one["pid"] for one in lone("status")["processes"] if one.get("run_id") == run_id), signal.SIGKILL)
    run = lone("wait", run_id, exit=1)
    assert (run["status"], run["error"]["type"]) == ("lost", "ConnectionLost")


def test_a_connection_that_falls_silent_is_a_lost_run(far: Tau) -> None:
    run_id, pids = start_far(far, STUBBORN, "quiet")
    os.kill(command_of(far, run_id), signal.SIGSTOP)
    run = far("wait", run_id, exit=1)
    assert run["status"] == "lost"
    assert run["trace"]["log_tail"][-1] == f"nothing was heard of executor 'quiet' for {LOST_AFTER_S:g} s"
    eventually(lambda: not any(map(is_running, pids)))


def test_a_quiet_run_is_not_a_silent_connection(far: Tau) -> None:
    far.deploy_it(f"import time\ndef it(ctx):\n    time.sleep({LOST_AFTER_S + 0.5})\n    return 1")
    assert far("run", "it", "--executor", "quiet")["result"] == 1


def test_a_lost_run_may_be_tried_again(far: Tau) -> None:
    text = "import os, time\n@pipeline(retries=1, retry_on=['lost'])\ndef it(ctx):\n"
    text += "    ctx.log(os.getpid())\n    if ctx.attempt == 1:\n        time.sleep(600)\n    return ctx.attempt"
    far.deploy("from tau import pipeline\n" + text)
    run_id = far("run", "it", "--executor", "far", "--detach")["run_id"]
    eventually(lambda: far.call("logs", run_id=run_id)["lines"])
    os.kill(command_of(far, run_id), signal.SIGKILL)
    assert far("wait", run_id)["result"] == 2


# What goes wrong before it begins; with commands that lead nowhere far.

#: What the command does with the interpreter's words that follow.
THEN = 'exec "$@"'


def shell(text: str) -> list[str]:
    """A command that does something first, or instead."""
    return ["sh", "-c", text, "sh"]


BEFORE = {
    "no such program": (["no-such-program"], "failed", "exited with code 127 before the run began", 127),
    "another end": (
        shell("echo not today >&2; exit 3"),
        "failed",
        "exited with code 3 before the run began there: not today",
        3,
    ),
    "nothing at all": (["true"], "failed", "exited with code 0 before the run began there", 0),
    "no connection": (
        shell("echo refused >&2; exit 255"),
        "lost",
        "was lost; its command exited with code 255: re",
        255,
    ),
    "killed": (shell("kill -9 $$"), "lost", "was lost; its command was killed by SIGKILL", None),
}


@pytest.mark.parametrize(
    ("lone", "status", "message", "code"),
    [(config_of(command), *more) for command, *more in BEFORE.values()],
    ids=BEFORE,
    indirect=["lone"],
)
def test_a_command_that_leads_nowhere_says_why(lone: Tau, status: str, message: str, code: int | None) -> None:
    run = run_far(lone, "def it(ctx): ...", exit=1)
    assert run["status"] == status
    assert message in run["error"]["message"]
    assert run["resources"]["exit_code"] == code


OLD = 'import sys; sys.version_info = (3, 9, 2); sys.version = "3.9.2 (old)"; exec(sys.argv[1])'
AN_OLD_PYTHON = shell(f"shift 2; exec {PYTHON} -c '{OLD}' \"$@\"")


@pytest.mark.parametrize("lone", [config_of(AN_OLD_PYTHON)], indirect=True)
def test_an_old_python_is_told_so(lone: Tau) -> None:
    run = run_far(lone, "def it(ctx): ...", exit=1)
    assert run["error"]["message"].endswith("began there: tau: Python 3.11 or newer is needed here, this is 3.9.2")


@pytest.mark.parametrize("lone", [config_of(shell("echo welcome; printf 'half a line'; " + THEN))], indirect=True)
def test_what_a_shell_prints_first_does_no_harm(lone: Tau) -> None:
    run = run_far(lone, "def it(ctx):\n    print('one')\n    return 1")
    assert (run["result"], run["trace"]["log_tail"]) == (1, ["one"])


@pytest.mark.parametrize("lone", [config_of(shell("exec sleep 600"))], indirect=True)
def test_a_run_can_be_cancelled_from_its_first_moment_on(lone: Tau) -> None:
    data = lone.work / "data.bin"
    data.write_bytes(os.urandom(3 << 20))  # much to pack, meanwhile it is cancelled
    path = lone.write("from tau import pipeline\n@pipeline\ndef it(ctx): ...\n")
    lone("deploy", path, "--include", data)
    for _ in range(5):
        run_id = lone.call("run", name="it", executor="far", wait=False)["run_id"]
        assert lone.call("cancel", run_id=run_id)["status"] == "cancelled"
        assert lone.call("inspect", run_id=run_id)["resources"]["signal"] == signal.SIGTERM


@pytest.mark.parametrize("lone", [config_of(shell("echo $$ >&2; exec sleep 600"))], indirect=True)
def test_a_run_that_still_waits_for_its_place_can_be_cancelled(lone: Tau) -> None:
    run_id, (pid,) = start_far(lone, "def it(ctx): ...")
    assert is_running(pid)
    assert lone("cancel", run_id)["status"] == "cancelled"
    assert not is_running(pid)


@pytest.mark.parametrize("lone", [config_of(shell("sleep 3; " + THEN))], indirect=True)
def test_the_time_limit_begins_where_the_run_does(lone: Tau) -> None:
    lone.deploy("from tau import pipeline\n@pipeline(timeout=2.0)\ndef it(ctx):\n    return 1")
    assert lone("run", "it", "--executor", "far")["result"] == 1


@pytest.mark.parametrize("lone", [config_of(["env", "RUN={run_id}", "NAME={pipeline}.{attempt}"])], indirect=True)
def test_the_command_may_name_the_run(lone: Tau) -> None:
    run = run_far(lone, "import os\ndef it(ctx):\n    return [os.environ['RUN'], os.environ['NAME']]")
    assert run["result"] == [run["run_id"], "it.1"]


@pytest.mark.parametrize("lone", [config_of(["env"], "start_method = 'spawn'")], indirect=True)
def test_where_fork_is_not_safe_too(lone: Tau) -> None:
    run = run_far(lone, "def it(ctx):\n    return 1")
    assert (run["result"], run["executor"]) == (1, "far")


def test_ssh_gets_words_that_its_shell_leaves_alone(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "here" $HOME & there'
    folder.mkdir()
    (folder / "python").symlink_to(PYTHON)
    with MACHINES["ssh"]() as command, running(make_home(config_of(command, python=str(folder / "python")))) as tau:
        assert run_far(tau, "import sys\ndef it(ctx):\n    return sys.executable")["result"] == f"{folder}/python"


def test_what_a_killed_run_left_there_is_removed_by_a_later_one(tmp_path: Path) -> None:
    folders = [tmp_path / f"{module.OUTPOST_PREFIX}{name}" for name in ("left", "held", "young")]
    for folder in folders:
        folder.mkdir()
        (folder / "tau.py").touch()
    for folder in folders[:2]:
        os.utime(folder, (0, 0))
    held = os.open(folders[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with running(make_home(config_of(["env", f"TMPDIR={tmp_path}"]))) as tau:
        assert run_far(tau, "import tempfile\ndef it(ctx):\n    return tempfile.gettempdir()")["result"] == str(
            tmp_path
        )
    os.close(held)
    assert sorted(tmp_path.iterdir()) == sorted(folders[1:])


# Configuration.


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_an_unknown_executor_is_refused_at_deploy_and_at_run(lone: Tau) -> None:
    text = "from tau import pipeline\n@pipeline(executor='farr')\ndef it(ctx): ...\n"
    refused = lone.deploy(text, exit=2)
    assert (refused["message"], refused["hint"]) == ("there is no executor 'farr'", "did you mean 'far'?")
    assert lone.command("check", lone.work / "pipelines.py").json["error"]["message"] == refused["message"]
    lone.deploy_it("def it(ctx): ...")
    assert lone("run", "it", "--executor", "fra", exit=2)["hint"] == "did you mean 'far'?"
    assert "[executors.worker1]" in lone("run", "it", "--executor", "elsewhere", exit=2)["hint"]
    assert lone("runs", "it")["runs"] == []


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_what_to_do_next_is_to_run_it_there_again(lone: Tau) -> None:
    lone.deploy_it("def it(ctx):\n    return 1")
    for executor in ("far", "local"):
        assert lone("run", "it", "--executor", executor)["next"][-1] == f"tau run it --executor {executor}"
    assert lone("run", "it")["next"][-1] == "tau run it"


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_an_executor_that_was_taken_away_fails_the_run(lone: Tau) -> None:
    lone.deploy("from tau import pipeline\n@pipeline(executor='far')\ndef it(ctx): ...\n")
    assert lone("run", "it")["status"] == "success"
    lone("shutdown")
    (lone.home / "tau.toml").write_text("")
    lone.start()
    run = lone("run", "it", exit=1)
    assert (run["executor"], run["status"]) == ("far", "failed")
    assert run["error"]["message"] == "there is no executor 'far' in tau.toml any more"


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_dependencies_must_be_there_already(lone: Tau) -> None:
    requirement = f"tinything @ {wheel(lone.work, '1.0').as_uri()}"
    head = f'# /// script\n# dependencies = ["{requirement}"]\n# ///\nfrom tau import pipeline\n'
    with open(lone.home / "tau.toml", "a") as config:
        config.write('\n[executors.equipped]\ncommand = ["env"]\nhas_dependencies = true\n')
    lone("shutdown")
    lone.start()
    refused = lone.deploy(head + "@pipeline(executor='far')\ndef it(ctx): ...\n", exit=2)
    assert refused["message"] == "Tau does not install the file's dependencies on executor 'far'"
    assert "has_dependencies = true" in refused["hint"]
    lone.deploy(head + "@pipeline\ndef it(ctx): ...\n")
    assert lone("run", "it", "--executor", "far", exit=2)["message"] == refused["message"]
    assert lone("run", "it", "--executor", "equipped")["status"] == "success"


REFUSED = [
    ("[executors]\nfar = 'x'\n", '[executors.far]: expected object, given string "x"'),
    ("[executors.local]\ncommand = ['env']\n", "[executors.local] is this machine"),
    ("[executors.far]\npython = 'python3'\n", "[executors.far]: 'command' is missing: expected array of string"),
    ("[executors.far]\ncommand = 'ssh worker1'\n", "[executors.far].command: expected array of string, given string"),
    ("[executors.far]\ncommand = []\n", "[executors.far].command: expected at least 1 items, given 0"),
    ("[executors.far]\ncommand = ['env', 5]\n", "[executors.far].command[1]: expected string, given integer 5"),
    ("[executors.far]\ncommand = ['env']\npython = ['x']\n", "[executors.far].python: expected string, given array"),
    (
        "[executors.far]\ncommand = ['env']\nlost_after_s = 0\n",
        "[executors.far].lost_after_s: expected a number from 1 to 86,400",
    ),
    (
        "[executors.far]\ncommand = ['env']\nhas_dependencies = 1\n",
        "[executors.far].has_dependencies: expected boolean, given integer 1",
    ),
    ("[executors.far]\ncomand = ['env']\n", "[executors.far]: unknown key 'comand'; did you mean 'command'?"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tau.toml"
    path.write_text(text)
    with pytest.raises(module.BadRequest) as refused:
        module.read_settings({}, str(path))
    assert message in f"{refused.value}; {refused.value.hint}"


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_status_names_the_executor_of_each_live_run(lone: Tau) -> None:
    run_id, _ = start_far(lone, SLEEPING)
    status = lone("status")
    assert [one["executor"] for one in status["processes"] if one.get("run_id") == run_id] == ["far"]
    assert lone("inspect", run_id)["executor"] == "far"
    lone("cancel", run_id)


VERDICTS = [
    ({"exit_code": 0, "signal": None, "host": "there"}, {"end": {}}, "failed", "died"),
    ({"exit_code": 0, "signal": None}, {"pid": 1}, "lost", "lost"),
    ({"exit_code": 137, "signal": None}, {"pid": 1}, "lost", "lost"),
    ({"exit_code": 255, "signal": None}, None, "lost", "lost"),
    ({"exit_code": 1, "signal": None}, None, "failed", "died"),
    (None, {"pid": 1}, "lost", "lost"),
]


@pytest.mark.parametrize(("ended", "remote", "status", "kind"), VERDICTS)
def test_the_verdict_of_a_run_elsewhere(ended: Json | None, remote: Json | None, status: str, kind: str) -> None:
    start = {"pid": 1, "executor": "far"} | ({} if remote is None else {"remote": remote})
    outcome = module.verdict(None, ended, None, start)
    assert outcome.error is not None
    assert (outcome.status, outcome.error["kind"]) == (status, kind)


def test_the_readmes_executors_are_accepted(tmp_path: Path) -> None:
    (block,) = (one for one in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "[executors." in one)
    path = tmp_path / "tau.toml"
    path.write_text(block)
    executors = module.read_settings({}, str(path))["executors"]
    assert set(executors) == {"worker1", "slurm", "docker", "cluster"}
    assert executors["worker1"] == {
        "command": ["ssh", "worker1"],
        "python": "python3",
        "lost_after_s": 60.0,
        "has_dependencies": False,
    }


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def other_pythons() -> list[str]:
    """Interpreters of other versions than ours that Tau runs on."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [f"python3.{minor}" for minor in (11, 12, 13) if minor != sys.version_info[1]]
    found = [next(iter(root.glob(f"{name.removeprefix('python')}.*/bin/{name}")), shutil.which(name)) for name in names]
    return [str(path) for path in found if path is not None]


def test_another_version_of_python_may_be_there() -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("there is but one Python")
    text = "import sys\ndef it(ctx):\n    with ctx.step('a'):\n        ctx.log('in')\n    return sys.executable"
    for python in pythons:
        with running(make_home(config_of(["env"], python=python))) as tau:
            run = run_far(tau, text)
            assert (Path(run["result"]).resolve(), run["trace"]["log_tail"]) == (Path(python).resolve(), ["in"])


ENDS = {"return 'done'": ("success", 0), "os._exit(3)": ("failed", 3), "os.kill(os.getpid(), 9)": ("failed", None)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_the_end_is_known_though_daemon_and_fork_server_were_killed(lone: Tau, end: str) -> None:
    go = lone.work / "go"
    text = f"import os, time\ndef it(ctx):\n    ctx.log(os.getpid())\n    while not os.path.exists({str(go)!r}):\n"
    run_id, (pid,) = start_far(lone, f"{text}        time.sleep(0.01)\n    {end}")
    server = next(one["pid"] for one in lone("status")["processes"] if one["role"] == "fork server")
    lone.kill()
    os.kill(server, signal.SIGKILL)
    go.touch()
    eventually(lambda: not is_running(pid))
    lone.start()
    run = lone.command("wait", run_id).json
    assert (run["status"], run["resources"]["exit_code"]) == ENDS[end]


@pytest.mark.parametrize("lone", [config_of(["env"])], indirect=True)
def test_many_at_once_each_with_its_own_end(lone: Tau) -> None:
    lone.deploy_it("def it(ctx, n: int):\n    print(n)\n    return n")
    many = 12 if THOROUGH else 5
    with lone.connect() as wire:
        ids = [wire.call("run", name="it", params={"n": n}, executor="far", wait=False)["run_id"] for n in range(many)]
        runs = wire.call("wait", run_id=ids)["runs"]
    assert [(run["result"], run["trace"]["log_tail"]) for run in runs] == [(n, [str(n)]) for n in range(many)]


@pytest.mark.parametrize("lone", [config_of(shell('while :; do sleep 600; done & exec "$@"'))], indirect=True)
def test_what_the_command_leaves_behind_here_is_ended_too(lone: Tau) -> None:
    assert run_far(lone, "def it(ctx):\n    return 1")["result"] == 1
    left = lambda: {Path(f"/proc/{pid}/comm").read_text().strip() for pid in lone.remains()} & {"sh", "sleep"}  # noqa: E731
    eventually(lambda: not left())


STRANGE = [
    {"t": "far_start", "host": "h", "at": 1.0, "mono": 1.0},
    {"t": "memo", "key": "../../evil", "data": "eA=="},
    {"t": "memo", "key": "0123456789ab", "data": "!"},
    {"t": "memo", "key": None, "data": None},
    {"t": "far_end", "host": "h"},
    {"t": "far_end", "host": "h", "at": "no time", "mono": 1.0},
    {"t": "returned", "result": 5, "waits_for": "nothing", "at": 2.0, "mono": 2.5},
]
SPOKEN = shell("cat <<'END'\n" + "\n".join(map(json.dumps, STRANGE)) + "\nEND\ncat >/dev/null & exit 0")


@pytest.mark.parametrize("lone", [config_of(SPOKEN)], indirect=True)
def test_what_comes_from_there_is_kept_within_bounds(lone: Tau) -> None:
    run = run_far(lone, "def it(ctx): ...")
    assert (run["result"], run["duration_ms"]) == (5, 1500.0)
    assert not [path for path in lone.home.rglob("*") if "evil" in path.name]


FLOOD = shell(
    'echo; echo \'{"t":"far_start","at":1,"mono":1,"host":"h"}\'; while :; do head -c 100000 /dev/zero; sleep 0.02; done'
)
BOUNDS = "[limits]\nlog_bytes = 100000\nresult_bytes = 100000\nmemo_bytes = 100000\n"


@pytest.mark.parametrize("lone", [config_of(FLOOD) + "\n" + BOUNDS], indirect=True)
def test_a_command_that_sends_without_end_is_ended(lone: Tau) -> None:
    lone.deploy_it("def it(ctx): ...")
    run = lone("run", "it", "--executor", "far", exit=1)
    assert (run["status"], run["error"]["type"]) == ("lost", "ConnectionLost")
    assert any("has sent more than 1,200,000 bytes" in line for line in run["trace"]["log_tail"])


NAMED = shell(
    'server=$(cut -d\' \' -f4 /proc/$PPID/stat); echo; echo \'{"t":"far_start","at":1,"mono":1,"host":"h"}\';'
    ' for t in start far_start; do echo "{\\"t\\":\\"$t\\",\\"at\\":1,\\"mono\\":1,\\"host\\":\\"h\\",'
    '\\"boot\\":\\"$(cat /proc/sys/kernel/random/boot_id)\\",\\"pid\\":$server,'
    '\\"started\\":\\"$(cut -d\' \' -f22 /proc/$server/stat)\\"}"; done; cat >/dev/null'
)


@pytest.mark.parametrize("lone", [config_of(NAMED)], indirect=True)
def test_a_machine_that_names_the_fork_server_does_not_have_it_killed(lone: Tau) -> None:
    lone.deploy_it("def it(ctx): ...")
    run_id = lone.call("run", name="it", executor="far", wait=False)["run_id"]
    eventually(lambda: [row for row in lone.call("status")["processes"] if row.get("run_id") == run_id])
    server = next(row["pid"] for row in lone.call("status")["processes"] if row["role"] == "fork server")
    eventually(lambda: (lone.home / "runs" / f"{run_id}.1.journal").read_bytes().count(b"far_start") > 1)
    assert f'"pid":{server}'.encode() in (lone.home / "runs" / f"{run_id}.1.journal").read_bytes()
    lone("cancel", run_id, "--force")
    assert is_running(server)
    assert server == next(row["pid"] for row in lone.call("status")["processes"] if row["role"] == "fork server")


def test_ssh_may_stand_behind_other_words() -> None:
    job = {"run_id": "r", "pipeline": "p", "attempt": 1}
    words = module.command_words(job | {"executor": {"command": ["timeout", "1h", "ssh", "w"], "python": "python3"}})
    assert words[:6] == ["timeout", "1h", "ssh", "-o", "ControlMaster=no", "w"]
    assert words[-1].startswith("'")
