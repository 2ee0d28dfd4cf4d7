"""Fail, inspect, fix, deploy, recover: everything an agent needs is in what the commands print."""

from __future__ import annotations

from conftest import REPOSITORY, Tau


def test_from_a_failure_to_its_fix_by_what_is_printed_alone(tau: Tau) -> None:
    tau("deploy", REPOSITORY / "examples" / "broken.py")
    tau("run", "broken", exit=1)

    incident = tau("errors", "--limit", 1)["incidents"][0]
    run = tau("inspect", incident["last_run"])
    error = run["error"]
    assert (error["type"], error["message"], error["step"]) == ("KeyError", "'amount'", "transform")
    assert error["code"] == 'result += row["amount"]'
    assert error["frames"][-1]["locals"]["row"] == "{'id': 2, 'amuont': 7}"

    get_code = next(command for command in run["next"] if command.startswith("tau code"))
    taken = tau(*get_code.split()[1:])
    (path,) = (tau.work / written for written in taken["written"])
    source = path.read_text()
    assert source.splitlines()[error["line"] - 1].strip() == error["code"]
    path.write_text(source.replace('"amuont"', '"amount"'))
    try_out, deploy = (f"{command} {more}".split()[1:] for command in taken["next"] for more in ("--dry-run", ""))
    assert "\n-ROWS = " in tau(*try_out)["pipelines"][0]["code"]
    assert tau(*deploy)["changed"] is True
    assert tau("run", "broken")["result"] == 12
    closed = tau("inspect", incident["incident"])
    assert (closed["status"], closed["fixed_by"]) == ("closed", 2)
