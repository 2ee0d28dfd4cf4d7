"""What a look tells of others: nothing that a key must not see, and nothing that a run has only claimed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, make_home, running
from strange import GOOD
from test_keys import ask, key_for
from test_records import journal_of, line_of

import tau as module


@pytest.fixture(scope="module")
def net() -> Iterator[Tau]:
    with running(make_home("[daemon]\nstop_grace_s = 0.5\n", "tcp")) as made:
        yield made


STOPPED = """
import time
from tau import pipeline, PipelineError

@pipeline
def stopped(ctx):
    customer = "-".join(["Ann", "Smith"])
    ctx.log("here")
    time.sleep(60)

@pipeline
def told(ctx):
    raise PipelineError("no", "", body="-".join(["Ann", "Smith"]))

@pipeline
def lingers(ctx):
    import atexit
    customer = "-".join(["Ann", "Smith"])
    atexit.register(time.sleep, 60)
    raise ValueError("no")
"""


def test_who_may_only_read_sees_no_variables_and_rows_however_a_run_ends(net: Tau) -> None:
    net.deploy(STOPPED)
    net.call("run", name="told")
    for name in ("stopped", "lingers"):
        run_id = net.call("run", name=name, wait=False)["run_id"]
        if name == "stopped":
            eventually(lambda: net.call("logs", name="stopped")["total"])
            net.call("cancel", run_id=run_id)
            eventually(lambda: net.call("inspect", name="stopped")["status"] == "cancelled")
        else:
            eventually(lambda: net.call("inspect", name="lingers").get("waiting"))
    for scope, sees in {"read": False, "operate": True}.items():
        key = key_for(net, scope, "--scope", scope)
        for name in ("stopped", "told", "lingers"):
            shown = ask(net, key, "inspect", {"name": name, "full": True})["error"]
            assert ("Ann-Smith" in str(shown)) == sees, (scope, name, shown)
        assert "Ann-Smith" not in str(ask(net, key, "watch", {}))
    net.call("cancel", run_id="lingers", force=True)


def test_the_source_of_a_failure_is_not_that_of_a_pipeline_which_the_key_does_not_see(net: Tau) -> None:
    error = {**GOOD["raised"]["error"], "file": "hidden.py", "line": 1}
    lie = line_of({"t": "raised", **GOOD["raised"], "error": error})
    head = "from tau import pipeline\n@pipeline\ndef "
    files = {
        "own.py": f"import os\n{head}own_a(ctx):\n    {journal_of(net)}.write({lie!r})\n    os._exit(3)\n",
        "hidden.py": f"# hidden\n{head}other(ctx): ...\n",
    }
    net.call("deploy", files=[{"path": path, "text": text} for path, text in files.items()])
    net.call("run", name="own_a")
    key = key_for(net, "own", "--pipelines", "own_*")
    assert "# hidden" in str(net.call("inspect", name="own_a")["source"])
    assert ask(net, key, "inspect", {"name": "own_a"})["source"] is None


LIAR = """
from tau import pipeline
VERSION = {version}

@pipeline
def liar(ctx):
    {code}
"""
READER = """
from tau import pipeline

@pipeline
def reader(ctx, fail: bool = False):
    open("a.csv", "w").write("id\\n1\\n")
    ctx.extract("a.csv")
    if fail:
        raise ValueError
"""


def test_what_a_run_claims_spoils_no_answer_about_another(net: Tau, tmp_path: Path) -> None:
    """It claims to write everywhere, and that it has seen more than an answer holds."""
    place = str(net.home / "data" / "reader" / "a.csv")
    step = {"t": "step", **GOOD["step"], "parent": None}
    wide = {f"c{number}{'x' * 500}": "text" for number in range(900)}  # half a megabyte
    lies: dict[str, list[dict[str, Any]]] = {
        "everywhere": [{"places": [{"how": "writes", "place": f"{'*' * many}", "resource": ""}]} for many in (1, 2)],
        "much": [{"places": [{"how": "writes", "place": place, "resource": ""}], "columns": wide}] * 50,
    }
    net.deploy(READER)
    for lie, dones in lies.items():
        for version in ("first", "second"):
            lines = [
                line_of({**record, "step": number, "path": f"s{number}"})
                for number, done in enumerate(dones, 1000)
                for record in (step, {"t": "done", **GOOD["done"], "status": "success", **done})
            ]
            path = tmp_path / f"{lie}.lines"
            path.write_bytes(b"".join(lines))
            code = f"{journal_of(net)}.write(open({str(path)!r}, 'rb').read())"
            net.deploy(LIAR.format(version=repr(lie + version), code=code))
            run_id = net.call("run", name="liar", wait=False)["run_id"]
            eventually(lambda run_id=run_id: net.call("runs", name="liar")["runs"][0]["status"] == "success")
            net.call("run", name="reader", params={"fail": version == "second"})
        case = net.call("inspect", name="reader")
        assert case["status"] == "failed"
        upstream = [one["pipeline"] for one in case["changed"].get("upstream", [])]
        assert upstream == ([] if lie == "everywhere" else ["liar"])
        if lie == "everywhere":
            assert "liar" not in str(net.call("lineage", name="reader"))


def test_a_diff_of_many_files_ends_when_it_is_long_enough() -> None:
    sides = [{f"{n}.py": (f"{side}\n" * 900).encode() for n in range(100)} for side in ("old", "new")]
    text = module.compare_sources(*sides)
    rest = re.search(r"… ([\d,]+) more characters", text)
    assert rest is not None
    assert int(rest[1].replace(",", "")) < 20_000


def test_looks_at_what_hangs_hold_up_no_deployment(net: Tau) -> None:
    keys = [key_for(net, f"looks{number}") for number in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as hanging, contextlib.ExitStack() as stack:
        hanging.settimeout(PATIENCE_S)
        config = net.home / "tau.toml"
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}/a.json"
        config.write_text(f'{config.read_text()}[connections.hanging]\nurl = "{url}"\n')
        os.kill(net.pid(), signal.SIGHUP)
        words = ("peek", "hanging")
        looks = [threading.Thread(target=net.command, args=words, kwargs={"TAU_API_KEY": key}) for key in keys * 2]
        for look in looks:
            look.start()
            stack.callback(look.join)
        stack.callback(hanging.shutdown, socket.SHUT_RDWR)
        for _ in range(3):
            stack.callback(hanging.accept()[0].close)  # as many look at once
        net.deploy("from tau import pipeline\n@pipeline\ndef meanwhile(ctx): ...\n")
        assert all(look.is_alive() for look in looks)
