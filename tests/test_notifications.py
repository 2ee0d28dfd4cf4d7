"""What is told to other programs: each event at least once and in order, whatever the recipient does, and nobody waits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from conftest import PATIENCE_S, Tau, eventually, free_port, is_running, make_certificate
from test_scheduler import FakeClock
from test_store import with_store

import tau as module

SIGNING_KEY = "whsec_" + base64.b64encode(b"a key of tests, which is long").decode()
DAY, HOUR = 86_400.0, 3600.0
SOURCE = """
from tau import pipeline

@pipeline
def etl_orders(ctx, bad: bool = False):
    rows = list(ctx.transform([{"id": 7, "mail": "jo@example.com"}], steps=[lambda rows: rows]))
    if bad:
        customer = "swordfish"
        with ctx.step("sum"):
            raise KeyError("amount")

@pipeline
def other(ctx, bad: bool = False):
    assert not bad
"""


class Endpoint(http.server.ThreadingHTTPServer):
    """A receiver of webhooks that answers as it is told to, by default with 200."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0, tls: tuple[Path, Path] | None = None) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[Any] = []  # status, headers; or an event to wait for
        super().__init__(("127.0.0.1", port), Handler)
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' * bool(tls)}://127.0.0.1:{self.server_port}/hook"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    @property
    def documents(self) -> list[Any]:
        return [json.loads(body) for _, body in self.calls]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.calls]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to tell of."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One message."""

    server: Endpoint

    def do_POST(self) -> None:
        """Keeps the message, and answers."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        if isinstance(answer, threading.Event):
            answer.wait(PATIENCE_S)
            return
        self.send_response(answer[0])
        for name, value in answer[1].items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"so it is")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def serve(tau: Tau, *tables: str) -> Tau:
    """Starts a daemon with such tables, or has it read them."""
    (tau.home / "tau.toml").write_text("\n".join(tables))
    if tau.socket.exists():
        os.kill(tau.pid(), signal.SIGHUP)
    else:
        tau.start()
        tau.deploy(SOURCE)
    return tau


def table(name: str, **options: Any) -> str:
    return f"[notify.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())


def is_ready(tau: Tau) -> bool:
    """Whether every recipient has its place in the ledger."""
    return all(row["failures"] is not None for row in tau.call("notify_list")["recipients"])


def fail(tau: Tau, name: str = "etl_orders") -> str:
    return str(tau("run", name, "-p", "bad=true", exit=1)["run_id"])


def test_an_incident_is_one_message_signed_with_its_case(home: Tau, endpoint: Endpoint) -> None:
    serve(home, table("agent", url=endpoint.url, secret=SIGNING_KEY))
    eventually(lambda: is_ready(home))
    run_id = fail(home)
    fail(home)
    home("run", "etl_orders")
    eventually(lambda: len(endpoint.calls) == 2)
    opened, closed = endpoint.documents
    assert [opened["type"], closed["type"]] == ["incident.opened", "incident.closed"]
    for headers, body in endpoint.calls:
        assert standardwebhooks.Webhook(SIGNING_KEY).verify(body, headers) == json.loads(body)
        assert headers["webhook-id"] == json.loads(body)["id"]
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert opened["data"]["run_id"] == opened["case"]["run_id"] == run_id
    assert opened["case"]["error"]["type"] == "KeyError"
    assert opened["case"]["incident"]["incident"] == opened["data"]["incident"]
    assert opened["case"]["next"]
    text = endpoint.calls[0][1].decode()
    assert "swordfish" not in text.replace('customer = \\"swordfish\\"', "")  # as the source has it
    assert "withheld" in json.dumps(opened["case"]["samples"])


def test_a_recipient_of_a_namespace_is_told_of_that_alone(home: Tau) -> None:
    mine, theirs, change = (
        ("run.finished", "etl_orders"),
        ("run.finished", "acme/etl_orders"),
        ("namespace.changed", None),
    )
    expected = {"default": [mine], "acme": [theirs], "": [mine, change, theirs]}
    events = ["run.failed", "namespace.changed"]
    with contextlib.ExitStack() as stack:
        ends = {name: stack.enter_context(contextlib.closing(Endpoint())) for name in expected}
        home.start()
        home("namespace", "create", "acme")
        home.deploy(SOURCE)
        home.deploy(SOURCE, "pipelines.py", "--namespace", "acme")
        options = {name: {"namespace": name} if name else {} for name in ends}
        serve(home, *(table(f"n{name}", url=end.url, events=events, **options[name]) for name, end in ends.items()))
        eventually(lambda: len(home.call("notify_list")["recipients"]) == 3 and is_ready(home))
        fail(home)
        home("namespace", "set", "acme", "--weight", "2")
        fail(home, "acme/etl_orders")
        told = {
            name: lambda end=end: [(it["type"], it["pipeline"]) for it in end.documents] for name, end in ends.items()
        }
        eventually(lambda: all(len(told[name]()) >= len(wanted) for name, wanted in expected.items()))
        assert {name: ask() for name, ask in told.items()} == expected


def test_rows_and_variables_are_sent_where_that_is_allowed(home: Tau, endpoint: Endpoint) -> None:
    serve(home, table("agent", url=endpoint.url, data=True, pipelines=["etl_*"], events=["run.failed"]))
    eventually(lambda: is_ready(home))
    fail(home, "other")
    fail(home)
    eventually(lambda: endpoint.calls)
    (told,) = endpoint.documents
    assert (told["type"], told["pipeline"], told["data"]["status"]) == ("run.finished", "etl_orders", "failed")
    assert told["case"]["error"]["frames"][-1]["locals"]["customer"] == "'swordfish'"


def test_a_chat_gets_a_text(home: Tau, endpoint: Endpoint) -> None:
    (home.home / "secrets").mkdir()
    (home.home / "secrets" / "CHAT").write_text(endpoint.url)
    (home.home / "secrets" / "CHAT").chmod(0o600)
    serve(home, table("chat", url="${CHAT}", format="slack"))
    eventually(lambda: is_ready(home))
    home.deploy('from tau import pipeline\n@pipeline\ndef shop(ctx):\n    raise ValueError("<b> & co")\n', "shop.py")
    home("run", "shop", exit=1)
    eventually(lambda: endpoint.calls)
    (told,) = endpoint.documents
    assert [*told] == ["text"]
    incident = home.call("errors")["incidents"][0]
    (opened,) = home.call("events", type="incident.opened")["events"]
    first, why, command = told["text"].splitlines()
    assert first == f"shop: incident opened at {opened['at']}"
    assert why == "ValueError: &lt;b&gt; &amp; co"
    assert command == f"`tau inspect {incident['incident']}`"
    assert home("inspect", incident["incident"])["pipeline"] == "shop"
    assert home("notify", "test", "chat")["ok"] is True
    assert "notify test" in endpoint.documents[1]["text"]
    assert endpoint.url not in json.dumps(home.call("notify_list"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"incident": "inc:1", "reason": "which currency?"}, "which currency?"),
        ({"incident": "inc:1", "bound": "attempts"}, "attempts"),
        ({"incident": "inc:1", "message": "it shows risks"}, "it shows risks"),
        ({"incident": "inc:1", "type": "KeyError", "step": "sum", "message": "m"}, "KeyError in step sum: m"),
    ],
)
def test_a_chat_is_told_the_reason(data: dict[str, str], told: str) -> None:
    event = {"seq": 0, "type": "heal.escalated", "at": "now", "pipeline": "shop", "run_id": None, "data": data}
    assert module.chat_text(event).splitlines() == ["shop: heal escalated at now", told, "`tau inspect inc:1`"]
    test = event | {"type": "notify.test", "pipeline": None, "data": {}}
    assert module.chat_text(test).splitlines()[1] == "`tau events --since 0 --limit 1`"


def test_the_doctor_alarms_nobody(home: Tau, endpoint: Endpoint) -> None:
    serve(home, table("agent", url=endpoint.url, events=["run.failed"]))
    eventually(lambda: is_ready(home))
    assert home("doctor")["ok"]
    fail(home)
    eventually(lambda: endpoint.calls)
    assert endpoint.documents[0]["pipeline"] == "etl_orders"


def test_a_command_gets_the_document_and_leaves_no_process(home: Tau) -> None:
    code = (
        "import os, sys, json, subprocess\n"
        "told = json.load(sys.stdin)\n"
        "left = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "open('told', 'a').write(json.dumps([told['type'], left.pid]) + chr(10))\n"
        "print('mark', told['id'])\n"
        "sys.exit(3 if told['type'] == 'notify.test' else 0)"
    )
    script = f'cd {home.work}; exec {sys.executable} -c "$CODE"'
    serve(home, table("script", command=["/bin/sh", "-c", script.replace("$CODE", code.replace('"', '\\"'))]))
    eventually(lambda: is_ready(home))
    fail(home)
    told = eventually(lambda: (home.work / "told").exists() and (home.work / "told").read_text().splitlines())
    kind, pid = json.loads(told[0])
    assert kind == "incident.opened"
    eventually(lambda: not is_running(pid))
    answer = home("notify", "test", "script", exit=1)
    assert (answer["ok"], answer["said"].partition(":")[0]) == (False, "exit code 3")
    assert "mark msg_0_" in answer["said"]


class Story:
    """A store with a recipient, a clock that passes when it is told to, and what a daemon has of that."""

    def __init__(self, store: module.Store, endpoint: Endpoint, clock: FakeClock, **options: Any) -> None:
        self.store, self.clock = store, clock
        table = module.NOTIFY_DEFAULTS | {"url": endpoint.url} | options
        self.warnings: dict[str, str] = {}
        daemon: Any = types.SimpleNamespace(
            store=store, feed=module.Feed(store), turns=module.Turns(3), home=store.home, warnings=self.warnings,
            settings=store.settings, options={"unscheduled": False}, warn=lambda text, about: self.warnings.update({about: text}),
        )  # fmt: skip
        self.outbox = daemon.outbox = module.Outbox(daemon)
        daemon.ask_as = types.MethodType(module.Daemon.ask_as, daemon)
        self.recipient = module.Recipient("agent", table)
        self.outbox.recipients = {"agent": self.recipient}

    async def event(self, kind: str = "incident.opened", incident: str = "inc:1") -> None:
        data = {"incident": incident, "count": 1, "step": None, "type": "E", "message": "m"}
        await self.store.write(self.store.event, kind, "p", None, data)

    async def open(self, *incidents: str, status: str = "open") -> None:
        """Such incidents are in the store."""
        columns = "incident pipeline fingerprint status count type message versions first_at last_at last_run".split()
        for name in incidents:
            row = dict.fromkeys(columns, "x") | {"incident": name, "pipeline": "p", "fingerprint": name, "count": 1}
            row |= {"status": status, "versions": [1]}
            await self.store.write(functools.partial(self.store.sql.put, "incidents", row, clash="REPLACE"))

    async def go_on(self, most: float = 0.0) -> None:
        """Lets the recipient do all that there is to do, and time pass while it waits, *most* seconds at most."""
        until = self.clock.time() + most
        while (pause := await self.outbox.step(self.recipient)) is not None:
            if self.clock.time() + pause > until:
                return
            self.clock.run(pause)

    def row(self) -> dict[str, Any]:
        return dict(self.store.ask.row("SELECT * FROM recipients") or {})

    def dead(self) -> list[dict[str, Any]]:
        return self.store.ask.rows("SELECT * FROM dead_letters ORDER BY seq")


def tell(tmp_path: Path, endpoint: Endpoint, story: Callable[[Story], Awaitable[Any]], **options: Any) -> Any:
    """A story, in which the recipient has its place before anything happens."""

    async def begin(store: module.Store) -> Any:
        store.clock = clock = FakeClock(time.time())
        made = Story(store, endpoint, clock, **options)
        await made.go_on()
        return await story(made)

    return with_store(tmp_path, begin)


def test_an_endpoint_that_was_down_for_an_hour_gets_all_in_order(tmp_path: Path) -> None:
    port = free_port()
    endpoint = Endpoint(port)
    endpoint.close()

    async def story(made: Story) -> None:
        for number in range(3):
            await made.event(incident=f"inc:{number}")
        pauses, began = [], made.clock.time()
        while made.clock.time() < began + HOUR:
            pause = await made.outbox.step(made.recipient) or await made.outbox.step(made.recipient)
            assert pause is not None
            pauses.append(pause)
            made.clock.run(pause)
        assert [round(pause) for pause in pauses[:6]] == [1, 2, 4, 8, 16, 32]
        assert made.row()["failures"] == len(pauses)
        assert "agent" in made.warnings["notify.agent"]
        again = Endpoint(port)
        try:
            await made.go_on(HOUR)
            assert [told["data"]["incident"] for told in again.documents] == ["inc:0", "inc:1", "inc:2"]
            assert len({*again.ids}) == 3
            assert all(int(headers["webhook-timestamp"]) > began + HOUR - 1 for headers, _ in again.calls)
        finally:
            again.close()
        assert (made.row()["failures"], made.warnings) == (0, {})

    tell(tmp_path, endpoint, story)


@pytest.mark.parametrize(
    "answer", [(500, {}), (503, {"Retry-After": "120"}), (429, {}), (408, {}), (425, {}), (302, {})]
)
def test_what_may_pass_is_sent_again_with_the_same_id(tmp_path: Path, endpoint: Endpoint, answer: Any) -> None:
    async def story(made: Story) -> None:
        endpoint.answers += [answer, answer]
        await made.event()
        await made.event("incident.closed")
        began = made.clock.time()
        await made.go_on(HOUR)
        assert [told["type"] for told in endpoint.documents] == ["incident.opened"] * 3 + ["incident.closed"]
        assert len({*endpoint.ids}) == 2
        assert made.clock.time() - began > (239 if answer[1] else 2.9)
        assert made.dead() == []

    tell(tmp_path, endpoint, story)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_what_is_refused_is_dead_at_once_and_told_in_the_ledger(
    tmp_path: Path, endpoint: Endpoint, status: int
) -> None:
    async def story(made: Story) -> None:
        endpoint.answers += [(500, {}), (status, {})]
        await made.event()
        await made.event("incident.closed")
        await made.go_on(60.0)
        assert [told["type"].partition(".")[2] for told in endpoint.documents] == ["opened", "opened", "closed"]
        (letter,) = made.dead()
        assert (letter["id"], letter["attempts"], letter["recipient"]) == (endpoint.ids[0], 2, "agent")
        assert letter["problem"] == f"HTTP {status} so it is"
        (event,) = made.store.ask.events(0, 100, None, ["notify.failed"], None)["events"]
        assert event["data"] == {name: letter[name] for name in "seq type recipient attempts id problem".split()}
        assert event["pipeline"] == "p"
        await made.store.write(made.store.db.execute, "DELETE FROM events WHERE type = 'incident.opened'")
        assert made.dead() == []  # it lives as long as its event

    tell(tmp_path, endpoint, story)


def test_a_hanging_endpoint_is_left_after_a_time(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELIVERY_S", 0.2)
    hang = threading.Event()

    async def story(made: Story) -> None:
        endpoint.answers.append(hang)
        await made.event()
        await made.outbox.step(made.recipient)
        assert made.row()["problem"] == "no answer within 0.2 s"
        await made.go_on(HOUR)
        assert len(endpoint.calls) == 2
        assert len({*endpoint.ids}) == 1

    try:
        tell(tmp_path, endpoint, story)
    finally:
        hang.set()


def test_after_a_day_an_event_is_dead_and_what_is_old_by_then_with_it(tmp_path: Path) -> None:
    endpoint = Endpoint(free_port())
    endpoint.close()

    async def story(made: Story) -> None:
        for number in range(5):
            await made.event(incident=f"inc:{number}")
        await made.go_on(DAY - HOUR)
        assert made.dead() == []
        await made.event(incident="inc:young")
        await made.go_on(3 * HOUR)
        assert [letter["seq"] - made.dead()[0]["seq"] for letter in made.dead()] == [0, 1, 2, 3, 4]
        failed = made.store.ask.events(0, 100, None, ["notify.failed"], None)["events"]
        assert [event["data"]["id"] for event in failed] == [letter["id"] for letter in made.dead()]
        assert made.row()["seq"] == made.dead()[-1]["seq"]
        assert made.row()["failures"] < 60

    tell(tmp_path, endpoint, story, events=["*"])


def test_an_old_event_is_tried_once_after_a_long_stop(tmp_path: Path, endpoint: Endpoint) -> None:
    async def story(made: Story) -> None:
        await made.event()
        made.clock.run(3 * DAY)
        await made.go_on()
        assert len(endpoint.calls) == 1
        assert made.dead() == []

    tell(tmp_path, endpoint, story)


def test_ten_thousand_events_for_a_dead_endpoint_take_no_memory_and_nobody_waits(tmp_path: Path) -> None:
    dead, alive = Endpoint(free_port()), Endpoint()
    dead.close()

    async def story(made: Story) -> None:
        other = module.Recipient("other", module.NOTIFY_DEFAULTS | {"url": alive.url, "events": ["incident.closed"]})
        made.outbox.recipients["other"] = other
        await made.outbox.step(other)

        def fill() -> None:
            for number in range(10_000):
                made.store.event("incident.opened", "p", None, {"incident": f"inc:{number}", "message": "x" * 100})

        await made.store.write(fill)
        await made.event("incident.closed")
        await made.outbox.step(made.recipient)
        tracemalloc.start()
        try:
            for _ in range(20):
                await made.go_on(60.0)
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()
        while await made.outbox.step(other) is not None:
            pass
        assert [told["type"] for told in alive.documents] == ["incident.closed"]
        assert made.dead() == []
        assert made.row()["seq"] < 10

    try:
        tell(tmp_path, dead, story)
    finally:
        alive.close()


def test_an_incident_that_flaps_is_told_once_an_hour_and_never_left_untold(tmp_path: Path, endpoint: Endpoint) -> None:
    async def flap(made: Story, *kinds: str) -> list[str]:
        """What is told of such events, a minute apart."""
        before = len(endpoint.calls)
        await made.go_on()
        for kind in kinds:
            await made.event(f"incident.{kind}")
            await made.open("inc:1", status="closed" if kind == "closed" else "open")
            await made.go_on()
            made.clock.run(60.0)
        return [told["type"].partition(".")[2] for told in endpoint.documents[before:]]

    async def story(made: Story) -> None:
        assert await flap(made, "opened", "closed", "reopened", "closed") == ["opened", "closed", "reopened", "closed"]
        assert await flap(made, "reopened", "closed", "reopened") == []
        made.clock.run(HOUR)
        assert await flap(made) == ["reopened"]
        assert await flap(made, "closed") == ["closed"]
        assert await flap(made, "reopened", "closed") == []
        made.clock.run(HOUR)
        assert await flap(made) == []
        assert await flap(made, "reopened") == ["reopened"]
        made.clock.run(2 * HOUR)
        await made.event(incident="inc:2")
        await made.go_on()
        assert made.row()["told"] == {}
        assert len({*endpoint.ids}) == len(endpoint.ids)

    tell(tmp_path, endpoint, story)


@pytest.mark.parametrize("waits", [False, True])
def test_a_reopening_that_could_not_be_told_is_told_soon(tmp_path: Path, endpoint: Endpoint, waits: bool) -> None:
    async def story(made: Story) -> None:
        await made.open("inc:1")
        for _ in range(1 + waits):
            await made.event("incident.reopened")
        if waits:
            await made.go_on()
            made.clock.run(HOUR)
        endpoint.answers.append((503, {}))
        await made.go_on(60.0)
        assert [told["type"] for told in endpoint.documents] == ["incident.reopened"] * (2 + waits)
        assert len({*endpoint.ids}) == 1 + waits

    tell(tmp_path, endpoint, story)


def test_a_reopening_that_waits_is_told_only_if_the_incident_is_open_then(tmp_path: Path, endpoint: Endpoint) -> None:
    async def story(made: Story) -> None:
        for incident in ("inc:1", "inc:2"):
            await made.event("incident.reopened", incident)
            await made.event("incident.reopened", incident)
        await made.open("inc:1", status="closed")  # which nobody has told this recipient
        await made.open("inc:2")
        await made.go_on()
        made.clock.run(HOUR)
        await made.go_on()
        told = [document["data"]["incident"] for document in endpoint.documents]
        assert told == ["inc:1", "inc:2", "inc:2"]

    tell(tmp_path, endpoint, story, events=["incident.reopened"])


def test_what_was_deleted_before_it_was_told_is_a_gap(tmp_path: Path, endpoint: Endpoint) -> None:
    async def story(made: Story) -> None:
        for _ in range(5):
            await made.store.write(made.store.event, "run.queued", "p", None, {})
        await made.event()
        seq = made.store.ask.last_event()
        await made.store.write(lambda: made.store.db.execute("DELETE FROM events WHERE seq < ?", (seq,)))
        await made.store.write(made.store.remember, "pruned", seq - 1)
        await made.go_on()
        await made.go_on()
        (event,) = made.store.ask.events(seq, 100, None, ["notify.failed"], None)["events"]
        assert (event["data"]["recipient"], event["data"]["first"]) == ("agent", seq)
        assert [told["type"] for told in endpoint.documents] == ["incident.opened"]

    tell(tmp_path, endpoint, story, events=["*"])


@pytest.mark.parametrize(
    ("place", "status"), [("/elsewhere", 307), ("http://localhost:{port}/x", 308), ("ftp://127.0.0.1/x", 302)]
)
def test_redirects_are_followed_on_the_same_host_only(
    tmp_path: Path, endpoint: Endpoint, place: str, status: int
) -> None:
    async def story(made: Story) -> None:
        endpoint.answers.append((status, {"Location": place.format(port=endpoint.server_port)}))
        await made.event()
        await made.outbox.step(made.recipient)
        if place.startswith("/"):
            assert len(endpoint.calls) == 2
            assert made.row()["failures"] == 0
        else:
            assert len(endpoint.calls) == 1
            assert "127.0.0.1 leads to" in made.row()["problem"] or "none of http" in made.row()["problem"]

    tell(tmp_path, endpoint, story)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_must_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    cert, key = make_certificate(tmp_path)
    endpoint = Endpoint(tls=(cert, key))
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))

    async def story(made: Story) -> None:
        await made.event()
        await made.outbox.step(made.recipient)
        assert len(endpoint.calls) == trusted
        assert trusted or "certificate verify failed" in made.row()["problem"]

    try:
        tell(tmp_path, endpoint, story)
    finally:
        endpoint.close()


@pytest.mark.parametrize("private", [False, True])
def test_a_public_name_must_not_lead_to_a_private_address(
    tmp_path: Path, endpoint: Endpoint, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def resolve(self: Any, host: str, port: int, **more: Any) -> Any:
        asked.append(host)
        return (
            [(2, 1, 6, "", ("127.0.0.1", port))]
            if len(asked) < 2 or not host[0].isdigit()
            else [(2, 1, 6, "", (host, port))]
        )

    async def story(made: Story) -> None:
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
        await made.event()
        await made.outbox.step(made.recipient)
        monkeypatch.undo()
        if private:
            assert [told["type"] for told in endpoint.documents] == ["incident.opened"]
            assert endpoint.calls[0][0]["host"].startswith("hooks.example.com")
        else:
            assert endpoint.calls == []
            assert "hooks.example.com is 127.0.0.1, a private address; private = true" in made.row()["problem"]

    url = f"http://hooks.example.com:{endpoint.server_port}/hook"
    tell(tmp_path, endpoint, story, url=url, private=private)


def test_which_addresses_are_private() -> None:
    private = "127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.1 169.254.169.254 0.0.0.0 ::1 fe80::1%eth0 fd00::1 ::ffff:10.0.0.1 localhost"
    assert [place for place in private.split() if not module.is_private(place)] == []
    assert [place for place in ("1.1.1.1", "2606:4700::1111", "example.com") if module.is_private(place)] == []


def test_a_killed_daemon_sends_again_what_it_may_not_have_sent(home: Tau, endpoint: Endpoint) -> None:
    hang = threading.Event()
    serve(home, table("agent", url=endpoint.url))
    eventually(lambda: is_ready(home))
    endpoint.answers.append(hang)
    fail(home)
    eventually(lambda: endpoint.calls)
    home.kill()  # between the sending and its answer
    hang.set()
    home.start()
    eventually(lambda: len(endpoint.calls) == 2)
    assert len({*endpoint.ids}) == 1
    assert endpoint.documents[1]["case"]["error"]["type"] == "KeyError"
    eventually(lambda: home.call("notify_list")["recipients"][0]["delivered_at"])
    home.kill()
    home.start()
    home("run", "etl_orders")
    eventually(lambda: len(endpoint.calls) == 3)
    assert [told["type"] for told in endpoint.documents] == ["incident.opened", "incident.opened", "incident.closed"]


#: A daemon that dies before it sends anything.
SHY = """
import os, signal, sys, tau
async def send(*words):
    os.kill(os.getpid(), signal.SIGKILL)
tau.Outbox.send = send
sys.exit(tau.taud())
"""


def test_a_daemon_that_dies_between_commit_and_sending_tells_it_later(home: Tau, endpoint: Endpoint) -> None:
    serve(home, table("agent", url=endpoint.url))
    eventually(lambda: is_ready(home))
    home.call("shutdown")
    eventually(lambda: not home.socket.exists())
    shy = subprocess.Popen(
        [sys.executable, "-P", "-c", SHY], env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert shy.stdout is not None
    with shy.stdout:
        shy.stdout.readline()
    home.command("run", "etl_orders", "-p", "bad=true", "--detach")
    assert shy.wait(PATIENCE_S) == -signal.SIGKILL
    assert endpoint.calls == []
    home.start()
    eventually(lambda: endpoint.calls)
    assert [told["type"] for told in endpoint.documents] == ["incident.opened"]


def test_sighup_changes_the_recipients_and_a_wrong_table_changes_nothing(home: Tau, endpoint: Endpoint) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    serve(home, table("agent", url=dead, events=["run.failed"]))
    eventually(lambda: is_ready(home))
    fail(home)
    eventually(lambda: home.call("notify_list")["recipients"][0]["failures"] >= 1)
    serve(home, table("agent", url=endpoint.url, events=["run.faild"]))
    warning = eventually(lambda: [text for text in home.call("status")["warnings"] if "run.faild" in text])
    assert "did you mean 'run.failed'" in warning[0]
    assert home.call("notify_list")["recipients"][0]["to"] == dead.removesuffix("/") + "/…"
    serve(home, table("agent", url=endpoint.url, events=["run.failed"]), table("late", url=endpoint.url + "/late"))
    eventually(lambda: endpoint.calls)
    assert [row["name"] for row in home.call("notify_list")["recipients"]] == ["agent", "late"]
    eventually(lambda: is_ready(home))
    assert len(endpoint.calls) == 1  # what was before it is not for a new recipient
    serve(home, "")
    eventually(lambda: home.call("notify_list")["recipients"] == [])
    fail(home)
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must have either url or command"),
        ({"url": "http://x", "command": ["x"]}, "must have either url or command"),
        ({"url": "http://x", "events": ["incident.open"]}, "no event has the type 'incident.open'"),
        ({"url": "http://x", "format": "teams"}, 'expected one of "json", "slack"'),
        ({"url": "http://x", "sercet": "A"}, "unknown key 'sercet'"),
    ],
)
def test_a_wrong_table_is_refused(home: Tau, options: Any, message: str) -> None:
    (home.home / "tau.toml").write_text(table("agent", **options))
    with pytest.raises(AssertionError, match=message.replace('"', r'\\"')):
        home.start()


@pytest.mark.parametrize(("secret", "asked"), [("hook.key", ["hook.key"]), ("Zm9v+YmFy/c2VjcmV0==", [])])
def test_what_is_no_name_of_a_secret_is_not_told_as_one(home: Tau, secret: str, asked: list[str]) -> None:
    serve(home, table("agent", url="http://127.0.0.1:9/x", secret=secret))
    eventually(lambda: is_ready(home))
    assert home.call("status")["missing_secrets"] == asked
    assert [row["name"] for row in home.call("secret_list")["secrets"]] == asked


def test_a_dead_letter_can_be_sent_again(home: Tau, endpoint: Endpoint) -> None:
    serve(home, table("agent", url=endpoint.url, secret="HOOK_KEY"))
    eventually(lambda: is_ready(home))
    assert home.call("status")["missing_secrets"] == ["HOOK_KEY"]
    home("secret", "set", "HOOK_KEY", stdin=SIGNING_KEY)
    assert home.call("secret_list")["secrets"] == [
        {"name": "HOOK_KEY", "found": "home", "used_by": ["notify agent"], "namespace": "default"}
    ]
    endpoint.answers += [(410, {}), (410, {})]
    fail(home)
    letter = eventually(lambda: home.call("notify_list")["dead_letters"])[0]
    assert letter["next"] == [f"tau notify retry {letter['id']}"]
    assert any("has not taken an event: HTTP 410" in text for text in home.call("status")["warnings"])
    again = home("notify", "retry", letter["id"], exit=1)
    assert (again["ok"], again["status"], again["said"]) == (False, 410, "HTTP 410 so it is")
    assert home("notify", "retry", letter["id"])["ok"] is True
    assert home.call("notify_list")["dead_letters"] == []
    assert home("notify", "retry", letter["id"], exit=3)["hint"] == "tau notify list"
    assert home("notify", "test", "agnet", exit=3)["hint"].startswith("did you mean 'agent'?")
    assert len({*endpoint.ids}) == 1
    assert (
        home("try", home.write(SOURCE, "tried.py"), "--name", "other", "-p", "bad=true", exit=1)["status"] == "failed"
    )
    assert home("notify", "test", "agent")["said"] == "HTTP 200 so it is"
    assert len(endpoint.calls) == 4  # three of the dead letter; what is only tried is not told
    headers, body = endpoint.calls[-1]
    assert standardwebhooks.Webhook(SIGNING_KEY).verify(body, headers)["type"] == "notify.test"
    home("secret", "set", "HOOK_KEY", stdin="no-key-of-that-form")
    said = home("notify", "test", "agent", exit=1)["said"]
    assert "whsec_" in said
    assert "no-key-of-that-form" not in said


def test_nothing_that_is_secret_is_shown(home: Tau, endpoint: Endpoint) -> None:
    token = "t0ken-of-nobody"
    url = endpoint.url.replace("://", "://user:passw0rd@") + f"?token={token}"
    serve(home, table("agent", url=url, secret=SIGNING_KEY))
    eventually(lambda: is_ready(home))
    home("notify", "test", "agent")
    assert base64.b64decode(endpoint.calls[0][0]["authorization"].split()[1]) == b"user:passw0rd"
    endpoint.answers.append((400, {}))
    fail(home)
    eventually(lambda: home.call("notify_list")["dead_letters"])
    shown = json.dumps([home.call("notify_list"), home.call("status"), home.call("events"), home.call("schema")])
    shown += (home.home / "taud.log").read_text()
    for secret in (token, "passw0rd", SIGNING_KEY):
        assert secret not in shown
