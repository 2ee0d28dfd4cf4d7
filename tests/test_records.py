"""What a journal says is believed as far as RECORDS allows; whatever else it says, its run ends and no other is hurt."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, is_running, served
from strange import GOOD, WRONG, line_of, wrong_records

import tau as module

MASK = module.Mask()


def test_each_kind_of_record_has_an_example_that_is_accepted() -> None:
    assert {*GOOD} == {*module.RECORDS}
    for kind, fields in GOOD.items():
        writer, _ = module.RECORDS[kind]
        record = module.read_record(line_of({"t": kind, **fields}), MASK, writer)
        assert record.items() >= {"t": kind, **fields}.items()


def test_a_wrong_record_is_refused_or_becomes_a_right_one() -> None:
    writers = {writer for writer, _ in module.RECORDS.values()}
    accepted = refused = 0
    for wrong in wrong_records():
        try:
            record = module.read_record(line_of(wrong), MASK, *writers)
        except module.BadRequest:
            refused += 1
            continue
        again = module.encode(record)
        assert module.read_record(again, MASK, *writers) == record
        assert again.decode("utf-8")
        accepted += 1
    assert refused > 2 * accepted > 0


@pytest.mark.parametrize("kind", GOOD)
def test_a_record_counts_only_from_whom_it_may_come(kind: str) -> None:
    line = line_of({"t": kind, **GOOD[kind]})
    for writer in {writer for writer, _ in module.RECORDS.values()} - {module.RECORDS[kind][0]}:
        with pytest.raises(module.BadRequest, match=r"it is not from the"):
            module.read_record(line, MASK, writer)


@pytest.mark.parametrize("line", [b"", b"{", b"7", b"[]", b"\xff", b'{"t":NaN}', b"{}", b"[" * 100_000, b'{"t":[]}'])
def test_a_line_that_is_not_a_record_is_refused(line: bytes) -> None:
    with pytest.raises(module.BadRequest, match=r"."):
        module.read_record(line, MASK, "run")


def test_a_secret_is_hidden_in_values_and_in_the_users_keys_but_not_in_ours() -> None:
    mask = module.Mask()
    for value in ("message", "exception", "status"):
        mask.add(value)
    error = {**GOOD["raised"]["error"], "message": "a message", "frames": []}
    raised = module.fit_record({"t": "raised", **GOOD["raised"], "error": error}, mask)
    assert (raised["error"]["message"], raised["error"]["kind"]) == ("a ***", "exception")
    returned = module.fit_record({"t": "returned", **GOOD["returned"], "result": {"status": "message"}}, mask)
    assert returned["result"] == {"***": "***"}


def journal_of(tau: Tau) -> str:
    """Code that opens the run's own journal."""
    return f"open({str(tau.home / 'runs')!r} + f'/{{ctx.run_id}}.1.journal', 'ab', 0)"


#: What a run writes before it exits without a result → its status.
SHAPES: dict[str, tuple[list[Any], str]] = {
    "raised": ([{"t": "raised"}], "failed"),
    "returned": ([{"t": "returned"}], "failed"),
    "dropped": ([{"t": "dropped", "lines": 1e30}], "failed"),
    "start in the middle": ([{"t": "start"}, {"t": "start", **GOOD["start"]}], "failed"),
    "an end of its own": ([{"t": "end", **GOOD["end"], "exit_code": 77}], "failed"),
    "another machine's": ([{"t": "far_start", **GOOD["far_start"]}, {"t": "far_end", **GOOD["far_end"]}], "failed"),
    "a memo": ([{"t": "memo", **GOOD["memo"]}], "failed"),
    "a whole one": ([{"t": "returned", **GOOD["returned"], "result": 5}], "success"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_that_writes_into_its_journal_ends(tau: Tau, name: str) -> None:
    records, status = SHAPES[name]
    lines = b"".join(map(line_of, records))
    tau.deploy_it(f"import os\ndef it(ctx):\n    {journal_of(tau)}.write({lines!r})\n    os._exit(3)\n")
    run = tau.call("run", name="it")
    assert (run["status"], run["resources"]["exit_code"]) == (status, 3)
    skipped = [line for line in run["trace"]["log_tail"] if "skipped" in line]
    assert len(skipped) == (status == "failed")
    assert tau.call("status")["slots"]["used"] == 0


def test_every_wrong_record_in_one_journal(tau: Tau) -> None:
    """Meanwhile the time limit of another run holds."""
    path = Path(tau.work / "wrong")
    path.write_bytes(b"".join(line_of(record) for record in wrong_records() if record["t"] != "returned"))
    tau.deploy(
        f"""
        import shutil, time
        from tau import pipeline
        @pipeline
        def wrong(ctx):
            with open({str(path)!r}, "rb") as source, {journal_of(tau)} as journal:
                shutil.copyfileobj(source, journal)
            return 7
        @pipeline(timeout=0.5)
        def long(ctx):
            time.sleep(600)
        """
    )
    with tau.connect() as wire:
        long = wire.call("run", name="long", wait=False)["run_id"]
        run = wire.call("run", name="wrong")
        assert (run["status"], run["result"]) == ("success", 7)
        assert "skipped" in run["trace"]["log_tail"][-1]
        assert wire.call("wait", run_id=[long])["status"] == "timed_out"
    assert tau("inspect", run["run_id"], "--full")["status"] == "success"
    for words in (("logs", "wrong"), ("runs",), ("status",)):
        tau(*words)


@pytest.mark.parametrize("restart", [False, True])
def test_an_end_that_only_the_run_can_have_written_is_not_believed(fresh: Tau, restart: bool) -> None:
    """Once the run has ended, what stands in its place leaves nothing but `lost`, unless the fork server told it."""
    fresh.deploy_held()
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    pid = eventually(lambda: [row["pid"] for row in fresh.call("status")["processes"] if row["role"] == "run"])[0]
    end = fresh.home / "runs" / f"{run_id}.1.end"
    end.mkdir()
    fresh.call("logs", run_id=run_id)
    if restart:
        fresh.kill()
    assert fresh.go.write_bytes(b"") == 0
    eventually(lambda: not is_running(pid))
    if restart:
        fresh.start()
    run = fresh.call("wait", run_id=[run_id])
    assert run["status"] == "success"  # as its journal says
    eventually(lambda: not [path for path in (fresh.home / "runs").iterdir() if run_id in path.name])


@pytest.mark.parametrize("forged", ["", "{}\n"])
def test_a_run_of_which_no_end_can_be_read_is_lost(fresh: Tau, forged: str) -> None:
    """Its fork server would replace a forged end."""
    fresh.deploy_held(after="os._exit(0)")
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    pids = eventually(lambda: [row["pid"] for row in fresh.call("status")["processes"] if row["role"] != "daemon"][1:])
    server = next(row["pid"] for row in fresh.call("status")["processes"] if row["role"] == "fork server")
    fresh.kill()
    os.kill(server, signal.SIGKILL)
    end = fresh.home / "runs" / f"{run_id}.1.end"
    if forged:
        end.write_text(forged)
    else:
        end.mkdir()
    fresh.go.touch()
    eventually(lambda: not any(map(is_running, pids)))
    fresh.start()
    run = fresh.call("wait", run_id=[run_id])
    assert (run["status"], run["error"]["type"]) == ("lost", "ProcessLost")
    assert "its end record cannot be read" in run["error"]["message"]


def test_what_the_store_refuses_of_a_trace_is_lost_and_the_run_is_not(home: Tau) -> None:
    code = (
        "real = tau.Store.add_trace\n"
        "def add_trace(self, run_id, attempt, records, state):\n"
        "    if any(record.get('message') == 'bug' for record in records):\n        raise KeyError('bug')\n"
        "    return real(self, run_id, attempt, records, state)\n"
        "tau.Store.add_trace = add_trace"
    )
    with served(home, code=code):
        home.deploy_it(
            "import time\ndef it(ctx):\n    ctx.log('bug')\n    time.sleep(1)\n    ctx.log('after')\n    return 1\n"
        )
        run = home.call("run", name="it")
        assert (run["status"], run["result"], run["trace"]["log_tail"]) == ("success", 1, ["after"])


def test_a_journal_that_is_one_endless_line_is_read_in_pieces(tau: Tau, tmp_path: Path) -> None:
    process = module.Process(str(tmp_path), "it", None, 1, {})
    with open(tmp_path / "it.journal", "wb") as file:
        file.truncate(3 * module.RECORD_BYTES_MAX)
    while process.read({"result_bytes": 0, "log_lines": 10, "log_bytes": 10}, final=False):
        pass
    assert process.position["journal"] >= 2 * module.RECORD_BYTES_MAX
    assert process.position["skipped"][0] <= 3


@pytest.mark.parametrize("kind", ["log", "step", "check"])
def test_the_trace_of_a_run_is_bounded_in_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRACE_BYTES_MAX", 1 << 20)
    process = module.Process(str(tmp_path), "it", None, 1, {})
    values = {**GOOD["check"]["data"], "values": {"a": "x" * 20_000}}
    large = {"log": {"fields": values}, "step": {"path": "x" * 2000}, "check": {"data": values}}
    fields = GOOD[kind] | large[kind]
    (tmp_path / "it.journal").write_bytes(line_of({"t": kind, **fields}) * 900)
    while process.read({"result_bytes": 0, "log_lines": 10_000, "log_bytes": 0}, final=False):
        pass
    assert 0 < len(process.unsaved) <= 900
    assert sum(len(line_of(record)) for record in process.unsaved) < 2 << 20
    assert process.position["skipped"]


def test_wrong_is_more_than_one() -> None:
    assert len({json.dumps(value) for value in WRONG}) == len(WRONG)


def test_an_error_without_frames_in_a_long_document_is_shown(tau: Tau) -> None:
    error = {**GOOD["raised"]["error"], "frames": [], "message": "m" * 60_000}
    line = line_of({"t": "raised", **GOOD["raised"], "error": error})
    tau.deploy_it(f"import os\ndef it(ctx):\n    {journal_of(tau)}.write({line!r})\n    os._exit(3)\n")
    run = tau.call("run", name="it")
    assert run["error"]["message"].startswith("mmm")


#: What a run puts in the place of its first record.
FORGED: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "another process": {"pid": 4_000_000},
    "another start of it": {"started": "1"},
    "another boot": {"boot": "b"},
    "a time to come": {"mono": 1e12},
}


@pytest.mark.parametrize("name", FORGED)
def test_the_time_limit_of_a_run_that_replaces_its_first_record_holds(tau: Tau, name: str) -> None:
    path = f"{str(tau.home / 'runs')!r} + f'/{{ctx.run_id}}.1'"
    tau.deploy(
        f"""
        import json, os, time
        from tau import pipeline
        @pipeline(timeout=0.5)
        def forges(ctx):
            with open({path} + ".journal", "r+b") as file:
                first, changed = json.loads(file.readline()), {FORGED[name]!r}
                file.truncate(0)
                file.seek(0)
                if changed is not None:
                    file.write(json.dumps(first | changed).encode() + b"\\n")
            with open({path} + ".end", "wb") as file:
                file.write({line_of({"t": "end", **GOOD["end"]})!r})
            ctx.log("after")
            time.sleep(20)
        """
    )
    assert tau.call("run", name="forges")["status"] == "timed_out"
