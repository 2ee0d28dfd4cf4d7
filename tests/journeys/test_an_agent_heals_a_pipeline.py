"""Fail, inspect, fix, deploy, recover: everything an agent needs is in what the commands print."""

from __future__ import annotations

from conftest import REPOSITORY, Tau


def test_from_a_failure_to_its_fix_by_what_is_printed_alone(tau: Tau) -> None:
    tau("deploy", REPOSITORY / "examples" / "broken.py")
    tau("run", "broken", exit=1)

    failed = tau("errors", "--limit", 1)["errors"][0]
    run = tau(*failed["next"][0].split()[1:])
    error = run["error"]
    assert (error["type"], error["message"], error["step"]) == ("KeyError", "'amount'", "transform")
    assert error["code"] == 'result += row["amount"]'
    assert error["frames"][-1]["locals"]["row"] == "{'id': 2, 'amuont': 7}"

    see_code = next(command for command in run["next"] if command.startswith("tau code"))
    source = tau(*see_code.split()[1:])["source"]
    assert source.splitlines()[error["line"] - 1].strip() == error["code"]
    fixed = tau.write(source.replace('"amuont"', '"amount"'), error["file"])
    refused = tau("deploy", fixed, exit=5)  # the file that it came from is another one
    assert tau(*refused["hint"].split()[1:])["changed"] is True
    assert tau("run", "broken")["result"] == 12
