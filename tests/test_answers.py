"""Answers are as short as they can be: chosen parts, folded lines, and a first look of one kilobyte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Tau, make_home, running
from test_terminal import on_terminal

import tau as module

PIPELINES = """
from tau import pipeline

@pipeline(every="1h")
def polls(ctx, times: int = 214):
    ctx.log("begin")
    for _ in range(times):
        ctx.log("waiting", level="warning", page=1)
    ctx.log("waiting", level="warning", page=2)
    with ctx.step("work"):
        ctx.log("waiting", level="warning", page=2)
    return {"rows": [{"n": 1}, {"n": 2, "more": [{"x": 1}]}], "none": None}

@pipeline
def breaks(ctx):
    raise ValueError("x" * 1000)
"""


@pytest.fixture(scope="module")
def told() -> Any:
    with running(make_home()) as tau:
        tau.deploy(PIPELINES)
        tau("run", "polls")
        tau("run", "breaks", exit=1)
        yield tau


def test_some_fields_of_every_answer_that_is_read(told: Tau) -> None:
    run_id = told("runs", "polls")["runs"][0]["run_id"]
    cases = {
        ("runs", "polls", "--fields", "runs.run_id"): {"runs": [{"run_id": run_id}]},
        ("runs", "polls", "--fields", "total, runs.run_id,runs.status"): {
            "total": 1,
            "runs": [{"run_id": run_id, "status": "success"}],
        },
        ("inspect", run_id, "--fields", "status,trace.steps.name"): {
            "status": "success",
            "trace": {"steps": [{"name": "work"}]},
        },
        ("inspect", run_id, "--fields", "result.rows.more,result.rows.n,error.type"): {
            "result": {"rows": [{"n": 1}, {"more": [{"x": 1}], "n": 2}]},
            "error": None,
        },
        ("inspect", run_id, "--fields", "result.rows.n,result.rows,result.none.x"): {
            "result": {"rows": [{"n": 1}, {"n": 2, "more": [{"x": 1}]}], "none": None}
        },
        ("wait", run_id, "--fields", "status"): {"status": "success"},  # it answers in bytes
        ("logs", run_id, "--fields", "lines.message", "--level", "info", "--grep", "begin"): {
            "lines": [{"message": "begin"}]
        },
        ("runs", "--status", "lost", "--fields", "runs.run_id"): {"runs": []},
        ("schema", "--fields", "protocol"): {"protocol": 1},
        ("env", "list", "--fields", "environments"): {"environments": []},  # by the command itself
    }
    for words, answer in cases.items():
        assert told(*words) == answer, words
        method, _, options = words[0], words[1], dict(zip(words[-2::2], words[-1::2], strict=True))
        if method == "inspect":
            assert told.call("inspect", name=run_id, fields=options["--fields"]) == answer
    assert told.call("wait", run_id=[run_id], fields="status") == {"status": "success"}
    assert told.call("version", fields="protocol") == {"protocol": 1}


def test_a_cut_list_stays_cut_and_the_rest_has_the_same_fields(told: Tau) -> None:
    answer = told("runs", "--limit", "1", "--fields", "runs.status,runs.it is not", exit=2)
    assert answer["message"] == "--fields: the answer has no 'it is not'"
    answer = told("runs", "--limit", "1", "--fields", "runs.status")
    assert answer["runs"] == [{"status": "failed"}]
    assert answer["truncated"]["get"] == "tau runs --last 2 --fields runs.status"
    assert len(told(*answer["truncated"]["get"].split()[1:])["runs"]) == 2


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ("statsu", "did you mean 'status'?"),
        ("trace.stesp", "did you mean 'steps'?"),
        ("status.x", "nothing in it"),
        ("", "there is run_id, pipeline"),
        ("trace..steps", "there is steps, checks"),
        (",".join(["status"] * 200), "there is run_id"),
        ("x" * (1 << 20), "there is run_id"),
    ],
)
def test_a_field_that_nothing_has_is_refused(told: Tau, fields: str, hint: str) -> None:
    with told.connect() as wire:
        answer = wire.ask({"id": 1, "method": "inspect", "params": {"name": "polls", "fields": fields}})
    assert answer["error"]["data"]["code"] == "bad_request"
    assert hint in answer["error"]["data"]["hint"]
    assert len(json.dumps(answer)) < 2_000


def test_who_waits_for_some_fields_still_learns_by_the_exit_code(told: Tau) -> None:
    run_id = told("runs", "breaks")["runs"][0]["run_id"]
    done = told.command("wait", run_id, "--fields", "error.type")
    assert (done.exit, done.json) == (1, {"error": {"type": "ValueError"}})
    assert on_terminal(told, "wait", run_id, "--fields", "status")[1] == '{"status":"failed"}\n'


def test_lines_that_repeat_are_one_that_says_how_often(told: Tau) -> None:
    answer = told("logs", "polls")
    lines = [(line["message"], line.get("repeated"), (line["fields"] or {}).get("page")) for line in answer["lines"]]
    assert lines[-3:] == [("waiting", 198, 1), ("waiting", None, 2), ("waiting", None, 2)]
    assert (answer["total"], answer["truncated"]["shown"]) == (217, 200)
    whole = told("logs", "polls", "--tail", "1000")
    assert [line.get("repeated") for line in whole["lines"]] == [None, 214, None, None]
    assert told("inspect", "polls")["trace"]["log_tail"] == ["waiting ×198+", "waiting", "waiting"]  # noqa: RUF001
    assert "waiting ×214 page=1" in on_terminal(told, "logs", "polls", "--tail", "1000")[1]  # noqa: RUF001
    followed = told.command("logs", "polls", "--follow").lines
    assert (len(followed), {line.get("repeated") for line in followed}) == (200, {None})


def test_the_first_look_says_in_a_kilobyte_how_things_are(told: Tau) -> None:
    done = told.command()
    answer = done.json
    assert (done.exit, len(done.out) <= module.GLANCE_BYTES) == (0, True)
    assert [row["pipeline"] for row in answer["incidents"]] == ["breaks"]
    assert answer["next"] == [f"tau inspect {answer['incidents'][0]['incident']}"]
    assert [tick["pipeline"] for tick in answer["ticks"]] == ["polls"]
    assert answer["daemon"]["pipelines"] == 2
    assert on_terminal(told)[1].startswith("usage: tau COMMAND")


def test_the_first_look_stays_small_whatever_there_is(home: Tau) -> None:
    home.start()
    assert home()["next"] == ["tau list", "tau runs"]
    name = "n" * 120
    text = "from tau import pipeline\n" + "".join(
        f"@pipeline(name='{name}{n}', every='1h')\ndef f{n}(ctx):\n"
        f"    ctx.secret('{name}{n}', default='')\n    raise ValueError('é' * 500)\n"
        for n in range(5)
    )
    home.deploy(text)
    for n in range(5):
        home("run", f"{name}{n}", exit=1)
    home("pause", "--all", "--reason", "r" * 999)
    done = home.command()
    assert len(done.out.encode()) <= module.GLANCE_BYTES
    assert (done.json["daemon"]["open_incidents"], len(done.json["next"])) == (5, 3)
    home("undeploy", f"{name}0")
    assert home("watch")["daemon"]["open_incidents"] == 4
    home("shutdown")
    done = home.command()
    assert (done.exit, done.error["hint"]) == (6, "taud --detach")


def test_a_field_that_an_answer_can_have_may_be_missing(fresh: Tau) -> None:
    fresh.run_it("def it(ctx): ...")
    assert fresh("inspect", "it", "--fields", "status,incident") == {"status": "success"}
    assert [*fresh("runs", "--fields", "runs,truncated,total")] == ["runs", "total"]
    assert fresh("inspect", "it", "--fields", "statsu", exit=2)["hint"].startswith("did you mean 'status'?")
    assert "there is" in fresh("runs", "--fields", "run_id", exit=2)["hint"]


def test_a_list_is_cut_after_it_is_sifted(fresh: Tau) -> None:
    text = "from tau import pipeline\n" + "".join(
        f"@pipeline\ndef p{number}(ctx): {number} / {number}\n" for number in range(5)
    )
    fresh.deploy(text)
    fresh("run", "p0", exit=1)
    fresh("run", "p1")
    told = fresh("calendar", "--failures", "--limit", 1)
    assert ([row["pipeline"] for row in told["pipelines"]], told["total"]) == (["p0"], 1)
