"""One short story per operation, through the command line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually

import tau as module

HELLO = '''
from tau import pipeline

@pipeline(tags=["example"])
def hello(ctx):
    """Says hello."""
    ctx.log("hello")
    return {"n": 1}
'''


def test_deploying_the_same_bytes_changes_nothing(tau: Tau) -> None:
    same = HELLO.replace("hello(", "same_bytes(")
    first = tau.deploy(same, "same.py")
    assert [one["name"] for one in first["pipelines"]] == ["same_bytes"]
    again = tau.deploy(same, "same.py")
    assert again == {"changed": False, "pipelines": [first["pipelines"][0] | {"changed": False}]}
    other = tau.deploy(same + "# changed\n", "same.py")
    assert other["pipelines"][0] == first["pipelines"][0] | {"version": first["pipelines"][0]["version"] + 1}
    back = tau.deploy(same, "same.py")
    assert back["pipelines"][0]["version"] == first["pipelines"][0]["version"] + 2


def test_a_file_may_have_several_pipelines_and_name_picks_one(tau: Tau) -> None:
    text = "from tau import pipeline\n" + "".join(f"@pipeline\ndef several_{c}(ctx): ...\n" for c in "abc")
    assert [one["name"] for one in tau.deploy(text, "p.py", "--name", "several_b")["pipelines"]] == ["several_b"]
    assert tau("show", "several_a", exit=3)["code"] == "not_found"
    assert len(tau.deploy(text, "p.py")["pipelines"]) == 3
    error = tau.deploy(text, "p.py", "--name", "several_x", exit=2)
    assert "several_a" in error["hint"]


def test_name_renames_the_only_pipeline(tau: Tau) -> None:
    assert tau.deploy(HELLO, "p.py", "--name", "greeting")["pipelines"][0]["name"] == "greeting"
    assert tau("run", "greeting")["result"] == {"n": 1}
    assert tau.deploy(HELLO, "p.py", "--name", "no name", exit=2)["code"] == "bad_request"


LOADS = {
    "SyntaxError": ("x = 1\ndef broken(:\n", "SyntaxError", 2, "def broken(:"),
    "a missing module": ("import nowhere_to_be_found\n", "ModuleNotFoundError", 1, "import nowhere_to_be_found"),
    "an exception": ("a = 1\nb = a / 0\n", "ZeroDivisionError", 2, "b = a / 0"),
    "sys.exit": ("import sys\nsys.exit(0)\n", "SystemExit", 2, "sys.exit(0)"),
    "a loop": ("import time\nwhile True:\n    time.sleep(1)\n", "TimeoutError", 3, "time.sleep(1)"),
    "os._exit": ("import os\nos._exit(0)\n", "ProcessDied", None, None),
    "an impossible name": (
        "from tau import pipeline\n@pipeline(name='a b')\ndef f(ctx): ...\n",
        "BadRequest",
        2,
        "@pipeline(name='a b')",
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_file_that_does_not_load_says_where(tau: Tau, name: str) -> None:
    live = tau.deploy(HELLO)["pipelines"][0]["version"]
    text, kind, line, code = LOADS[name]
    error = tau.deploy(text, "bad.py", exit=2)
    assert (error["code"], error["type"], error["line"], error["source_line"]) == ("load_failed", kind, line, code)
    assert (error["file"] == "bad.py") == (line is not None)
    assert error["hint"]
    assert tau("show", "hello")["version"] == live
    assert not list((tau.home / "versions").glob(".staged*"))
    if name != "a loop":  # which takes its whole time again
        assert tau.command("deploy", tau.work / "bad.py").exit == 2


def test_what_cannot_be_a_pipeline_file_is_refused_with_the_reason(tau: Tau) -> None:
    cases = {
        "no pipeline": (b"x = 1\n", "no @pipeline"),
        "latin": ("# café\n".encode("latin-1"), "is not UTF-8"),
        "binary": (b"\x00\x01", "null bytes"),
        "huge": (b"#" * (module.DEPLOYMENT_BYTES_MAX + 1), "larger than"),
        "twice": (
            b"from tau import pipeline\n@pipeline(name='a')\ndef f(ctx): ...\n@pipeline(name='a')\ndef g(ctx): ...\n",
            "two pipelines named 'a'",
        ),
    }
    for name, (content, message) in cases.items():
        path = tau.work / f"{name}.py"
        path.write_bytes(content)
        error = tau("deploy", path, exit=2)
        assert error["code"] == "load_failed", name
        assert message in error["message"], name


def test_a_path_that_is_no_file_is_refused_at_once(tau: Tau) -> None:
    import os

    os.mkfifo(tau.work / "fifo.py")
    for path in (tau.work / "fifo.py", tau.work, "/dev/zero", tau.work / "absent.py"):
        assert tau("deploy", path, exit=2)["code"] == "bad_request"
    (tau.work / "fifo.py").unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.py", "a/../../x.py", "", "a//b.py", "a\0.py"])
def test_deployed_paths_stay_inside(tau: Tau, path: str) -> None:
    with tau.connect() as wire:
        answer = wire.ask({"id": 1, "method": "deploy", "params": {"files": [{"path": path, "text": "x = 1"}]}})
    assert answer["error"]["data"]["code"] == "bad_request"


def test_a_deployment_may_have_more_files_on_the_wire(tau: Tau) -> None:
    files = [
        {
            "path": "main.py",
            "text": "from tau import pipeline\nimport helper\n@pipeline\ndef many(ctx):\n    return helper.x\n",
        },
        {"path": "helper.py", "text": "x = 5\n"},
    ]
    assert tau.call("deploy", files=files, entry="main.py")["pipelines"][0]["name"] == "many"
    assert tau("run", "many")["result"] == 5


def test_undeploy_takes_out_of_service_and_keeps_history(tau: Tau) -> None:
    version = tau.deploy(HELLO)["pipelines"][0]["version"]
    run_id = tau("run", "hello")["run_id"]
    after = "from tau import pipeline\n@pipeline(after=['hello'])\ndef follows_hello(ctx): ...\n"
    tau.deploy(after, "after.py")
    gone = {"name": "hello", "changed": True, "cancelled_runs": [], "downstream": ["follows_hello"]}
    assert tau("undeploy", "hello") == gone
    assert tau("undeploy", "follows_hello")["downstream"] == []
    assert tau("undeploy", "hello")["changed"] is False
    assert tau("undeploy", "never_was")["changed"] is False
    assert "hello" not in [one["name"] for one in tau("list", "--limit", 1000)["pipelines"]]
    assert "undeployed" in tau("run", "hello", exit=3)["message"]
    assert tau("inspect", "hello")["run_id"] == run_id
    again = tau.deploy(HELLO)
    row = {"name": "hello", "version": version, "changed": True, "next_at": None}
    assert (again["changed"], again["pipelines"]) == (True, [row])


def test_undeploy_cancels_what_is_queued_and_lets_live_runs_end(home: Tau) -> None:
    home.home.joinpath("tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n")
    home.start()
    home.deploy_held()
    live = home("run", "it", "--detach")["run_id"]
    eventually(lambda: home.call("status")["slots"]["used"] == 1)
    queued = home("run", "it", "--detach")["run_id"]
    assert home("undeploy", "it")["cancelled_runs"] == [queued]
    home.go.touch()
    assert home("wait", live)["status"] == "success"
    assert home("wait", queued, exit=1)["status"] == "cancelled"


def test_a_run_keeps_the_version_it_was_queued_with(tau: Tau) -> None:
    tau.deploy_held(after="return 'old'")
    run_id = tau("run", "it", "--detach")["run_id"]
    new = tau.deploy_it("def it(ctx):\n    return 'new'")["pipelines"][0]["version"]
    tau.go.touch()
    old = tau("wait", run_id)
    assert (old["result"], old["version"]) == ("old", new - 1)
    assert tau("run", "it")["result"] == "new"


def test_show_and_list_tell_what_is_deployed(tau: Tau) -> None:
    tau.deploy(HELLO)
    run = tau("run", "hello")
    shown = tau("show", "hello")
    assert (shown["description"], shown["tags"], shown["schedule"]) == ("Says hello.", ["example"], None)
    assert shown["params"] == {"type": "object"}
    assert shown["versions"][0]["version"] == shown["version"]
    assert shown["last_run"]["run_id"] == run["run_id"]
    row = next(one for one in tau("list", "--limit", 1000)["pipelines"] if one["name"] == "hello")
    assert (row["last_status"], row["last_run_id"], row["tags"]) == ("success", run["run_id"], ["example"])


def test_code_prints_any_version(tau: Tau) -> None:
    first = tau.deploy(HELLO + "# one\n")["pipelines"][0]["version"]
    tau.deploy(HELLO + "# two\n")
    assert tau("code", "hello")["source"].endswith("# two\n")
    assert tau("code", "hello", "--version", first)["source"].endswith("# one\n")
    assert tau.command("code", "hello", "--raw").out == Path(tau.work / "pipelines.py").read_text()
    assert tau("code", "hello", "--version", 999, exit=3)["code"] == "not_found"


def test_an_unknown_pipeline_is_not_found_with_the_nearest_name(tau: Tau) -> None:
    tau.deploy(HELLO)
    for words in (
        ("run", "helo"),
        ("show", "helo"),
        ("code", "helo"),
        ("inspect", "helo"),
        ("runs", "helo"),
        ("logs", "helo"),
    ):
        error = tau(*words, exit=3)
        assert (error["code"], "did you mean 'hello'?" in error["hint"]) == ("not_found", True), words


@pytest.mark.parametrize("text", ["[1]", "7", '"x"', "{bad", "@/nowhere.json", "null"])
def test_params_must_be_an_object(tau: Tau, text: str) -> None:
    tau.deploy(HELLO)
    assert tau("run", "hello", "--params", text, exit=2)["code"] == "bad_request"


def test_params_come_from_text_file_or_stdin(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    return ctx.params")
    (tau.work / "params.json").write_text('{"from": "file"}')
    assert tau("run", "it", "--params", "@params.json")["result"] == {"from": "file"}
    assert tau("run", "it", "--params", "-", stdin='{"from": "stdin"}')["result"] == {"from": "stdin"}
    assert tau("run", "it", "-p", "a=[1]", "-p", "b=x=y")["result"] == {"a": [1], "b": "x=y"}
    assert tau("run", "it", "-p", "novalue", exit=2)["code"] == "bad_request"
    large = json.dumps({"x": "y" * module.PARAMS_BYTES_MAX})
    assert tau("run", "it", "--params", "-", stdin=large, exit=2)["code"] == "bad_request"


def test_a_key_gives_the_same_run_again(tau: Tau) -> None:
    tau.deploy(HELLO)
    first = tau("run", "hello", "--key", "today")
    again = tau("run", "hello", "--key", "today")
    assert again["run_id"] == first["run_id"]
    assert (first.get("deduplicated"), again["deduplicated"]) == (None, True)
    assert tau("run", "hello", "--key", "today", "-p", "a=1", exit=5)["code"] == "conflict"
    detached = tau("run", "hello", "--key", "today", "--detach")
    assert detached == {"run_id": first["run_id"], "status": "success", "deduplicated": True}


def test_concurrent_requests_with_one_key_make_one_run(tau: Tau) -> None:
    tau.deploy(HELLO)
    with tau.connect() as wire:
        request = {"method": "run", "params": {"name": "hello", "key": "race", "wait": False}}
        wire.send(b"".join(json.dumps(request | {"id": n}).encode() + b"\n" for n in range(50)))
        assert len({wire.receive()["result"]["run_id"] for _ in range(50)}) == 1


def test_giving_up_waiting_is_exit_7_and_the_run_goes_on(tau: Tau) -> None:
    tau.deploy_held()
    gave_up = tau("run", "it", "--timeout", "0.2", exit=7)
    assert (gave_up["status"], gave_up["waited"]) == ("running", False)
    assert tau("wait", gave_up["run_id"], "--timeout", "0.1", exit=7)["waited"] is False
    tau.go.touch()
    assert tau("wait", gave_up["run_id"][:13])["status"] == "success"


def test_what_to_do_next_is_the_same_run_again(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef it(ctx):\n    return 1 / ctx.params['n']")
    run = tau("run", "it", "-p", "n=1", "-p", "text=it's")
    assert shlex.split(run["next"][-1]) == ["tau", "run", "it", "--params", '{"n":1,"text":"it\'s"}']
    assert tau("run", "it", "--detach", "--follow", exit=2)["code"] == "bad_request"


def test_wait_takes_no_more_runs_than_can_be_told_soon(tau: Tau) -> None:
    with tau.connect() as wire:
        for count, code in ((1000, "not_found"), (1001, "bad_request")):
            answer = wire.ask({"id": 1, "method": "wait", "params": {"run_id": ["nothing"] * count}})
            assert answer["error"]["data"]["code"] == code


def test_wait_takes_several_runs_and_exits_with_the_worst(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    return 1 / ctx.params['n']")
    ids = [tau("run", "it", "--detach", "-p", f"n={n}")["run_id"] for n in (1, 0)]
    ends = tau("wait", *ids, exit=1)["runs"]
    assert [run["status"] for run in ends] == ["success", "failed"]


def test_runs_are_newest_first_and_say_what_they_do_not_show(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    return 1 / ctx.params.get('n', 1)")
    ids = [tau("run", "it")["run_id"] for _ in range(3)]
    tau("run", "it", "-p", "n=0", exit=1)
    shown = tau("runs", "it", "--last", 2)
    assert shown["truncated"]["shown"] == 2
    assert shown["truncated"]["total"] >= 4
    everything = tau(*shown["truncated"]["get"].split()[1:])
    assert "truncated" not in everything
    found = [run["run_id"] for run in everything["runs"]]
    assert found == sorted(found, reverse=True)
    assert set(ids) < set(found)
    assert {run["status"] for run in tau("runs", "it", "--status", "failed")["runs"]} == {"failed"}
    assert "did you mean 'failed'?" in tau("runs", "it", "--status", "faild", exit=2)["hint"]
    for limit in (0, -1, 10_001):
        assert tau("runs", "it", "--last", limit, exit=2)["code"] == "bad_request"


def test_inspect_takes_a_name_an_id_or_a_prefix(tau: Tau) -> None:
    tau.deploy(HELLO)
    _, run_id = (tau("run", "hello")["run_id"] for _ in range(2))
    ways = (
        ("hello",),
        ("hello", "--last-run"),
        ("--run", run_id),
        (run_id,),
        (run_id[:13],),
        ("hello", "--run", run_id.upper()),
    )
    for words in ways:
        assert tau("inspect", *words)["run_id"] == run_id, words
    assert tau("inspect", run_id[:1], exit=2)["code"] == "bad_request"
    assert tau("inspect", exit=2)["code"] == "bad_request"
    assert tau("inspect", "zzzz", exit=3)["code"] == "not_found"
    tau.deploy_it("def it(ctx): ...")
    assert tau("inspect", "it", "--run", run_id, exit=3)["code"] == "not_found"


def test_the_beginning_of_several_ids_lists_the_runs(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    ids, common = [], ""
    line = json.dumps({"id": 1, "method": "run", "params": {"name": "it"}}).encode() + b"\n"
    while len(common) < 8:  # two of one moment: a shorter beginning is also that of other tests' runs
        with tau.connect() as wire:
            wire.send(line * 2)
            ids = [wire.receive()["result"]["run_id"] for _ in range(2)]
        common = os.path.commonprefix(ids)  # noqa: RUF071
    for words in (("inspect", common), ("logs", "--run", common), ("wait", common), ("cancel", common)):
        error = tau(*words, exit=2)
        assert error["message"] == f"several runs begin with '{common}'", words
        for run_id in ids:
            assert f"{run_id} (it success)" in error["hint"], words
    for _ in range(9):
        tau.call("run", name="it")
    assert tau("inspect", ids[0][:1], exit=2)["hint"].endswith(", …")


def test_a_pipelines_name_stands_for_its_only_live_run_or_its_last(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef never_ran(ctx): ...\n")
    for command in ("cancel", "wait", "retry"):
        assert tau(command, "never_ran", exit=3)["hint"] == "tau run never_ran", command
        assert "did you mean 'never_ran'?" in tau(command, "never_ram", exit=3)["hint"], command
    tau.deploy_held()
    live = tau("run", "it", "--detach")["run_id"]
    tau.call("cancel", run_id=tau("run", "it", "--detach")["run_id"])
    assert tau("wait", "it", "--timeout", "0", exit=7)["run_id"] == live
    assert tau("retry", "it", "--version", "same", "--detach")["status"] == "queued"
    error = tau("cancel", "it", exit=2)
    assert error["message"] == "several runs of 'it' are live"
    assert live in error["hint"]
    for row in tau("runs", "it", "--status", "running")["runs"]:
        tau("cancel", row["run_id"])
    last = tau("run", "it", "--detach")["run_id"]
    assert tau("cancel", "it") == {"run_id": last, "status": "cancelled", "changed": True}
    assert tau("cancel", "it") == {"run_id": last, "status": "cancelled", "changed": False}
    assert tau("retry", "it", "--detach")["run_id"] != last
    tau.go.touch()
    assert tau("wait", "it")["status"] == tau("wait", "it", last[:13], exit=1)["runs"][0]["status"] == "success"


def test_a_retry_under_another_signature_says_how_to_repeat_the_same(tau: Tau) -> None:
    tau.deploy_it("def it(ctx, day: str):\n    raise RuntimeError(day)")
    run_id = tau("run", "it", "-p", "day=x", exit=1)["run_id"]
    tau.deploy_it("def it(ctx, when: str):\n    return when")
    error = tau("retry", run_id, exit=2)
    assert error["message"] == "params: unknown key 'day'"
    assert error["hint"] == f"tau retry {run_id} --version same"
    assert tau(*shlex.split(error["hint"])[1:], exit=1)["error"]["message"] == "x"


def test_logs_of_a_step_that_is_not_there_name_the_steps(tau: Tau) -> None:
    tau.run_it("def it(ctx):\n    with ctx.step('load'):\n        with ctx.step('orders'):\n            ctx.log('in')")
    error = tau("logs", "it", "--step", "lod", exit=3)
    assert "has no step 'lod'" in error["message"]
    assert error["hint"] == "did you mean 'load'? its steps: load, load/orders"
    assert len(tau("logs", "it", "--step", "load/orders")["lines"]) == 1
    tau.run_it("def it(ctx): ...")
    assert tau("logs", "it", "--step", "load", exit=3)["hint"] == "it has no steps"


def test_a_pipeline_that_has_not_run_says_so(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef never_ran(ctx): ...\n")
    assert tau("inspect", "never_ran", exit=3)["hint"] == "tau run never_ran"


def test_lists_are_narrowed_and_the_command_for_the_rest_is_as_narrow(tau: Tau) -> None:
    text = "from tau import pipeline\n@pipeline(tags=['narrow', \"it's\"])\ndef narrow(ctx, n: int = 1):\n"
    text += "    for level in ('info', 'error', 'error', 'error'): ctx.log('Half 50% done', level=level)\n    return 1 / n\n"
    tau.deploy(text)
    early = tau("run", "narrow")
    between = module.rfc3339(time.time() + 1)
    eventually(lambda: module.rfc3339(time.time()) > between)
    ids = [tau("run", "narrow", "-p", "n=0", exit=1)["run_id"] for _ in range(2)]

    def found(*words: str) -> list[str]:
        return [run["run_id"] for run in tau("runs", "narrow", *words)["runs"]]

    assert found("--since", between) == ids[::-1]
    assert found("--until", between) == [early["run_id"]]
    assert found("--since", early["queued_at"], "--until", "2090-01-01") == [*ids[::-1], early["run_id"]]
    assert found("--since", "1h", "--until", "0s", "--status", "success") == [early["run_id"]]
    assert found("--since", "2090-01-01") == []
    assert "time" in tau("runs", "narrow", "--since", "yesterday", exit=2)["message"]
    cut = tau("runs", "narrow", "--since", between, "--status", "failed", "--last", "1")["truncated"]
    assert (cut["total"], cut["get"]) == (2, f"tau runs narrow --status failed --since {between} --last 2")
    assert [run["run_id"] for run in tau("errors", "narrow", "--all")["errors"]] == ids[::-1]
    assert tau("errors", "nobody.knows", exit=3)["code"] == "not_found"
    assert tau("errors", "narrow", "--all", "--limit", "1")["truncated"]["get"] == "tau errors narrow --all --limit 2"
    assert [one["name"] for one in tau("list", "--tag", "it's")["pipelines"]] == ["narrow"]
    nothing = {"pipelines": [], "total": 0, "hint": "none is like that: `tau list` lists all"}
    assert tau("list", "--tag", "narro") == nothing
    assert tau("runs", "narrow", "--status", "lost")["hint"] == "none is like that: `tau runs narrow` lists all"
    lines = tau("logs", "narrow", "--grep", "half 50%", "--level", "error", "--tail", "1")
    assert (len(lines["lines"]), lines["total"], lines["truncated"]["total"]) == (1, 3, 3)
    words = shlex.split(lines["truncated"]["get"])
    assert words[:4] == ["tau", "logs", "--run", ids[1]]
    assert [line["repeated"] for line in tau(*words[1:])["lines"]] == [3]
    assert tau("logs", "narrow", "--grep", "50_")["lines"] == []
    followed = tau.command("logs", "narrow", "--grep", "HALF", "--level", "error", "--follow").lines
    assert [line["message"] for line in followed] == ["Half 50% done"] * 3
    tau("undeploy", "narrow")


def test_the_state_is_shown_set_and_cleared(tau: Tau) -> None:
    text = "from tau import pipeline\n@pipeline\ndef stateful(ctx):\n"
    tau.deploy(text + "    ctx.state['n'] = ctx.state.get('n', 0) + 1\n    return ctx.state\n")
    tau("state", "stateful", "--clear")
    nothing = tau("state", "stateful")
    assert (nothing["pipeline"], nothing["state"], nothing["changed"]) == ("stateful", {}, False)
    run = tau("run", "stateful")
    shown = tau("state", "stateful")
    assert (shown["state"], shown["run_id"], shown["updated_at"][:10]) == (
        {"n": 1},
        run["run_id"],
        run["queued_at"][:10],
    )
    new = tau("state", "stateful", "--set", '{"n": 41, "é": [null]}')
    assert (new["state"], new["run_id"], new["changed"]) == ({"n": 41, "é": [None]}, None, True)
    assert not tau("state", "stateful", "--set", '{"n": 41, "é": [null]}')["changed"]
    assert tau("run", "stateful")["result"] == {"n": 42, "é": [None]}
    assert tau("state", "stateful", "--clear")["changed"]
    assert tau("run", "stateful")["result"] == {"n": 1}
    tau("undeploy", "stateful")
    assert tau("state", "stateful")["state"] == {"n": 1}
    for words in (("--set", "[1]"), ("--set", "{}", "--clear"), ("--set", json.dumps({"x": "y" * 65_536}))):
        assert tau("state", "stateful", *words, exit=2)["hint"], words
    assert tau("state", "nobody.knows", exit=3)["code"] == "not_found"


def test_errors_lists_the_latest_failures_with_their_place(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    raise ValueError('bad day')", exit=1)
    latest = tau("errors", "it", "--all", "--limit", 1)["errors"][0]  # of others one may end in the meantime
    assert latest["run_id"] == run["run_id"]
    assert (latest["error"]["message"], latest["error"]["file"], latest["error"]["line"]) == (
        "bad day",
        "pipelines.py",
        4,
    )
    assert latest["next"] == [f"tau inspect {run['run_id']}"]


def test_logs_have_a_tail(tau: Tau) -> None:
    tau.run_it("def it(ctx):\n    for n in range(300):\n        ctx.log(n)")
    shown = tau("logs", "it", "--tail", 3)
    assert [line["message"] for line in shown["lines"]] == ["297", "298", "299"]
    assert shown["truncated"]["total"] == 300
    assert len(tau(*shown["truncated"]["get"].split()[1:])["lines"]) == 300
    assert len(tau("logs", "it")["lines"]) == 200
    assert tau("logs", "it", "--level", "loud", exit=2)["code"] == "bad_request"


def test_status_tells_how_the_daemon_is(tau: Tau) -> None:
    tau.deploy(HELLO)
    tau("run", "hello")
    status = tau("status")
    assert [one["role"] for one in status["processes"][:2]] == ["daemon", "fork server"]
    assert (status["version"], status["home"], status["start_method"]) == (module.__version__, str(tau.home), "fork")
    assert status["config"] == str(tau.home / "tau.toml")
    scheme = "tls" if tau.transport == "tls" else "tcp"
    places = [f"{scheme}://127.0.0.1:{tau.port}", f"{scheme}://[::1]:{tau.port}"] if tau.port else []
    assert status["addresses"] in ([f"unix://{tau.socket}", *places], [f"unix://{tau.socket}", *places[:1]])
    assert status["runs"]["success"] >= 1
    assert set(status["runs"]) == set(module.MOVES)
    assert status["start_latency"]["p50_ms"] <= status["start_latency"]["p99_ms"]
    assert status["slots"]["total"] == 10


def test_totals_agree_with_the_runs(tau: Tau) -> None:
    runs = tau("runs", "--limit", 10_000)["runs"]
    counted = {status: sum(run["status"] == status for run in runs) for status in module.MOVES}
    assert tau.call("status")["runs"] == counted


def test_the_ledger_tells_every_change(tau: Tau) -> None:
    import sqlite3

    tau.deploy(HELLO + "# for the ledger\n")
    run_id = tau("run", "hello")["run_id"]
    db = sqlite3.connect(f"file:{tau.home}/tau.db?mode=ro", uri=True)
    types = [row[0] for row in db.execute("SELECT type FROM events WHERE run_id = ? ORDER BY seq", (run_id,))]
    actor = db.execute("SELECT actor FROM events WHERE type = 'pipeline.deployed' ORDER BY seq DESC").fetchone()[0]
    db.close()
    assert types == ["run.queued", "run.started", "run.finished"]
    assert actor == ("key" if tau.port else tau.work.owner())


def test_the_same_new_file_deployed_at_once_is_one_version(tau: Tau) -> None:
    files = [{"path": "p.py", "text": HELLO + "# all at once\n"}]
    wires = [tau.connect() for _ in range(8)]
    for wire in wires:
        wire.send({"id": 1, "method": "deploy", "params": {"files": files}})
    received = [wire.receive() for wire in wires]
    for wire in wires:
        wire.__exit__()
    answers = [answer["result"]["pipelines"][0] for answer in received]
    assert len({answer["version"] for answer in answers}) == 1
    assert sum(answer["changed"] for answer in answers) == 1


VANDAL = """
import glob, os
def it(ctx):
    for path in glob.glob(__file__ + "*"):
        os.unlink(path)
    if ctx.params.get("spoil"):
        open(__file__, "w").write("not Python")
"""


def test_a_source_that_a_run_has_changed_is_not_run(tau: Tau) -> None:
    version = tau.deploy_it(VANDAL)["pipelines"][0]["version"]
    tau("run", "it", "-p", "spoil=true")
    assert "glob.glob" in tau("code", "it")["source"]
    assert tau("run", "it")["status"] == "success"
    again = tau.deploy_it(VANDAL)
    assert again["pipelines"] == [{"name": "it", "version": version, "changed": False, "next_at": None}]


def test_what_is_deployed_is_in_the_store_and_its_directory_only_a_cache(tau: Tau) -> None:
    tau.deploy_it(VANDAL)
    for _ in range(2):
        assert tau("run", "it")["status"] == "success"  # though the first one has removed the file
    digest = tau("code", "it")["sha256"]
    (tau.home / "versions" / digest / "more.py").write_text("more = 1")
    assert tau("code", "it")["files"] == ["pipelines.py"]
    shutil.rmtree(tau.home / "versions")
    assert tau("run", "it")["status"] == "success"
    assert tau("deploy", tau.work / "pipelines.py")["changed"] is False
    assert sorted(os.listdir(tau.home / "versions")) == [digest, f"{digest}.code"]


def test_a_run_whose_files_cannot_be_unpacked_says_so(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    (fresh.home / "versions").rmdir()
    (fresh.home / "versions").write_text("in the way")
    run = fresh("run", "it", exit=1)
    assert "cannot unpack what was deployed" in run["error"]["message"]
    (fresh.home / "versions").unlink()
    assert fresh("run", "it")["status"] == "success"


@pytest.mark.parametrize("paths", [["a", "a/b.py"], ["a", "a/b/c.py"], ["x" * 300 + ".py"]])
def test_paths_that_cannot_be_files_leave_nothing_behind(tau: Tau, paths: list[str]) -> None:
    files = [{"path": path, "text": "x = 1"} for path in paths]
    with tau.connect() as wire:
        answer = wire.ask({"id": 1, "method": "deploy", "params": {"files": files, "entry": paths[0]}})
    assert answer["error"]["data"]["code"] == "bad_request"
    assert not list((tau.home / "versions").glob(".staged*"))


HELPED = """
from pathlib import Path
from tau import pipeline
from helper import double
import parts.more

@pipeline
def helped(ctx):
    return [double(2), parts.more.NAME, (Path(__file__).parent / "sql" / "query.sql").read_text(), Path.cwd().name]
"""


def beside(tau: Tau, folder: str) -> Path:
    """A folder with a pipeline, modules and data."""
    root = tau.work / folder
    for path, text in {
        "main.py": HELPED,
        "helper.py": "def double(x): return 2 * x\n",
        "parts/more.py": "NAME = 'more'\n",
        "sql/query.sql": "SELECT 1",
        "sql/blob.bin": "",
        ".git/config": "no",
        "__pycache__/x.pyc": "no",
        "venv/pyvenv.cfg": "no",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    (root / "sql" / "blob.bin").write_bytes(bytes(range(256)))
    return root


FILES = ["helper.py", "main.py", "parts/more.py", "sql/blob.bin", "sql/query.sql"]
RESULT = [4, "more", "SELECT 1", "helped"]


def test_a_folder_is_deployed_with_all_it_needs(tau: Tau) -> None:
    root = beside(tau, "whole")
    assert tau("deploy", root)["pipelines"][0]["name"] == "helped"
    assert tau("run", "helped")["result"] == RESULT
    assert tau("deploy", root)["changed"] is False
    code = tau("code", "helped")
    assert (code["entry"], code["files"]) == ("main.py", FILES)
    (root / "helper.py").write_text("def double(x): return 3 * x\n")
    assert tau("deploy", root)["changed"] is True
    assert tau("run", "helped")["result"][0] == 6
    tau("code", "helped", "--version", "1", "--out", root / "old")
    assert (root / "old/helper.py").read_text() == "def double(x): return 2 * x\n"


def test_a_file_takes_others_with_it(tau: Tau) -> None:
    root = beside(tau, "single")
    parts = [root / "helper.py", root / "parts", root / "sql"]
    tau("undeploy", "helped")
    tau("deploy", root / "main.py", "--include", *parts)
    assert tau("run", "helped")["result"] == RESULT
    assert tau("code", "helped")["files"] == FILES
    elsewhere = tau.work / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "entry.py").write_text(HELPED)
    tau("deploy", elsewhere / "entry.py", "--take-over", "--include", *parts)  # from outside they come to lie beside it
    assert tau("code", "helped")["files"] == sorted(["entry.py", *FILES[:1], *FILES[2:]])
    assert tau("run", "helped")["result"] == RESULT


def test_a_folder_with_several_pipelines_deploys_them_all_or_the_one_named(tau: Tau) -> None:
    root = tau.work / "several"
    root.mkdir()
    for name in ("one", "two"):
        (root / f"{name}.py").write_text(f"import tau\n@tau.pipeline\ndef {name}_of_several(ctx): return __name__\n")
    (root / "notes.py").write_text("# says @pipeline somewhere\n")
    names = [one["name"] for one in tau("deploy", root)["pipelines"]]
    assert names == ["one_of_several", "two_of_several"]
    assert tau("run", "two_of_several")["result"] == "two"
    assert tau("code", "one_of_several")["entry"] == "one.py"
    only = tau("deploy", root, "--entry", "two.py")["pipelines"]
    assert [one["name"] for one in only] == ["two_of_several"]
    assert "did you mean 'two.py'" in tau("deploy", root, "--entry", "too.py", exit=2)["hint"]
    (root / "three.py").write_text("import tau\n@tau.pipeline\ndef one_of_several(ctx): ...\n")
    assert "two files have a pipeline named 'one_of_several'" in tau("deploy", root, exit=2)["message"]


def test_what_cannot_be_deployed_together_is_refused(tau: Tau) -> None:
    empty = tau.work / "empty"
    empty.mkdir()
    assert "has no files" in tau("deploy", empty, exit=2)["message"]
    (empty / "a.py").write_text("x = 1\n")
    (empty / "b.py").write_text("x = 1\n")
    told = tau("deploy", empty, exit=2)
    assert "uses @pipeline" in told["message"]
    (empty / "dags").mkdir()
    tau.write("from tau import pipeline\n@pipeline\ndef one(ctx): ...\n", f"{empty.name}/dags/one.py")
    assert tau("deploy", empty, exit=2)["hint"] == "dags/__init__.py is missing"
    (empty / "big.bin").write_bytes(b"\0" * (module.DEPLOYMENT_BYTES_MAX + 1))
    assert "larger than" in tau("deploy", empty, exit=2)["message"]
    (empty / "big.bin").write_bytes(b"\0" * (module.DEPLOYMENT_BYTES_MAX - 10))
    assert "more than" in tau("deploy", empty, exit=2)["message"]


def test_a_missing_file_says_how_it_could_have_been_there(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    open('query.sql')\n", exit=1)
    assert "--include" in run["error"]["hint"]
    run = tau.run_it("def it(ctx):\n    import absent_module\n", exit=1)
    assert "# /// script" in run["error"]["hint"]


def test_check_tells_what_a_file_has_needs_and_lacks(tau: Tau) -> None:
    path = tau.write(
        """
        from tau import pipeline

        @pipeline(schedule="0 6 * * *", timezone="Europe/London", retries=2)
        def checked(ctx, day: str = "today", limit: int = 3):
            import absent_module
            return ctx.secret("PATH"), ctx.secret(name="ABSENT_SECRET")
        """
    )
    found = tau("check", path)
    assert (found["ok"], found["error"]) == (True, None)
    assert found["missing_imports"] == ["absent_module"]
    assert found["secrets"] == {"ABSENT_SECRET": None, "PATH": "environment"}
    assert found["missing_secrets"] == ["ABSENT_SECRET"]
    one = found["pipelines"][0]
    assert (one["name"], one["line"], one["retries"], len(one["ticks"])) == ("checked", 3, 2, 5)
    assert one["params"]["properties"]["limit"] == {"type": "integer", "default": 3}
    tau("show", "checked", exit=3)
    done = tau.command("check", tau.write("import absent_module\nfrom tau import pipeline\n", "not.py"))
    assert done.exit == 2
    assert done.json["error"]["message"].startswith("not.py does not load, line 1: ModuleNotFoundError")
    assert done.json["missing_imports"] == ["absent_module"]
    broken = tau("deploy", tau.write("def it(ctx)\n    return 1\n", "broken.py"), exit=2)
    assert broken["message"] == "broken.py does not load, line 1: SyntaxError: expected ':'"


OPTIONS = [
    ("schedule='61 * * * *'", "minute (field 1"),
    ("schedule='* * *'", "has 3 fields"),
    ("schedule=''", "has 0 fields"),
    ("schedule=60", "expected string or array of string, given integer 60"),
    ("every=-5", "must be a time from 0"),
    ("every='soon'", "an interval"),
    ("schedule='@daily', every=60", "two ways to say when"),
    ("timezone='Mars/Base'", "no time zone 'Mars/Base'"),
    ("timeout=0", "no time at all"),
    ("timeout='1x'", "must be a time"),
    ("retries=-1", "a whole number from 0"),
    ("retries=True", "a whole number from 0"),
    ("retry_delay='-1s'", "must be a time"),
    ("max_concurrent=0", "a whole number from 1"),
    ("overlap='maybe'", 'one of "skip", "queue", "cancel_running", "allow"'),
    ("misfire='first'", 'one of "last", "skip", "all"'),
    ("catchup_window=None, after=[1]", "names[0]: expected string, given integer 1"),
    ("after='no good name'", "cannot be a pipeline's name"),
    ("tags='daily'", "expected array of string, given"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_an_option_that_cannot_be_is_refused_where_it_is_written(tau: Tau, options: str, message: str) -> None:
    error = tau.deploy(f"from tau import pipeline\n\n@pipeline({options})\ndef bad(ctx): ...\n", exit=2)
    assert error["code"] == "load_failed"
    assert message in error["message"] + error["hint"]
    assert (error["line"], error["source_line"]) == (3, f"@pipeline({options})")


#: What is decorated, as `it` → what a deploy says of it.
IMPOSSIBLE = {
    "def it(ctx):\n    yield 1": "it() is a generator",
    "async def it(ctx):\n    yield 1": "it() is a generator",
    "class it:\n    def __init__(self, ctx): ...": "it is a class",
    "class Jobs:\n    @pipeline\n    def it(self, ctx): ...": "it() is a method",
    "class Jobs:\n    @pipeline\n    async def it(self): ...": "it() is a method",
    "class Jobs:\n    @classmethod\n    @pipeline\n    def it(cls, ctx): ...": "it() is a method",
    "class Jobs:\n    @pipeline\n    @classmethod\n    def it(cls, ctx): ...": "it is not a function",
    "@pipeline('it')\ndef it(ctx): ...": "'it' is not a function",
    "def it(day, ctx): ...": "it() must take its context first",
}


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_what_no_run_could_call_is_not_deployed(tau: Tau, text: str) -> None:
    mark = "" if "@pipeline" in text else "@pipeline\n"
    files = [{"path": "p.py", "text": f"from tau import pipeline\n{mark}{text}\n"}]
    with tau.connect() as wire:
        error = wire.ask({"id": 1, "method": "deploy", "params": {"files": files}})["error"]
    assert (error["data"]["code"], error["data"]["file"]) == ("load_failed", "p.py")
    assert IMPOSSIBLE[text] in error["message"]
    assert error["data"]["hint"].startswith("decorate a function")


def test_what_only_looks_like_a_method_or_a_generator_is_deployed(tau: Tau) -> None:
    for text in (
        "class Jobs:\n    @staticmethod\n    @pipeline\n    def it(ctx): return 1",
        "class Jobs:\n    @pipeline\n    @staticmethod\n    def it(ctx): return 1",
        "def rows():\n    yield 1\n@pipeline\ndef it(ctx): return sum(rows())",
        "import functools\ndef work(one, ctx): return one\npipeline(name='it')(functools.partial(work, 1))",
    ):
        tau.call("deploy", files=[{"path": "p.py", "text": f"from tau import pipeline\n{text}\n"}])
        assert tau.call("run", name="it")["result"] == 1, text


def test_options_are_stored_and_shown(tau: Tau) -> None:
    tau.deploy(
        """
        from datetime import timedelta
        from tau import pipeline
        @pipeline
        def other(ctx): ...
        @pipeline(every="1h30m", timeout=timedelta(minutes=5), retry_delay="1m", max_concurrent=2, overlap="queue",
                  misfire="all", catchup_window="2d", after="other", retries=3)
        def full(ctx): ...
        """
    )
    options = tau("show", "full")["options"]
    expected = {"every": 5400, "timeout": 300.0, "retry_delay": 60.0, "max_concurrent": 2, "overlap": "queue"}
    expected |= {"misfire": "all", "catchup_window": 172800.0, "after": ["other"], "retries": 3, "schedule": None}
    assert {key: options[key] for key in expected} == expected


REFUSED_PARAMS = [
    ("{}", "params: 'day' is missing: expected a date such as 2026-01-31"),
    ('{"day": "tomorrow"}', 'params.day: expected a date such as 2026-01-31, given string "tomorrow"'),
    ('{"day": "2026-01-31", "limit": "5"}', 'params.limit: expected integer, given string "5"'),
    ('{"day": "2026-01-31", "region": "fr"}', 'params.region: expected one of "eu", "us", given string "fr"'),
    ('{"day": "2026-01-31", "limt": 5}', "params: unknown key 'limt'; did you mean 'limit'?"),
    ('{"day": "2026-01-31", "ids": [1, "2"]}', 'params.ids[1]: expected integer, given string "2"'),
]


@pytest.mark.parametrize(("params", "message"), REFUSED_PARAMS)
def test_params_of_the_wrong_type_never_make_a_run(tau: Tau, params: str, message: str) -> None:
    tau.deploy(
        """
        from datetime import date
        from typing import Literal
        from tau import pipeline
        @pipeline
        async def typed(ctx, day: date, limit: int = 100, region: Literal["eu", "us"] = "eu", ids: list[int] | None = None):
            return [type(day).__name__, ctx.params["limit"], region]
        """
    )
    error = tau("run", "typed", "--params", params, exit=2)
    assert f"{error['message']}; {error['hint']}".startswith(message)
    assert tau("runs", "typed")["runs"] == []


def test_params_are_converted_and_have_their_defaults(tau: Tau) -> None:
    run = tau.run_it(
        """
        from datetime import date
        def it(ctx, day: date, limit: int = 100):
            return [type(day).__name__, ctx.params["limit"], ctx.params["day"].year]
        """,
        "-p",
        "day=2026-01-31",
    )
    assert run["result"] == ["date", 100, 2026]
    assert run["params"] == {"day": "2026-01-31"}


ANYTHING = {"1.10": "1.10", "10": 10, "12e3": "12e3", "true": True, "null": None, "007": "007", "[1, 2]": [1, 2]}
#: Parameter → what it makes of each word of -p; without a word, its run is refused.
TYPED = {
    "x: str": {word: word for word in ANYTHING},
    "x='0'": {word: word for word in ANYTHING},
    "x: str | None = None": {"null": "null", "1.10": "1.10", "": ""},
    "x": ANYTHING,
    "**more": ANYTHING,
    "x: int": {"10": 10, "007": ..., "1.10": ..., "true": ..., "": ...},
    "x: float | None": {"1.10": 1.1, "12e3": 12000.0, "null": None, "ten": ...},
    "x: bool = False": {"true": True, "1": ..., "yes": ...},
    "x: list[int]": {"[1, 2]": [1, 2], "1": ...},
    "x: Literal['1', 2]": {"1": "1", "2": 2, "3": ...},
    "x: date": {"2026-01-31": "2026-01-31", "yesterday": ...},
}


@pytest.mark.parametrize("parameter", [*TYPED, ""])
def test_a_word_is_json_only_where_text_is_not_wanted(tau: Tau, parameter: str) -> None:
    after = f", {parameter}" if parameter else ""
    tau.deploy_it(
        f"from datetime import date\nfrom typing import Literal\ndef it(ctx{after}):\n    return ctx.params['x']"
    )
    with tau.connect() as wire:
        for word, value in TYPED.get(parameter, ANYTHING).items():
            answer = wire.ask({"id": 1, "method": "run", "params": {"name": "it", "texts": {"x": word}}})
            assert ("error" in answer) == (value is ...), (word, answer)
            if value is not ...:
                run = answer["result"]
                assert (run["result"], type(run["result"]), run["params"]) == (value, type(value), {"x": value}), word


def test_words_win_over_the_object(tau: Tau) -> None:
    tau.deploy_it("def it(ctx, version: str, n: int = 0):\n    return [version, n]")
    both = ("--params", '{"version": "2", "n": 1}', "-p", "version=1.10")
    assert tau("run", "it", *both)["result"] == ["1.10", 1]
    assert tau("schedule", "it", "--every", "90d", *both)["params"] == {"version": "1.10", "n": 1}
    assert tau("schedule", "it", "-p", "version=1.20")["params"] == {"version": "1.20"}
    assert "is not KEY=VALUE" in tau("run", "it", "-p", "1.10", exit=2)["message"]
    tau("schedule", "it", "--clear")


def test_check_refuses_what_deploy_would_refuse(tau: Tau) -> None:
    for text, message in (
        ("@pipeline(every=60)\ndef wanting(ctx, day: str): ...", "day"),
        ("@pipeline(after='nobody_there')\ndef follower(ctx): ...", "no such pipeline"),
    ):
        path = tau.write(f"from tau import pipeline\n{text}\n")
        done = tau.command("check", path)
        assert (done.exit, done.json["ok"]) == (2, False)
        assert message in done.json["error"]["message"]
        assert done.json["error"]["message"] == tau("deploy", path, exit=2)["message"]


def test_why_tells_of_the_last_run_where_no_tick_was_decided(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef unscheduled(ctx): ...\n")
    assert tau("why", "unscheduled")["answer"].startswith("Nothing ran: no tick has been decided yet.")
    run_id = tau("run", "unscheduled")["run_id"]
    assert f"Its last run is {run_id} (manual): success." in tau("why", "unscheduled")["answer"]


def test_too_many_files_are_refused_before_they_are_compared(tau: Tau) -> None:
    files = [{"path": path, "text": ""} for path in ("a", "a/b", *map(str, range(1000)))]
    with tau.connect() as wire:
        for params in ({"files": files}, {"files": files[:1], "include": files[1:]}):
            answer = wire.ask({"id": 1, "method": "deploy", "params": params})
            assert "or 1,000 files" in answer["error"]["message"]


# Windows, cursors and days.


def test_logs_come_in_windows_from_any_place(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    for n in range(7):\n        ctx.log(f'line {n}')\n")["run_id"]

    def window(**given: Any) -> tuple[list[str], Any]:
        answer = tau.call("logs", run_id=run, tail=3, **given)
        return [line["message"][-1] for line in answer["lines"]], answer

    texts, last = window()
    assert texts == ["4", "5", "6"]
    texts, before = window(until=last["first"])
    assert texts == ["1", "2", "3"]
    assert window(since=before["next"])[0] == ["4", "5", "6"]
    assert window(since=0)[0] == ["0", "1", "2"]
    texts, end = window(since=last["next"])
    assert (texts, end["next"]) == ([], last["next"])  # the cursor stays where it is


def test_runs_page_by_their_ids_and_are_told_by_trigger(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    with ctx.step('s') as step:\n        step.rows_out = 5\n")
    ids = [tau("run", "it")["run_id"] for _ in range(3)]
    assert [row["run_id"] for row in tau("runs", "it", "--until", ids[2], "--last", "1")["runs"]] == [ids[1]]
    again = tau("retry", ids[0])["run_id"]
    assert [row["run_id"] for row in tau("runs", "it", "--trigger", "retry", "--since", ids[0])["runs"]] == [again]
    assert {row["rows"] for row in tau("runs", "it", "--since", ids[0])["runs"]} == {5}


def test_the_calendar_counts_days_and_coming_ticks(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef tallied(ctx, bad: bool = False):\n    assert not bad\n")
    tau("schedule", "tallied", "0 * * * *")
    tau("run", "tallied")
    tau("run", "tallied", "-p", "bad=true", exit=1)
    answer = tau("calendar", "tallied", "--days", "3", "--timezone", "Pacific/Auckland")
    (row,) = answer["pipelines"]
    assert len(answer["days"]) == len(row["past"]) == 3
    assert row["past"][:2] == [{}, {}]
    assert row["past"][2]["success"] >= 1
    assert row["past"][2]["failed"] >= 1
    assert (len(row["coming"]), row["more"], row["cron"]) == (24, False, "0 * * * *")
    failures = tau("calendar", "tallied", "--failures", "--days", "1")
    assert [{*row["past"][0]} for row in failures["pipelines"]] == [{"failed"}]


def test_the_last_ends_are_seen_behind_a_long_queue(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n")
    home.start()
    home.deploy_it("def it(ctx): ...\n")
    ended = home("run", "it")["run_id"]
    home.deploy_held()
    with home.connect() as wire:
        for number in range(1_100):
            wire.call("run", name="it", wait=False, key=f"k{number}")
    assert [row["run_id"] for row in home.call("watch")["ended"]] == [ended]
    home("shutdown", "--cancel")


def row_now(tau: Tau) -> str:
    """The time of the daemon's last event."""
    return str(tau.call("events", limit=1)["events"][0]["at"])


def test_watch_tells_what_is_late(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline(expect_success_within=1)\ndef late(ctx): ...\n")

    def late() -> list[str]:
        return [row["what"] for row in tau.call("watch", limit=1000)["late"] if row["pipeline"] == "late"]

    eventually(lambda: late() == ["overdue"])
    tau("deploy", tau.work / "pipelines.py", "--schedule", "0 6 * * *")
    (row,) = (row for row in tau.call("watch", limit=1000)["late"] if row["pipeline"] == "late")
    assert row["at"] <= row_now(tau)
    tau("run", "late")
    assert late() == []
    tau("undeploy", "late")
