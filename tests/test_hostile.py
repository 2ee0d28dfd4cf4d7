"""Hostile peers on the network: whatever they do, the others are served and nothing grows."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from attacks import ATTACKS, Crowd
from conftest import Tau, eventually, make_home, running, started

import tau as module


@pytest.fixture(scope="module", params=["tcp", "tls"])
def target(request: pytest.FixtureRequest) -> Iterator[Tau]:
    """A daemon that listens on a port."""
    made = make_home("", request.param)
    made.home.chmod(0o700)
    yield from started(made)


def attack(target: Tau, name: str, count: int) -> None:
    """An attack of a process of its own, while the command line asks and is answered."""
    words = [
        sys.executable,
        "-W",
        "error",
        str(Path(__file__).parent / "attacks.py"),
        name,
        str(target.port),
        str(count),
    ]
    attacker = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        while attacker.poll() is None:
            assert target("status")["strangers"] <= module.STRANGERS_MAX
    finally:
        attacker.kill()
        complaint = attacker.communicate()[1]
    assert attacker.returncode == 0, complaint.decode()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing_for_others(target: Tau, name: str) -> None:
    before = target.call("status")["connections"]
    attack(target, name, min(ATTACKS[name][1], 300))
    assert target("list")["total"] == 0
    eventually(lambda: target.call("status")["connections"] <= before + 1)
    descriptors = len(list(Path(f"/proc/{target.pid()}/fd").iterdir()))
    assert descriptors < 60


def test_the_log_tells_of_attacks_in_few_words_and_no_secrets(target: Tau) -> None:
    attack(target, "wrong_keys", 200)
    text = (target.home / "taud.log").read_text()
    assert "tau_sk_" not in text
    assert "Traceback" not in text
    assert text.count("wrong keys") <= 2
    assert len(text) < 10_000


@pytest.mark.parametrize(("said", "most"), [(b"", module.SILENT_MAX), (b"P", module.STRANGERS_MAX)])
def test_the_one_who_waits_longest_goes_first(said: bytes, most: int) -> None:
    with running(make_home("", "tcp")) as target:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        crowd = Crowd(target.port, most + 2)
        try:
            for _ in range(most + 1):
                crowd.send(said)
            crowd.open[0].settimeout(3)
            with suppress(ConnectionResetError):
                assert crowd.open[0].recv(1) == b""
            crowd.open[-1].settimeout(0)
            with pytest.raises(BlockingIOError):
                crowd.open[-1].recv(1)
        finally:
            crowd.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


#: What a file could do to what Tau asks it → the field that is refused.
LIES = {
    "p.name = '../../x; touch HOME'": "name",
    "p.name = 'a\\x1b]0;x\\x07'": "name",
    "p.name = 5": "name",
    "p.to_json = lambda: {'name': 'x'}": "function",
    "p.to_json = lambda: dict(type(p).to_json(p), params=5)": "params",
    "p.to_json = lambda: dict(type(p).to_json(p), after=[{}])": "after",
    "p.to_json = lambda: dict(type(p).to_json(p), description={})": "description",
    "p.to_json = lambda: dict(type(p).to_json(p), timeout='x')": "timeout",
    "p.to_json = lambda: dict(type(p).to_json(p), every=-1)": "every",
    "tau.PIPELINE_OPTIONS['timeout'] = lambda it: it; p.options['timeout'] = 9e15": "timeout",
    "p.to_json = lambda: dict(type(p).to_json(p), expect_success_within=9e15)": "expect_success_within",
    "p.to_json = lambda: dict(type(p).to_json(p), retries=1 << 40)": "retries",
    "p.to_json = lambda: dict(type(p).to_json(p), retry_backoff=9e15)": "retry_backoff",
    "p.to_json = lambda: dict(type(p).to_json(p), priority=0)": "priority",
    "p.to_json = lambda: dict(type(p).to_json(p), memory=1)": "memory",
    **{
        f"p.to_json = lambda: dict(type(p).to_json(p), params={schema})": "params"
        for schema in (
            *("{'type': 5}", "{'properties': []}", "{'required': ['x']}", "{'anyOf': [5]}", "{'minimum': 1}"),
            *("{'pattern': '(a*)*b'}", "{'format': 'x'}", "{'items': 5}", "{'enum': {}}", "{'type': ['odd']}"),
            "{'properties': {'a': {'minItems': 'x'}}}",
        )
    },
    "p.to_json = lambda: dict(type(p).to_json(p), function=['x'])": "function",
    "p.to_json = lambda: dict(type(p).to_json(p), line={})": "line",
    "p.to_json = lambda: [p.name]": "expected object",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_file_says_of_its_pipelines_is_not_believed(tau: Tau, lie: str) -> None:
    source = f"import tau\n@tau.pipeline\ndef it(ctx): ...\np = tau.PIPELINES[0]\n{lie}\n"
    before = tau.call("list")
    for method in ("deploy", "check"):
        with tau.connect() as wire:
            files = [{"path": "it.py", "text": source}]
            answer = wire.ask({"id": 1, "method": method, "params": {"files": files}})
        error = answer["error"]["data"] | answer["error"] if method == "deploy" else answer["result"]["error"]
        assert re.search(f"what it says of itself is wrong: load[.: ]+{LIES[lie]}", error["message"])
        assert error["hint"]
    assert tau.call("list") == before
