"""A secret is told to the pipeline and to nobody else."""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from conftest import Context, Tau, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from test_terminal import on_terminal

import tau as module

#: Letters that each way of writing spells otherwise.
SECRET = "p@ss/w:rd-\"q'\\é+ 77"


def traces(home: Path) -> list[str]:
    """The files of a home in which a spelling of the secret is left."""
    data = SECRET.encode()
    forms = {
        data,
        json.dumps(SECRET)[1:-1].encode(),
        json.dumps(SECRET, ensure_ascii=False)[1:-1].encode(),
        repr(SECRET)[1:-1].encode(),
        urllib.parse.quote(SECRET, safe="").encode(),
        urllib.parse.quote_plus(SECRET).encode(),
    }
    forms |= {base64.b64encode(b"x" * offset + data)[4:-4] for offset in range(3)}
    forms |= {data[:12], data[-12:]}
    found = []
    for path in home.rglob("*"):
        if path.is_file() and path.name != "SPELLED_KEY":
            text = path.read_bytes()
            found += [
                f"{path.relative_to(home)}: {text[max(i - 80, 0) : i + 60]!r}" for i in map(text.find, forms) if i >= 0
            ]
    return found


PIPELINE = """
import base64, json, os, subprocess, sys, time, urllib.parse
from tau import pipeline, per_row

class Holder:
    def __init__(self, value): self.value = value
    def __repr__(self): return f"Holder({self.value!r})"

@pipeline
def teller(ctx, fail: bool = False, wait: bool = False):
    key = ctx.secret("SPELLED_KEY")
    value = holder = Holder(key)
    forms = [key, repr(key), json.dumps(key), urllib.parse.quote(key), urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key)]
    forms += [base64.b64encode((user + ":" + key + end).encode()).decode() for user in ("a", "ab", "abc") for end in ("", "x", "xy")]
    forms += [base64.urlsafe_b64encode(key.encode()).decode(), "x" * 490 + key, "y" * 55 + key]
    for form in forms:
        ctx.log(f"it is {form}!", url=form, inner={form: [form]})
        print("printed", form, form)
        print("to stderr", form, file=sys.stderr)
        ctx.metric(form, 1)
        ctx.progress(1, 2, form)
        with ctx.step(f"step {form}") as step:
            step.rows_out = 1
        ctx.check((f"named {form}", False), form == "", severity="warn")
        ctx.check(lambda: 1 / 0 if form else form, severity="warn")
        os.write(1, f"raw {form} end\\n".encode())
        os.write(2, f"raw {form}".encode())
        ctx.transform([{form: 1}], ["SELECT 1 AS n, '" + form.replace("'", "''") + "' AS told FROM data"])
        ctx.extract([{"a": form}] and ctx.load("rows.json", [{"n": 1}]) and "rows.json")
    print("z" * 65_500 + key + "z" * 400, end="")
    print(key)
    for part in (key[:5], key[5:], "\\n", "q" * 65_530, key, "q" * 100, key[:7]):
        os.write(1, part.encode())
    os.write(1, (key[7:] + " and again").encode())
    script = "import os, sys, time\\nfor part in sys.argv[1:]: os.write(1, os.fsencode(part)); os.write(2, os.fsencode(part))"
    subprocess.run([sys.executable, "-c", script, key[:9], key[9:], key, "\\n" + key], check=True)
    if wait:
        open("waiting", "w").close()
        while not os.path.exists("go on"): time.sleep(0.01)
    if fail:
        many = {key: [key, {"k": (key,)}], ("t", key): holder}
        try:
            raise KeyError(key)
        except KeyError as inner:
            raise RuntimeError(f"no entry with {key} " + "w" * 480 + key) from inner
    return {"key": key, key: [key, {"deep": f"is {key}"}], "b64": base64.b64encode(key.encode()).decode()}

@pipeline
def breaker(ctx):
    dsn = "postgresql://tau:" + urllib.parse.quote(ctx.secret("SPELLED_KEY"), safe="") + "@127.0.0.1:1/nowhere"
    ctx.sql("SELECT 1", connection=dsn)

@pipeline
def plain_url(ctx):
    try:
        ctx.sql("SELECT 1", connection="postgresql://tau:" + os.environ["URL_KEY"] + "@127.0.0.1:1/nowhere")
    except Exception as problem:
        print(os.environ["URL_KEY"], problem)
    ctx.extract("shop", "orders")
"""


@pytest.fixture
def told(home: Tau) -> Tau:
    """A daemon of its own, with a secret in its environment."""
    home.environ |= {"SPELLED_KEY": SECRET, "URL_KEY": urllib.parse.quote(SECRET, safe="")}
    (home.home / "tau.toml").write_text(
        '[connections.shop]\nurl = "postgresql://tau:${SPELLED_KEY}@127.0.0.1:1/nowhere"\n'
    )
    home.start()
    home.deploy(PIPELINE, "told.py")
    return home


def test_a_secret_leaves_no_trace_whatever_a_run_does_with_it(told: Tau) -> None:
    answers: list[str] = []
    run = told.command("run", "teller")
    answers += [run.out, told.command("run", "teller", "--params", '{"fail": true}').out]
    answers += [told.command("run", name).out for name in ("breaker", "plain_url")]
    assert [json.loads(answer)["status"] for answer in answers] == ["success", "failed", "failed", "failed"]
    for name in ("teller", "breaker", "plain_url"):
        answers += [
            told.command(*words).out
            for words in (("logs", name, "--tail", "10000"), ("inspect", name, "--last-run", "--full"), ("show", name))
        ]
    answers += [told.command(*words).out for words in (("errors",), ("runs", "teller"), ("list",))]
    (told.home / "copy").mkdir()
    for number, answer in enumerate(answers):
        (told.home / "copy" / str(number)).write_text(answer)
    assert len("".join(answers)) > 50_000
    assert "***" in "".join(answers)
    assert traces(told.home) == []
    result = json.loads(answers[0])["result"]
    assert result == {"key": "***", "***": ["***", {"deep": "is ***"}], "b64": "***"}


def test_a_secret_leaves_no_trace_while_the_run_goes_on(told: Tau) -> None:
    run = told("run", "teller", "--params", '{"wait": true}', "--detach")
    folder = told.home / "data" / "teller"
    eventually((folder / "waiting").exists)
    assert traces(told.home) == []
    (folder / "go on").touch()
    assert told("wait", run["run_id"])["status"] == "success"
    assert traces(told.home) == []


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=module.SECRET_CHARACTERS_MIN, max_size=40),
    st.text(max_size=5),
    st.text(max_size=5),
)
@settings(max_examples=100)
def test_no_spelling_of_any_secret_is_left_in_a_text(secret: str, before: str, after: str) -> None:
    mask = module.Mask()
    mask.add(secret)
    around = [before.encode("utf-8", "replace"), secret.encode(), after.encode("utf-8", "replace")]
    code = base64.b64encode(b"".join(around)).decode()
    for form in (
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
    ):
        assert (
            form not in mask.text(f"{before}{form}{after}").replace("***", "")
            or len(form) < 6
            or form in f"{before}***{after}"
        )
    start = -(-len(around[0]) * 8 // 6)
    known = code[start + 1 : (len(around[0]) + len(around[1])) * 8 // 6]
    assert len(known) < 6 or known not in mask.text(code) or known in secret


def test_where_secrets_are_looked_for(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, credentials = Path(ctx.data_dir) / "secrets", tmp_path / "credentials"
    with pytest.raises(module.MissingSecret, match="there is no secret 'API_KEY'") as caught:
        ctx.secret("API_KEY")
    assert caught.value.hint == "`tau secret set API_KEY` reads it from stdin; or export API_KEY=… for taud"
    assert ctx.secret("API_KEY", default="by default") == "by default"
    assert ctx.secret("API_KEY", default=Path("/by/default")) == "/by/default"  # type: ignore[arg-type]
    for folder, value in ((secrets, "of the home\n"), (credentials, "of systemd")):
        folder.mkdir()
        (folder / "API_KEY").write_text(value)
        (folder / "API_KEY").chmod(0o600)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        assert ctx.secret("API_KEY") == value.strip()
    monkeypatch.setenv("API_KEY", "of the environment")
    assert ctx.secret("API_KEY") == "of the environment"
    ctx.log("by default, of the home, of systemd, of the environment")
    assert ctx.records("log")[-1]["message"] == "***, ***, ***, ***"


def test_a_file_of_the_working_directory_is_no_secret(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    Path("notes").write_text("lies about")
    with pytest.raises(module.MissingSecret, match="there is no secret 'notes'"):
        ctx.secret("notes")


def test_a_file_that_others_can_read_is_refused(ctx: Context) -> None:
    path = Path(ctx.data_dir) / "secrets" / "API_KEY"
    path.parent.mkdir()
    path.write_text("open to all")
    path.chmod(0o640)
    with pytest.raises(module.MissingSecret, match="can be read by others") as caught:
        ctx.secret("API_KEY")
    assert caught.value.hint == f"chmod 600 {path}"


def test_names_that_are_none_and_taus_own_keys(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "../etc/passwd", "a b", 5):
        with pytest.raises(module.BadRequest, match="cannot be a secret's name"):
            ctx.secret(name)  # type: ignore[arg-type]
    monkeypatch.setenv("TAU_API_KEY", "tau_sk_1234567890")
    with pytest.raises(module.MissingSecret):
        ctx.secret("TAU_API_KEY")


def test_a_short_secret_is_told_once_that_it_cannot_be_hidden(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "1234")
    for _ in range(3):
        assert ctx.secret("PIN") == "1234"
    assert ctx.secret("NOTHING", default="") == ""
    messages: list[Any] = [line["message"] for line in ctx.records("log")]
    assert messages == ["a secret of less than 6 characters cannot be hidden in text"]


def test_secrets_of_several_lines(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (
        "-----BEGIN KEY-----\nMIIBVwIBADANBgkqhkiG9w0BAQEF\nAASCAUEwggE9AgEAAkEAq7BFUpkGp3\nZ'9/w=\n-----END KEY-----\n"
    )
    monkeypatch.setenv("PEM", key)
    assert ctx.secret("PEM") == key
    ctx.log(f"whole: {key}")
    for line in key.splitlines():
        ctx.log(f"line: {line}")
    ctx.log(repr(key))
    text = ctx.journal.read_text()
    assert not [line for line in key.splitlines() if line in text]
    assert os.environ["PEM"] == key


def test_a_secret_of_several_short_lines_is_hidden_in_what_native_code_writes(tau: Tau) -> None:
    path = tau.home / "secrets" / "SHORT_LINES"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text("one line\ntwo lines\nthree\n")
    run = tau.run_it(
        "import os\ndef it(ctx):\n    key = ctx.secret('SHORT_LINES')\n    os.write(1, f'native {key}\\n'.encode())"
    )
    assert run["trace"]["log_tail"] == ["native ***"]
    path.unlink()


LOCALS = """
    import collections, dataclasses
    @dataclasses.dataclass
    class Auto:
        user: str
        api_token: object
    class Client:
        def __init__(self, **words):
            self.words = words
        def __repr__(self):
            return f"<Client {self.words} {', '.join(f'{key}={value!r}' for key, value in self.words.items())}>"
    Pair = collections.namedtuple("Pair", "user api_key")
    def it(ctx):
        hidden = "abcdef" + str(123456)
        plain = Auto("ann", hidden)
        deep = {"list": [Auto("ann", Auto("ann", hidden + " " + hidden))]}
        held = Auto("ann", [hidden, (hidden,)])
        pair = [Pair("ann", hidden)]
        client = Client(my_secret_value=hidden, db_password=[f"{hidden}'{hidden}"])
        quoted = Client(password='it\\\\"s ' + hidden, user="bob")
        cut = Client(name="x" * 100, token="y" * 80 + hidden)
        hidden = None
        raise ValueError("no")
"""


def test_the_values_of_names_that_look_secret_are_hidden_in_the_locals_of_an_error(tau: Tau) -> None:
    run = tau.run_it(LOCALS, exit=1)
    shown = run["error"]["frames"][-1]["locals"]
    assert "abcdef" not in json.dumps(shown)
    assert "yyy" not in json.dumps(shown)
    assert shown["plain"] == "Auto(user='ann', api_token=***)".replace("Auto(", shown["plain"].partition("user")[0])
    assert shown["pair"] == "[Pair{'user': 'ann', 'api_key': '***'}]"
    assert "user='bob'" in shown["quoted"]


def test_a_secret_that_is_a_word_of_ours_leaves_the_words_of_an_error_alone(home: Tau) -> None:
    words = ("message", "frames", "exception", "fingerprint", "failed", "ValueError")
    home.environ |= {f"WORD_{number}": word for number, word in enumerate(words)}
    home.start()
    run = home.run_it(
        f"def it(ctx):\n    for n in range({len(words)}): ctx.secret(f'WORD_{{n}}')\n    raise ValueError('message')",
        exit=1,
    )
    assert (run["status"], run["error"]["kind"]) == ("failed", "exception")
    assert (run["error"]["message"], run["error"]["type"]) == ("***", "***")
    assert [frame["function"] for frame in run["error"]["frames"]] == ["it"]


def test_a_secret_is_a_regular_file_of_bounded_size(ctx: Context) -> None:
    folder = Path(ctx.data_dir) / "secrets"
    folder.mkdir()
    (folder / "LARGE").write_bytes(b"x" * (module.SECRET_BYTES_MAX + 1))
    (folder / "LARGE").chmod(0o600)
    (folder / "FOLDER").mkdir(mode=0o700)
    os.mkfifo(folder / "FIFO", 0o600)
    for name in ("LARGE", "FOLDER", "FIFO"):
        with pytest.raises(module.MissingSecret, match=f"{name} is no file of at most"):
            ctx.secret(name)


#: Ways of a secret around the process that has read it; `hold` waits for the test, `tell` says all that a run can say.
WAYS = """
import atexit, multiprocessing, os, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from tau import pipeline

def hold(ctx):
    open("waiting", "w").close()
    while not os.path.exists("go on"): time.sleep(0.01)

def tell(ctx, key):
    ctx.log(f"it is {key}", url=key, inner={key: [key]})
    print("printed", key)
    os.write(1, f"raw {key}\\n{key[:-3]}".encode())
    os.write(1, key[-3:].encode() + b"\\n")
    os.write(2, f"raw {key!r}\\n".encode())
    ctx.metric(key, 1)
    ctx.progress(1, 2, key)
    ctx.check((f"named {key}", False), severity="warn")
    ctx.memo(f"memo {key}", len, key)
    with ctx.step(f"step {key}"):
        ctx.load("kept.jsonl", [{key: key}])
    os.remove("kept.jsonl")  # that file is the user's own
    try:
        with ctx.step("breaks"):
            raise type(key.replace("\\0", ""), (Exception,), {})(key)
    except Exception:
        pass

def learn(pipe, ctx):
    pipe.send(ctx.secret("SPELLED_KEY"))

def from_child(ctx):
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=learn, args=(theirs, ctx))
    child.start()
    key = ours.recv()
    child.join()
    return key

@pipeline
def popen(ctx):
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    key = ctx.secret("SPELLED_KEY")
    child.stdin.write(f"{key}\\nand {key}\\n{'x' * (16_384 - 13)}{key}\\n".encode())  # a log line has 16 KiB
    child.stdin.close()
    child.wait()
    hold(ctx)

@pipeline
def pool(ctx):
    global tell_later
    def tell_later(key): tell(ctx, key)
    tell_later.__qualname__ = "tell_later"
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as workers:
        workers.submit(int).result()
        workers.submit(tell_later, ctx.secret("SPELLED_KEY")).result()
    hold(ctx)

@pipeline
def fork(ctx):
    key = from_child(ctx)
    tell(ctx, key)
    hold(ctx)
    return {key: [key]}

@pipeline
def broken(ctx):
    key = from_child(ctx)
    hold(ctx)
    ctx.memo("kept", str, key)
    ctx.memo("other", str, "harmless")
    holder = {"a": [key]}
    raise type(key, (Exception,), {})(f"no {key}") from KeyError(key)

@pipeline
def leaver(ctx):
    child = os.fork()
    if not child:
        ctx.secret("SPELLED_KEY")
        os._exit(0)
    os.waitpid(child, 0)
    atexit.register(lambda: os.write(1, os.environb[b"SPELLED_KEY"] + b"\\n"))
    atexit.register(lambda: 1 / 0 if sys.argv else print(os.environ["SPELLED_KEY"]))
    hold(ctx)
"""


@pytest.mark.parametrize("way", ["popen", "pool", "fork", "broken", "leaver"])
def test_a_secret_leaves_no_trace_whichever_process_of_a_run_reads_or_tells_it(told: Tau, way: str) -> None:
    told.deploy(WAYS, "ways.py")
    run_id = told.call("run", name=way, wait=False)["run_id"]
    folder = told.home / "data" / way
    eventually((folder / "waiting").exists)
    eventually(lambda: not traces(told.home))
    live = told.command("logs", way, "--tail", "1000").out
    if way in ("pool", "fork"):
        told.kill()  # the next daemon hides the same secrets
        told.start()
    (folder / "go on").touch()
    told.command("wait", run_id)
    answers = [live, told.command("inspect", run_id, "--full").out, told.command("logs", way, "--tail", "1000").out]
    answers += [told.command("errors").out, json.dumps(told.call("inspect", run_id=run_id, full=True))]
    answers += [on_terminal(told, *words)[1] for words in (("logs", way), ("inspect", run_id), ("wait", run_id))]
    (told.home / "copy").write_text("".join(answers))
    assert traces(told.home) == []
    assert "***" in "".join(answers)
    assert json.loads(answers[1])["status"] == ("failed" if way == "broken" else "success")
    assert [*(told.home / "runs").iterdir()] == []
    assert len([*(told.home / "memos").rglob("*/*")]) == (way == "broken")


ASKS = """
from tau import pipeline

@pipeline
def asks(ctx):
    ctx.secret("SET_BY_COMMAND"), ctx.secret(
        name='NEVER_THERE',
    )
    # ctx.secret("IN_A_COMMENT")
    return ctx.secret("OPTIONAL", "none"), ctx.secret("PATH"), ctx.secret(f"{ctx}"), ctx.secret("HALF_" + "A_NAME"), ctx.secret("OPTIONAL", default=1)

@pipeline
def tells(ctx):
    return len(ctx.secret("SET_BY_COMMAND"))
"""


def test_secrets_are_set_listed_and_removed_and_their_values_never_told(home: Tau) -> None:
    (home.home / "tau.toml").write_text(
        '[connections.shop]\nurl = "postgresql://tau:${SHOP_KEY}@127.0.0.1:1/nowhere"\n[daemon]\nlog_level = "debug"\n'
    )
    home.start()
    home.deploy(ASKS, "asks.py")

    def listed() -> dict[str, Any]:
        return {row["name"]: (row["found"], row["used_by"]) for row in home("secret", "list")["secrets"]}

    both = ["asks", "tells"]
    nothing = {"NEVER_THERE": (None, both), "OPTIONAL": ("default", both), "PATH": ("environment", both)}
    nothing |= {"SET_BY_COMMAND": (None, both), "SHOP_KEY": (None, ["connection shop"])}
    assert listed() == nothing
    assert home("status")["missing_secrets"] == ["NEVER_THERE", "SET_BY_COMMAND", "SHOP_KEY"]
    doctor = {check["name"]: check for check in home("doctor")["checks"]}["secrets"]
    assert doctor["status"] == "warn"
    assert "NEVER_THERE, SET_BY_COMMAND, SHOP_KEY" in doctor["found"]
    assert doctor["remedy"] == "tau secret set NEVER_THERE"
    value = "value-of-the-secret"
    set_ = home.command("secret", "set", "SET_BY_COMMAND", stdin=value + "\n")
    assert set_.json == {"name": "SET_BY_COMMAND", "changed": True, "found": "home"}
    assert home.command("secret", "set", "SET_BY_COMMAND", "-", stdin=value).json["changed"] is False
    path = home.home / "secrets" / "SET_BY_COMMAND"
    assert (path.read_text(), path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (value, 0o600, 0o700)
    assert home("run", "tells")["result"] == len(value)
    assert listed() == nothing | {"SET_BY_COMMAND": ("home", both)}
    home.command("secret", "set", "UNUSED", stdin="x" * 10)
    assert listed()["UNUSED"] == ("home", [])
    for words, stdin in (
        (("set", "SET_BY_COMMAND", "in-plain-sight"), ""), (("set", "SET_BY_COMMAND"), ""), (("set", "../up"), "x"),
        (("set", "BIG"), "x" * 65_537), (("remove", "a b"), ""), (("set",), "x"),
    ):  # fmt: skip
        refused = home.command("secret", *words, stdin=stdin)
        assert (refused.exit, refused.error["code"]) == (2, "bad_request"), words
        assert "in-plain-sight" not in refused.err
    assert home("secret", "set", "PATH", stdin="shadowed")["found"] == "environment"
    assert home("secret", "remove", "SET_BY_COMMAND") == {"name": "SET_BY_COMMAND", "changed": True, "found": None}
    assert not home("secret", "remove", "SET_BY_COMMAND")["changed"]
    assert not path.exists()
    home("undeploy", "asks")
    assert listed()["NEVER_THERE"] == (None, ["tells"])
    for kept in (*home.home.rglob("*"), *home.work.rglob("*.log")):
        assert not kept.is_file() or value.encode() not in kept.read_bytes(), kept
    rows = home.call("schema")["operations"]
    assert {row["name"] for row in rows if row["name"].startswith("secret")} == {
        "secret_set",
        "secret_remove",
        "secret_list",
    }


def test_what_cannot_be_written_tells_no_secret(home: Tau) -> None:
    home.start()
    (home.home / "secrets").write_text("a file in its place")
    refused = home.command("secret", "set", "KEY", stdin="value-of-the-secret")
    assert refused.exit not in (0, 9)
    assert "value-of-the-secret" not in refused.err
    for kept in (home.home / "tau.log", home.work / "taud.log"):
        assert not kept.exists() or "value-of-the-secret" not in kept.read_text()


def test_a_state_that_holds_a_secret_fails_the_run(home: Tau) -> None:
    home.start()
    home("secret", "set", "BUCKET", stdin="acme-landing")
    failed = home.run_it("""
        def it(ctx):
            ctx.state["cursor"] = ctx.secret("BUCKET") + "/2026-01-05.csv"
    """, exit=1)["error"]  # fmt: skip
    assert (failed["type"], failed["message"].startswith("ctx.state['cursor'] holds a secret")) == ("BadResult", True)
    assert home("state", "it")["state"] in ({}, None)


def test_a_missing_secret_of_a_namespace_is_saved_as_the_hint_says(home: Tau) -> None:
    home.start()
    home("namespace", "create", "acme")
    home("secret", "set", "TOKEN_OF_SHOP", stdin="of default")
    path = home.write("from tau import pipeline\n@pipeline\ndef it(ctx): return len(ctx.secret('TOKEN_OF_SHOP'))\n")
    home("--namespace", "acme", "deploy", path)
    failed = home("run", "acme/it", exit=1)
    line = "tau secret set acme/TOKEN_OF_SHOP"
    assert failed["next"][0] == line
    assert failed["error"]["hint"] == f"`{line}` reads it from stdin"
    assert {check["name"]: check for check in home("doctor")["checks"]}["secrets"]["remedy"] == line
    assert home(*line.split()[1:], stdin="of acme")["changed"]
    assert home("run", "acme/it")["result"] == len("of acme")
    assert (home.home / "secrets" / "TOKEN_OF_SHOP").read_text() == "of default"
    assert home("secret", "remove", "acme/TOKEN_OF_SHOP")["changed"]
    assert home("secret", "set", "nobody/TOKEN", stdin="x", exit=3)["message"] == "no namespace 'nobody'"
