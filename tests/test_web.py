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
from conftest import PATIENCE_S, Context, Tau

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
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.sent.append(sent)
        answers = self.server.answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = plain(answer(self.path) if self.command == "GET" else answer(self.path, sent))
        status, headers, body = answer
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

    do_POST = do_GET  # noqa: N815

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """A server, what it answers and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent: list[dict[str, Any]] = []
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
    with pytest.raises(module.SourceError, match="api: not JSON"):
        ctx.extract(server.tell("/api", b"{"))


def test_a_page_that_is_not_meant_is_told(server: Server, ctx: Context) -> None:
    """What the service says with status 200 in the midst of pages, or in place of rows."""
    rows = [{"id": number} for number in range(25)]
    same = json.dumps({"data": rows, "total": 100}).encode()
    with pytest.raises(module.SourceError, match="is the same as 3 pages before"):
        ctx.extract(server.tell("/same", *[same] * 4), records="data", page_param="pageNumber", total="total")
    for path in ("/empty", "/empty.csv"):
        with pytest.raises(module.SourceError, match=r"no header|not JSON"):
            ctx.extract(server.tell(path, (200, JSON if path == "/empty" else {"Content-Type": "text/csv"}, b"")))
    limited = b'{"success": false, "message": "rate limit exceeded"}'
    page = json.dumps({"data": rows}).encode()
    assert len(ctx.extract(server.tell("/limited", page, limited), records="data", page_param="page")) == 25
    assert "rate limit exceeded" in ctx.records("log")[-1]["message"]
    with pytest.raises(module.SourceError, match=r"is no list, as that before it was: .*rate limit"):
        ctx.extract(server.tell("/bare", json.dumps(rows).encode(), limited), page_param="page")
    with pytest.raises(module.SourceError, match="there is no list") as refused:
        ctx.extract(server.tell("/auth", b'{"ok": false, "error": "invalid_auth"}'), records="messages")
    assert "invalid_auth" in refused.value.hint
    assert ctx.extract(server.tell("/busy", (529, {}, b""), b"[]"), backoff=0.0) == []


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
    with pytest.raises(module.SourceError, match="the next page is an earlier one"):
        ctx.extract(server.tell("/loop", {"rows": [{"id": 1}], "next": "/loop"}), records="rows", next_link="next")
    with pytest.raises(module.SourceError, match="more than 2 pages"):
        ctx.extract(server.tell("/all", *([{"id": i}] for i in range(9))), page_param="page", max_pages=2)
    with pytest.raises(module.SourceError, match=r"\(page 4\) is the same as 3 pages before") as caught:
        ctx.extract(server.tell("/same", [{"id": 1}]), page_param="page")
    assert "not to read page_param" in caught.value.hint
    server.tell("/equal", *([{"v": 0}, {"v": 0}] for _ in range(3)), [])
    assert ctx.extract(f"{server.url}/equal", page_param="page") == [{"v": 0}] * 6
    with pytest.raises(module.SourceError, match="the next link is file:///etc/passwd"):
        ctx.extract(server.tell("/evil", {"rows": [], "next": "file:///etc/passwd"}), records="rows", next_link="next")
    with pytest.raises(module.SourceError, match="next_link='next' is 5"):
        ctx.extract(server.tell("/five", {"rows": [], "next": 5}), records="rows", next_link="next")


#: What a first page has → the options that its warning names.
MORE: dict[str, tuple[dict[str, str], Any, str]] = {
    "a header": ({"Link": '<http://x/2>; rel="next"'}, [{"id": 1}], "next_link='header'"),
    "a link": ({}, {"rows": [{"id": 1}], "links": {"next": "/p?page=2"}}, "next_link='links.next'"),
    "a token": ({}, {"rows": [{"id": 1}], "next_cursor": "abc"}, "next_token='next_cursor'"),
    "a word": ({}, {"rows": [{"id": 1}], "has_more": True}, "is it page_param='…'"),
    "a total": ({}, {"rows": [{"id": 1}], "total": 25}, "total='total' (25)"),
    "the last page": ({}, {"rows": [{"id": 1}], "links": {"next": None}, "has_more": False}, ""),
    "no more, with a token": ({}, {"rows": [{"id": 1}], "next_cursor": "abc", "has_more": False}, ""),
}


@pytest.mark.parametrize("case", MORE)
def test_a_first_page_alone_is_told(case: str, server: Server, ctx: Context) -> None:
    headers, document, options = MORE[case]
    url = server.tell("/p", (200, JSON | headers, json.dumps(document).encode()))
    assert ctx.extract(url, **({"records": "rows"} if isinstance(document, dict) else {})) == [{"id": 1}]
    said = [record["message"] for record in ctx.records("log")]
    assert len(said) == bool(options)
    assert not options or options in said[0]


def test_one_object_is_no_first_page(server: Server, ctx: Context) -> None:
    url = server.tell("/invoice", {"id": 5, "total": 1250, "next": "/invoices/6"})
    assert ctx.extract(url) == [{"id": 5, "total": 1250, "next": "/invoices/6"}]
    assert ctx.records("log") == []


def test_an_empty_page_is_not_the_last_if_their_number_is_known(server: Server, ctx: Context) -> None:
    pages = [{"rows": rows, "pages": 3} for rows in ([{"id": 1}], [], [{"id": 3}])]
    url = server.tell("/gap", *pages)
    found = ctx.extract(url, records="rows", page_param="page", page_count="pages")
    assert found == [{"id": 1}, {"id": 3}]


def test_a_byte_order_mark_is_no_letter_whatever_utf_8_is_called(server: Server, ctx: Context) -> None:
    for name in ("utf8", "UTF-8", "utf-8"):
        data = (200, {"Content-Type": f"text/csv; charset={name}"}, "\ufeffa\n1\n".encode())
        assert ctx.extract(server.tell(f"/{name}", data)) == [{"a": "1"}]


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
        "IncompleteRead",
    ),
    "gzip cut short": ((200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b"[]" * 9)[:-6]), "file ended before"),
    "gzip spoilt": (
        (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b"[]" * 99)[:12] + b"\xff" * 40),
        "Error|invalid|ended before",
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
    with pytest.raises(module.SourceError, match="tried 1 time"):
        ctx.extract(server.url + "/rows", retries=0)


def test_a_server_that_does_not_answer_is_not_waited_for(server: Server, ctx: Context) -> None:
    going = threading.Event()

    def hang(path: str) -> Any:
        going.wait(PATIENCE_S)
        return plain([])

    with pytest.raises(module.SourceError, match="timed out"):
        ctx.extract(server.tell("/slow", hang), timeout=0.05, retries=1, backoff=0.001)
    going.set()


def test_a_step_that_is_over_is_no_failure_of_the_server(server: Server, ctx: Context) -> None:
    going = threading.Event()

    def hang(path: str) -> Any:
        going.wait(PATIENCE_S)
        return plain([])

    with pytest.raises(module.StepTimeout), ctx.step("fetch", timeout=0.2):
        ctx.extract(server.tell("/slow", hang), timeout=5)
    going.set()
    assert len(server.asked) <= 1  # not tried again; on a loaded machine the time is over before the first request


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


def test_redirects_may_have_any_letter_and_end(server: Server, ctx: Context) -> None:
    server.tell("/%C3%BC%20b", ROWS)
    assert ctx.extract(server.tell("/moved", (301, {"Location": "/\u00c3\u00bc b"}, b""))) == ROWS  # UTF-8, as bytes
    with pytest.raises(module.SourceError, match=r"a redirect leads to http.*/loop") as caught:
        ctx.extract(server.tell("/loop", (302, {"Location": "loop"}, b"")))
    assert (caught.value.hint, len(server.asked)) == ("it is the eleventh in turn", 13)


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


def test_a_packed_file_that_is_packed_once_more_on_the_way(server: Server, ctx: Context) -> None:
    headers = {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
    for body in (gzip.compress(b"a\n1\n"), gzip.compress(gzip.compress(b"a\n1\n"))):
        assert ctx.extract(server.tell("/rows.csv.gz", (200, headers, body))) == [{"a": "1"}]


def test_a_parameter_of_none_is_left_out(server: Server, ctx: Context) -> None:
    ctx.extract(server.tell("/rows", []) + "?since=1&all=1", query={"since": None, "region": None, "n": 0})
    assert server.asked[-1][0] == "/rows?all=1&n=0"


def test_a_user_in_the_url_is_told_to_the_server_alone(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", (403, {}, b""))
    with pytest.raises(module.SourceError) as caught:
        ctx.extract(url.replace("http://", "http://me:p%40ssword@"))
    assert "ssword" not in str(caught.value)
    assert server.asked[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ssword").decode()


OPTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a word mistaken": ({"timout": 5}, "no option 'timout'", "did you mean 'timeout'?"),
    "two ways to page": ({"next_link": "a", "page_param": "b"}, "two ways to find pages", "choose one"),
    "a token for nothing": ({"next_token": "a"}, "next_token needs token_param", "token_param='…': parameter"),
    "a parameter for nothing": ({"token_param": "a"}, "token_param needs next_token", "next_token='…': path"),
    "a step of nothing": ({"page_step": 2}, "page_step needs page_param", "page_param="),
    "a step of no rows": ({"page_param": "offset", "page_step": 0}, "page_step: expected a whole number from 1", ""),
    "a step in a number": ({"json": {"a": 1}, "page_param": "a.b"}, "has 'b' in json: expected object, given", ""),
    "an end of nothing": ({"total": "n"}, "total needs page_param", "page_param="),
    "rows that are counted as pages": ({"page_param": "offset"}, "seems to count rows", "page_step="),
    "rows, with a limit in the query": (
        {"page_param": "offset", "query": {"limit": 2, "q": "a"}},
        "seems to count rows",
        "page_step=2:",
    ),
    "rows by another name": ({"page_param": "startAt"}, "seems to count rows", "page_step="),
    "and by a third": ({"page_param": "$skip"}, "seems to count rows", "page_step="),
    "another type": ({"timeout": "5"}, "timeout: expected number", ""),
    "a body that is no object": ({"json": [1]}, "json: expected object", ""),
    "headers that are none": ({"headers": lambda: "Authorization"}, "headers: expected object", ""),
    "another format's": ({"records": "a", "ragged": True}, "reading json has no option 'ragged'", "records"),
}


@pytest.mark.parametrize("port", ["99999", "abc", "0"])
def test_a_port_that_is_none_is_told(port: str, server: Server, ctx: Context) -> None:
    odd = f"http://127.0.0.1:{port}/x.json"
    with pytest.raises(module.BadRequest, match=f"{odd} is no URL"):
        ctx.extract(odd)
    for link in (odd, "http://[no/x.json"):
        with pytest.raises(module.SourceError, match="the next link is"):
            ctx.extract(server.tell("/rows", {"rows": [{"n": 1}], "next": link}), records="rows", next_link="next")


def test_a_header_with_a_line_break_is_named_and_not_shown(server: Server, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match="a line break in the header Authorization") as caught:
        ctx.extract(server.tell("/rows", []), headers=lambda: {"Authorization": "Bearer hush-hush\n"})
    assert "hush" not in str(caught.value)
    assert server.asked == []


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


def listed(path: str) -> Any:
    """Seven rows, at most three on a page from an offset on, and how many there are."""
    query = dict(part.split("=") for part in path.partition("?")[2].split("&"))
    at = int(query["offset"])
    return {"rows": [{"n": n} for n in range(at, min(at + 3, 7))], "total": 7, "pages": 3}


def numbered(path: str) -> Any:
    """The same three by three, by the number of the page."""
    page = int(path.rpartition("page=")[2])
    return listed(f"?offset={page * 3 - 3}") if page <= 3 else (404, {}, b"no such page")


SEVEN = [{"n": n} for n in range(7)]
BY_OFFSET = {"records": "rows", "page_param": "offset"}
BY_PAGE = {"records": "rows", "page_param": "page"}
#: Ways to count: the service, options, what was asked for, and the rows or the error.
COUNTED: dict[str, tuple[Any, dict[str, Any], list[str], Any]] = {
    "by steps": (listed, BY_OFFSET | {"page_step": 3}, ["0", "3", "6", "9"], SEVEN),
    "to a total": (listed, BY_OFFSET | {"page_step": 3, "total": "total"}, ["0", "3", "6"], SEVEN),
    "to a count of pages": (numbered, BY_PAGE | {"page_count": "pages"}, ["1", "2", "3"], SEVEN),
    "from elsewhere": (listed, BY_OFFSET | {"page_step": 3, "first_page": 3}, ["3", "6", "9"], SEVEN[3:]),
    "past the end": (numbered, BY_PAGE, ["1", "2", "3", "4"], r"GET .*/rows \(page 4\) answered 404"),
    "steps too long": (listed, BY_OFFSET | {"page_step": 5}, ["0", "5"], "2 rows after 3 are no step of 5"),
    "steps too long for a total": (
        listed,
        BY_OFFSET | {"page_step": 5, "total": "total"},
        ["0"],
        "3 rows after 0 are no",
    ),
    "steps too short": (listed, BY_OFFSET | {"page_step": 2}, ["0"], "3 rows after 0 are no step of 2"),
    "a total that is none": (
        listed,
        BY_OFFSET | {"page_step": 3, "total": "rows"},
        ["0"],
        r"total='rows' is \[\{'n': 0",
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_pages_that_are_counted(case: str, server: Server, ctx: Context) -> None:
    service, options, asked, right = COUNTED[case]
    url = server.tell("/rows", service)
    if isinstance(right, list):
        assert ctx.extract(url, **options) == right
    else:
        with pytest.raises(module.SourceError, match=right):
            ctx.extract(url, **options)
    assert [path.rpartition("=")[2] for path, _ in server.asked] == asked


def test_a_total_that_is_not_reached_is_logged(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", {"rows": SEVEN, "total": 9}, {"rows": [], "total": 9})
    assert ctx.extract(url, **BY_PAGE, total="total") == SEVEN
    assert "(page 2) is empty after 7 of 9 rows" in ctx.records("log")[0]["message"]


def by_cursor(path: str, body: Any = None) -> Any:
    """Two pages by a cursor in the URL, or at `page.after` in the body."""
    at = (body.get("page") or {}).get("after") if body is not None else path.partition("cursor=")[2]
    return {"rows": [{"at": at or "start"}], "meta": {"cursor": None if at else "a/b= c"}}


def test_pages_by_a_token(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", by_cursor)
    options = {"records": "rows", "next_token": "meta.cursor"}
    assert ctx.extract(url + "?size=1", **options, token_param="cursor") == [{"at": "start"}, {"at": "a%2Fb%3D+c"}]
    assert server.asked[-1][0] == "/rows?size=1&cursor=a%2Fb%3D+c"
    asked = {"filter": "open", "page": {"size": 1}}
    assert ctx.extract(url, **options, token_param="page.after", json=asked) == [{"at": "start"}, {"at": "a/b= c"}]
    assert server.sent[-2:] == [asked, {"filter": "open", "page": {"size": 1, "after": "a/b= c"}}]
    assert (server.asked[-1][0], server.asked[-1][1]["Content-Type"]) == ("/rows", "application/json")
    keyset = server.tell("/ids", {"rows": [{"id": 7}, {"id": 8}]}, {"rows": [{"id": 9}]}, {"rows": []})
    rows = ctx.extract(keyset, records="rows", next_token="rows.-1.id", token_param="after")
    assert [row["id"] for row in rows] == [7, 8, 9]
    assert [path for path, _ in server.asked[-3:]] == ["/ids", "/ids?after=8", "/ids?after=9"]
    with pytest.raises(module.SourceError, match=r"next_token='rows' is \[.*") as caught:
        ctx.extract(url, records="rows", next_token="rows", token_param="cursor")
    assert caught.value.hint.startswith("path of the next page's token")


def test_what_a_post_may_do(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", lambda path, body: {"rows": [{"n": body["at"]}] * (body["at"] < 2)})
    assert ctx.extract(url, records="rows", json={"q": 1}, page_param="at") == [{"n": 1}]
    assert server.sent == [{"q": 1, "at": 1}, {"q": 1, "at": 2}]
    link = {"rows": [{"n": 1}], "next": "/last"}
    server.tell("/last", lambda path, body: {"rows": [body]})
    assert ctx.extract(
        server.tell("/one", lambda path, body: link), records="rows", json={"q": 1}, next_link="next"
    ) == [{"n": 1}, {"q": 1}]
    assert ctx.extract(server.tell("/none", lambda path, body: [body]), method="POST") == [{}]
    ctx.extract(url, records="rows", json={"at": 1}, headers={"content-type": "application/vnd.it+json"})
    assert server.asked[-1][1]["Content-Type"] == "application/vnd.it+json"
    server.tell("/flaky", (503, {}, b""), (200, JSON, b"[]"))
    assert ctx.extract(server.url + "/flaky", json={}, backoff=0.001) == []
    for status in (301, 303, 307):
        with pytest.raises(module.SourceError, match=r"a redirect leads to http.*/rows") as caught:
            ctx.extract(server.tell("/moved", (status, {"Location": "/rows"}, b"")), json={})
        assert "a POST is not sent on" in caught.value.hint


#: A Link header → whether /two follows (RFC 8288, and what services make of it).
LINKS = {
    '</two>; rel="next"': True,
    "</two>; rel=next": True,
    "</two>; rel='next'": True,
    '</two>; REL="last Next"': True,
    '</two>; title="one, two; rel=prev"; rel="next"': True,
    '</one>; title="<x>, \\"y\\""; rel="prev", </two>; rel="next"': True,
    '</zero>; rel="prev",</two>;rel="next";results="true"': True,
    '</two> ; rel = "next"': True,
    '</zero, </two>; rel="next"': True,
    '</two>; rel="next"; results="false"': False,
    '</two>; rel="nextish"': False,
    '</two>; title="next"': False,
    '</two>; rel="prev"; rel="next"': False,
    '</two>; rel="last", </three>; title="; rel=next"': False,
    "</two>": False,
    "": False,
}


@pytest.mark.parametrize("header", LINKS)
def test_links_of_the_header(header: str, server: Server, ctx: Context) -> None:
    server.tell("/two", [{"id": 2}])
    url = server.tell("/one", (200, JSON | {"Link": header}, b'[{"id": 1}]'))
    assert ctx.extract(url, next_link="header") == [{"id": 1}, {"id": 2}][: 1 + LINKS[header]]


@pytest.mark.parametrize("end", [None, "", False, 0, {}, []])
@pytest.mark.parametrize("options", [{"next_link": "next"}, {"next_token": "next", "token_param": "at"}])
def test_what_ends_pages(end: Any, options: dict[str, str], server: Server, ctx: Context) -> None:
    url = server.tell("/rows", {"rows": [{"id": 1}], "next": end})
    assert ctx.extract(url, records="rows", **options) == [{"id": 1}]
    assert len(server.asked) == 1


@pytest.mark.parametrize("last", [{"rows": None}, {}, {"rows": []}, {"total": 1}])
@pytest.mark.parametrize("options", [{"next_link": "next"}, {"page_param": "page"}])
def test_a_page_without_records_has_no_rows(
    last: Any, options: dict[str, str], server: Server, ctx: Context
) -> None:  # fmt: skip
    url = server.tell("/rows", {"rows": [{"id": 1}], "next": "/rows?page=2"}, last)
    assert ctx.extract(url, records="rows", **options) == [{"id": 1}]
    assert len(server.asked) == 2
    assert ctx.extract(server.tell("/first", {"rows": None}), records="rows") == []


@pytest.mark.parametrize("last", [{"errors": ["no"]}, {"error": "no", "data": None}, [], "no"])
def test_a_page_that_is_no_page_is_an_error(last: Any, server: Server, ctx: Context) -> None:
    url = server.tell("/rows", {"rows": [{"id": 1}]}, last)
    with pytest.raises(module.SourceError, match=r"rows: GET .*/rows \(page 2\): there is no list at records='rows'"):
        ctx.extract(url, records="rows", page_param="page")
    with pytest.raises(module.SourceError, match="there is no list at records='row'"):
        ctx.extract(server.tell("/one", {"rows": [{"id": 1}]}), records="row", page_param="page")


def test_a_token_is_no_link(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", {"rows": [{"id": 1}], "next": "abc123"})
    with pytest.raises(module.SourceError, match="next_link is 'abc123', which is no URL") as caught:
        ctx.extract(url, records="rows", next_link="next")
    assert "next_token='next'" in caught.value.hint
    with pytest.raises(module.SourceError, match="the next page is an earlier one") as caught:
        ctx.extract(url, records="rows", next_token="next", token_param="wrong")
    assert caught.value.hint.startswith(
        "check token_param: the service seems not to have read it; else check next_token"
    )


BREAKS: dict[str, Any] = {
    "too few bytes": (200, JSON | {"Content-Length": "100"}, b'{"rows": [{"id'),
    "half a chunk": (200, JSON | {"Transfer-Encoding": "chunked", "Content-Length": ""}, b'20\r\n{"rows": ['),
    "half of gzip": (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b'{"rows": [{"id": 2}]}' * 9)[:-9]),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_second_page_that_breaks_is_tried_again(case: str, server: Server, ctx: Context) -> None:
    server.tell("/two", BREAKS[case], {"rows": [{"id": 2}]})
    url = server.tell("/one", {"rows": [{"id": 1}], "next": "/two"})
    options: dict[str, Any] = {"records": "rows", "next_link": "next", "backoff": 0.001}
    assert ctx.extract(url, **options) == [{"id": 1}, {"id": 2}]
    server.tell("/two", BREAKS[case])
    with pytest.raises(module.SourceError, match=r"GET http://.*/two \(page 2\): .*\(tried 4 times\)"):
        ctx.extract(url, **options)


#: Retry-After → the least and the most seconds of a pause whose backing off is 0.04.
PAUSES = {
    "0": (0, 0.04),
    "-5": (0, 0.04),
    "Wed, 21 Oct 2015 07:28:00 GMT": (0, 0.04),
    "soon": (0, 0.04),
    "Sun, 06 Nov 9999999994 08:49:37 GMT": (0, 0.04),
    "0.25": (0.25, 0.25),
}


@pytest.mark.parametrize("text", PAUSES)
def test_retry_after_never_ends_backing_off(text: str, server: Server, ctx: Context) -> None:
    url = server.tell("/rows", (429, {"Retry-After": text}, b""), (429, {"Retry-After": text}, b""), (200, JSON, b"[]"))
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", slept.append)
        ctx.extract(url, backoff=0.04)
    least, most = PAUSES[text]
    assert [
        max(least, base / 2) <= pause <= max(most, base) for pause, base in zip(slept, (0.04, 0.08), strict=True)
    ] == [True] * 2


def test_default_ports_are_the_same_origin() -> None:
    assert {*map(module.origin, ("http://a.example", "http://a.example:80/x", "http://A.example/y"))} == {
        ("http", "a.example", 80)
    }
    assert module.origin("https://a.example") == module.origin("https://a.example:443")
    others = ("http://a.example", "https://a.example", "http://a.example:443", "http://b.example", "ftp://a.example:80")
    assert len({*map(module.origin, others)}) == 5


def test_an_error_says_that_headers_were_not_sent(server: Server, other: Server, ctx: Context) -> None:
    away = other.tell("/two", (401, {}, b"no credentials"))
    headers = {"Authorization": "Bearer of-this-test"}
    moved = server.tell("/moved", (302, {"Location": away}, b""))
    url = server.tell("/one", {"rows": [], "next": away})
    for options in ({"url": url, "records": "rows", "next_link": "next"}, {"url": moved}):
        with pytest.raises(
            module.SourceError, match=r"401 Unauthorized; the headers are for .* were not sent to another origin"
        ):
            ctx.extract(options.pop("url"), headers=headers, **options)
        with pytest.raises(module.SourceError, match=r"401 Unauthorized\nhint"):
            ctx.extract(url, records="rows", next_link="next")


def test_headers_of_a_function_are_made_for_each_request(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", (503, {}, b""), {"rows": [{"id": 1}], "next": "/two"})
    server.tell("/two", {"rows": []})
    tokens = iter("abc")
    ctx.extract(url, headers=lambda: {"X-Token": next(tokens)}, records="rows", next_link="next", backoff=0.001)
    assert [headers["X-Token"] for _, headers in server.asked] == ["a", "b", "c"]


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "cp1252", "utf-8"])
def test_the_charset_of_json_counts(charset: str, server: Server, ctx: Context) -> None:
    for media, text in (("json", '[{"a": "é"}]'), ("x-ndjson", '{"a": "é"}')):
        answer = (200, {"Content-Type": f"application/{media}; charset={charset}"}, text.encode(charset))
        assert ctx.extract(server.tell("/rows", answer)) == [{"a": "é"}]


def test_shapes_of_documents_over_http(server: Server, ctx: Context) -> None:
    url = server.tell("/rows", {"at": 1, "rows": [{"a": {"b": 1}}], "next": "/two"})
    server.tell("/two", {"at": 2, "rows": [{"a": {"b": 2}}]})
    rows = ctx.extract(url, records="rows", next_link="next", meta=["at"], flatten=True)
    assert rows == [{"a.b": 1, "at": 1}, {"a.b": 2, "at": 2}]
    assert ctx.extract(url, records=".")[0]["next"] == "/two"
