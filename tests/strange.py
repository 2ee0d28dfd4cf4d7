"""Lines that a journal might have: a good record of each kind, and every way in which one can be wrong."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

TIMES = {"at": 1_800_000_000.0, "mono": 5.0}
PLACE = {"file": "pipelines.py", "line": 3, "code": "1 / 0"}
ERROR = {
    "kind": "exception",
    "type": "E",
    "message": "m",
    "step": None,
    **PLACE,
    "hint": None,
    "facts": {"limit_s": 5},
    "frames": [{**PLACE, "function": "it", "locals": {"a": "1"}, "user": True}],
    "cause": {"type": "E", "message": "m", **PLACE, "cause": None},
    "fingerprint": "0123456789ab",
}
DEATH = {"exit_code": 0, "signal": None, "reason": None, "cpu_ms": 1.5, "max_rss_bytes": 1000}
GOOD: dict[str, dict[str, Any]] = {
    "start": {**TIMES, "pid": 4_000_000, "started": "1", "boot": "b", "executor": None},
    "abandoned": {"at": 1.0},
    "end": {**TIMES, **DEATH},
    "far_start": {**TIMES, "host": "h"},
    "far_end": {**TIMES, **DEATH, "host": "h"},
    "memo": {"key": "0123456789ab", "data": "eA=="},
    "secret": {"name": "TOKEN"},
    "returned": {**TIMES, "result": {"a": [1, 2.5, None, "x"]}, "state": None, "waits_for": "its exit handlers"},
    "raised": {**TIMES, "error": ERROR, "retry": False, "waits_for": "its exit handlers"},
    "stop": {"at": 1.0},
    "dropped": {"lines": 1},
    "log": {"at": 1.0, "level": "info", "message": "m", "step": "a", "stream": None, "fields": {"a": 1}},
    "unfinished": {"at": 1.0, "message": "m", "step": "a", "stream": "stdout"},
    "step": {"at": 1.0, "step": 1, "parent": None, "name": "a", "path": "a"},
    "done": {
        "at": 1.0,
        "step": 1,
        "status": "success",
        "duration_ms": 1.0,
        "rows_in": 1,
        "rows_out": None,
        "columns": {"a": "text"},
        "nulls": {"a": 0.5},
        "places": [{"how": "reads", "place": "/in.csv", "resource": ""}],
        "error": {"type": "E", "message": "m"},
    },
    "check": {
        "at": 1.0,
        "name": "c",
        "step": None,
        "data": {"passed": True, "severity": "error", "values": {"a": "1"}, "error": None},
    },
    "metric": {"at": 1.0, "name": "n", "step": None, "data": {"value": 1.5}},
    "progress": {"at": 1.0, "name": "", "step": None, "data": {"done": 1, "total": None, "message": ""}},
    "drift": {
        "at": 1.0,
        "name": "",
        "step": "a",
        "data": {"changes": [{"column": "a", "what": "retyped", "before": "text", "now": "real"}]},
    },
    "sample": {"at": 1.0, "name": "", "step": "a", "data": {"way": "in", "rows": [{"a": 1}]}},
    "rehearsal": {"at": 1.0, "effects": [], "unobserved": ["a"], "refused": []},
}
DEEP: Any = 0
for _ in range(70):
    DEEP = [DEEP]
#: What may stand where something else should.
WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 1.5, -0.0, 1e30, 1e308, 1 << 63, 1 << 70, -(1 << 63), math.nan, math.inf, -math.inf),
    *("", "x", "../../x", "0" * 12, "a" * 70_000, "\0", "\ud800", "\x1b]0;x\7", [], [1], {}, {"t": "end"}, DEEP),
)


def wrong_records() -> Iterator[dict[str, Any]]:
    """Each record with each of its fields, also those inside, missing or wrong."""
    for kind, fields in GOOD.items():
        for changed in variants(fields):
            yield {"t": kind, **changed}
        yield {"t": kind}
    for kind in WRONG:
        yield {"t": kind, **GOOD["log"]}


def variants(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in fields.items():
        yield {key: other for key, other in fields.items() if key != name}
        for wrong in WRONG:
            yield fields | {name: wrong}
        if isinstance(value, dict):
            for inner in variants(value):
                yield fields | {name: inner}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for inner in variants(value[0]):
                yield fields | {name: [inner]}


def line_of(record: Any) -> bytes:
    """JSON as Python writes it, with NaN and halves of characters."""
    return json.dumps(record).encode() + b"\n"


def random_lines(count: int, seed: int) -> Iterator[bytes]:
    """Good records, wrong ones, torn ones and noise, in any order."""
    dice = random.Random(seed)
    wrong = [line_of(record) for record in wrong_records() if len(str(record)) < 2000]
    good = [line_of({"t": kind, **fields}) for kind, fields in GOOD.items() if kind != "end"]
    for _ in range(count):
        line = dice.choice(wrong if dice.random() < 0.7 else good)
        luck = dice.random()
        if luck < 0.05:
            line = line[: dice.randrange(len(line))]
        elif luck < 0.1:
            at = dice.randrange(len(line))
            line = line[:at] + bytes([dice.randrange(256)]) + line[at + 1 :]
        elif luck < 0.12:
            line = line[:-2] + b',"t":"end"}\n'
        yield line
