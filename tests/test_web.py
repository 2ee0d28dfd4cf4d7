"""What is read over http: from a real server, on the loopback, that misbehaves as servers do."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import Context, Tau

import tau as module

ROWS = [{"id": 1, "name": "é"}, {"id": 2, "name": "b"}]
JSON = {"Content-Type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    """Answers a path with the next of its answers; the last one again and again."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """One request."""
        path = self.path.partition("?")[0]
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        status, headers, body = answer(self.path) if callable(answer) else answer
        self.send_response(status)
        chunks = isinstance(body, list)
        for name, value in ({} if chunks else {"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        if chunks:
            for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
                self.send_header(name, value)
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in body)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """A server, what it answers and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def tell(self, path: str, *answers: Any) -> str:
        """The URL of a path that answers so; bytes and documents stand for a plain 200."""
        self.answers[path] = [plain(one) for one in answers]
        return self.url + path

    def handle_error(self, *words: Any) -> None:
        """A client that hung up is no error."""


def plain(answer: Any) -> Any:
    """An answer as (status, headers, body)."""
    if isinstance(answer, tuple) or callable(answer):
        return answer
    return (200, JSON, answer if isinstance(answer, bytes) else json.dumps(answer).encode())


def serving() -> Iterator[Server]:
    """A server that runs, and is closed afterwards."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server."""
    yield from serving()


@pytest.fixture
def other() -> Iterator[Server]:
    """Another one: another origin."""
    yield from serving()


def test_json_and_csv_by_content_type_and_by_name(server: Server, ctx: Context) -> None:
    csv = "id,name\n1,é\n"
    cases = {
        "/api": (200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(ROWS).encode()),
        "/hal": (200, {"Content-Type": "application/hal+json"}, json.dumps(ROWS).encode()),
        "/lines": (
            200,
            {"Content-Type": "application/x-ndjson"},
            b'{"id": 1, "name": "\xc3\xa9"}\n{"id": 2, "name": "b"}\n',
        ),
        "/a.json": (200, {"Content-Type": "text/plain"}, json.dumps(ROWS).encode()),
    }
    for path, answer in cases.items():
        assert ctx.extract(server.tell(path, answer)) == ROWS
    tables = {
        "/csv": (200, {"Content-Type": "text/csv"}, csv.encode()),
        "/latin": (200, {"Content-Type": "text/csv; charset=latin-1"}, csv.encode("latin-1")),
        "/a.csv": (200, {"Content-Type": "binary/octet-stream"}, csv.encode()),
        "/a.csv.gz": (200, {"Content-Type": "application/gzip"}, gzip.compress(csv.encode())),
        "/b.csv.gz": (200, {"Content-Type": "text/csv", "Content-Encoding": "gzip"}, gzip.compress(csv.encode())),
        "/ünï code.csv": (200, {"Content-Type": "text/csv"}, csv.encode()),
    }
    for path, answer in tables.items():
        server.tell(path.replace("ü", "%C3%BC").replace("ï", "%C3%AF").replace(" ", "%20"), answer)
        assert ctx.extract(server.url + path) == [{"id": "1", "name": "é"}], path
    assert ctx.extract(server.url + "/a.csv", types=True) == [{"id": 1, "name": "é"}]
    assert ctx.extract(server.tell("/named", (200, {"Content-Type": "text/html"}, csv.encode())), format="csv") == [
        {"id": "1", "name": "é"}
    ]


def test_other_content_is_refused(server: Server, ctx: Context) -> None:
    page = (200, {"Content-Type": "text/html"}, b"<p>Please log in</p>")
    for path in ("/orders", "/orders.csv"):
        with pytest.raises(module.SourceError, match="the answer is text/html"):
            ctx.extract(server.tell(path, page))
    with pytest.raises(module.SourceError, match="the answer is image/png") as caught:
        ctx.extract(server.tell("/cat", (200, {"Content-Type": "image/png"}, b"\x89PNG")))
    assert "format=" in caught.value.hint
    with pytest.raises(module.SourceError, match="packed as br"):
        ctx.extract(server.tell("/br", (200, JSON | {"Content-Encoding": "br"}, b"xx")))
    with pytest.raises(module.SourceError, match="api: not JSON"):
        ctx.extract(server.tell("/api", b"{"))


def pages(path: str) -> Any:
    """Three pages, the last of them empty."""
    page = int(path.rpartition("page=")[2])
    return plain([{"page": page}] if page < 3 else [])


def test_pages_by_a_link_in_the_document(server: Server, ctx: Context) -> None:
    first = {"items": [{"id": 1}], "paging": {"next": "/two?cursor=a b"}}
    server.tell("/two", {"items": [{"id": 2}], "paging": {"next": None}})
    url = server.tell("/one", first)
    assert ctx.extract(url, records="items", next_link="paging.next") == [{"id": 1}, {"id": 2}]
    assert [len(batch) for batch in ctx.extract(url, records="items", next_link="paging.next", stream=True)] == [1, 1]
    dotted = server.tell("/dots", {"value": [{"id": 1}], "@odata.nextLink": f"{server.url}/last"})
    server.tell("/last", {"value": [{"id": 2}]})
    assert ctx.extract(dotted, records="value", next_link="@odata.nextLink") == [{"id": 1}, {"id": 2}]


def test_pages_by_the_link_header(server: Server, ctx: Context) -> None:
    link = '</zero>; rel="prev", </two?a=1,2>; title="more"; rel="next"'
    server.tell("/two", (200, JSON | {"Link": '</one>; rel="prev"'}, b'[{"id": 2}]'))
    assert ctx.extract(server.tell("/one", (200, JSON | {"Link": link}, b'[{"id": 1}]')), next_link="header") == [
        {"id": 1},
        {"id": 2},
    ]
    assert server.asked[-1][0] == "/two?a=1,2"


def test_pages_by_a_parameter(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", pages)
    assert ctx.extract(url + "?page=9&size=1", page_param="page", query={"q": "a b"}) == [{"page": 1}, {"page": 2}]
    assert [path for path, _ in server.asked] == [f"/rows?size=1&q=a+b&page={page}" for page in (1, 2, 3)]
    server.tell("/ends", (200, JSON, b'[{"id": 1}]'), (204, {}, b""))
    assert ctx.extract(server.url + "/ends", page_param="p") == [{"id": 1}]


def test_pages_that_never_end_are_told(server: Server, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match="the next link leads back"):
        ctx.extract(server.tell("/loop", {"rows": [{"id": 1}], "next": "/loop"}), records="rows", next_link="next")
    with pytest.raises(module.SourceError, match="more than 2 pages"):
        ctx.extract(server.tell("/all", [{"id": 1}]), page_param="page", max_pages=2)
    with pytest.raises(module.SourceError, match="the next link is file:///etc/passwd"):
        ctx.extract(server.tell("/evil", {"rows": [], "next": "file:///etc/passwd"}), records="rows", next_link="next")
    with pytest.raises(module.SourceError, match="next_link='next' is 5"):
        ctx.extract(server.tell("/five", {"rows": [], "next": 5}), records="rows", next_link="next")


def test_a_next_link_that_is_not_there_is_told(server: Server, ctx: Context) -> None:
    url = server.tell("/one", {"items": [{"id": 1}], "next": None})
    ctx.extract(url, records="items", next_link="nxt")
    assert ctx.records("log")[0]["message"] == "one: no 'nxt' in the first page; is next_link right?"
    ctx.extract(url, records="items", next_link="next")
    assert len(ctx.records("log")) == 1


FAILING: dict[str, tuple[Any, str]] = {
    "500": ((500, {}, b""), "500 Internal Server Error"),
    "429": ((429, {"Retry-After": "0"}, b""), "429 Too Many Requests"),
    "429 until a day": ((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), "429"),
    "a body cut short": ((200, JSON | {"Content-Length": "100"}, b'[{"id": 1}, '), "cut short: 12 of 100 bytes"),
    "chunks cut short": (
        (200, {"Transfer-Encoding": "chunked", **JSON, "Content-Length": ""}, b"5\r\n[{"),
        "cut short",
    ),
    "gzip cut short": ((200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b"[]" * 9)[:-6]), "cut short"),
    "gzip spoilt": (
        (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b"[]" * 99)[:12] + b"\xff" * 40),
        "cut short|Error",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_may_pass_is_tried_again(case: str, server: Server, ctx: Context) -> None:
    bad, message = FAILING[case]
    packed = (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(json.dumps(ROWS).encode()))
    assert ctx.extract(server.tell("/rows", bad, packed), backoff=0.001) == ROWS
    (line,) = ctx.records("log")
    assert line["level"] == "warning"
    with pytest.raises(module.SourceError, match=rf"GET http://127.0.0.1:\d+/rows: .*({message}).*tried 2 times"):
        ctx.extract(server.tell("/rows", bad), backoff=0.001, retries=1)


def test_what_will_not_pass_is_told_at_once(server: Server, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match="answered 404 Not Found") as caught:
        ctx.extract(server.tell("/rows", (404, {}, b"no\nsuch thing")))
    assert (caught.value.hint, len(server.asked)) == ("it said: no such thing", 1)
    with pytest.raises(module.SourceError, match="it asks to wait 3600 s"):
        ctx.extract(server.tell("/rows", (429, {"Retry-After": "3600"}, b"")))
    with pytest.raises(module.SourceError, match="cannot ask"):
        ctx.extract(server.url + "/rows", headers={"X": "a\nb"})
    server.server_close()
    with pytest.raises(module.SourceError, match="tried 1 times"):
        ctx.extract(server.url + "/rows", retries=0)


def test_a_server_that_does_not_answer_is_not_waited_for(server: Server, ctx: Context) -> None:
    going = threading.Event()

    def hang(path: str) -> Any:
        going.wait(30)
        return plain([])

    with pytest.raises(module.SourceError, match="timed out"):
        ctx.extract(server.tell("/slow", hang), timeout=0.05, retries=1, backoff=0.001)
    going.set()


def test_a_step_that_is_over_is_no_failure_of_the_server(server: Server, ctx: Context) -> None:
    going = threading.Event()

    def hang(path: str) -> Any:
        going.wait(30)
        return plain([])

    with pytest.raises(module.StepTimeout), ctx.step("fetch", timeout=0.2):
        ctx.extract(server.tell("/slow", hang), timeout=5)
    going.set()
    assert len(server.asked) == 1


def test_redirects_take_headers_to_their_own_origin_only(server: Server, other: Server, ctx: Context) -> None:
    headers = {"Authorization": "Bearer s3cret-token", "X-Key": "s3cret-key"}
    server.tell("/here", ROWS)
    assert ctx.extract(server.tell("/moved", (302, {"Location": "/here"}, b"")), headers=headers, format="json") == ROWS
    assert server.asked[-1][1]["Authorization"] == "Bearer s3cret-token"
    away = other.tell("/there", ROWS)
    assert ctx.extract(server.tell("/away", (307, {"Location": away}, b"")), headers=headers) == ROWS
    assert not {"Authorization", "X-Key"} & {*other.asked[-1][1]}
    link = {"rows": ROWS, "next": away}
    other.tell("/there", {"rows": ROWS})
    assert ctx.extract(server.tell("/pages", link), headers=headers, records="rows", next_link="next") == ROWS * 2
    assert not {"Authorization", "X-Key"} & {*other.asked[-1][1]}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/csv,a"])
def test_redirects_lead_to_http_only(target: str, server: Server, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match=r"(?i)redirect"):
        ctx.extract(server.tell("/moved", (302, {"Location": target}, b"")))


def test_more_bytes_than_allowed_are_refused_packed_or_not(server: Server, ctx: Context) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    answers: dict[str, Any] = {
        "/plain": (200, JSON, b"[" + b" " * 2000 + b"]"),
        "/bomb": (200, JSON | {"Content-Encoding": "gzip"}, bomb),
        "/bomb.json.gz": (200, {"Content-Type": "application/gzip"}, bomb),
    }
    for path, answer in answers.items():
        with pytest.raises(module.SourceError, match="larger than max_bytes=1"):
            ctx.extract(server.tell(path, answer), max_bytes=1000 if path == "/plain" else 100_000)


def test_a_user_in_the_url_is_told_to_the_server_alone(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", (403, {}, b""))
    with pytest.raises(module.SourceError) as caught:
        ctx.extract(url.replace("http://", "http://me:p%40ssword@"))
    assert "ssword" not in str(caught.value)
    assert server.asked[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ssword").decode()


OPTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a word mistaken": ({"timout": 5}, "no option 'timout'", "did you mean 'timeout'?"),
    "two ways to page": ({"next_link": "a", "page_param": "b"}, "two ways to find pages", "choose one"),
    "another format's": ({"records": "a", "ragged": True}, "reading json has no option 'ragged'", "records"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_none_are_refused(case: str, server: Server, ctx: Context) -> None:
    options, message, hint = OPTIONS[case]
    with pytest.raises(module.BadRequest, match=message) as caught:
        ctx.extract(server.tell("/rows", {"a": ROWS}), **options)
    assert hint in caught.value.hint


def test_nothing_can_be_written_over_http(server: Server, ctx: Context) -> None:
    with pytest.raises(module.BadRequest, match=r"http\(s\) can only be read"):
        ctx.load(server.url + "/rows", ROWS)


def test_a_run_reads_pages_and_tells_them_as_one_step(server: Server, tau: Tau) -> None:
    server.tell("/two", (500, {}, b""), (200, JSON, b'{"rows": [{"id": 3}]}'))
    url = server.tell("/one", {"rows": ROWS, "next": "/two"})
    run = tau.run_it(
        f"""
        async def it(ctx):
            rows = ctx.extract({server.url!r}, "one", records="rows", next_link="next", backoff=0.001)
            return sum(row["id"] for row in rows)
        """
    )
    assert url.endswith("/one")
    assert run["result"] == 6
    (step,) = run["trace"]["steps"]
    assert (step["name"], step["rows_out"]) == ("extract one", 3)
    assert "again in" in tau("logs", "it")["lines"][0]["message"]
