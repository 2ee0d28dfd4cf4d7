"""The vocabulary holds together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tau as module


def test_every_status_can_be_reached_and_every_end_is_an_end() -> None:
    reached, new = set(), {"queued"}
    while new:
        reached |= new
        new = {target for status in new for target in module.MOVES[status]} - reached
    assert reached == set(module.MOVES)
    assert set(module.FINAL) == {"success", "failed", "timed_out", "cancelled", "lost"}
    assert set(module.FAILURES) < set(module.FINAL)


def test_errors_have_their_code_number_and_exit() -> None:
    exits = {
        "bad_request": 2,
        "parse_error": 2,
        "invalid_request": 2,
        "method_not_found": 2,
        "load_failed": 2,
        "not_found": 3,
        "forbidden": 4,
        "conflict": 5,
        "unproven": 5,
        "queue_full": 5,
        "quota": 5,
        "storage_full": 5,
        "unavailable": 6,
        "internal": 9,
        "too_much": 2,
        "header_mismatch": 2,
        "unknown_version": 2,
    }
    assert {code: kind.exit for code, kind in module.ERRORS.items()} == exits
    numbers = [kind.number for kind in module.ERRORS.values()]
    assert len(set(numbers)) == len(numbers)
    spoken = (-32700, -32600, -32601, -32602, -32603, -32020, -32022)  # of JSON-RPC and of MCP
    assert all(-32019 <= number <= -32000 or number in spoken for number in numbers)


@pytest.mark.parametrize("code", module.ERRORS)
def test_an_error_crosses_the_wire_as_its_own_class(code: str) -> None:
    sent = module.ERRORS[code]("what", "do this", file="x.py", line=3)
    came = module.from_wire(sent.to_wire())
    assert (type(came), str(came), came.hint, came.detail) == (type(sent), "what", "do this", sent.detail)
    assert sent.to_json() == {
        "code": code,
        "message": "what",
        "hint": "do this",
        "retryable": sent.retryable,
        "file": "x.py",
        "line": 3,
    }


def test_a_long_word_leaves_both_ends_of_a_message() -> None:
    message = str(module.NotFound(f"no '{'x' * module.LINE_BYTES_MAX}' is there"))
    assert len(message) == module.TauError.longest
    assert message.startswith("no 'x")
    assert message.endswith("x' is there")


def test_times_are_rfc_3339_with_milliseconds() -> None:
    assert module.rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert module.rfc3339(1767225600.9999) == "2026-01-01T00:00:00.999Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", module.rfc3339(time.time()))


def test_run_ids_are_short_and_sort_like_their_numbers() -> None:
    numbers = [0, 1, 31, 32, 1 << 25, (1 << 70) - 1, int(time.time() * 1000) << 25]
    spelled = [module.spell_id(number) for number in numbers]
    assert [module.read_id(text) for text in spelled] == numbers
    assert sorted(spelled) == [module.spell_id(number) for number in sorted(numbers)]
    assert {len(text) for text in spelled} == {14}


def test_a_process_is_known_by_its_pid_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        one = {"pid": child.pid, "started": module.process_started(child.pid), "boot": module.boot_id()}
        assert module.is_alive(one)
        assert not module.is_alive(one | {"started": "1"})
        assert not module.is_alive(one | {"boot": "another"})
        module.send_signal(one | {"started": "1"}, 9)
        assert child.poll() is None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not module.is_alive(one)  # a zombie runs nothing
    assert module.process_started(child.pid) is None


def test_the_nearest_word_is_suggested() -> None:
    assert module.did_you_mean("statsu", ["status", "show"], "else") == "did you mean 'status'? else"
    assert module.did_you_mean("xyz", ["status"], "else") == "else"


def test_a_buffer_gives_whole_lines_however_the_bytes_come() -> None:
    for size in (1, 2, 3, 100):
        buffer, lines = module.LineBuffer(), []
        data = b"one\n\ntwo two\nrest"
        for at in range(0, len(data), size):
            lines += buffer.add(data[at : at + size])
        assert (lines, bytes(buffer.tail)) == ([b"one", b"", b"two two"], b"rest"), size


def test_a_replacement_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    module.replace_file(str(path), b"old")
    with pytest.raises(TypeError), module.Replacement(str(path)) as file:
        file.write(b"new" * 10_000 + None)  # type: ignore[operator]
    assert path.read_bytes() == b"old"
    with module.Replacement(str(path), mode=0o640) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_is_had_by_one_until_it_is_closed(tmp_path: Path) -> None:
    for path, create in ((tmp_path / "lock", True), (tmp_path, False)):
        held = module.lock_file(str(path), create=create)
        assert module.lock_file(str(path), wait=False, create=create) == -1
        os.close(held)
        again = module.lock_file(str(path), wait=False)
        assert again >= 0
        os.close(again)


def test_what_must_end_is_asked_first() -> None:
    for grace, expected in ((60.0, ["SIGTERM"]), (0.0, ["SIGTERM", "SIGKILL", "SIGKILL"])):
        sent: list[str] = []
        ending = module.Ending(lambda number, sent=sent: sent.append(signal.Signals(number).name), grace)
        ending.look()
        ending.look()
        assert sent == expected
