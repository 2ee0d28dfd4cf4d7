"""How a run ended is told rightly, whatever its pools, handlers, threads and orphans do; nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import PATIENCE_S, Tau, eventually, is_running, make_home, python, run, running, started


def begun(tau: Tau, text: str, *words: str) -> str:
    """Deploys such text and starts it; the id of its run once it has logged `in`."""
    tau.deploy_it(text)
    run_id: str = tau.call("run", name="it", wait=False)["run_id"]
    eventually(lambda: any(line["message"] == "in" for line in tau.call("logs", run_id=run_id)["lines"]))
    return run_id


# SIGTERM in children of a run.

POOLS = {
    "a pool of concurrent.futures": (
        "with concurrent.futures.ProcessPoolExecutor(2) as pool:\n"
        "            tasks = [pool.submit(time.sleep, 600) for _ in range(2)]\n"
        "            ctx.log('in')\n            tasks[0].result()"
    ),
    "a pool of multiprocessing": (
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "            tasks = pool.map_async(time.sleep, [600, 600])\n"
        "            ctx.log('in')\n            tasks.get()"
    ),
}


@pytest.fixture(scope="module")
def patient() -> Iterator[Tau]:
    """A daemon that gives its runs much time to end, which none of them should need."""
    yield from started(make_home("[daemon]\nstop_grace_s = 600.0\n"))


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("name", POOLS)
def test_a_run_with_a_pool_is_cancelled_at_once_and_without_noise(patient: Tau, name: str, kind: str) -> None:
    text = f"import concurrent.futures, multiprocessing, time\n{kind} it(ctx):\n    if True:\n        {POOLS[name]}\n"
    run_id = begun(patient, text)
    began = time.monotonic()
    assert patient.call("cancel", run_id=run_id)["status"] == "cancelled"
    assert time.monotonic() - began < PATIENCE_S
    lines = [line["message"] for line in patient.call("logs", run_id=run_id)["lines"]]
    assert not any("tau.py" in line for line in lines), lines


#: What terminates a child that the run has forked, and what the run returns then.
TERMINATED = {
    "a process of multiprocessing": """
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        child.terminate()
        child.join(20)
        return child.exitcode
    """,
    "a fork": """
        child = os.fork()
        if not child:
            time.sleep(600)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    """,
    "a fork that is forked by a thread": """
        made = []
        def fork():
            made.append(os.fork())
            if not made[0]:
                time.sleep(600)
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        os.kill(made[0], signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(made[0], 0)[1])
    """,
    "a pool that is left": """
        # They are busy: one that waits for work is asked to end, and may do so before it is terminated.
        with multiprocessing.get_context("fork").Pool(2, time.sleep, [600]) as pool:
            workers = list(pool._pool)
        for worker in workers:
            worker.join(20)
        return min(worker.exitcode for worker in workers)
    """,
    "a worker of a pool that dies": """
        try:
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                tasks = [pool.submit(time.sleep, 600), pool.submit(time.sleep, 600)]
                os.kill(next(iter(pool._processes)), signal.SIGKILL)
                tasks[0].result()
        except concurrent.futures.process.BrokenProcessPool:
            return -15
    """,
    "a child with the author's own handler": """
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(-15 & 0x7F))
        child = os.fork()
        # Not one long sleep: a signal that comes between Python's last look and the system call does not end it.
        while not child:
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - (-15 & 0x7F) - 15
    """,
}


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("name", TERMINATED)
def test_a_child_of_a_run_ends_as_in_plain_python_when_it_is_terminated(patient: Tau, name: str, kind: str) -> None:
    body = TERMINATED[name].replace("\n        ", "\n    ").rstrip()
    imports = "import concurrent.futures, multiprocessing, os, signal, threading, time"
    patient.deploy_it(f"{imports}\n{kind} it(ctx):{body}\n")
    began = time.monotonic()
    done = patient.call("run", name="it", timeout=PATIENCE_S)
    assert (done["status"], done["result"]) == ("success", -15), done["error"]
    assert time.monotonic() - began < PATIENCE_S  # not the grace time
    assert done["trace"]["log_tail"] == []


def test_a_signal_before_the_fork_has_set_itself_up_ends_the_child_alone(tau: Tau) -> None:
    """A handler of the run's runs in the child when the signal comes before the hooks of the fork."""
    done = tau.run_it(
        """
        import os, signal, threading
        def it(ctx):
            run = os.getpid()
            hooks = []
            # Hooks in the child run in the order of their registration: ours comes after Tau's, so restore its handler.
            handler = signal.getsignal(signal.SIGTERM)
            child = os.fork()
            if not child:
                signal.signal(signal.SIGTERM, handler)  # as it is before the hooks
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(3)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        """
    )
    assert done["result"] == -15


# Own handlers, and other ways to return after a stop.

STOP_IGNORED = {
    "a handler that sets a flag": (
        "over = []\n    signal.signal(signal.SIGTERM, lambda *_: over.append(1))\n    ctx.log('in')\n"
        "    while not over:\n        time.sleep(0.01)\n    return 'half'",
        "half",
    ),
    "a handler that leaves with 0": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n    ctx.log('in')\n    time.sleep(600)",
        None,
    ),
    "an except of everything": (
        "try:\n        ctx.log('in')\n        time.sleep(600)\n    except BaseException:\n        return {'rows': 7}",
        {"rows": 7},
    ),
}


@pytest.mark.parametrize("name", STOP_IGNORED)
@pytest.mark.parametrize("status", ["cancelled", "timed_out"])
def test_what_is_returned_after_a_stop_is_no_success(tau: Tau, name: str, status: str) -> None:
    body, partial = STOP_IGNORED[name]
    tau.deploy(
        "import signal, sys, time\nfrom tau import pipeline\n"
        f"@pipeline(timeout={60 if status == 'cancelled' else 0.3})\ndef it(ctx):\n    {body}\n"
        "@pipeline(after='it')\ndef follows(ctx): ...\n"
    )
    run_id = tau.call("run", name="it", wait=False)["run_id"]
    if status == "cancelled":
        eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
        assert tau.call("cancel", run_id=run_id)["status"] == "cancelled"
    run = tau.call("wait", run_id=run_id)
    assert (run["status"], run["result"], run.get("partial_result")) == (status, None, partial)
    assert run["error"]["kind"] == {"cancelled": "cancelled", "timed_out": "timeout"}[status]
    assert tau.call("runs", name="follows")["runs"] == []
    tau("undeploy", "follows")


def test_a_result_from_before_the_stop_stays_a_success_although_the_clock_steps(tau: Tau) -> None:
    run_id = begun(
        tau,
        """
        import atexit, time, tau
        def it(ctx):
            ctx.log("in")
            tau.now = tau.monotonic = lambda: 4e9  # it says that it returns after any stop
            atexit.register(time.sleep, 600)
            return "whole"
        """,
    )
    eventually(lambda: tau.call("inspect", run_id=run_id).get("waiting"))
    assert tau.call("cancel", run_id=run_id)["status"] == "success"
    assert tau.call("inspect", run_id=run_id)["result"] == "whole"


# Threads that outlive the function.

HEARTBEAT = """
    import threading, time
    from tau import pipeline
    def beat():
        while True:
            time.sleep(0.05)
    @pipeline(retries=1, retry_delay=0, timeout={timeout})
    def it(ctx):
        threading.Thread(target=beat, name="heartbeat", daemon=False).start()
        {end}
"""


@pytest.mark.parametrize("timeout", ["None", "0.2"])
def test_an_error_is_told_and_tried_again_although_a_thread_lives_on(tau: Tau, timeout: str) -> None:
    tau.deploy(HEARTBEAT.format(end="raise ValueError('the truth')", timeout=timeout))
    run_id = tau.call("run", name="it", wait=False)["run_id"]
    shown = eventually(lambda: (run := tau.call("inspect", run_id=run_id)).get("waiting") and run)
    assert shown["waiting"] == "raised; waits for thread heartbeat"
    assert (shown["status"], shown["error"]["message"]) == ("running", "the truth")
    run = tau.call("wait", run_id=run_id, timeout=PATIENCE_S)
    assert (run["status"], run["attempt"], run["error"]["type"], run["error"]["message"]) == (
        *("failed", 2, "ValueError", "the truth"),
    )
    assert [attempt["status"] for attempt in run["attempts"]] == ["failed", "failed"]
    assert "waiting" not in run
    assert "it was ended while it waited for thread heartbeat" in run["trace"]["log_tail"]


def test_a_run_that_has_returned_and_waits_for_a_thread_gives_its_slot_back(tau: Tau) -> None:
    tau.deploy(HEARTBEAT.format(end="return 'done'", timeout="None"))
    run_id = tau.call("run", name="it", wait=False)["run_id"]
    eventually(lambda: tau.call("inspect", run_id=run_id).get("waiting") == "returned; waits for thread heartbeat")
    run = tau.call("wait", run_id=run_id, timeout=PATIENCE_S)
    assert (run["status"], run["result"], run["attempt"]) == ("success", "done", 1)


def test_a_thread_that_ends_within_the_grace_is_waited_for(tau: Tau) -> None:
    run = tau.run_it(
        """
        import threading, time
        def late(ctx):
            time.sleep(0.3)
            ctx.log("written by the thread")
        def it(ctx):
            threading.Thread(target=late, args=(ctx,)).start()
        """
    )
    assert (run["status"], run["trace"]["log_tail"]) == ("success", ["written by the thread"])
    assert run["resources"]["exit_code"] == 0


# Orphans.

REAPING = """
import os, subprocess, time

def zombies():
    lines = subprocess.run(["ps", "-eo", "ppid,stat"], capture_output=True, text=True).stdout.splitlines()
    return sum(line.split()[0] == str(os.getpid()) and "Z" in line for line in lines)

def server():
    return int(open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[1])

def children(pid):
    return open(f"/proc/{pid}/task/{pid}/children").read().split()

def it(ctx):
    for _ in range(20):
        subprocess.run("sleep 0.05 &", shell=True)
    worker = os.fork()
    if worker == 0:
        time.sleep(0.5)
        os._exit(7)
    pid, status = os.wait()
    return [pid == worker, os.waitstatus_to_exitcode(status), zombies(), len(children(server())) < 10]
"""


def test_orphans_are_no_children_of_their_run_and_leave_no_zombies(tau: Tau) -> None:
    run = tau.run_it(REAPING)
    assert run["result"] == [True, 7, 0, True]


#: How a run starts what is to outlive it; each writes the pid to the file `pids`.
LEAVERS = {
    "in the background": "(sleep 600 & echo $! >> pids)",
    "in a session of its own": "setsid sh -c 'echo $$ >> pids; exec sleep 600' &",
    "daemonized twice": "setsid sh -c '(setsid sh -c \"echo \\$\\$ >> pids; exec sleep 600\" &)' &",
    "deaf": "setsid sh -c 'trap \"\" TERM; echo $$ >> pids; while :; do sleep 0.05; done' &",
}


def test_descendants_of_ten_runs_at_once_are_not_confused_and_none_outlives_its_run() -> None:
    with running(make_home("[daemon]\nstop_grace_s = 0.5\n[scheduler]\nmax_concurrent = 10\n")) as tau:
        tau.deploy_it(
            f"""
            import os, subprocess, time
            def it(ctx):
                os.makedirs(ctx.run_id)
                os.chdir(ctx.run_id)
                for line in {[*LEAVERS.values()]!r}:
                    subprocess.run(line, shell=True)
                while not os.path.exists("go"):
                    time.sleep(0.01)
                if ctx.params["way"] == 1:
                    os._exit(3)
                if ctx.params["way"] == 2:
                    raise ValueError
            """
        )
        ids = [tau.call("run", name="it", wait=False, params={"way": n % 3})["run_id"] for n in range(10)]
        folder = tau.home / "data/it"

        def pids(run_id: str) -> list[int]:
            path = folder / run_id / "pids"
            return [int(pid) for pid in path.read_text().split()] if path.exists() else []

        for run_id in ids:
            eventually(lambda run_id=run_id: len(pids(run_id)) == len(LEAVERS))
        left = {run_id: pids(run_id) for run_id in ids}
        while left:
            gone = ids.pop(0), ids.pop(len(ids) // 2)
            for run_id in gone:
                (folder / run_id / "go").touch()
            for run_id in gone:
                tau.call("wait", run_id=run_id, timeout=PATIENCE_S)
                assert not any(map(is_running, left.pop(run_id)))
            assert all(is_running(pid) for others in left.values() for pid in others)


def test_what_a_run_leaves_is_ended_also_when_its_fork_server_is_gone(fresh: Tau) -> None:
    fresh.deploy_it(
        f"""
        import os, subprocess, time
        def it(ctx):
            for line in {[*LEAVERS.values()]!r}:
                subprocess.run(line, shell=True)
            time.sleep(600)
        """
    )
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    path = fresh.home / "data/it/pids"
    eventually(lambda: path.exists() and len(path.read_text().split()) == len(LEAVERS))
    eventually(lambda: len(fresh.call("status")["processes"]) == 3)
    roles = {one["role"]: one["pid"] for one in fresh.call("status")["processes"]}
    os.kill(roles["fork server"], signal.SIGKILL)
    os.kill(roles["run"], signal.SIGKILL)
    assert fresh.call("wait", run_id=run_id)["status"] == "lost"
    eventually(lambda: not any(is_running(int(pid)) for pid in path.read_text().split()))


# sys.exit.

EXITS = {
    "sys.exit(0)": (None, "success", 0),
    "sys.exit()": (None, "success", 0),
    "sys.exit(None)": (None, "success", 0),
    "sys.exit(3)": ("3", "failed", 3),
    "sys.exit('no more rows')": ("no more rows", "failed", 1),
    "argparse.ArgumentParser(prog='tool').parse_args(['--help'])": (None, "success", 0),
    "argparse.ArgumentParser(prog='tool').parse_args(['--wrong'])": ("2", "failed", 2),
    "click()": (None, "success", 0),
}


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("expression", EXITS)
def test_a_function_may_end_as_a_program_does(tau: Tau, expression: str, kind: str) -> None:
    message, status, code = EXITS[expression]
    tau.deploy_it(
        "import argparse, sys\ndef click():\n    raise SystemExit(0)  # as a `main()` of click ends\n"
        f"{kind} it(ctx):\n    ctx.state['n'] = 1\n    with ctx.step('main'):\n        {expression}\n"
    )
    run = tau.call("run", name="it", timeout=PATIENCE_S)
    assert (run["status"], run["resources"]["exit_code"]) == (status, code)
    assert run["trace"]["steps"][0]["status"] == status
    if message is None:
        assert "the function ended with sys.exit(0): success" in run["trace"]["log_tail"]
        assert run["result"] is None
    else:
        assert (run["error"]["type"], run["error"]["message"]) == ("SystemExit", message)


def test_a_file_that_leaves_while_it_is_loaded_is_no_success(tau: Tau) -> None:
    tau.deploy(
        "import os, sys\nfrom tau import pipeline\nif 'TAU_RUN_ID' in os.environ:\n    sys.exit(0)\n"
        "@pipeline\ndef it(ctx): ...\n"
    )
    run = tau.call("run", name="it")
    assert (run["status"], run["error"]["kind"], run["error"]["type"]) == ("failed", "load", "SystemExit")


# A name that changes.


def test_a_name_that_is_another_one_when_it_runs_is_told(home: Tau) -> None:
    home.environ["STAGE"] = "prod"
    home.start()
    home.deploy(
        "import os\nfrom tau import pipeline\n"
        "@pipeline(name=os.environ.get('STAGE', 'dev') + '_load')\ndef load(ctx): ...\n",
        "name.py",
    )
    assert home.call("run", name="prod_load")["status"] == "success"
    home("shutdown")
    eventually(lambda: not home.remains())
    del home.environ["STAGE"]
    home.start()
    error = home.call("run", name="prod_load")["error"]
    assert (error["kind"], error["message"]) == ("load", "the file no longer defines prod_load; it defines dev_load")


# Where a run is.


def test_a_run_reaches_its_own_daemon(home: Tau) -> None:
    """Also when it has another home than the usual, and the daemon was started where TAU_HOST names another."""
    home.environ |= {"TAU_HOST": "http://127.0.0.1:9", "TAU_ENV": "elsewhere"}
    environ = {name: value for name, value in home.environ.items() if name != "TAU_HOME"}
    done = run("taud", "--detach", "--home", str(home.home), cwd=home.work, environ=environ)
    assert done.exit == 0, done.err
    home("env", "add", "elsewhere", "http://127.0.0.1:9")
    home("env", "use", "elsewhere")
    home.deploy_it(
        "import os, tau\ndef it(ctx):\n    with tau.Client() as client:\n        return client.call('status', {})['home']\n"
    )
    run_ = home.call("run", name="it")
    assert run_["result"] == str(home.home), run_["error"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_run_has_the_umask_with_which_its_daemon_was_started_and_its_own_pwd(home: Tau, mask: int) -> None:
    subprocess.run([*python("taud"), "--detach"], umask=mask, env=home.environ, cwd=home.work, check=True)
    home.deploy_it(
        """
        import os, subprocess
        def it(ctx):
            open("out.csv", "w").close()
            os.mkdir("site")
            modes = [os.stat(name).st_mode & 0o777 for name in ("out.csv", "site")]
            return [*modes, os.environ["PWD"] == os.getcwd() == str(ctx.data_dir)]
        """
    )
    assert home.call("run", name="it")["result"] == [0o666 & ~mask, 0o777 & ~mask, True]
    private = [home.home, home.home / "tau.db", home.home / "data" / "it"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)


def test_without_docstrings_and_assertions_all_works(home: Tau) -> None:
    home.environ["PYTHONOPTIMIZE"] = "2"
    home.start()
    home.write(
        "from tau import pipeline\n@pipeline\ndef it(ctx, a: int = 0):\n    assert a == 1\n    return a\n", "it.py"
    )
    home("deploy", "it.py")
    assert home.call("run", name="it")["result"] == 0  # Python has left the assertion out
    assert home("run", "it", "-p", "a=1")["result"] == 1  # each such command reads the source for its docstrings
    assert home.call("run", name="it", wait=False)["run_id"]
    assert home.call("schedule", name="it", every="1h")["enabled"]
    assert home.call("inspect", name="it")["pipeline"] == "it"
    assert home("try", "it.py")["status"] == "success"
    assert "how many" in home.command("runs", "--help").out
    home.call("shutdown")
    eventually(lambda: not home.remains())
    home.environ["PYTHONOPTIMIZE"] = ""
    home.start()
    assert home.call("run", name="it")["error"]["type"] == "AssertionError"


def test_a_process_that_forks_away_again_and_again_is_ended(fresh: Tau) -> None:
    body = """
        import os, signal, time
        def it(ctx):
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                for number in range(100):
                    try:
                        os.close(number)
                    except OSError:
                        pass
                end = time.monotonic() + 600
                while time.monotonic() < end:
                    if os.fork():
                        os._exit(0)
                    os.setsid()
                    time.sleep(0.004)
            return 1
    """
    done = fresh.run_it(body, "--timeout", str(PATIENCE_S))
    assert done["result"] == 1
