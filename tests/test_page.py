"""What a browser is given, and what no other web page, thief or neighbour gets out of it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, free_port, make_home, run, running, served, started
from test_terminal import on_terminal
from test_tls import nginx

import tau as module

#: A daemon whose clock is ahead by the seconds in a file.
AHEAD = """
import os, time
def ahead(clock=time.time, path=os.environ["TAU_HOME"] + "/ahead"):
    return clock() + (float(open(path).read()) if os.path.exists(path) else 0)
time.time = ahead
"""


def go_ahead(made: Tau, seconds: int) -> None:
    """Sets the clock of such a daemon."""
    (made.home / "next").write_text(str(seconds))
    (made.home / "next").rename(made.home / "ahead")


class Browser:
    """What a browser does, and no more: it keeps the cookie, and says where a page is from."""

    def __init__(self, made: Tau, address: str = "", authority: Path | None = None) -> None:
        self.address = address or f"http://127.0.0.1:{made.port}"
        self.scheme, _, place = self.address.partition("://")
        self.host, _, self.prefix = place.partition("/")
        self.prefix = f"/{self.prefix}/" if self.prefix else "/"
        self.context = ssl.create_default_context(cafile=authority) if authority else None
        self.origin = {"Origin": f"{self.scheme}://{self.host}", "Sec-Fetch-Site": "same-origin"}
        self.cookies: dict[str, str] = {}
        self.set = ""  # the last Set-Cookie

    def connect(self) -> http.client.HTTPConnection:
        if self.context:
            return http.client.HTTPSConnection(self.host, context=self.context, timeout=20)
        return http.client.HTTPConnection(self.host, timeout=20)

    def send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
    ) -> http.client.HTTPResponse:
        """Sends a request, with the cookies; an empty header is left out."""
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        said = cookie | self.origin | {name.replace("_", "-").title(): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {name: value for name, value in said.items() if value}
        connection.request(method, self.prefix + path.removeprefix("/"), data, given)
        return connection.getresponse()

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status, and the document or the text."""
        with closing(self.connect()) as connection:
            response = self.send(connection, method, path, body, **headers)
            text = response.read()
            for self.set in response.headers.get_all("Set-Cookie") or ():
                name, _, value = self.set.partition(";")[0].partition("=")
                self.cookies[name] = value
            is_json = response.headers["Content-Type"] == "application/json"
            return response.status, json.loads(text) if is_json else text.decode()

    def log_in(self, **given: str) -> Any:
        status, document = self("POST", "login", {"path": self.prefix} | given)
        assert status == 200, document
        return document

    def ask(self, *calls: tuple[str, dict[str, Any]]) -> Any:
        status, document = self("POST", "ask", {"calls": calls})
        assert status == 200, document
        return document["answers"]

    @contextmanager
    def stream(self, since: object = "", last: object = "") -> Iterator[Iterator[tuple[str, str, Any]]]:
        """The events of a stream, as they come: kind, id, and data; as the standard says that browsers read them."""
        with closing(self.connect()) as connection:
            response = self.send(connection, "GET", f"stream?since={since}", Last_Event_Id=str(last))
            assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
            assert response.headers["X-Accel-Buffering"] in ("no", None)  # a proxy obeys and removes it

            def events() -> Iterator[tuple[str, str, Any]]:
                event = {"event": "message", "id": "", "data": ""}
                while line := response.readline().decode():
                    name, _, value = line.rstrip("\n").partition(":")
                    if name:
                        event[name] = value.removeprefix(" ")
                    elif line == "\n":
                        if event["data"]:
                            yield event["event"], event["id"], json.loads(event["data"])
                        event |= {"event": "message", "data": ""}

            yield events()


@pytest.fixture(scope="module")
def web() -> Iterator[Tau]:
    """A daemon that browsers reach."""
    yield from started(open_home())


def open_home(config: str = "") -> Tau:
    """A home whose daemon has a TCP port, while `tau` uses the socket."""
    made = make_home(f"[daemon]\nstop_grace_s = 0.5\n{config}", "http")
    del made.environ["TAU_HOST"]
    return made


def word_of(made: Tau, *words: str) -> str:
    address: str = made("open", *words)["address"]
    return address.partition("#word=")[2]


@pytest.fixture
def browser(web: Tau) -> Browser:
    """A browser of the daemon's own user."""
    made = Browser(web)
    made.log_in(word=word_of(web))
    return made


def key_for(made: Tau, name: str, *words: str) -> str:
    return str(made("key", "create", name, *words)["key"])


def error_of(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


# The page.


def test_the_page_may_run_nothing_but_its_own_script(web: Tau) -> None:
    browser = Browser(web)
    with closing(browser.connect()) as connection:
        response = browser.send(connection, "GET", "/")
        text, headers = response.read().decode(), response.headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";") if " " in part.strip()
    )
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    closed = ("default-src", "frame-ancestors", "base-uri", "form-action")
    assert [policy[rule] for rule in closed] == ["'none'"] * 4
    assert (policy["connect-src"], policy["img-src"]) == ("'self'", "data:")
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert headers["Cache-Control"] == "no-store"
    assert not re.search(
        r"https?://(?!www\.w3\.org/)|<script[^>]*src|<link[^>]*href=\"(?!data:)", text
    )  # nothing comes from elsewhere
    assert browser("HEAD", "/")[0] == 200
    assert browser("POST", "/", {})[0] == 405


def test_the_page_is_short_and_can_be_read() -> None:
    texts = module.PAGE_HTML, module.PAGE_CSS, module.PAGE_JS
    assert sum(len(text.strip().splitlines()) for text in texts) <= 700
    assert sum(len(text.encode()) for text in texts) < 60_000
    assert max(len(line) for text in texts for line in text.splitlines()) <= 120


def test_a_link_from_elsewhere_leads_to_the_page(web: Tau) -> None:
    assert Browser(web)("GET", "/", origin="", sec_fetch_site="cross-site")[0] == 200


@pytest.mark.parametrize(("port", "expected"), [(False, "False False"), (True, "False True")])
def test_nothing_of_it_is_loaded_before_a_browser_asks(port: bool, expected: str) -> None:
    made = open_home() if port else make_home()
    code = "import atexit, os; path = os.environ['TAU_HOME'] + '/loaded'\n"
    code += (
        "atexit.register(lambda: open(path, 'w').write(f'{\"PAGE_HTML\" in vars(tau)} {\"Part VI\" in tau.PACKED}'))"
    )
    for asked in (False, True)[: 1 + port]:
        with served(made, code=code):
            made("status")
            assert not asked or Browser(made)("GET", "/")[0] == 200
        assert (made.home / "loaded").read_text() == ("True False" if asked else expected)
    made.stop()
    made.home.parent.rmdir()


# Logging in.


def test_a_key_logs_in_and_the_cookie_is_for_the_page_alone(web: Tau) -> None:
    browser = Browser(web)
    key = key_for(web, "looker", "--scope", "read", "--pipelines", "etl_*")
    who = {"name": "looker", "scope": "read", "namespace": "default", "pipelines": ["etl_*"]}
    assert browser.log_in(key=key) == who
    value, *attributes = browser.set.split("; ")
    assert re.fullmatch(r"tau_[0-9a-f]{12}=[\w-]{40,}", value)
    assert key not in browser.set
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert browser("GET", "who") == (200, who)
    for path in ("rpc", "mcp"):
        assert browser("POST", path, {"id": 1, "method": "status"}, origin="", sec_fetch_site="")[0] == 401
    assert error_of(Browser(web)("GET", "who", authorization=f"Bearer {key}")) == (401, "forbidden")


def test_each_daemon_has_a_cookie_of_its_own_name(web: Tau, browser: Browser) -> None:
    with running(open_home()) as other:
        there = Browser(other)
        there.cookies |= browser.cookies  # to browsers, ports are one host
        assert there("GET", "who")[0] == 401
        there.log_in(word=word_of(other))
        assert len(there.cookies) == 2
        assert there("GET", "who")[0] == 200


@pytest.mark.parametrize("given", [{}, {"key": "tau_sk_wrong"}, {"word": "tau_sk_wrong"}])
def test_what_is_no_key_does_not_log_in(web: Tau, given: dict[str, str]) -> None:
    began = time.monotonic()
    assert error_of(Browser(web)("POST", "login", given)) == (401, "forbidden")
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    "given",
    [
        {"key": 1},
        [],
        "x",
        {"other": "x"},
        {"path": "x"},
        {"path": "/x"},
        {"path": "/;Domain=x/"},
        {"path": "/\u65e5/"},
        {"path": "/\r\n/"},
    ],
)
def test_what_is_not_asked_for_is_refused(web: Tau, given: Any) -> None:
    browser = Browser(web)
    assert error_of(browser("POST", "login", given)) == (400, "bad_request")
    assert browser.set == ""


def test_a_word_logs_in_once(web: Tau) -> None:
    opened = web("open", "--scope", "read")
    assert re.fullmatch(rf"http://127\.0\.0\.1:{web.port}/#word=[\w-]{{40,}}", opened["address"])
    assert (opened["scope"], opened["opened"]) == ("read", False)
    word, first, second = opened["address"].partition("#word=")[2], Browser(web), Browser(web)
    assert first.log_in(word=word)["scope"] == "read"
    assert error_of(second("POST", "login", {"word": word})) == (401, "forbidden")
    assert second("GET", "who")[0] == 401
    request, nowhere = {"id": 1, "method": "status"}, {"origin": "", "sec_fetch_site": ""}
    assert first("POST", "rpc", request, authorization=f"Bearer {word}", **nowhere)[0] == 401


def test_a_word_is_good_for_a_minute_and_only_on_this_machine() -> None:
    made = open_home(f'host = "0.0.0.0"\nhosts = "{socket.gethostname()}"\n')
    made("key", "create", "none", exit=6)  # no daemon yet
    (made.home / "tau.toml").write_text((made.home / "tau.toml").read_text() + f'[auth]\napi_key = "{"k" * 40}"\n')
    with served(made, code=AHEAD):
        late, elsewhere, good = (word_of(made) for _ in range(3))
        here = [address[4][0] for address in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET)]
        for address in (address for address in here if not address.startswith("127.")):
            far = Browser(made, f"http://{address}:{made.port}")
            far.origin["Origin"] = f"http://{socket.gethostname()}:{made.port}"
            assert error_of(far("POST", "login", {"word": elsewhere}, host=far.origin["Origin"][7:])) == (
                401,
                "forbidden",
            )
            assert far("POST", "login", {"key": "k" * 40}, host=far.origin["Origin"][7:])[0] == 200
        go_ahead(made, 59)
        Browser(made).log_in(word=good)
        go_ahead(made, 61)
        assert error_of(Browser(made)("POST", "login", {"word": late})) == (401, "forbidden")
    made.stop()
    made.home.parent.rmdir()


def test_only_who_has_a_scope_opens_a_page_of_it(web: Tau, browser: Browser) -> None:
    read = {"TAU_HOST": f"tcp://127.0.0.1:{web.port}", "TAU_API_KEY": key_for(web, "opener", "--scope", "read")}
    assert web("open", "--scope", "admin", exit=4, **read)["code"] == "forbidden"
    assert Browser(web).log_in(word=word_of(web)) == {
        "name": browser("GET", "who")[1]["name"],
        "scope": "admin",
        "namespace": None,
        "pipelines": [],
    }
    address = web("open", **read)["address"]
    assert Browser(web).log_in(word=address.partition("#word=")[2])["name"] == "opener"
    assert web("open", TAU_READ_ONLY="1")["scope"] == "read"
    (answer,) = browser.ask(("open", {}))  # a session does not make itself younger
    assert answer["error"]["code"] == "forbidden"


def test_without_a_port_the_hint_makes_one(fresh: Tau) -> None:
    refused = fresh("open", exit=5)
    port = free_port()
    stop, start = refused["hint"].replace("8400", str(port)).split("; ")
    fresh(*stop.split()[1:])
    fresh.start(*start.split()[2:])
    fresh.port = port
    assert Browser(fresh).log_in(word=word_of(fresh))["scope"] == "admin"


@pytest.mark.parametrize(("words", "environ", "opens"), [
    ((), {"DISPLAY": ":0"}, True), (("--print",), {"DISPLAY": ":0"}, False), ((), {"DISPLAY": ""}, False),
])  # fmt: skip
def test_a_browser_is_opened_for_a_person_and_its_command_line_shows_no_word(
    web: Tau, words: tuple[str, ...], environ: dict[str, str], opens: bool
) -> None:
    script, seen = web.write('#!/bin/sh\necho "$@" >> seen\n', "browser"), web.work / "seen"
    script.chmod(0o755)
    code, screen = on_terminal(web, "open", *words, columns=200, BROWSER=f"{script} %s", **environ)
    address = re.search(r"http://\S+#word=\S+", screen)
    assert code == 0
    assert address
    assert seen.exists() == opens
    if opens:
        path = seen.read_text().strip().removeprefix("file://")
        assert (address[0] in Path(path).read_text(), Path(path).stat().st_mode & 0o777) == (True, 0o600)
        assert "word" not in seen.read_text()
        seen.unlink()
    assert Browser(web).log_in(word=address[0].partition("#word=")[2])["scope"] == "admin"


# Sessions.


def test_who_logs_out_is_out(web: Tau, browser: Browser) -> None:
    replayed = dict(browser.cookies)
    with browser.stream() as events:
        assert browser("POST", "logout", {})[0] == 204
        assert browser.set.endswith("Max-Age=0; Path=/; HttpOnly; SameSite=Strict")
        assert next(events)[0] == "gone"
        assert next(events, None) is None
    browser.cookies = replayed
    assert error_of(browser("GET", "who")) == (401, "forbidden")
    assert browser("POST", "logout", {})[0] == 204


def test_who_logs_in_again_leaves_no_session_behind(web: Tau, browser: Browser) -> None:
    before = dict(browser.cookies)
    assert browser("POST", "login", {"word": "of a link that somebody has laid out"})[0] == 401
    assert browser("GET", "who")[0] == 200
    browser.log_in(word=word_of(web))
    browser.cookies = before
    assert browser("GET", "who")[0] == 401


def test_a_session_cannot_be_guessed_nor_made_of_what_is_stored(web: Tau, browser: Browser) -> None:
    ((name, value),) = browser.cookies.items()
    for guess in ("", "x", value[:-1], value.upper(), hashlib.sha256(value.encode()).hexdigest()):
        browser.cookies = {name: guess}
        assert browser("GET", "who")[0] == 401
    browser.cookies = {f"{name}x": value}
    assert browser("GET", "who")[0] == 401
    stored = b"".join(path.read_bytes() for path in web.home.glob("tau.db*"))
    assert hashlib.sha256(value.encode()).hexdigest().encode() in stored
    assert value.encode() not in stored


def test_a_session_dies_with_its_key_in_the_middle_of_a_stream(web: Tau) -> None:
    browser = Browser(web)
    browser.log_in(key=key_for(web, "leaver"))
    with browser.stream() as events:
        web("key", "revoke", "leaver")
        assert [kind for kind, _, _ in events][-1] == "gone"
    assert error_of(browser("GET", "who")) == (401, "forbidden")
    assert error_of(browser("POST", "ask", {"calls": [["status", {}]]})) == (401, "forbidden")
    browser.log_in(word=word_of(web))
    web.call("key_create", name="leaver")  # a key of this name is another key


def test_a_session_dies_with_a_key_that_is_rotated_or_expires() -> None:
    made = open_home()
    config = made.home / "tau.toml"
    text = config.read_text()
    config.write_text(f'{text}[auth]\napi_key = "{"a" * 40}"\n')
    with served(made, code=AHEAD):
        rotated, expired = Browser(made), Browser(made)
        rotated.log_in(key="a" * 40)
        expired.log_in(key=key_for(made, "short", "--expires", "1h"))
        with rotated.stream() as events:
            config.write_text(f'{text}[auth]\napi_key = "{"b" * 40}"\n')
            os.kill(made.pid(), signal.SIGHUP)
            assert next(events)[0] == "gone"
        assert rotated("GET", "who")[0] == 401
        assert expired("GET", "who")[0] == 200
        go_ahead(made, 3700)
        assert expired("GET", "who")[0] == 401
    made.stop()
    made.home.parent.rmdir()


def test_a_session_ends_when_it_is_idle_and_when_it_is_old() -> None:
    made, day = open_home(), 86_400
    with served(made, code=AHEAD + "tau.PULSE_S = 0.1\n"):
        idle, busy = Browser(made), Browser(made)
        for browser in (idle, busy):
            browser.log_in(word=word_of(made))
        with idle.stream() as events:
            for hours in range(0, 7 * 24, 6):
                go_ahead(made, hours * 3600)
                assert busy("GET", "who")[0] == 200
            assert "gone" in (event[0] for event in events)  # to listen is not to do something
        assert idle("GET", "who")[0] == 401
    go_ahead(made, 7 * day - 60)
    with served(made, code=AHEAD):
        assert busy("GET", "who")[0] == 200  # it is known when it was used last
        go_ahead(made, 7 * day + 60)
        assert busy("GET", "who")[0] == 401
    made.stop()
    made.home.parent.rmdir()


def test_a_key_has_few_sessions_and_takes_none_from_others() -> None:
    with served(made := open_home(), code="tau.Dashboard; tau.SESSIONS_MAX = 2"):
        other = Browser(made)
        other.log_in(word=word_of(made))
        key, browsers = key_for(made, "many"), [Browser(made) for _ in range(4)]
        for browser in browsers:
            browser.log_in(key=key)
        assert [browser("GET", "who")[0] for browser in (*browsers, other)] == [401, 401, 200, 200, 200]
    made.stop()
    made.home.parent.rmdir()


def test_a_restored_home_has_no_session_of_the_backup() -> None:
    with running(open_home()) as made:
        browser, saved = Browser(made), made.work / "saved.tau"
        browser.log_in(word=word_of(made))
        made("backup", saved)
        made("shutdown")
        restored = run("taud", "--restore", saved, "--replace", cwd=made.work, environ=made.environ)
        assert restored.exit == 0, restored.err
        made.start()
        assert browser("GET", "who")[0] == 401
        browser.log_in(word=word_of(made))


# Other web pages.


@pytest.mark.parametrize("path", ["login", "logout", "ask"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "", "sec_fetch_site": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://localhost"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "", "sec_fetch_site": "none"},
        {"origin": "http://evil.example", "sec_fetch_site": "", "content_type": "text/plain"},
    ],
    ids=str,
)
def test_another_page_cannot_write(web: Tau, browser: Browser, path: str, headers: dict[str, str]) -> None:
    body = {"calls": [["pause", {"all": True}]]} if path == "ask" else {}
    assert error_of(browser("POST", path, body, **headers)) == (403, "forbidden")
    assert browser("GET", "who")[0] == 200
    assert web("status")["scheduler"]["paused"] is None


@pytest.mark.parametrize("headers", [{"origin": ""}, {"sec_fetch_site": ""}], ids=str)
def test_our_page_may_say_either(browser: Browser, headers: dict[str, str]) -> None:
    assert browser("POST", "ask", {"calls": [["version", {}]]}, **headers)[0] == 200


@pytest.mark.parametrize("path", ["who", "stream", "ask"])
def test_another_page_can_neither_ask_nor_listen(browser: Browser, path: str) -> None:
    method = "POST" if path == "ask" else "GET"
    assert error_of(browser(method, path, sec_fetch_site="cross-site")) == (403, "forbidden")
    assert error_of(browser(method, path, origin="http://evil.example")) == (403, "forbidden")
    assert browser("OPTIONS", path, access_control_request_method="POST", origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.evil.example", "localhost.evil.example:8400", "127.0.0.1.nip.io", "x@localhost"]
)
@pytest.mark.parametrize("path", ["/", "/who", "/login", "/stream"])
def test_a_name_that_is_not_ours_leads_nowhere(browser: Browser, host: str, path: str) -> None:
    """A page of that name may have had its name lead here."""
    method = "POST" if path == "/login" else "GET"
    assert error_of(browser(method, path, host=host, origin=f"http://{host}")) == (403, "forbidden")


def test_names_of_the_configuration_are_ours() -> None:
    with running(open_home('hosts = "tau.lan, Tau.Example.com"\npublic_url = "https://proxy.example/tau/"\n')) as made:
        browser = Browser(made)
        for host in ("tau.lan:8400", "TAU.example.com", "proxy.example", f"localhost:{made.port}", "[::1]:8400"):
            assert browser("GET", "/", host=host)[0] == 200
            assert browser("POST", "login", {"word": word_of(made)}, host=host, origin=f"http://{host}")[0] == 200
            assert "Secure" not in browser.set
        browser.log_in(word=word_of(made))
        assert browser("POST", "login", {"word": word_of(made)}, origin="https://proxy.example")[0] == 200
        assert re.match(r"__Secure-tau_.*; Secure$", browser.set)
        assert browser("POST", "login", {"word": word_of(made)}, origin="")[0] == 200
        assert browser.set.endswith("; Secure")


def test_over_tls_the_cookie_is_for_tls_alone(tmp_path: Path) -> None:
    with running(make_home("", "https")) as made:
        authority = made.home / "cert.pem"
        browser = Browser(made, f"https://127.0.0.1:{made.port}", authority)
        del made.environ["TAU_HOST"]
        opened = made("open")["address"]
        assert opened.startswith(f"{browser.address}/#word=")
        browser.log_in(word=opened.partition("#word=")[2])
        assert re.match(r"__Secure-tau_[0-9a-f]{12}=", browser.set)
        assert browser.set.endswith("; HttpOnly; SameSite=Strict; Secure")
        assert browser("GET", "who")[0] == 200
        assert browser("POST", "ask", {"calls": [["version", {}]]}, origin=f"http://127.0.0.1:{made.port}")[0] == 403
        browser.cookies = {name.removeprefix("__Secure-"): value for name, value in browser.cookies.items()}
        assert browser("GET", "who")[0] == 401  # who is between might have set that one


# Asking.


def test_one_request_has_the_answers_of_a_screen(web: Tau, browser: Browser) -> None:
    web.deploy_it("def it(ctx):\n    return 3")
    calls: list[Any] = [
        ("status", {}),
        ("show", {"name": "nothing"}),
        ("list", {"limit": "x"}),
        ("no", {}),
        ("runs", {}),
    ]
    status, document = browser("POST", "ask", {"calls": calls})
    assert status == 200
    assert module.instant_of(document["at"]) <= time.time()
    found = [answer.get("result") or answer["error"]["code"] for answer in document["answers"]]
    assert (found[0]["pid"], found[1:4]) == (web.pid(), ["not_found", "bad_request", "method_not_found"])
    assert found[4].keys() == web("runs").keys()
    assert browser.ask(("run", {"name": "it"}))[0]["result"]["result"] == 3


@pytest.mark.parametrize(
    "body",
    [
        {}, [], {"calls": []}, {"calls": [["version", {}]] * 21}, {"calls": ["version"]}, {"calls": [["version"]]},
        {"calls": [["version", {}, 1]]}, {"calls": [[["version"], {}]]}, {"calls": [["events", {"follow": True}]]}, b"{",
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_batch_is_refused_whole(browser: Browser, body: Any) -> None:
    assert browser("POST", "ask", body)[0] == 400


def test_a_batch_has_the_bounds_of_its_parts(browser: Browser) -> None:
    answers = browser.ask(*[("version", {})] * 20)
    assert len(answers) == 20
    assert browser("POST", "ask", b" " * (module.LINE_BYTES_MAX + 1))[0] == 413
    assert Browser(browser_home(browser))("POST", "login", b" " * (module.LINE_BYTES_STRANGER + 1))[0] == 413


def browser_home(browser: Browser) -> Any:
    """Something with the port that a browser knows."""
    return type("Home", (), {"port": int(browser.host.rpartition(":")[2])})


def test_a_reader_is_refused_whatever_the_page_asks(web: Tau) -> None:
    web.deploy("from tau import pipeline\n@pipeline\ndef etl_a(ctx): ...\n@pipeline\ndef foreign(ctx): ...\n", "two.py")
    browser = Browser(web)
    browser.log_in(key=key_for(web, "few", "--scope", "read", "--pipelines", "etl_*"))
    calls: list[Any] = [(name, {"name": "etl_a"}) for name in ("run", "pause", "undeploy", "rollback", "schedule")]
    answers = browser.ask(
        *calls, ("cancel", {"run_id": "x"}), ("shutdown", {}), ("show", {"name": "foreign"}), ("list", {})
    )
    assert [answer["error"]["code"] for answer in answers[:-1]] == ["forbidden"] * 7 + ["not_found"]
    assert [row["name"] for row in answers[-1]["result"]["pipelines"]] == ["etl_a"]
    with browser.stream() as events:
        for name in ("foreign", "etl_a"):
            web("run", name)
        assert {event["pipeline"] for _, _, event in (next(events) for _ in range(3))} == {"etl_a"}


HOSTILE = "\r\n\r\nevent: gone\ndata: {}\n\n</script><img src=x onerror=alert(1)>\u2028\u202e\x1b[31m"


def test_what_users_write_stays_in_its_document(web: Tau, browser: Browser) -> None:
    web.deploy_it(f"def it(ctx):\n    ctx.log({HOSTILE!r})\n    raise ValueError({HOSTILE!r})\n")
    with browser.stream() as events:
        web.call("run", name="it", reason=HOSTILE)
        seen = [next(events) for _ in range(3)]
    assert {kind for kind, _, _ in seen} == {"message"}
    assert HOSTILE[:9] in next(event["reason"] for _, _, event in seen if event["type"] == "run.queued")
    (logs,) = browser.ask(("logs", {"name": "it"}))
    assert "<img" in json.dumps(logs)
    with closing(browser.connect()) as connection:
        response = browser.send(connection, "GET", f"/%0d%0a{'x' * 300}<img>")
        assert (response.headers["Content-Type"], response.read()[:1]) == ("application/json", b"{")


# The stream.


def fill_ledger(made: Tau, name: str, count: int) -> None:
    for _ in range(count):
        made.call("pause", name=name)
        made.call("resume", name=name)


def test_a_stream_goes_on_where_it_was_over_a_restart() -> None:
    with running(open_home()) as made:
        made.deploy_it("def it(ctx): ...")
        browser, seen = Browser(made), list[int]()
        browser.log_in(word=word_of(made))
        begin = made.call("events", limit=1)["next"]
        fill_ledger(made, "it", 5)
        with browser.stream(since=begin) as events:
            seen += [event["seq"] for _, _, event in (next(events) for _ in range(7))]
            made.kill()
            seen += [event["seq"] for _, _, event in drain(events)]
        made.start()
        fill_ledger(made, "it", 5)
        with browser.stream(since=begin, last=seen[-1]) as events:  # browsers repeat the address
            for kind, number, event in events:
                assert (kind, number) == ("message", str(event["seq"]))
                seen.append(event["seq"])
                if seen[-1] == made.call("events", limit=1)["next"]:
                    break
        known = [event["seq"] for event in made.call("events", since=begin, limit=1000)["events"]]
        assert seen == known


def drain(events: Iterator[Any]) -> Iterator[Any]:
    """What is still there after the other side has died."""
    try:
        yield from events
    except (http.client.HTTPException, OSError):
        pass


def test_a_stream_begins_now_and_beats_and_says_what_is_gone(home: Tau) -> None:
    home.listen()
    del home.environ["TAU_HOST"]
    with served(home, code="tau.PULSE_S = 0.05"):
        home.deploy_it("def it(ctx): ...")
        browser = Browser(home)
        browser.log_in(word=word_of(home))
        with closing(browser.connect()) as connection:
            response = browser.send(connection, "GET", "stream")
            lines = [response.readline() for _ in range(9)]
            assert set(lines) == {b":\n", b"\n", b"id: %d\n" % home.call("events", limit=1)["next"]}
        with browser.stream(since=1 << 40) as events:
            assert next(events)[0] == "gap"


def test_seven_streams_leave_the_daemon_its_breath(web: Tau, browser: Browser) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(browser.stream()) for _ in range(7)]
        web.deploy_it("def it(ctx): ...")
        web.call("run", name="it")
        for events in streams:
            assert [next(events)[2]["type"] for _ in range(4)][-1] == "run.finished"
        eventually(lambda: web("status")["connections"] >= 8)


# Through a proxy.


@pytest.mark.parametrize("extra", ["", "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering on;"])
def test_everything_works_below_a_path_of_nginx(tmp_path: Path, extra: str) -> None:
    with running(open_home()) as made, nginx(made, tmp_path, extra) as address:
        browser, config = Browser(made, address, tmp_path / "cert.pem"), made.home / "tau.toml"
        assert browser("POST", "login", {"word": word_of(made)})[1]["error"]["hint"].startswith(
            "set [daemon] public_url"
        )
        config.write_text(f'{config.read_text()}public_url = "{address}/"\n')
        os.kill(made.pid(), signal.SIGHUP)
        eventually(lambda: browser("POST", "login", {"word": word_of(made), "path": "/tau/"})[0] == 200)
        assert re.search(r"__Secure-tau_.*; Path=/tau/; HttpOnly; SameSite=Strict; Secure$", browser.set)
        assert "<!doctype html>" in browser("GET", "/")[1]
        made.deploy_it("def it(ctx): ...")
        with browser.stream() as events:
            assert browser.ask(("run", {"name": "it"}))[0]["result"]["status"] == "success"
            assert [next(events)[2]["type"] for _ in range(3)][-1] == "run.finished"
        assert browser("POST", "ask", {"calls": [["version", {}]]}, origin="https://evil.example")[0] == 403


def test_nothing_secret_is_logged() -> None:
    made = open_home()
    with served(made, "--log-level", "debug"):
        browser, key, word = Browser(made), key_for(made, "k"), word_of(made)
        browser.log_in(word=word)
        browser("POST", "login", {"word": word})
        browser.log_in(key=key)
        browser("GET", "who", host="evil.example")
        log = (made.work / "taud.log").read_text()
    assert not [secret for secret in (key, word, *browser.cookies.values()) if secret in log]
    made.stop()
    made.home.parent.rmdir()
