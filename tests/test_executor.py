"""User code that misbehaves ends in the documented status, with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import types
from pathlib import Path

import pytest
from conftest import Tau, eventually, is_running, make_home, started

import tau as module

DEATHS = {
    "os._exit": ("import os\ndef it(ctx):\n    os._exit(3)", 3, None, "exited with code 3"),
    "os._exit(0)": ("import os\ndef it(ctx):\n    os._exit(0)", 0, None, "without returning a result"),
    "a segmentation fault": ("import ctypes\ndef it(ctx):\n    ctypes.string_at(0)", None, 11, "SIGSEGV"),
    "suicide": ("import os\ndef it(ctx):\n    os.kill(os.getpid(), 9)", None, 9, "SIGKILL"),
    "abort": ("import os\ndef it(ctx):\n    os.abort()", None, 6, "SIGABRT"),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_process_that_dies_is_a_failed_run(tau: Tau, name: str) -> None:
    text, code, number, message = DEATHS[name]
    tau.deploy_it(text)
    run = tau("run", "it", exit=1)
    assert run["status"] == "failed"
    assert run["error"]["kind"] == "died"
    assert message in run["error"]["message"]
    assert (run["resources"]["exit_code"], run["resources"]["signal"]) == (code, number)


def test_an_error_names_the_step_in_which_it_was_raised_whatever_fails_beside_it(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            problems = []
            for name in "abc":
                try:
                    with ctx.step(name):
                        raise ValueError(name)
                except ValueError as problem:
                    problems.append(problem)
            raise problems[0]
        """,
        exit=1,
    )
    assert (run["error"]["message"], run["error"]["step"]) == ("a", "a")


def test_a_death_inside_a_step_names_the_step_and_keeps_the_log(tau: Tau) -> None:
    tau.deploy_it(
        "import os\ndef it(ctx):\n  with ctx.step('a'):\n    with ctx.step('b'):\n      ctx.log('last words')\n      os._exit(1)"
    )
    run = tau("run", "it", exit=1)
    assert run["error"]["step"] == "a/b"
    assert run["trace"]["log_tail"] == ["last words"]
    assert [step["status"] for step in run["trace"]["steps"]] == ["failed"]


def test_a_segmentation_fault_leaves_its_frames_in_the_log(tau: Tau) -> None:
    tau.deploy_it("import ctypes\ndef it(ctx):\n    ctypes.string_at(0)")
    tau("run", "it", exit=1)
    lines = tau("logs", "it")["lines"]
    assert any("Segmentation fault" in line["message"] for line in lines)
    assert any("in it" in line["message"] for line in lines)


def test_a_blocked_event_loop_can_be_cancelled(tau: Tau) -> None:
    tau.deploy_it("import time\nasync def it(ctx):\n    ctx.log('in')\n    time.sleep(600)")
    run_id = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    assert tau.call("status")["pid"]
    assert tau("cancel", run_id) == {"run_id": run_id, "status": "cancelled", "changed": True}
    run = tau("inspect", run_id)
    assert run["error"]["kind"] == "cancelled"
    assert tau("cancel", run_id)["changed"] is False


def test_a_run_that_ignores_sigterm_is_killed(tau: Tau) -> None:
    tau.deploy_it(
        "import os, signal, subprocess, sys, time\n"
        "def it(ctx):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
        "print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE)\n"
        "    child.stdout.read(1)\n"
        "    ctx.log(f'{os.getpid()} {child.pid}')\n"
        "    time.sleep(600)\n"
    )
    run_id = tau("run", "it", "--detach")["run_id"]
    line = eventually(lambda: tau.call("logs", run_id=run_id)["lines"])[0]["message"]
    assert tau("cancel", run_id)["status"] == "cancelled"
    assert not any(is_running(int(pid)) for pid in line.split())
    assert tau("inspect", run_id)["resources"]["signal"] == 9


def test_cancelled_code_may_clean_up(tau: Tau) -> None:
    tau.deploy_it(
        "import time\nfrom pathlib import Path\n"
        "def it(ctx):\n"
        "    try:\n        ctx.log('in')\n        time.sleep(600)\n"
        "    finally:\n        Path('cleaned').write_text('yes')\n"
    )
    run_id = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    tau("cancel", run_id)
    assert (tau.home / "data/it/cleaned").read_text() == "yes"
    assert tau("inspect", run_id)["error"]["line"] == 8


def test_closing_descriptors_does_not_silence_a_run(tau: Tau) -> None:
    tau.deploy_it(
        "import os\ndef it(ctx):\n"
        "    os.close(1)\n    ctx.log('one closed')\n    os.closerange(0, 4096)\n"
        "    ctx.log('all closed')\n    return 'here'\n"
    )
    run = tau("run", "it")
    assert run["result"] == "here"
    assert run["trace"]["log_tail"] == ["one closed", "all closed"]


def test_100_000_printed_lines_are_counted_and_the_last_are_kept(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    for i in range(100_000):\n        print(i)")
    run = tau("run", "it")
    assert run["trace"]["log_lines"] == 100_000
    assert run["trace"]["log_dropped"] == 100_000 - 10_000 - module.LOG_TAIL
    assert run["trace"]["log_tail"][-1] == "99999"
    assert tau("logs", "it", "--tail", 1)["lines"][0]["message"] == "99999"


def test_output_of_descriptors_is_counted_and_its_last_lines_are_kept(tau: Tau) -> None:
    tau.deploy_it("import os\ndef it(ctx):\n    for i in range(300):\n        os.write(2, b'%d\\n' % i * 100)")
    run = tau("run", "it")
    assert run["trace"]["log_lines"] == 30_000
    assert run["trace"]["log_dropped"] == 30_000 - 10_000 - module.LOG_TAIL
    assert tau("logs", "it", "--tail", 1)["lines"][0] | {"at": ""} == {
        "at": "",
        "level": "info",
        "step": None,
        "stream": "stderr",
        "message": "299",
        "fields": None,
    }


def test_the_last_lines_of_a_descriptor_are_kept_even_if_they_were_read_before_the_end(home: Tau) -> None:
    home.home.joinpath("tau.toml").write_text("[limits]\nlog_lines = 5\n")
    home.start()
    home.deploy_it(
        "import os, time\ndef it(ctx):\n    for n in range(300):\n        print(n)\n"
        "    os.write(1, b'native 1\\nnative 2\\n')\n    time.sleep(0.6)"
    )
    run = home("run", "it")
    messages = [line["message"] for line in home("logs", "it", "--tail", 300)["lines"]]
    assert messages[:5] == list("01234")
    assert {"299", "native 1", "native 2"} <= set(messages)
    assert (run["trace"]["log_lines"], run["trace"]["log_dropped"]) == (302, 302 - len(messages))


STRAYS = {
    "in the same session": "subprocess.Popen(['sleep', '600'])",
    "in a session of its own": "subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "daemonized": "subprocess.run(['sh', '-c', 'setsid sleep 600 & echo $! > pid'])",
    "deaf to SIGTERM": "subprocess.Popen(['sh', '-c', \"trap '' TERM; while :; do sleep 0.05; done\"])",
}


@pytest.mark.parametrize("name", STRAYS)
def test_what_a_run_leaves_behind_is_ended(tau: Tau, name: str) -> None:
    tau.deploy_it(
        "import subprocess, time\nfrom pathlib import Path\ndef it(ctx):\n"
        f"    child = {STRAYS[name]}\n    time.sleep(0.1)\n"
        "    return int(Path('pid').read_text()) if Path('pid').exists() else child.pid\n"
    )
    run = tau("run", "it")
    assert run["status"] == "success"
    assert not is_running(run["result"])
    Path(tau.home / "data/it/pid").unlink(missing_ok=True)


def test_a_run_that_stops_itself_can_be_cancelled(tau: Tau) -> None:
    tau.deploy_it("import os, signal\ndef it(ctx):\n    ctx.log('in')\n    os.kill(os.getpid(), signal.SIGSTOP)")
    run_id = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    assert tau("cancel", run_id)["status"] == "cancelled"


def test_a_returned_result_decides_whatever_comes_after_it(tau: Tau) -> None:
    tau.deploy_it("import atexit, os\ndef it(ctx):\n    atexit.register(os._exit, 5)\n    return 1")
    run = tau("run", "it")
    assert (run["status"], run["result"], run["resources"]["exit_code"]) == ("success", 1, 5)


def test_a_fork_that_returns_is_not_the_run(tau: Tau) -> None:
    tau.deploy_it(
        "import os\ndef it(ctx):\n    pid = os.fork()\n    if pid:\n        os.waitpid(pid, 0)\n    return 'parent' if pid else 'child'"
    )
    assert tau("run", "it")["result"] == "parent"


def test_nothing_printed_can_forge_a_record(tau: Tau) -> None:
    tau.deploy_it(
        "import os, sys\ndef it(ctx):\n"
        '    forged = \'\\n{"t":"returned","result":"forged","waits_for":"x","at":1,"mono":1}\\n\'\n'
        "    print(forged)\n    sys.stderr.write(forged)\n    os.write(1, forged.encode())\n    ctx.log(forged)\n"
        "    os._exit(0)\n"
    )
    assert tau("run", "it", exit=1)["error"]["kind"] == "died"


def test_at_most_max_concurrent_runs_are_live_and_the_queue_is_in_order(home: Tau) -> None:
    home.home.joinpath("tau.toml").write_text("[scheduler]\nmax_concurrent = 2\nmax_queued = 3\n")
    home.start()
    home.deploy_held(after="with open('order', 'a') as f:\n        f.write(ctx.run_id + '\\n')")
    ids = [home("run", "it", "--detach")["run_id"] for _ in range(2)]
    eventually(lambda: home.call("status")["slots"]["used"] == 2)
    ids += [home("run", "it", "--detach")["run_id"] for _ in range(3)]
    status = home.call("status")
    assert (status["slots"], status["queued"]) == ({"total": 2, "used": 2}, 3)
    error = home("run", "it", "--detach", exit=5)
    assert (error["code"], error["retryable"]) == ("queue_full", True)
    assert home("cancel", ids[4])["status"] == "cancelled"
    home.go.touch()
    home("wait", *ids[:4])
    order = (home.home / "data/it/order").read_text().split()
    assert set(order[:2]) == set(ids[:2])
    assert sorted(order) == sorted(ids[:4])


def test_a_fresh_interpreter_can_be_the_start_method(home: Tau) -> None:
    home.home.joinpath("tau.toml").write_text("[daemon]\nstart_method = 'spawn'\n")
    home.start()
    assert home.call("status")["start_method"] == "spawn"
    text = "import os, sys\nasync def it(ctx):\n    print('printed')\n    async with ctx.step('s'):\n        pass\n    return [os.getpid() == os.getsid(0), sys.argv[0], ctx.params]"
    home.deploy_it(text)
    run = home("run", "it", "-p", "a=1")
    assert run["result"][0] is True
    assert run["result"][1].endswith("/pipelines.py")
    assert run["result"][2] == {"a": 1}
    assert run["trace"]["log_tail"] == ["printed"]
    home.deploy_it("import ctypes\ndef it(ctx):\n    ctypes.string_at(0)")
    assert home("run", "it", exit=1)["resources"]["signal"] == 11


def test_a_dead_fork_server_is_replaced_and_its_runs_end_truly(fresh: Tau) -> None:
    fresh.deploy_held(before="ctx.log('in')", after="return 'done'")
    run_id = fresh("run", "it", "--detach")["run_id"]
    eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])
    old = next(one["pid"] for one in fresh.call("status")["processes"] if one["role"] == "fork server")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: all(one["pid"] != old for one in fresh.call("status")["processes"]))
    other = fresh("run", "it", "--detach")["run_id"]
    fresh.go.touch()
    assert [run["status"] for run in fresh("wait", run_id, other)["runs"]] == ["success", "success"]


def test_the_child_forked_ahead_may_die_and_is_gone_with_its_parent(fresh: Tau) -> None:
    fresh.deploy_it("import os\ndef it(ctx):\n    return os.getpid()")
    server = next(one["pid"] for one in fresh.call("status")["processes"] if one["role"] == "fork server")

    def spare() -> int:
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        alive = [int(pid) for pid in children if is_running(int(pid))]
        return alive[0] if len(alive) == 1 else 0

    fresh("run", "it")
    ahead = eventually(spare)
    assert fresh("run", "it")["result"] == ahead
    os.kill(eventually(spare), signal.SIGKILL)
    assert fresh("run", "it")["status"] == "success"
    ahead = eventually(spare)
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_running(ahead))
    assert fresh("run", "it")["status"] == "success"


def test_a_run_that_vanishes_with_its_fork_server_is_lost(fresh: Tau) -> None:
    fresh.deploy_it(
        "import subprocess, time\ndef it(ctx):\n    ctx.log(str(subprocess.Popen(['sleep', '600']).pid))\n    time.sleep(600)"
    )
    run_id = fresh("run", "it", "--detach")["run_id"]
    sleeper = int(eventually(lambda: fresh.call("logs", run_id=run_id)["lines"])[0]["message"])
    roles = {one["role"]: one["pid"] for one in fresh.call("status")["processes"]}
    os.kill(roles["fork server"], signal.SIGKILL)
    os.kill(roles["run"], signal.SIGKILL)
    run = fresh("wait", run_id, exit=1)
    assert (run["status"], run["error"]["kind"]) == ("lost", "lost")
    assert not is_running(sleeper)


def test_runs_that_come_close_together_all_start(tau: Tau) -> None:
    tau.deploy_held()
    for _ in range(10):
        with tau.connect() as one, tau.connect() as two:
            for wire in (one, two):
                wire.send({"id": 1, "method": "run", "params": {"name": "it", "wait": False}})
            ids = [wire.receive()["result"]["run_id"] for wire in (one, two)]
        eventually(lambda: tau.call("status")["queued"] == 0, 8.0)
        tau.go.touch()
        tau.call("wait", run_id=ids)
        tau.go.unlink()


def test_a_run_that_removes_its_journal_runs_once_and_harms_no_other(tau: Tau) -> None:
    before = tau.call("status")["processes"][1]
    tau.deploy_it(
        f"import glob, os\ndef it(ctx):\n    with open('ran', 'a') as file:\n        file.write('x')\n"
        f"    for path in glob.glob({str(tau.home / 'runs')!r} + '/' + ctx.run_id + '*'):\n        os.unlink(path)\n"
        "    if ctx.params:\n        os._exit(4)\n    return 1\n"
    )
    assert tau.command("run", "it").json["status"] in ("failed", "success")
    assert tau("run", "it", "-p", "die=1", exit=1)["resources"]["exit_code"] == 4
    assert (tau.home / "data/it/ran").read_text() == "xx"
    assert tau.call("status")["processes"][1] == before


def test_forks_of_a_run_have_steps_of_their_own(tau: Tau) -> None:
    run = tau.run_it(
        """
        import os
        def it(ctx):
            pid = os.fork()
            for number in range(3):
                with ctx.step(f"{'parent' if pid else 'child'} {number}"):
                    pass
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
        """
    )
    names = {step["name"] for step in run["trace"]["steps"]}
    assert names == {f"{who} {number}" for who in ("parent", "child") for number in range(3)}


def test_records_that_make_no_sense_do_not_keep_a_run_from_ending(tau: Tau) -> None:
    run = tau.run_it(
        f"""
        import time
        def it(ctx):
            time.time = lambda: 1e18
            with open({str(tau.home / "runs")!r} + f"/{{ctx.run_id}}.1.journal", "a") as journal:
                journal.write('not json\\n7\\n{{}}\\n{{"t":"log"}}\\n{{"t":"log","at":1e18,"level":"info","message":"m"}}\\n')
                journal.write('{{"t":"step","at":1,"step":1,"parent":null,"name":"a","path":"a"}}\\n' * 2)
                journal.write('{{"t":"returned","at":1e18,"mono":1,"result":"forged","waits_for":"x"}}\\n')
            ctx.log("x")
            return 1
        """
    )
    assert (run["status"], run["result"], run["trace"]["log_lines"]) == ("success", 1, 2)
    assert run["trace"]["log_tail"][1].startswith("lines of its journal that were skipped: 6; ")
    assert [step["name"] for step in run["trace"]["steps"]] == ["a"]


def test_a_stubborn_stray_of_one_run_does_not_delay_another(home: Tau) -> None:
    home.start()
    home.deploy("from tau import pipeline\n@pipeline\ndef quick(ctx): ...\n", "quick.py")
    home.deploy_it(
        "import os, subprocess, time\nfrom pathlib import Path\ndef it(ctx):\n"
        "    subprocess.Popen(['sh', '-c', \"trap '' TERM; touch deaf; while :; do sleep 0.05; done\"], start_new_session=True)\n"
        "    while not Path('deaf').exists():\n        time.sleep(0.01)\n    ctx.log(os.getpid())"
    )
    stubborn = home("run", "it", "--detach")["run_id"]
    (line,) = eventually(lambda: home.call("logs", run_id=stubborn)["lines"])
    assert int(line["message"])
    for _ in range(5):
        assert home("run", "quick", "--timeout", "5")["status"] == "success"
    assert home.call("inspect", run_id=stubborn)["status"] == "running"
    home("shutdown")
    for pid in home.remains():
        with contextlib.suppress(ProcessLookupError):  # it ends by itself meanwhile
            os.kill(pid, signal.SIGKILL)


def test_unfinished_output_is_not_cut_in_pieces(tau: Tau) -> None:
    tau.run_it(
        "import os, time\ndef it(ctx):\n    for piece in (b'hel', b'lo wor', b'ld'):\n        os.write(1, piece)\n        time.sleep(0.3)"
    )
    assert [line["message"] for line in tau("logs", "it")["lines"]] == ["hello world"]


def bar_of(writer: str) -> str:
    """The source of a pipeline that shows its progress in one line, and waits with it until a file is there."""
    return f"""
import os, subprocess, sys, time
def it(ctx, go: str):
    with ctx.step("load"):
        write = {writer}
        write("a line\\n\\rloaded 1/30\\rloaded 2/30")
        while not os.path.exists(go):
            time.sleep(0.01)
        write("\\rloaded 30/30\\n")
"""


@pytest.mark.parametrize(
    ("writer", "step"),
    [
        ("lambda text: (sys.stderr.write(text), sys.stderr.flush())", "load"),
        ("lambda text: subprocess.run(['printf', text], stdout=2, check=True)", None),
        ("(ctx.secret('WORD'), lambda text: subprocess.run(['printf', text], stdout=2, check=True))[1]", None),
    ],
    ids=["python", "program", "with a secret"],
)
def test_a_line_that_is_drawn_anew_is_told_as_it_stands(
    tau: Tau, tmp_path: Path, writer: str, step: str | None
) -> None:
    if "secret" in writer:
        tau("secret", "set", "WORD", stdin="abcdefgh")
    tau.deploy_it(bar_of(writer))
    run_id = tau("run", "it", "-p", f"go={tmp_path / 'go'}", "--detach")["run_id"]
    told = eventually(lambda: tau("logs", "--run", run_id).get("unfinished"))
    assert told == [{"stream": "stderr", "step": step, "message": "loaded 2/30"}]
    assert "… loaded 2/30" in tau.command("logs", "--run", run_id, "--text").out
    for more in ({"level": "warning"}, {"grep": "3/30"}, {"attempt": 2}, {"until": 9}):
        assert "unfinished" not in tau.call("logs", run_id=run_id, **more), more
    assert tau.call("logs", run_id=run_id, grep="2/30", attempt=1)["unfinished"] == told
    (tmp_path / "go").touch()
    assert tau("wait", run_id)["status"] == "success"
    ended = tau("logs", "--run", run_id)
    assert [line["message"] for line in ended["lines"]] == ["a line", "loaded 30/30"]
    assert "unfinished" not in ended


@pytest.mark.parametrize(
    ("boot", "cause"),
    [
        (None, "its fork server vanished"),
        ("same", "its process and fork server vanished"),
        ("x", "the machine was restarted"),
    ],
)
def test_a_lost_run_says_why_and_that_its_work_may_be_done(boot: str | None, cause: str) -> None:
    start = None if boot is None else {"boot": module.boot_id() if boot == "same" else boot}
    outcome = module.verdict(None, None, None, start)
    assert outcome.status == "lost"
    assert outcome.error["message"] == f"{cause}, and there is no end record"
    assert "in part or whole" in outcome.error["hint"]


VERDICTS = [
    ({"t": "returned", "result": 1, "stopped": False}, {"signal": 9}, None, "success"),
    ({"t": "returned", "result": 1, "stopped": False}, None, "cancelled", "success"),
    ({"t": "returned", "result": 1, "stopped": True}, {}, "cancelled", "cancelled"),
    ({"t": "returned", "result": 1, "stopped": True}, {}, None, "success"),
    ({"t": "raised", "error": {"type": "E", "step": "s"}, "stopped": False}, {}, None, "failed"),
    ({"t": "raised", "error": {"type": "E", "step": "s"}, "stopped": False}, {}, "timed_out", "failed"),
    ({"t": "raised", "error": {"type": "E", "step": "s"}, "stopped": True}, {}, "timed_out", "timed_out"),
    (None, {"signal": 9, "exit_code": None}, None, "failed"),
    (None, {"signal": 9, "exit_code": None}, "cancelled", "cancelled"),
    (None, {"signal": None, "exit_code": 0}, None, "failed"),
    (None, None, None, "lost"),
    ({"t": "returned", "result": 1, "stopped": False}, None, None, "success"),
]


@pytest.mark.parametrize(("record", "ended", "stopping", "status"), VERDICTS)
def test_the_verdict_is_one_function(record: dict, ended: dict, stopping: str, status: str) -> None:
    outcome = module.verdict(record, ended, stopping)
    assert outcome.status == status
    assert (outcome.error is None) == (status == "success")


def test_only_a_run_that_a_dead_fork_server_has_not_begun_is_started_again(tmp_path: Path) -> None:
    """One that could not be started has no journal, and its end may wait for room on the disk.

    One that the next fork server was given already has none yet.
    """
    runner, started = module.Runner.__new__(module.Runner), []
    processes = [module.Process(str(tmp_path), stem, stem, 1, {}) for stem in ("ended", "fresh", "born")]
    processes[0].ended = {"exit_code": None, "signal": None, "reason": "cannot create its journal"}
    processes.append(module.Process(str(tmp_path), "next", "next", 1, {"pid": 2}))
    (tmp_path / "born.journal").touch()

    async def listen(on_message: object) -> None:
        await asyncio.sleep(0)
        if started:
            raise asyncio.CancelledError

    async def restart(process: module.Process) -> None:
        started.append(process.stem)

    runner.live = {process.stem: process for process in processes}
    runner.tasks = module.Tasks(lambda name, problem: None)
    runner.spawn = runner.tasks.spawn
    runner.starter, runner.restart = types.SimpleNamespace(listen=listen, server={"pid": 2}), restart
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(runner.replace_servers())
    assert started == ["fresh"]
    assert not (tmp_path / "next.journal").exists()


def test_how_far_a_revoked_journal_was_read_is_not_saved_for_its_successor(tmp_path: Path) -> None:
    runner, saved = module.Runner.__new__(module.Runner), []
    process = module.Process(str(tmp_path), "run.1", "run", 1, {})
    assert module.revoke_start(process)
    reads: list[asyncio.Task[None]] = []

    async def write(work: str, *arguments: object) -> object:
        saved.append(work)
        if work == "rename":
            reads.append(asyncio.create_task(runner.catch_up(process)))
            for _ in range(20):
                await asyncio.sleep(0)
        return {"stem": "run.1-2"}

    async def restart() -> None:
        await runner.restart(process)
        await asyncio.gather(*reads)

    runner.live, runner.settings = {"run.1": process}, {"result_bytes": 1, "log_lines": 1, "log_bytes": 1}
    runner.starter = types.SimpleNamespace(server=process.server)
    runner.store = types.SimpleNamespace(write=write, rename_journal="rename", add_trace="position")
    runner.dispatch = lambda job: None
    asyncio.run(restart())
    assert saved == ["rename"]
    assert runner.live == {}


def test_a_deploy_whose_fork_server_dies_is_not_blamed_on_the_file(fresh: Tau) -> None:
    server = next(one["pid"] for one in fresh.call("status")["processes"] if one["role"] == "fork server")
    os.kill(server, signal.SIGSTOP)  # what it is asked now it never reads
    with fresh.connect() as wire:
        text = "from tau import pipeline\n@pipeline\ndef loaded(ctx): ...\n"
        wire.send({"id": 1, "method": "deploy", "params": {"files": [{"path": "loaded.py", "text": text}]}})
        eventually(lambda: list((fresh.home / "runs").glob(".load-*")))
        os.kill(server, signal.SIGKILL)
        assert wire.receive()["result"]["pipelines"][0]["name"] == "loaded"


def test_what_a_run_leaves_and_ends_when_asked_is_not_waited_for() -> None:
    config = '[daemon]\nstop_grace_s = 600.0\nstart_method = "spawn"\n'  # which has no other reason to look again
    for made in started(make_home(config)):
        for session in (False, True):
            code = f"subprocess.Popen(['sleep', '1000'], start_new_session={session})"
            made.deploy_it(f"import subprocess\ndef it(ctx):\n    {code}\n")
            assert made("run", "it")["status"] == "success"


def test_following_a_log_begins_with_the_lines_that_are_wanted(fresh: Tau) -> None:
    text = "def it(ctx):\n    ctx.log('ÜBERTRAG', 'error')\n    for i in range(300): ctx.log(str(i))"
    run_id = fresh.run_it(text)["run_id"]
    for words in (["--level", "error"], ["--grep", "übertrag"]):
        shown = fresh("logs", "it", *words)["lines"]
        followed = [line for line in fresh.command("logs", "it", "--follow", *words).lines if line.get("type") == "log"]
        assert [line["message"] for line in shown] == [line["message"] for line in followed] == ["ÜBERTRAG"]
    last = fresh.command("logs", "it", "--follow", "--since", 299).lines
    assert [line["message"] for line in last if line.get("type") == "log"] == ["298", "299"]
    assert fresh("logs", "--run", run_id, "--follow", "--until", 9, exit=2)["code"] == "bad_request"


def test_the_last_of_many_metrics_and_a_check_that_fails_are_kept(fresh: Tau) -> None:
    text = "def it(ctx):\n    for i in range(1500): ctx.metric('rows', i)\n    ctx.check('enough', False)"
    trace = fresh.run_it(text, exit=1)["trace"]
    assert trace["metrics"] == {"rows": 1499}
    assert [(row["name"], row["passed"]) for row in trace["checks"]] == [("enough", False)]
